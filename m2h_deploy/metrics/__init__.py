"""Evaluation metrics of the paper's Table I on NYUv2: one file and one class per task."""

from m2h_deploy.metrics.base import Metric
from m2h_deploy.metrics.depth import DepthMetric
from m2h_deploy.metrics.edges import EdgesMetric
from m2h_deploy.metrics.normals import NormalsMetric
from m2h_deploy.metrics.semantics import SemanticsMetric

__all__ = ["DepthMetric", "EdgesMetric", "Metric", "NormalsMetric", "SemanticsMetric"]
