"""Training runs: data, network, stages, and the files that a run writes."""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import torch

from m2h_deploy.choices import TorchDevice, check_choice
from m2h_deploy.data import Dataset, open_dataset
from m2h_deploy.data.rooms.render import Rooms
from m2h_deploy.errors import M2HError
from m2h_deploy.files.atomic import make_folder, scratch_folder, write_text
from m2h_deploy.files.text import finite
from m2h_deploy.model import M2H, build_model, load_checkpoint, save_checkpoint
from m2h_deploy.model.checkpoint import check_finite
from m2h_deploy.model.weights import read_tensors
from m2h_deploy.training.cache import FrameCache, open_cache
from m2h_deploy.training.config import DataConfig, TrainConfig, load_config
from m2h_deploy.training.evaluation import evaluate, table
from m2h_deploy.training.loop import STATE, Run, run_stages
from m2h_deploy.training.parallel import join_group
from m2h_deploy.training.progress import Progress, silent
from m2h_deploy.training.qat import calibration_batches, check_qat, insert_quantizers, without_quantizers
from m2h_deploy.training.record import Record, is_record, plot_record
from m2h_deploy.training.speed import keep_freed_memory
from m2h_deploy.training.state import Position, load_state
from m2h_deploy.training.warmstart import prepare_fresh


