"""Run the command line and a bundle with the lowest versions that pyproject.toml declares, in separate environments."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
from packaging.requirements import Requirement

from m2h_deploy.data.rooms.render import render_room
from tests.commands import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

pytestmark = pytest.mark.slow

#: The oldest Python that the project supports.
OLDEST = "3.10"

#: PyPI has no CPU build of the lowest PyTorch, so the exporter is tested with the installed one.
WITHOUT_LOWEST = ("torch",)

#: Mistakes in a command line, which Typer and Click report together.
MISTAKES = (
    ["run"],
    ["nothing"],
    ["run", "x", "y", "--threads", "0"],
    ["run", "x", "y", "--nothing"],
    ["run", "x", "y", "--limit"],
    ["build", "x", "--threads", "many"],
    ["export", "x", "--windows", "round"],
)


def extras() -> dict[str, list[str]]:
    """Return the requirements of the project's extras."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]


def requirements(*extras: str) -> list[str]:
    """Return what the project and these extras need here with the oldest Python, each as `name==lowest`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared, waiting = [*project["dependencies"]], [*extras]
    while waiting:
        for text in project["optional-dependencies"][waiting.pop(0)]:
            own = re.fullmatch(r"m2h-deploy\[([\w,-]+)\]", text)
            waiting += own[1].split(",") if own is not None else []
            declared += [] if own is not None else [text]
    found = [Requirement(text) for text in declared]
    here = [one for one in found if one.marker is None or one.marker.evaluate({"python_version": OLDEST})]
    return list(dict.fromkeys(f"{name_of(one)}=={low}" for one in here if (low := lowest_of(one)) is not None))


def name_of(requirement: Requirement) -> str:
    return requirement.name + (f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else "")


def lowest_of(requirement: Requirement) -> str | None:
    return next((one.version for one in requirement.specifier if one.operator == ">="), None)


def oldest_python() -> str:
    """Return an interpreter of the oldest version. Skips the test if it is not installed."""
    homes = sorted((Path.home() / ".pyenv" / "versions").glob(f"{OLDEST}.*/bin/python{OLDEST}"))
    for candidate in (shutil.which(f"python{OLDEST}"), *map(str, homes)):
        if candidate and subprocess.run([candidate, "-c", ""], capture_output=True, check=False).returncode == 0:
            return candidate
    pytest.skip(f"there is no Python {OLDEST}")


class Environment:
    """A virtual environment with exactly these packages, and the project on the path."""

    def __init__(self, folder: Path, python: str, packages: list[str]) -> None:
        self.folder = folder
        subprocess.run([python, "-m", "venv", str(folder)], check=True)
        command = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", *packages]
        installed = subprocess.run(command, capture_output=True, text=True, check=False)
        assert installed.returncode == 0, installed.stderr

    def m2h(self, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
        program = "import sys; sys.argv[0] = 'm2h-deploy'; import cli; cli.main()"
        command = [str(self.folder / "bin" / "python"), "-c", program, *map(str, arguments)]
        kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        env = kept | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
        ran = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env, check=False)
        assert "Traceback" not in ran.stderr, ran.stderr
        return ran

    def good(self, *arguments: object, cwd: Path) -> str:
        """Run a command that must succeed, and return its standard output."""
        ran = self.m2h(*arguments, cwd=cwd)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout


def check_command_line(environment: Environment, cwd: Path) -> None:
    assert "verify" in environment.good("--help", cwd=cwd)
    assert "--overwrite" in environment.good("run", "--help", cwd=cwd)
    for mistake in MISTAKES:
        ran = environment.m2h(*mistake, cwd=cwd)
        assert (ran.returncode, ran.stdout) == (2, ""), (mistake, ran.stdout, ran.stderr)
    assert environment.m2h(cwd=cwd).returncode in (0, 2)  # help; Click's exit code differs between versions
    assert json.loads(environment.good("doctor", "--json", cwd=cwd))["m2h_deploy"]
    assert "onnxruntime" in environment.good("doctor", cwd=cwd)


@pytest.fixture
def place(tmp_path) -> Path:
    (tmp_path / "pictures").mkdir()
    for index in range(2):
        cv2.imwrite(str(tmp_path / "pictures" / f"{index}.png"), render_room(0, index, height=96, width=128).image)
    return tmp_path


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_device(engine, tiny_onnx, place):
    from engines import build_bundle

    environment = Environment(place / "venv", oldest_python(), requirements(engine))
    build_bundle(tiny_onnx, place / "b", engine=engine)
    check_command_line(environment, place)
    assert json.loads(environment.good("run", "b", "pictures", "-o", "o", "--npz", "--json", cwd=place))["frames"] == 2
    environment.good("run", "b", "pictures", "--no-files", "--video", "v.mp4", cwd=place)
    assert environment.m2h("run", "nothing", "pictures", cwd=place).returncode == 2
    assert "m2h-tiny" in environment.good("inspect", "b", cwd=place)
    environment.good("bench", "b", "--duration", "0.2", "--json", cwd=place)
    program = (
        "import sys, numpy as np; from m2h_deploy import Runtime; r = Runtime.load('b'); r(np.zeros((64, 64, 3), 'u1'))"
    )
    subprocess.run(
        [str(environment.folder / "bin" / "python"), "-c", program],
        check=True,
        cwd=place,
        env={"PYTHONPATH": str(ROOT)},
    )


def test_measuring_and_reports(tiny_onnx, tiny_bundle, place):
    extras = ("onnxruntime", "data", "report", "bench", "rerun")
    environment = Environment(place / "venv", oldest_python(), requirements(*extras))
    shutil.copytree(tiny_bundle, place / "b")
    shutil.copy(tiny_onnx, place / "m.onnx")
    check_command_line(environment, place)
    environment.good("rooms", "rooms", "--frames", 8, "--height", 96, "--width", 128, cwd=place)
    files = ("--json", "--html", "p.html", "--junit", "p.xml")
    environment.good("verify", "b", "--reference", "m.onnx", "--data", "rooms", *files, cwd=place)
    load = ("--scenario", "single-stream", "--duration", "0.2", "--html", "b.html", "--csv", "b.csv")
    environment.good("bench", "b", *load, cwd=place)
    environment.good("run", "b", "pictures", "--no-files", "--rerun", "r.rrd", "--fov", 70, cwd=place)
    again = ("run", "b", "pictures", "--no-files", "--rerun", "r.rrd", "--fov", 70)
    environment.good(*again, cwd=place)  # its own recording is recognized
    environment.good("run", "b", "pictures", "--no-files", "--view", "--fov", 70, cwd=place)
    program = (
        "from tests.data.nyuv2_mat import write_mat; from m2h_deploy.data.nyuv2 import NYUv2;"
        "print(NYUv2.from_mat(write_mat('m/nyu_depth_v2_labeled.mat', 2))[0].depth.shape)"
    )
    subprocess.run(
        [str(environment.folder / "bin" / "python"), "-c", program],
        check=True,
        cwd=place,
        env={"PYTHONPATH": str(ROOT)},
    )


def test_maps(open3d, tiny_bundle, place):
    environment = Environment(place / "venv", oldest_python(), requirements("onnxruntime", "map"))
    shutil.copytree(tiny_bundle, place / "b")
    environment.good("rooms", "walk", "--sequence", "--frames", 4, "--height", 96, "--width", 128, cwd=place)
    mapped = json.loads(environment.good("map", "b", "walk", "--truth", "-o", "map", "--json", cwd=place))
    assert [row["kind"] for row in mapped["rows"]] == ["raw", "filtered", "truth"]
    assert (place / "map" / "map.html").is_file()


def test_the_exporter(place):
    torch = pytest.importorskip("torch").__version__.split("+")[0]
    lowest = [text for text in requirements("export", "onnxruntime") if text.split("==")[0] not in WITHOUT_LOWEST]
    # The Python of this environment, where a CPU build of PyTorch is installed.
    environment = Environment(place / "venv", sys.executable, [*lowest, f"torch=={torch}"])
    environment.good("export", "m2h-tiny", "-o", "m.onnx", "--height", 56, "--width", 70, cwd=place)
    environment.good("build", "m.onnx", "-o", "b", cwd=place)
    environment.good("inspect", "m.onnx", "b", cwd=place)
    assert json.loads(environment.good("run", "b", "pictures", "-o", "o", "--json", cwd=place))["frames"] == 2
