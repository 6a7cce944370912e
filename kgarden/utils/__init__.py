"""Atomic file writes and progress bars."""
