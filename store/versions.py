"""Versions: immutable folders `versions/N/`, made aside and renamed; numbers that are never used twice; verdicts,
append-only.

A version's number is taken when its fit starts (`allocate`, which also makes the folder `N.fitting/` to work in) and
is never given out again, also when the fit is refused or dies. `publish` writes the files and their manifest aside,
makes them last and renames: a folder `N/` is whole, or is not there. Several processes may use one store; a lock file
orders them.

Every step is idempotent, because a workflow that died may run it again: the same owner gets the same number, the same
contents may be published again (other contents may not), and a decision that was the version's last is not written
twice.

Nothing here is ever unpickled: a version holds safetensors, JSON and Arrow, under plain names, and `verify` refuses
what else lies in its folder.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from trimtab.store.errors import StoreError, VersionConflict, VersionDamaged, VersionUnknown
from trimtab.store.files import (
    append_line,
    fsync_dir,
    locked,
    make_dir,
    now_us,
    os_errors,
    read_lines,
    sha256_bytes,
    sha256_file,
    write_new,
)
from trimtab.store.manifest import MANIFEST, WEIGHTS, Decision, Manifest

__all__ = ["Decision", "Manifest", "VersionStore"]

_ALLOCATIONS = "allocations.jsonl"
_FITTING = ".fitting"
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*\.(safetensors|json|arrow)")


class VersionStore:
    """The versions of one model, in `directory` (ModelPaths.versions); verdicts in `decisions.jsonl` beside it."""

    def __init__(self, directory: Path | str) -> None:
        """Makes the folder if it is not there. Raises StoreError."""
        self.directory = Path(directory)
        make_dir(self.directory)
        self._allocations = self.directory / _ALLOCATIONS
        self._decisions = self.directory.parent / "decisions.jsonl"
        self._lock = self.directory / ".lock"

    def allocate(self, owner: str) -> int:
        """Takes the next number for `owner` (a workflow's id), the same one each time it asks, and makes `N.fitting/`.

        Raises StoreError.
        """
        with locked(self._lock):
            taken = _read(self._allocations, _Allocation)
            number = next((line.version for line in taken if line.owner == owner), 0)
            if not number:
                known = [line.version for line in taken] + self.numbers() + [line.version for line in self.decisions()]
                number = max(known, default=0) + 1
                append_line(
                    self._allocations, _Allocation(version=number, owner=owner, time_us=now_us()).model_dump_json()
                )
            if not self.path(number).exists() and not self._given_up(number):
                make_dir(self.fitting(number))
            return number

    def publish(self, number: int, files: Mapping[str, bytes | Path], manifest: Manifest) -> Manifest:
        """Writes version `number` for good and returns its manifest, with each file's sha256 and the weights' filled
        in.

        `files` maps plain names (`weights.safetensors` is one) to contents or to files to copy. Publishing the same
        contents again changes nothing. Raises VersionConflict where other contents were published, StoreError
        otherwise.
        """
        for name in files:
            if _PLAIN.fullmatch(name) is None or name == MANIFEST:
                raise StoreError(
                    f"version {number}: {name!r} is no name for a version's file (*.safetensors, *.json, *.arrow)"
                )
        if manifest.version != number:
            raise StoreError(f"version {number}: its manifest says version {manifest.version}")
        if WEIGHTS not in files:
            raise StoreError(f"version {number}: no {WEIGHTS} among its files ({', '.join(files)})")
        with locked(self._lock):
            # Digests of what is given, taken first, so that a second publish need not write anything.
            with os_errors("read", self.fitting(number)):
                digests = {name: _digest(source) for name, source in files.items()}
            full = manifest.model_copy(update={"files": digests, "weights": digests[WEIGHTS]})
            if (manifest.files or digests) != digests or (manifest.weights or full.weights) != full.weights:
                raise VersionConflict(f"version {number}: its manifest names other contents than the files given")
            if os.path.lexists(self.path(number)):
                published = self.manifest(number)
                if published.files != digests:
                    raise VersionConflict(
                        f"version {number} was published before, with other contents; versions are immutable"
                    )
                self._remove(self.fitting(number))
                return published
            self._write(number, files, full)
            self._remove(self.fitting(number))
            return full

    def abandon(self, number: int, reason: str, *, recipe: str = "") -> None:
        """Gives up a number whose fit will not be published: removes `N.fitting/` and records the verdict
        "abandoned"."""
        if self.path(number).exists():
            raise VersionConflict(f"version {number} is published and cannot be abandoned; decide about it instead")
        self.decide(Decision(version=number, verdict="abandoned", reason=reason, recipe=recipe))
        with locked(self._lock):
            self._remove(self.fitting(number))

    def decide(self, decision: Decision) -> None:
        """Appends a verdict; one that says what the version's last one says is not written again. Raises StoreError."""
        with locked(self._lock):
            last = next((line for line in reversed(self.decisions()) if line.version == decision.version), None)
            if last is not None and last.says() == decision.says():
                return
            timed = decision if decision.time_us else decision.model_copy(update={"time_us": now_us()})
            append_line(self._decisions, timed.model_dump_json())

    def decisions(self) -> list[Decision]:
        """Every verdict, oldest first; a last line that a crash tore is left out. Raises StoreError."""
        return _read(self._decisions, Decision)

    def numbers(self) -> list[int]:
        """The published versions, ascending."""
        with os_errors("list", self.directory):
            return sorted(int(entry.name) for entry in os.scandir(self.directory) if entry.name.isdecimal())

    def path(self, number: int) -> Path:
        """The version's folder, whether it is there or not."""
        return self.directory / str(number)

    def fitting(self, number: int) -> Path:
        """The folder to work in before publishing; gone afterwards."""
        return self.directory / f"{number}{_FITTING}"

    def owner(self, number: int) -> str | None:
        """Who took the number, if anybody did."""
        return next((line.owner for line in _read(self._allocations, _Allocation) if line.version == number), None)

    def manifest(self, number: int) -> Manifest:
        """The version's manifest. Raises VersionUnknown, or VersionDamaged if it cannot be read."""
        path = self.path(number) / MANIFEST
        if not os.path.lexists(self.path(number)):
            known = ", ".join(map(str, self.numbers())) or "none"
            raise VersionUnknown(f"no version {number}; published: {known}")
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
            with open(descriptor, "rb") as file:
                manifest = Manifest.model_validate_json(file.read())
        except OSError as error:
            raise VersionDamaged(
                f"version {number}: cannot read {MANIFEST}: {os.strerror(error.errno or 0).lower()}"
            ) from error
        except ValueError as error:
            raise VersionDamaged(f"version {number}: {MANIFEST} is not a manifest: {_first(error)}") from error
        if manifest.version != number:
            raise VersionDamaged(f"version {number}: {MANIFEST} is of version {manifest.version}")
        return manifest

    def verify(self, number: int) -> None:
        """Checks that the folder holds exactly the plain files of the manifest, with their hashes.

        Raises VersionUnknown, or VersionDamaged naming the first file that is wrong and what was expected and found.
        """
        manifest = self.manifest(number)
        folder = self.path(number)
        if not stat.S_ISDIR(os.lstat(folder).st_mode):
            raise VersionDamaged(f"version {number}: expected a folder, found something else at {folder}")
        if manifest.files.get(WEIGHTS) != manifest.weights:
            raise VersionDamaged(f"version {number}: {MANIFEST} names other weights than its {WEIGHTS}")
        with os_errors("list", folder):
            present = {entry.name: entry.stat(follow_symlinks=False).st_mode for entry in os.scandir(folder)}
        expected = {*manifest.files, MANIFEST}
        for name in sorted(expected | set(present)):
            if name not in expected:
                raise VersionDamaged(f"version {number}: {name!r} is not in the manifest")
            if name != MANIFEST and _PLAIN.fullmatch(name) is None:
                raise VersionDamaged(f"version {number}: {name!r} is no file name of a version")
            if name not in present:
                raise VersionDamaged(f"version {number}: {name!r} is missing")
            if not stat.S_ISREG(present[name]):
                raise VersionDamaged(
                    f"version {number}: {name!r}: expected a plain file, found a link or something else"
                )
        for name, digest in sorted(manifest.files.items()):
            try:
                found = sha256_file(folder / name)
            except OSError as error:
                raise VersionDamaged(
                    f"version {number}: cannot read {name!r}: {os.strerror(error.errno or 0).lower()}"
                ) from error
            if found != digest:
                raise VersionDamaged(f"version {number}: {name!r}: expected sha256 {digest[:16]}…, found {found[:16]}…")

    def _write(self, number: int, files: Mapping[str, bytes | Path], manifest: Manifest) -> None:
        aside = self.directory / f".{number}.publishing"
        with os_errors("write version", self.path(number)):
            self._remove(aside)
            aside.mkdir()
            try:
                for name, source in files.items():
                    data = source if isinstance(source, bytes) else source.read_bytes()
                    # Bytes that were hashed above cannot have changed; a file can.
                    if data is not source and sha256_bytes(data) != manifest.files[name]:
                        raise StoreError(f"version {number}: {name!r} changed while it was being published")
                    write_new(aside / name, data)
                write_new(aside / MANIFEST, manifest.model_dump_json(indent=2).encode() + b"\n")
                fsync_dir(aside)
                os.rename(aside, self.path(number))
            except BaseException:
                shutil.rmtree(aside, ignore_errors=True)
                raise
            fsync_dir(self.directory)

    def _given_up(self, number: int) -> bool:
        return any(line.version == number and line.verdict == "abandoned" for line in self.decisions())

    def _remove(self, folder: Path) -> None:
        with os_errors("remove", folder):
            if folder.exists():
                shutil.rmtree(folder)
                fsync_dir(self.directory)


class _Allocation(BaseModel):
    version: int
    owner: str
    time_us: int


_Line = TypeVar("_Line", bound=BaseModel)


def _read(path: Path, kind: type[_Line]) -> list[_Line]:
    lines = []
    for position, line in enumerate(read_lines(path), 1):
        try:
            lines.append(kind.model_validate_json(line))
        except ValueError as error:
            raise StoreError(f"{path}: line {position} cannot be read: {_first(error)}") from error
    return lines


def _digest(source: bytes | Path) -> str:
    return sha256_bytes(source) if isinstance(source, bytes) else sha256_file(source)


def _first(error: Exception) -> str:
    if isinstance(error, ValidationError):
        item: Any = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in item["loc"])
        return f"{place} {item['msg']}".strip().lower()
    return str(error)
