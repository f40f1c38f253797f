"""Training with the paper's losses, dynamic weight averaging and recipe, and evaluation of the trained network.

```python
from m2h_deploy.training import evaluate, load_config, train

train(load_config("configs/m2h-tiny.toml"), "runs/tiny")
```
"""

from m2h_deploy.training.config import TrainConfig, load_config
from m2h_deploy.training.evaluation import evaluate, table
from m2h_deploy.training.train import evaluate_checkpoint, interrupted_message, train

__all__ = [
    "TrainConfig",
    "evaluate",
    "evaluate_checkpoint",
    "interrupted_message",
    "load_config",
    "table",
    "train",
]
