"""Code that the three packages share: errors, recipes, run folders, append-only logs, console."""
