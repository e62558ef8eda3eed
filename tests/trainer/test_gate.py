"""Every verdict with its reason, and the gate's error rates over simulated lives."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from trimtab.store.manifest import Decision
from trimtab.store.settings import GateSettings
from trimtab.trainer.alpha import alpha_for
from trimtab.trainer.gate import EVIDENCE_ROWS, Evidence, decide

from .tables import HOUR_US
from .test_bootstrap import most_by_chance, stream

GATE = GateSettings(margin=0.02, alpha=0.05, min_rows=500, min_blocks=8, bootstrap=200)


def evidence(difference: float, cohorts: int = 200, *, seed: int = 0, noise: float = 0.05, **more: Any) -> Evidence:
    """Losses around 0.5 whose paired difference has this mean."""
    generator = np.random.default_rng(seed)
    times = np.repeat(np.arange(cohorts), 20) * HOUR_US
    live = 0.5 + 0.2 * generator.random(len(times))
    return Evidence(live + difference + noise * generator.normal(size=len(times)), live, times, HOUR_US, **more)


def test_a_refresh_that_is_no_worse_is_promoted() -> None:
    found = decide(evidence(0.0), "refresh", GATE, 0.01)
    assert found.verdict == "promoted"
    assert "no worse" in found.reason
    assert "smallest difference" in found.reason
    assert found.metrics["high"] < 0.02
    assert found.metrics["alpha"] == 0.01
    assert found.metrics["rows"] == 4000.0


def test_a_refresh_worse_by_less_than_the_margin_is_still_refused() -> None:
    found = decide(evidence(0.01), "refresh", GATE, 0.01)
    assert found.verdict == "refused"
    assert found.reason.startswith("The challenger is worse: its loss differs by +0.0")


def test_a_refresh_that_could_be_worse_is_undecided() -> None:
    found = decide(evidence(0.005, 30, noise=0.3), "refresh", GATE, 0.001)
    assert found.verdict == "undecided"


def test_a_search_must_be_better_not_equal() -> None:
    assert decide(evidence(-0.01), "search", GATE, 0.01).verdict == "promoted"
    equal = decide(evidence(0.0), "search", GATE, 0.01)
    assert equal.verdict == "refused"
    assert "would have been seen" in equal.reason
    assert decide(evidence(0.01), "search", GATE, 0.01).verdict == "refused"


def test_below_its_power_a_search_is_undecided() -> None:
    found = decide(evidence(0.0, 40, noise=0.25), "search", GATE, 0.005)
    assert found.verdict == "undecided"
    assert found.metrics["detectable"] > GATE.margin


@pytest.mark.parametrize("recipe", ["refresh", "search"])
def test_too_few_rows_and_blocks_test_nothing(recipe: str) -> None:
    few = decide(evidence(-0.1, 24), recipe, GATE, 0.01)
    assert (few.verdict, few.metrics["alpha"]) == ("undecided", 0.0)
    assert few.reason == "There are 480 rows of evidence, and at least 500 are needed."
    one = decide(Evidence(np.zeros(600), np.ones(600), np.zeros(600, dtype=np.int64), HOUR_US), recipe, GATE, 0.01)
    assert (one.verdict, one.metrics["alpha"]) == ("undecided", 0.0)
    assert "1 independent blocks of time" in one.reason


def test_evidence_too_noisy_to_test_spends_nothing() -> None:
    found = decide(evidence(0.0, 30, noise=2.0), "refresh", GATE, 0.01)
    assert (found.verdict, found.metrics["alpha"]) == ("undecided", 0.0)
    assert "too noisy" in found.reason


def test_budgets_refuse_before_anything_is_tested() -> None:
    slow = decide(evidence(-0.1, latency_ratio=2.5), "refresh", GATE, 0.01)
    assert slow.verdict == "refused"
    assert slow.reason == "A batch takes 2.50 times as long as with the live version, and 2 times are allowed."
    assert slow.metrics["alpha"] == 0.0
    recorded = decide(evidence(-0.1, latency_ratio=2.5, enforce_latency=False), "refresh", GATE, 0.01)
    assert recorded.verdict == "promoted"
    assert recorded.metrics["latency_ratio"] == 2.5
    large = decide(evidence(-0.1, bytes=2_000_000_000), "refresh", GATE, 0.01)
    assert large.verdict == "refused"
    assert "2000000000 bytes" in large.reason


def test_losses_that_are_not_finite_are_refused() -> None:
    broken = evidence(0.0)
    broken.challenger[7] = math.nan
    found = decide(broken, "refresh", GATE, 0.01)
    assert found.verdict == "refused"
    assert found.reason == "The challenger's loss is not finite on 1 of 4000 rows."


def test_rows_that_the_live_version_did_not_answer_compare_nothing() -> None:
    broken = evidence(0.0)
    broken.live[:100] = math.nan
    broken.challenger[:50] = math.nan
    found = decide(broken, "refresh", GATE, 0.01)
    assert (found.verdict, found.metrics["rows"]) == ("promoted", 3900.0)


def test_only_the_newest_evidence_counts() -> None:
    old, new = evidence(1.0, 300, noise=3.0), evidence(0.0, 500, seed=1)
    both = Evidence(
        np.concatenate([old.challenger, new.challenger]),
        np.concatenate([old.live, new.live]),
        np.concatenate([old.time_us, new.time_us + 300 * HOUR_US]),
        HOUR_US,
    )
    found = decide(both, "refresh", GATE, 0.01)
    assert (found.verdict, found.metrics["rows"]) == ("promoted", float(EVIDENCE_ROWS))


def test_a_bad_slice_stops_what_is_good_on_the_whole() -> None:
    base = evidence(-0.02)
    origin = np.where(np.arange(4000) % 4 == 0, "LGA", "JFK")
    worse = base.challenger + np.where(origin == "LGA", 0.12, 0.0)
    settings = GATE.model_copy(update={"slices": ("origin",), "margin": 0.05})
    found = decide(
        Evidence(worse - 0.05, base.live, base.time_us, HOUR_US, slices={"origin": origin}), "refresh", settings, 0.01
    )
    assert found.verdict == "refused"
    assert "worse where origin = LGA" in found.reason
    assert found.metrics["slice origin = LGA"] == pytest.approx(0.05, abs=0.01)
    good = decide(
        Evidence(base.challenger, base.live, base.time_us, HOUR_US, slices={"origin": origin}),
        "refresh",
        settings,
        0.01,
    )
    assert good.verdict == "promoted"


def test_rare_slices_do_not_stop_anything() -> None:
    rare = np.where(np.arange(4000) < 40, "rare", "common")
    base = evidence(-0.02)
    found = decide(
        Evidence(base.challenger + 0.5 * (rare == "rare"), base.live, base.time_us, HOUR_US, slices={"c": rare}),
        "refresh",
        GATE,
        0.01,
    )
    assert found.verdict == "promoted"
    assert "slice c = rare" not in found.metrics


def test_baselines_are_always_reported() -> None:
    base = evidence(0.0)
    found = decide(
        Evidence(base.challenger, base.live, base.time_us, HOUR_US, baselines={"no_change": base.live + 0.2}),
        "refresh",
        GATE,
        0.01,
    )
    assert found.metrics["no_change_loss"] == pytest.approx(found.metrics["live_loss"] + 0.2)


def test_regression_counts_in_relative_rmse() -> None:
    generator = np.random.default_rng(1)
    times = np.arange(4000) // 20 * HOUR_US
    live = generator.chisquare(1, size=4000)
    noise = 1.0 + 0.1 * generator.normal(size=4000)
    found = decide(Evidence(live * 1.1**2 * noise, live, times, HOUR_US, relative=True), "refresh", GATE, 0.01)
    assert found.verdict == "refused"
    assert found.metrics["difference"] == pytest.approx(0.1, abs=0.02)
    assert "of the RMSE" in found.reason


@pytest.mark.parametrize(("recipe", "alpha"), [("other", 0.05), ("refresh", 0.0), ("refresh", 1.0)])
def test_impossible_questions(recipe: str, alpha: float) -> None:
    with pytest.raises(ValueError, match="gate"):
        decide(evidence(0.0), recipe, GATE, alpha)


# --- simulated lives


def paired(differences: NDArray[np.float64], times: NDArray[np.int64], shift: float) -> Evidence:
    live = np.full(len(times), 0.5)
    return Evidence(live + 0.5 * differences + shift, live, times, HOUR_US)


def promoted(recipe: str, shift: float, memory: float, alpha: float, streams: int) -> int:
    generator = np.random.default_rng([len(recipe), round(1000 * abs(shift)), round(100 * memory)])
    count = 0
    for _ in range(streams):
        differences, times = stream(generator, 120, memory)
        count += decide(paired(differences, times, shift), recipe, GATE, alpha).verdict == "promoted"
    return count


@pytest.mark.parametrize("memory", [0.0, 0.6])
def test_equal_recipes_are_rarely_called_better(memory: float) -> None:
    assert promoted("search", 0.0, memory, 0.05, 300) <= most_by_chance(300, 0.05)


@pytest.mark.parametrize("memory", [0.0, 0.6])
def test_a_refresh_worse_by_twice_the_margin_is_rarely_promoted(memory: float) -> None:
    assert promoted("refresh", 2 * GATE.margin, memory, 0.05, 300) <= most_by_chance(300, 0.05)


def test_a_refresh_worse_by_the_margin_is_promoted_as_rarely_as_the_level_says() -> None:
    assert promoted("refresh", GATE.margin, 0.3, 0.05, 300) <= most_by_chance(300, 0.05)


def life(shift: float, candidates: int, seed: int) -> list[Decision]:
    """Decisions over a model's life, each challenger worse by `shift`, at the levels that earlier ones leave."""
    generator = np.random.default_rng(seed)
    decisions: list[Decision] = []
    evidence_: list[tuple[NDArray[np.float64], NDArray[np.int64]]] = []
    for number in range(candidates):
        evidence_.append(stream(generator, 40, 0.3))
        differences = np.concatenate([item for item, _ in evidence_])
        times = np.concatenate([item + 40 * HOUR_US * at for at, (_, item) in enumerate(evidence_)])
        found = decide(paired(differences, times, shift), "refresh", GATE, alpha_for(decisions, "refresh", GATE.alpha))
        decisions.append(
            Decision(
                version=number + 2,
                verdict=found.verdict,
                reason=found.reason,
                metrics=dict(found.metrics),
                recipe="refresh",
            )
        )
        if found.verdict != "undecided":
            evidence_ = []
    return decisions


def test_equal_challengers_go_on_being_promoted_after_150_of_them() -> None:
    decisions = life(0.0, 150, 1)
    late = [line.verdict for line in decisions[100:]]
    assert late.count("promoted") >= 10
    assert [line.verdict for line in decisions].count("refused") <= 8


def test_over_a_life_hardly_any_worse_challenger_is_promoted() -> None:
    wrong = sum(line.verdict == "promoted" for seed in range(10) for line in life(2 * GATE.margin, 30, seed))
    assert wrong <= 1
