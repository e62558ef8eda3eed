"""Schemas and slabs: against plain lists as the oracle, and every wrong use."""

import itertools
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from trimtab._native import Schema, Slab

TYPES = ["real", "boolean", "integer", "string"]
MISSING = -(2**63)


def column(kind: str, values: list[Any]) -> Any:
    """A column as append_columns takes it; strings with other bytes around, as in a slice of an Arrow array."""
    if kind in ("real", "boolean"):
        return np.array(values, np.float32)
    if kind == "integer":
        return np.array(values, np.int64)
    encoded = [value.encode() for value in values]
    ends = itertools.accumulate((len(text) for text in encoded), initial=3)
    return np.array(list(ends), np.int32), np.frombuffer(b"\xff\xfe\xfd" + b"".join(encoded) + b"\x80", np.uint8)


def contents(slab: Slab) -> list[list[Any]]:
    """A slab as plain lists; floats by their bits, so that NaN equals NaN and -0.0 differs from 0.0."""
    columns: list[list[Any]] = []
    for i, kind in enumerate(slab.schema.types):
        if kind in ("real", "boolean"):
            columns.append(slab.reals(i).view(np.uint32).tolist())
        elif kind == "integer":
            columns.append(slab.integers(i).tolist())
        else:
            offsets, text = slab.strings(i)
            columns.append([text[a:b].tobytes().decode() for a, b in itertools.pairwise(offsets)])
    return columns


def stored(kind: str, values: list[Any]) -> list[Any]:
    return np.array(values, np.float32).view(np.uint32).tolist() if kind in ("real", "boolean") else values


VALUES: dict[str, st.SearchStrategy[Any]] = {
    "real": st.floats(width=32),
    "boolean": st.sampled_from([0.0, 1.0, float("nan")]),
    "integer": st.one_of(st.integers(-(2**63), 2**63 - 1), st.just(MISSING)),
    "string": st.text(max_size=5),
}


@dataclass
class Model:
    """A slab and what it should hold."""

    slab: Slab
    rows: list[list[Any]] = field(default_factory=list)


class SlabMachine(RuleBasedStateMachine):
    """Two slabs of one schema under any sequence of changes."""

    @initialize(kinds=st.lists(st.sampled_from(TYPES), min_size=1, max_size=4))
    def start(self, kinds: list[str]) -> None:
        self.schema = Schema([f"f{i}" for i in range(len(kinds))], kinds)
        self.models = [Model(Slab(self.schema)), Model(Slab(self.schema))]

    @rule(which=st.integers(0, 1), data=st.data())
    def append(self, which: int, data: st.DataObject) -> None:
        count = data.draw(st.integers(0, 5))
        columns = [data.draw(st.lists(VALUES[kind], min_size=count, max_size=count)) for kind in self.schema.types]
        self.models[which].slab.append_columns(
            [column(kind, v) for kind, v in zip(self.schema.types, columns, strict=True)]
        )
        kept = [stored(kind, values) for kind, values in zip(self.schema.types, columns, strict=True)]
        self.models[which].rows += [list(row) for row in zip(*kept, strict=True)]

    @rule(which=st.integers(0, 1), data=st.data())
    def extend_range(self, which: int, data: st.DataObject) -> None:
        source, target = self.models[which], self.models[1 - which]
        stop = data.draw(st.integers(0, len(source.rows)))
        start = data.draw(st.integers(0, stop))
        target.slab.extend(source.slab, start=start, stop=stop)
        target.rows += source.rows[start:stop]

    @precondition(lambda self: any(model.rows for model in self.models))
    @rule(data=st.data())
    def extend_taken(self, data: st.DataObject) -> None:
        which = data.draw(st.sampled_from([i for i in (0, 1) if self.models[i].rows]))
        source, target = self.models[which], self.models[1 - which]
        taken = data.draw(st.lists(st.integers(0, len(source.rows) - 1), max_size=6))
        target.slab.extend(source.slab, np.array(taken, np.int32))
        target.rows += [source.rows[i] for i in taken]

    @rule(which=st.integers(0, 1), data=st.data())
    def truncate(self, which: int, data: st.DataObject) -> None:
        rows = data.draw(st.integers(0, len(self.models[which].rows)))
        self.models[which].slab.truncate(rows)
        del self.models[which].rows[rows:]

    @rule(which=st.integers(0, 1))
    def clear(self, which: int) -> None:
        self.models[which].slab.clear()
        self.models[which].rows.clear()

    @invariant()
    def holds_the_rows(self) -> None:
        for model in self.models:
            assert model.slab.rows == len(model.slab) == len(model.rows)
            columns = [list(values) for values in zip(*model.rows, strict=True)] or [[] for _ in self.schema.types]
            assert contents(model.slab) == columns


