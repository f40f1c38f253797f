"""Collect the names of TensorRT's Python API that the project uses."""

from __future__ import annotations

import ast
import importlib
import json
import sys
from collections.abc import Iterator
from itertools import takewhile
from types import ModuleType

from m2h_deploy.bundle.manifest import EngineInfo
from tests.commands import ROOT

SOURCES = [
    path for folder in ("m2h_deploy/backends", "engines") for path in sorted((ROOT / folder).glob("tensorrt*.py"))
]

#: TensorRT's classes by the names that their objects have in these files, with and without `self._`.
CLASSES = {
    "builder": ("Builder",),
    "config": ("IBuilderConfig", "IRuntimeConfig"),
    "context": ("IExecutionContext",),
    "engine": ("ICudaEngine",),
    "network": ("INetworkDefinition",),
    "parser": ("OnnxParser", "OnnxParserRefitter"),
    "profile": ("IOptimizationProfile",),
    "refitter": ("Refitter",),
    "registry": ("IPluginRegistry",),
    "runtime": ("Runtime",),
    "kernels": ("IRuntimeCache",),
    "inspector": ("EngineInspector",),
}

#: TensorRT's classes by the method that returns an object that has no name.
RETURNED = {"create_engine_inspector": "EngineInspector", "get_plugin_registry": "IPluginRegistry"}


def used_names() -> set[str]:
    """Return the names that these files use: `module.path` of the module's, `Class|Class.member` of objects'.

    Names that are asked for with `hasattr` or `getattr` are left out.
    """
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES]
    asked = {name for tree in trees for name in _asked(tree)}
    found = {name for tree in trees for node in ast.walk(tree) if (name := _name(node)) is not None}
    found -= {name for name in found if any(other.startswith(f"{name}.") for other in found)}
    return {name for name in found if not asked & set(name.split("."))}


def _asked(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("hasattr", "getattr"):
            yield from (name.value for name in node.args[1:2] if isinstance(name, ast.Constant))


def _name(node: ast.AST) -> str | None:
    """Return what an attribute's chain names of TensorRT; None for anything else."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.insert(0, node.attr)
        node = node.value
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in RETURNED and names:
        return f"{RETURNED[node.func.attr]}.{names[0]}"
    if not isinstance(node, ast.Name) or not names:
        return None
    start, *names = [names[0].removeprefix("_"), *names[1:]] if node.id == "self" else [node.id, *names]
    if start == "plan" and len(names) > 1:  # an OpenPlan, which holds TensorRT's objects
        start, *names = names
    names = list(takewhile(lambda name: not name.startswith("__"), names))
    if start == "trt" and names:
        return ".".join(["trt", *names])
    if start not in CLASSES or not names or (start == "engine" and names[0] in EngineInfo.model_fields):
        return None
    return f"{'|'.join(CLASSES[start])}.{names[0]}"


def missing_names(module: ModuleType) -> set[str]:
    """Return the names that the files use and that a module of TensorRT lacks."""
    return {name for name in used_names() if not _has(module, *name.split("."))}


def _has(module: ModuleType, start: str, *path: str) -> bool:
    places = [module] if start == "trt" else [getattr(module, kind, None) for kind in start.split("|")]
    for name in path:
        places = [getattr(place, name) for place in places if hasattr(place, name)]
    return bool(places)


if __name__ == "__main__":  # in an environment that has the module
    print(json.dumps(sorted(missing_names(importlib.import_module(sys.argv[1])))))
