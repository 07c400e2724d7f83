"""Recovering accuracy: feature mimicking, and results that are kept."""
