"""Training rows: their lengths, positions and tensors, and which samples share one."""
