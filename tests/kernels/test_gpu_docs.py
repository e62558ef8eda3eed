"""docs/gpu.md: its snippets on kernels for tensors, with the GPU where there is one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

DOCS = Path(__file__).parents[2] / "docs" / "gpu.md"


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_every_snippet_runs(device: str, capsys: pytest.CaptureFixture[str]) -> None:
    section = DOCS.read_text(encoding="utf-8").split("## Kernels for tensors")[1].split("\n## ")[0]
    names: dict[str, Any] = {}
    torch.manual_seed(0)
    for code in re.findall(r"```python\n(.*?)```", section, re.DOTALL):
        exec(code.replace('"cuda"', f'"{device}"'), names)
    assert names["sketch"].rows == 1000
    assert abs(float(capsys.readouterr().out.split()[-1])) < 0.01
    assert names["planes"].isfinite().all()
