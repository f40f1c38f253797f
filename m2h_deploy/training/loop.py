"""Training loop: stages, optimizer and schedule, balancing, weight averaging, saving and resuming."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from m2h_deploy.errors import M2HError
from m2h_deploy.model import M2H
from m2h_deploy.runtime.preprocess import PRESETS
from m2h_deploy.training.balancing import LossHistory, task_weights
from m2h_deploy.training.cache import FrameCache
from m2h_deploy.training.config import StageConfig, TrainConfig
from m2h_deploy.training.distillation import distillation_losses
from m2h_deploy.training.forward import forward
from m2h_deploy.training.interrupt import Interrupt
from m2h_deploy.training.loader import Feed, Sample
from m2h_deploy.training.losses import Camera
from m2h_deploy.training.objective import BALANCED, consistency_losses, task_losses
from m2h_deploy.training.optimizers import Optimizer
from m2h_deploy.training.parallel import Group
from m2h_deploy.training.progress import Progress, losses_note, silent
from m2h_deploy.training.record import Record
from m2h_deploy.training.speed import CPUAttention
from m2h_deploy.training.state import Position, save_state
from m2h_deploy.training.warmstart import PatchNetwork


@dataclass
class Balance:
    """State of dynamic weight averaging: the history, and the sums of the current period."""

    history: LossHistory = field(default_factory=LossHistory)
    sums: dict[str, float] = field(default_factory=lambda: dict.fromkeys(BALANCED, 0.0))
    steps: int = 0

    def add(self, losses: dict[str, float]) -> None:
        """Add the losses of one step to the current period."""
        for task in BALANCED:
            self.sums[task] += losses[task]
        self.steps += 1

    def end_period(self) -> None:
        """Append the mean losses of the period to the history and start a new period. Without steps, do nothing."""
        if self.steps:
            self.history = self.history.after({task: total / self.steps for task, total in self.sums.items()})
            self.sums, self.steps = dict.fromkeys(BALANCED, 0.0), 0


@dataclass
class Run:
    """State of a training run. `position` is where the next step begins."""

    config: TrainConfig
    model: M2H
    frames: FrameCache
    folder: Path
    device: torch.device
    group: Group = field(default_factory=Group)
    teacher: M2H | None = None
    position: Position = field(default_factory=Position)
    record: Record | None = None
    """None in processes other than the leading one."""
    saved: dict[str, Any] = field(default_factory=dict)
    """Saved state of the current stage, if the run was resumed."""
    qat: bool = False
    """Whether `model` carries INT8 quantizers."""
    before: dict[str, Any] = field(default_factory=dict)
    """Evaluation of the quantized network before fine-tuning."""
    progress: Progress = silent


class Stage:
    """Objects of one stage: trained network, optimizer, moving average, balancing, source of batches."""

    def __init__(self, run: Run, config: StageConfig) -> None:
        self.run, self.config = run, config
        torch.manual_seed(run.config.seed + 1000 * run.position.stage)
        self.patch = PatchNetwork(run.model).to(run.device) if config.decoder == "patch" else None
        network: nn.Module = self.patch or run.model
        for name, parameter in run.model.named_parameters():
            parameter.requires_grad_(config.train_backbone or not name.startswith("backbone."))
        self.optimizer = Optimizer(network, config)
        self.average: dict[str, Tensor] = {}
        if config.average:
            self.average = {n: p.detach().clone() for n, p in run.model.named_parameters()}
        self.balance = Balance()
        data = run.config.data
        self.feed = Feed(
            frames=run.frames,
            stage=config,
            augment=run.config.augment,
            size=(config.height or data.height, config.width or data.width),
            patch_size=run.model.config.backbone.patch_size,
            seed=(run.config.seed, run.position.stage),
            group=run.group,
        )
        self.feed.check()

    def state(self) -> dict[str, Any]:
        """Collect the stage's state in the form that `save_state` takes."""
        return {
            "patch": self.patch.decoder.state_dict() if self.patch else {},
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
            "history": [dict(period) for period in self.balance.history.periods],
            "sums": self.balance.sums,
            "steps": self.balance.steps,
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Restore what `state` returned in the run that was interrupted."""
        if self.patch:
            self.patch.decoder.load_state_dict(saved["patch"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.average = {n: t.to(self.run.device) for n, t in saved["average"].items()}
        self.balance = Balance(LossHistory(tuple(saved["history"])), dict(saved["sums"]), saved["steps"])


def run_stages(run: Run) -> None:
    """Train until the last stage has ended. The model then has the final weights, or their moving average if enabled.

    Raises:
        KeyboardInterrupt: after Ctrl-C, once the current step is done and the state is saved.
    """
    with Interrupt() as interrupt:
        while run.position.stage < len(run.config.stages):
            stage = Stage(run, run.config.stages[run.position.stage])
            if run.saved:
                stage.restore(run.saved)
                run.saved = {}
            _run_stage(stage, interrupt)
            _adopt_average(stage)
            run.position = Position(stage=run.position.stage + 1, total=run.position.total)
            _save(run, None)


def _run_stage(stage: Stage, interrupt: Interrupt) -> None:
    run, config = stage.run, stage.config
    steps = stage.feed.steps_per_epoch
    total = config.epochs * steps
    start = run.position.epoch * steps + run.position.step
    for done, sample in enumerate(stage.feed.samples(start), start=start + 1):
        losses = _step(stage, sample, done - 1, total)
        epoch, step = divmod(done, steps)
        run.position = Position(run.position.stage, epoch, step, run.position.total + 1)
        if done % (run.config.balancing_steps or steps) == 0:
            stage.balance.end_period()
        run.progress(config.name, done, total, losses_note({name: losses[name] for name in BALANCED}))
        stop = run.group.any(interrupt.requested)
        if stop or run.position.total % run.config.save_steps == 0:
            _save(run, stage)
        if stop:
            raise KeyboardInterrupt


def _step(stage: Stage, sample: Sample, done: int, total: int) -> dict[str, float]:
    """Run one optimizer step and return the losses. Raise M2HError if the objective is not finite."""
    run, config = stage.run, stage.config
    rate = learning_rate(config, done, total)
    sample = replace(sample, batch=sample.batch.to(run.device))
    weights = task_weights(stage.balance.history, BALANCED)
    outputs = _outputs(stage, sample)
    losses = task_losses(outputs, sample.batch, config, run.config.depth_loss)
    consistency = consistency_losses(outputs, config, _camera(stage, sample))
    distilled = _distilled(stage, sample, outputs)
    objective = torch.stack([weights[task] * losses[task] for task in BALANCED]).sum()
    objective = objective + sum(config.consistency * value for value in consistency.values())
    objective = objective + sum(config.teacher_weight * value for value in distilled.values())
    stage.optimizer.zero_grad()
    objective.backward()
    if not bool(objective.isfinite()):
        raise M2HError(
            f"{run.folder}: the loss is {objective.item()} in step {run.position.total + 1} of the run; "
            "lower learning_rate or set clip_norm, and resume from the last saved state"
        )
    run.group.average_gradients(stage.optimizer.parameters)
    if config.clip_norm:
        nn.utils.clip_grad_norm_(stage.optimizer.parameters, config.clip_norm)
    stage.optimizer.step(rate)
    _update_average(stage, done)
    values = {name: float(value.detach()) for name, value in {**losses, **consistency}.items()}
    values = run.group.average(values)
    stage.balance.add(values)
    if run.record is None:
        return values
    run.record.add(
        {
            "step": run.position.total + 1,
            "stage": config.name,
            "epoch": run.position.epoch,
            "learning_rate": rate,
            "total": float(objective.detach()),
            **{f"loss_{name}": value for name, value in values.items()},
            **{f"distil_{name}": float(value.detach()) for name, value in distilled.items()},
            **{f"weight_{name}": value for name, value in weights.items()},
        }
    )
    return values


def _outputs(stage: Stage, sample: Sample) -> dict[str, Tensor]:
    """Compute the outputs in float32, with matrix products in bfloat16 where `autocast` enables it."""
    run = stage.run
    network: nn.Module = stage.patch or run.model
    network.train()
    if not stage.config.train_backbone:
        run.model.backbone.eval()
    with autocast(run.device), CPUAttention():
        image = sample.batch.network_input(PRESETS[run.config.preset])
        outputs = stage.patch(image) if stage.patch is not None else forward(run.model, image, sample.window)
    return {task: value.float() for task, value in outputs.items()}


def _camera(stage: Stage, sample: Sample) -> Camera | None:
    """Make the camera of the decoder's window, with its principal point at the center of the whole image."""
    if not stage.config.focal:
        return None
    fx, fy = stage.config.focal
    height, width = stage.feed.size
    top, left = (sample.window.top, sample.window.left) if sample.window else (0, 0)
    scale = stage.feed.patch_size
    return Camera((fx * width, fy * height), ((width - 1) / 2 - scale * left, (height - 1) / 2 - scale * top))


def _distilled(stage: Stage, sample: Sample, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
    teacher = stage.run.teacher
    if teacher is None or stage.patch is not None or not stage.config.teacher_weight:
        return {}
    image = sample.batch.network_input(PRESETS[stage.run.config.preset])
    with torch.no_grad(), autocast(stage.run.device), CPUAttention():
        answers = {task: value.float() for task, value in teacher(image).items()}
    if sample.window is not None:
        scale = stage.feed.patch_size
        answers = {task: sample.window.of(value, scale) for task, value in answers.items()}
    return distillation_losses(outputs, answers)


def autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Enable bfloat16 autocast on a GPU, and on a CPU with bfloat16 matrix units (AMX)."""
    if device.type == "cpu" and not torch.cpu._is_amx_tile_supported():
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def learning_rate(config: StageConfig, done: int, total: int) -> float:
    """Compute the learning rate of a step (section IV B).

    It is a linear warm-up over `warmup_steps`, times (1 - done / total) to the power `decay_power`.

    Args:
        config: the stage.
        done: steps of the stage that are done.
        total: steps of the stage.
    """
    warm = min(1.0, (done + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    return config.learning_rate * warm * (1 - done / total) ** config.decay_power


def _update_average(stage: Stage, done: int) -> None:
    # A smaller decay at first, so that the average soon forgets the initial weights.
    decay = min(stage.config.average, (done + 1) / (done + 10))
    parameters = dict(stage.run.model.named_parameters())
    for name, mean in stage.average.items():
        mean.lerp_(parameters[name].detach(), 1 - decay)


def _adopt_average(stage: Stage) -> None:
    parameters = dict(stage.run.model.named_parameters())
    with torch.no_grad():
        for name, mean in stage.average.items():
            parameters[name].copy_(mean)


def _save(run: Run, stage: Stage | None) -> None:
    if not run.group.leads:
        return
    values = {
        "config": repr(run.config),
        "position": asdict(run.position),
        "model": run.model.state_dict(),
        "stage": stage.state() if stage else {},
        "qat": run.qat,
        "before": run.before,
    }
    save_state(run.folder / STATE, values)


#: File of the state in a run's folder.
STATE = "state.pt"
