"""Test how groups of tests are skipped and required, and how .ci/run runs all targets and sums them up."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from m2h_deploy.mapping.open3d import SYSTEM_PACKAGES
from tests.conftest import GROUPS
from tests.pages import REPOSITORY

TESTS = """
import pytest

@pytest.mark.ros2
def test_node(): pass

@pytest.mark.ros2
def test_that_skips(): pytest.skip("no camera")

@pytest.mark.ros2
@pytest.mark.slow
def test_for_five_minutes(): pass

@pytest.mark.cpp
def test_frames(shared): pass

def test_plain(): pass
"""


def outcomes(folder: Path, *options: str) -> tuple[int, dict[str, str]]:
    """Run `TESTS` with this conftest, without shared data; return the exit code and each test's outcome and message."""
    (folder / "test_groups.py").write_text(TESTS)
    (folder / "nowhere.py").write_text("from tests import conftest\nconftest.SHARED = conftest.Path('nowhere')\n")
    xml = folder / "results.xml"
    plugins = ["-p", "tests.conftest", "-p", "nowhere", "-p", "no:cacheprovider"]
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "test_groups.py", *plugins, f"--junit-xml={xml}", *options],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{folder}"},
        capture_output=True,
        text=True,
    )
    assert xml.is_file(), ran.stdout + ran.stderr
    found = {}
    for case in ElementTree.parse(xml).getroot().iter("testcase"):
        told = next(iter(case), None)
        found[case.get("name")] = "passed" if told is None else f"{told.tag}: {told.get('message')}"
    return ran.returncode, found


def test_without_its_option_a_group_is_skipped_and_the_reason_names_the_command(tmp_path):
    assert outcomes(tmp_path) == (
        0,
        {
            "test_node": "skipped: `make test-ros2` runs it",
            "test_that_skips": "skipped: `make test-ros2` runs it",
            "test_for_five_minutes": "skipped: `make test-ros2 SELECT=slow` runs it",
            "test_frames": "skipped: `make test-cpp` runs it",
            "test_plain": "passed",
        },
    )


def test_a_skip_in_a_required_group_is_a_failure(tmp_path):
    code, found = outcomes(tmp_path, "--require=ros2")
    assert code == 1
    assert found["test_node"] == found["test_for_five_minutes"] == "passed"
    assert found["test_that_skips"] == "failure: skipped, which --require ros2 does not allow: no camera"
    assert found["test_frames"] == "skipped: `make test-cpp` runs it"


def test_data_that_is_not_in_the_repository_may_be_missing_in_a_required_group(tmp_path):
    code, found = outcomes(tmp_path, "--require=cpp", "-m", "cpp")
    assert (code, found) == (0, {"test_frames": "skipped: no shared data beside the repository"})


@pytest.mark.parametrize(
    ("python", "words"),
    [
        ("nowhere/python", "M2H_OTHER_PYTHON: cannot start nowhere/python"),
        (sys.executable, "No module named 'no_such_module'; name another one in M2H_OTHER_PYTHON"),
    ],
)
def test_an_interpreter_that_does_not_fit_fails_the_test(monkeypatch, python, words):
    from tests.interpreters import interpreter

    monkeypatch.setenv("M2H_OTHER_PYTHON", python)
    with pytest.raises(pytest.fail.Exception) as failure:
        interpreter("M2H_OTHER_PYTHON", "import no_such_module")
    assert words in str(failure.value)
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize("group", GROUPS)
def test_every_group_has_a_mark_and_a_target_that_ci_runs(pytestconfig, group):
    assert any(mark.startswith(f"{group}: ") for mark in pytestconfig.getini("markers"))
    assert f"\ntest-{group}:" in (REPOSITORY / "Makefile").read_text()
    assert f" test-{group}" in (REPOSITORY / ".ci" / "run").read_text()


def results(**cases: str) -> str:
    """Write JUnit XML of tests, each with a child element."""
    body = "".join(f'<testcase classname="tests.a" name="{name}">{child}</testcase>' for name, child in cases.items())
    return f'<testsuites><testsuite time="60">{body}</testsuite></testsuites>'


SKIP = '<skipped message="no camera"/>'


