"""Scenario of `peer.py` for the temporal filter: a camera that moves, its odometry and its CameraInfo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from nav_msgs.msg import Odometry
from peer import START, Peer, image_message, info_message, room, write_pixels

#: Frame of the camera, which the odometry is about.
CAMERA = "camera_optical"

#: Seconds between the two images of a pair, and between their odometry and each of them.
STEP, AHEAD = 0.1, 0.03

#: Pairs to try until one is filtered: the odometry is best effort, and DDS may lose a message.
PAIRS = 30


def picture(number: int) -> np.ndarray:
    """Return image 0 or 1 of a pair, uint8 BGR: the same room, brighter in the second."""
    return np.clip(room(3).astype(int) + 25 * number, 0, 255).astype(np.uint8)


def stamp_at(seconds: float) -> int:
    return START * 10**9 + round(seconds * 1e9)


def odometry(seconds: float) -> Odometry:
    """Make the odometry at a time: the camera moves to its right with 0.2 m/s."""
    message = Odometry(child_frame_id=CAMERA)
    message.header.frame_id = "odom"
    message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp_at(seconds), 10**9)
    message.pose.pose.position.x = 0.2 * seconds
    message.pose.pose.orientation.w = 1.0
    return message


def temporal(peer: Peer, out: Path) -> dict[str, Any]:
    """Send images without CameraInfo, then without odometry, then pairs with both until one is filtered."""
    publisher = peer.create_publisher(Odometry, "/odom", 10)
    peer.meet()
    result: dict[str, Any] = {"pairs": []}

    def unfiltered(reason: str) -> dict[str, Any] | None:
        still = image_message(picture(0), stamp_at(1.0), CAMERA)
        return peer.status(lambda s: reason in s["message"] and reason in s["values"]["unfiltered, by reason"], still)

    result["without CameraInfo"] = unfiltered("no CameraInfo")
    peer.info = info_message(128, 96)
    result["without odometry"] = unfiltered("no odometry")
    peer.spin_until(lambda: publisher.get_subscription_count() > 0)
    filtered = 0
    for pair in range(PAIRS):
        times = [10.0 + 5 * pair, 10.0 + 5 * pair + STEP]
        for seconds in times:
            for offset in (-AHEAD, AHEAD):
                publisher.publish(odometry(seconds + offset))
        peer.spin_until(lambda: False, 0.3)
        stamps = [stamp_at(seconds) for seconds in times]
        for number, stamp in enumerate(stamps):
            message = image_message(picture(number), stamp, CAMERA)
            peer.images.publish(message)
            if not peer.spin_until(peer.answered(message, ("depth", "labels"))):
                raise RuntimeError(f"no answer to image {number} of pair {pair}")
        status = peer.status(lambda status: True)
        assert status is not None
        before, filtered = filtered, int(status["values"]["filtered"])
        result["pairs"].append({"stamps": stamps, "times": times, "status": status})
        if filtered == before + 2:
            break
    write_pixels(peer, out)
    return result
