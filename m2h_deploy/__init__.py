"""m2h-deploy: the part that ships to the device. Importing it never imports torch."""

__version__ = "0.1.0"