def summary(folder: Path, *targets: str) -> tuple[int, list[str]]:
    command = [sys.executable, str(REPOSITORY / ".ci" / "summary.py"), str(folder), *targets]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stderr == ""
    return done.returncode, done.stdout.splitlines()


def test_a_test_that_another_target_runs_is_not_skipped(tmp_path):
    (tmp_path / "test.xml").write_text(results(plain="", node=SKIP, camera=SKIP))
    (tmp_path / "test-ros2.xml").write_text(results(node="", camera=SKIP))
    code, lines = summary(tmp_path, "test", "test-ros2")
    assert code == 0
    assert lines == [
        "skipped 1: no camera",
        "test: 1 passed, 0 failed, 2 skipped in 1.0 minutes",
        "test-ros2: 1 passed, 0 failed, 1 skipped in 1.0 minutes",
        "all: 2 passed, 0 failed, 1 skipped in 2.0 minutes",
    ]


@pytest.mark.parametrize("fault", ["failure", "error"])
def test_a_failure_anywhere_and_an_error_of_a_fixture_count_as_failed(tmp_path, fault):
    (tmp_path / "test.xml").write_text(results(node=f"<{fault}/>"))
    (tmp_path / "test-ros2.xml").write_text(results(node=""))
    code, lines = summary(tmp_path, "test", "test-ros2")
    assert (code, lines[-1]) == (1, "all: 0 passed, 1 failed, 0 skipped in 2.0 minutes")


def test_a_target_without_results_is_named_and_fails(tmp_path):
    (tmp_path / "test.xml").write_text(results(plain=""))
    (tmp_path / "test-cpp.xml").write_text("<testsuites>")
    code, lines = summary(tmp_path, "test", "test-ros2", "test-cpp")
    assert code == 1
    assert lines[-1] == "all: 1 passed, 0 failed, 0 skipped in 1.0 minutes; no results of test-ros2, test-cpp"


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
@pytest.mark.parametrize("broken", [None, "test", "test-cpp"])
def test_all_targets_run_even_if_one_fails_and_the_last_line_sums_up(tmp_path, broken):
    """Run the real script on a Makefile whose targets write one result each."""
    shutil.copytree(REPOSITORY / ".ci", tmp_path / ".ci")
    (tmp_path / ".ci" / "system-packages").write_text("#!/bin/sh\n")  # the tests install nothing
    (tmp_path / "results.xml").write_text(results(plain=""))
    targets = ["test", *(f"test-{group}" for group in GROUPS)]
    recipe = "\tmkdir -p build/junit && echo $@ >> ran && cp results.xml build/junit/$@.xml && test $@ != '{}'\n"
    (tmp_path / "Makefile").write_text("".join(f"{target}:\n{recipe.format(broken)}" for target in targets))
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run([tmp_path / ".ci" / "run"], env=environment, capture_output=True, text=True)
    assert (tmp_path / "ran").read_text().split() == targets
    assert done.returncode == (0 if broken is None else 1), done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "all: 1 passed, 0 failed, 0 skipped in 4.0 minutes"


def test_missing_system_packages_are_named_in_one_line(tmp_path):
    """With an empty path, every package is missing."""
    bash = shutil.which("bash")
    script = [bash, str(REPOSITORY / ".ci" / "system-packages")]
    environment = {"PATH": str(tmp_path)}
    checked = subprocess.run([*script, "cpp"], env=environment, capture_output=True, text=True)
    assert checked.returncode == 1
    assert re.fullmatch(r"error: the cpp .*: apt-get install .* cmake .*nlohmann-json3-dev.*\n", checked.stderr)
    listed = subprocess.run(
        [*script, "--list", "cpp", "map", "serving"], env=environment, capture_output=True, text=True
    )
    assert listed.returncode == 0
    assert {"cmake", "g++", "nlohmann-json3-dev", *SYSTEM_PACKAGES} <= set(listed.stdout.split())
    environment["SERVING_PYTHON"] = str(tmp_path / "python")
    wrong = subprocess.run([*script, "serving"], env=environment, capture_output=True, text=True)
    assert (wrong.returncode, wrong.stderr) == (2, f"error: SERVING_PYTHON: cannot start {tmp_path / 'python'}\n")
