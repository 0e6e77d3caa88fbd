"""Load models and adapters, read facts about them, and provide the model from the package index."""
