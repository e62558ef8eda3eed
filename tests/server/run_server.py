"""Serves a project in the foreground: `run_server.py DIRECTORY OPTIONS`, the options of `serve` as JSON.

FAKE_TRAINER names a script that takes the trainer's place. The option `file_bytes` bounds the size of files that are
written (beyond it writes fail as on a full disk); stderr goes to stdout then, for it may be a file. `stuck`: captures
cannot be closed. `played_gpu`: see played_gpu.py.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import sys
import threading


def main() -> int:
    """The exit status."""
    gc.disable()  # while importing, as `trimtab serve` does
    from trimtab.server import supervisor
    from trimtab.server.app import serve
    from trimtab.store.captures import CaptureWriter
    from trimtab.store.errors import ProjectError
    from trimtab.store.project import Project

    gc.enable()
    if script := os.environ.get("FAKE_TRAINER"):
        supervisor.TRAINER = (sys.executable, script)
    options = json.loads(sys.argv[2])
    if "file_bytes" in options:
        os.dup2(1, 2)
        limit = options.pop("file_bytes")
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    if options.pop("stuck", False):
        # A disk that does not answer any more.
        CaptureWriter.close = lambda self: threading.Event().wait()  # type: ignore[method-assign]
    if options.pop("played_gpu", False):
        from played_gpu import play  # type: ignore[import-not-found]

        play()
    try:
        project = Project.load(sys.argv[1])
    except ProjectError as error:
        print(f"trimtab: {error}", file=sys.stderr)
        return 1
    return serve(project, as_json=True, **options)


if __name__ == "__main__":
    sys.exit(main())
