"""Shared fixtures: test groups with their own environments, real data, a small network from checkpoint to bundle."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from m2h_deploy.errors import M2HError

# A shell starts background jobs with SIGINT ignored, which every program that the tests interrupt would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED = Path(__file__).parents[2] / "shared"

#: Marks of tests that need more than the project's own environment, which `make test-GROUP` creates.
GROUPS = ("ros2", "serving", "cpp")

#: A group that needs a GPU; `make test` and continuous integration leave it out.
GPU = "gpu"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require",
        action="append",
        default=[],
        choices=(*GROUPS, GPU),
        help="run the tests of this group, and fail where one would be skipped",
    )


def pytest_configure() -> None:
    """Keep the records and caches of tests out of the user's cache folder; pip and matplotlib keep theirs."""
    users = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    os.environ.setdefault("PIP_CACHE_DIR", str(users / "pip"))
    os.environ.setdefault("MPLCONFIGDIR", str(users / "matplotlib"))
    os.environ["XDG_CACHE_HOME"] = str(Path(__file__).parents[1] / "build" / "tests-cache")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Set the timeout of slow tests to an hour instead of ten minutes, and order the files.

    The first file makes the network's export; those that do not need it come next, so that no parallel process waits.
    """
    exported = [item.path for item in items if "tiny_onnx" in getattr(item, "fixturenames", ())]
    if "PYTEST_XDIST_WORKER" in os.environ and exported:
        needing = set(exported)
        items.sort(key=lambda item: (item.path != exported[0], item.path in needing))
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(3600))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip the tests of groups that are not required."""
    for group in (*GROUPS, GPU):
        if item.get_closest_marker(group) and group not in item.config.getoption("require"):
            slow = " SELECT=slow" if item.get_closest_marker("slow") else ""
            pytest.skip(f"`make test-{group}{slow}` runs it")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a skip in a required group into a failure, except for files that are not in the repository."""
    report = yield
    required = [group for group in item.config.getoption("require") if item.get_closest_marker(group)]
    skipped = call.excinfo is not None and call.excinfo.errisinstance(pytest.skip.Exception)
    # A machine with a GPU need not have every engine.
    if GPU in required:
        return report
    outside = {"shared", "nvidia_headers"}.intersection(getattr(item, "fixturenames", ()))
    if required and skipped and not outside:
        report.outcome = "failed"
        report.longrepr = f"skipped, which --require {required[0]} does not allow: {call.excinfo.value}"
    return report


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of real data beside the repository; tests that need it are skipped if it is missing."""
    if not SHARED.is_dir():
        pytest.skip("no shared data beside the repository")
    return SHARED


@pytest.fixture(scope="session")
def open3d() -> Any:
    """Return Open3D; tests that need it are skipped where it, or a library that it needs, is not installed."""
    from m2h_deploy.mapping.open3d import import_open3d

    try:
        return import_open3d()
    except M2HError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def tiny_model():
    """Return m2h-tiny with random weights in every parameter."""
    from tests.networks import random_network

    return random_network()


def make_once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return the file or folder `name`, which the first of pytest's parallel processes makes for the others."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    path = root / "once" / name
    path.parent.mkdir(exist_ok=True)
    with FileLock(root / "once" / f"{name}.lock"):
        if not path.exists():
            make(path)
    return path


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_model, tmp_path_factory) -> Path:
    from m2h_deploy.model import save_checkpoint

    return save_checkpoint(tiny_model, tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors")


@pytest.fixture(scope="session")
def tiny_onnx(tiny_model, tmp_path_factory) -> Path:
    """Export `tiny_model` at 112 x 140."""
    from export import export_onnx

    return make_once(tmp_path_factory, "tiny.onnx", lambda path: export_onnx(tiny_model, path, height=112, width=140))


@pytest.fixture(scope="session")
def tiny_bundle(tiny_onnx, tmp_path_factory) -> Path:
    """Build `tiny_onnx` into a bundle for ONNX Runtime. Read-only: copy it before changing it."""
    from engines import build_bundle

    return make_once(tmp_path_factory, "tiny", lambda path: build_bundle(tiny_onnx, path))
