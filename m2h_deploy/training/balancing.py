"""Dynamic weight averaging (Liu et al. 2019): tasks whose loss falls slowly weigh more (equations 18a and 18b)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

TEMPERATURE = 2.0


@dataclass(frozen=True)
class LossHistory:
    """Mean loss of each task over the last two periods (epochs), oldest first. The task weights depend on it."""

    periods: tuple[Mapping[str, float], ...] = ()

    def after(self, losses: Mapping[str, float]) -> LossHistory:
        """Return the history extended by a period with these mean losses."""
        return LossHistory((*self.periods, dict(losses))[-2:])


def task_weights(history: LossHistory, tasks: tuple[str, ...]) -> dict[str, float]:
    """Compute the weight of each task's loss (equations 18a and 18b).

    w_i(t) = N exp(r_i(t-1) / T) / sum_n exp(r_n(t-1) / T), with r_i(t-1) = L_i(t-1) / L_i(t-2). Before two periods have
    passed, and for a loss that was 0 (no labels), r is 1.

    Args:
        history: mean losses of the last two periods.
        tasks: names of the N tasks.

    Returns:
        Weights by task, which add up to N.
    """
    rates = {task: _rate(history, task) for task in tasks}
    # The largest rate is subtracted, which does not change the weights, so that a diverging loss cannot overflow exp.
    largest = max(rates.values())
    scaled = {task: math.exp((rate - largest) / TEMPERATURE) for task, rate in rates.items()}
    total = sum(scaled.values())
    return {task: len(tasks) * value / total for task, value in scaled.items()}


def _rate(history: LossHistory, task: str) -> float:
    if len(history.periods) < 2:
        return 1.0
    before, last = (period.get(task, 0.0) for period in history.periods)
    return last / before if before > 0 and last > 0 else 1.0
