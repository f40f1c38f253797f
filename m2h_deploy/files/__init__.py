"""Read and write files: atomic writes, images, videos, names, and protection against overwriting."""
