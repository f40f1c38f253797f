"""Import Open3D, which is an optional package and needs libraries of the system."""

from __future__ import annotations

import re
from typing import Any

from m2h_deploy.errors import M2HError, missing_extra

#: Debian's packages of the libraries that Open3D loads and its wheel lacks.
SYSTEM_PACKAGES = ("libusb-1.0-0", "libegl1", "libgl1", "libx11-6", "libgomp1", "libidn2-0", "libudev1")


def import_open3d() -> Any:
    """Import Open3D. Raises M2HError with what to install if the package, or a library of the system, is missing."""
    try:
        import open3d
    except (ImportError, OSError) as error:
        library = re.search(r"lib\S+\.so[.\d]*(?=: cannot open shared object file)", str(error))
        if library is not None:
            raise M2HError(
                f"a map needs open3d, which needs {library[0]}: apt-get install {' '.join(SYSTEM_PACKAGES)}"
            ) from None
        raise missing_extra("open3d", "map", "a map", error=error) from None
    return open3d
