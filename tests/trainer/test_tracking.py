"""MLflow told of what happened, against its real SQLite store; and tracking servers that are dead or hang."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from trimtab.store.live import Live, LiveStore
from trimtab.store.manifest import Decision, Manifest, Verdict
from trimtab.store.project import Project
from trimtab.store.versions import VersionStore
from trimtab.trainer import mlflow_client
from trimtab.trainer.outbox import Outbox
from trimtab.trainer.tracking import Tracker

PATIENCE = 60.0
"""Longest that a test waits for what must happen, in seconds; nothing is measured by it."""

# Importing mlflow and its SQL store warns of deprecations among its own dependencies.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def make_project(directory: Path, **mlflow: Any) -> Project:
    model: dict[str, Any] = {"name": "m", "task": "binary", "classes": ["0", "1"], "positive": "1"}
    model |= {"feature": [{"name": "x", "type": "real"}], "label": {"column": "y"}}
    return Project.from_dict({"model": [model], "mlflow": mlflow}, directory)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A database with MLflow's tables: making them takes seconds."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    mlflow_client.connect(f"sqlite:///{path}", "another", "another", path.parent)
    return path.read_bytes()


@pytest.fixture
def project(tmp_path: Path, made: bytes) -> Project:
    project = make_project(tmp_path / "p")
    project.state.mkdir(parents=True)
    (project.state / "mlflow.db").write_bytes(made)
    return project


class Told:
    """A project's tracker, and MLflow as anybody else sees it."""

    def __init__(self, project: Project) -> None:
        from mlflow.tracking import MlflowClient

        self.project = project
        self.paths = project.model_state("m")
        self.outbox = Outbox(self.paths.outbox)
        self.tracker = Tracker(project, project.models[0], self.outbox)
        self.client: Any = MlflowClient(project.mlflow_uri, project.mlflow_uri)

    def candidate(self, version: int, verdict: Verdict, *, workflow: str = "", published: bool = True) -> None:
        """A candidate as the workflow tells of it, published in the version store."""
        store = VersionStore(self.paths.versions)
        manifest = None
        if published:
            files = {"weights.safetensors": f"weights {version}".encode()}
            bare = Manifest(
                version=version, parent=version - 1 or None, recipe="refresh", snapshot_hash=f"snap{version}"
            )
            manifest = store.publish(
                version, files, bare.model_copy(update={"program_hash": "prog", "verdict": verdict})
            )
        decision = Decision(
            version=version,
            verdict=verdict,
            reason=f"because of {version}",
            recipe="refresh",
            metrics={"difference": -0.01, "alpha//spent (%)": 0.05, "broken": float("nan"), "text": "no number"},
        )
        path = store.path(version) if published else None
        name = workflow or f"m-refresh-{version}"
        self.tracker.tell_candidate(name, decision, manifest, path, {"trigger": "labels"})

    def live(self, version: int, reason: str = "promoted") -> None:
        """Makes a version live, as the server does."""
        LiveStore(self.paths.live).swap(Live(live=version), expected_epoch=-1, reason=reason)

    def runs(self) -> list[Any]:
        experiment = self.client.get_experiment_by_name("trimtab")
        return sorted(
            self.client.search_runs([experiment.experiment_id]), key=lambda run: int(run.data.tags["trimtab.version"])
        )

    def versions(self) -> dict[str, str]:
        """MLflow's number by the tag."""
        found = self.client.search_model_versions("name = 'm'")
        tags = [version.tags["trimtab.version"] for version in found]
        assert len(set(tags)) == len(tags), "a version is there twice"
        return {version.tags["trimtab.version"]: str(version.version) for version in found}

    def alias(self, name: str) -> str | None:
        """The version that an alias points at, by the tag."""
        number = self.client.get_registered_model("m").aliases.get(name)
        return None if number is None else str(self.client.get_model_version("m", str(number)).tags["trimtab.version"])

    def move_champion(self, version: int) -> None:
        """What a person does in MLflow."""
        self.client.set_registered_model_alias("m", "champion", self.versions()[str(version)])


