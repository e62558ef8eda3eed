"""Serves a project in the foreground: `run_server.py DIRECTORY OPTIONS`, the options of `serve` as JSON.

FAKE_TRAINER names a script that takes the trainer's place.
"""

from __future__ import annotations

import json
import os
import sys

from trimtab.server import supervisor
from trimtab.server.app import serve
from trimtab.store.errors import ProjectError
from trimtab.store.project import Project

if __name__ == "__main__":
    if script := os.environ.get("FAKE_TRAINER"):
        supervisor.TRAINER = (sys.executable, script)
    try:
        project = Project.load(sys.argv[1])
    except ProjectError as error:
        sys.exit(f"trimtab: {error}")
    sys.exit(serve(project, as_json=True, **json.loads(sys.argv[2])))
