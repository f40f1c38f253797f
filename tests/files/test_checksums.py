"""Test that a file's checksum covers all of its bytes."""

from __future__ import annotations

import hashlib

import pytest

from m2h_deploy.files.digests import file_sha256


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1])
def test_the_digest_covers_all_bytes(size, tmp_path):
    content = bytes(index % 251 for index in range(size))
    (tmp_path / "file").write_bytes(content)
    assert file_sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()
