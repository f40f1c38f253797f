"""Test the options of all commands: full names in the help, one meaning each, one-line errors."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest
import typer

import cli
from cli.bench import QueuePolicyName, ScenarioName
from cli.console import print_json
from engines import ENGINES, build_bundle
from m2h_deploy.backends import KINDS
from m2h_deploy.backends.onnxruntime import PROVIDERS
from m2h_deploy.choices import Engine, Preset, Provider, QueuePolicy, Scenario
from m2h_deploy.parity import verify
from m2h_deploy.parity.locate import locate_in_bundle
from m2h_deploy.runtime.preprocess import PRESETS
from tests.commands import done, m2h, mistake, one_line, refused

COMMANDS: dict[str, Any] = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]

#: Options that have one meaning and different values in two commands: a file or a folder to write; the device of an
#: engine or of PyTorch; any split of a data set, or one that `rooms` makes.
OF_TWO_KINDS = {"--output", "--device", "--split"}


def options(command: str) -> dict[str, Any]:
    """Return a command's options by their long name."""
    named = [(name, option) for option in COMMANDS[command].params for name in (*option.opts, *option.secondary_opts)]
    return {name: option for name, option in named if name.startswith("--")}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_help_page_of_80_columns_shows_full_names(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    page = done(command, "--help")
    assert [name for name in options(command) if f" {name} " not in page] == []


def test_an_option_of_several_commands_takes_the_same_values_in_all():
    kinds: dict[str, set[str]] = {}
    for command in COMMANDS:
        for name, option in options(command).items():
            kinds.setdefault(name, set()).add(f"{option.metavar}, {option.is_flag}")
    assert {name for name, seen in kinds.items() if len(seen) > 1} == OF_TWO_KINDS


def test_results_as_json_are_a_flag_everywhere():
    flags = {command: options(command)["--json"].is_flag for command in COMMANDS if "--json" in options(command)}
    assert set(flags.values()) == {True}
    assert {"export", "build", "verify", "bench", "run", "serve", "inspect", "doctor", "train", "evaluate"} <= set(
        flags
    )


def test_only_verify_and_bench_have_the_option_record():
    assert [command for command in COMMANDS if "--record" in options(command)] == ["verify", "bench"]


def test_a_command_that_opens_an_engine_takes_its_device():
    opening = {"verify", "calibrate", "bench", "run", "map", "serve", "quickstart"}
    assert {command for command in COMMANDS if "--device" in options(command)} == opening | {"train", "evaluate"}


def test_choices_match_the_library():
    assert set(get_args(Engine)) == set(ENGINES) == set(KINDS)
    assert set(get_args(Provider)) == set(PROVIDERS)
    assert set(get_args(Preset)) == set(PRESETS)
    assert tuple(name.value for name in ScenarioName) == get_args(Scenario)
    assert tuple(name.value for name in QueuePolicyName) == get_args(QueuePolicy)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("build",), "Missing argument 'model': see m2h-deploy build --help"),
        (("build", "m.onnx", "--engine", "tflite"), "'onnxruntime', 'openvino'"),
        (("export", "m2h-tiny", "--preset", "mine"), "'published', 'imagenet'"),
        (("run", "bundle", "pictures", "--fps", "3"), "No such option: --fps"),
        (("fly",), "No such command 'fly'"),
    ],
)
def test_an_invalid_option_gives_a_one_line_error(words, says, tmp_path):
    assert says in one_line(m2h(*words, cwd=tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_json_goes_to_stdout_or_to_a_file_that_a_later_command_replaces(tmp_path):
    printed = json.loads(done("doctor", "--json"))
    for _ in range(2):
        assert done("doctor", "--json", tmp_path / "doctor.json") == ""
    written = json.loads((tmp_path / "doctor.json").read_text())
    assert written.pop("tool").startswith("m2h-deploy ")
    assert written.keys() == printed.keys()
    assert json.loads(done("doctor", "--json"))  # on stdout again


def test_a_file_for_json_is_checked_before_the_work(tiny_bundle, tmp_path):
    (tmp_path / "mine.json").write_text("{}")
    assert "m2h-deploy did not write it" in mistake("doctor", "--json", tmp_path / "mine.json")
    assert "there is no folder" in mistake("doctor", "--json", tmp_path / "none" / "a.json")
    assert "holds only its files" in mistake("inspect", tiny_bundle, "--json", tiny_bundle / "a.json")
    assert "must end in .json" in mistake("doctor", f"--json={tmp_path / 'a.txt'}")
    assert (tmp_path / "mine.json").read_text() == "{}"


@pytest.mark.parametrize(
    ("options", "needs"),
    [
        (("--camera-policy", "queue"), "--camera RATE"),
        (("--camera", 30, "--camera-queue", 2), "--camera-policy queue"),
        (("--qps", 3), "--scenario"),
        (("--deadline", 5), "a camera or a scenario"),
        (("--reference", "m2h-tiny"), "--peers"),
        (("--built-from", "m.onnx", "--no-layers"), "--no-layers"),
    ],
)
def test_bench_refuses_options_without_effect(tiny_bundle, options, needs):
    assert needs in mistake("bench", tiny_bundle, *options)


def test_json_has_no_nan(capsys):
    print_json({"miou": float("nan"), "rows": [float("inf"), 1.5]})
    assert json.loads(capsys.readouterr().out) == {"miou": None, "rows": [None, 1.5]}


def test_locating_in_a_compiled_engine_is_refused_before_the_measurement(tiny_onnx, tmp_path):
    bundle = build_bundle(tiny_onnx, tmp_path / "b", engine="openvino")
    assert "does not show its intermediate values" in refused(
        verify, bundle.path, tiny_onnx, "no data", locate=locate_in_bundle
    )
