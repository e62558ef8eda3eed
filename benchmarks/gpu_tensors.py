"""What the kernels for tensors cost on a GPU: statistics of predictions, random features of embeddings, images.

Each beside what one writes in PyTorch, eager and by torch.compile, with the same results, and beside a copy on the
device that moves as many bytes as the kernel must read and write (`copy_fraction`: the copy's time over the kernel's;
of embeddings the product is the limit, so `tflops` is given too). Predictions also with all rows of one class and one
bin (`skew_ratio`: over the time with spread ones).

All ways are captured in CUDA graphs, so what is compared is the device's time, and are measured in turns; a way's cost
in a round is its least sample, ratios are those of a round, with their median and its bootstrap 95 % interval. What a
case reads and writes is larger than the L2 cache of an H100.

A way or a case that fails is a row with `error`, and the others go on; the result is written anew after every case.

Without a GPU this measures nothing and says so. It has not been run on one yet: no result is committed.

usage: python benchmarks/gpu_tensors.py [--quick] [--json FILE]
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from _bench import interval
from _harness import arguments, quantiles, report
from trimtab.kernels.embeddings import FeatureSums, RandomFeatures
from trimtab.kernels.images import channel_constants, normalise_images
from trimtab.kernels.predictions import PredictionSpec, PredictionStatistics
from trimtab.models.machine import CudaMachine

Call = Callable[[], Any]
HALF, FULL = torch.float16, torch.float32
NAMES = {HALF: "fp16", FULL: "fp32"}
PREDICTIONS = (
    (1 << 22, 2, FULL),
    (1 << 21, 10, HALF),
    (1 << 18, 100, HALF),
    (1 << 16, 1000, HALF),
    (8192, 10000, HALF),
)
EMBEDDINGS = ((1 << 17, 768, 256, HALF), (1 << 17, 768, 256, FULL), (1 << 18, 128, 256, HALF))
IMAGES = ((256, 224, 224, 3, HALF), (256, 224, 224, 3, FULL), (256, 225, 223, 3, HALF))
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def graph_of(call: Call) -> Call:
    """The same as the replay of a graph; the calls before it compile what there is to compile. What cannot be captured
    leaves the next ones in order (models/machine.py)."""
    (replay,), _ = CudaMachine(torch.device("cuda")).capture([call])
    return replay


def samples_us(call: Call, count: int) -> list[float]:
    """What a call takes on the device, the mean of as many as take about a millisecond."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    repeats, found = 1, []
    for sample in range(count + 2):
        start.record()
        for _ in range(repeats):
            call()
        end.record()
        end.synchronize()
        each = start.elapsed_time(end) * 1000 / repeats
        if sample < 2:  # of which the first warms up
            repeats = max(1, min(1000, int(1000 / max(each, 1.0))))
        else:
            found.append(each)
    return found


