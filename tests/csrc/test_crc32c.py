"""CRC-32C: published vectors, and the processor's instruction against the tables."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trimtab._native import crc32c, crc32c_portable


@pytest.mark.parametrize(
    ("data", "expected"),
    [  # RFC 3720, B.4, and the check value of the CRC catalogue
        (b"", 0x00000000),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(reversed(range(32))), 0x113FDB5C),
    ],
)
def test_published_vectors(data: bytes, expected: int) -> None:
    assert crc32c(data) == expected
    assert crc32c_portable(data) == expected


@given(st.binary(max_size=200), st.integers(0, 2**32 - 1), st.integers(0, 16))
def test_instruction_and_tables_agree_at_any_alignment(data: bytes, seed: int, skip: int) -> None:
    view = memoryview(data)[skip:]
    assert crc32c(view, seed) == crc32c_portable(view, seed)


@given(st.binary(max_size=100), st.binary(max_size=100))
def test_seed_continues_a_checksum(first: bytes, second: bytes) -> None:
    assert crc32c(second, crc32c(first)) == crc32c(first + second)


def test_long_buffers_agree() -> None:  # long enough that the GIL is released
    data = np.random.default_rng(0).bytes(3_000_001)
    assert crc32c(data) == crc32c_portable(data)


def test_arrays_are_read_as_their_bytes() -> None:
    array = np.arange(10, dtype=np.float64)
    assert crc32c(array) == crc32c(array.tobytes())


def test_strided_memory_is_refused() -> None:
    with pytest.raises(ValueError, match="contiguous"):
        crc32c(np.arange(10)[::2])
