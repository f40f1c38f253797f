"""Test percentiles and the coverage of their intervals for any distribution."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m2h_deploy import M2HError
from m2h_deploy.profiling.statistics import percentile, speedup, summarize


def test_a_percentile_is_the_smallest_sample_that_the_share_does_not_exceed():
    samples = list(range(1, 101))
    assert [percentile(samples, share).value for share in (0.5, 0.9, 0.99)] == [50, 90, 99]


@given(st.integers(0, 10**6), st.integers(1, 400), st.sampled_from([1, 5, 1000]), st.floats(0.01, 0.99))
def test_an_interval_encloses_its_percentile_and_both_ends_are_samples(seed, count, values, share):
    samples = np.random.default_rng(seed).integers(0, values, count).astype(float)
    found = percentile(samples, share)
    assert found.value in samples
    assert found.low is None or (found.low <= found.value and found.low in samples)
    assert found.high is None or (found.high >= found.value and found.high in samples)


@pytest.mark.parametrize(("share", "count"), [(0.5, 30), (0.9, 100), (0.99, 700)])
@pytest.mark.parametrize("draw", ["exponential", "lognormal"])
def test_intervals_contain_the_true_percentile_in_95_percent_of_runs(share, count, draw):
    generator = np.random.default_rng(0)
    sample = getattr(generator, draw)
    truth = float(np.quantile(sample(size=2_000_000), share))
    found = [percentile(sample(size=count), share) for _ in range(1000)]
    inside = np.mean([f.low is not None and f.low <= truth and (f.high is None or truth <= f.high) for f in found])
    assert inside >= 0.935  # three standard errors below 95 %


def test_few_samples_do_not_bound_a_tail():
    assert percentile(range(50), 0.99).high is None
    assert percentile(range(1000), 0.99).high is not None
    assert percentile([3.0], 0.5) == percentile([3.0], 0.5)
    assert (percentile([3.0], 0.5).low, percentile([3.0], 0.5).high) == (None, None)


def test_a_percentile_of_no_samples_is_refused():
    with pytest.raises(M2HError, match="no samples"):
        percentile([], 0.5)


def test_variation_above_two_and_a_half_percent_is_not_steady():
    assert summarize([100, 101, 99, 100]).steady
    assert not summarize([100, 110, 90, 100]).steady
    assert summarize([5.0]).variation == 0


def test_a_ratio_of_paired_runs_cancels_common_slowdowns():
    generator = np.random.default_rng(0)
    drift = 1 + np.linspace(0, 2, 200)  # the machine becomes three times slower
    slow = 10 * drift * generator.lognormal(0, 0.02, 200)
    fast = 5 * drift * generator.lognormal(0, 0.02, 200)
    ratio = speedup(list(slow), list(fast))
    assert ratio.low is not None and ratio.high is not None
    assert ratio.low <= 2 <= ratio.high
    assert ratio.high - ratio.low < 0.05


def test_runs_without_a_pair_are_refused():
    with pytest.raises(M2HError, match="cannot be paired"):
        speedup([1.0, 2.0], [1.0])
