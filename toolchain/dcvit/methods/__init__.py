"""Methods: each finds a plan and recovers accuracy; nothing else in the package knows which one it was."""
