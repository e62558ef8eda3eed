"""The servers of a serving benchmark: projects of Trimtab's own, references on its front, and the peers; each on the
server's core, with what its process tree has used of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import torch
from _load import Target, cores
from trimtab.kernels.cpu import CpuExecutor, sketch_table
from trimtab.kernels.fit import fit_program
from trimtab.kernels.slabs import slab_from_arrow
from trimtab.models.architectures import build
from trimtab.models.code import allow_project
from trimtab.models.tasks import Task
from trimtab.models.version import architecture_of, version_files
from trimtab.protos.v1 import inference_pb2
from trimtab.store.project import Project
from trimtab.store.versions import Decision, Manifest, VersionStore

HERE = Path(__file__).parent
FEATURES = 32
MODEL = "m"
_START_SECONDS = 120.0
TICKS = os.sysconf("SC_CLK_TCK")

_TOML = """
[server]
grpc_port = 0
http_port = 0
trainer = false
{server}
[mlflow]
enabled = false
[[model]]
name = "m"
task = "regression"
{model}
{features}
[model.label]
column = "y"
{sections}
"""
_FEATURE = (
    '[[model.feature]]\nname = "x{}"\ntype = "real"\ntransforms = [{{ op = "impute", flag = false }}, "standardise"]\n'
)
_ENTRY = """import time
import torch


class Net(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(width, 128), torch.nn.ReLU(), torch.nn.Linear(128, 1))
        self.square = torch.ones(192, 192)

    def forward(self, features, ids=None):
        until = time.monotonic() + {seconds}
        if {burn}:
            while time.monotonic() < until:
                self.square @ self.square
        elif {seconds}:
            time.sleep({seconds})
        return self.layers(features)


def build(shape):
    return Net(shape.features)
"""


@dataclass
class Server:
    """A running server. `target` is where requests of so many rows go."""

    name: str
    process: subprocess.Popen[Any]
    address: str
    bodies: dict[int, Path]
    ready: dict[str, str] = field(default_factory=dict)
    project: Project | None = None
    tls: bool = False

    def target(self, rows: int = 1) -> Target:
        return Target(self.address, self.bodies[rows], self.tls)

    def cpu_seconds(self) -> float:
        """What the process and its children have used so far."""
        return sum(_used(pid) for pid in self._pids())

    def memory(self) -> int:
        """Resident bytes of the process."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def metrics(self) -> dict[str, float]:
        """The sums of /metrics by name, without labels."""
        text = urllib.request.urlopen(f"http://{self.ready['http']}/metrics", timeout=10).read().decode()
        sums: dict[str, float] = {}
        for line in text.splitlines():
            if not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                key = name.partition("{")[0]
                sums[key] = sums.get(key, 0.0) + float(value)
        return sums

    def stop(self) -> None:
        children = psutil.Process(self.process.pid).children(recursive=True) if self.process.poll() is None else []
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for child in children:
            if child.is_running():
                child.kill()

    def _pids(self) -> list[int]:
        return [self.process.pid, *(child.pid for child in psutil.Process(self.process.pid).children(recursive=True))]


