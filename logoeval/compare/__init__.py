"""Comparison of runs: paired differences, and how wrong answers go wrong."""
