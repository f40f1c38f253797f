"""The bundle: its manifest, its folder and its self-test."""
