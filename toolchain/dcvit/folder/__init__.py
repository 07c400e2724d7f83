"""The model folder: what a compressed model is on disk, and what every step leaves in it."""
