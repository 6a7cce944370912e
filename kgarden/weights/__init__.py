"""Weights of other projects: their files, and one declarative table of names for each source."""
