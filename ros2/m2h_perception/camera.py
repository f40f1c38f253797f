"""Feed a subscription's messages to a `Stream`; each frame keeps the message that it came from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Generic, NamedTuple, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from m2h_deploy.data.frame import Pose
from m2h_deploy.errors import M2HError
from m2h_deploy.sources.source import Item, Source, SourceFrame
from m2h_deploy.stream.channel import Channel
from m2h_perception.calibration import View

Message = TypeVar("Message")


class Located(NamedTuple):
    """When and where an image was taken."""

    timestamp: float | None = None
    """Seconds."""
    pose: Pose | None = None
    """Camera to world, float64 (4, 4), meters."""
    reason: str = ""
    """Why the pose is unknown."""


class Picture(NamedTuple):
    """What the pose of an image depends on; an Image message has these fields, a CompressedImage does not."""

    header: Any
    height: int
    width: int


class _Carrier(np.ndarray):
    """Pixels that hold a reference to their message: both are freed when the stream releases the frame."""

    message: Any
    located: Located
    seen: View


class Camera(Generic[Message]):
    """A queue of messages that a `Stream` reads as its source.

    At most `capacity` messages wait; a newer one replaces the oldest, so capacity 1 keeps only the newest. `to_image`
    converts a message to contiguous uint8 (H, W, 3) BGR on the stream's thread, and `see` rectifies it and finds its
    intrinsics; if either raises M2HError, that frame is lost. Then `locate` finds out when and where it was taken.
    `see` and `locate` are None if they are not needed. Call `put` from one thread only; `close` may be called from any.
    """

    def __init__(
        self,
        to_image: Callable[[Message], NDArray[np.uint8]],
        *,
        capacity: int = 1,
        see: Callable[[NDArray[np.uint8]], tuple[NDArray[np.uint8], View]] | None = None,
        locate: Callable[[Picture], Located] | None = None,
    ) -> None:
        self._to_image, self._see, self._locate = to_image, see, locate
        self._waiting: Channel[Message] = Channel(capacity, replace=True)

    def put(self, message: Message) -> bool:
        """Enqueue a message; return True if it replaced another one."""
        return self._waiting.put(message) is not None

    def close(self) -> None:
        """End the source and discard waiting messages."""
        self._waiting.end(discard=True)

    def source(self) -> Source:
        """Return the messages as a source of frames.

        It is not `live`: the stream waits for a silent camera, and the source ends with `close`.
        """
        return Source(None, self._read)

    def _read(self) -> Iterator[Item]:
        while (message := self._waiting.get()) is not None:
            try:
                pixels, seen = self._to_image(message), View()
                if self._see is not None:
                    pixels, seen = self._see(pixels)
            except M2HError as error:
                yield error
                continue
            image = pixels.view(_Carrier)
            image.message, image.seen, image.located = message, seen, Located()
            if self._locate is not None:
                image.located = self._locate(Picture(cast(Any, message).header, *image.shape[:2]))
            yield SourceFrame("image", image, image.located.timestamp, image.located.pose)
            del image, pixels, message  # do not keep the frame alive while waiting for the next message

    @staticmethod
    def message_of(image: NDArray[np.uint8]) -> Message:
        """Return the message that a frame of the stream came from."""
        return cast(Message, cast(_Carrier, image).message)

    @staticmethod
    def located_of(image: NDArray[np.uint8]) -> Located:
        """Return when and where a frame of the stream was taken."""
        return cast(_Carrier, image).located

    @staticmethod
    def view_of(image: NDArray[np.uint8]) -> View:
        """Return how the camera sees a frame of the stream."""
        return cast(_Carrier, image).seen
