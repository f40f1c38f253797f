"""A Ray instance that the tests share, and pictures."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster.processes import add_picture


@pytest.fixture(scope="module")
def local_ray():
    """Start Ray with three CPUs in this process: two workers and one CPU for Ray itself.

    For a module, because an idle Ray slows the tests after it by several percent.
    """
    pytest.importorskip("ray", reason="needs the extra ray")
    from m2h_deploy.cluster.session import Cluster, connected

    with connected(Cluster(workers=2)) as session:
        yield session


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Return a folder with eleven rooms."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(11):
        add_picture(folder, index)
    return folder
