"""Models and adapters: loading, facts about them, and the model that comes from the package index."""
