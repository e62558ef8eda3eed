"""Which executor runs where."""

from __future__ import annotations

import pytest
from trimtab.kernels.device import executor_for
from trimtab.kernels.errors import ExecutorError
from trimtab.kernels.program import ColumnProgram, Field, RealField, SketchSpec


def test_executor_for_device() -> None:
    program = ColumnProgram((Field("x", "real"),), (), SketchSpec((RealField("x", ()),)))
    for device in ("cpu", "cuda", "cuda:1"):
        assert executor_for(program, device).program is program
    with pytest.raises(ExecutorError, match="'tpu'"):
        executor_for(program, "tpu")
