"""Data-parallel training: several processes of `torchrun`, each with its share of every batch.

Two processes of one thread also get more out of a busy CPU than one process of two, whose threads wait for each other
in every operation instead of once a step.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Group:
    """The processes of a run; alone by default."""

    rank: int = 0
    world: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def share(self, indices: np.ndarray) -> np.ndarray:
        """This process's part of a batch's indices: every `world`-th."""
        return indices[self.rank :: self.world]

    def average_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Replace each gradient by its mean over the processes."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        if self.world == 1 or not gradients:
            return
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.world
        for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))

    def average(self, values: dict[str, float]) -> dict[str, float]:
        """Means over the processes; every process must give the same keys."""
        if self.world == 1:
            return values
        total = torch.tensor(list(values.values()), dtype=torch.float64)
        dist.all_reduce(total)
        return dict(zip(values, (total / self.world).tolist(), strict=True))

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any of the processes."""
        return self.average({"flag": float(flag)})["flag"] > 0

    def wait(self) -> None:
        """Until every process has come here."""
        if self.world > 1:
            dist.barrier()


def join_group() -> Group:
    """The group that `torchrun` started this process in (RANK and WORLD_SIZE of the environment), or one alone.

    Gradients travel by gloo, through main memory: the networks are small beside their maps.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return Group()
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    return Group(dist.get_rank(), dist.get_world_size())
