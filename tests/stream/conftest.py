"""Fixtures: a bundle to stream with, and sources that are reopened without a delay."""

from __future__ import annotations

import pytest

from m2h_deploy.bundle.folder import load_bundle


@pytest.fixture
def bundle(tiny_bundle):
    return load_bundle(tiny_bundle)


@pytest.fixture
def short_backoff(monkeypatch) -> None:
    monkeypatch.setattr("m2h_deploy.stream.stream.FIRST_BACKOFF", 0.01)
