"""Texture models and statistics, one a file, and the matching of patches that they share."""
