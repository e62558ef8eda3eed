"""A small project with versions that can be told apart, and real servers of it in processes of their own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from trimtab.kernels.cpu import CpuExecutor, sketch_table
from trimtab.kernels.fit import fit_program
from trimtab.kernels.program import ColumnProgram
from trimtab.kernels.slabs import slab_from_arrow
from trimtab.models.architectures import Network, build
from trimtab.models.tasks import Task
from trimtab.models.version import LoadedVersion, architecture_of, load_version, version_files
from trimtab.protos.v1 import inference_pb2 as pb
from trimtab.protos.v1.inference_pb2_grpc import GRPCInferenceServiceStub
from trimtab.protos.v1.trimtab_pb2_grpc import LifecycleStub
from trimtab.store.project import Project
from trimtab.store.versions import Decision, Manifest, VersionStore

MODEL = "tiny"
TASK = Task.of("binary", ["no", "yes"], "yes")
CITIES = ["Riga", "Oslo", "Turin", "Kyiv"]

_TOML = """
[server]
grpc_port = 0
http_port = 0
trainer = false
{server}

[mlflow]
enabled = false

[[model]]
name = "tiny"
task = "binary"
classes = ["no", "yes"]
positive = "yes"
{model}

[[model.feature]]
name = "x"
type = "real"
[[model.feature]]
name = "flag"
type = "boolean"
[[model.feature]]
name = "code"
type = "integer"
[[model.feature]]
name = "city"
type = "string"

[model.label]
column = "y"
key = ["order"]
{sections}
"""


def write_project(
    directory: Path,
    *,
    server: str = "",
    model: str = "",
    sections: Mapping[str, str] | None = None,
    tail: str = "",
) -> Project:
    """A project; `sections` maps names such as "batching" to lines of [model.NAME]; `tail` comes after all."""
    text = "\n".join(f"[model.{name}]\n{lines}" for name, lines in (sections or {}).items())
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "trimtab.toml").write_text(_TOML.format(server=server, model=model, sections=text) + tail)
    return Project.load(directory)


def table(rows: int, seed: int = 0) -> pa.RecordBatch:
    """Rows as clients have them, with missing values."""
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 2, rows).astype(np.float32)
    x[rng.random(rows) < 0.05] = np.nan
    return pa.RecordBatch.from_pydict(
        {
            "x": pa.array(x, from_pandas=False),
            "flag": pa.array(rng.integers(0, 2, rows).astype(bool)),
            "code": pa.array(rng.integers(0, 9, rows)),
            "city": pa.array([CITIES[i] for i in rng.integers(0, len(CITIES), rows)]),
            "order": pa.array([f"o{seed}-{i}" for i in range(rows)]),
        }
    )


def program(project: Project) -> ColumnProgram:
    settings = project.model(MODEL)
    return fit_program(settings.specs(), lambda: iter([table(2000)]), keys=settings.extra_keys)


def module(fitted: ColumnProgram, seed: int) -> Network:
    """A linear model whose answers depend on the seed clearly: its bias alone moves them by 0.05 a version."""
    made = build({"kind": "linear", "seed": seed}, fitted, TASK)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(0.0, 0.2, generator=generator)
        made.get_parameter("bias").fill_((seed % 40 - 20) / 5)
    return made


def publish(
    project: Project, number: int, *, verdict: str = "", change: Any = None, fitted: ColumnProgram | None = None
) -> Manifest:
    """Publishes a version; `change(module)` may spoil its weights first."""
    store = VersionStore(project.model_state(MODEL).versions)
    fitted = fitted or program(project)
    made = module(fitted, number)
    if change is not None:
        with torch.no_grad():
            change(made)
    slab = slab_from_arrow(table(2000), fitted.schema)
    reference = sketch_table(fitted, slab)
    features, ids = CpuExecutor(fitted).run(slab)
    with torch.no_grad():
        logits = made(torch.from_numpy(features), torch.from_numpy(ids))
        reference.add_predictions(TASK.summary(TASK.predict(logits).numpy()))
    manifest = Manifest(
        version=number,
        parent=1 if number > 1 else None,
        task="binary",
        architecture=architecture_of({"kind": "linear", "seed": number}, TASK),
        program_hash=fitted.hash,
        sketch_hash=fitted.sketch.hash,
        rows_trained=2000,
    )
    published = store.publish(number, version_files(made, fitted, reference), manifest)
    if verdict:
        store.decide(Decision(version=number, verdict=verdict, reason="made for a test"))  # type: ignore[arg-type]
    return published


def loaded(project: Project, number: int) -> LoadedVersion:
    """The version, as the client of a test recomputes answers with."""
    return load_version(VersionStore(project.model_state(MODEL).versions), number)


def expected(version: LoadedVersion, rows: pa.RecordBatch) -> NDArray[np.float32]:
    return version.predict(slab_from_arrow(rows, version.program.schema))[:, 0]


def infer_request(rows: pa.RecordBatch, *, model: str = MODEL, version: str = "", **parameters: int) -> Any:
    """A ModelInferRequest with raw contents."""
    request = pb.ModelInferRequest(model_name=model, model_version=version, id="r")
    for name, value in parameters.items():
        request.parameters[name].int64_param = value
    for field in rows.schema:
        column = rows.column(field.name)
        tensor = request.inputs.add(name=field.name, shape=[rows.num_rows, 1])
        if pa.types.is_string(field.type):
            tensor.datatype = "BYTES"
            texts = [text.encode() for text in column.to_pylist()]
            request.raw_input_contents.append(b"".join(len(t).to_bytes(4, "little") + t for t in texts))
        else:
            tensor.datatype = {"float": "FP32", "bool": "BOOL", "int64": "INT64"}[str(field.type)]
            request.raw_input_contents.append(column.to_numpy(zero_copy_only=False).tobytes())
    return request


def predictions(response: Any) -> NDArray[np.float32]:
    return np.frombuffer(response.raw_output_contents[0], np.float32)


class Running:
    """A server in a process of its own."""

    def __init__(self, process: subprocess.Popen[str], ready: dict[str, Any], log: Path) -> None:
        self.process = process
        self.grpc: str = ready["grpc"]
        self.http: str = ready["http"]
        self.admin: str = ready["admin"]
        self.log = log

    def channel(self) -> grpc.Channel:
        return grpc.insecure_channel(self.grpc)

    @contextlib.contextmanager
    def inference(self) -> Iterator[Any]:
        with self.channel() as channel:
            yield GRPCInferenceServiceStub(channel)

    @contextlib.contextmanager
    def lifecycle(self) -> Iterator[Any]:
        with grpc.insecure_channel(f"unix:{self.admin}") as channel:
            yield LifecycleStub(channel)

    def stop(self, number: int = signal.SIGTERM, timeout: float = 40) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(timeout)


def start(
    project: Project, log: Path, environment: Mapping[str, str] | None = None, **options: Any
) -> subprocess.Popen[str]:
    """Starts a server; its stderr goes to `log`."""
    script = Path(__file__).with_name("run_server.py")
    with log.open("ab") as stderr:
        return subprocess.Popen(
            [sys.executable, "-W", "error", str(script), str(project.directory), json.dumps(options)],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env={**os.environ, **(environment or {})},
        )


@contextlib.contextmanager
def serving(project: Project, environment: Mapping[str, str] | None = None, **options: Any) -> Iterator[Running]:
    """A server that is ready; stopped at the end if it still runs."""
    log = project.directory / "stderr.log"
    process = start(project, log, environment, **options)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, f"the server did not start: {log.read_text()}"
        yield Running(process, json.loads(line), log)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if process.stdout is not None:
            process.stdout.close()
