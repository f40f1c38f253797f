"""Configuration of a training run, read from a TOML file. The defaults are the paper's recipe (section IV B)."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from m2h_deploy.errors import M2HError
from m2h_deploy.model.config import VARIANTS
from m2h_deploy.training.batches import AugmentConfig


@dataclass(frozen=True)
class DataConfig:
    """Frames of a run. Each is cached on disk once, at `height` x `width`."""

    source: str = "rooms"
    """`rooms` for synthetic rooms, rendered at 320 x 240 and then resized; or a data set's folder or file, see
    `m2h_deploy.data.open_dataset`."""
    split: str = "train"
    height: int = 224
    width: int = 224
    count: int = 0
    """Number of frames; 0 for all of a data set. Required for rooms."""
    seed: int = 0
    """Seed of the series of rooms."""


@dataclass(frozen=True)
class StageConfig:
    """One stage of training, with its own optimizer and schedule."""

    name: str
    epochs: int
    batch_size: int = 8
    frames: int = 0
    """Frames per epoch, drawn anew for each; 0 for all. A smaller number shortens the stage and its schedule."""
    decoder: Literal["m2h", "patch"] = "m2h"
    """`patch` trains the backbone alone, with a small decoder that is then discarded (see `warmstart`)."""
    height: int = 0
    width: int = 0
    """Size of the images in this stage; 0 for the data's."""
    crop: int = 0
    """Side, in patches, of the window of the backbone's output that the decoder is trained on; 0 for all of it. The
    decoder's cost grows with its output, and it computes nearly the same function everywhere in the image."""
    train_backbone: bool = True
    optimizer: Literal["adamw", "muon"] = "adamw"
    """`muon` learns faster from random weights (see `optimizers`); the paper fine-tunes DINOv2 with AdamW."""
    learning_rate: float = 5e-4
    weight_decay: float = 1e-4
    decay_power: float = 0.9
    """The learning rate falls as (1 - progress) to this power, to 0 at the end of the stage."""
    warmup_steps: int = 0
    clip_norm: float = 0.0
    """Largest norm of the gradient; 0 for no limit."""
    alpha: float = 0.5
    """Weight of cross-entropy; 0.75 in fine-tuning (equation 14)."""
    beta: float = 0.75
    """Weight of Dice; 1.0 in fine-tuning (equation 14)."""
    gradient_weight: float = 1.0
    """lambda_grad of the depth loss, 0.5 to 2 (equation 15)."""
    consistency: float = 0.0
    """Weight of the two cross-task losses; 0.1 in fine-tuning (equations 16 and 17)."""
    focal: tuple[float, ...] = ()
    """Focal lengths as fractions of the image's width and height, for normals of depth; empty for the paper's form
    (equation 16a), which does not use a camera."""
    average: float = 0.0
    """Decay per step of the moving average of the weights, which is evaluated and saved; 0 to disable it."""
    teacher_weight: float = 1.0
    """Weight of the distillation losses; ignored without a teacher."""


#: The paper's two stages. The paper does not give their lengths.
PAPER_STAGES = (
    StageConfig("initial", epochs=100),
    StageConfig("fine-tuning", epochs=25, alpha=0.75, beta=1.0, consistency=0.1),
)


@dataclass(frozen=True)
class TrainConfig:
    """Configuration of a whole run."""

    variant: str = "m2h-small"
    seed: int = 0
    preset: Literal["published", "imagenet"] = "published"
    """Normalization of the images; the runtime must use the same one."""
    depth_loss: Literal["indoor", "outdoor", "relative"] = "indoor"
    """The paper's two losses (equations 15a and 15b), or the error relative to the true depth (see `losses`)."""
    checkpoint: str = ""
    """Checkpoint to start from; empty for random weights."""
    backbone: str = ""
    """DINOv2 state dict (.pth) to initialize the backbone with; empty for random weights."""
    teacher: str = ""
    """Checkpoint of a larger M2H to distill from; empty for no distillation."""
    layer_scale: float = 0.0
    """Initial LayerScale of a new backbone; 0 for DINOv2's 1e-5, which suits deep networks and long training."""
    balancing_steps: int = 0
    """Length of a period of dynamic weight averaging, in steps; 0 for an epoch."""
    save_steps: int = 200
    model: Mapping[str, Any] = field(default_factory=dict)
    """Options of `make_config`, for instance `channels` or `head_channels`."""
    data: DataConfig = field(default_factory=DataConfig)
    validation: DataConfig = field(default_factory=lambda: DataConfig(split="val"))
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    stages: tuple[StageConfig, ...] = PAPER_STAGES
    folder: Path = field(default=Path(), repr=False, compare=False, metadata={"toml": False})
    """Folder of the TOML file. It is not part of the run's configuration."""

    def find(self, path: str) -> str:
        """Resolve a path of the file: relative to the file's folder, else to the working directory.

        Names of shipped weights are not paths and are returned unchanged.

        Raises:
            M2HError: neither place has the path.
        """
        beside = self.folder / path
        if beside.is_file() or (beside.is_dir() and path not in VARIANTS):
            return str(beside)
        if path not in VARIANTS and not Path(path).exists():
            places = f"{self.folder.absolute()} (the folder of the config) and in the working directory"
            raise M2HError(f"nothing at {path}: looked in {places}")
        return path


