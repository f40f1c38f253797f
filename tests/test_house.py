"""Check limits that keep the code readable: short functions of few parameters, short files."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import grimp
import pytest

from export.options import ExportKeywords, ExportOptions
from m2h_deploy.cluster.predict import PredictKeywords, PredictOptions
from m2h_deploy.parity.verify import VerifyKeywords, VerifyOptions
from m2h_deploy.stream.options import StreamKeywords, StreamOptions
from tests.commands import ROOT

LINES, PARAMETERS, FILE_LINES = 60, 8, 400
SOURCES = ("m2h_deploy", "export", "engines", "cli", "benchmarks", "ros2", "examples")


def test_functions_and_files_are_short_and_take_few_parameters() -> None:
    files = [path for folder in (*SOURCES, "tests") for path in sorted((ROOT / folder).rglob("*.py"))]
    assert len(files) > 300
    assert [found for path in files for found in violations(path)] == []


def violations(path: Path) -> Iterator[str]:
    """Yield the file and its functions that exceed a limit. A command's parameters are its options: any number."""
    name, text = path.relative_to(ROOT).as_posix(), path.read_text()
    if len(text.splitlines()) > FILE_LINES:
        yield name
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef) and not any("app.command" in ast.unparse(d) for d in node.decorator_list):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            count = sum(argument.arg not in ("self", "cls") for argument in arguments)
            size = (node.end_lineno or node.lineno) - node.lineno + 1
            if size > LINES or (count > PARAMETERS and not name.startswith("tests/")):
                yield f"{name}: {node.name}"


@pytest.mark.parametrize(
    ("keywords", "options"),
    [
        (ExportKeywords, ExportOptions),
        (VerifyKeywords, VerifyOptions),
        (PredictKeywords, PredictOptions),
        (StreamKeywords, StreamOptions),
    ],
)
def test_the_keywords_of_a_function_are_the_fields_of_its_options(keywords, options) -> None:
    assert keywords.__annotations__.keys() == options.__annotations__.keys()
    texts = {name: getattr(kind, "__forward_arg__", kind) for name, kind in keywords.__annotations__.items()}
    assert texts == options.__annotations__


def test_imports_have_no_cycles_lazy_ones_included() -> None:
    graph = grimp.build_graph("m2h_deploy", "export", "engines", exclude_type_checking_imports=True, cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    assert len(imports) > 200
    TopologicalSorter(imports).prepare()  # raises CycleError, which names the modules
