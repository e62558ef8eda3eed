"""NannyML's univariate drift at its defaults (Jensen-Shannon distance, threshold of three deviations over the chunks of
the reference), in an environment of its own.

The program reads one JSON object, {"rows", "windows", "reference", "seed", "shift", "size"}, and prints, for each
column, the share of windows that it alarms for. `rates` runs it.
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
from _drift_data import CATEGORIES, SHIFTS, drawn, population, shifted

PACKAGES = ["nannyml", "statsmodels"]
COLUMNS = ("normal", "lognormal", "rounded", "missing", "ten", "zipf")


def rates(**case: Any) -> dict[str, float]:
    """Share of alarms by column. Raises as `answer` does."""
    found: dict[str, float] = answer(__file__, case)
    return found


def answer(program: str, case: dict[str, Any]) -> Any:
    """What a program prints last, as JSON, given the case as JSON, in NannyML's environment. Raises peers.setup.Absent
    where NannyML cannot be had, RuntimeError where it fails."""
    from peers.setup import environment

    python = environment("nannyml", PACKAGES, "nannyml")
    done = subprocess.run(
        [str(python), program], input=json.dumps(case), capture_output=True, text=True, check=False,
        env={**os.environ, "NML_DISABLE_USAGE_LOGGING": "1"},
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"nannyml: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    import nannyml
    import pandas

    case = json.load(sys.stdin)
    rng = np.random.default_rng(case["seed"])
    people = population()
    columns = [SHIFTS[case["shift"]][0]] if case.get("shift") else list(COLUMNS)
    people = {name: people[name] for name in columns}
    before = drawn(people, case["reference"], rng)
    now = drawn(people, case["rows"] * case["windows"], rng)
    if case.get("shift"):
        now = {name: shifted(values, case["shift"], case["size"], rng) for name, values in now.items()}
    frames = [
        pandas.DataFrame({n: v.astype(str) if n in CATEGORIES else v for n, v in part.items()})
        for part in (before, now)
    ]
    calculator = nannyml.UnivariateDriftCalculator(
        column_names=columns, treat_as_categorical=[name for name in columns if name in CATEGORIES],
        chunk_size=case["rows"],
    )  # fmt: skip
    result = calculator.fit(frames[0]).calculate(frames[1]).filter(period="analysis").to_df()
    print(json.dumps({name: float(result[(name, "jensen_shannon", "alert")].mean()) for name in columns}))


if __name__ == "__main__":
    main()
