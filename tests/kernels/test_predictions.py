"""Statistics of predictions: against float64, against the native sketch, and with themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from trimtab.kernels.errors import ProgramError, TensorError
from trimtab.kernels.predictions import STATISTICS, PredictionSpec, PredictionStatistics
from trimtab.kernels.sketch import Sketch
from trimtab.kernels.sketch_spec import MOMENTS, PREFIX
from trimtab.kernels.tensors import interpreted, runs_triton

from .tolerance import DEVICES, DTYPES, array, assert_as_good

devices = pytest.mark.parametrize("device", DEVICES)
dtypes = pytest.mark.parametrize("dtype", DTYPES)
HOSTILE = [0.0, -0.0, 1e-45, 88.0, -88.0, 104.0, -104.0, 3.4e38, -3.4e38, np.nan, np.inf, -np.inf, 1.5, 1.5]


def exact_rows(logits: torch.Tensor) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """The statistics [n, 3], the likeliest class (-1 where the row is missing) and the probabilities, by definition and
    in float64."""
    x = array(logits)
    if x.shape[1] == 1:
        x = np.concatenate([np.zeros_like(x), np.clip(x, -1e300, 1e300)], axis=1)
    with np.errstate(all="ignore"):
        shifted = x - x.max(axis=1, keepdims=True)
        p = np.exp(shifted)
        p /= p.sum(axis=1, keepdims=True)
        terms = np.where(p > 0, p * np.log(p), np.where(np.isnan(p), np.nan, 0.0))
    first, second = np.sort(p, axis=1)[:, ::-1][:, :2].T
    prediction = p[:, 1] if logits.shape[1] == 1 else first
    missing = np.isnan(p).any(axis=1)
    best = np.where(missing, -1, p[:, 1] >= 0.5 if logits.shape[1] == 1 else shifted.argmax(axis=1))
    rows = np.stack([prediction, -terms.sum(axis=1), first - second], axis=1)
    rows[missing] = np.nan
    return rows, best, p[:, 1:] if logits.shape[1] == 1 else p


def eager_rows(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What one writes in PyTorch, in the logits' own dtype."""
    if logits.shape[1] == 1:
        positive = torch.sigmoid(logits)
        p = torch.cat([1 - positive, positive], 1)
    else:
        positive = p = torch.softmax(logits, 1)
    top = p.topk(2, 1).values
    prediction = positive[:, 0] if logits.shape[1] == 1 else top[:, 0]
    return torch.stack([prediction, torch.special.entr(p).sum(1), top[:, 0] - top[:, 1]], 1), positive


def hostile_logits(rows: int, width: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(rows, width)) * 10.0 ** rng.uniform(-3, 2, size=(rows, 1))
    values[1::3] = np.where(rng.random((len(values[1::3]), width)) < 0.2, rng.choice(HOSTILE, values[1::3].shape), 0.5)
    if rows > 6:
        values[3], values[4], values[5, 0], values[6, -1] = -np.inf, np.inf, np.nan, np.inf
    return torch.from_numpy(values).to(dtype)


def added(logits: torch.Tensor, device: str, spec: PredictionSpec | None = None) -> tuple[PredictionStatistics, Any]:
    """The statistics of logits, and what was written of each row."""
    totals = PredictionStatistics(spec or PredictionSpec(logits.shape[1]), device)
    per_row = torch.empty(len(logits), 3, device=device)
    totals.add(logits.to(device), per_row=per_row)
    return totals, per_row.cpu()


def assert_counts(sketch: Sketch, per_row: torch.Tensor) -> None:
    """A sketch's numbers are those of these rows' values, to the bit but for sums."""
    values = per_row.numpy()
    known = ~np.isnan(values[:, 0])
    assert sketch.rows == len(values)
    fields = {field.field.name: field for field in [*sketch.fields, sketch.prediction]}
    assert fields["class"].missing == (~known).sum()
    for column, name in zip(values.T, STATISTICS, strict=True):
        found = fields[name]
        places = np.searchsorted(np.asarray(found.field.edges, np.float32), column[known], side="right")
        assert found.buckets.tolist() == np.bincount(places, minlength=len(found.buckets)).tolist()
        assert (found.rows, found.missing, found.unseen) == (len(values), (~known).sum(), 0)
        if known.any():
            assert (found.minimum, found.maximum) == (column[known].min(), column[known].max())
            away = column[known].astype(np.float64) - found.field.shift
            start = MOMENTS * ([*sketch.spec.fields, sketch.spec.prediction].index(found.field))
            sums = sketch.moments[start + 2 : start + 4]
            np.testing.assert_allclose(sums, [away.sum(), (away**2).sum()], rtol=1e-12, atol=1e-12)


