"""The trainer beside a real server: it retrains, and a death in any step of its workflow loses and doubles nothing."""

from __future__ import annotations

import hashlib
import os
import signal
from pathlib import Path

import pytest
from trimtab.models.version import load_version
from trimtab.store.live import LiveStore
from trimtab.store.project import Project
from trimtab.store.timeline import read_evidence
from trimtab.store.versions import VersionStore
from trimtab.trainer.workflow import STEPS

from .stream import MODEL, make_project, serving

HOURS = (40, 76)
"""Played; at 10 rows an hour and 300 labels a refresh, one refresh is due."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project that is copied for each test: training it takes seconds."""
    return make_project(tmp_path_factory.mktemp("trained") / "project").directory


@pytest.fixture
def project(trained: Path, tmp_path: Path) -> Project:
    import shutil

    shutil.copytree(trained, tmp_path / "p")
    return Project.load(tmp_path / "p")


def outcome(project: Project) -> dict[str, object]:
    """What must not depend on whether the trainer died: decisions and the weights' hashes."""
    paths = project.model_state(MODEL)
    store = VersionStore(paths.versions)
    live = LiveStore(paths.live).read()
    assert live is not None
    return {
        "decisions": [(line.version, line.verdict, line.reason, line.recipe) for line in store.decisions()],
        "weights": {number: store.manifest(number).weights for number in store.numbers()},
        "snapshots": {number: store.manifest(number).snapshot_hash for number in store.numbers() if number > 1},
        "live": live.live,
        "left_over": sorted(path.name for path in paths.versions.glob("*.fitting")),
    }


@pytest.fixture(scope="module")
def played(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """After a run in which nothing died."""
    import shutil

    folder = tmp_path_factory.mktemp("undisturbed") / "p"
    shutil.copytree(trained, folder)
    project = Project.load(folder)
    with serving(project) as server:
        server.play(*HOURS)
        assert server.stop() == 0
    return project


@pytest.fixture(scope="module")
def undisturbed(played: Project) -> dict[str, object]:
    """The outcome when nothing dies."""
    return outcome(played)


def test_it_refreshes_and_promotes_once_enough_rows_matured(undisturbed: dict[str, object]) -> None:
    assert undisturbed["live"] == 2
    decisions = undisturbed["decisions"]
    assert isinstance(decisions, list)
    assert [line[:2] for line in decisions] == [(1, "initial"), (2, "promoted")]
    assert all(line[2] for line in decisions)
    assert undisturbed["left_over"] == []


def test_what_labels_said_is_on_the_timeline(played: Project) -> None:
    found = read_evidence(played.model_state(MODEL).timeline)
    realised = [entry for entry in found if entry.kind == "realised"]
    assert {entry.version for entry in realised} >= {1}
    assert sum(entry.numbers["rows"] for entry in realised) >= 300
    assert all(0.0 < entry.numbers["loss"] < 5.0 for entry in realised)
    (decided,) = [entry for entry in found if entry.kind == "decided"]
    assert decided.version == 2
    assert decided.message.startswith("promoted: ")
    assert realised[0].time_us < decided.time_us
    assert load_version(VersionStore(played.model_state(MODEL).versions), 2).scores is not None  # its parent's


@pytest.mark.slow
def test_a_trainer_killed_in_every_step_resumes_and_publishes_once(
    project: Project, tmp_path: Path, undisturbed: dict[str, object]
) -> None:
    places = [("snapshot", "before"), *((step, "after") for step in STEPS)]
    markers = {place: tmp_path / f"{place[0]}.{place[1]}" for place in places}
    crashes = ",".join(f"{step}:{when}:{marker}" for (step, when), marker in markers.items())
    with serving(project, {"TRIMTAB_TEST_CRASH": crashes}) as server:
        server.play(*HOURS)
        status = server.admin.status().trainer
        assert server.stop() == 0
    assert [place for place, marker in markers.items() if not marker.exists()] == []
    assert status.restarts == len(places)
    assert outcome(project) == undisturbed


def test_a_trainer_killed_between_commands_goes_on_where_it_was(
    project: Project, undisturbed: dict[str, object]
) -> None:
    first, last = HOURS
    with serving(project) as server:
        server.play(first, first + 6)
        os.kill(server.trainer_pid(), signal.SIGKILL)
        server.play(first + 6, last)
        assert server.stop() == 0
    assert outcome(project) == undisturbed


def test_the_snapshot_hash_is_of_content(undisturbed: dict[str, object]) -> None:
    snapshots = undisturbed["snapshots"]
    assert isinstance(snapshots, dict)
    assert all(len(digest) == len(hashlib.sha256().hexdigest()) for digest in snapshots.values())
