"""Change detectors on realised losses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from trimtab.models.tasks import Task
from trimtab.trainer.detectors import Change, ErrorDetectors

BINARY = Task.of("binary", ("0", "1"))
THREE = Task.of("multiclass", ("a", "b", "c"))
VALUE = Task.of("regression")


def binary_rows(rng: np.random.Generator, rows: int, wrong: float = 0.0) -> tuple[Any, Any, Any]:
    """Calibrated answers, of which a share is the wrong way round."""
    p = np.clip(rng.beta(2.0, 2.0, rows), 0.02, 0.98).astype(np.float32)
    labels = (rng.random(rows) < p) ^ (rng.random(rows) < wrong)
    return p.reshape(-1, 1), labels.astype(np.float32), np.arange(rows, dtype=np.int64)


def rows_of(task: Task, rng: np.random.Generator, rows: int, changed: bool) -> tuple[Any, Any, Any]:
    times = np.arange(rows, dtype=np.int64)
    if task is BINARY:
        return binary_rows(rng, rows, 0.35 if changed else 0.0)
    if task is VALUE:
        truth = rng.normal(size=rows)
        return (truth + rng.normal(0, 1.2 if changed else 0.4, rows)).astype(np.float32).reshape(-1, 1), truth, times
    labels = rng.integers(0, 3, rows)
    given = np.full((rows, 3), 0.15, np.float32)
    said = np.where(rng.random(rows) < (0.45 if changed else 0.8), labels, (labels + 1) % 3)
    given[np.arange(rows), said] = 0.7
    return given, labels, times


@pytest.mark.parametrize("task", [BINARY, THREE, VALUE], ids=["binary", "multiclass", "regression"])
def test_a_change_is_seen_by_every_detector(task: Task) -> None:
    rng = np.random.default_rng(1)
    detectors = ErrorDetectors(task)
    assert not detectors.add(3, *rows_of(task, rng, 4000, changed=False))
    served, labels, times = rows_of(task, rng, 4000, changed=True)
    found = detectors.add(3, served, labels, times + 4000)
    names = {"adwin", "page_hinkley"} | ({"ddm"} if task is not VALUE else set())
    assert {change.detector for change in found} == names
    assert all(change.version == 3 and 4000 <= change.time_us < 8000 for change in found)
    assert all(change.after > change.before for change in found)
    assert found == sorted(found, key=lambda change: change.time_us)
    first = next(change for change in found if change.detector == "adwin")
    assert first.time_us < 5000
    assert "version 3 rose from" in first.message


def test_detectors_are_quiet_without_a_change() -> None:
    """What the module's docstring says of their rates."""
    spoke = dict.fromkeys(("adwin", "page_hinkley", "ddm"), 0)
    for seed in range(20):
        for change in ErrorDetectors(BINARY).add(1, *binary_rows(np.random.default_rng(seed), 20_000)):
            spoke[change.detector] += 1
    assert (spoke["adwin"], spoke["page_hinkley"]) == (0, 0)
    assert spoke["ddm"] <= 3


def test_that_a_model_gets_better_is_no_news() -> None:
    rng = np.random.default_rng(2)
    detectors = ErrorDetectors(BINARY)
    served, labels, times = binary_rows(rng, 4000, wrong=0.4)
    assert not detectors.add(1, served, labels, times)
    assert not detectors.add(1, *binary_rows(rng, 4000))


def test_another_version_starts_anew() -> None:
    rng = np.random.default_rng(3)
    detectors = ErrorDetectors(BINARY)
    detectors.add(1, *binary_rows(rng, 4000))
    served, labels, times = binary_rows(rng, 4000, wrong=0.35)
    assert not detectors.add(2, served, labels, times)


def test_rows_in_any_order_and_cut_anyhow() -> None:
    rng = np.random.default_rng(4)
    served, labels, times = (
        np.concatenate(both) for both in zip(binary_rows(rng, 3000), binary_rows(rng, 3000, 0.4), strict=True)
    )
    times = np.arange(6000, dtype=np.int64)
    whole = ErrorDetectors(BINARY).add(1, served, labels, times)
    shuffled = rng.permutation(6000)
    assert ErrorDetectors(BINARY).add(1, served[shuffled], labels[shuffled], times[shuffled]) == whole
    parts: list[Change] = []
    detectors = ErrorDetectors(BINARY)
    for start in range(0, 6000, 700):
        parts += detectors.add(1, *(values[start : start + 700] for values in (served, labels, times)))
    assert sorted(parts, key=lambda change: (change.time_us, change.detector)) == sorted(
        whole, key=lambda change: (change.time_us, change.detector)
    )


def test_hostile_rows() -> None:
    detectors = ErrorDetectors(VALUE)
    served = np.asarray([[np.nan], [np.inf], [3e38], [1.0]], np.float32)
    assert detectors.add(1, served, np.asarray([0.0, 0.0, -3e38, np.nan]), np.zeros(4, np.int64)) == []
    assert detectors.add(1, served[:0], np.zeros(0), np.zeros(0, np.int64)) == []