@pytest.fixture
def told(project: Project) -> Iterator[Told]:
    told = Told(project)
    told.tracker.start()
    yield told
    told.tracker.close(5.0)


def test_candidate_becomes_run_with_its_lineage(told: Told) -> None:
    told.candidate(1, "initial")
    told.candidate(2, "refused", published=False)
    assert told.tracker.flush(PATIENCE)
    first, second = told.runs()
    manifest = VersionStore(told.paths.versions).manifest(1)
    tags = first.data.tags
    assert tags["trimtab.workflow"] == "m-refresh-1"
    assert tags["trimtab.verdict"] == "initial"
    assert tags["trimtab.reason"] == "because of 1"
    assert tags["trimtab.weights"] == manifest.weights
    assert tags["trimtab.snapshot_hash"] == "snap1"
    assert tags["trimtab.program_hash"] == "prog"
    assert tags["trimtab.recipe"] == "refresh"
    assert tags["trimtab.parent"] == ""
    assert first.data.params["trigger"] == "labels"
    assert first.data.metrics == {"difference": -0.01, "alpha__spent ___": 0.05}
    assert first.info.status == "FINISHED"
    assert second.data.tags["trimtab.verdict"] == "refused"
    assert told.versions().keys() == {"1"}, "only what was published is a model version"
    version = told.client.get_model_version("m", told.versions()["1"])
    assert version.run_id == first.info.run_id
    assert version.source == told.paths.versions.joinpath("1").as_uri()
    assert told.tracker.state == "ok"


def test_told_twice_is_told_once(told: Told) -> None:
    told.candidate(1, "undecided")
    assert told.tracker.flush(PATIENCE)
    told.candidate(1, "undecided")
    assert told.tracker.flush(PATIENCE)
    (run,) = told.runs()
    assert told.versions().keys() == {"1"}
    assert len(told.client.get_metric_history(run.info.run_id, "difference")) == 1


def test_later_verdict_reaches_the_model_version(told: Told) -> None:
    told.candidate(1, "undecided")
    assert told.tracker.flush(PATIENCE)
    store = VersionStore(told.paths.versions)
    decision = Decision(version=1, verdict="promoted", reason="by hand")
    told.tracker.tell_candidate("m-refresh-1", decision, store.manifest(1), store.path(1), {"trigger": "labels"})
    assert told.tracker.flush(PATIENCE)
    assert told.client.get_model_version("m", told.versions()["1"]).tags["trimtab.verdict"] == "promoted"
    assert len(told.runs()) == 1


def test_aliases_follow_live_and_the_newest_undecided(told: Told) -> None:
    told.candidate(1, "initial")
    told.tracker.tell_live(1, "first")
    told.candidate(2, "undecided")
    told.candidate(3, "undecided")
    assert told.tracker.flush(PATIENCE)
    assert (told.alias("champion"), told.alias("challenger")) == ("1", "3")
    told.candidate(4, "promoted")
    told.tracker.tell_live(4, "better")
    assert told.tracker.flush(PATIENCE)
    assert (told.alias("champion"), told.alias("challenger")) == ("4", None)


def test_restart_delivers_what_waited(project: Project) -> None:
    before = Told(project)
    before.candidate(1, "initial")
    before.tracker.tell_live(1, "first")
    assert before.tracker.state == "behind"
    before.outbox.close()  # Killed before its thread came to anything.
    after = Told(project)
    after.tracker.start()
    assert after.tracker.flush(PATIENCE)
    assert after.alias("champion") == "1"
    after.tracker.close(5.0)


def test_two_projects_share_a_tracking_server(told: Told, tmp_path: Path) -> None:
    told.candidate(1, "initial")
    assert told.tracker.flush(PATIENCE)
    other = Told(make_project(tmp_path / "other", tracking_uri=told.project.mlflow_uri))
    store = VersionStore(other.paths.versions)
    manifest = store.publish(1, {"weights.safetensors": b"others"}, Manifest(version=1))
    decision = Decision(version=1, verdict="initial", reason="the other's")
    other.tracker.start()
    other.tracker.tell_candidate("m-refresh-1", decision, manifest, store.path(1), {"trigger": "labels"})
    other.tracker.tell_live(1, "the other's")
    assert other.tracker.flush(PATIENCE)
    assert len(told.runs()) == 2
    found = told.client.search_model_versions("name = 'm'")
    assert {version.tags["trimtab.weights"] for version in found} == {
        manifest.weights,
        VersionStore(told.paths.versions).manifest(1).weights,
    }
    champion = told.client.get_model_version_by_alias("m", "champion")
    assert champion.tags["trimtab.weights"] == manifest.weights
    other.tracker.close(5.0)


