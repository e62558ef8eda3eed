"""What training on the GPU that serves costs, and what it brings: samples a second, and serving's p99 beside it.

- `samples`: a refresh by captured steps over resident rows (trimtab.trainer.device_fit), the same on the CPU, and a
  plain PyTorch loop on the GPU (rows in host memory, a batch copied for each step, nn.Module, AdamW as it comes, the
  loss read each step), in turn; for two networks. `captured_vs_plain_*` is the ratio of their medians, wanted: 3.
- `p99`: one server at 60 % of what it does at most, by an open loop of one-row requests, with and without a trainer
  that trains all the time beside it, in turn, with the governor and without. `p99_ratio_governed` and `_free` are
  medians of paired ratios, with the samples a second that the trainer did meanwhile. Wanted: 1.10 with the governor.

Without a GPU `--quick` runs all of it on the CPU, to show that it runs; its numbers say nothing about a GPU.

usage: python benchmarks/gpu_training.py [--quick] [--json FILE]
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from _harness import arguments, quantiles, report
from _load import Result, run, shape
from _paced_fit import SETTINGS, Work
from _servers import MODEL, Server, body, make_project
from trimtab.client.admin import AdminClient
from trimtab.trainer import fit
from trimtab.trainer.device_fit import DeviceFit
from trimtab.trainer.device_machine import CudaTrainingMachine

HERE = Path(__file__).parent
GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
NETWORKS = {"32-128-64-1": (128, 64), "32-512-256-1": (512, 256)}
_SERVE = """
import sys
from pathlib import Path
from trimtab.server import supervisor
from trimtab.server.app import serve
from trimtab.store.project import Project
supervisor.TRAINER = (sys.executable, sys.argv[2])
sys.exit(serve(Project.load(sys.argv[1]), as_json=True))
"""


class Eager:
    """The CPU in a GPU's place: nothing can be captured."""

    device, name = torch.device("cpu"), "cpu"
    options: dict[str, Any] = {"fused": True}  # noqa: RUF012

    def room(self) -> int:
        return 1 << 30

    def stream(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def host(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype)

    def generator(self) -> torch.Generator:
        return torch.Generator()

    def capture(self, work: Callable[[], None], generator: torch.Generator | None = None) -> Callable[[], None]:
        raise RuntimeError("there is no GPU")

    def wait(self) -> None:
        pass


# --- samples


def plain_loop(work: Work) -> None:
    """What one writes first."""
    _, new, history, module, _, task = work.given()
    module = module.to(DEVICE)
    module.use_generator(torch.Generator(DEVICE))
    optimizer = torch.optim.AdamW(module.parameters(), lr=SETTINGS.learning_rate)
    rows = type(new).joined([history, new])
    for step in range(work.samples() // SETTINGS.batch_size):
        positions = torch.randint(len(rows), (SETTINGS.batch_size,), generator=torch.Generator().manual_seed(step))
        batch = rows.take(positions.numpy())
        features, ids, labels, weights = (
            torch.from_numpy(part).to(DEVICE) for part in (batch.features, batch.ids, batch.labels, batch.weights)
        )
        losses = task.loss(module(features, ids), labels)
        loss = (losses * weights).sum() / weights.sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), fit.MAX_GRADIENT)
        optimizer.step()
        loss.item()


def samples(rows: list[dict[str, Any]], summary: dict[str, float], quick: bool) -> None:
    """See the module."""
    for name, widths in list(NETWORKS.items())[: 1 if quick else 2]:
        work = Work(20_000 if quick else 100_000, widths)
        said: list[str] = []
        device = DeviceFit(CudaTrainingMachine(DEVICE) if GPU else Eager(), said.append)
        ways: dict[str, Callable[[], object]] = {
            "captured": lambda device=device, work=work: device.refresh(*work.given(), SETTINGS),  # type: ignore[misc]
            "cpu": lambda work=work: fit.refresh(*work.given(), SETTINGS),  # type: ignore[misc]
            "plain": lambda work=work: plain_loop(work),  # type: ignore[misc]
        }
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for turn in range(3 if quick else 8):
            for way, call in ways.items():
                began = time.perf_counter()
                call()
                if turn:  # the first captures and uploads
                    seconds[way].append(time.perf_counter() - began)
        for way, times in seconds.items():
            rates = [work.samples() / one for one in times]
            row = {"case": "samples", "network": name, "way": way, "rate": quantiles(rates, "1/s"), "notes": said}
            rows.append(row)
            summary[f"samples_{way}_{name}"] = statistics.median(rates)
        summary[f"captured_vs_plain_{name}"] = summary[f"samples_captured_{name}"] / summary[f"samples_plain_{name}"]


# --- p99


