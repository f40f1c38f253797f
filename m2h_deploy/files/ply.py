"""Write triangle meshes as PLY (binary, little endian)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from m2h_deploy.files.atomic import write_bytes


def write_ply(
    path: Path,
    vertices: npt.NDArray[np.floating],
    triangles: npt.NDArray[np.integer],
    colors: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.uint8],
) -> Path:
    """Write a mesh with a color and a class for each vertex, the latter as the property `label`.

    Args:
        path: the file.
        vertices: (N, 3).
        triangles: (M, 3), indices of vertices.
        colors: (N, 3), RGB.
        labels: (N,).

    Returns:
        `path`.
    """
    points = np.zeros(len(vertices), [("xyz", "<f4", 3), ("rgb", "u1", 3), ("label", "u1")])
    points["xyz"], points["rgb"], points["label"] = vertices, colors, labels
    faces = np.zeros(len(triangles), [("count", "u1"), ("corners", "<i4", 3)])
    faces["count"], faces["corners"] = 3, triangles
    lines = ["ply", "format binary_little_endian 1.0", "comment m2h-deploy", f"element vertex {len(points)}"]
    lines += [f"property float {name}" for name in "xyz"]
    lines += [f"property uchar {name}" for name in ("red", "green", "blue", "label")]
    lines += [f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header\n"]
    return write_bytes(path, "\n".join(lines).encode() + points.tobytes() + faces.tobytes())
