"""Weights of other projects under our names: one declarative table for each source."""
