"""The server that runs for a folder, for commands that talk to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trimtab.cli.errors import NoServer
from trimtab.client import AdminClient, Running, Unavailable, running
from trimtab.store.project import Project

__all__ = ["admin_of", "server_of"]


def server_of(project: Project) -> Running | None:
    """The server of the project's folder, as far as state/server.json knows; see admin_of."""
    return running(project.state)


@contextmanager
def admin_of(project: Project) -> Iterator[AdminClient]:
    """The running server's admin socket. Raises NoServer where none runs, or the one that ran does not answer."""
    found = running(project.state)
    if found is None:
        raise NoServer(_nobody(project.directory))
    # One retry: a server that is there answers, and one that was killed leaves its file behind.
    with AdminClient(found.admin, retries=1) as admin:
        try:
            yield admin
        except Unavailable as error:
            if "no server answers" in str(error):
                raise NoServer(f"{_nobody(project.directory)} (pid {found.pid} of state/server.json is gone)") from None
            raise


def _nobody(directory: Path) -> str:
    return f"no server is running for {directory}; `trimtab serve -C {directory}` starts one"