def test_message_that_makes_no_sense_is_given_up(told: Told, capsys: pytest.CaptureFixture[str]) -> None:
    told.outbox.put("a", "candidate", {"workflow": "w"})
    told.outbox.put("b", "from the future", {})
    told.candidate(1, "initial")
    assert told.tracker.flush(PATIENCE)
    assert told.outbox.dropped == 2
    assert told.versions().keys() == {"1"}
    assert "makes no sense" in capsys.readouterr().err


def test_message_that_mlflow_refuses_twice_is_given_up(told: Told) -> None:
    decision = Decision(version=1, verdict="initial", reason="")
    told.tracker.tell_candidate("w", decision, None, None, {"a parameter; with no name / that": "is allowed"})
    assert not told.tracker.flush(PATIENCE)
    assert told.tracker.state.startswith("failing: ")
    assert told.tracker.flush(PATIENCE)
    assert told.outbox.dropped == 1


def test_experiment_and_model_deleted_by_a_person_come_back(told: Told) -> None:
    told.candidate(1, "initial")
    assert told.tracker.flush(PATIENCE)
    told.client.delete_experiment(told.client.get_experiment_by_name("trimtab").experiment_id)
    told.client.delete_registered_model("m")
    told.candidate(2, "undecided")
    told.tracker.flush(PATIENCE)
    assert told.tracker.flush(PATIENCE)
    assert told.outbox.dropped == 0
    assert told.versions().keys() == {"2"}


# --- a champion that a person moves


@pytest.fixture
def live(project: Project) -> Iterator[Told]:
    """Versions 1 and 2 with 2 live, all told; nothing polls but the test."""
    told = Told(project)
    told.tracker.start()
    told.candidate(1, "initial")
    told.candidate(2, "promoted")
    told.live(2)
    told.tracker.tell_live(2, "better")
    assert told.tracker.flush(PATIENCE)
    yield told
    told.tracker.close(5.0)


def test_untouched_champion_asks_for_nothing(live: Told) -> None:
    assert live.tracker.poll() is None
    assert live.alias("champion") == "2"


def test_moved_champion_is_a_request(live: Told) -> None:
    live.move_champion(1)
    assert live.tracker.poll() == 1
    # The server promoted it.
    live.live(1)
    live.tracker.tell_live(1, "champion was moved")
    assert live.tracker.flush(PATIENCE)
    assert live.tracker.poll() is None
    assert live.alias("champion") == "1"


def test_request_that_was_not_granted_is_put_back_and_may_be_made_again(
    live: Told, capsys: pytest.CaptureFixture[str]
) -> None:
    live.move_champion(1)
    assert live.tracker.poll() == 1
    assert live.tracker.poll() is None
    assert live.alias("champion") == "2"
    assert "champion of m pointed at 1; it is 2 again" in capsys.readouterr().err
    assert live.tracker.poll() is None
    live.move_champion(1)
    assert live.tracker.poll() == 1


def test_request_is_left_alone_while_it_waits_to_be_dealt_with(live: Told) -> None:
    live.move_champion(1)
    live.tracker.requested = live.tracker.poll()
    assert live.tracker.poll() is None
    assert live.alias("champion") == "1"
    assert live.tracker.requested == 1


def test_request_survives_a_restart(live: Told) -> None:
    live.move_champion(1)
    assert live.tracker.poll() == 1
    again = Tracker(live.project, live.project.models[0], live.outbox)
    assert again.poll() == 1


