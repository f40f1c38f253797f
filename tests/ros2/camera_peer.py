"""Scenarios of `peer.py` for the camera's geometry: point clouds, rectification, compressed images, life cycle."""

from __future__ import annotations

import array
import json
from pathlib import Path
from typing import Any

import cv2
import rclpy
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from peer import IMAGE, PATIENCE, START, TOPICS, Peer, image_message, room, soak, stamp_of, write_pixels
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, CompressedImage, PointCloud2

from m2h_deploy import Runtime
from m2h_deploy.camera import Lens
from tests.lenses import distort, lens_of

CLOUDS = {name: f"/test/{name}" for name in ("points", "ground", "obstacles")}

HEIGHT, WIDTH = 480, 640

#: What a PointField has.
FIELD = ("name", "offset", "datatype", "count")

#: Answers to an image.
ANSWERS = ("depth", "labels", "synced", "info")


def camera_info(lens: Lens) -> CameraInfo:
    """Make the CameraInfo of a lens."""
    message = CameraInfo(width=lens.width, height=lens.height, distortion_model=lens.model or "plumb_bob")
    message.d = list(lens.coefficients)
    camera, rectified = lens.camera, lens.rectified or lens.camera
    message.k = [camera.fx, 0.0, camera.cx, 0.0, camera.fy, camera.cy, 0.0, 0.0, 1.0]
    message.r = [float(value) for value in lens.rotation]
    message.p = [rectified.fx, 0.0, rectified.cx, 0.0, 0.0, rectified.fy, rectified.cy, 0.0, 0.0, 0.0, 1.0, 0.0]
    return message


def listen(peer: Peer) -> None:
    """Subscribe to the clouds, as further topics of `peer.heard`."""
    for name, topic in CLOUDS.items():
        peer.heard[name] = []
        peer.create_subscription(PointCloud2, topic, peer.heard[name].append, 10)


def write_clouds(peer: Peer, out: Path) -> None:
    """Write the last message of each cloud: its facts to a JSON file beside `out`, its bytes to a file of each."""
    facts = {}
    for name in CLOUDS:
        message = peer.heard[name][-1]
        fields = [
            {"name": f.name, "offset": f.offset, "datatype": f.datatype, "count": f.count} for f in message.fields
        ]
        keys = ("height", "width", "is_bigendian", "point_step", "row_step", "is_dense")
        facts[name] = {key: getattr(message, key) for key in keys}
        facts[name] |= {"fields": fields, "stamp": stamp_of(message), "frame_id": message.header.frame_id}
        (out.parent / f"{name}.bytes").write_bytes(bytes(message.data))
    (out.parent / "points.json").write_text(json.dumps(facts))


def clouds(peer: Peer, out: Path, bundle: str) -> dict[str, Any]:
    """Send an undistorted image at 640 x 480 until there are clouds of it; compare the outputs with the runtime's."""
    listen(peer)
    peer.meet()
    early = image_message(room(3, HEIGHT, WIDTH), START * 10**9, "camera_optical")
    # A camera whose CameraInfo is late.
    without = peer.status(lambda status: "CameraInfo" in status["message"], early)
    peer.info = camera_info(lens_of("", HEIGHT, WIDTH))
    stamp = START * 10**9 + 123_456_789
    message = image_message(room(3, HEIGHT, WIDTH), stamp, "camera_optical")
    answered = peer.send(message, (*ANSWERS, "normals", *CLOUDS))
    write_pixels(peer, out)
    write_clouds(peer, out)
    with Runtime.load(bundle, threads=1) as runtime:
        prediction = runtime(room(3, HEIGHT, WIDTH))
    heard = {name: bytes(peer.heard[name][-1].data) for name in ("depth", "labels")}
    same = heard == {"depth": prediction.depth.tobytes(), "labels": prediction.semantics.tobytes()}
    status = peer.status(lambda status: True)
    return {"answered": answered, "stamp": stamp, "without": without, "status": status, "same": same}


