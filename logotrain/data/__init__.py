"""The samples of a run: read, chosen, and checked before any weights are loaded."""
