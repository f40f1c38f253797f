"""Sequences of a moving camera in the layouts of public data sets.

```python
from m2h_deploy.data.sequences import open_sequence

for frame in open_sequence("rgbd_dataset_freiburg1_desk"):
    frame.image, frame.timestamp, frame.pose
```
"""

from m2h_deploy.data.sequences.open import open_sequence
from m2h_deploy.data.sequences.trajectory import jumps

__all__ = ["jumps", "open_sequence"]
