"""The node's peer in ROS: publishes rooms and records the answers.

Run by the tests as `python peer.py SCENARIO OUT [...]`, with an interpreter that has rclpy. OUT becomes a JSON file,
and beside it `.npz` holds the pixels.
"""

from __future__ import annotations

import array
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, Image

from m2h_deploy.data.rooms.render import render_room

IMAGE, INFO = "/camera/color/image_raw", "/camera/color/camera_info"
TOPICS = {
    "depth": "/camera/depth_cam/image_raw",
    "labels": "/camera/seg_cam/labels_argmax",
    "color": "/camera/seg_cam/image_raw",
    "normals": "/test/normals",
    "edges": "/test/edges",
    "synced": "/mono_hydra_perception/synced/image_raw",
}
SYNCED_INFO = "/mono_hydra_perception/synced/camera_info"

#: Seconds that the slowest machine may take for one answer.
PATIENCE = 300.0

#: Seconds after which an image is sent again: the node takes images with best effort, and DDS may lose one.
AGAIN = 2.0

#: A time in 2023, as in a recording's stamps.
START = 1_700_000_000


def room(index: int, height: int = 96, width: int = 128) -> np.ndarray:
    """uint8 BGR."""
    return render_room(11, index, height, width).image


def image_message(bgr: np.ndarray, stamp: int, frame: str, encoding: str = "bgr8", padding: int = 0) -> Image:
    """Make an Image; `stamp` is in nanoseconds, and `padding` bytes follow each row."""
    codes = {"rgb8": cv2.COLOR_BGR2RGB, "rgba8": cv2.COLOR_BGR2RGBA, "mono8": cv2.COLOR_BGR2GRAY}
    pixels = cv2.cvtColor(bgr, codes[encoding]) if encoding in codes else bgr
    rows = np.pad(pixels.reshape(len(pixels), -1), ((0, 0), (0, padding)))
    message = Image(height=bgr.shape[0], width=bgr.shape[1], encoding=encoding, step=rows.shape[1])
    message.data = array.array("B", rows.tobytes())
    message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp, 10**9)
    message.header.frame_id = frame
    return message


def stamp_of(message: Any) -> int:
    return message.header.stamp.sec * 10**9 + message.header.stamp.nanosec


class Peer(Node):
    """A camera, and subscriptions to everything that the node publishes."""

    def __init__(self) -> None:
        super().__init__("test_peer")
        reliable = QoSProfile(depth=100, reliability=ReliabilityPolicy.RELIABLE)
        self.images = self.create_publisher(Image, IMAGE, reliable)
        self.infos = self.create_publisher(CameraInfo, INFO, reliable)
        self.clock = self.create_publisher(Clock, "/clock", reliable)
        self.info: CameraInfo | None = None
        self.heard: dict[str, list[Any]] = {name: [] for name in (*TOPICS, "info")}
        self.statuses: list[dict[str, Any]] = []
        for name, topic in TOPICS.items():
            self.create_subscription(Image, topic, self.heard[name].append, reliable)
        self.create_subscription(CameraInfo, SYNCED_INFO, self.heard["info"].append, reliable)
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, reliable)

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            values = {pair.key: pair.value for pair in status.values}
            level = int.from_bytes(status.level, "little")
            self.statuses.append({"level": level, "message": status.message, "name": status.name, "values": values})

    def spin_until(self, done: Callable[[], bool], patience: float = PATIENCE) -> bool:
        deadline = time.monotonic() + patience
        while not done() and time.monotonic() < deadline:
            rclpy.spin_once(self, timeout_sec=0.05)
        return done()

    def meet(self, topics: tuple[str, ...] = ("depth", "labels")) -> None:
        """Wait until the node and the peer are connected in both directions."""
        wanted = [TOPICS[name] for name in topics]
        met = self.spin_until(
            lambda: (
                self.images.get_subscription_count() > 0
                and all(self.count_publishers(topic) > 0 for topic in wanted)
                and self.count_publishers("/diagnostics") > 0
            )
        )
        assert met, "the node was not found"
        # Subscriptions are announced in order: if the node knows the last one, it also knows those for its answers.
        assert self.status(lambda status: True) is not None, "the node gives no diagnostics"

    def publish_until(self, done: Callable[[], bool], message: Image) -> bool:
        """Publish an image, and the CameraInfo if given, repeatedly until `done`."""
        deadline = time.monotonic() + PATIENCE
        while not done() and time.monotonic() < deadline:
            if self.info is not None:
                self.infos.publish(self.info)
            self.images.publish(message)
            self.spin_until(done, AGAIN)
        return done()

    def answered(self, message: Image, names: tuple[str, ...]) -> Callable[[], bool]:
        """Return a function that says whether every topic has the answer to an image."""
        stamp = stamp_of(message)
        return lambda: all(any(stamp_of(m) == stamp for m in self.heard[name]) for name in names)

    def send(self, message: Image, names: tuple[str, ...]) -> bool:
        """Publish an image until it is answered."""
        return self.publish_until(self.answered(message, names), message)

    def status(self, fits: Callable[[dict[str, Any]], bool], message: Image | None = None) -> dict[str, Any] | None:
        """Return the next status that matches; publish an image meanwhile if one is given."""
        start = len(self.statuses)

        def first() -> dict[str, Any] | None:
            return next((status for status in self.statuses[start:] if fits(status)), None)

        if message is None:
            self.spin_until(lambda: first() is not None)
        else:
            self.publish_until(lambda: first() is not None, message)
        return first()


