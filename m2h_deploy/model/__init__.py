"""PyTorch reference implementation of M2H, one file per block of the paper. Needs torch."""

from m2h_deploy.model.checkpoint import load_checkpoint, save_checkpoint
from m2h_deploy.model.config import VARIANTS, ModelConfig, make_config
from m2h_deploy.model.network import M2H, build_model
from m2h_deploy.tasks import TASKS

__all__ = [
    "M2H",
    "TASKS",
    "VARIANTS",
    "ModelConfig",
    "build_model",
    "load_checkpoint",
    "make_config",
    "save_checkpoint",
]
