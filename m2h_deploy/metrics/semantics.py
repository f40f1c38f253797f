"""Semantic segmentation: mean intersection over union (mIoU) over the classes, NYUv2's 40 by default."""

from __future__ import annotations

from collections.abc import Hashable
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from m2h_deploy.errors import M2HError
from m2h_deploy.metrics.base import Metric, State, ratio

NYU40_CLASSES = 40
IGNORE = 255


class SemanticsMetric(Metric):
    """mIoU, pixel accuracy and mean class accuracy over all labeled pixels of the data set.

    Counts per class are pooled over the data set before any division. `miou` averages over all classes, like the
    evaluators of the published NYUv2 figures (ASTMT, MTI-Net, ATRC, InvPT): a class that occurs neither in the targets
    nor in the predictions counts as IoU 0. `miou_present` averages over the classes that occur in either; use it for a
    few frames, which rarely show all classes. On the 654 test frames both are equal.

    State, three integers per class: true positives, predicted pixels, target pixels; labeled pixels only.

    Args:
        num_outputs: outputs of the network, at most 255.
        unknown: whether output 0 of the network is "unknown", so that prediction label k is the target's class k - 1.
            A labeled pixel that is predicted as unknown counts as a miss. If False, prediction labels are the target's
            classes. None means True for 41 outputs (NYUv2's classes after "unknown"), else False.

    Example:
        >>> metric = SemanticsMetric(num_outputs=41)
        >>> metric.update(np.array([[1, 0]]), np.array([[0, 0]], np.uint8))
        >>> metric.compute()["pixel_accuracy"]
        0.5
    """

    task = "semantics"
    units: ClassVar[dict[str, str]] = dict.fromkeys(
        ("miou", "miou_present", "pixel_accuracy", "mean_accuracy"), "share, 0 to 1"
    )

    def __init__(self, num_outputs: int = 40, *, unknown: bool | None = None) -> None:
        self.num_outputs = num_outputs
        self.unknown = num_outputs == NYU40_CLASSES + 1 if unknown is None else unknown
        self.num_classes = num_outputs - self.unknown
        if self.num_classes < 1 or num_outputs > IGNORE:
            raise M2HError(f"semantics metric: num_outputs is {num_outputs}, must be {1 + self.unknown} to {IGNORE}")
        super().__init__()

    @property
    def state_size(self) -> int:
        """Length of the state vector: three times the number of classes."""
        return 3 * self.num_classes

    @property
    def settings(self) -> Hashable:
        """`num_outputs` and `unknown`; equal for metrics that can be merged."""
        return (self.num_outputs, self.unknown)

    def frame_state(self, prediction: npt.ArrayLike, target: npt.ArrayLike) -> State:
        """Count the pixels of one frame by class.

        Args:
            prediction: integer (H, W), labels 0 to `num_outputs` - 1.
            target: integer (H, W), 0 to the number of classes - 1, 255 where unlabeled.

        Returns:
            float64 (state_size,).

        Raises:
            M2HError: a shape, dtype or value that the metric does not accept.
        """
        labels, truth = self._frame(prediction, target)
        for name, values in (("prediction", labels), ("target", truth)):
            if not np.issubdtype(values.dtype, np.integer):
                raise M2HError(f"semantics metric: {name} has dtype {values.dtype}, needs integer labels")
        if labels.min() < 0 or labels.max() >= self.num_outputs:
            raise M2HError(
                f"semantics metric: prediction labels {labels.min()}..{labels.max()} leave 0..{self.num_outputs - 1}; "
                "set num_outputs to the classes of the network"
            )
        labeled = truth != IGNORE
        expected = truth[labeled].astype(np.int64)
        if expected.size and not 0 <= expected.min() <= expected.max() < self.num_classes:
            raise M2HError(
                f"semantics metric: target labels {expected.min()}..{expected.max()} leave 0..{self.num_classes - 1} "
                "(255 = unlabeled)"
            )
        # With "unknown", labels move down by one, and "unknown" itself moves behind the last class, where it is never
        # expected.
        count = self.num_classes
        given = (labels[labeled].astype(np.int64) - self.unknown) % (count + 1)
        hits = np.bincount(expected[given == expected], minlength=count)
        predicted = np.bincount(given, minlength=count + 1)[:count]
        return np.concatenate([hits, predicted, np.bincount(expected, minlength=count)]).astype(np.float64)

    def per_class_iou(self, state: State | None = None) -> npt.NDArray[np.float64]:
        """Compute the IoU of each class, 0..1; NaN for a class that never occurs.

        Args:
            state: a sum of frame states; None for all frames added so far.

        Returns:
            float64 (classes,).
        """
        hits, predicted, expected = (self.state if state is None else state).reshape(3, self.num_classes)
        union = predicted + expected - hits
        return np.divide(hits, union, out=np.full(self.num_classes, np.nan), where=union > 0)

    def compute_from(self, state: State) -> dict[str, float]:
        """Compute the figures from a sum of frame states; NaN where nothing was counted.

        Returns:
            `miou`, `miou_present`, `pixel_accuracy` and `mean_accuracy` (over the classes in the targets), 0..1.
        """
        hits, _, expected = state.reshape(3, self.num_classes)
        iou = self.per_class_iou(state)
        in_target = expected > 0
        accuracy = hits[in_target] / expected[in_target]
        present = ~np.isnan(iou)
        return {
            "miou": ratio(iou[present].sum(), self.num_classes * bool(in_target.any())),
            "miou_present": ratio(iou[present].sum(), int(present.sum())),
            "pixel_accuracy": ratio(hits.sum(), expected.sum()),
            "mean_accuracy": ratio(accuracy.sum(), accuracy.size),
        }
