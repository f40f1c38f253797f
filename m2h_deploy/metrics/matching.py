"""One-to-one matching of boundary pixels, for a sequence of similar predictions of one target."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.intp]

_FREE = -1


class BoundaryMatcher:
    """One-to-one matching of a thinned prediction's pixels with a thinned target's pixels.

    Only pixels at most `radius` apart may be matched. The count is the exact size of a maximum matching. The
    benchmark's own matcher (correspondPixels of BSDS, the CSA solver) minimizes the total distance plus 100 radii for
    each unmatched pixel. One more match outweighs the distances that it changes (except for a chain of 200 pixels
    that all move by a full radius), so its optimum has the same count. With one target per image, precision and recall
    depend only on that count, and distances need not be minimized.

    Successive predictions of one frame (descending thresholds) differ little, so the matching is kept between calls,
    and with it a minimum vertex cover: a set of pixels, as many as there are pairs, that contains an end of every
    allowed pair. Its existence proves that the matching is maximum (Koenig's theorem). A pixel that comes or goes can
    raise the count only if it breaks that equality, so only those few pixels are searched from. If no augmenting path
    starts at them, the pixels that the search reached change places in the cover, and are not searched again.

    Args:
        target: bool (H, W), thinned.
        candidates: bool (H, W), the union of all predictions.
        radius: largest distance of a match, pixels.
    """

    def __init__(self, target: Mask, candidates: Mask, radius: float) -> None:
        self._targets = _Side.of(target, candidates, radius)
        self._candidates = _Side.of(candidates, target, radius)
        self._targets.uncovered[:] = True
        self._selected = np.zeros(len(self._candidates.mate), bool)
        self._pairs = 0

    def count(self, selected: Mask) -> int:
        """Count the matched pairs for a prediction.

        Args:
            selected: bool (candidates,), whether the prediction contains each candidate, in raster order.

        Returns:
            Size of the maximum matching.
        """
        gone = np.flatnonzero(self._selected & ~selected)
        new = np.flatnonzero(selected & ~self._selected)
        self._selected = selected.copy()
        freed = self._remove(gone)
        # Of the freed targets, the uncovered ones left the matching and the cover equally large.
        covered = freed[~self._targets.uncovered[freed]]
        self._pairs -= freed.size
        self._pairs += _augment(self._candidates, self._targets, self._insert(new))
        self._pairs += _augment(self._targets, self._candidates, covered)
        return self._pairs

    def _remove(self, gone: Indices) -> Indices:
        """Remove candidates; return the targets that this frees."""
        mates = self._candidates.mate[gone]
        freed = mates[mates != _FREE]
        self._targets.mate[freed] = _FREE
        self._candidates.mate[gone] = _FREE
        self._candidates.uncovered[gone] = False
        return freed

    def _insert(self, new: Indices) -> Indices:
        """Add candidates; return those that the cover must take in, because of an uncovered target within reach."""
        targets, candidates = self._candidates.neighbors.of(new)
        self._candidates.uncovered[new] = True
        self._candidates.uncovered[candidates[self._targets.uncovered[targets]]] = False
        return new[~self._candidates.uncovered[new]]


class _Neighbors:
    """The pixels of one mask within `radius` of each pixel of another, as compressed sparse rows of pixel numbers."""

    def __init__(self, mask: Mask, others: Mask, radius: float) -> None:
        reach = int(radius)
        padded = np.pad(others, reach)
        before = np.zeros(padded.size + 1, np.int32)
        np.cumsum(padded, out=before[1:])
        # Pixels are numbered in raster order, so those within reach in one row have successive numbers.
        across = np.arange(reach + 1)
        half = np.array(
            [np.count_nonzero(np.sqrt(across**2 + dy * dy) <= radius) - 1 for dy in range(-reach, reach + 1)]
        )
        rows, columns = np.nonzero(mask)
        stride = padded.shape[1]
        center = ((rows + reach) * stride + columns + reach)[:, None] + np.arange(-reach, reach + 1) * stride
        first = before[center - half]
        length = before[center + half + 1] - first
        self.count = length.sum(axis=1, dtype=np.intp)
        self.start = self.count.cumsum() - self.count
        self.numbers = _joined(first.ravel(), length.ravel())

    def of(self, pixels: Indices) -> tuple[Indices, Indices]:
        """Return the neighbors of `pixels`, and of each neighbor the pixel that it is a neighbor of."""
        count = self.count[pixels]
        return self.numbers[_joined(self.start[pixels], count)].astype(np.intp), np.repeat(pixels, count)


def _joined(first: npt.NDArray[np.integer], length: npt.NDArray[np.integer]) -> npt.NDArray[np.integer]:
    """Concatenate the ranges of `length` numbers from `first`."""
    end = length.cumsum(dtype=np.intp)
    if not end.size:
        return first
    numbers = np.repeat((first - (end - length)).astype(first.dtype), length)
    numbers += np.arange(end[-1], dtype=first.dtype)
    return numbers


@dataclass(eq=False)
class _Side:
    """The pixels of one side, targets or candidates, in raster order."""

    neighbors: _Neighbors
    """Pixels of the other side within reach."""
    position: npt.NDArray[np.int32]
    """Row and column, (2, pixels)."""
    uncovered: Mask
    """Pixels of the prediction, or of the target, that are not in the vertex cover."""
    mate: Indices
    """Matched pixel of the other side, or `_FREE`."""
    parent: Indices
    """In a search, the pixel of the other side from which this one was reached."""
    root: Indices
    """In a search, the number of the source from which this one was reached."""
    scratch: Indices

    @classmethod
    def of(cls, mask: Mask, others: Mask, radius: float) -> _Side:
        position = np.argwhere(mask).T.astype(np.int32)
        size = position.shape[1]
        parent, root, scratch = (np.zeros(size, np.intp) for _ in range(3))
        mate = np.full(size, _FREE, np.intp)
        return cls(_Neighbors(mask, others, radius), position, np.zeros(size, bool), mate, parent, root, scratch)

    def first(self, pixels: Indices) -> Mask:
        """Mark the first occurrence of each pixel."""
        return _first(pixels, self.scratch)


def _first(values: Indices, scratch: Indices) -> Mask:
    """Mark the first occurrence of each value; `scratch` has room for the largest."""
    order = np.arange(values.size)
    scratch[values[::-1]] = order[::-1]
    return scratch[values] == order


def _augment(near: _Side, far: _Side, sources: Indices) -> int:
    """Search for disjoint augmenting paths from free pixels in the cover, and restore a cover as large as the matching.

    The paths lead through uncovered pixels of `far` and their mates, which are in the cover. A tree grows from each
    source, all at once, until it has found a free pixel of `far`. Trees that found none are kept and grow on where
    another tree was in the way, or are built again where that is less work (tree grafting: Azad, Buluc and Pothen,
    "Computing Maximum Cardinality Matchings in Parallel on Bipartite Graphs via Tree-Grafting", TPDS 2017).

    Returns:
        Number of added pairs.
    """
    near.root[sources] = np.arange(sources.size)
    found = np.zeros(sources.size, bool)
    visited: Indices = np.empty(0, np.intp)
    frontier, pairs = sources, 0
    while frontier.size:
        fresh, ends = _grow(near, far, frontier, found)
        visited = np.concatenate([visited, fresh])
        if not ends.size:
            break
        pairs += ends.size
        released = found[near.root[far.parent[visited]]]
        _flip(near, far, ends)
        far.uncovered[visited[released]] = True
        left = sources[~found]
        kept = visited[~released]
        if visited.size - kept.size > kept.size + left.size:
            far.uncovered[kept] = True
            frontier, visited = left, kept[:0]
        else:
            frontier = _adjacent(near, far, visited[released], np.concatenate([left, far.mate[kept]]))
            visited = kept
    near.uncovered[sources[~found]] = True
    near.uncovered[far.mate[visited]] = True
    return pairs


def _adjacent(near: _Side, far: _Side, released: Indices, tree: Indices) -> Indices:
    """Return the pixels of `tree` within reach of a released pixel of `far`."""
    in_tree = np.zeros(near.mate.size, bool)
    in_tree[tree] = True
    adjacent, _ = far.neighbors.of(released)
    adjacent = adjacent[in_tree[adjacent]]
    return adjacent[near.first(adjacent)]


def _grow(near: _Side, far: _Side, frontier: Indices, found: Mask) -> tuple[Indices, Indices]:
    """Grow trees breadth first from `frontier` until each has found a free pixel of `far` or cannot grow.

    Visited pixels of `far` are marked as covered. `found` is set for the sources whose trees succeeded.

    Returns:
        The visited pixels of `far`, and among them the free ones, at most one a tree.
    """
    visited: list[Indices] = []
    ends: list[Indices] = []
    while frontier.size:
        reached, origin = near.neighbors.of(frontier)
        open_ = np.flatnonzero(far.uncovered[reached])
        reached, origin = reached[open_], origin[open_]
        free = far.mate[reached] == _FREE
        if free.any():
            end = _nearest_pairs(near, far, reached[free], origin[free])
            far.uncovered[end] = False
            found[near.root[far.parent[end]]] = True
            ends.append(end)
            growing = ~(found[near.root[origin]] | free)
            reached, origin = reached[growing], origin[growing]
        first = far.first(reached)
        reached, origin = reached[first], origin[first]
        far.parent[reached] = origin
        far.uncovered[reached] = False
        visited.append(reached)
        frontier = far.mate[reached]
        near.root[frontier] = near.root[origin]
    nothing: Indices = np.empty(0, np.intp)
    return np.concatenate([nothing, *visited, *ends]), np.concatenate([nothing, *ends])


def _nearest_pairs(near: _Side, far: _Side, free: Indices, origin: Indices) -> Indices:
    """Choose free pixels, at most one a tree, the shortest pairs first; set their parents."""
    (row, column), (far_row, far_column) = near.position, far.position
    order = np.argsort((row[origin] - far_row[free]) ** 2 + (column[origin] - far_column[free]) ** 2, kind="stable")
    free, origin = free[order], origin[order]
    chosen: list[Indices] = []
    while free.size:
        root = near.root[origin]
        # The source numbers are below the number of pixels, so the scratch space of `near` has room for them.
        best = _first(root, near.scratch) & far.first(free)
        far.parent[free[best]] = origin[best]
        chosen.append(free[best])
        taken = np.zeros(near.mate.size, bool)
        taken[root[best]] = True
        far.uncovered[free[best]] = False
        rest = far.uncovered[free] & ~taken[root]
        free, origin = free[rest], origin[rest]
    return np.concatenate(chosen)


def _flip(near: _Side, far: _Side, ends: Indices) -> None:
    """Match along the paths that end at `ends`, back to the sources."""
    while ends.size:
        parents = far.parent[ends]
        before = near.mate[parents]
        near.mate[parents] = ends
        far.mate[ends] = parents
        ends = before[before != _FREE]
