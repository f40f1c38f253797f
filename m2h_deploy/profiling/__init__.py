"""Latency for robotics: percentiles, frame age, the machine's state during the measurement, and time by layer."""

from m2h_deploy.profiling.bench import BenchSettings, bench
from m2h_deploy.profiling.camera_load import Camera, CameraRun, run_camera
from m2h_deploy.profiling.layers import BlockCost
from m2h_deploy.profiling.loadgen import LoadRun, LoadSettings
from m2h_deploy.profiling.measure import Subject, subject_of
from m2h_deploy.profiling.result import BenchResult, to_json, write_csv
from m2h_deploy.profiling.statistics import Estimate, Summary, percentile, summarize

__all__ = [
    "BenchResult",
    "BenchSettings",
    "BlockCost",
    "Camera",
    "CameraRun",
    "Estimate",
    "LoadRun",
    "LoadSettings",
    "Subject",
    "Summary",
    "bench",
    "percentile",
    "run_camera",
    "subject_of",
    "summarize",
    "to_json",
    "write_csv",
]
