"""NannyML's multivariate drift (reconstruction error of a PCA) at its defaults, in an environment of its own.

The program reads one JSON object, {"rows", "windows", "reference", "seed", "shift", "size"}, and prints the share of
windows that it alarms for. `rate` runs it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from _together_data import CATEGORIES, COLUMNS, rows_of

PACKAGES = ["nannyml", "statsmodels"]


def rate(**case: Any) -> float:
    """Share of alarms. Raises peers.setup.Absent where NannyML cannot be had, RuntimeError where it fails."""
    from peers.setup import environment

    python = environment("nannyml", PACKAGES, "nannyml")
    done = subprocess.run(
        [str(python), __file__], input=json.dumps(case), capture_output=True, text=True, check=False,
        env={**os.environ, "NML_DISABLE_USAGE_LOGGING": "1"},
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"nannyml: {done.stderr.strip().splitlines()[-1]}")
    return float(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    import nannyml
    import pandas

    case = json.load(sys.stdin)
    rng = np.random.default_rng(case["seed"])
    sides = (
        rows_of(case["reference"], rng),
        rows_of(case["rows"] * case["windows"], rng, case["shift"], case["size"]),
    )
    frames = [
        pandas.DataFrame({name: v.astype(str) if name in CATEGORIES else v for name, v in side.items()})
        for side in sides
    ]
    calculator = nannyml.DataReconstructionDriftCalculator(column_names=list(COLUMNS), chunk_size=case["rows"])
    result = calculator.fit(frames[0]).calculate(frames[1]).filter(period="analysis").to_df()
    print(float(result[("reconstruction_error", "alert")].mean()))


if __name__ == "__main__":
    main()