def load_config(path: str | os.PathLike[str], *, training: bool = True) -> TrainConfig:
    """Read the configuration of a run from a TOML file.

    Args:
        path: the TOML file.
        training: False to read and check only what an evaluation needs; `[data]` and the stages are ignored.

    Raises:
        M2HError: the file is missing or damaged, has an unknown key, or a value of the wrong type or out of range.
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise M2HError(f"cannot read the training config {file}: {getattr(error, 'strerror', None) or error}") from None
    return replace(parse_config(text, str(file), training=training), folder=file.absolute().parent)


def parse_config(text: str, origin: str, *, training: bool = True) -> TrainConfig:
    """Parse the text of a TOML file, see `load_config`. `origin` names the file in messages."""
    tomllib = _toml_reader()
    try:
        values = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise M2HError(f"{origin} is not TOML: {error}") from None
    # The file uses the singular, [[stage]], which reads better for a TOML array of tables.
    if "stage" in values:
        values["stages"] = values.pop("stage")
    if not training:
        values = {key: value for key, value in values.items() if key not in ("data", "stages")}
    config: TrainConfig = _build(TrainConfig, values, origin, "")
    if training:
        _check_ranges(config, origin)
    else:
        _check_frames("validation", config.validation, origin)
    return config


def _toml_reader() -> Any:
    # Python 3.10 has no tomllib yet; tomli is the same module.
    return importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")


def _build(kind: type, values: Mapping[str, Any], origin: str, path: str) -> Any:
    hints = get_type_hints(kind)
    known = {f.name: f for f in fields(kind) if f.metadata.get("toml", True)}
    unknown = [key for key in values if key not in known]
    if unknown:
        raise M2HError(f"{origin}: unknown key '{path}{unknown[0]}'; known here are {', '.join(known)}")
    missing = [n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING and n not in values]
    if missing:
        raise M2HError(f"{origin}: '{path}{missing[0]}' is missing")
    return kind(**{key: _value(hints[key], value, origin, f"{path}{key}") for key, value in values.items()})


def _value(hint: Any, value: Any, origin: str, path: str) -> Any:
    if is_dataclass(hint) and isinstance(hint, type) and isinstance(value, Mapping):
        return _build(hint, value, origin, f"{path}.")
    if get_origin(hint) is tuple and isinstance(value, list):
        return tuple(_value(get_args(hint)[0], item, origin, f"{path}[{i}]") for i, item in enumerate(value))
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise M2HError(f"{origin}: {path} is {value!r}: choose one of {', '.join(get_args(hint))}")
        return value
    if get_origin(hint) is not None and isinstance(value, Mapping):
        return {key: tuple(item) if isinstance(item, list) else item for key, item in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(hint, type) or type(value) is not hint:
        raise M2HError(f"{origin}: {path} is {value!r}, must be {getattr(hint, '__name__', 'a table')}")
    return value


# Lowest and highest valid value of each field.
_RANGES: dict[str, tuple[float, float]] = {
    "epochs": (1, 1e6),
    "crop": (0, 1e4),
    "frames": (0, 1e9),
    "batch_size": (2, 1e5),
    "learning_rate": (1e-9, 10),
    "weight_decay": (0, 10),
    "decay_power": (0, 10),
    "warmup_steps": (0, 1e9),
    "clip_norm": (0, 1e9),
    "alpha": (0, 1e3),
    "beta": (0, 1e3),
    "gradient_weight": (0, 1e3),
    "consistency": (0, 1e3),
    "average": (0, 0.999999),
    "teacher_weight": (0, 1e3),
}
_AUGMENT_LIMITS = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "gamma": 0.99, "hue": 0.5, "flip": 1.0}


def _check_ranges(config: TrainConfig, origin: str) -> None:
    if not config.stages:
        raise M2HError(f"{origin}: no [[stage]]")
    for i, stage in enumerate(config.stages):
        if stage.focal and (len(stage.focal) != 2 or not all(0 < value < 100 for value in stage.focal)):
            raise M2HError(
                f"{origin}: stages[{i}].focal is {list(stage.focal)}, must be two shares of width and height"
            )
        for name, (low, high) in _RANGES.items():
            _within(getattr(stage, name), low, high, f"{origin}: stages[{i}].{name}")
    for name, high in _AUGMENT_LIMITS.items():
        _within(getattr(config.augment, name), 0, high, f"{origin}: augment.{name}")
    _check_frames("data", config.data, origin)
    _check_frames("validation", config.validation, origin)
    if (
        (config.data.source, config.data.seed)
        == (config.validation.source, config.validation.seed)
        == (
            "rooms",
            config.data.seed,
        )
    ):
        raise M2HError(f"{origin}: data and validation show the same rooms: give validation another seed")
    _within(config.save_steps, 1, 1e9, f"{origin}: save_steps")


def _check_frames(name: str, data: DataConfig, origin: str) -> None:
    for side in ("height", "width"):
        _within(getattr(data, side), 16, 8192, f"{origin}: {name}.{side}")
    if data.source == "rooms" and data.count < 1:
        raise M2HError(f"{origin}: {name}.count is {data.count}: give the number of rooms")


def _within(value: float, low: float, high: float, what: str) -> None:
    if not low <= value <= high:
        raise M2HError(f"{what} is {value}, must be {low:g} to {high:g}")
