"""Reading and writing files: atomic writes, images, videos, names, and what may be overwritten."""
