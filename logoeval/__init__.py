"""Evaluation before and after: NIAH, perplexity, preference pairs, comparison."""
