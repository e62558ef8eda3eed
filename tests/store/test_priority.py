"""A thread that yields is nicer than the process' others, and they stay as they were."""

from __future__ import annotations

import os
import sys
import threading

import pytest
from trimtab.store.priority import yield_to_others


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has priorities of threads")
def test_only_the_calling_thread_yields() -> None:
    before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    found: list[int] = []

    def run() -> None:
        for _ in range(3):  # as low as it goes, and no error beyond
            yield_to_others()
            found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [min(before + 10, 19), min(before + 20, 19), 19]
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before
