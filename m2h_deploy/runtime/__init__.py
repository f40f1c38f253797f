"""The runtime: an image in, a prediction out."""
