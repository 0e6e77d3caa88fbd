"""The ``build`` section of a recipe."""
