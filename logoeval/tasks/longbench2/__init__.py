"""LongBench v2: multiple-choice questions on long texts, with the official prompts and scores (arXiv 2412.15204)."""
