"""Results as Parquet: one part file for the frames of a task, written atomically.

A row is a frame: `name`, `file` (path of the image), `digest`, `height` and `width` (of the image and its maps),
`depth` and `labels` (PNG files: 16-bit millimeters, 8-bit class indices), and on request `npz` (all outputs). PNG
instead of arrays, because frames of any size fit in one column, a map keeps its shape, the data is the same as in the
files of `run`, and it is several times smaller. Any Parquet reader can read the folder as one table.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2h_deploy.causes import failure
from m2h_deploy.cluster.jobs import Row
from m2h_deploy.errors import M2HError, first_line
from m2h_deploy.files.atomic import whole_file
from m2h_deploy.runtime.postprocess import Prediction
from m2h_deploy.sinks.files import encode_npz, encode_png, maps_of

#: Number of frames per part: 30 to 60 MB would be the usual size, but if a worker dies, its whole part is repeated.
PART_FRAMES = 32

_ENDING = ".parquet"
_PART = re.compile(r"part-[0-9a-f]{16}\.parquet")


def part_row(row: Row, image: NDArray[np.uint8], prediction: Prediction, *, npz: bool) -> dict[str, Any]:
    """Return one frame as a row; tasks that the engine does not have are null."""
    maps = {name: encode_png(picture) for name, picture in maps_of(prediction).items()}
    content = {
        "name": row.name,
        "file": row.source,
        "digest": row.key,
        "height": image.shape[0],
        "width": image.shape[1],
        "depth": maps.get("depth"),
        "labels": maps.get("labels"),
    }
    return content | ({"npz": encode_npz(prediction)} if npz else {})


def write_part(folder: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Write `rows` as a part of `folder`, atomically; the same rows replace it, so there are no duplicates."""
    pa, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    schema = pa.schema(
        [
            *((name, pa.string()) for name in ("name", "file", "digest")),
            *((name, pa.int32()) for name in ("height", "width")),
            *((name, pa.binary()) for name in ("depth", "labels", "npz") if name in rows[0]),
        ]
    )
    named = hashlib.sha256("".join(row["digest"] for row in rows).encode()).hexdigest()[:16]
    path = folder / f"part-{named}{_ENDING}"
    with whole_file(path) as temporary:
        # The PNG data is compressed already.
        parquet.write_table(pa.Table.from_pylist(list(rows), schema), temporary, compression="NONE")
    return path


def settle_parts(folder: Path, rows: Sequence[Row]) -> list[Row]:
    """Return the `rows` that are in no part of `folder`, and remove outdated results of the same frames from parts.

    Raises:
        M2HError: A part cannot be read, or the folder contains other Parquet files.
    """
    wanted = {row.name: row.key for row in rows}
    there: set[str] = set()
    for path in sorted(folder.glob(f"*{_ENDING}")):
        if path.name.startswith(".part-"):  # left by a writer that died
            path.unlink(missing_ok=True)
            continue
        if _PART.fullmatch(path.name) is None:
            raise M2HError(f"{path} is not a Parquet part that m2h-deploy wrote: give another folder")
        digests = _settle(path, wanted)
        there |= digests
    return [row for row in rows if row.key not in there]


def _settle(path: Path, wanted: dict[str, str]) -> set[str]:
    parquet = import_module("pyarrow.parquet")
    try:
        table = parquet.read_table(path, columns=["name", "digest"])
        pairs = list(zip(table["name"].to_pylist(), table["digest"].to_pylist(), strict=True))
    except (OSError, ValueError, KeyError) as error:  # base types of pyarrow's errors
        other = f"{path} is not a part of such results: give another folder ({first_line(error)[:200]})"
        raise failure(error, f"cannot read {path}", other) from None
    current = [wanted.get(name, digest) == digest for name, digest in pairs]
    if not any(current):
        path.unlink()
    elif not all(current):
        with whole_file(path) as temporary:
            parquet.write_table(parquet.read_table(path).filter(current), temporary, compression="NONE")
    return {digest for (_, digest), keep in zip(pairs, current, strict=True) if keep}
