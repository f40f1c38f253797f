"""Machines with doubles of CUDA and TensorRT."""

from __future__ import annotations

import pytest

from tests.backends.gpu_machine import KINDS, Machine


@pytest.fixture(params=KINDS)
def machine(request, monkeypatch, tmp_path) -> Machine:
    return Machine(monkeypatch, tmp_path, request.param)


@pytest.fixture(params=[*KINDS, "jetson"])
def any_machine(request, monkeypatch, tmp_path) -> Machine:
    kind = "tensorrt" if request.param == "jetson" else request.param
    return Machine(monkeypatch, tmp_path, kind, integrated=request.param == "jetson")


@pytest.fixture
def tensorrt(monkeypatch, tmp_path) -> Machine:
    return Machine(monkeypatch, tmp_path, "tensorrt")


@pytest.fixture
def rtx(monkeypatch, tmp_path) -> Machine:
    return Machine(monkeypatch, tmp_path, "tensorrt-rtx")
