"""Training: losses, optimizer, step, loop, checkpoints, metrics."""
