"""Code of the user's own: where it may come from, and how it is loaded.

A network (`entry`) or an exported program (`program`) is code, and code runs only where trimtab.toml names it.
Nothing under state/, no client and no RPC can: a manifest may say that a network is an entry, but which code that is
comes from the project that this process has opened (`allow`). Files must lie in the project's folder, links resolved,
belong to the server's user or root, and not be writable by everybody; so must the folders between. A program must also
have the sha256 that trimtab.toml gives, of the very bytes that are loaded.

An entry's file is executed anew, from its source, each time its module is built, so that unloading and loading a model
takes an edited file. What it imports from the folder is Python's to find and cache: the folder goes to the end of
sys.path, so that nothing in it can stand in for an installed package. Those files are guarded by their folder only.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import stat
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from trimtab.models.errors import CodeError
from trimtab.store.project import Project

__all__ = ["Entry", "allow", "allow_project", "allowed", "checked_bytes", "checked_path", "read_entry"]

_lock = threading.Lock()
_allowed: dict[str, Entry] = {}


@dataclass(frozen=True)
class Entry:
    """`module:name` of the project in `directory`."""

    directory: Path
    name: str

    def read(self) -> tuple[Any, str]:
        """See read_entry."""
        return read_entry(self.directory, self.name)


def allow(directory: Path, entries: list[str]) -> None:
    """Lets column models of this process use these entries of trimtab.toml."""
    with _lock:
        _allowed.update({name: Entry(directory, name) for name in entries if name})


def allow_project(project: Project) -> None:
    """Lets this process use the entries of this trimtab.toml for models of columns."""
    allow(project.directory, [model.entry for model in project.models if not model.takes_tensors])


def allowed(name: str) -> Entry:
    """The entry of that name. Raises CodeError where trimtab.toml does not name it."""
    with _lock:
        entry = _allowed.get(name)
    if entry is None:
        raise CodeError(f"entry {name[:80]!r} is not named in trimtab.toml, which alone says what code runs")
    return entry


def checked_path(directory: Path, relative: str) -> Path:
    """The file of that name in the project's folder, if it may be run from there. Raises CodeError."""
    root = directory.resolve()
    try:
        path = (root / relative).resolve(strict=True)
    except (OSError, RuntimeError):
        raise CodeError(f"no file {relative!r} in {root}") from None
    if not path.is_relative_to(root):
        raise CodeError(f"{relative!r} leads to {path}, outside {root}: code is taken from the project's folder only")
    if not path.is_file():
        raise CodeError(f"{relative!r}: expected a plain file, found something else")
    place = path
    while True:
        _check_owner(place)
        if place == root:
            return path
        place = place.parent


def checked_bytes(directory: Path, relative: str, sha256: str) -> bytes:
    """The contents of a file of code, pinned by its hash. Raises CodeError."""
    path = checked_path(directory, relative)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CodeError(f"cannot read {path}: {os.strerror(error.errno or 0).lower()}") from None
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise CodeError(f"{relative!r}: expected sha256 {sha256}, found {found}; it is not the file that was pinned")
    return data


def read_entry(directory: Path, entry: str) -> tuple[Callable[..., Any], str]:
    """The class or function that `module:name` names, and the sha256 in hex of the source that was executed. Raises
    CodeError, also where importing it raises."""
    module_name, _, name = entry.partition(":")
    path = _module_path(directory, module_name)
    module, source = _execute(directory, module_name, path)
    found = getattr(module, name, None)
    if found is None:
        known = ", ".join(sorted(item for item in vars(module) if not item.startswith("_"))[:12])
        raise CodeError(f"entry {entry!r}: {path.name} has no {name!r}; it has {known or 'nothing'}")
    if not callable(found):
        raise CodeError(f"entry {entry!r}: expected a class or a function, found {type(found).__name__}")
    return found, hashlib.sha256(source).hexdigest()


def _module_path(directory: Path, module: str) -> Path:
    plain = module.replace(".", "/")
    for candidate in (f"{plain}.py", f"{plain}/__init__.py"):
        if (directory / candidate).exists():
            return checked_path(directory, candidate)
    raise CodeError(f"module {module!r} not found: no {plain}.py in {directory}")


def _execute(directory: Path, name: str, path: Path) -> tuple[ModuleType, bytes]:
    """The module, and its source."""
    with _lock:
        known = sys.modules.get(name)
        foreign = known is not None and getattr(known, "__file__", None) != str(path)
        if foreign and not getattr(known, "__trimtab_entry__", False):
            raise CodeError(f"module {name!r}: an installed package has this name; rename {path.name}")
        if str(directory) not in sys.path:
            sys.path.append(str(directory))
        inside = [str(path.parent)] if path.name == "__init__.py" else None
        spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=inside)
        assert spec is not None
        try:
            if "." in name:
                importlib.import_module(name.rpartition(".")[0])
            module = importlib.util.module_from_spec(spec)
            module.__dict__["__trimtab_entry__"] = True
            sys.modules[name] = module
            # Not by its loader, which may take bytecode for the source.
            source = path.read_bytes()
            exec(compile(source, str(path), "exec"), module.__dict__)
        except BaseException as error:
            if known is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = known
            if not isinstance(error, Exception | SystemExit):
                raise
            raise CodeError(f"{path.name} cannot be imported: {type(error).__name__}: {error}") from error
        return module, source


def _check_owner(path: Path) -> None:
    found = path.stat()
    if found.st_uid not in (os.geteuid(), 0):
        raise CodeError(f"{path} belongs to user {found.st_uid}: code must belong to the server's user or root")
    if found.st_mode & stat.S_IWOTH:
        raise CodeError(f"{path} can be written by everybody (mode {found.st_mode & 0o777:o}): chmod o-w it")
