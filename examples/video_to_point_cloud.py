"""Turn a video into point clouds with class labels: one PLY file per frame, for MeshLab, CloudCompare or Open3D.

python examples/video_to_point_cloud.py bundle/ video.mp4 clouds/ --fov 60
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from m2h_deploy import M2HError, Runtime, Stream
from m2h_deploy.camera import intrinsics_of_view
from m2h_deploy.point_cloud import PointCloud, colors, positions

#: A point of the files: meters in the camera's frame (x right, y down, z forward), color, class index.
POINT = np.dtype([("xyz", "<f4", 3), ("rgb", "u1", 3), ("label", "u1")])
FIELDS = ["float x", "float y", "float z", "uchar red", "uchar green", "uchar blue", "uchar label"]
START = ["ply", "format binary_little_endian 1.0"]


def main() -> None:
    """Read the options, and write a file for every frame."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", help="bundle folder; its engine gives depth and semantics")
    parser.add_argument("source", help="a video, a folder of pictures, a camera's index or a URL")
    parser.add_argument("output", type=Path, help="folder for the PLY files")
    parser.add_argument("--fov", type=float, default=60, help="the camera's horizontal angle of view in degrees (60)")
    parser.add_argument("--decimation", type=int, default=2, help="take every n-th row and column (2)")
    options = parser.parse_args()
    project = PointCloud(decimation=options.decimation)
    options.output.mkdir(parents=True, exist_ok=True)
    with Runtime.load(options.bundle) as runtime, Stream(runtime, options.source) as stream:
        missing = {"depth", "semantics"} - {*runtime.tasks}
        if missing:
            raise M2HError(f"{options.bundle}: the engine does not give {' and '.join(sorted(missing))}")
        classes = [f"comment class {index}: {name}" for index, name in enumerate(runtime.manifest.classes.names)]
        for frame in stream:
            camera = intrinsics_of_view(options.fov, *frame.image.shape[:2])
            cloud = project(frame.image, frame.prediction, camera).dense()
            points = np.empty(len(cloud), POINT)
            points["xyz"], points["rgb"], points["label"] = positions(cloud), colors(cloud), cloud["label"]
            fields = [f"element vertex {len(points)}", *(f"property {field}" for field in FIELDS)]
            header = "\n".join([*START, *classes, *fields, "end_header\n"])
            (options.output / f"{frame.id:06d}.ply").write_bytes(header.encode() + points.tobytes())
            print(f"frame {frame.id}: {len(points)} points")


if __name__ == "__main__":
    try:
        main()
    except (M2HError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
