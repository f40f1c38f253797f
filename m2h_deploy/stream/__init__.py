"""Frames of a source, predicted as they come."""
