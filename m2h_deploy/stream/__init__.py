"""Continuous prediction on the frames of a camera, a video or a folder."""