TestSlabMachine = SlabMachine.TestCase


@pytest.fixture
def slab() -> Slab:
    """Two rows of each type."""
    slab = Slab(Schema(TYPES, TYPES))
    slab.append_columns(
        [column("real", [1, 2]), column("boolean", [0, 1]), column("integer", [3, 4]), column("string", ["a", "é"])]
    )
    return slab


def test_a_view_outlives_growth_and_its_slab(slab: Slab) -> None:
    views = [slab.reals(0), slab.integers(2), *slab.strings(3)]
    before = [view.copy() for view in views]
    other = Slab(slab.schema)
    other.extend(slab)
    for _ in range(1_000):  # well past the first buffers
        slab.extend(other)
    del slab
    for view, expected in zip(views, before, strict=True):
        np.testing.assert_array_equal(view, expected)


def test_views_are_aligned_and_read_only(slab: Slab) -> None:
    for view in (slab.reals(0), slab.integers(2), *slab.strings(3)):
        assert view.ctypes.data % 64 == 0
        assert not view.flags.writeable


def test_views_of_an_empty_slab() -> None:
    slab = Slab(Schema(TYPES, TYPES))
    assert slab.reals(0).shape == slab.reals(1).shape == slab.integers(2).shape == (0,)
    offsets, text = slab.strings(3)
    assert (offsets.tolist(), text.tolist()) == ([0], [])
    assert not slab.reals(0).flags.writeable


def test_clear_keeps_the_memory(slab: Slab) -> None:
    address = slab.reals(0).ctypes.data
    slab.clear()
    slab.append_columns([column(kind, [1]) if kind != "string" else column(kind, ["b"]) for kind in TYPES])
    assert slab.reals(0).ctypes.data == address


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ([], "expected 4 columns, came 0"),
        ([np.zeros(1)] * 4, r'"real" \(real\): expected a contiguous float32 array, came float64'),
        ([np.zeros((1, 1), np.float32)] * 4, r"came float32 of shape \(1, 1\)"),
        ([np.zeros(4, np.float32)[::2]] * 4, "contiguous"),
        ([[1.0]] * 4, "came list"),
        ([np.zeros(1, ">f4")] * 4, "came >f4"),
        ([np.zeros(1, np.float32), np.full(1, 0.5, np.float32)] * 2, r'"boolean" \(boolean\): expected 0, 1 or NaN'),
        ([np.zeros(1, np.float32), np.zeros(2, np.float32)] * 2, "expected 1 rows as the first column, came 2"),
    ],
)
def test_wrong_columns_leave_the_slab_as_it_was(slab: Slab, columns: list[Any], message: str) -> None:
    before = contents(slab)
    with pytest.raises(ValueError, match=message):
        slab.append_columns(columns)
    assert contents(slab) == before
    slab.extend(copy_of(slab))  # and usable
    assert slab.rows == 4


def copy_of(slab: Slab) -> Slab:
    copy = Slab(slab.schema)
    copy.extend(slab)
    return copy


@pytest.mark.parametrize(
    ("offsets", "text"),
    [
        ([], b""),
        ([1, 0], b"ab"),
        ([0, 3], b"ab"),
        ([-1, 1], b"ab"),
        ([0, 2**31 - 1], b"ab"),
        ([0, 1], b"\xff"),
        ([0, 1, 2], "é".encode()),  # cut inside a character
        ([0, 3], b"\xed\xa0\x80"),  # a surrogate
        ([0, 2], b"\xc0\x80"),  # overlong
        ([0, 4], b"\xf4\x90\x80\x80"),  # past U+10FFFF
    ],
)
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_wrong_strings_are_refused(offsets: list[int], text: bytes, dtype: type) -> None:
    slab = Slab(Schema(["s"], ["string"]))
    with pytest.raises(ValueError, match='column "s"'):
        slab.append_columns([(np.array(offsets, dtype), np.frombuffer(text, np.uint8))])
    assert slab.rows == 0


