"""Import Open3D, which is an optional package."""

from __future__ import annotations

from typing import Any

from m2h_deploy.errors import M2HError, missing_extra


def import_open3d() -> Any:
    """Import Open3D. Raises M2HError with what to install if the package, or a library of the system, is missing."""
    try:
        import open3d
    except (ImportError, OSError) as error:
        if "libusb" in str(error):
            raise M2HError(
                "maps need Open3D, which needs the system's library libusb-1.0: apt-get install libusb-1.0-0"
            ) from None
        raise missing_extra("open3d", "map", "a map", error=error) from None
    return open3d
