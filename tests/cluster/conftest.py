"""One Ray for all tests that ask for it, and pictures."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster.processes import add_picture


@pytest.fixture(scope="session")
def local_ray():
    """A Ray of three CPUs in this process: two workers, and a place for Ray's own work."""
    pytest.importorskip("ray", reason="needs the extra ray")
    from m2h_deploy.cluster.session import Cluster, connected

    with connected(Cluster(workers=2)) as session:
        yield session


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Eleven rooms."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(11):
        add_picture(folder, index)
    return folder
