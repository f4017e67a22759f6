import numpy as np
import pytest
from scipy.stats import ttest_1samp

from evaluation.intervals import mean_interval, paired_interval, share_interval


def bootstrap_se(values: np.ndarray, clusters: np.ndarray, rounds: int = 4000) -> float:
    """Resamples whole clusters: the definition that the closed form stands for."""
    rng = np.random.default_rng(0)
    names = np.unique(clusters)
    sums = np.array([values[clusters == name].sum() for name in names])
    sizes = np.array([(clusters == name).sum() for name in names])
    drawn = rng.integers(0, len(names), (rounds, len(names)))
    return float((sums[drawn].sum(1) / sizes[drawn].sum(1)).std())


@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_clustered_standard_error_equals_the_cluster_bootstrap(spread: float) -> None:
    rng = np.random.default_rng(1)
    clusters = np.repeat(np.arange(120), rng.integers(1, 6, 120))
    values = rng.normal(size=len(clusters)) + spread * rng.normal(size=120)[clusters]
    assert mean_interval(values, clusters).se == pytest.approx(bootstrap_se(values, clusters), rel=0.04)


def test_correlated_rows_widen_the_interval() -> None:
    rng = np.random.default_rng(2)
    clusters = np.repeat(np.arange(50), 8)
    values = rng.normal(size=50)[clusters]
    alone, together = mean_interval(values), mean_interval(values, clusters)
    assert together.se == pytest.approx(alone.se * np.sqrt(8), rel=0.05)
    assert together.clusters == 50


def test_without_clusters_it_is_students_interval() -> None:
    values = np.random.default_rng(3).normal(0.3, 1, 40)
    want = ttest_1samp(values, 0).confidence_interval(0.95)
    got = mean_interval(values)
    assert (got.low, got.high) == pytest.approx((want.low, want.high))


def test_pairing_removes_what_both_share() -> None:
    rng = np.random.default_rng(4)
    shared = rng.normal(0, 10, 300)
    before, after = shared + rng.normal(0, 0.1, 300), shared + 0.05 + rng.normal(0, 0.1, 300)
    paired = paired_interval(before, after)
    assert paired.low > 0 and not mean_interval(after).excludes(float(before.mean()))


@pytest.mark.parametrize("share", [0.06, 0.5, 0.95])
def test_share_interval_covers_the_truth_at_least_about_95_times_in_100(share: float) -> None:
    rng = np.random.default_rng(5)
    clusters = np.repeat(np.arange(150), 3)
    covered = 0
    for _ in range(400):
        # a third of the prompts answer all their three pairs alike
        alike = rng.random(150)[clusters] < 1 / 3
        drawn = np.where(alike, rng.random(150)[clusters], rng.random(450)) < share
        interval = share_interval(drawn, clusters)
        covered += interval.low <= share <= interval.high
    assert 0.93 <= covered / 400 < 1


def test_fifty_of_fifty_is_not_certainty() -> None:
    got = share_interval([1.0] * 50)
    assert got.high == 1.0 and 0.9 < got.low < 0.95


def test_one_cluster_tells_nothing_of_the_spread() -> None:
    assert not mean_interval([0.9, 1.0], ["a", "a"]).excludes(-1e9)
    assert (share_interval([1.0, 1.0], ["a", "a"]).low, share_interval([1.0, 1.0], ["a", "a"]).high) == (0.0, 1.0)


def test_unequal_pairs_and_missing_cluster_names_are_refused() -> None:
    with pytest.raises(ValueError, match="2 before, 1 after"):
        paired_interval([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="one a value"):
        mean_interval([1.0, 2.0], ["a"])
    with pytest.raises(ValueError, match="at least one"):
        share_interval([])
