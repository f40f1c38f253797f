"""Fixtures of the mapping tests: bundles of a small network, and a walk through a room."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import onnx
import pytest
from onnx import numpy_helper

from m2h_deploy.onnx_graph.info import GraphInfo
from tests.conftest import make_once
from tests.engines.graphs import small_graph

HEIGHT, WIDTH, FRAMES = 48, 64, 24


def depth_graph(classes: int) -> onnx.ModelProto:
    """Make the small graph with depths of 0 to 5 m; without classes, it has no semantics."""
    proto = small_graph(scale=0.3, classes=classes or 1)
    weight = next(tensor for tensor in proto.graph.initializer if tensor.name == "w.depth")
    weight.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(weight), weight.name))
    if not classes:
        del proto.graph.output[-1], proto.graph.node[-1], proto.graph.initializer[-1]
        replace(GraphInfo.read(proto, Path("small.onnx")), tasks=("depth",)).write(proto)
    return proto


@pytest.fixture(scope="session")
def bundle_of(tmp_path_factory) -> Callable[[int], Path]:
    """Return a function that builds the small network, of depth and some classes, for ONNX Runtime. Read-only."""
    from engines import build_bundle

    def build(classes: int) -> Path:
        def make(path: Path) -> None:
            source = tmp_path_factory.mktemp("small") / "small.onnx"
            onnx.save(depth_graph(classes), source)
            build_bundle(source, path)

        return make_once(tmp_path_factory, f"small-{classes}", make)

    return build


@pytest.fixture(scope="session")
def small_bundle(bundle_of) -> Path:
    """Return a bundle of 4 classes."""
    return bundle_of(4)


@pytest.fixture(scope="session")
def nyu_bundle(bundle_of) -> Path:
    """Return a bundle of NYUv2's classes after `unknown`."""
    return bundle_of(41)


@pytest.fixture(scope="session")
def room(tmp_path_factory) -> Path:
    """Write a short walk through a room. Read-only."""
    from m2h_deploy.data.rooms.walk import RoomWalk
    from m2h_deploy.data.sequence_writer import write_sequence

    walk = RoomWalk(FRAMES, 0, 4.0, HEIGHT, WIDTH)
    return make_once(tmp_path_factory, "room", lambda path: write_sequence(path, walk))


@pytest.fixture(scope="module")
def coarse(open3d) -> Iterator[None]:
    """Judge maps by fewer points and draw small pictures, for tests that do not depend on that."""
    import m2h_deploy.mapping.align
    import m2h_deploy.mapping.pictures
    from m2h_deploy.mapping.mesh import SemanticMesh

    real = SemanticMesh.sample
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SemanticMesh, "sample", lambda mesh, spacing=0.2: real(mesh, max(spacing, 0.2)))
        patch.setattr(m2h_deploy.mapping.align, "_POINTS", 1000)
        drawn = partial(m2h_deploy.mapping.pictures.picture_of_mesh, size=(60, 80))
        patch.setattr(m2h_deploy.mapping.pictures, "picture_of_mesh", drawn)
        yield