def test_champion_that_only_lags_behind_is_put_back(live: Told) -> None:
    # As if this had died, or MLflow had, between remembering what is written and writing it.
    live.candidate(3, "promoted")
    assert live.tracker.flush(PATIENCE)
    live.live(3)
    live.outbox.remember("written", 3)
    assert live.tracker.poll() is None
    assert live.alias("champion") == "3"


def test_nothing_is_judged_while_messages_wait(live: Told, project: Project) -> None:
    live.move_champion(1)
    live.tracker.close(5.0)
    stalled = Told(project)  # Never started: it delivers nothing.
    stalled.candidate(3, "undecided")
    assert stalled.tracker.poll() is None
    assert stalled.alias("champion") == "1"
    stalled.outbox.close()


def test_deleted_champion_is_put_back(live: Told) -> None:
    live.client.delete_registered_model_alias("m", "champion")
    assert live.tracker.poll() is None
    assert live.alias("champion") == "2"


def test_champion_moved_to_a_stranger_is_put_back(live: Told) -> None:
    tags = {"trimtab.version": "1", "trimtab.weights": "not ours"}
    stranger = live.client.create_model_version("m", source="s3://elsewhere", tags=tags)
    live.client.set_registered_model_alias("m", "champion", stranger.version)
    assert live.tracker.poll() is None
    assert live.client.get_model_version_by_alias("m", "champion").tags["trimtab.version"] == "2"


def test_version_that_went_live_by_hand_becomes_champion(live: Told) -> None:
    live.live(1, "rolled back")
    assert live.tracker.poll() is None
    assert live.tracker.flush(PATIENCE)
    assert live.alias("champion") == "1"
    assert live.tracker.poll() is None


