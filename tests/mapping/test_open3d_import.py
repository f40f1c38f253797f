"""Test the messages where Open3D cannot be imported."""

from __future__ import annotations

import importlib.abc
import sys

import pytest

from m2h_deploy.errors import M2HError, MissingExtra
from m2h_deploy.mapping.open3d import import_open3d


class Failing(importlib.abc.MetaPathFinder):
    """Raise an error when Open3D is imported."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def find_spec(self, name: str, path: object, target: object = None) -> None:
        if name == "open3d":
            raise self.error


def message(monkeypatch: pytest.MonkeyPatch, error: Exception) -> tuple[type, str]:
    monkeypatch.delitem(sys.modules, "open3d", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Failing(error), *sys.meta_path])
    with pytest.raises(M2HError) as caught:
        import_open3d()
    return caught.type, str(caught.value)


def test_without_the_package_the_extra_is_named(monkeypatch):
    kind, text = message(monkeypatch, ModuleNotFoundError("No module named 'open3d'"))
    assert kind is MissingExtra
    assert text.startswith("a map needs open3d, which is not installed: ") and "[map]" in text


@pytest.mark.parametrize("error", [ImportError, OSError])
@pytest.mark.parametrize("library", ["libusb-1.0.so.0", "libGL.so.1"])
def test_without_a_library_the_system_packages_are_named(monkeypatch, error, library):
    _, text = message(monkeypatch, error(f"{library}: cannot open shared object file: No such file or directory"))
    assert text.startswith(f"a map needs open3d, which needs {library}: apt-get install ")
    assert "libusb-1.0-0" in text and "libgl1" in text


def test_another_error_of_the_import_is_told(monkeypatch):
    kind, text = message(monkeypatch, ImportError("numpy.core.multiarray failed to import"))
    assert kind is MissingExtra
    assert "cannot be imported (numpy.core.multiarray failed to import)" in text
