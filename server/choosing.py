"""Which versions of a model are loaded, and which names stand for them. Pure: decides, and loads nothing.

Loaded are always the live version and the one before it (so that a rollback is a flip), the candidates staged last, and
those that an alias names; [model.versions] adds others. Aliases: `champion` is the live version, `challenger` the
candidate staged last; others are a person's, kept in live.json.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

from trimtab.server.errors import InvalidRequest
from trimtab.store.live import Live
from trimtab.store.settings import VersionsSettings
from trimtab.store.versions import Decision

__all__ = ["CHALLENGER", "CHAMPION", "aliases", "check_alias", "others", "wanted"]

CHAMPION, CHALLENGER = "champion", "challenger"
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")
_NOT_SERVED = ("refused", "abandoned")


def others(policy: VersionsSettings, published: Collection[int], decisions: Sequence[Decision]) -> set[int]:
    """The published versions that the policy adds."""
    if policy.policy == "specific":
        return set(policy.numbers) & set(published)
    verdicts = {decision.version: decision.verdict for decision in decisions}
    fit = sorted(number for number in published if verdicts.get(number) not in _NOT_SERVED)
    if policy.policy == "all":
        return set(fit)
    return set(fit[-policy.latest :]) if policy.policy == "latest" else set()


def wanted(live: Live, staged: Collection[int], added: Collection[int]) -> set[int]:
    """All that is to be loaded."""
    always = {live.live, live.previous or 0, *live.aliases.values()} - {0}
    return always | set(staged) | set(added)


def aliases(live: Live, staged: Sequence[int], loaded: Collection[int]) -> Mapping[str, int]:
    """Every name that stands for a loaded version; `staged` in the order of staging."""
    found = {name: number for name, number in live.aliases.items() if number in loaded}
    if live.live in loaded:
        found[CHAMPION] = live.live
    if staged and staged[-1] in loaded:
        found[CHALLENGER] = staged[-1]
    return found


def check_alias(name: str) -> None:
    """Raises InvalidRequest unless a person may set an alias of that name."""
    if name in (CHAMPION, CHALLENGER):
        raise InvalidRequest(f"alias {name!r} is the server's own: it follows from what is live and staged")
    if _NAME.fullmatch(name) is None:
        raise InvalidRequest(f"alias: expected a letter, then letters, digits, '_', '-', '.', got {name[:80]!r}")
