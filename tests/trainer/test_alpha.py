"""What each decision may cost: two guarantees, and that a model can still be promoted after years."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trimtab.store.manifest import Decision
from trimtab.trainer.alpha import alpha_for

VERDICTS = st.lists(st.sampled_from(["promoted", "refused", "undecided"]), max_size=60)


def lines(verdicts: list[str], recipe: str = "refresh", alpha: float = 0.01) -> list[Decision]:
    return [
        Decision(version=number, verdict=verdict, reason="r", metrics={"alpha": alpha}, recipe=recipe)  # type: ignore[arg-type]
        for number, verdict in enumerate(verdicts, 2)
    ]


def spent(verdicts: list[str], recipe: str) -> list[float]:
    return [alpha_for(lines(verdicts[:number], recipe), recipe, 0.05) for number in range(len(verdicts))]


@given(VERDICTS)
def test_searches_together_spend_no_more_than_alpha(verdicts: list[str]) -> None:
    levels = spent(verdicts, "search")
    assert sum(levels) <= 0.05
    assert all(level > 0 for level in levels)


@given(VERDICTS)
def test_campaigns_spend_no_more_than_alpha_for_each_promotion(verdicts: list[str]) -> None:
    levels = spent(verdicts, "refresh")
    assert all(0 < level <= 0.05 for level in levels)
    # The invariant of LORD++: at every time, what campaigns spent is at most alpha times the promotions (at least one).
    firsts = [at for at in range(len(verdicts)) if at == 0 or verdicts[at - 1] != "undecided"]
    for number in firsts:
        promotions = verdicts[:number].count("promoted")
        campaigns = sum(levels[at] for at in firsts if at <= number)
        assert campaigns <= 0.05 * max(promotions, 1) + 1e-12


def test_every_look_of_a_campaign_has_its_level() -> None:
    assert spent(["undecided"] * 40, "refresh") == pytest.approx([0.05 / 2 / 2] * 40)


def test_after_many_promotions_the_level_is_near_alpha() -> None:
    levels = spent(["promoted"] * 200, "refresh")
    assert levels[-1] == pytest.approx(0.05, rel=0.02)
    # And a hundred refusals later, one promotion brings it back.
    refused = spent(["promoted"] * 20 + ["refused"] * 100 + ["promoted", "refused"], "refresh")
    assert refused[119] < 0.002 < 0.012 < refused[-1]


def test_decisions_that_tested_nothing_cost_nothing() -> None:
    untested = lines(["undecided", "refused", "undecided"], alpha=0.0)
    assert alpha_for(untested, "refresh", 0.05) == alpha_for([], "refresh", 0.05)
    initial = [Decision(version=1, verdict="initial", reason="r"), Decision(version=2, verdict="abandoned", reason="r")]
    assert alpha_for(initial, "search", 0.05) == pytest.approx(0.025)


def test_recipes_have_accounts_of_their_own() -> None:
    searches = lines(["refused"] * 5, "search")
    assert alpha_for(searches, "refresh", 0.05) == alpha_for([], "refresh", 0.05)
    assert alpha_for(searches, "search", 0.05) == pytest.approx(0.05 / 42)


def test_damaged_numbers_count_as_untested() -> None:
    line = Decision(version=2, verdict="refused", reason="r", metrics={"alpha": "x"}, recipe="refresh")
    assert alpha_for([line], "refresh", 0.05) == alpha_for([], "refresh", 0.05)