@devices
@dtypes
@pytest.mark.parametrize(
    ("rows", "width"),
    [
        *((1, 1), (7, 1), (70, 1), (1, 2), (33, 2), (65, 3), (40, 5), (17, 8), (31, 10), (9, 31), (9, 33), (7, 100)),
        *((8, 127), (7, 129), (9, 500), (7, 513), (7, 1000), (7, 1025), (7, 3000), (7, 10_000), (2, 16_384)),
    ],
)
def test_rows_and_counts(device: str, dtype: torch.dtype, rows: int, width: int) -> None:
    logits = hostile_logits(rows, width, dtype)
    totals = PredictionStatistics(PredictionSpec(width), device)
    per_row = torch.empty(rows, 3, device=device)
    probabilities = torch.empty(rows, width, device=device)
    totals.add(logits.to(device), probabilities, per_row)

    exact, best, exact_p = exact_rows(logits)
    eager, eager_p = eager_rows(logits.to(device))
    for i in range(3):
        assert_as_good(per_row[:, i], eager[:, i], exact[:, i])
    assert_as_good(probabilities, eager_p, exact_p)
    sketch = totals.sketch()
    assert_counts(sketch, per_row.cpu())
    assert totals.classes.tolist() == np.bincount(best[best >= 0], minlength=max(width, 2)).tolist()

    # And the prediction as the native sketch counts those very probabilities.
    native = Sketch(sketch.spec)
    native.add_predictions(probabilities.cpu().numpy())
    start, stop = sketch.spec.offsets[-2:]
    assert sketch.counts[start:stop].tolist() == native.counts[start:stop].tolist()
    assert sketch.moments[-MOMENTS:-2].tolist() == native.moments[-MOMENTS:-2].tolist()
    np.testing.assert_allclose(sketch.moments[-2:], native.moments[-2:], rtol=1e-12, atol=1e-12)


@devices
@given(
    hnp.arrays(
        np.float32,
        st.tuples(st.integers(0, 40), st.integers(1, 20)),
        elements=st.one_of(st.sampled_from(HOSTILE), st.floats(width=32)),
    )
)
@settings(max_examples=10 if interpreted() else 40)
def test_any_logits(device: str, values: NDArray[np.float32]) -> None:
    logits = torch.from_numpy(values)
    totals, per_row = added(logits, device)
    exact, best, _ = exact_rows(logits)
    assert np.array_equal(np.isnan(per_row.numpy()), np.isnan(exact))
    np.testing.assert_allclose(per_row.numpy(), exact, atol=2e-6)
    assert_counts(totals.sketch(), per_row)
    assert totals.classes.tolist() == np.bincount(best[best >= 0], minlength=totals.spec.classes).tolist()


@devices
def test_values_on_edges(device: str) -> None:
    totals, per_row = added(torch.tensor([[1.0, 1.0], [5.0, 5.0], [-2.0, -2.0]]), device)
    assert per_row.numpy()[:, [0, 2]].tolist() == [[0.5, 0.0]] * 3
    assert totals.sketch().prediction.buckets[16] == 3  # 16 edges <= 0.5
    assert totals.classes.tolist() == [3, 0]  # of equals the first
    binary, _ = added(torch.zeros(4, 1), device)
    assert binary.classes.tolist() == [0, 4]  # positive from 0.5 on, as accuracy counts it


