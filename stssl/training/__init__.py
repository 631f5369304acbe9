"""Training: optimizer and schedule, checkpoints, the loop, and its launch on Ray."""
