"""Latency for robotics: percentiles, frame age, the machine's state during the measurement, and time by layer."""

from m2h_deploy.profiling.bench import BenchSettings, bench
from m2h_deploy.profiling.measure import Subject, subject_of
from m2h_deploy.profiling.result import BenchResult, to_json, write_csv
from m2h_deploy.profiling.statistics import percentile

__all__ = ["BenchResult", "BenchSettings", "Subject", "bench", "percentile", "subject_of", "to_json", "write_csv"]
