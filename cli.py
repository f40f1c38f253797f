"""The m2h-deploy command."""


def main() -> None:
    """Entry point of the console script."""
