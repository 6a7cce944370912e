"""Recipes: sections, loading, and calling builders with checked settings."""
