"""Labels in whatever form they come, losses against their definition, and what is not a label."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from trimtab.models.errors import LabelError
from trimtab.models.tasks import MIN_PROBABILITY, Task

BINARY = Task.of("binary", ("yes", "no"), "yes")
MULTI = Task.of("multiclass", ("a", "b", "c"))
VALUE = Task("regression", (), 10.0, 4.0)


def test_positive_class_comes_last() -> None:
    assert BINARY.classes == ("no", "yes")
    assert BINARY.encode_labels(["yes", "no"]).tolist() == [1.0, 0.0]
    assert BINARY.encode_labels([]).dtype == np.float32


@pytest.mark.parametrize(
    "value", [True, 1, 1.0, "1", "1.0", "true", "True", np.bool_(True), np.int64(1), np.float32(1)]
)
@pytest.mark.parametrize("classes", [("0", "1"), ("false", "true"), ("False", "True"), ("0.0", "1.0")])
def test_one_label_in_many_forms(value: object, classes: tuple[str, str]) -> None:
    assert Task("binary", classes).encode_labels([value]).tolist() == [1.0]


def test_exact_text_wins_over_the_number() -> None:
    task = Task("multiclass", ("1", "01", "1.0"))
    assert task.encode_labels(["1", "01", "1.0"]).tolist() == [0, 1, 2]
    assert task.encode_labels([1]).tolist() == [0]
    # "1.00" could be any of the three: it is none.
    assert not Task("multiclass", ("01", "1.0")).try_encode(["1.00"])[1].any()


@pytest.mark.parametrize("value", [None, "", "maybe", math.nan, math.inf, 2, [1], b"\xff"])
def test_unknown_labels_are_named(value: object) -> None:
    with pytest.raises(LabelError, match="expected one of"):
        BINARY.encode_labels(["yes", value])
    labels, known = BINARY.try_encode(["yes", value])
    assert known.tolist() == [True, False]
    assert labels[1] == 0


@pytest.mark.parametrize("value", [None, "", "x", math.nan, -math.inf, 10**400])
def test_regression_takes_finite_numbers_only(value: object) -> None:
    with pytest.raises(LabelError, match="finite number"):
        VALUE.encode_labels([value])


def test_regression_reads_text_and_keeps_precision() -> None:
    assert VALUE.encode_labels(["1e3", 16_777_217, True]).tolist() == [1000.0, 16_777_217.0, 1.0]


@pytest.mark.parametrize(
    ("kind", "classes", "positive"),
    [
        ("binary", ("a",), ""),
        ("binary", ("a", "b"), "c"),
        ("multiclass", ("a",), ""),
        ("other", (), ""),
        ("multiclass", ("a", "a"), ""),
    ],
)
def test_impossible_tasks(kind: str, classes: tuple[str, ...], positive: str) -> None:
    with pytest.raises(LabelError):
        Task.of(kind, classes, positive)


@pytest.mark.parametrize("task", [BINARY, MULTI, VALUE])
def test_json_round_trip(task: Task) -> None:
    assert Task.from_json(task.to_json()) == task


@pytest.mark.parametrize("items", [{}, {"kind": "binary"}, {"kind": "x", "classes": [], "center": 0, "scale": 1}])
def test_damaged_json_is_refused(items: dict[str, object]) -> None:
    with pytest.raises(LabelError):
        Task.from_json(items)


@given(st.lists(st.floats(-30, 30), min_size=1, max_size=20), st.randoms(use_true_random=False))
def test_binary_training_loss_is_the_reported_loss(logits: list[float], random: object) -> None:
    values = torch.tensor(logits, dtype=torch.float64)[:, None]
    labels = np.array([i % 2 for i in range(len(logits))], dtype=np.float32)
    trained = BINARY.loss(values, torch.from_numpy(labels)).numpy()
    reported = BINARY.losses_of(BINARY.predict(values).numpy(), labels)
    bound = -math.log(MIN_PROBABILITY)
    np.testing.assert_allclose(np.minimum(trained, bound), reported, rtol=1e-6, atol=1e-12)


def test_multiclass_loss_is_the_cross_entropy() -> None:
    logits = torch.tensor([[2.0, 1.0, -1.0], [0.0, 0.0, 5.0]])
    labels = np.array([0, 1])
    exp = np.exp(logits.numpy())
    expected = -np.log(exp[[0, 1], labels] / exp.sum(axis=1))
    np.testing.assert_allclose(MULTI.loss(logits, torch.from_numpy(labels)).numpy(), expected, rtol=1e-6)
    np.testing.assert_allclose(MULTI.losses_of(MULTI.predict(logits).numpy(), labels), expected, rtol=1e-6)


def test_regression_is_in_the_targets_unit_and_its_loss_is_not() -> None:
    logits = torch.tensor([[0.5]])
    assert VALUE.predict(logits).tolist() == [[12.0]]
    assert VALUE.losses_of(np.array([[12.0]]), np.array([20.0])).tolist() == [4.0]
    assert VALUE.loss(logits, torch.tensor([20.0], dtype=torch.float64)).tolist() == [4.0]


def test_scale_of_a_constant_target_is_one() -> None:
    task = Task("regression").scaled_to(np.full(5, 3.0))
    assert (task.center, task.scale) == (3.0, 1.0)
    assert BINARY.scaled_to(np.zeros(3)) is BINARY


def test_no_probability_costs_infinitely() -> None:
    assert np.isfinite(BINARY.losses_of(np.array([[0.0], [1.0]], dtype=np.float32), np.array([1.0, 0.0]))).all()


def test_outputs() -> None:
    assert BINARY.outputs() == [("probability", "FP32", 1)]
    assert MULTI.outputs() == [("probabilities", "FP32", 3)]
    assert VALUE.outputs() == [("value", "FP32", 1)]
    assert MULTI.summary(np.array([[0.2, 0.5, 0.3]], dtype=np.float32)).tolist() == [0.5]
