"""Contexts: how documents are cut into chunks, scored for a question, and put together again."""
