"""Read recipes: YAML files, overrides, checked fields, and the names that other programs use."""
