"""Check what pages and messages tell a new user: installing, commands, options, Python code, links, and paths."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import cv2
import pytest
import typer

import m2h_deploy
from cli import app
from cli.app import EXTRA_OF, UsageError, take_json_file
from m2h_deploy.backends import KINDS
from m2h_deploy.data.rooms.render import render_room
from m2h_deploy.errors import install_extra, missing_extra
from tests.pages import REPOSITORY, fenced_blocks, m2h_commands

#: Pages outside of docs/.
OTHER_PAGES = [REPOSITORY / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")]
PAGES = [*OTHER_PAGES, *sorted((REPOSITORY / "docs").glob("*.md"))]
EXAMPLES = REPOSITORY / "examples" / "README.md"
PACKAGES = ("m2h_deploy", "export", "engines", "cli")
SOURCES = [
    path
    for folder in (*PACKAGES, "ros2", "benchmarks", "tests", "cpp")
    for path in sorted((REPOSITORY / folder).rglob("*"))
    if path.suffix in (".py", ".md", ".html", ".cmake", ".txt", ".hpp", ".cpp") and "build" not in path.parts
]

#: Modules whose absence is handled where they are imported, because the program goes on without them or runs elsewhere.
HANDLED = {"jtop", "pynvml", "threadpoolctl", "pytriton", "tritonclient", "triton_python_backend_utils"}


def project() -> dict:
    toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    return toml.loads((REPOSITORY / "pyproject.toml").read_text())["project"]


def test_no_page_and_no_message_installs_from_an_index():
    """`pip install 'm2h-deploy[...]'` cannot work: the package is not on an index."""
    wrong = re.compile(r"(?<!/)m2h-deploy\[|pip3? install (-\S+ )*['\"]?m2h[-_]deploy['\"]?(\s|$|`)", re.MULTILINE)
    assert wrong.search("pip install 'm2h-deploy[export]'") and wrong.search("pip install m2h-deploy\n")
    files = {*PAGES, *SOURCES} - {Path(__file__)}
    assert [str(path) for path in files if wrong.search(path.read_text())] == []


def test_every_extra_that_is_named_exists():
    """Pages name extras as `.[a,b]`, `.whl[a]` and extra `a`; code as arguments and in tables."""
    extras = set(project()["optional-dependencies"])
    named = {*EXTRA_OF.values(), *(kind.extra for kind in KINDS.values())}
    for page in PAGES:
        text = page.read_text()
        for group in re.findall(r"(?:\.|\.whl|m2h-deploy)\[([a-z0-9,-]+)\](?!\()", text):
            named |= set(group.split(","))
        named |= set(re.findall(r"extra `([a-z0-9-]+)`", text))
    for path in SOURCES:
        if path.suffix == ".py" and path.parts[-2] != "tests":
            named |= extras_in(path)
    assert {"export", "bench", "serve", "precision", "ros2", "data"} <= named
    assert named <= extras


def extras_in(path: Path) -> set[str]:
    """Return the extras that calls of `install_extra` and `missing_extra` name."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            place = {"install_extra": 0, "missing_extra": 1}.get(node.func.id)
            if place is not None and isinstance(node.args[place], ast.Constant):
                found |= set(node.args[place].value.split(","))
    return found


