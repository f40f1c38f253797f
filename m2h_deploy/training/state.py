"""Save and load the state of a training run in one file, written atomically."""

from __future__ import annotations

import pickle
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from m2h_deploy.causes import failure
from m2h_deploy.errors import M2HError
from m2h_deploy.files.atomic import whole_file

_VERSION = 1


@dataclass(frozen=True)
class Position:
    """Position in a run: stage, epoch in it, steps done in that epoch, steps done in the run; all start at 0."""

    stage: int = 0
    epoch: int = 0
    step: int = 0
    total: int = 0


def save_state(path: Path, values: dict[str, Any]) -> None:
    """Write the values and the states of the random generators, atomically.

    Args:
        path: the file.
        values: tensors, numbers, strings, and lists and dictionaries of them.
    """
    with whole_file(path) as temporary:
        torch.save({"version": _VERSION, "values": values, "random": _random_state()}, temporary)


def load_state(path: Path) -> dict[str, Any]:
    """Read the values of `save_state`, and restore the random generators. No code in the file is executed.

    Raises:
        M2HError: the file is missing or damaged, or has another version.
    """
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
        version, values, states = (loaded[key] for key in ("version", "values", "random"))
    except (OSError, RuntimeError, EOFError, KeyError, TypeError, ValueError, pickle.UnpicklingError) as error:
        damaged = f"{path} is not a training state: delete it to start the run anew"
        raise failure(error, f"cannot read {path}", damaged) from None
    if version != _VERSION:
        raise M2HError(f"{path} is a training state of version {version}, expected {_VERSION}: start a new run")
    _set_random_state(states)
    return dict(values)


def _random_state() -> dict[str, Any]:
    kind, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002 (libraries may draw from it)
    version, internal, next_gauss = random.getstate()
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": [kind, torch.from_numpy(np.asarray(keys, np.int64)), position, has_gauss, gauss],
        "python": [version, list(internal), next_gauss],
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    kind, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))  # noqa: NPY002
    version, internal, next_gauss = state["python"]
    random.setstate((version, tuple(internal), next_gauss))
    cuda: list[Tensor] = state.get("cuda", [])
    if cuda and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(cuda)
