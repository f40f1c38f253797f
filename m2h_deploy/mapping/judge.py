"""Compare a fused variant with the true surface."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from m2h_deploy.data.frame import Pose
from m2h_deploy.errors import M2HError
from m2h_deploy.mapping.align import is_plausible
from m2h_deploy.mapping.errors import MapErrors, judge_map
from m2h_deploy.mapping.figures import MAP_FIGURES
from m2h_deploy.mapping.fuse import Fused, VolumeSettings
from m2h_deploy.mapping.mesh import SemanticMesh
from m2h_deploy.mapping.plan import Plan
from m2h_deploy.mapping.surface import TrueSurface
from m2h_deploy.mapping.variant import Judged, Variant


class Truth:
    """The true surface of a sequence, built when it is first needed."""

    def __init__(self, plan: Plan, settings: VolumeSettings, advance: Callable[[int, int], None]) -> None:
        """Prepare.

        Args:
            plan: The frames.
            settings: Range of depth of the maps, and how true depth is fused if the sequence has no surface.
            advance: Called after each frame that is read.
        """
        self._plan, self._settings, self._advance = plan, settings, advance

    @cached_property
    def surface(self) -> TrueSurface | None:
        """The surface, with the samples that the frames show; None without a surface and without depth."""
        file = self._plan.sequence.surface
        found = self._fused() if file is None else TrueSurface.read(file)
        if found is not None:
            for depth, _, pose in self._frames(labels=False):
                found.observe(depth, self._plan.sequence.intrinsics, pose, self._settings.depth_range)
        return found

    @property
    def words(self) -> str | None:
        """What the maps are compared with; None without a surface and without depth."""
        if self.surface is None:
            return None
        file = self._plan.sequence.surface
        return "a map of the true depth" if file is None else f"the surface {file.name}"

    @property
    def observed(self) -> bool:
        """Whether the frames show any of the surface: without true depth, that is unknown."""
        return self.surface is not None and bool(self.surface.observed.any())

    def _fused(self) -> TrueSurface | None:
        """Fuse the true depth."""
        volume = self._settings.volume(len(self._plan.sequence.class_names))
        for depth, labels, pose in self._frames(labels=True):
            volume.integrate(depth, labels, self._plan.sequence.intrinsics, pose)
        mesh = volume.mesh()
        return TrueSurface(mesh) if len(mesh.triangles) else None

    def _frames(self, *, labels: bool) -> Iterator[tuple[NDArray[np.float32], NDArray[np.uint8] | None, Pose]]:
        """Yield true depth, labels if they are asked for, and pose of the frames with true depth.

        Frames that cannot be read are reported by the fusion.
        """
        sequence, posed = self._plan.sequence, self._plan.posed
        if "depth" not in sequence.label_readers:
            return
        for number, moment in enumerate(posed, 1):
            with suppress(M2HError):
                depth = sequence.read_label("depth", moment)
                semantics = sequence.read_label("semantics", moment) if labels else None
                if depth is not None and moment.pose is not None:
                    yield depth, semantics, moment.pose
            self._advance(number, len(posed))


def judge_variant(fused: Fused, truth: Truth, *, judge_labels: bool, table: NDArray[np.uint8] | None = None) -> Variant:
    """Judge a fused variant under every alignment.

    Args:
        fused: The variant.
        truth: The true surface.
        judge_labels: Whether the labels of the map have the classes of the true surface, after `table`.
        table: The map's label of each label of the surface, uint8 (256,); None if they are the same.
    """
    maps: dict[str, Judged] = {}
    surface = truth.surface
    if surface is not None:

        def judge(mesh: SemanticMesh, align: Literal["none", "se3", "sim3"]) -> MapErrors:
            labeled = mesh if judge_labels else replace(mesh, labels=None)
            return judge_map(labeled, surface, align=align, table=table)

        maps["none"] = _judged(judge(fused.mesh, "none"), 1.0)
        if fused.scaled is not None and fused.factor is not None:
            maps["scale"] = _judged(judge(fused.scaled, "none"), fused.factor)
        if truth.observed:
            maps["se3"] = _judged(judge(fused.mesh, "se3"))
            similar = judge(fused.mesh, "sim3")
            if is_plausible(similar.alignment.scale):
                maps["sim3"] = _judged(similar)
    return Variant(
        frames=fused.frames,
        triangles=len(fused.mesh.triangles),
        maps=maps,
        sums=fused.sums,
        seconds=fused.seconds,
        unread=fused.unread,
        resets=fused.resets,
    )


def _judged(errors: MapErrors, factor: float | None = None) -> Judged:
    """Keep what the result needs; `factor` is what depth was divided by, if the map was not aligned."""
    alignment = errors.alignment
    names = (figure.key for figure in MAP_FIGURES)
    return Judged(
        figures={name: float(getattr(errors, name)) for name in (*names, "median", "gap", "miou")},
        scale=1 / alignment.scale if factor is None else factor,
        translation=float(np.linalg.norm(alignment.translation)),
        rotation=alignment.degrees,
        cells=errors.cells,
    )
