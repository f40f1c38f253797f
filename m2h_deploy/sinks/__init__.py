"""Where results go: files, a video, a window, Rerun."""