def info_message(width: int, height: int) -> CameraInfo:
    message = CameraInfo(width=width, height=height, distortion_model="plumb_bob", d=[0.1, 0.2, 0.0, 0.0, 0.0])
    message.k = [100.0, 0.0, width / 2, 0.0, 100.0, height / 2, 0.0, 0.0, 1.0]
    message.header.frame_id, message.header.stamp.sec = "another", 5
    return message


def walk(peer: Peer, out: Path) -> dict[str, Any]:
    """Send one node every kind of image and failure of a camera."""
    names = ("depth", "labels", "color", "normals", "edges", "synced")
    peer.meet()
    result: dict[str, Any] = {}
    peer.info = info_message(128, 96)
    kinds = [("bgr8", 0), ("rgb8", 0), ("rgba8", 0), ("mono8", 0), ("rgb8", 7)]
    result["sent"] = []
    for index, (encoding, padding) in enumerate(kinds):
        stamp = (START + index) * 10**9 + 123_456_789 + index
        message = image_message(room(index), stamp, f"camera_{index}", encoding, padding)
        answered = peer.send(message, (*names, "info"))
        result["sent"].append({"stamp": stamp, "frame_id": f"camera_{index}", "encoding": encoding, "ok": answered})
    result["steady"] = peer.status(lambda status: int(status["values"]["published"]) >= len(kinds))

    damaged = image_message(room(5), 1, "damaged")
    damaged.data = damaged.data[:100]
    result["after damage"] = peer.status(lambda status: status["values"]["unreadable"] != "0", damaged)
    other = image_message(room(6, 72, 96), START * 10**9 + 7, "smaller")
    result["smaller"] = peer.send(other, names)
    result["held back"] = peer.status(lambda status: "held back" in status["message"], other)

    result["dead"] = peer.status(lambda status: status["level"] == 2)
    again = image_message(room(7), START * 10**9 + 8, "again")
    result["revived"] = peer.send(again, names)
    result["alive"] = peer.status(lambda status: status["level"] < 2, again)
    write_pixels(peer, out)
    return result


def burst(peer: Peer, out: Path) -> dict[str, Any]:
    """Publish more images at once than the node can process, then one more when it is idle."""
    peer.meet()
    picture = room(0, 480, 640)
    peer.send(image_message(picture, 1, "first"), ("depth",))
    count = 60
    for index in range(count):
        peer.images.publish(image_message(picture, 100 + index, "burst"))
        peer.spin_until(lambda: False, 0.002)
    # The subscription is best effort: a busy machine may lose even the last one.
    peer.send(image_message(picture, 99 + count, "burst"), ("depth",))
    answered = [stamp_of(m) for m in peer.heard["depth"]]
    before = len(peer.heard["depth"])

    def nothing_left(status: dict[str, Any]) -> bool:
        values = status["values"]
        counted = int(values["published"]) + int(values["dropped for a newer one"])
        return values["images a second"] == "0.0" and values["in work"] == "0" and counted == int(values["received"])

    quiet = peer.status(nothing_left)
    # The last image may have been sent again while its first answer was in transit.
    late = [stamp_of(m) for m in peer.heard["depth"][before:] if stamp_of(m) != 99 + count]
    return {"sent": count, "answered": answered, "late": late, "quiet": quiet}


