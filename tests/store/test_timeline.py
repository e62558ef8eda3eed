"""The timeline's file."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from trimtab.store.timeline import Evidence, append_evidence, read_evidence

ONE = Evidence("realised", 20, 3, "250 labelled rows cost 0.5 each", {"loss": 0.5, "rows": 250.0})


def test_entries_come_back_in_the_order_of_time(tmp_path: Path) -> None:
    path = tmp_path / "timeline.jsonl"
    assert read_evidence(path) == []
    earlier = Evidence("change", 10, 3, "adwin: it rose", {"before": 0.1, "after": 0.2})
    for entry in (ONE, earlier):
        append_evidence(path, entry)
    assert read_evidence(path) == [earlier, ONE]


def test_an_entry_that_was_written_twice_counts_once(tmp_path: Path) -> None:
    path = tmp_path / "timeline.jsonl"
    append_evidence(path, ONE)
    append_evidence(path, ONE)
    assert read_evidence(path) == [ONE]


def test_numbers_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "timeline.jsonl"
    append_evidence(path, Evidence("realised", 1, 1, "one row", {"loss": 1.0, "standard_error": math.nan}))
    assert read_evidence(path)[0].numbers == {"loss": 1.0}


def test_a_torn_last_line_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "timeline.jsonl"
    append_evidence(path, ONE)
    with path.open("ab") as file:
        file.write(b'{"kind": "realised", "time_us": 9')
    assert read_evidence(path) == [ONE]
    append_evidence(path, Evidence("decided", 30, 4, "promoted: better"))
    assert ONE in read_evidence(path)


@given(st.lists(st.binary(max_size=60).filter(lambda line: b"\n" not in line), max_size=8))
def test_any_line_is_read_or_passed_over(lines: list[bytes]) -> None:

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "timeline.jsonl"
        path.write_bytes(b"".join(line + b"\n" for line in lines))
        assert all(isinstance(entry, Evidence) for entry in read_evidence(path))
