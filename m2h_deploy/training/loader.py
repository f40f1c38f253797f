"""Batches of one stage, prepared ahead in a thread. Random draws depend only on the seed and the step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice

import numpy as np

from m2h_deploy.errors import M2HError
from m2h_deploy.training.batches import AugmentConfig, Batch, augment, crop_labels, epoch_order, read_batch
from m2h_deploy.training.cache import FrameCache
from m2h_deploy.training.config import StageConfig
from m2h_deploy.training.forward import Window
from m2h_deploy.training.parallel import Group
from m2h_deploy.training.warmstart import patch_labels

#: Batches prepared ahead of the step that uses them.
_AHEAD = 2


@dataclass(frozen=True)
class Sample:
    """A batch, and the window of its images that the decoder sees. The labels are those of the window."""

    batch: Batch
    window: Window | None = None


@dataclass(frozen=True)
class Feed:
    """Source of a stage's batches."""

    frames: FrameCache
    stage: StageConfig
    augment: AugmentConfig
    size: tuple[int, int]
    patch_size: int
    seed: tuple[int, ...]
    group: Group

    @property
    def steps_per_epoch(self) -> int:
        """Batches per epoch. An incomplete last batch is dropped; fewer frames than a batch make one batch."""
        frames = min(self.stage.frames or len(self.frames), len(self.frames))
        return max(frames // self.stage.batch_size, 1)

    def check(self) -> None:
        """Check that the stage's sizes fit each other.

        Raises:
            M2HError: image sides are not whole patches where they must be, the crop is larger than the image, or a
                process gets fewer than two frames per batch.
        """
        grid = [side // self.patch_size for side in self.size]
        whole = all(side % self.patch_size == 0 for side in self.size)
        if (self.stage.decoder == "patch" or self.stage.crop) and not whole:
            raise M2HError(
                f"stage '{self.stage.name}': {self.size[0]}x{self.size[1]} pixels are not whole patches of "
                f"{self.patch_size}; choose multiples of {self.patch_size}"
            )
        if self.stage.crop > min(grid):
            raise M2HError(
                f"stage '{self.stage.name}': crop is {self.stage.crop}, the image has {grid[0]}x{grid[1]} patches"
            )
        if min(self.stage.batch_size, len(self.frames)) < 2 * self.group.world:
            raise M2HError(
                f"stage '{self.stage.name}': a batch of {min(self.stage.batch_size, len(self.frames))} frames is too "
                f"small for {self.group.world} processes; batch norm needs 2 frames in each"
            )

    def samples(self, start: int) -> Iterator[Sample]:
        """Yield the stage's samples from step `start` (0-based) on."""
        first, skip = divmod(start, self.steps_per_epoch)
        orders = (
            islice(epoch_order(len(self.frames), self.stage.batch_size, self.seed, epoch), self.steps_per_epoch)
            for epoch in range(first, self.stage.epochs)
        )
        remaining = islice(chain.from_iterable(orders), skip, None)
        jobs = (partial(self._sample, indices, step) for step, indices in enumerate(remaining, start=start))
        with ThreadPoolExecutor(1) as pool:
            yield from _prefetched(jobs, pool)

    def _sample(self, indices: np.ndarray, step: int) -> Sample:
        # Two random streams: each process augments its frames differently, but all use the same window.
        own = np.random.SeedSequence([*self.seed, step, self.group.rank + 1]).generate_state(1, np.uint64)[0]
        batch = read_batch(self.frames, self.group.share(indices), self.size)
        batch = augment(batch, self.augment, int(own >> np.uint64(1)))
        if self.stage.decoder == "patch":
            return Sample(patch_labels(batch, self.patch_size))
        if not self.stage.crop:
            return Sample(batch)
        common = np.random.default_rng([*self.seed, step, 0])
        top, left = (int(common.integers(side // self.patch_size - self.stage.crop + 1)) for side in self.size)
        window = Window(top, left, self.stage.crop)
        return Sample(crop_labels(batch, lambda maps: window.of(maps, self.patch_size)), window)


def _prefetched(jobs: Iterator[Callable[[], Sample]], pool: ThreadPoolExecutor) -> Iterator[Sample]:
    waiting = [pool.submit(job) for job in islice(jobs, _AHEAD)]
    while waiting:
        sample = waiting.pop(0).result()
        waiting.extend(pool.submit(job) for job in islice(jobs, 1))
        yield sample
