"""One server process for all of the client's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from . import served


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[served.Server]:
    directory = tmp_path_factory.mktemp("client") / "project"
    served.make_project(directory)
    running = served.start(directory)
    yield running
    assert running.stop() == 0