def test_every_import_of_another_project_is_a_dependency_or_in_an_extra():
    """Then every command reports a missing package in one line that names the extra."""
    base = {"numpy", "cv2", "pydantic", "rich", "typer", "typing_extensions"}
    found: set[str] = set()
    for path in SOURCES:
        if path.suffix == ".py" and path.relative_to(REPOSITORY).parts[0] in PACKAGES:
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    found |= {name.name.split(".")[0] for name in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    found.add(node.module.split(".")[0])
    others = found - set(sys.stdlib_module_names) - set(PACKAGES)
    assert {"torch", "onnx", "h5py"} <= others
    assert others - base - HANDLED <= set(EXTRA_OF)


def test_a_broken_package_is_not_reported_as_missing():
    gone = missing_extra("onnx", "export", "this", error=ModuleNotFoundError("No module named 'onnx'"))
    broken = missing_extra("onnx", "export", "this", error=ImportError("libfoo.so.1: cannot open\nmore"))
    assert str(gone) == f"this needs onnx, which is not installed: {install_extra('export')}"
    assert "which cannot be imported (libfoo.so.1: cannot open): " in str(broken)


def commands_of(page: Path) -> list[list[str]]:
    shells = ("", "sh", "bash")
    return [words for kind, block in fenced_blocks(page.read_text()) if kind in shells for words in m2h_commands(block)]


@pytest.mark.parametrize("page", [*PAGES, EXAMPLES], ids=lambda page: page.name)
def test_every_command_on_a_page_is_accepted_by_the_command_line(page):
    """Check names, options, arguments and the types of their values; no command is run."""
    command = typer.main.get_command(app)
    for words in commands_of(page):
        try:
            command.commands[words[0]].make_context(words[0], take_json_file(words)[0][1:])
        except (UsageError, KeyError) as error:
            pytest.fail(f"{page.name}: m2h-deploy {' '.join(words)}: {error}")


def test_the_commands_of_the_pages_are_found():
    counts = {page.name: len(commands_of(page)) for page in PAGES}
    assert counts["README.md"] >= 5
    without = {
        *("api", "architecture", "benchmarks", "bundle", "commands", "development", "install", "limitations"),
        *("plan-sizes", "troubleshooting"),
    }
    others = counts.keys() - {*(page.name for page in OTHER_PAGES), *(f"{name}.md" for name in without)}
    assert min(counts[name] for name in others) > 1


def anchors_of(page: Path) -> set[str]:
    """Return the anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.S | re.M), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, EXAMPLES], ids=lambda page: page.name)
def test_every_link_of_a_page_leads_to_a_file_and_a_heading(page):
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text()):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.is_file(), link
        assert not anchor or anchor in anchors_of(target), link


def test_readme_is_short_and_the_indexes_name_every_page():
    """README links to the site's main pages; the navigation and the first page of the site have all of them."""
    assert len((REPOSITORY / "README.md").read_text().split()) <= 750
    pages = {path.name for path in (REPOSITORY / "docs").glob("*.md")}
    assert set(re.findall(r"[\w-]+\.md", (REPOSITORY / "mkdocs.yml").read_text())) == pages
    index = (REPOSITORY / "docs" / "index.md").read_text()
    assert set(re.findall(r"\]\(([\w-]+\.md)", index)) == pages - {"index.md"}


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=lambda page: page.name)
def test_every_path_that_a_page_names_exists(page):
    folders = "m2h_deploy|export|engines|cli|tests|benchmarks|configs|ros2|cpp"
    paths = re.findall(rf"(?<![\w/.-])(?:{folders})/[\w./-]*\w", page.read_text())
    assert [path for path in paths if not (REPOSITORY / path).exists()] == []


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=lambda page: page.name)
def test_every_option_that_a_page_mentions_exists(page):
    """Also in running text, beside the command's name."""
    command = typer.main.get_command(app)
    for name, rest in re.findall(r"`m2h-deploy ([a-z]+)([^`]*)`", page.read_text()):
        options = {option for parameter in command.commands[name].params
                   for option in (*parameter.opts, *parameter.secondary_opts)}  # fmt: skip
        assert set(re.findall(r"(?<=\s)--?[a-z][a-z-]*", rest)) <= options, (name, rest)


def test_readme_s_python_runs(tiny_bundle, tmp_path):
    """Run the Python blocks of README and docs/runtime.md that need no plug-in, on pictures instead of a camera."""
    image = render_room(0, 0, height=96, width=128).image
    for index in range(2):
        cv2.imwrite(str(tmp_path / f"{index}.png"), image)
    pages = "".join((REPOSITORY / name).read_text() for name in ("README.md", "docs/runtime.md"))
    blocks = [block for kind, block in fenced_blocks(pages) if kind == "python" and "plugins" not in block]
    assert len(blocks) == 4
    names = {"image": image}
    for block in blocks:
        assert "Stream(runtime, 0)" in block or "Stream" not in block
        program = block.replace('"bundle/"', repr(str(tiny_bundle))).replace(
            "runtime, 0", f"runtime, {str(tmp_path)!r}"
        )
        exec(program.replace("runtime.close()", ""), names)
    assert names["frame"].prediction.depth.shape == (96, 128)
    assert names["stream"].health.delivered == 2
    names["runtime"].close()


def test_the_public_names_exist():
    from m2h_deploy import Bundle, Prediction, Runtime, Stream, load_bundle

    assert {Bundle, Prediction, Runtime, Stream, load_bundle} <= {getattr(m2h_deploy, n) for n in m2h_deploy.__all__}


def test_importing_the_runtime_loads_no_heavy_package():
    heavy = ("torch", "onnx", "onnxruntime", "openvino", "scipy", "matplotlib", "rich", "typer", "h5py")
    program = f"import sys, m2h_deploy; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert done.stdout == "[]\n"


@pytest.mark.slow
def test_a_wheel_made_in_the_clone_carries_types_and_assets(tmp_path):
    """The wheel is made by the commands of docs/install.md; pip downloads hatchling."""
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", ".", "-w", str(tmp_path)]
    subprocess.run(command, cwd=REPOSITORY, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name in (REPOSITORY / "docs" / "install.md").read_text()
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"{package}/py.typed" for package in ("m2h_deploy", "export", "engines")} <= names
    assert {"m2h_deploy/assets/m2h-tiny.safetensors", "m2h_deploy/templates/table.html"} <= names
