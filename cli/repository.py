"""`trimtab load` and `trimtab unload`: models of trimtab.toml that come and go while the server runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from trimtab.cli.options import Directory, Json

__all__ = ["load", "unload"]

Name = Annotated[str, typer.Argument(metavar="MODEL", help="The model's name in trimtab.toml.", show_default=False)]


def load(name: Name, directory: Directory = Path("."), as_json: Json = False) -> None:
    """Load MODEL into the running server, which reads trimtab.toml anew for it. The other models are served on.

    If it is loaded already, its version policy is followed again: newly published versions come in.

    \b
    Examples:
      trimtab load vision -C project
      trimtab load vision --json
    """
    from trimtab.cli.output import Output
    from trimtab.cli.running import admin_of
    from trimtab.store.project import Project

    output = Output(as_json)
    with admin_of(Project.load(directory)) as admin:
        admin.load(name)
        listed = admin.versions(name)
    loaded = ", ".join(map(str, listed.loaded))
    output.say(f"{name} is loaded: version {listed.live} is live; loaded: {loaded}")
    output.result({"model": name, "live": listed.live, "loaded": list(listed.loaded)})


def unload(name: Name, directory: Directory = Path("."), as_json: Json = False) -> None:
    """Unload MODEL from the running server, once what it has accepted is answered. The other models are served on.

    \b
    Examples:
      trimtab unload vision -C project
      trimtab unload vision --json
    """
    from trimtab.cli.output import Output
    from trimtab.cli.running import admin_of
    from trimtab.store.project import Project

    output = Output(as_json)
    with admin_of(Project.load(directory)) as admin:
        admin.unload(name)
    output.say(f"{name} is unloaded")
    output.result({"model": name})