def replay(peer: Peer, out: Path, bag: Path) -> dict[str, Any]:
    """Publish a bag's images by its own clock, each once, after the previous one was answered."""
    from mcap_ros2.reader import read_ros2_messages

    peer.meet()
    before = peer.status(lambda status: True)  # no clock message was received yet
    sent: list[int] = []
    for record in read_ros2_messages(str(bag), topics=[IMAGE, INFO]):
        seconds, nanoseconds = divmod(record.log_time_ns, 10**9)
        clock = Clock()
        clock.clock.sec, clock.clock.nanosec = seconds, nanoseconds
        peer.clock.publish(clock)
        recorded = record.ros_msg
        if record.channel.topic == INFO:
            peer.infos.publish(info_message(recorded.width, recorded.height))
            continue
        stamp = recorded.header.stamp.sec * 10**9 + recorded.header.stamp.nanosec
        message = Image(height=recorded.height, width=recorded.width, encoding=recorded.encoding, step=recorded.step)
        message.data = array.array("B", bytes(recorded.data))
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp, 10**9)
        message.header.frame_id = recorded.header.frame_id
        peer.images.publish(message)
        peer.spin_until(peer.answered(message, ("depth", "labels")))
        sent.append(stamp)
    status = peer.status(lambda status: status["values"]["published"] != "0")
    write_pixels(peer, out)
    return {"sent": sent, "status": status, "before": before}


def topics(peer: Peer, out: Path) -> dict[str, Any]:
    """Return the topics that the node publishes and subscribes to, after it has answered an image."""
    peer.meet(("depth",))
    answered = peer.send(image_message(room(0), START * 10**9, "camera"), ("depth",))

    def of_node(ask: Callable[[str, str], list[tuple[str, list[str]]]]) -> list[str]:
        return [topic for topic, _ in ask("m2h_perception", "/")]

    # The node creates these two last, so the others are known too.
    peer.spin_until(lambda: "/diagnostics" in of_node(peer.get_publisher_names_and_types_by_node))
    peer.spin_until(lambda: IMAGE in of_node(peer.get_subscriber_names_and_types_by_node))
    published = of_node(peer.get_publisher_names_and_types_by_node)
    subscribed = of_node(peer.get_subscriber_names_and_types_by_node)
    status = peer.statuses[-1]
    return {"answered": answered, "published": published, "subscribed": subscribed, "status": status}


def write_bag(bag: Path, count: int) -> None:
    """Write an MCAP recording of `count` rooms at 30 Hz, as ros2 bag record does."""
    from mcap_ros2.writer import Writer

    head = "std_msgs/Header header\n"
    parts = (
        f"{'=' * 80}\nMSG: std_msgs/Header\nbuiltin_interfaces/Time stamp\nstring frame_id\n"
        f"{'=' * 80}\nMSG: builtin_interfaces/Time\nint32 sec\nuint32 nanosec\n"
    )
    image = (
        f"{head}uint32 height\nuint32 width\nstring encoding\nuint8 is_bigendian\nuint32 step\nuint8[] data\n{parts}"
    )
    info = f"{head}uint32 height\nuint32 width\nstring distortion_model\nfloat64[] d\nfloat64[9] k\n{parts}"
    with bag.open("wb") as stream, Writer(stream) as writer:
        image_schema = writer.register_msgdef("sensor_msgs/msg/Image", image)
        info_schema = writer.register_msgdef("sensor_msgs/msg/CameraInfo", info)
        for index in range(count):
            stamp = START * 10**9 + index * 33_333_333
            second, nanosecond = divmod(stamp, 10**9)
            header = {"stamp": {"sec": second, "nanosec": nanosecond}, "frame_id": "camera_optical"}
            bgr = room(20 + index)
            calibration = {
                "header": header,
                "height": 96,
                "width": 128,
                "distortion_model": "plumb_bob",
                "d": [0.0] * 5,
            }
            calibration["k"] = [100.0, 0.0, 64.0, 0.0, 100.0, 48.0, 0.0, 0.0, 1.0]
            writer.write_message(INFO, info_schema, calibration, log_time=stamp, publish_time=stamp)
            picture = {"header": header, "height": 96, "width": 128, "encoding": "rgb8", "is_bigendian": 0}
            picture |= {"step": 384, "data": cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB).tobytes()}
            writer.write_message(IMAGE, image_schema, picture, log_time=stamp + 10**7, publish_time=stamp)