@contextlib.contextmanager
def serving(folder: Path, budget: float) -> Iterator[Server]:
    """A server whose trainer is _paced_fit.py."""
    server = f'device = "{"cuda" if GPU else "cpu"}"\ntrainer_p99_budget = {budget}'
    project = make_project(folder, server=server, sections="[model.capture]\nenabled = false")
    path = folder / "trimtab.toml"
    path.write_text(path.read_text().replace("trainer = false", "trainer = true", 1))
    command = [sys.executable, "-c", _SERVE, str(folder), str(HERE / "_paced_fit.py")]
    with (folder / "stderr.log").open("wb") as errors:
        # The trainer imports what lies beside it.
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise RuntimeError((folder / "stderr.log").read_text()[-400:])
        ready = json.loads(line)
        bodies = {1: body(folder, MODEL, 1, "features")}
        with AdminClient(ready["admin"]) as admin:
            end = time.monotonic() + 120
            while admin.status().trainer.state not in ("idle", "working"):
                if time.monotonic() > end:
                    raise RuntimeError(f"no trainer attends: {(folder / 'stderr.log').read_text()[-400:]}")
                time.sleep(0.1)
        yield Server("trimtab", process, ready["grpc"], bodies, ready, project)
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def trained(folder: Path) -> int:
    """Samples that the trainer has trained on so far."""
    try:
        return int((folder / "samples").read_text() or 0)
    except FileNotFoundError:
        return 0


def p99(rows: list[dict[str, Any]], summary: dict[str, float], quick: bool, scratch: Path) -> None:
    """See the module."""
    pairs, seconds, settle = (2, 2.0, 4.0) if quick else (8, 5.0, 15.0)
    for name, budget in (("governed", 0.1), ("free", 0.0)):
        folder = scratch / name
        with serving(folder, budget) as server:
            target = server.target(1)
            most = run(target, seconds=seconds, **shape(8)).rate
            rate = 0.6 * most
            found: dict[str, list[Result]] = {"on": [], "off": []}
            per_second = []
            for turn in range(pairs):
                for state in ("on", "off") if turn % 2 else ("off", "on"):
                    switch = folder / "train"
                    if state == "on":
                        switch.touch()
                        # The governor finds its duty under load; what it takes is not what is asked here.
                        run(target, seconds=settle if turn < 2 else 2.0, rate=rate, connections=8)
                    else:
                        switch.unlink(missing_ok=True)
                        run(target, seconds=1.0, rate=rate, connections=8)
                    before, began = trained(folder), time.monotonic()
                    found[state].append(run(target, seconds=seconds, rate=rate, connections=8, seed=turn + 1))
                    if state == "on":
                        per_second.append((trained(folder) - before) / (time.monotonic() - began))
            duty = server.metrics().get("trimtab_trainer_duty", 1.0)
            log = (folder / "stderr.log").read_text(errors="replace").splitlines()
        ratios = [a.latency["p99"] / b.latency["p99"] for a, b in zip(found["on"], found["off"], strict=True)]
        for state, results in found.items():
            rows.append(
                {
                    "case": "p99",
                    "way": name,
                    "trainer": state,
                    "offered": rate,
                    "p99": quantiles([one.latency["p99"] for one in results], "us"),
                    "failed": sum(one.failed for one in results),
                    "late": any(one.late for one in results),
                }
            )
        rows.append(
            {"case": "p99", "way": name, "ratios": ratios, "samples": per_second, "duty": duty, "log": log[-20:]}
        )
        summary[f"p99_ratio_{name}"] = statistics.median(ratios)
        summary[f"p99_samples_{name}"] = statistics.median(per_second)


def _find_libraries() -> None:
    """Where tools/gpu.py brought libraries along, the load generator is built with them."""
    for variable, source in (("CPATH", "CMAKE_PREFIX_PATH"), ("LIBRARY_PATH", "CMAKE_LIBRARY_PATH")):
        if source in os.environ:
            added = "/include" if variable == "CPATH" else ""
            os.environ.setdefault(variable, os.environ[source] + added)


def main() -> None:
    given = arguments(__doc__ or "")
    if not GPU and not given.quick:
        sys.exit("gpu_training: needs an NVIDIA GPU, and torch sees none; --quick shows on the CPU that it runs")
    rows: list[dict[str, Any]] = [{"case": "device", "device": torch.cuda.get_device_name() if GPU else "cpu"}]
    if not GPU:
        rows[0]["note"] = "no GPU: on the CPU, to show that it runs; nothing here is about a GPU"
        print(rows[0]["note"], flush=True)
    summary: dict[str, float] = {}
    torch.set_num_threads(1)
    _find_libraries()
    with tempfile.TemporaryDirectory() as scratch:
        for name, part in (
            ("samples", lambda: samples(rows, summary, given.quick)),
            ("p99", lambda: p99(rows, summary, given.quick, Path(scratch))),
        ):
            try:
                part()
            except Exception as error:
                rows.append({"case": name, "error": f"{type(error).__name__}: {error}"[:500]})
                print(rows[-1], flush=True)
            report(rows, summary, given.json)
    if any("error" in row for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
