"""Draw pictures and HTML pages of results."""
