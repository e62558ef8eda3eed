"""What the host makes of a batch for the GPU."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from trimtab.kernels.cuda_staging import ALIGNED, packed, packed_size

arrays = st.one_of(
    st.none(),
    st.builds(lambda n: np.arange(n, dtype=np.float32), st.integers(0, 9)),
    st.builds(lambda n: np.arange(n, dtype=np.int64), st.integers(0, 9)),
    st.builds(lambda n: np.arange(n + 1, dtype=np.int32)[1:], st.integers(0, 9)),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(arrays, max_size=7), st.integers(1, 1 << 40).map(lambda n: n * 256))
def test_columns_lie_where_their_addresses_say(columns: list[Any], address: int) -> None:
    buffer = packed(columns, address)
    assert len(buffer) == packed_size(columns)
    addresses = buffer[: 8 * len(columns)].view(np.uint64).tolist()
    for found, column in zip(addresses, columns, strict=True):
        assert found % ALIGNED == 0
        if column is not None:
            at = found - address
            assert buffer[at : at + column.nbytes].tobytes() == column.tobytes()
    assert addresses == sorted(addresses)
