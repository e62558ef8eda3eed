"""Which versions are loaded and what they are called: the pure part."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trimtab.server.choosing import aliases, check_alias, others, wanted
from trimtab.server.errors import InvalidRequest
from trimtab.store.live import Live
from trimtab.store.settings import VersionsSettings
from trimtab.store.versions import Decision

NUMBERS = st.integers(1, 12)


def decision(number: int, verdict: str) -> Decision:
    return Decision(version=number, verdict=verdict, reason="")  # type: ignore[arg-type]


def policy(name: str, **values: object) -> VersionsSettings:
    return VersionsSettings.model_validate({"policy": name, **values})


@given(st.sets(NUMBERS), st.sets(NUMBERS), st.integers(1, 4))
def test_what_the_policy_adds(published: set[int], refused: set[int], count: int) -> None:
    decisions = [decision(number, "refused") for number in sorted(refused)]
    fit = published - refused
    assert others(policy("live"), published, decisions) == set()
    assert others(policy("all"), published, decisions) == fit
    assert others(policy("latest", latest=count), published, decisions) == set(sorted(fit)[-count:])
    assert others(policy("specific", numbers=(1, 2)), published, decisions) == {1, 2} & published


def test_the_last_verdict_counts() -> None:
    turned = [decision(2, "refused"), decision(2, "promoted"), decision(3, "abandoned")]
    assert others(policy("all"), [1, 2, 3], turned) == {1, 2}


@given(NUMBERS, st.none() | NUMBERS, st.lists(NUMBERS, unique=True), st.sets(NUMBERS), st.data())
def test_every_name_stands_for_a_version_that_is_loaded(
    live: int, previous: int | None, staged: list[int], added: set[int], data: st.DataObject
) -> None:
    given_names = data.draw(st.dictionaries(st.sampled_from(["stable", "a", "b"]), NUMBERS))
    state = Live(live=live, previous=previous, aliases=given_names)
    all_of_them = wanted(state, staged, added)
    assert {live, *staged, *added, *given_names.values()} <= all_of_them
    # Some could not be loaded; the live one is always there.
    loaded = data.draw(st.sets(st.sampled_from(sorted(all_of_them)))) | {live}
    names = aliases(state, staged, loaded)
    assert set(names.values()) <= loaded
    assert names["champion"] == live
    assert names.get("challenger") == (staged[-1] if staged and staged[-1] in loaded else None)
    assert {name for name, number in given_names.items() if number in loaded} == set(names) - {"champion", "challenger"}


@pytest.mark.parametrize("name", ["champion", "challenger", "", "7", "7up", "a b", "x" * 65, "ä", "a\n"])
def test_names_that_nobody_may_give(name: str) -> None:
    with pytest.raises(InvalidRequest):
        check_alias(name)


@pytest.mark.parametrize("name", ["stable", "A", "v1.2-beta_3", "x" * 64])
def test_names_that_a_person_may_give(name: str) -> None:
    check_alias(name)
