"""How much error each decision of the gate may cost, from all decisions before it.

Two kinds of test, two guarantees, because they ask different things of a model's whole life:

*Search recipes* are few, and each asks to be called better. Their levels add up to at most alpha however many there
are: the k-th gets alpha / (k (k + 1)). So with probability 1 − alpha no recipe is ever promoted that is not better.

*Refreshes* go on for ever, and each asks only to be called no worse than a margin. Levels that add up to alpha over
all refreshes would reach zero, and the live version would be frozen by bookkeeping. What is held is the share of
wrong promotions among all promotions (the false discovery rate), by LORD++ (Ramdas, Yang, Wainwright & Jordan 2017):
each promotion earns new error to spend, each refusal uses some up. On a stream whose challengers are promoted time
and again the level approaches alpha; after a run of refusals it falls, and recovers with the next promotion.

The hypotheses of LORD++ are *campaigns*: all decisions about one lineage of challengers since the last promotion or
refusal. Every look of a campaign is taken at the campaign's level.

Turned down: splitting a campaign's level over its looks. The looks are not at one candidate: each is a new version,
trained further, on a window of evidence that has moved on. Split levels fell to a thousandth within a month of
flights, and a challenger that was better by 0.02 nats on average was kept from April to December (log loss 0.535
instead of 0.519). The price: a campaign of many looks promotes a challenger that is worse by the margin more often
than one look would. That is bounded by the margin, and mended by the campaigns after it, which are tested against it.

Only decisions that tested count: one that stopped before (too few rows, over budget) records alpha 0 and spends
nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from trimtab.store.manifest import Decision

__all__ = ["alpha_for"]


def alpha_for(decisions: Iterable[Decision], recipe: str, alpha: float) -> float:
    """The level of the next test of a recipe ("refresh" or "search"), after the model's decisions, oldest first."""
    tested = [line for line in decisions if line.recipe == recipe and _spent(line) > 0.0]
    if recipe == "search":
        return alpha * _share(len(tested) + 1)
    campaigns = _campaigns(tested)
    open_campaign = bool(campaigns) and campaigns[-1][-1] == "undecided"
    number = len(campaigns) + (0 if open_campaign else 1)
    won = [position for position, campaign in enumerate(campaigns[: number - 1], 1) if campaign[-1] == "promoted"]
    return _lord(number, won, alpha)


def _lord(number: int, won: Sequence[int], alpha: float) -> float:
    """Level of test `number` (from 1), tests at the positions `won` having rejected; initial wealth alpha / 2."""
    wealth = alpha / 2
    level = _share(number) * wealth
    if won:
        level += _share(number - won[0]) * (alpha - wealth)
    return level + alpha * sum(_share(number - position) for position in won[1:])


def _share(position: int) -> float:
    """A rule that adds up to 1 over all positions 1, 2, …"""
    return 1.0 / (position * (position + 1))


def _campaigns(tested: Sequence[Decision]) -> list[list[str]]:
    """Verdicts, grouped: each group ends with the one that decided it, the last may be undecided still."""
    groups: list[list[str]] = []
    for line in tested:
        if not groups or groups[-1][-1] != "undecided":
            groups.append([])
        groups[-1].append(line.verdict)
    return groups


def _spent(line: Decision) -> float:
    value = line.metrics.get("alpha", 0.0)
    return float(value) if isinstance(value, int | float) else 0.0
