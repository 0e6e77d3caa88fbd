"""The ``train`` section of a recipe."""
