"""Read text files that a user writes, and prepare values for JSON."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from m2h_deploy.errors import M2HError


def read_json(path: str | os.PathLike[str], what: str) -> Any:
    """Read the JSON file at `path`; `what` names it in an error.

    Raises:
        M2HError: it cannot be read, or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise M2HError(f"cannot read {what} {path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise M2HError(f"{what} {path}: not JSON: {' '.join(str(error).split())}") from None


def finite(value: Any) -> Any:
    """Return nested plain values with NaN and infinity, which JSON lacks, replaced by None."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
