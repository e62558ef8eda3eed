"""typing_usage.py through mypy (strict: an unused ignore is an error, so every ignored line is one) and pyright."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

USAGE = Path(__file__).with_name("typing_usage.py")
ROOT = USAGE.parents[2]


def test_mypy() -> None:
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", "pyproject.toml", str(USAGE)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_pyright(tmp_path: Path) -> None:
    settings = {
        "include": [str(USAGE)],
        "extraPaths": [str(ROOT / "build" / "types")],
        "venvPath": str(ROOT),
        "venv": ".venv",
        "reportMissingModuleSource": False,
        "reportUnnecessaryTypeIgnoreComment": "error",
    }
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    done = subprocess.run(
        [sys.executable, "-m", "pyright", "--project", str(tmp_path), "--pythonpath", sys.executable],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
