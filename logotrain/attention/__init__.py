"""Attention over a row whose responses share their prompt."""
