"""Projects to serve: `project` has version 1, in its initial state."""

from __future__ import annotations

from pathlib import Path

import pytest
from trimtab.store.project import Project

from .world import publish, write_project


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = write_project(tmp_path / "project")
    publish(made, 1, verdict="initial")
    return made
