"""NannyML's multivariate drift (reconstruction error of a PCA) at its defaults, in an environment of its own.

The program reads one JSON object, {"rows", "windows", "reference", "seed", "shift", "size"}, and prints the share of
windows that it alarms for. `rate` runs it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from _together_data import CATEGORIES, COLUMNS, rows_of


def rate(**case: Any) -> float:
    """Share of alarms. Raises as nannyml_drift.answer does."""
    from peers.nannyml_drift import answer

    return float(answer(__file__, case))


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
