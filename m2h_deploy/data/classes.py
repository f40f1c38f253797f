"""The class lists of the datasets: names in official order, and one colour a class."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

#: NYUv2's 40 classes in the order of classMapping40.mat (its spelling kept); index 0 here is NYU class 1.
NYU40_CLASSES: tuple[str, ...] = (
    "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf",
    "picture", "counter", "blinds", "desk", "shelves", "curtain", "dresser", "pillow", "mirror", "floor mat",
    "clothes", "ceiling", "books", "refridgerator", "television", "paper", "towel", "shower curtain", "box",
    "whiteboard", "person", "night stand", "toilet", "sink", "lamp", "bathtub", "bag", "otherstructure",
    "otherfurniture", "otherprop",
)  # fmt: skip

#: Cityscapes' 19 evaluated classes in the order of their train ids.
CITYSCAPES_CLASSES: tuple[str, ...] = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation",
    "terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
)  # fmt: skip

#: The value of an unlabelled pixel in memory, whatever the dataset writes in its files.
IGNORE_LABEL = 255


def nyu_class(name: str) -> int:
    """The label in memory (0..39) of an NYUv2 class name."""
    return NYU40_CLASSES.index(name)


def palette(count: int) -> npt.NDArray[np.uint8]:
    """Distinct RGB colours, uint8 (count, 3): the bit-interleaved colour map of PASCAL VOC, without its black."""
    colours = np.zeros((count, 3), np.uint8)
    for index in range(count):
        value = index + 1
        for bit in range(8):
            for channel in range(3):
                colours[index, channel] |= ((value >> channel) & 1) << (7 - bit)
            value >>= 3
    return colours
