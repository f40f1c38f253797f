"""Inspect files and machines: graphs, bundles, engines, known issues."""
