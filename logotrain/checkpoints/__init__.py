"""Checkpoints that a run continues from, the exported result, and merged models."""
