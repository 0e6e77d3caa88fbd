"""The ``eval`` section of a recipe."""
