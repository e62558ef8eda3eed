"""What `trimtab serve` imports before it is ready: torch takes half of the start, and nothing else may add to it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

HEAVY = {
    *("alembic", "dbos", "croniter", "matplotlib", "mlflow", "optuna", "pandas", "rich.table", "river", "scipy"),
    *("sqlalchemy", "sympy", "torch._dynamo", "torch._inductor", "triton", "pyarrow.dataset", "pyarrow.parquet"),
    *("trimtab.kernels.fit", "trimtab.kernels.reference", "trimtab.trainer"),
}
IMPORTS = """
import json, os, sys
from trimtab.cli.app import main
from trimtab.cli.serve import _importing
with _importing():
    import trimtab.store.project, trimtab.server.app
import gc, torch
print(json.dumps([sorted(sys.modules), gc.isenabled(), [n for n in os.environ if n.startswith(("OMP_", "OPENBLAS_"))]]))
"""


def test_serving_imports_nothing_heavy() -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "OPENBLAS_"))}
    done = subprocess.run([sys.executable, "-c", IMPORTS], env=clean, capture_output=True, text=True, check=True)
    modules, collecting, left = json.loads(done.stdout.splitlines()[-1])
    assert sorted(HEAVY & set(modules)) == []
    assert "torch" in modules
    assert collecting
    assert left == []  # the trainer's environment is as it was
