"""Drift statistics against scipy, their false-alarm rates without drift, power with it, and the monitor."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats
from scipy.spatial.distance import jensenshannon
from trimtab._native import Slab
from trimtab.kernels import divergences
from trimtab.kernels.cpu import CpuExecutor
from trimtab.kernels.drift import DriftMonitor, DriftWindow, FeatureStatistics, compare
from trimtab.kernels.errors import ProgramError, SketchError
from trimtab.kernels.estimate import ScoreTable
from trimtab.kernels.fit_sketch import fit_sketch
from trimtab.kernels.program import CategoryField, ColumnProgram, Field, RealField, SketchSpec
from trimtab.kernels.sketch import Sketch
from trimtab.kernels.slabs import rows_from_arrow

EDGES = tuple(float(x) for x in np.unique(stats.norm.ppf(np.arange(1, 32) / 32).astype(np.float32)))
NUMBERS = np.random.default_rng(11)


def histograms(bins: int = 12) -> tuple[np.ndarray, np.ndarray]:
    return NUMBERS.integers(5, 200, bins).astype(float), NUMBERS.integers(5, 200, bins).astype(float)


def test_against_scipy_on_the_same_bins() -> None:
    for _ in range(20):
        a, b = histograms()
        p, q = a / a.sum(), b / b.sum()
        middles = np.sort(NUMBERS.normal(size=len(a)))
        table = stats.chi2_contingency(np.stack([a, b]), correction=False)
        value, cramer, p_value = divergences.chi_square(a, b)
        assert (value, p_value) == pytest.approx((table.statistic, table.pvalue), rel=1e-9)
        assert cramer == pytest.approx(stats.contingency.association(np.stack([a, b]).astype(int)), rel=1e-9)
        half_p, half_q = (a + 0.5) / (a + 0.5).sum(), (b + 0.5) / (b + 0.5).sum()
        both_ways = stats.entropy(half_p, half_q) + stats.entropy(half_q, half_p)
        assert divergences.psi(a, b)[0] == pytest.approx(both_ways, rel=1e-9)
        jsd, distance, _ = divergences.jensen_shannon(a, b)
        assert jsd == pytest.approx(jensenshannon(p, q) ** 2, rel=1e-9)
        assert distance == pytest.approx(jensenshannon(p, q, 2), rel=1e-9)
        raw = [np.repeat(middles, counts.astype(int)) for counts in (a, b)]
        exact = stats.ks_2samp(*raw, method="asymp")
        ks, ks_p = divergences.ks(a, b)
        assert ks == pytest.approx(exact.statistic, rel=1e-9)
        assert ks_p == pytest.approx(exact.pvalue, rel=0.1, abs=1e-6)
        assert divergences.wasserstein(a, b, middles)[0] == pytest.approx(
            stats.wasserstein_distance(middles, middles, a, b), rel=1e-9
        )


SPEC = SketchSpec((RealField("x", EDGES), CategoryField("c", tuple(range(8)), 8)), (0.25, 0.5, 0.75))
PROGRAM = ColumnProgram((Field("x", "real"), Field("c", "integer")), (), SPEC)
EXECUTOR = CpuExecutor(PROGRAM)


def sketch_of(x: np.ndarray, c: np.ndarray) -> Sketch:
    slab = Slab(PROGRAM.schema)
    slab.append_columns([x.astype(np.float32), c.astype(np.int64)])
    sketch = Sketch(SPEC)
    EXECUTOR.run(slab, sketch)
    sketch.add_predictions(stats.norm.cdf(x).astype(np.float32))
    return sketch


def rows(random: np.random.Generator, n: int, shift: float = 0.0, missing: float = 0.05) -> Sketch:
    x = np.where(random.random(n) < missing, np.nan, random.normal(shift, 1.0, n))
    return sketch_of(x, np.minimum(random.geometric(0.4, n) - 1, 8))


def values(feature: FeatureStatistics) -> dict[str, float]:
    return {statistic.name: statistic.value for statistic in feature.statistics}


def test_against_scipy_on_the_raw_values() -> None:
    a, b = NUMBERS.normal(size=20_000), NUMBERS.normal(0.4, 1.2, 15_000)
    feature = compare(sketch_of(a, np.zeros(20_000)), sketch_of(b, np.zeros(15_000)))[0]
    found = values(feature)
    exact = stats.ks_2samp(a, b).statistic
    assert exact - 0.02 <= found["ks"] <= exact + 1e-6
    assert found["wasserstein"] == pytest.approx(stats.wasserstein_distance(a, b), rel=0.05)
    effects = {statistic.name: statistic.effect for statistic in feature.statistics}
    assert effects["wasserstein"] == pytest.approx(found["wasserstein"] / a.std(), rel=1e-3)
    # Symmetric KL of the two normals, of which binning loses a little.
    kl = 0.5 * ((1.44 + 0.16) + (1 + 0.16) / 1.44) - 1
    assert 0.85 * kl <= found["psi"] <= 1.02 * kl
    assert feature.effect == found["psi"]


def test_wasserstein_sees_a_change_of_unit() -> None:
    a, b = NUMBERS.normal(5, 1, 5000), 1000 * NUMBERS.normal(5, 1, 5000)
    found = values(compare(sketch_of(a, np.zeros(5000)), sketch_of(b, np.zeros(5000)))[0])
    assert found["wasserstein"] == pytest.approx(stats.wasserstein_distance(a, b), rel=1e-3)


def test_p_values_without_drift() -> None:
    """Rejections at 5 %: within the 99.9 % binomial interval where the limit is sharp, at most its top for the binned
    KS."""
    random = np.random.default_rng(5)
    trials, rejected = 600, dict.fromkeys(["psi", "jensen_shannon", "chi_square", "ks", "wasserstein", "combined"], 0)
    reference_rows, window_rows = 3000, 800
    for _ in range(trials):
        feature = compare(rows(random, reference_rows), rows(random, window_rows))[0]
        for statistic in feature.statistics:
            rejected[statistic.name] += statistic.p_value <= 0.05
        rejected["combined"] += feature.p_value <= 0.05
    low, high = stats.binom.ppf([0.0005, 0.9995], trials, 0.05)
    for name in ("chi_square", "jensen_shannon", "psi", "wasserstein"):
        assert low <= rejected[name] <= high, (name, rejected)
    assert rejected["ks"] <= high
    assert rejected["combined"] <= high


def test_monitor_without_drift_and_with_it() -> None:
    random = np.random.default_rng(6)
    alpha, windows = 0.05, 400
    reference = rows(random, 4000)
    # One feature drifting is enough for a false alarm; effects do not protect here.
    drifting = 0
    for _ in range(windows):
        monitor = DriftMonitor(rows(random, 3000), alpha, 0.0, 1)
        drifting += bool(monitor.observe(rows(random, 400), 0, 1).alarms)
    assert drifting <= stats.binom.ppf(0.9995, windows, alpha), drifting
    monitor = DriftMonitor(reference, 0.01, 0.1, 3)
    reports = [monitor.observe(rows(random, 1000, shift=0.6), i, i + 1) for i in range(3)]
    assert [report.alarms for report in reports] == [(), (), ("x", "prediction")]
    assert [report.features[0].persistence for report in reports] == [1, 2, 3]
    assert monitor.observe(rows(random, 1000), 3, 4).features[0].persistence == 0


def test_small_effect_is_significant_and_no_alarm() -> None:
    random = np.random.default_rng(8)
    report = DriftMonitor(rows(random, 200_000), 0.01, 0.1, 1).observe(rows(random, 100_000, shift=0.05), 0, 1)
    assert report.features[0].adjusted_p_value < 1e-6
    assert report.features[0].effect < 0.1
    assert report.alarms == ()


def test_missing_and_unseen_drift() -> None:
    random = np.random.default_rng(9)
    reference = rows(random, 3000, missing=0.0)
    x, c = random.normal(size=1000), np.minimum(random.geometric(0.4, 1000) - 1, 8)
    x[:400] = np.nan
    c[:300] = 77
    features = compare(reference, sketch_of(x, c))
    assert features[0].missing_rate == 0.4
    assert features[0].reference_missing_rate == 0.0
    assert features[1].unseen_rate >= 0.3
    assert all(feature.p_value < 1e-6 and feature.effect > 0.1 for feature in features[:2])
    assert [statistic.name for statistic in features[1].statistics] == ["psi", "jensen_shannon", "chi_square"]


@pytest.mark.parametrize("empty", [True, False])
def test_nothing_to_say(empty: bool) -> None:
    random = np.random.default_rng(1)
    constant = sketch_of(np.zeros(100), np.zeros(100))
    pair = (rows(random, 100), Sketch(SPEC)) if empty else (constant, constant)
    for feature in compare(*pair):
        assert (feature.p_value, feature.effect) == (1.0, 0.0)
        assert all((statistic.value, statistic.p_value) == (0.0, 1.0) for statistic in feature.statistics)


def test_absurd_values_stay_finite() -> None:
    huge = np.full(100, np.finfo(np.float32).max)
    for x in (huge, -huge, np.full(100, np.inf), np.full(100, np.nan), np.full(100, 1e-45)):
        for feature in compare(sketch_of(np.linspace(-1, 1, 100), np.zeros(100)), sketch_of(x, np.full(100, -1))):
            assert all(np.isfinite([s.value, s.effect, s.p_value]).all() for s in feature.statistics)
            assert 0 <= feature.p_value <= 1


def test_another_spec() -> None:
    monitor = DriftMonitor(Sketch(SPEC), 0.01, 0.1, 3)
    with pytest.raises(SketchError, match="another spec"):
        monitor.observe(Sketch(SketchSpec(SPEC.fields, ())), 0, 1)
    assert monitor.windows == 0


def test_monitor_continues_after_a_restart() -> None:
    random = np.random.default_rng(2)
    reference = rows(random, 2000)
    windows = [rows(random, 500, shift=0.7) for _ in range(4)]
    whole = DriftMonitor(reference, 0.01, 0.1, 3)
    expected = [whole.observe(window, i, i + 1) for i, window in enumerate(windows)]
    first = DriftMonitor(reference, 0.01, 0.1, 3)
    got = [first.observe(windows[0], 0, 1), first.observe(windows[1], 1, 2)]
    second = DriftMonitor.from_json(first.to_json(), Sketch.from_bytes(reference.to_bytes()))
    got += [second.observe(windows[2], 2, 3), second.observe(windows[3], 3, 4)]
    assert got == expected
    assert second.to_json() == whole.to_json()
    with pytest.raises(ProgramError, match="another reference"):
        DriftMonitor.from_json(first.to_json(), windows[0])
    with pytest.raises(ProgramError, match="persistence"):
        DriftMonitor(reference, 0.01, 0.1, 0)


def test_window_json() -> None:
    random = np.random.default_rng(4)
    report = DriftMonitor(rows(random, 500), 0.05, 0.1, 1).observe(rows(random, 300, shift=1.0), 10, 20)
    assert report.alarms
    text = report.to_json()
    assert "\n" not in text
    assert DriftWindow.from_json(text) == report
    document = json.loads(text)
    for key, value in (("window", "1"), ("features", {}), ("rows", 1.5)):
        with pytest.raises(ProgramError):
            DriftWindow.from_json(json.dumps({**document, key: value}))
    document["features"][0]["alarm"] = 1
    with pytest.raises(ProgramError, match="alarm"):
        DriftWindow.from_json(json.dumps(document))


def test_one_window_against_another_reference() -> None:
    random = np.random.default_rng(6)
    usual, other = rows(random, 2000), rows(random, 700)
    monitor = DriftMonitor(usual, 0.05, 0.0, 1)
    window = rows(random, 300)
    found = monitor.observe(window, 10, 20, None, other)
    assert found == DriftMonitor(other, 0.05, 0.0, 1).observe(window, 10, 20)
    assert (found.reference_rows, monitor.observe(window, 20, 30).reference_rows) == (700, 2000)
    monitor.begin_anew()
    again = monitor.observe(window, 30, 40)
    assert {feature.persistence for feature in again.features} <= {0, 1}


def test_windows_with_an_estimate_and_those_of_old() -> None:
    random = np.random.default_rng(5)
    scores = ScoreTable.of(
        SPEC.prediction_edges, random.random(500).astype(np.float32), random.random(500), random.random(500) < 0.5
    )
    window = rows(random, 300)
    report = DriftMonitor(rows(random, 500), 0.05, 0.1, 1).observe(window, 10, 20, scores)
    assert report.estimate == scores.estimate(window.prediction.buckets)
    assert report.estimate is not None
    assert DriftWindow.from_json(report.to_json()) == report
    document = json.loads(report.to_json())
    del document["estimate"]
    del document["reference"]
    old = DriftWindow.from_json(json.dumps(document))
    assert (old.estimate, old.reference) == (None, "")
    with pytest.raises(ProgramError, match="estimate"):
        DriftWindow.from_json(json.dumps({**document, "estimate": {"loss": 1.0}}))


def test_benjamini_hochberg_against_scipy() -> None:
    for size in (1, 2, 30):
        p_values = NUMBERS.random(size)
        np.testing.assert_allclose(
            divergences.benjamini_hochberg(p_values.tolist()), stats.false_discovery_control(p_values), rtol=1e-12
        )


def test_pool_keeps_rows_and_order() -> None:
    a = np.asarray([1.0, 2.0, 0.0, 50.0, 1.0, 60.0, 3.0, 0.0])
    b = np.asarray([0.0, 1.0, 9.0, 40.0, 0.0, 70.0, 1.0, 0.0])
    for ordered in (True, False):
        joined_a, joined_b = divergences.pool(a, b, ordered=ordered)
        assert (joined_a.sum(), joined_b.sum()) == (a.sum(), b.sum())
        share = min(a.sum(), b.sum()) / (a.sum() + b.sum())
        assert ((joined_a + joined_b) * share >= divergences.EXPECTED).all()
    assert divergences.pool(a, b, ordered=True)[0].tolist() == [3.0, 50.0, 64.0]
    assert [len(part) for part in divergences.pool(a, np.zeros(8), ordered=True)] == [0, 0]


TEXTS = np.asarray([f"value {i}" for i in range(1000)])


def text_trial(
    rng: np.random.Generator, shares: np.ndarray, reference: int, rows: int, new: float = 0.0
) -> FeatureStatistics:
    """A window against a reference that its vocabulary was fitted to."""

    def batch(count: int, foreign: float) -> pa.RecordBatch:
        drawn = TEXTS[rng.choice(len(shares), count, p=shares)]
        return pa.record_batch({"t": pa.array(np.where(rng.random(count) < foreign, "another", drawn))})

    before, now = batch(reference, 0.0), batch(rows, new)
    program = fit_sketch([Field("t", "string")], [before])
    sketches = []
    for side in (before, now):
        sketches.append(Sketch(program.sketch))
        CpuExecutor(program).run(rows_from_arrow(side, program.schema), sketches[-1])
    return compare(*sketches)[0]


ZIPF = 1 / np.arange(1, 1001) / (1 / np.arange(1, 1001)).sum()


@pytest.mark.parametrize(
    ("shares", "reference", "rows"),
    [
        (ZIPF, 300, 300),
        (ZIPF, 1000, 100),
        (ZIPF, 100, 1000),
        (np.full(1000, 0.001), 2000, 2000),
        (np.full(200, 0.005), 2000, 500),
        (np.full(40, 0.025), 300, 300),
    ],
)
def test_a_vocabulary_fitted_to_the_reference_raises_no_alarms(shares: np.ndarray, reference: int, rows: int) -> None:
    """Of rare values any window has others than the reference: all of them were significant once."""
    rng = np.random.default_rng(7)
    p_values = np.asarray([text_trial(rng, shares, reference, rows).p_value for _ in range(300)])
    assert (p_values <= 0.05).mean() < 0.05 + 4 * np.sqrt(0.05 * 0.95 / 300)
    assert (p_values <= 0.01).mean() < 0.01 + 4 * np.sqrt(0.01 * 0.99 / 300)


@pytest.mark.parametrize("shares", [ZIPF, np.full(20, 0.05)])
def test_a_value_that_was_not_there_is_seen(shares: np.ndarray) -> None:
    rng = np.random.default_rng(8)
    p_values = np.asarray([text_trial(rng, shares, 10_000, 1000, new=0.08).p_value for _ in range(40)])
    assert (p_values <= 0.01).mean() > 0.9


@pytest.mark.parametrize("rows", [2000, 100_000, 1_000_000])
def test_effects_do_not_shrink_with_the_reference(rows: int) -> None:
    """A fifth of the window's rows in a bin that the reference lacks."""
    a = np.asarray([0.6, 0.4, 0.0]) * rows
    b = np.asarray([0.5, 0.3, 0.2]) * 1500
    effect = divergences.psi(*divergences.pool(a, b, ordered=False, seen=True))[0]
    assert 1.0 < effect < 3.0  # with the logarithm of the rows, as half a row stands for none
    few = divergences.psi(
        *divergences.pool(np.asarray([40_000.0, 0.0]), np.asarray([0.0, 110.0]), ordered=True, seen=True)
    )
    assert few[0] > 5.0
