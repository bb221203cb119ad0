"""Texture models and terms, one in each file, and what they share."""