@devices
@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 64, 127])
def test_any_number_of_edges(device: str, count: int) -> None:
    edges = tuple(np.linspace(0, 1, count, dtype=np.float32).tolist())
    spec = PredictionSpec(3, edges, edges[::2], edges[: count // 3])
    totals, per_row = added(hostile_logits(50, 3, torch.float32), device, spec)
    assert_counts(totals.sketch(), per_row)


@devices
@pytest.mark.parametrize(("rows", "width"), [(50, 2), (18, 300)])
def test_batches_add_up(device: str, rows: int, width: int) -> None:
    logits = hostile_logits(rows, width, torch.float32)
    whole, _ = added(logits, device)
    parts, sketches = PredictionStatistics(whole.spec, device), Sketch(whole.spec.sketch)
    for part in (logits[:0], logits[:1], logits[1:12], logits[12:]):
        parts.add(part.to(device))
        sketches.merge(added(part, device)[0].sketch())
    for merged in (parts.sketch(), sketches):
        assert merged.counts.tolist() == whole.sketch().counts.tolist()
        np.testing.assert_allclose(merged.moments, whole.sketch().moments, rtol=1e-12, atol=1e-12)
    again, _ = added(logits, device)
    assert again.sketch() == whole.sketch()  # to the bit
    again.clear()
    assert again.sketch() == PredictionStatistics(whole.spec, device).sketch()


@devices
@pytest.mark.parametrize(("rows", "width"), [(500, 1), (500, 3), (40, 200), (20, 3000)])
def test_programs_of_many_tiles(device: str, rows: int, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if runs_triton(torch.device(device)):
        from trimtab.kernels import triton_predictions

        monkeypatch.setattr(triton_predictions, "MAX_PROGRAMS", 3)
        assert triton_predictions.Plan.of(rows, width).tiles > 3
    totals, per_row = added(hostile_logits(rows, width, torch.float32), device)
    assert_counts(totals.sketch(), per_row)


@devices
@pytest.mark.parametrize("width", [20, 200, 5000])
def test_runs_of_one_class(device: str, width: int) -> None:
    best = np.repeat([0, width - 1, 3, 3, 7, 3], [5, 2, 1, 1, 4, 3])
    logits = torch.zeros(len(best), width)
    logits[np.arange(len(best)), best] = 2.0
    logits[4, 1] = torch.nan
    totals, _ = added(logits, device)
    assert totals.classes.tolist() == np.bincount(np.delete(best, 4), minlength=width).tolist()


@devices
def test_more_classes_than_a_sketch_counts(device: str) -> None:
    logits = torch.zeros(3, 5000)
    logits[[0, 1, 2], [4, 4096, 4999]] = 1.0
    sketch = added(logits, device)[0].sketch()
    assert sketch.fields[0].buckets[4] == 1
    assert sketch.fields[0].buckets[-1] == 2


@devices
@dtypes
def test_rows_of_a_wider_table(device: str, dtype: torch.dtype) -> None:
    table = hostile_logits(20, 24, torch.float32).to(dtype)
    inside = table[:, 3:13]
    assert not inside.is_contiguous()
    totals = PredictionStatistics(PredictionSpec(10), device)
    probabilities = torch.empty(20, 10, dtype=dtype, device=device)
    totals.add(table.to(device)[:, 3:13], probabilities)
    whole, _ = added(inside.contiguous(), device)
    assert totals.sketch() == whole.sketch()
    assert_as_good(probabilities, torch.softmax(inside.to(device), 1), exact_rows(inside)[2])


@devices
def test_sketch_goes_through_bytes(device: str) -> None:
    sketch = added(hostile_logits(30, 4, torch.float32), device)[0].sketch()
    assert Sketch.from_bytes(sketch.to_bytes()) == sketch
    assert sketch.counts[sketch.spec.offsets[0] + PREFIX :].sum() > 0


@devices
def test_what_is_refused(device: str) -> None:
    totals = PredictionStatistics(PredictionSpec(3), device)
    good = torch.zeros(5, 3, device=device)
    for logits, message in [
        (good.double(), "logits: expected torch.float32 or .* got torch.float64"),
        (good[:, :2], r"logits: expected shape \[n, 3\], got \[5, 2\]"),
        (good[0], r"got \[3\]"),
        (torch.zeros(3, 5, device=device).T, "side by side"),
        (torch.zeros(5, 3, device="meta"), "expected a tensor on"),
    ]:
        with pytest.raises(TensorError, match=message):
            totals.add(logits)
    with pytest.raises(TensorError, match=r"probabilities: expected shape \[5, 3\]"):
        totals.add(good, torch.zeros(4, 3, device=device))
    with pytest.raises(TensorError, match="probabilities: expected a contiguous"):
        totals.add(good, torch.zeros(5, 6, device=device)[:, :3])
    with pytest.raises(TensorError, match=r"per_row: expected torch\.float32, got"):
        totals.add(good, per_row=good.half())
    assert totals.sketch().rows == 0
    for width in (0, 16_385):
        with pytest.raises(TensorError, match=f"width: expected 1 to 16384 logits a row, got {width}"):
            PredictionSpec(width)
    with pytest.raises(TensorError, match="margin_edges: expected at most 127"):
        PredictionSpec(2, margin_edges=tuple(range(128)))
    with pytest.raises(ProgramError, match="entropy_edges"):
        PredictionSpec(2, entropy_edges=(1.0, 1.0))


@pytest.mark.gpu
def test_captured_in_a_graph() -> None:
    logits = hostile_logits(64, 10, torch.float16).cuda()
    totals = PredictionStatistics(PredictionSpec(10), "cuda")
    probabilities = torch.empty(64, 10, device="cuda")
    totals.add(logits, probabilities)
    totals.clear()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        totals.add(logits, probabilities)
    before = torch.cuda.memory_allocated()
    for _ in range(3):
        graph.replay()
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() == before
    once, _ = added(logits.cpu(), "cuda")
    assert totals.counts.tolist() == (3 * once.counts).tolist()
