"""Rounds of building, training and measuring: each begins with the adapter that the one before trained."""