def train(
    config: TrainConfig,
    output: str | os.PathLike[str],
    *,
    existing: Literal["refuse", "resume", "replace"] = "refuse",
    device: str = "auto",
    cache: str | os.PathLike[str] | None = None,
    workers: int = 1,
    qat: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Train a network, and evaluate it on the validation frames.

    The folder gets `model.safetensors`, `losses.csv` (one row per step), `losses.png`, `evaluation.json`,
    `evaluation.md` and, until the end, `state.pt`. Under `torchrun` each process takes its share of every batch.

    Args:
        config: the run.
        output: the folder.
        existing: "refuse" a folder with a run, "resume" the run (bit-identical on the same machine), or "replace" it.
        device: `auto`, `cpu` or `cuda`.
        cache: folder of the cached frames; None for `output`/frames.
        workers: processes that read or render the frames.
        qat: fine-tune the config's checkpoint with INT8 rounding. The evaluation is of the rounded network.
        progress: called after each frame, step and evaluated batch.

    Returns:
        The result of `evaluate`; with `qat` also the one before fine-tuning, as `before`. Empty if not leading.

    Raises:
        M2HError: existing run, unreadable data, non-finite loss, or `qat` without a checkpoint or ModelOpt.
        KeyboardInterrupt: after Ctrl-C, with the state saved.
    """
    if qat:
        check_qat(config)
    place = _device(device)
    group = join_group()
    folder = Path(output)
    state = _prepare_folder(folder, config, existing, qat=qat)
    keep_freed_memory()
    frames_root = Path(cache) if cache is not None else folder / "frames"
    if not group.leads:
        group.wait()  # the first process builds the caches
    frames = _frames(config, config.data, frames_root, workers, progress)
    validation = _frames(config, config.validation, frames_root, workers, progress)
    if group.leads:
        group.wait()
    model = _initial_model(config).to(place, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if qat:
        insert_quantizers(model, calibration_batches(config, frames, place))
    teacher = _teacher(config, place)
    work = Run(config, model, frames, folder, place, group=group, teacher=teacher, qat=qat, progress=progress)
    if state is not None:
        _go_on(work, state)
    elif qat and group.leads:  # converted to plain values, which can be saved in a state
        work.before = json.loads(json.dumps(evaluate(model, validation, preset=config.preset, progress=progress)))
    if group.leads:
        work.record = Record(folder / "losses.csv", after=work.position.total)
    run_stages(work)
    return _finish(work, validation) if group.leads else {}


def _go_on(work: Run, state: dict[str, Any]) -> None:
    """Restore a run from its saved state."""
    work.model.load_state_dict(state["model"])
    work.position, work.saved, work.before = Position(**state["position"]), state["stage"], state.get("before", {})


def evaluate_checkpoint(
    checkpoint: str | os.PathLike[str],
    config_path: str | os.PathLike[str],
    *,
    device: str = "auto",
    cache: str | os.PathLike[str] | None = None,
    workers: int = 1,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Evaluate a checkpoint on the validation frames of a training config, normalized as in that run.

    The checkpoint may come from another run. Only `[validation]` and `preset` of the config are used.

    Args:
        checkpoint: a path, or the name of the embedded default.
        config_path: the TOML file.
        device: `auto`, `cpu` or `cuda`.
        cache: folder that keeps the frames; None to delete them afterwards.
        workers: processes that read or render the frames.
        progress: called after each frame and batch.

    Returns:
        The result of `evaluate`.

    Raises:
        M2HError: the checkpoint, the config or the data cannot be read.
    """
    config = load_config(config_path, training=False)
    model = load_checkpoint(checkpoint).to(_device(device))
    with ExitStack() as stack:
        root = cache if cache is not None else stack.enter_context(scratch_folder("m2h-frames-"))
        frames = _frames(config, config.validation, Path(root), workers, progress)
        return evaluate(model, frames, preset=config.preset, progress=progress)


def interrupted_message(output: str | os.PathLike[str], *, overwrite: bool = False) -> str:
    """Describe what an interrupted run left in its folder, and how to continue it.

    Args:
        output: the run's folder.
        overwrite: whether the command had `--overwrite`.
    """
    state = Path(output) / STATE
    if state.is_file():
        resume = "--resume in place of --overwrite" if overwrite else "--resume"
        return f"interrupted: the state is saved in {state}; the same command with {resume} goes on from there"
    return f"interrupted before a step was saved: nothing to resume in {output}; the same command starts anew"


#: Files of a finished run; the network is written last.
_RESULTS = ["losses.csv", "losses.png", "evaluation.json", "evaluation.md", "model.safetensors"]


def _prepare_folder(folder: Path, config: TrainConfig, existing: str, *, qat: bool) -> dict[str, Any] | None:
    """Create the run's folder; return the state to resume from, or None."""
    state_file = folder / STATE
    if state_file.is_file() and existing != "replace":
        if existing != "resume":
            raise M2HError(f"{folder} holds an unfinished run: give --resume, another folder, or --overwrite")
        state = load_state(state_file)
        if state["config"] != repr(config):
            raise M2HError(f"{folder} holds a run with another config: resume it with its own, or give another folder")
        if state.get("qat", False) != qat:
            raise M2HError(f"{folder} holds a run {'without' if qat else 'with'} --qat: resume it the same way")
        return state
    there = [name for name in _RESULTS if (folder / name).exists()]
    begun = there == _RESULTS[:1] and is_record(folder / there[0])  # stopped before a state was saved
    if there and not begun and existing != "replace":
        held = f"{folder} holds a finished run, or other files of these names ({there[-1]})"
        raise M2HError(f"{held}: give another folder, or --overwrite")
    state_file.unlink(missing_ok=True)
    make_folder(folder)
    return None


def _device(name: str) -> torch.device:
    check_choice("device", name, TorchDevice)
    if name == "cuda" and not torch.cuda.is_available():
        raise M2HError("no CUDA device that this PyTorch can use: choose cpu, or install PyTorch for CUDA")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def _frames(config: TrainConfig, data: DataConfig, root: Path, workers: int, progress: Progress) -> FrameCache:
    dataset: Dataset
    if data.source == "rooms":
        dataset, key = Rooms(data.count, data.seed), f"rooms {data.seed}"
    else:
        source = config.find(data.source)
        dataset, key = open_dataset(source, split=data.split), f"{Path(source).resolve()} {data.split}"
    size = (data.height, data.width)
    return open_cache(dataset, key, root, size, count=data.count, workers=workers, progress=progress)


def _initial_model(config: TrainConfig) -> M2H:
    torch.manual_seed(config.seed)
    if config.checkpoint:
        return load_checkpoint(config.find(config.checkpoint))
    model = build_model(config.variant, **config.model)
    prepare_fresh(model, config.layer_scale)
    if config.backbone:
        _load_backbone(model, Path(config.find(config.backbone)))
    return model


def _load_backbone(model: M2H, file: Path) -> None:
    tensors = {name: tensor.float() for name, tensor in read_tensors(file)[0].items()}
    check_finite(tensors, file)
    try:
        model.backbone.load_state_dict(tensors)
    except RuntimeError as error:
        last = (str(error).splitlines() or ["not a state dict"])[-1].strip()
        raise M2HError(f"{file} is not a DINOv2 state dict for {model.config.backbone.name}: {last[:120]}") from None


def _teacher(config: TrainConfig, device: torch.device) -> M2H | None:
    if not config.teacher:
        return None
    return load_checkpoint(config.find(config.teacher)).to(device).requires_grad_(False).eval()


def _finish(work: Run, validation: FrameCache) -> dict[str, Any]:
    result = evaluate(work.model, validation, preset=work.config.preset, progress=work.progress)
    if work.qat:
        result["before"] = work.before
    folder = work.folder
    write_text(folder / "evaluation.json", json.dumps(finite(result), indent=2))
    write_text(folder / "evaluation.md", table(result))
    plot_record(folder / "losses.csv", folder / "losses.png")
    save_checkpoint(without_quantizers(work.model) if work.qat else work.model, folder / "model.safetensors")
    (folder / STATE).unlink()
    return result
