"""Crashes on purpose, for tests: the process kills itself before or after a step of a workflow.

Off unless TRIMTAB_TEST_CRASH is set to `STEP:before:FILE` or `STEP:after:FILE`, or to several of these with commas
between them. FILE is made first, and where it is there already nothing happens: the restarted process goes on.
"""

from __future__ import annotations

import os
import signal

__all__ = ["crash_point"]

VARIABLE = "TRIMTAB_TEST_CRASH"


def crash_point(step: str, when: str) -> None:
    """Dies by SIGKILL if this is a place that the variable names."""
    for wanted in filter(None, os.environ.get(VARIABLE, "").split(",")):
        name, moment, marker = wanted.split(":", 2)
        if (name, moment) == (step, when) and not os.path.exists(marker):
            with open(marker, "w") as file:
                os.fsync(file.fileno())
            os.kill(os.getpid(), signal.SIGKILL)
