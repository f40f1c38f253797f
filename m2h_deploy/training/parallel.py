"""Data-parallel training: several processes of `torchrun`, each with its share of every batch.

Two processes of one thread also use a busy CPU better than one process of two threads, which wait for each other in
every operation instead of once per step.
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
    """Processes of a run; a single one by default."""

    rank: int = 0
    world: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def share(self, indices: np.ndarray) -> np.ndarray:
        """Select this process's share of a batch's indices: every `world`-th one."""
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
        """Average each value over the processes, which must all pass the same keys."""
        if self.world == 1:
            return values
        total = torch.tensor(list(values.values()), dtype=torch.float64)
        dist.all_reduce(total)
        return dict(zip(values, (total / self.world).tolist(), strict=True))

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set in any process."""
        return self.average({"flag": float(flag)})["flag"] > 0

    def wait(self) -> None:
        """Block until every process has called this method."""
        if self.world > 1:
            dist.barrier()


def join_group() -> Group:
    """Join the group that `torchrun` started this process in (RANK and WORLD_SIZE of the environment).

    Without `torchrun` the group has one process. Gradients are exchanged through main memory (gloo): the networks are
    small compared with their intermediate maps.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return Group()
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    return Group(dist.get_rank(), dist.get_world_size())
