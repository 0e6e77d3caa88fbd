"""A compact exact trainer for LOGO."""