def copy_of(moved: int) -> Call:
    """A copy that reads and writes `moved` bytes in all."""
    source = torch.empty(max(moved // 2, 1), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


class Board:
    """The rows of the result, and the summary that is made of them."""

    def __init__(self, quick: bool, path: Path | None) -> None:
        self.path = path
        self.rounds, self.samples = (3, 5) if quick else (9, 20)
        self.rows: list[dict[str, Any]] = []
        self.summary: dict[str, float] = {}
        self.where = {"device": torch.cuda.get_device_name(), "triton": version("triton")}

    def measure(self, name: str, calls: dict[str, Call], moved: int, flops: int = 0) -> None:
        """Rounds of all ways, `kernel` among them."""
        print(f"gpu_tensors: {name}", file=sys.stderr)
        ways: dict[str, Call] = {}
        for way, call in {"copy": copy_of(moved), **calls}.items():
            try:
                ways[way] = graph_of(call)
            except Exception as error:
                self.failed(name, error, way)
        found: dict[str, list[list[float]]] = {way: [] for way in ways}
        for _ in range(self.rounds):
            for way, call in ways.items():
                found[way].append(samples_us(call, self.samples))
        least = {way: [min(samples) for samples in rounds] for way, rounds in found.items()}
        for way, rounds in found.items():
            every = quantiles([sample for samples in rounds for sample in samples], "us")
            self.rows.append(
                {**self.where, "case": name, "way": way, "bytes": moved, "rounds": least[way], "time": every}
            )
        self.ratio(f"{name}_copy_fraction", least["copy"], least["kernel"])
        for way in least.keys() & {"eager", "compiled"}:
            self.ratio(f"{name}_vs_{way}", least[way], least["kernel"])
        if "skewed" in least:
            self.ratio(f"{name}_skew_ratio", least["skewed"], least["kernel"])
        if flops:
            self.summary[f"{name}_tflops"] = flops / min(least["kernel"]) / 1e6

    def failed(self, name: str, error: Exception, way: str = "all") -> None:
        """Adds a row that says what went wrong."""
        print(f"gpu_tensors: {name}, {way}: {error}", file=sys.stderr)
        text = f"{type(error).__name__}: {error}"[:500]
        self.rows.append({**self.where, "case": name, "way": way, "error": text})

    def write(self) -> None:
        """Writes what there is."""
        report(self.rows, self.summary, self.path)

    def ratio(self, name: str, over: list[float], under: list[float]) -> None:
        """A ratio of two ways of the same rounds, with its interval."""
        middle, low, high = interval([a / b for a, b in zip(over, under, strict=True)])
        self.summary |= {name: middle, f"{name}_low": low, f"{name}_high": high}


def both(function: Callable[..., Any], *given: Any) -> dict[str, Call]:
    """A function as it is, and compiled."""
    compiled = torch.compile(function, dynamic=False)
    return {"eager": lambda: function(*given), "compiled": lambda: compiled(*given)}


def count_into(counts: torch.Tensor, places: torch.Tensor) -> None:
    counts.scatter_add_(0, places, torch.ones_like(places))


def predictions_in_torch(logits: torch.Tensor, edges: torch.Tensor, counts: torch.Tensor, classes: torch.Tensor) -> Any:
    """Probabilities, three histograms and the classes' counts, of rows that all are numbers; moments."""
    p = torch.softmax(logits, 1, dtype=torch.float32)
    top = p.topk(2, 1)
    values = torch.stack([top.values[:, 0], torch.special.entr(p).sum(1), top.values[:, 0] - top.values[:, 1]])
    for i in range(3):
        count_into(counts[i], torch.bucketize(values[i], edges[i], right=True))
    count_into(classes, top.indices[:, 0])
    return p, values.double().sum(1), values.double().square().sum(1), values.amin(1), values.amax(1)


def predictions(board: Board, rows: int, width: int, dtype: torch.dtype) -> None:
    spec = PredictionSpec(width)
    totals = PredictionStatistics(spec, "cuda")
    logits = torch.randn(rows, width, device="cuda").mul_(2).to(dtype)
    skewed = torch.zeros_like(logits)
    skewed[:, 0] = 9
    probabilities = torch.empty(rows, width, device="cuda")
    edges = torch.tensor([field.edges for field in spec.fields], device="cuda")
    counts = torch.zeros(3, edges.shape[1] + 1, dtype=torch.int64, device="cuda")
    calls = {
        "kernel": lambda: totals.add(logits, probabilities),
        "skewed": lambda: totals.add(skewed, probabilities),
        **both(predictions_in_torch, logits, edges, counts, torch.zeros_like(totals.classes)),
    }
    board.measure(f"predictions_{width}_{NAMES[dtype]}", calls, rows * width * (dtype.itemsize + 4))


def embeddings_in_torch(x: torch.Tensor, matrix: torch.Tensor, sums: torch.Tensor) -> None:
    angles = (torch.nn.functional.normalize(x) @ matrix).float()
    sums.add_(torch.cat([angles.cos().sum(0, dtype=torch.float64), angles.sin().sum(0, dtype=torch.float64)]))


def embeddings(board: Board, rows: int, width: int, frequencies: int, dtype: torch.dtype) -> None:
    spec = RandomFeatures(width, frequencies)
    sums = FeatureSums(spec, "cuda", dtype)
    x = torch.randn(rows, width, device="cuda").to(dtype)
    calls = {
        "kernel": lambda: sums.add(x),
        **both(embeddings_in_torch, x, spec.matrix().to("cuda", dtype), torch.zeros_like(sums.sums)),
    }
    name = f"embeddings_{width}_{NAMES[dtype]}"
    board.measure(name, calls, rows * width * dtype.itemsize, 2 * rows * width * frequencies)


def images_in_torch(images: torch.Tensor, mean: torch.Tensor, deviation: torch.Tensor, out: torch.Tensor) -> None:
    out.copy_((images.permute(0, 3, 1, 2).float() / 255 - mean) / deviation)


def images(board: Board, n: int, height: int, width: int, channels: int, dtype: torch.dtype) -> None:
    given = torch.randint(0, 256, (n, height, width, channels), dtype=torch.uint8, device="cuda")
    constants = channel_constants(MEAN, DEVIATION, "cuda")
    out = torch.empty(n, channels, height, width, dtype=dtype, device="cuda")
    numbers = (torch.tensor(values, device="cuda")[:, None, None] for values in (MEAN, DEVIATION))
    calls = {"kernel": lambda: normalise_images(given, constants, out), **both(images_in_torch, given, *numbers, out)}
    board.measure(f"images_{width}_{NAMES[dtype]}", calls, math.prod(given.shape) * (1 + dtype.itemsize))


def main() -> None:
    options = arguments(__doc__ or "")
    if not torch.cuda.is_available():
        print("gpu_tensors: no GPU here, nothing was measured")
        return
    board = Board(options.quick, options.json)
    for measure, cases in ((predictions, PREDICTIONS), (embeddings, EMBEDDINGS), (images, IMAGES)):
        for case in cases[:2] if options.quick else cases:
            try:
                measure(board, *case)
                torch.cuda.empty_cache()
            except Exception as error:
                board.failed(f"{measure.__name__} {case}", error)
            board.write()


if __name__ == "__main__":
    main()
