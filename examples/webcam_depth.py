"""Show metric depth of a webcam: the distance at the picture's center in the terminal, and a picture of each frame.

python examples/webcam_depth.py bundle/                               # camera 0, until Ctrl-C
python examples/webcam_depth.py bundle/ video.mp4 --output depth/     # or a video, a folder, a network stream
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import cv2

from m2h_deploy import M2HError, Runtime, Stream
from m2h_deploy.visualize.draw import draw_depth


def main() -> None:
    """Read the options, and print and draw every frame."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", help="bundle folder")
    parser.add_argument("source", nargs="?", default="0", help="a camera's index, a video, a folder or a URL")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="write depth as colored pictures")
    options = parser.parse_args()
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)

    with Runtime.load(options.bundle) as runtime, Stream(runtime, options.source) as stream:
        if "depth" not in runtime.tasks:
            raise M2HError(f"{options.bundle}: the engine gives no depth, but {', '.join(runtime.tasks)}")
        near, far = runtime.manifest.depth_range
        # If the engine is slower than a live source, frames are dropped; results stay recent.
        for frame in stream:
            depth = frame.prediction.depth
            height, width = depth.shape
            center = depth[height // 2, width // 2]
            print(f"frame {frame.id}: {center:.2f} m, {sum(frame.prediction.timings.values()):.0f} ms")
            if options.output:
                path = options.output / f"{frame.id:06d}.png"
                if not cv2.imwrite(str(path), draw_depth(depth, near, far)):
                    raise M2HError(f"{path} cannot be written: check the folder's permissions and free space")
        print(stream.health, file=sys.stderr)


if __name__ == "__main__":
    try:
        main()
    except (M2HError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        pass
