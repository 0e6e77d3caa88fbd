"""Questions that a model writes on raw documents."""