def distorted(peer: Peer, out: Path) -> dict[str, Any]:
    """Send compressed images of a distorted camera: before its CameraInfo, with it, and a damaged one."""
    listen(peer)
    peer.images = peer.create_publisher(CompressedImage, f"{IMAGE}/compressed", 100)
    peer.meet()
    lens = lens_of("plumb_bob", HEIGHT, WIDTH)

    def picture(stamp: int) -> CompressedImage:
        message = CompressedImage(format="bgr8; png compressed bgr8")
        message.data = array.array("B", cv2.imencode(".png", distort(room(3, HEIGHT, WIDTH), lens))[1].tobytes())
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp, 10**9)
        message.header.frame_id = "camera_optical"
        return message

    waiting = peer.status(lambda status: status["values"]["without CameraInfo"] != "0", picture(START * 10**9))
    peer.info = camera_info(lens)
    stamp = START * 10**9 + 5
    answered = peer.send(picture(stamp), (*ANSWERS, *CLOUDS))
    write_pixels(peer, out)
    write_clouds(peer, out)
    damaged = picture(START * 10**9 + 6)
    damaged.data = damaged.data[: len(damaged.data) // 2]
    after = peer.status(lambda status: status["values"]["unreadable"] != "0", damaged)
    strange = camera_info(lens)
    strange.distortion_model = "fov"
    peer.info = strange
    refused = peer.status(lambda status: "distortion model" in status["message"], picture(START * 10**9 + 7))
    return {"answered": answered, "stamp": stamp, "waiting": waiting, "damaged": after, "refused": refused}


def soak_clouds(peer: Peer, out: Path, pid: str, seconds: str) -> dict[str, Any]:
    """Publish images at 10 Hz and receive clouds."""
    listen(peer)
    peer.info = camera_info(lens_of("", HEIGHT, WIDTH))
    return soak(peer, out, int(pid), float(seconds), rate=10.0)


class LifeCycle:
    """Client of a managed node's transitions."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._change = peer.create_client(ChangeState, "/m2h_perception/change_state")
        self._state = peer.create_client(GetState, "/m2h_perception/get_state")
        assert self._change.wait_for_service(PATIENCE) and self._state.wait_for_service(PATIENCE)

    def _call(self, client: Any, request: Any) -> Any:
        future = client.call_async(request)
        rclpy.spin_until_future_complete(self._peer, future, timeout_sec=PATIENCE)
        return future.result()

    def go(self, name: str) -> str:
        """Ask for a transition; return whether it succeeded, and the state after it."""
        identifier = getattr(Transition, f"TRANSITION_{name.upper()}")
        done = self._call(self._change, ChangeState.Request(transition=Transition(id=identifier))).success
        return f"{name}: {done}, {self._call(self._state, GetState.Request()).current_state.label}"


def refused(peer: Peer, out: Path) -> dict[str, Any]:
    """Ask a managed node twice for a transition that fails."""
    cycle = LifeCycle(peer)
    return {"steps": [cycle.go("configure"), cycle.go("configure")]}


def managed(peer: Peer, out: Path) -> dict[str, Any]:
    """Bring a managed node through its life cycle twice, sending images while it is active."""
    go = LifeCycle(peer).go
    best_effort = QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_EFFORT)
    heard: list[PointCloud2] = []
    peer.create_subscription(PointCloud2, CLOUDS["points"], heard.append, best_effort)
    peer.info = camera_info(lens_of("", 96, 128))

    def answers(stamp: int) -> bool:
        message = image_message(room(0), stamp, "camera")
        return peer.publish_until(lambda: any(stamp_of(cloud) == stamp for cloud in heard), message)

    steps = [go("configure")]
    steps.append(f"subscriptions while inactive: {peer.images.get_subscription_count()}")
    for turn in range(2):
        steps += [go("activate"), f"answers: {answers(START * 10**9 + turn)}", go("deactivate")]
        gone = peer.spin_until(lambda: peer.images.get_subscription_count() == 0)
        steps.append(f"unsubscribed: {gone}")
    qualities = peer.get_publishers_info_by_topic(CLOUDS["points"])
    reliability = {info.qos_profile.reliability.name for info in qualities}
    steps += [go("cleanup")]
    gone = peer.spin_until(lambda: peer.count_publishers(TOPICS["depth"]) == 0)
    steps += [f"topics removed: {gone}", go("configure"), go("activate")]
    steps.append(f"answers: {answers(START * 10**9 + 9)}")
    return {"steps": steps, "reliability": sorted(reliability)}