def _used(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS


# --- requests


def body(folder: Path, model: str, rows: int, tensor: str, version: str = "") -> Path:
    """A file with a ModelInferRequest of one FP32 tensor [rows, 32], the same numbers for all."""
    values = np.random.default_rng(rows).normal(size=(rows, FEATURES)).astype("<f4")
    request = inference_pb2.ModelInferRequest(model_name=model, model_version=version)
    request.inputs.add(name=tensor, datatype="FP32", shape=[rows, FEATURES])
    request.raw_input_contents.append(values.tobytes())
    path = folder / f"{model}-{tensor}-{rows}.bin"
    path.write_bytes(request.SerializeToString())
    return path


# --- Trimtab


def make_project(
    folder: Path,
    *,
    versions: int = 1,
    entry: bool = False,
    slow_ms: float = 0.0,
    burn: bool = False,
    server: str = "",
    sections: str = "",
    files: tuple[Path, ...] = (),
) -> Project:
    """A project of 32 real columns (impute, standardise) and an MLP of 128; drift and captures at their defaults.

    `entry`: the network is the user's own module of the same layers; `slow_ms`: such a one, whose forward pass sleeps
    so long first, or with `burn` computes for so long. `files` are copied to the project's folder.
    """
    folder.mkdir(parents=True)
    for path in files:
        shutil.copy(path, folder)
    own = entry or slow_ms > 0
    features = "".join(_FEATURE.format(i) for i in range(FEATURES))
    model = 'entry = "own:build"' if own else 'architecture = "mlp"'
    text = _TOML.format(server=server, model=model, features=features, sections=sections)
    (folder / "trimtab.toml").write_text(text)
    config: dict[str, Any] = {"kind": "mlp", "widths": [128], "dropout": 0.0, "embedding": 8}
    if own:
        (folder / "own.py").write_text(_ENTRY.format(seconds=slow_ms / 1e3, burn=burn))
        config = {"kind": "entry", "entry": "own:build"}
    project = Project.load(folder)
    if own:
        allow_project(project)
    _publish(project, versions, config)
    return project


def _publish(project: Project, versions: int, config: dict[str, Any]) -> None:
    """Versions with random weights; a version's answers differ from any other's by more than rounding."""
    settings = project.model(MODEL)
    rng = np.random.default_rng(0)
    columns = {f"x{i}": rng.normal(size=4000).astype(np.float32) for i in range(FEATURES)}
    table = pa.RecordBatch.from_pydict(columns)
    program = fit_program(settings.specs(), lambda: iter([table]), keys=settings.extra_keys)
    store = VersionStore(project.model_state(MODEL).versions)
    task = Task.of("regression")
    slab = slab_from_arrow(table, program.schema)
    for number in range(1, versions + 1):
        module = build({**config, "seed": number}, program, task).eval()
        with torch.no_grad():
            list(module.parameters())[-1].fill_(float(number))
        reference = sketch_table(program, slab)
        features, ids = CpuExecutor(program).run(slab)
        with torch.inference_mode():
            outputs = module(torch.from_numpy(features[:64]), torch.from_numpy(ids[:64]))
            reference.add_predictions(task.summary(task.predict(outputs).numpy()))
        manifest = Manifest(
            version=number,
            task="regression",
            architecture=architecture_of({**config, "seed": number}, task),
            program_hash=program.hash,
            sketch_hash=program.sketch.hash,
            rows_trained=4000,
        )
        store.publish(number, version_files(module, program, reference), manifest)
        if number == 1:
            store.decide(Decision(version=1, verdict="initial", reason="made for a benchmark"))


def trimtab(name: str, project: Project, rows: tuple[int, ...] = (1, 8, 64, 512), *, core: str = "") -> Server:
    """A server of the project. Raises RuntimeError with its last words."""
    log = project.directory / "stderr.log"
    command = ["taskset", "-c", core or str(cores()[0]), sys.executable, "-m", "trimtab.cli", "serve", "--json"]
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [*command, "-C", str(project.directory)], stdout=subprocess.PIPE, stderr=stderr, text=True
        )
    assert process.stdout is not None
    late = threading.Timer(_START_SECONDS, process.kill)
    late.start()
    line = process.stdout.readline()
    late.cancel()
    if not line:
        process.wait(30)
        raise RuntimeError(f"{name}: {log.read_text(errors='replace')[-400:]}")
    ready = json.loads(line)
    bodies = {count: body(project.directory, MODEL, count, "features") for count in rows}
    return Server(name, process, ready["grpc"], bodies, ready, project)


# --- references on the front


def front(name: str, folder: Path, *words: str, core: str = "", bodies: dict[int, Path] | None = None) -> Server:
    """native/front_server.py with these options."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        "taskset",
        "-c",
        core or str(cores()[0]),
        sys.executable,
        str(HERE / "native" / "front_server.py"),
        *words,
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    if not address:
        raise RuntimeError(f"{name} did not start")
    made = bodies or {count: body(folder, MODEL, count, "features") for count in (1, 8, 64, 512)}
    return Server(name, process, address, made)


# --- peers


def peer(name: str, folder: Path, *settings: Any) -> Server:
    """One of the peers; `settings` are what its module's start() takes beyond core and folder. Raises
    peers.setup.Absent."""
    import importlib

    process, address = importlib.import_module(f"peers.{name}").start(cores()[0], folder / name, *settings)
    rows = (1, 8, 64, 512)
    model = "m" if name != "triton" else "m64d100"
    return Server(name, process, address, {count: body(folder, model, count, "IN") for count in rows})


def wait_idle(seconds: float = 0.05) -> None:
    """A moment between runs, so that what the last one left in the queues is gone."""
    time.sleep(seconds)
