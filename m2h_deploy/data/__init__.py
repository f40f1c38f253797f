"""Data sets: NYUv2, Hypersim, Cityscapes, image folders, sequences with poses, and synthetic rooms with exact labels.

```python
from m2h_deploy.data import open_dataset

for frame in open_dataset("NYUDv2", split="val"):
    frame.image, frame.depth, frame.semantics
```
"""

from m2h_deploy.data.classes import CITYSCAPES_CLASSES, IGNORE_LABEL, NYU40_CLASSES, palette
from m2h_deploy.data.folders import ImageFolder, RGBDPairs
from m2h_deploy.data.frame import NYU_INTRINSICS, Dataset, Frame, Intrinsics
from m2h_deploy.data.nyuv2 import NYUv2
from m2h_deploy.data.open import open_dataset
from m2h_deploy.data.sequence import Sequence
from m2h_deploy.data.sequences import open_sequence

__all__ = [
    "CITYSCAPES_CLASSES",
    "IGNORE_LABEL",
    "NYU40_CLASSES",
    "NYU_INTRINSICS",
    "Dataset",
    "Frame",
    "ImageFolder",
    "Intrinsics",
    "NYUv2",
    "RGBDPairs",
    "Sequence",
    "open_dataset",
    "open_sequence",
    "palette",
]