@given(st.binary(max_size=12))
def test_utf8_is_what_python_takes(text: bytes) -> None:
    slab = Slab(Schema(["s"], ["string"]))
    try:
        text.decode()
    except UnicodeDecodeError:
        with pytest.raises(ValueError, match="UTF-8"):
            slab.append_columns([(np.array([0, len(text)]), np.frombuffer(text, np.uint8))])
    else:
        slab.append_columns([(np.array([0, len(text)]), np.frombuffer(text, np.uint8))])
        assert slab.strings(0)[1].tobytes() == text


def test_wrong_columns_and_types_are_named(slab: Slab) -> None:
    for i in (-1, 4):
        with pytest.raises(IndexError):
            slab.reals(i)
    with pytest.raises(ValueError, match='"integer" is integer, expected real or boolean'):
        slab.reals(2)
    with pytest.raises(ValueError, match="expected integer"):
        slab.integers(0)
    with pytest.raises(ValueError, match="expected string"):
        slab.strings(1)


@pytest.mark.parametrize(("start", "stop"), [(-1, 1), (1, 0), (0, 3), (3, -1), (0, -2)])
def test_extend_refuses_rows_that_are_not_there(slab: Slab, start: int, stop: int) -> None:
    target = Slab(slab.schema)
    with pytest.raises(IndexError):
        target.extend(slab, start=start, stop=stop)
    assert target.rows == 0


@pytest.mark.parametrize("indices", [[2], [-1], [0, 1, 2**31 - 1]])
def test_extend_refuses_indices_that_are_not_there(slab: Slab, indices: list[int]) -> None:
    target = Slab(slab.schema)
    with pytest.raises(IndexError):
        target.extend(slab, np.array(indices, np.int32))
    assert target.rows == 0


def test_extend_refuses_other_schemas_itself_and_ambiguity(slab: Slab) -> None:
    with pytest.raises(ValueError, match="equal schema"):
        Slab(Schema(["real"], ["real"])).extend(slab)
    with pytest.raises(ValueError, match="itself"):
        slab.extend(slab)
    with pytest.raises(ValueError, match="either"):
        copy_of(slab).extend(slab, np.array([0], np.int32), start=1)
    with pytest.raises(ValueError, match="int32"):
        copy_of(slab).extend(slab, np.array([0], np.int64))  # type: ignore[arg-type]


def test_truncate_beyond_the_rows_is_refused(slab: Slab) -> None:
    with pytest.raises(IndexError):
        slab.truncate(3)


def test_long_copies_without_the_gil() -> None:
    slab = Slab(Schema(["r", "s"], ["real", "string"]))
    count = 400_000
    text = np.frombuffer(b"ab" * count, np.uint8)
    slab.append_columns([np.arange(count, dtype=np.float32), (np.arange(count + 1) * 2, text)])
    copy = copy_of(slab)
    copy.extend(slab, np.arange(count, dtype=np.int32)[::-1].copy())
    assert copy.rows == 2 * count
    np.testing.assert_array_equal(copy.reals(0)[count:], slab.reals(0)[::-1])
    assert copy.strings(1)[0][-1] == 4 * count
    assert copy.nbytes == 2 * count * (4 + 4 + 2) + 4


def test_schema_is_a_value() -> None:
    schema = Schema(["a", "b"], ["real", "string"], keys=1)
    same = Schema(schema.names, schema.types, schema.keys)
    assert schema == same
    assert hash(schema) == hash(same)
    assert len(schema) == 2
    assert repr(schema) == "Schema(['a', 'b'], ['real', 'string'], keys=1)"
    assert schema != Schema(["a", "b"], ["real", "string"])
    assert schema != "schema"
    assert Slab(schema).schema is schema


