"""Training rows: their layout, their position ids, their tensors, and how samples are packed into them."""
