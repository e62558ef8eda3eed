"""docs/project-file.md says what the settings say now, and its example is a project."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from trimtab.store.project import Project

ROOT = Path(__file__).resolve().parents[2]


def test_the_reference_is_current() -> None:
    command = [sys.executable, str(ROOT / "tools" / "reference.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_its_example_is_a_project() -> None:
    text = (ROOT / "docs" / "project-file.md").read_text()
    example = text.partition("```toml\n")[2].partition("```")[0]
    project = Project.loads(example, ROOT)
    assert project.model().feature_names == ("distance", "carrier")