@pytest.mark.parametrize(
    ("names", "types", "keys", "message"),
    [
        ([], [], 0, "at least one field"),
        (["a"], [], 0, "one type for each name"),
        (["a"], ["float"], 0, 'came "float"'),
        (["a", "a"], ["real", "real"], 0, '"a" occurs twice'),
        ([""], ["real"], 0, "empty"),
        (["a"], ["real"], 1, "no key"),
        (["a"], ["real"], 2, "no key"),
    ],
)
def test_wrong_schemas_are_refused(names: list[str], types: list[str], keys: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Schema(names, types, keys)


# --- copy_columns


def _numbers(rows: int, seed: int) -> tuple[Slab, list[Any]]:
    random = np.random.default_rng(seed)
    columns: list[Any] = [
        random.normal(size=rows).astype(np.float32),
        random.integers(-(1 << 62), 1 << 62, rows),
        random.choice(np.asarray([0, 1, np.nan], np.float32), rows),
        (np.zeros(rows + 1, np.int32), np.zeros(0, np.uint8)),
    ]
    slab = Slab(Schema(["x", "n", "b", "s"], ["real", "integer", "boolean", "string"]))
    slab.append_columns(columns)
    return slab, columns


@given(st.data())
def test_columns_are_copied_to_their_places(data: st.DataObject) -> None:
    rows = data.draw(st.integers(0, 40))
    slab, columns = _numbers(rows, data.draw(st.integers(0, 1000)))
    start = data.draw(st.integers(0, rows))
    stop = data.draw(st.integers(start, rows))
    taken = data.draw(st.lists(st.booleans(), min_size=3, max_size=3))
    at, places = data.draw(st.integers(0, 9)), [-1] * 4
    expected = np.full(at + 40 * 16 + 30, 0xAB, np.uint8)
    for index in data.draw(st.permutations([0, 1, 2])):
        if taken[index]:
            part = columns[index][start:stop].view(np.uint8)
            expected[at : at + len(part)] = part
            places[index], at = at, at + len(part) + data.draw(st.integers(0, 9))
    into = np.full_like(expected, 0xAB)
    slab.copy_columns(into, np.asarray(places, np.int64), start, stop)
    np.testing.assert_array_equal(into, expected)


@pytest.mark.parametrize(
    ("places", "span", "size", "error", "says"),
    [
        ([0, -1, -1], (0, 5), 64, ValueError, "expected 4, one a column, came 3"),
        ([-1, -1, -1, 0], (0, 5), 64, ValueError, '"s" is string'),
        ([0, -1, -1, -1], (0, 6), 64, IndexError, r"rows within \[0, 5\), came \[0, 6\)"),
        ([0, -1, -1, -1], (3, 2), 64, IndexError, "rows within"),
        ([45, -1, -1, -1], (0, 5), 64, IndexError, '"x": 20 bytes at 45 are not within the buffer\'s 64'),
        ([0, 30, -1, -1], (0, 5), 64, IndexError, '"n": 40 bytes at 30'),
        ([0, (1 << 63) - 1, -1, -1], (0, 5), 64, IndexError, '"n"'),
        ([65, -1, -1, -1], (0, 0), 64, IndexError, '"x": 0 bytes at 65'),
    ],
)
def test_copies_out_of_bounds_write_nothing(
    places: list[int], span: tuple[int, int], size: int, error: type[Exception], says: str
) -> None:
    slab, _ = _numbers(5, 1)
    into = np.zeros(size, np.uint8)
    with pytest.raises(error, match=says):
        slab.copy_columns(into, np.asarray(places, np.int64), *span)
    assert not into.any()


def test_copies_need_a_buffer_to_write_to() -> None:
    slab, _ = _numbers(5, 1)
    places = np.zeros(4, np.int64)
    places[1:] = -1
    frozen = np.zeros(64, np.uint8)
    frozen.setflags(write=False)
    with pytest.raises(ValueError, match="writeable"):
        slab.copy_columns(frozen, places, 0, 5)
    for wrong in (np.zeros(64, np.int8), np.zeros(128, np.uint8)[::2]):
        with pytest.raises(TypeError):
            slab.copy_columns(wrong, places, 0, 5)  # type: ignore[arg-type]
