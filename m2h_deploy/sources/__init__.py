"""Where frames come from: images, folders, videos, cameras, network streams."""
