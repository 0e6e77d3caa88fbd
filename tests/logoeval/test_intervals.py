"""Bootstrap intervals against hand-made cases and a known distribution."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from logoeval.intervals import estimate_difference, estimate_mean


def names(count: int) -> list[str]:
    return [f"s{number}" for number in range(count)]


def test_one_cluster_has_no_interval() -> None:
    assert estimate_mean([0.25], names(1)).interval is None
    found = estimate_mean([0.0, 1.0], ["a", "a"])
    assert (found.value, found.interval, found.num_samples, found.num_clusters) == (0.5, None, 2, 1)


def test_two_samples_by_hand() -> None:
    # Resampled means are 0, 1/2 and 1 with probabilities 1/4, 1/2, 1/4: the 2.5 % and 97.5 % points are 0 and 1.
    found = estimate_mean([0.0, 1.0], names(2))
    assert found.value == 0.5
    assert found.interval == (0.0, 1.0)


def test_ten_samples_against_the_binomial_distribution() -> None:
    # A resample of five ones and five zeros sums to Binomial(10, 1/2): P(X <= 0) = 0.0010, P(X <= 1) = 0.0107. For ten
    # clusters the cut is at the normal distribution's 2.262 (Student's t of 9) times sqrt(10 / 9): 0.0086.
    found = estimate_mean([0.0, 1.0] * 5, names(10))
    assert found.interval == (0.1, 0.9)


@pytest.mark.parametrize("num_clusters", [12, 30])
def test_of_a_normal_statistic_it_is_students_interval(num_clusters: int) -> None:
    values = stats.norm.ppf((np.arange(num_clusters) + 0.5) / num_clusters)  # symmetric, no luck in it
    low, high = estimate_mean(values, names(num_clusters)).interval or (0.0, 0.0)
    student = stats.t.interval(0.95, num_clusters - 1, loc=0.0, scale=stats.sem(values))
    assert (low, high) == pytest.approx(student, rel=0.05)


def test_of_two_groups_it_is_welchs_interval() -> None:
    narrow, wide = stats.norm.ppf((np.arange(40) + 0.5) / 40), 3 * stats.norm.ppf((np.arange(10) + 0.5) / 10)
    values, groups = np.concatenate([narrow, wide]), [("narrow",)] * 40 + [("wide",)] * 10
    low, high = estimate_mean(values, names(50), groups=groups).interval or (0.0, 0.0)
    welch = stats.ttest_ind(narrow, -wide, equal_var=False).confidence_interval()  # of the sum of means
    assert (low, high) == pytest.approx((welch.low / 2, welch.high / 2), rel=0.05)
    # Of a difference too, however far the samples themselves lie apart in the group whose differences are small.
    before = np.array([-100.0, 100.0] * 20 + [0.0] * 10)
    difference = estimate_difference(before, before + values, names(50), groups=groups)
    assert difference.interval == pytest.approx((low, high))


def test_groups_of_equal_size_are_drawn_independently() -> None:
    values = stats.norm.ppf((np.arange(60) + 0.5) / 60)
    low, high = estimate_mean(values, names(60)).interval or (0.0, 0.0)
    both = estimate_mean([*values, *values], names(120), groups=[("a",)] * 60 + [("b",)] * 60)
    assert both.interval == pytest.approx((low / np.sqrt(2), high / np.sqrt(2)), rel=0.05)


def test_equal_differences_have_no_width() -> None:
    before = np.random.default_rng(0).normal(size=20)
    found = estimate_difference(before, before + 0.25, names(20))
    assert found.value == pytest.approx(0.25)
    assert found.interval == pytest.approx((0.25, 0.25))


def test_pairing_removes_what_samples_share() -> None:
    rng = np.random.default_rng(1)
    before = rng.normal(scale=10, size=50)
    after = before + rng.normal(loc=0.1, scale=0.1, size=50)
    low, high = estimate_difference(before, after, names(50)).interval or (0.0, 0.0)
    assert 0.0 < low < 0.1 < high < 0.2


def test_difference_of_perplexities_is_a_difference_of_exponentials() -> None:
    found = estimate_difference([1.0, 3.0], [1.5, 3.5], names(2), transform=np.exp)
    assert found.value == pytest.approx(np.exp(2.5) - np.exp(2.0))
    assert found.interval == pytest.approx((np.exp(1.5) - np.exp(1.0), np.exp(3.5) - np.exp(3.0)))


def test_repeating_samples_within_their_cluster_adds_no_certainty() -> None:
    values = np.random.default_rng(2).normal(size=12)
    once = estimate_mean(values, names(12))
    many = estimate_mean(np.repeat(values, 10), [name for name in names(12) for _ in range(10)])
    assert many.interval == pytest.approx(once.interval)
    assert many.num_samples == 120


def test_clusters_of_unequal_size_are_weighted_by_their_samples() -> None:
    # Drawing a twice gives 0, b twice 1, one of each 3/4 (three samples of b, one of a).
    found = estimate_mean([0.0, 1.0, 1.0, 1.0], ["a", "b", "b", "b"])
    assert found.value == 0.75
    assert found.interval == (0.0, 1.0)


def test_deterministic_by_seed() -> None:
    values = np.random.default_rng(3).normal(size=40)
    assert estimate_mean(values, names(40)) == estimate_mean(values, names(40))
    assert estimate_mean(values, names(40), seed=1) != estimate_mean(values, names(40), seed=2)


@pytest.mark.parametrize("num_clusters", [6, 13, 40])
def test_coverage_of_a_known_mean(num_clusters: int) -> None:
    rng = np.random.default_rng(4)
    hits = 0
    for _ in range(300):
        low, high = estimate_mean(rng.normal(size=num_clusters), names(num_clusters)).interval or (0.0, 0.0)
        hits += low <= 0 <= high
    assert 0.93 <= hits / 300 <= 0.97  # the seed is fixed; unexpanded percentiles cover 0.86 with 6 clusters


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="2 values for 3"):
        estimate_mean([1.0, 2.0], names(3))


def test_mean_of_means_and_its_interval() -> None:
    rng = np.random.default_rng(5)
    # Category a has two tasks, b has one; their sizes differ.
    sizes = {("a", "x"): 40, ("a", "y"): 160, ("b", "z"): 90}
    weights = {("a", "x"): 0.25, ("a", "y"): 0.25, ("b", "z"): 0.5}
    members = {
        group: rng.normal(len(group[1]) + number, 1 + number, size)
        for number, (group, size) in enumerate(sizes.items())
    }
    values = np.concatenate(list(members.values()))
    groups = [group for group, size in sizes.items() for _ in range(size)]
    clusters = [str(number) for number in range(len(values))]
    found = estimate_mean(values, clusters, groups=groups)
    assert found.value == pytest.approx(sum(weights[group] * column.mean() for group, column in members.items()))
    # The variance of independent means, by formula.
    error = np.sqrt(sum(weights[group] ** 2 * column.var() / len(column) for group, column in members.items()))
    low, high = found.interval
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.04)
    assert (found.num_samples, found.num_clusters, found.fewest_clusters) == (290, 290, 40)
    # The order of samples does not matter but for the draws; pairing cancels what both runs share.
    order = rng.permutation(len(values))
    shuffled = estimate_mean(values[order], clusters, groups=[groups[place] for place in order])
    assert shuffled.value == pytest.approx(found.value)
    difference = estimate_difference(values, values + 1.0, clusters, groups=groups)
    assert (difference.value, *difference.interval) == pytest.approx((1.0, 1.0, 1.0))


def test_a_group_of_one_cluster_has_no_interval() -> None:
    found = estimate_mean([0.0, 1.0, 1.0], ["a", "b", "c"], groups=[("x",), ("x",), ("y",)])
    assert found.value == 0.75
    assert found.interval is None