# --- tracking servers that are not there


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def hanging() -> Iterator[int]:
    """Accepts connections and never says a word."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(16)
        yield int(server.getsockname()[1])


def failing_tracker(directory: Path, port: int) -> Told:
    told = Told(make_project(directory, tracking_uri=f"http://127.0.0.1:{port}"))
    told.tracker.start()
    return told


def until(tracker: Tracker, what: Callable[[str], bool]) -> None:
    """Waits for a state, by the condition that announces it."""
    with tracker._changed:
        assert tracker._changed.wait_for(lambda: what(tracker.state), PATIENCE), tracker.state


@pytest.mark.parametrize("hangs", [False, True], ids=["dead", "hanging"])
def test_server_that_does_not_answer_keeps_messages_and_says_so(tmp_path: Path, hanging: int, hangs: bool) -> None:
    told = failing_tracker(tmp_path, hanging if hangs else closed_port())
    told.candidate(1, "initial")
    told.tracker.tell_live(1, "first")
    until(told.tracker, lambda state: state.startswith("failing: "))
    assert len(told.outbox) == 2
    assert told.outbox.retry_seconds() > 0
    # Telling does not wait for an attempt that hangs.
    told.candidate(2, "undecided")
    assert len(told.outbox) == 3
    told.tracker.close(10.0)
    left = Outbox(told.paths.outbox)
    assert len(left) == 3
    left.close()


def test_flush_of_a_dead_server_ends_with_the_attempt(tmp_path: Path) -> None:
    told = failing_tracker(tmp_path, closed_port())
    told.candidate(1, "initial")
    assert not told.tracker.flush(1e6)
    told.tracker.close(10.0)


def test_disabled_stores_nothing_and_starts_no_thread(tmp_path: Path) -> None:
    told = Told(make_project(tmp_path, enabled=False))
    told.tracker.start()
    told.candidate(1, "initial")
    told.tracker.tell_live(1, "first")
    assert len(told.outbox) == 0
    assert told.tracker.flush(0.0)
    assert told.tracker.state == "ok"
    assert told.tracker._thread is None
    told.tracker.close(1.0)


_PROCESS = """
import sys
from pathlib import Path
from trimtab.store.manifest import Decision
from trimtab.store.project import Project
from trimtab.trainer.outbox import Outbox
from trimtab.trainer.tracking import Tracker
assert not any(name.startswith(("mlflow.", "sqlalchemy")) for name in sys.modules)
project = Project.load(Path(sys.argv[1]))
tracker = Tracker(project, project.models[0], Outbox(project.model_state("m").outbox))
tracker.start()
assert "mlflow" not in sys.modules
tracker.tell_candidate("w", Decision(version=1, verdict="initial", reason=""), None, None, {})
assert tracker.flush(120)
tracker.close(1)
"""


def test_a_process_of_its_own_is_quiet_and_leaves_nothing_elsewhere(tmp_path: Path) -> None:
    folder, here = tmp_path / "p", tmp_path / "here"
    folder.mkdir()
    here.mkdir()
    (folder / "trimtab.toml").write_text(
        '[[model]]\nname = "m"\ntask = "regression"\n[[model.feature]]\nname = "x"\ntype = "real"\n'
        '[model.label]\ncolumn = "y"\n'
    )
    done = subprocess.run(
        [sys.executable, "-c", _PROCESS, str(folder)],
        cwd=here,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(here.iterdir()) == []
    assert sorted(path.name for path in (folder / "state").iterdir()) == ["m", "mlflow.db"]


def test_poll_runs_on_its_own_time(live: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trimtab.trainer.tracking.POLL_SECONDS", 0.05)
    live.move_champion(1)
    again = Tracker(live.project, live.project.models[0], live.outbox)
    again.start()
    end = time.monotonic() + PATIENCE
    with again._changed:
        while again.requested is None and time.monotonic() < end:
            again._changed.wait(1.0)
    assert again.requested == 1
    again.close(5.0)


# --- the reference as an artifact


def published(told: Told, version: int, reference: bytes = b"a sketch") -> Path:
    """Tells of a version that has a reference; its folder."""
    store = VersionStore(told.paths.versions)
    files = {"weights.safetensors": f"weights {version}".encode(), "reference.arrow": reference}
    manifest = store.publish(version, files, Manifest(version=version))
    decision = Decision(version=version, verdict="promoted", reason="better")
    told.tracker.tell_candidate(f"m-refresh-{version}", decision, manifest, store.path(version), {})
    return store.path(version)


def test_a_versions_reference_is_its_runs_artifact(told: Told) -> None:
    published(told, 1, b"one")
    published(told, 2, b"two")
    told.tracker.tell_live(2, "better")
    assert told.tracker.flush(PATIENCE)
    uri = told.project.mlflow_uri
    for run, data in zip(told.runs(), (b"one", b"two"), strict=True):
        what = f"runs:/{run.info.run_id}/reference.arrow"
        assert mlflow_client.fetch(uri, what) == (data, what)
    second = told.runs()[1].info.run_id
    for what in ("models:/m@champion", f"models:/m/{told.versions()['2']}"):
        assert mlflow_client.fetch(uri, what) == (b"two", f"{what} (runs:/{second}/reference.arrow)")
    assert len(told.outbox) == 0


@pytest.mark.parametrize(
    "what", ["models:/m", "models:/@champion", "runs:/", "runs:/abc", "s3://bucket/reference.arrow"]
)
def test_other_forms_of_artifacts_are_refused(told: Told, what: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        mlflow_client.fetch(told.project.mlflow_uri, what)


def test_an_artifact_store_that_fails_holds_up_nothing_else(
    told: Told, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mlflow.tracking import MlflowClient

    def refused(*_: object) -> None:
        raise ModuleNotFoundError("No module named 'boto3'")

    monkeypatch.setattr(MlflowClient, "log_artifact", refused)
    published(told, 1)
    told.tracker.tell_live(1, "first")
    while not told.tracker.flush(PATIENCE):
        assert told.tracker.state.startswith("failing: reference.arrow of m-refresh-1: No module named 'boto3'")
    assert (told.outbox.dropped, told.alias("champion")) == (1, "1")
    assert "MLflow was not told of reference" in capsys.readouterr().err


def test_a_version_that_was_deleted_before_it_was_told_holds_up_nothing(project: Project) -> None:
    told = Told(project)
    shutil.rmtree(published(told, 1))
    told.tracker.start()
    while not told.tracker.flush(PATIENCE):
        pass
    assert told.outbox.dropped == 1
    assert len(told.runs()) == 1
    told.tracker.close(5.0)
