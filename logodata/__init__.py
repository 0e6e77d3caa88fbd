"""Preference data from long documents. Importing this package loads no torch, vLLM or faiss."""

__version__ = "0.1.0"
