"""Check the files around the code: versions, citation, changelog, hooks, workflow, templates, container, wheel."""

from __future__ import annotations

import re
import subprocess
import sys

import check_jsonschema
import pytest
import yaml
from click.testing import CliRunner

from m2h_deploy.version import __version__
from tests.cli.test_first_steps import project
from tests.pages import REPOSITORY

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PYPROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
WORKFLOW = yaml.safe_load((REPOSITORY / ".github" / "workflows" / "ci.yml").read_text())
FORMS = [f".github/ISSUE_TEMPLATE/{name}.yml" for name in ("bug_report", "feature_request")]


def text(name: str) -> str:
    return (REPOSITORY / name).read_text()


def recipe(target: str) -> list[str]:
    """Return the commands of a target of the Makefile, with the name of the environment's folder."""
    lines = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", text("Makefile"), re.MULTILINE)
    return [line.strip().replace("$(BIN)", ".venv/bin") for line in lines[1].splitlines()]


def commands(job: str) -> list[str]:
    return [step["run"] for step in WORKFLOW["jobs"][job]["steps"] if "run" in step]


def test_every_file_that_states_the_version_agrees():
    citation = yaml.safe_load(text("CITATION.cff"))
    found = {
        "CITATION.cff": citation["version"],
        "CHANGELOG.md": re.findall(r"^## (\S+)", text("CHANGELOG.md"), re.MULTILINE)[0],
        "cpp/CMakeLists.txt": re.search(r"project\(m2h VERSION (\S+)", text("cpp/CMakeLists.txt"))[1],
        "ros2/package.xml": re.search(r"<version>(.*)</version>", text("ros2/package.xml"))[1],
        "ros2/setup.py": re.search(r'version="(.*)"', text("ros2/setup.py"))[1],
    }
    assert found == dict.fromkeys(found, __version__)
    assert citation["license"] == project()["license"]
    assert citation["preferred-citation"]["url"] == project()["urls"]["Paper"]


def test_the_changelog_has_the_form_of_keep_a_changelog():
    headings = re.findall(r"^(##+) (.*)$", text("CHANGELOG.md"), re.MULTILINE)
    versions = [title for level, title in headings if level == "##"]
    assert all(re.fullmatch(r"\d+\.\d+\.\d+ - (unreleased|\d{4}-\d\d-\d\d)", title) for title in versions)
    kinds = [title for level, title in headings if level == "###"]
    assert set(kinds) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert versions and kinds


@pytest.mark.parametrize(
    ("schema", "names"),
    [
        ("citation-file-format", ["CITATION.cff"]),
        ("github-workflows", [".github/workflows/ci.yml"]),
        ("github-issue-forms", FORMS),
        ("github-issue-config", [".github/ISSUE_TEMPLATE/config.yml"]),
    ],
)
def test_a_file_follows_its_schema(schema, names, tmp_path):
    command = ["--builtin-schema", f"vendor.{schema}"]
    checked = CliRunner().invoke(check_jsonschema.main, [*command, *(str(REPOSITORY / name) for name in names)])
    assert checked.exit_code == 0, checked.output
    (tmp_path / "wrong.yml").write_text("jobs: 3\n")
    assert CliRunner().invoke(check_jsonschema.main, [*command, str(tmp_path / "wrong.yml")]).exit_code == 1


def test_hooks_run_the_commands_of_make_lint():
    hooks = yaml.safe_load(text(".pre-commit-config.yaml"))["repos"][0]["hooks"]
    assert [hook["entry"] for hook in hooks] == recipe("lint")


def test_the_workflow_runs_the_commands_of_ci_on_every_python():
    matrix = WORKFLOW["jobs"]["test"]["strategy"]["matrix"]["python"]
    declared = [name.rpartition(" ")[2] for name in project()["classifiers"] if re.search(r"Python :: 3\.", name)]
    assert matrix == declared
    assert project()["requires-python"] == f">={declared[0]}"
    ran = {word for job in ("test", "groups") for line in commands(job) for word in re.findall(r"make (\S+)", line)}
    assert ran == set(re.search(r"for target in (.*);", text(".ci/run"))[1].split())


def test_every_target_that_the_workflow_runs_exists():
    phony = set(re.search(r"^\.PHONY: (.*)$", text("Makefile"), re.MULTILINE)[1].split())
    lines = [line for job in WORKFLOW["jobs"] for line in commands(job) if line.startswith("make ")]
    assert len(lines) == 5
    targets = {word for line in lines for word in line.split()[1:] if "=" not in word}
    assert targets <= phony


def test_the_container_gets_what_the_wheel_is_made_of():
    """`.dockerignore` leaves out all but these paths."""
    target = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {*target["only-include"], *target["force-include"], *project()["license-files"], project()["readme"]}
    allowed = {line[1:] for line in text(".dockerignore").splitlines() if line.startswith("!")}
    assert allowed == {*needed, "pyproject.toml", "constraints.txt"}
    named = re.findall(r"EXTRAS=([a-z,]+)", text("Dockerfile"))
    assert named
    assert {extra for group in named for extra in group.split(",")} <= set(project()["optional-dependencies"])


def test_every_package_that_the_makefile_installs_by_name_is_pinned():
    lines = re.findall(r"\$\(PIP\) (.*)$", text("Makefile"), re.MULTILINE)
    constrained = [line for line in lines if line.startswith("--constraint constraints.txt ")]
    assert len(lines) - len(constrained) == 1  # Triton's environment needs NumPy 1
    named = {word for line in constrained for word in line.split() if re.fullmatch(r"[a-z][a-z0-9-]*", word)}
    pinned = {line.partition("==")[0] for line in text("constraints.txt").splitlines()}
    assert {"build", "twine"} <= named <= pinned


def test_the_workflow_keeps_the_distributions_from_where_they_are_built():
    folder = re.search(r"^DIST +:= (\S+)$", text("Makefile"), re.MULTILINE)[1]
    kept = [step["with"]["path"] for step in WORKFLOW["jobs"]["package"]["steps"] if "upload" in step.get("uses", "")]
    assert kept == [f"{folder}/"]


def wheel_tool(*arguments: object) -> subprocess.CompletedProcess[str]:
    script = str(REPOSITORY / ".ci" / "try_wheel.py")
    return subprocess.run([sys.executable, script, *map(str, arguments)], capture_output=True, text=True)


def test_a_python_that_cannot_be_used_fails_and_is_named(tmp_path):
    missing, failing = tmp_path / "missing", tmp_path / "failing"
    failing.write_text("#!/bin/sh\necho no module named venv >&2\nexit 3\n")
    failing.chmod(0o755)
    tried = wheel_tool(tmp_path / "m2h_deploy-0.1.0-py3-none-any.whl", missing, failing)
    assert (tried.returncode, tried.stdout) == (1, "")
    assert f"error: {missing}: [Errno 2]" in tried.stderr
    assert (
        f"error: {failing}: {failing} -m venv" in tried.stderr and "ended with 3:\nno module named venv" in tried.stderr
    )
