"""Test the TOML file of a run: the paper's defaults, and one-line errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from m2h_deploy.errors import M2HError
from m2h_deploy.training import load_config
from m2h_deploy.training.config import parse_config
from m2h_deploy.training.loop import learning_rate

ROOMS = "[data]\ncount = 4\n[validation]\ncount = 2\nseed = 1\n"
CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.toml"))


def test_the_defaults_are_the_papers_recipe() -> None:
    config = parse_config(ROOMS, "paper.toml")
    initial, fine = config.stages
    for stage in (initial, fine):
        assert (stage.learning_rate, stage.weight_decay, stage.decay_power) == (5e-4, 1e-4, 0.9)
    assert (initial.alpha, initial.beta, initial.consistency) == (0.5, 0.75, 0.0)
    assert (fine.alpha, fine.beta, fine.consistency) == (0.75, 1.0, 0.1)
    assert 0.5 <= initial.gradient_weight <= 2


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_the_configs_of_the_repository_are_valid(path: Path) -> None:
    load_config(path)


def test_tables_lists_and_options_are_read() -> None:
    text = ROOMS + "[model]\nhead_channels = [24, 16]\n[augment]\nflip = 0\n[[stage]]\nname = 'a'\nepochs = 3\n"
    config = parse_config(text, "x.toml")
    assert config.model == {"head_channels": (24, 16)}
    assert config.augment.flip == 0.0 and isinstance(config.augment.flip, float)
    assert [(stage.name, stage.epochs) for stage in config.stages] == [("a", 3)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rat = 1.0", "unknown key 'learning_rat'"),
        ("[augment]\nblur = 1", "unknown key 'augment.blur'"),
        ("[[stage]]\nname = 'a'\nepochs = 1\nlr = 1", r"unknown key 'stages\[0\]\.lr'"),
        ("[[stage]]\nname = 'a'", "'stages.0..epochs' is missing"),
        ("seed = 'one'", "seed is 'one', must be int"),
        ("seed = true", "seed is True, must be int"),
        ("depth_loss = 'space'", "choose one of indoor, outdoor, relative"),
        ("[[stage]]\nname = 'a'\nepochs = 0", "epochs is 0, must be 1 to"),
        ("[[stage]]\nname = 'a'\nepochs = 1\nlearning_rate = inf", "learning_rate is inf"),
        ("[[stage]]\nname = 'a'\nepochs = 1\nlearning_rate = nan", "learning_rate is nan"),
        ("[augment]\nhue = 0.6", "augment.hue is 0.6, must be 0 to 0.5"),
        ("stage = 3", "stages is 3"),
        ("stage = []", "no .*stage"),
        ("a = = 1", "is not TOML"),
        pytest.param(f"a = {'[' * 10_000}", "is not TOML", id="nested too deeply"),
    ],
)
def test_mistakes_are_named_in_one_line(text: str, message: str) -> None:
    # Top-level keys must come before the tables.
    with pytest.raises(M2HError, match=message) as error:
        parse_config(f"{text}\n{ROOMS}", "x.toml")
    assert str(error.value).startswith("x.toml") and "\n" not in str(error.value)


def test_training_and_validation_must_not_show_the_same_rooms() -> None:
    with pytest.raises(M2HError, match="same rooms"):
        parse_config("[data]\ncount = 4\n[validation]\ncount = 2\n", "x.toml")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(M2HError, match=r"cannot read the training config .*none\.toml"):
        load_config(tmp_path / "none.toml")


def test_the_learning_rate_warms_up_and_decays_as_a_polynomial() -> None:
    (stage,) = parse_config(
        ROOMS + "[[stage]]\nname = 'a'\nepochs = 1\nlearning_rate = 2.0\nwarmup_steps = 2\n", "x.toml"
    ).stages
    rates = [learning_rate(stage, step, 10) for step in range(10)]
    assert rates[0] == pytest.approx(1.0)
    assert rates[4] == pytest.approx(2.0 * 0.6**0.9)
    assert rates[9] == pytest.approx(2.0 * 0.1**0.9)


def test_paths_are_relative_to_the_config_and_then_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, elsewhere = tmp_path / "recipe", tmp_path / "elsewhere"
    for folder, names in {recipe: ("both", "beside"), elsewhere: ("both", "here", "m2h-tiny")}.items():
        folder.mkdir()
        for name in names:
            (folder / name).write_text("")
    (recipe / "m2h-tiny").mkdir()  # a run's folder of that name must not hide the shipped weights
    (recipe / "run.toml").write_text(ROOMS)
    monkeypatch.chdir(elsewhere)
    config = load_config("../recipe/run.toml")
    assert Path(config.find("both")).samefile(recipe / "both")
    assert Path(config.find("beside")).samefile(recipe / "beside")
    assert config.find("here") == "here"
    assert config.find("m2h-tiny") == "m2h-tiny"
    assert config.find(str(elsewhere / "both")) == str(elsewhere / "both")
    with pytest.raises(M2HError, match=r"nothing at none\.pt: looked in .*recipe.*working directory") as error:
        config.find("none.pt")
    assert "\n" not in str(error.value)


def test_a_run_does_not_depend_on_the_folder_of_its_config(tmp_path: Path) -> None:
    """A run that was moved with its config can be resumed."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "run.toml").write_text(ROOMS)
    one, two = (load_config(tmp_path / folder / "run.toml") for folder in ("a", "b"))
    assert one == two and repr(one) == repr(two) and one.folder != two.folder
    with pytest.raises(M2HError, match="unknown key 'folder'"):
        parse_config(f"folder = 'a'\n{ROOMS}", "x.toml")


def test_an_evaluation_needs_only_the_validation_frames(tmp_path: Path) -> None:
    file = tmp_path / "evaluation.toml"
    file.write_text("stage = []\n[data]\nsauce = 3\n[validation]\ncount = 2\n")
    assert load_config(file, training=False).validation.count == 2
    with pytest.raises(M2HError):
        load_config(file)
    file.write_text("[validaton]\ncount = 2\n")
    with pytest.raises(M2HError, match="unknown key 'validaton'"):
        load_config(file, training=False)
    file.write_text("[data]\ncount = 4\n")
    with pytest.raises(M2HError, match=r"validation\.count is 0: give the number of rooms"):
        load_config(file, training=False)
