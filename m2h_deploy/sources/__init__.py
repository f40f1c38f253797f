"""Where frames come from: images, folders, videos, cameras, network streams."""

from m2h_deploy.files.images import read_image
from m2h_deploy.sources.source import open_source

__all__ = ["open_source", "read_image"]
