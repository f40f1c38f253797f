"""One-to-one matching of boundary pixels, for a sequence of similar predictions of one target."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from m2h_deploy.errors import missing_extra

Mask = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.int32]

_GREEDY_ROUNDS = 2


class BoundaryMatcher:
    """One-to-one matching of a thinned prediction's pixels with a thinned target's pixels.

    Only pixels at most `radius` apart may be matched. The count is the exact size of a maximum matching. The
    benchmark's own matcher (correspondPixels of BSDS, the CSA solver) minimizes the total distance plus 100 radii for
    each unmatched pixel. One more match outweighs the distances that it changes (except for a chain of 200 pixels
    that all move by a full radius), so its optimum has the same count. With one target per image, precision and recall
    depend only on that count, and distances need not be minimized.

    Successive predictions of one frame (descending thresholds) differ little, so the matching is kept between calls.
    Pairs whose predicted pixel is still predicted are kept, free pixels are first paired greedily with the nearest,
    and a maximum flow on the residual graph finds the remaining augmenting paths.

    Args:
        target: bool (H, W), thinned.
        candidates: bool (H, W), the union of all predictions.
        radius: largest distance of a match, pixels.
    """

    def __init__(self, target: Mask, candidates: Mask, radius: float) -> None:
        neighbors, distances = _neighbors(target, candidates, radius)
        found = neighbors >= 0
        # Graph in compressed sparse rows: edge k joins target pixel owner[k] and candidate adjacent[k].
        per_target = found.sum(axis=1)
        within_reach = np.flatnonzero(per_target)
        self.adjacent: Indices = neighbors[found]
        self.owner: Indices = np.repeat(np.arange(len(within_reach), dtype=np.int32), per_target[within_reach])
        self.distance: Indices = np.broadcast_to(distances, neighbors.shape)[found]
        self.candidates = candidates
        self.num_targets = len(within_reach)
        self.num_candidates = int(candidates.sum())
        reachable = np.zeros(self.num_candidates, bool)
        reachable[self.adjacent] = True
        self.reachable: Mask = reachable
        #: Candidate matched with each target pixel, and target pixel matched with each candidate; -1 where free.
        self.mate_of_target: Indices = np.full(self.num_targets, -1, np.int32)
        self.mate_of_candidate: Indices = np.full(self.num_candidates, -1, np.int32)

    def count(self, prediction: Mask) -> int:
        """Count the matched pairs for a prediction.

        Args:
            prediction: bool (H, W), a subset of the candidates.

        Returns:
            Size of the maximum matching.
        """
        alive = prediction[self.candidates] & self.reachable
        gone = (self.mate_of_candidate >= 0) & ~alive
        self.mate_of_target[self.mate_of_candidate[gone]] = -1
        self.mate_of_candidate[gone] = -1
        self._match_greedily(alive)
        if (self.mate_of_target < 0).any() and (alive & (self.mate_of_candidate < 0)).any():
            self._augment(alive)
        return int(np.count_nonzero(self.mate_of_target >= 0))

    def _match_greedily(self, alive: Mask) -> None:
        """Pair free target pixels with their nearest free candidates in a few rounds; ties go to the first."""
        for _ in range(_GREEDY_ROUNDS):
            free_target = self.mate_of_target < 0
            free_candidate = alive & (self.mate_of_candidate < 0)
            usable = np.flatnonzero(free_target[self.owner])
            usable = usable[free_candidate[self.adjacent[usable]]]
            if not usable.size:
                return
            owner, adjacent = self.owner[usable], self.adjacent[usable]
            key = self.distance[usable].astype(np.int64) * self.num_candidates + adjacent
            first = np.flatnonzero(np.diff(owner, prepend=-1))
            choice = (np.minimum.reduceat(key, first) % self.num_candidates).astype(np.int32)
            accepted, proposal = np.unique(choice, return_index=True)
            self._pair(owner[first][proposal], accepted)

    def _augment(self, alive: Mask) -> None:
        """Complete the matching by a maximum flow over the residual graph, from free targets to free candidates.

        In the residual graph the only edge out of a matched candidate leads to its target, and the only edge into a
        matched target comes from its candidate. Unit capacities therefore keep the augmenting paths disjoint.
        """
        sparse, maximum_flow = _scipy_flow()
        usable = alive[self.adjacent] & (self.adjacent != self.mate_of_target[self.owner])
        owner, adjacent = self.owner[usable], self.adjacent[usable]
        source = self.num_targets + self.num_candidates
        sink = source + 1
        free_targets = np.flatnonzero(self.mate_of_target < 0)
        back = np.where(self.mate_of_candidate >= 0, self.mate_of_candidate, sink)[alive]
        lengths = np.concatenate(
            [np.bincount(owner, minlength=self.num_targets), alive, [free_targets.size, 0]], dtype=np.int32
        )
        indptr = np.concatenate([[0], np.cumsum(lengths)], dtype=np.int32)
        indices = np.concatenate([adjacent + self.num_targets, back, free_targets], dtype=np.int32)
        graph = sparse.csr_matrix((np.ones(indices.size, np.int32), indices, indptr), shape=(sink + 1, sink + 1))
        flow = maximum_flow(graph, source, sink).flow
        end = flow.indptr[self.num_targets]
        used = np.flatnonzero(flow.data[:end] > 0)
        targets = np.searchsorted(flow.indptr, used, side="right") - 1
        self._pair(targets.astype(np.int32), flow.indices[used] - self.num_targets)

    def _pair(self, targets: Indices, candidates: npt.NDArray) -> None:
        self.mate_of_target[targets] = candidates
        self.mate_of_candidate[candidates] = targets


def _neighbors(target: Mask, candidates: Mask, radius: float) -> tuple[Indices, Indices]:
    """Find the candidates within `radius` of each target pixel.

    Returns:
        Candidate number (-1 where the pixel is not a candidate) at each offset, int32 (targets, offsets), and the
        squared
        distance of each offset, int32 (offsets,). Offsets are in raster order, so the numbers in a row increase.
    """
    reach = int(radius)
    number = np.full((target.shape[0] + 2 * reach, target.shape[1] + 2 * reach), -1, np.int32)
    inner = number[reach : reach + target.shape[0], reach : reach + target.shape[1]]
    inner[candidates] = np.arange(int(candidates.sum()), dtype=np.int32)
    dy, dx = np.mgrid[-reach : reach + 1, -reach : reach + 1].astype(np.int32)
    squared = dy * dy + dx * dx
    near = np.sqrt(squared) <= radius
    offsets = dy[near] * number.shape[1] + dx[near]
    rows, columns = np.nonzero(target)
    center = (rows + reach) * number.shape[1] + columns + reach
    return number.ravel()[center[:, None] + offsets], squared[near]


def _scipy_flow() -> tuple[Any, Any]:
    # Imported on use, so that the other metrics run without SciPy.
    try:
        from scipy import sparse
        from scipy.sparse.csgraph import maximum_flow
    except ImportError as error:
        raise missing_extra("scipy", "data", "the edges metric", error=error) from None
    return sparse, maximum_flow
