"""Requests a second through the server's grpc.aio transport, against the two limits of that transport.

One server process and one load process, each on a core of its own. In every round the cases run one after the other,
so that a noisy neighbour meets all of them:

- `trimtab`: ModelInfer of a small MLP over 16 real features, captures and drift on;
- `echo`: the same request bytes to an empty grpc.aio handler: what the transport itself costs;
- `loop`: no transport: decode, columns, model, encode called in a loop in one process: what the work itself costs.

The load is closed: 32 calls in flight on one channel. The client is grpc.aio too and is most of what limits `echo`;
these figures are for the fallback transport and say nothing about a native front.

usage: python benchmarks/serving.py [--quick] [--json FILE]
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import grpc
import grpc.aio
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from _harness import arguments, quantiles, report
from trimtab import _native
from trimtab.models.version import load_version
from trimtab.protos.v1 import inference_pb2
from trimtab.store.project import Project
from trimtab.store.versions import VersionStore

FEATURES = 16
IN_FLIGHT = 32
INFER = "/inference.GRPCInferenceService/ModelInfer"
ECHO_SERVER = """
import asyncio, sys, grpc.aio, grpc
async def main():
    server = grpc.aio.server()
    async def echo(body, context):
        return body
    handler = grpc.unary_unary_rpc_method_handler(echo)
    service = grpc.method_handlers_generic_handler("inference.GRPCInferenceService", {"ModelInfer": handler})
    server.add_generic_rpc_handlers([service])
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    await server.start()
    await server.wait_for_termination()
try:
    import uvloop
    uvloop.run(main())
except KeyboardInterrupt:
    pass
"""


def pinned(core: int) -> list[str]:
    """A prefix that runs a command on one core, where there are two."""
    return ["taskset", "-c", str(core)] if len(os.sched_getaffinity(0)) > 1 else []


def make_project(folder: Path) -> None:
    """A project with a trained version 1, made as a user makes one."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(4000, FEATURES)).astype(np.float32)
    table = {f"x{i}": values[:, i] for i in range(FEATURES)}
    table["y"] = (values[:, 0] + values[:, 1] * values[:, 2] + rng.normal(size=4000) > 0).astype(np.int64)
    pq.write_table(pa.table(table), folder / "data.parquet")
    trimtab = [sys.executable, "-m", "trimtab.cli"]
    init = ["init", str(folder / "data.parquet"), "--label", "y", "-C", str(folder)]
    for command in (init, ["train", "-C", str(folder)]):
        subprocess.run([*trimtab, *command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def body(model: str, rows: int) -> bytes:
    """A ModelInferRequest with one packed tensor of `rows` rows."""
    request = inference_pb2.ModelInferRequest(model_name=model)
    request.inputs.add(name="features", datatype="FP32", shape=[rows, FEATURES])
    request.raw_input_contents.append(np.random.default_rng(1).normal(size=(rows, FEATURES)).astype("<f4").tobytes())
    return request.SerializeToString()


async def load(address: str, message: bytes, seconds: float) -> tuple[float, list[float]]:
    """Calls a second, and the latency of each call in milliseconds, of a closed loop of IN_FLIGHT callers."""
    latencies: list[float] = []
    async with grpc.aio.insecure_channel(address) as channel:
        call = channel.unary_unary(INFER)
        await call(message)
        start = time.perf_counter()

        async def caller() -> None:
            while (began := time.perf_counter()) - start < seconds:
                await call(message)
                latencies.append((time.perf_counter() - began) * 1e3)

        await asyncio.gather(*(caller() for _ in range(IN_FLIGHT)))
        return len(latencies) / (time.perf_counter() - start), latencies


def work_loop(project: Project, message: bytes, rows: int, seconds: float) -> float:
    """Requests a second when nothing but the work is done."""
    torch.set_num_threads(project.server.threads)
    model = project.model()
    version = load_version(VersionStore(project.model_state(model.name).versions), 1)
    schema = version.program.schema
    slab = _native.Slab(schema)
    name, datatype, _ = version.task.outputs()[0]
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        request = _native.decode_infer(message)
        request.check(schema)
        slab.clear()
        request.append_to(slab)
        predictions = version.predict(slab)
        outputs = [(name, datatype, predictions)]
        _native.encode_infer_responses(model.name, "1", version.weights, [""], ["-"], [rows], outputs, [None])
        done += 1
    return done / (time.perf_counter() - start)


def main() -> None:
    options = arguments(__doc__ or "")
    rounds, seconds = (3, 2.0) if options.quick else (10, 4.0)
    results: dict[tuple[str, int], list[float]] = {}
    latencies: dict[int, list[float]] = {1: [], 64: []}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_project(folder)
        project = Project.load(folder)
        model = project.model().name
        serve = [*pinned(0), sys.executable, "-m", "trimtab.cli", "serve", "-C", str(folder), "--no-trainer", "--json"]
        server = subprocess.Popen([*serve, "--grpc-port", "0", "--http-port", "0"], stdout=subprocess.PIPE, text=True)
        echo = subprocess.Popen([*pinned(0), sys.executable, "-c", ECHO_SERVER], stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            assert echo.stdout is not None
            addresses = {
                "trimtab": json.loads(server.stdout.readline())["grpc"],
                "echo": f"127.0.0.1:{echo.stdout.readline().strip()}",
            }
            if len(os.sched_getaffinity(0)) > 1:
                os.sched_setaffinity(0, {1})
            for turn in range(rounds):
                for rows in (1, 64):
                    message = body(model, rows)
                    for name, address in addresses.items():
                        rate, times = asyncio.run(load(address, message, seconds))
                        results.setdefault((name, rows), []).append(rate)
                        if name == "trimtab":
                            latencies[rows].extend(times)
                    results.setdefault(("loop", rows), []).append(work_loop(project, message, rows, seconds / 2))
                print(f"round {turn + 1}/{rounds}", file=sys.stderr)
        finally:
            for process in (server, echo):
                process.terminate()
                process.wait(30)
    rows_out = [
        {"case": name, "rows": rows, "requests_per_s": quantiles(rates, "1/s")}
        for (name, rows), rates in results.items()
    ]
    rows_out += [
        {"case": "trimtab", "rows": rows, "latency": quantiles(times, "ms")} for rows, times in latencies.items()
    ]

    def ratio(rows: int, other: str) -> float:
        pairs = zip(results["trimtab", rows], results[other, rows], strict=True)
        return statistics.median(ours / theirs for ours, theirs in pairs)

    summary = {
        "rows1_per_s": statistics.median(results["trimtab", 1]),
        "rows64_per_s": statistics.median(results["trimtab", 64]) * 64,
        "rows1_vs_echo": ratio(1, "echo"),
        "rows64_vs_echo": ratio(64, "echo"),
        "rows1_vs_loop": ratio(1, "loop"),
        "rows64_vs_loop": ratio(64, "loop"),
    }
    report(rows_out, summary, options.json)


if __name__ == "__main__":
    main()
