"""The data set on disk, and every way to look at it, export it, or upload it."""
