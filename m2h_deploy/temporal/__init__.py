"""Temporal filter: predictions on a moving camera, made consistent over time with the camera's poses."""

from m2h_deploy.temporal.filter import TemporalFilter
from m2h_deploy.temporal.settings import FilterSettings

__all__ = ["FilterSettings", "TemporalFilter"]
