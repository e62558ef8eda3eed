"""What drift windows are compared with: chosen on the admin socket and by the command, of real servers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from trimtab.client import AdminClient, Denied, NotFound, Unfit
from trimtab.kernels.fit import fit_program
from trimtab.kernels.program import ColumnProgram
from trimtab.kernels.sketch import Sketch
from trimtab.protos.v1 import trimtab_pb2 as pb
from trimtab.protos.v1.trimtab_pb2_grpc import DriftStub
from trimtab.server.servicers.lifecycle import TRAINER
from trimtab.store.kept_windows import WindowFolder
from trimtab.store.pins import PinFile
from trimtab.store.project import Project
from trimtab.store.versions import VersionStore
from trimtab.trainer.mlflow_client import connect

from .world import MODEL, Running, infer_request, publish, serving, table, write_project

HOUR = 3_600_000_000


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = write_project(
        tmp_path / "project",
        server="lockstep = true",
        sections={"drift": 'window = "1h"\npersistence = 2\nmin_effect = 0.0\nalpha = 0.5'},
    )
    publish(made, 1, verdict="initial")
    return made


def refitted(project: Project) -> ColumnProgram:
    settings = project.model(MODEL)
    return fit_program(settings.specs(), lambda: iter([table(2000, seed=9)]), keys=settings.extra_keys)


def window(running: Running, hour: int, rows: int = 200, moved: bool = False) -> Any:
    """Serves an hour and returns its report."""
    served = table(rows, 5)
    if moved:
        served = served.set_column(0, "x", pc.add(served.column("x"), pa.scalar(20.0, pa.float32())))
    with running.inference() as stub:
        stub.ModelInfer(infer_request(served, trimtab_time_us=hour * HOUR))
    with running.lifecycle() as lifecycle:
        lifecycle.Advance(pb.AdvanceRequest(data_time_us=(hour + 1) * HOUR), timeout=60)
    with running.channel() as channel:
        return DriftStub(channel).Report(pb.DriftRequest(model_name=MODEL), timeout=10).reports[-1]


def command(*arguments: str | Path) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "trimtab.cli.app", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def pin_of(running: Running) -> Any:
    with running.lifecycle() as lifecycle:
        (model,) = lifecycle.Status(pb.StatusRequest(), timeout=10).models
        return model.drift_pin if model.HasField("drift_pin") else None


def in_a_row(report: Any) -> int:
    """Windows in which x drifted, up to this one."""
    return int(next(feature.persistence for feature in report.features if feature.feature == "x"))


def watch(lifecycle: Any) -> Any:
    events = lifecycle.WatchEvents(pb.WatchEventsRequest(model_name=MODEL), timeout=60)
    # Answered after the watch was taken up: one channel, in order.
    lifecycle.Status(pb.StatusRequest(), timeout=10)
    return events


def test_windows_are_compared_with_kept_ones_and_with_the_training_data_again(project: Project) -> None:
    with serving(project) as running, AdminClient(running.admin) as admin, running.lifecycle() as lifecycle:
        first = window(running, 1)
        assert (first.reference, first.reference_rows) == ("training", 2000)
        window(running, 2, rows=300)
        rows = [in_a_row(window(running, hour, moved=True)) for hour in (3, 4)]
        events = watch(lifecycle)
        answer = admin.pin_reference(MODEL, windows=(1, 2)).pin
        assert (answer.origin, answer.rows, answer.fits) == ("windows 1-2", 500, True)
        event = next(events)
        assert (event.kind, event.message) == (
            "pinned",
            "drift windows are compared with windows 1-2 (500 rows) from now on",
        )
        report = window(running, 5, moved=True)
        assert (report.reference, report.reference_rows) == ("windows 1-2", 500)
        assert [*rows, in_a_row(report)] == [1, 2, 1]
        assert pin_of(running) == answer
        folder = WindowFolder(project.model_state(MODEL).windows)
        kept = PinFile(folder.directory).read()
        assert kept is not None
        assert (kept.sketch, kept.sha256) == (folder.merged(1, 2)[1], answer.sha256)
        assert not admin.pin_reference(MODEL).HasField("pin")
        assert window(running, 6).reference == "training"
        assert pin_of(running) is None


def test_a_pin_survives_the_server(project: Project) -> None:
    with serving(project) as running, AdminClient(running.admin) as admin:
        window(running, 1)
        admin.pin_reference(MODEL, windows=(1, 1))
        first = window(running, 2, moved=True)
        running.process.kill()
        running.process.wait()
    with serving(project) as running:
        again = window(running, 3, moved=True)
        assert (again.reference, again.reference_rows) == ("window 1", 200)
        assert (in_a_row(first), in_a_row(again)) == (1, 2)


def test_what_does_not_fit_is_refused_and_changes_nothing(project: Project) -> None:
    other = Sketch(refitted(project).sketch)
    other.counts[0] = 7
    with serving(project) as running, AdminClient(running.admin, retries=0) as admin:
        window(running, 1)
        admin.pin_reference(MODEL, windows=(1, 1))
        with pytest.raises(Unfit, match=r"expected a sketch as version 1 counts \(spec .*other edges or categories of"):
            admin.pin_reference(MODEL, sketch=other.to_bytes(), origin="elsewhere.arrow")
        with pytest.raises(Unfit, match="it has seen none"):
            admin.pin_reference(MODEL, sketch=Sketch(other.spec).to_bytes(), origin="empty.arrow")
        with pytest.raises(Unfit, match=r"junk\.arrow: expected a sketch such as a version's reference.arrow"):
            admin.pin_reference(MODEL, sketch=b"junk", origin="junk.arrow")
        with pytest.raises(NotFound, match="windows 4-9 are not kept; 1 to 1 are"):
            admin.pin_reference(MODEL, windows=(4, 9))
        with running.lifecycle() as lifecycle, pytest.raises(grpc.RpcError, match="expected numbers from 1"):
            lifecycle.PinReference(pb.PinReferenceRequest(windows=pb.WindowRange(first=2, last=1)), timeout=10)
        assert pin_of(running).origin == "window 1"
        assert window(running, 2).reference == "window 1"


def test_only_the_admin_socket_and_where_people_decide_no_trainer(tmp_path: Path) -> None:
    project = write_project(tmp_path / "project", sections={"rollout": 'approve = "person"'})
    publish(project, 1, verdict="initial")
    with serving(project) as running:
        with AdminClient(running.admin, retries=0, caller=TRAINER) as trainer, pytest.raises(Denied, match="a person"):
            trainer.pin_reference(MODEL)
        with AdminClient(running.admin) as person:
            person.pin_reference(MODEL)
        with running.channel() as channel:
            call = channel.unary_unary("/trimtab.v1.Lifecycle/PinReference")
            with pytest.raises(grpc.RpcError) as caught:
                call(b"", timeout=10)
            assert caught.value.code().name == "UNIMPLEMENTED"  # type: ignore[attr-defined]


def test_a_version_of_other_columns_is_compared_with_its_own(project: Project) -> None:
    with serving(project) as running, AdminClient(running.admin) as admin, running.lifecycle() as lifecycle:
        window(running, 1)
        admin.pin_reference(MODEL, windows=(1, 1))
        publish(project, 2, fitted=refitted(project))
        events = watch(lifecycle)
        admin.promote(MODEL, 2)
        said = next(event for event in events if event.kind == "note")
        assert "(window 1) is of other columns than version 2" in said.message
        assert not pin_of(running).fits
        report = window(running, 2)
        assert (report.reference, report.reference_rows) == ("training", 2000)
        admin.rollback(MODEL)
        said = next(event for event in events if event.kind == "note")
        assert "version 1 is compared with the pinned drift reference (window 1) again" in said.message
        assert window(running, 3).reference == "window 1"


def test_the_command_asks_the_server_that_runs(project: Project) -> None:
    directory = project.directory
    with serving(project) as running:
        window(running, 1)
        done = command("drift", "--pin", "1", "-C", directory)
        assert "tiny: drift windows are compared with window 1 (200 rows, pinned 20" in done.stdout, done.stderr
        assert pin_of(running).origin == "window 1"
        window(running, 2)
        shown = command("drift", "-C", directory).stdout
        assert "against window 1" in shown
        assert "pinned: windows are compared with window 1 (200 rows" in shown
        said = json.loads(command("drift", "--json", "-C", directory).stdout)
        assert (said["pin"]["rows"], said["windows"][-1]["reference"]) == (200, "window 1")
        assert "tiny: drift reference pinned" in command("status", "-C", directory).stdout
        (model,) = json.loads(command("status", "--json", "-C", directory).stdout)["models"]
        assert (model["drift_pin"]["origin"], model["drift_pin"]["fits"]) == ("window 1", True)
        path = VersionStore(project.model_state(MODEL).versions).path(1) / "reference.arrow"
        said = json.loads(command("drift", "--pin", path, "--json", "-C", directory).stdout)
        assert said["server"] is True
        assert said["pin"]["sha256"] == VersionStore(path.parents[1]).manifest(1).files["reference.arrow"]
        assert window(running, 3).reference == str(path)
        gone = command("drift", "--pin", "40-50", "-C", directory)
        assert gone.returncode == 1
        assert "windows 40-50 are not kept" in gone.stderr


def test_the_command_writes_the_state_where_no_server_runs(project: Project, tmp_path: Path) -> None:
    directory = project.directory
    with serving(project) as running:
        window(running, 1)
        # A server that was killed leaves its address behind.
        running.process.kill()
        running.process.wait()
    done = command("drift", "--pin", "1", "-C", directory)
    assert "; a server will, once it runs" in done.stdout, done.stderr
    with serving(project) as running:
        assert window(running, 2).reference == "window 1"
        running.stop()
    other = Sketch(refitted(project).sketch)
    other.counts[0] = 7
    file = tmp_path / "other.arrow"
    file.write_bytes(other.to_bytes())
    refused = command("drift", "--pin", file, "-C", directory)
    assert refused.returncode == 1
    assert "expected a sketch as version 1 counts" in refused.stderr
    for what in ("5", "9-3", tmp_path / "none.arrow", tmp_path):
        refused = command("drift", "--pin", what, "-C", directory)
        assert (refused.returncode, len(refused.stderr.splitlines())) == (1, 1)
    assert command("drift", "--pin", "training", "-C", directory).returncode == 0
    with serving(project) as running:
        assert window(running, 3).reference == "training"


def test_a_damaged_pin_is_passed_over(project: Project) -> None:
    folder = project.model_state(MODEL).windows
    folder.mkdir(parents=True)
    (folder / "pin.arrow").write_bytes(b"not an Arrow file")
    with serving(project) as running:
        assert window(running, 1).reference == "training"
        assert pin_of(running) is None
        assert "pin.arrow is passed over" in running.log.read_text()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_the_command_fetches_from_mlflow(project: Project) -> None:
    directory = project.directory
    path = VersionStore(project.model_state(MODEL).versions).path(1) / "reference.arrow"
    with serving(project) as running:
        untold = command("drift", "--pin", "models:/tiny@champion", "-C", directory)
        assert untold.returncode == 1
        assert "nothing was told to MLflow yet" in untold.stderr
        connect(project.mlflow_uri, "trimtab", MODEL, project.state / "mlartifacts")
        from mlflow.tracking import MlflowClient

        client: Any = MlflowClient(project.mlflow_uri, project.mlflow_uri)
        run = client.create_run(client.get_experiment_by_name("trimtab").experiment_id).info.run_id
        client.log_artifact(run, str(path))
        found = client.create_model_version(MODEL, source=path.parent.as_uri(), run_id=run)
        client.set_registered_model_alias(MODEL, "champion", found.version)
        for what in (f"runs:/{run}/reference.arrow", "models:/tiny@champion"):
            done = command("drift", "--pin", what, "--json", "-C", directory)
            assert json.loads(done.stdout)["pin"]["rows"] == 2000, done.stderr
            assert pin_of(running).origin.startswith(what)
        for what in ("runs:/nothing/reference.arrow", f"runs:/{run}/nothing", "models:/tiny@nobody", "models:/tiny"):
            done = command("drift", "--pin", what, "-C", directory)
            assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
            assert "MLflow at sqlite:" in done.stderr
