"""Code that the three packages share: errors, recipes, run folders, shards, console."""
