"""placeholder"""


def write_repository() -> None: ...