def soak(peer: Peer, out: Path, pid: int, seconds: float, rate: float = 30.0) -> dict[str, Any]:
    """Publish images at a rate; record the node's memory each second, and whether all answers have a sent stamp."""
    peer.meet()
    picture = room(0, 480, 640)
    sent: set[int] = set()
    wrong = count = 0
    memory: list[int] = []
    peer.send(image_message(picture, 1, "camera"), ("depth",))
    start = time.monotonic()
    while (now := time.monotonic() - start) < seconds:
        if now * rate >= len(sent):
            stamp = START * 10**9 + len(sent) * 33_333_333
            sent.add(stamp)
            if peer.info is not None:
                peer.infos.publish(peer.info)
            peer.images.publish(image_message(picture, stamp, "camera"))
            if len(sent) == 60:
                print("sent 60 images", flush=True)
        rclpy.spin_once(peer, timeout_sec=0.002)
        for name in set(peer.heard) - {"info"}:
            for message in peer.heard[name]:
                count += 1
                wrong += stamp_of(message) not in sent | {1} or message.header.frame_id != "camera"
            peer.heard[name].clear()
        peer.heard["info"].clear()
        if now >= len(memory):
            memory.append(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize())
    return {"sent": len(sent), "heard": count, "wrong": wrong, "memory": memory, "last": peer.statuses[-1]}


def write_pixels(peer: Peer, out: Path) -> None:
    """Write what was heard on every topic to an .npz file beside `out`."""
    dtypes = {"32FC1": (np.float32, 1), "32FC3": (np.float32, 3), "mono8": (np.uint8, 1), "16UC1": (np.uint16, 1)}
    arrays: dict[str, np.ndarray] = {}
    for name in TOPICS:
        for message in peer.heard[name]:
            dtype, channels = dtypes.get(message.encoding, (np.uint8, 3))  # else three of uint8
            rows = np.frombuffer(message.data, np.uint8).reshape(message.height, message.step)
            if name != "synced":
                rows = rows.view(dtype).reshape(message.height, message.width, channels).squeeze()
            arrays[f"{name} {stamp_of(message)}"] = rows
    np.savez(out.with_suffix(".npz"), **arrays)


def _heard(peer: Peer) -> Iterator[dict[str, Any]]:
    for name in TOPICS:
        for m in peer.heard[name]:
            facts = {"topic": name, "stamp": stamp_of(m), "frame_id": m.header.frame_id, "encoding": m.encoding}
            yield {**facts, "height": m.height, "width": m.width, "step": m.step, "bytes": len(m.data)}
    for m in peer.heard["info"]:
        facts = {"topic": "info", "stamp": stamp_of(m), "frame_id": m.header.frame_id}
        yield {**facts, "height": m.height, "width": m.width, "k": [float(v) for v in m.k], "d": list(m.d)}


def main() -> None:
    scenario, out, *rest = sys.argv[1:]
    if scenario == "write-bag":
        write_bag(Path(out), int(rest[0]))
        return
    rclpy.init()
    peer = Peer()
    try:
        if scenario == "walk":
            result = walk(peer, Path(out))
        elif scenario == "topics":
            result = topics(peer, Path(out))
        elif scenario == "burst":
            result = burst(peer, Path(out))
        elif scenario == "temporal":
            from temporal_peer import temporal

            result = temporal(peer, Path(out))
        elif scenario in ("clouds", "distorted", "soak_clouds", "managed", "refused"):
            import camera_peer

            result = getattr(camera_peer, scenario)(peer, Path(out), *rest)
        elif scenario == "replay":
            result = replay(peer, Path(out), Path(rest[0]))
        else:
            result = soak(peer, Path(out), int(rest[0]), float(rest[1]))
        Path(out).write_text(json.dumps({**result, "heard messages": list(_heard(peer))}))
    finally:
        peer.destroy_node()
        rclpy.try_shutdown()


if __name__ == "__main__":
    main()
