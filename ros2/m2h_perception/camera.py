"""From a subscription to a `Stream` and back: each frame carries the message that it came in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from m2h_deploy.errors import M2HError
from m2h_deploy.sources import Item, Source, SourceFrame
from m2h_deploy.stream.channel import Channel

Message = TypeVar("Message")


class _Carrier(np.ndarray):
    """Pixels with their message: both go when the stream lets go of the frame."""

    message: Any


class Camera(Generic[Message]):
    """A queue of messages that a `Stream` reads as its source.

    `capacity` messages wait at most; a newer one throws the oldest out, so capacity 1 is the newest alone. `to_image`
    turns a message into contiguous uint8 (H, W, 3) BGR on the stream's thread; its M2HError costs that frame. `put` is
    for one thread; `close` for any.
    """

    def __init__(self, to_image: Callable[[Message], NDArray[np.uint8]], *, capacity: int = 1) -> None:
        self._to_image = to_image
        self._waiting: Channel[Message] = Channel(capacity, replace=True)

    def put(self, message: Message) -> bool:
        """Hand a message over; True where another one was thrown out for it."""
        return self._waiting.put(message) is not None

    def close(self) -> None:
        """The source ends, and what waits is forgotten."""
        self._waiting.end(discard=True)

    def source(self) -> Source:
        """The messages as frames. It is not `live`: a silent camera is waited for, and its end is `close`."""
        return Source(None, self._read)

    def _read(self) -> Iterator[Item]:
        while (message := self._waiting.get()) is not None:
            try:
                image = self._to_image(message).view(_Carrier)
            except M2HError as error:
                yield error
                continue
            image.message = message
            yield SourceFrame("image", image)
            del image, message  # while it waits for the next one, it keeps none

    @staticmethod
    def message_of(image: NDArray[np.uint8]) -> Message:
        """The message that a frame of the stream came in."""
        return cast(Message, cast(_Carrier, image).message)
