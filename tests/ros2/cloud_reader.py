"""Read a PointCloud2 with nothing but its message definition: for each point and field, unpack bytes at an offset."""

from __future__ import annotations

import struct
from itertools import pairwise
from typing import Any

#: struct's codes for PointField.INT8 to PointField.FLOAT64.
_CODES = {1: "b", 2: "B", 3: "h", 4: "H", 5: "i", 6: "I", 7: "f", 8: "d"}


def read_points(message: Any, step: int = 1) -> list[dict[str, float]]:
    """Return every `step`-th point as a dictionary of its fields, row by row.

    Raises AssertionError if the message contradicts itself.
    """
    order = ">" if message.is_bigendian else "<"
    data = bytes(message.data)
    assert message.row_step >= message.width * message.point_step
    assert len(data) == message.row_step * message.height
    ends = [(f.offset, f.offset + f.count * struct.calcsize("=" + _CODES[f.datatype])) for f in message.fields]
    assert all(before[1] <= after[0] for before, after in pairwise(ends)), "fields overlap"
    assert ends[-1][1] <= message.point_step
    points = []
    for index in range(0, message.width * message.height, step):
        start = index // message.width * message.row_step + index % message.width * message.point_step
        values = {}
        for field in message.fields:
            assert field.count == 1
            (values[field.name],) = struct.unpack_from(order + _CODES[field.datatype], data, start + field.offset)
        points.append(values)
    return points


def color_of(point: dict[str, float]) -> tuple[int, int, int]:
    """Return red, green and blue as PCL and RViz read them: the bytes of the float are 0x00RRGGBB."""
    number = struct.unpack("=I", struct.pack("=f", point["rgb"]))[0]
    return number >> 16 & 255, number >> 8 & 255, number & 255
