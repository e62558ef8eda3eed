"""What became of every version: its folder, its manifest and its last verdict, as one list."""

from __future__ import annotations

from collections.abc import Collection

from trimtab.protos.v1 import trimtab_pb2 as pb
from trimtab.store.errors import StoreError
from trimtab.store.live import Live
from trimtab.store.versions import Decision, Manifest, VersionStore

__all__ = ["list_versions"]

_FITTING = ".fitting"


def list_versions(
    store: VersionStore, live: Live, staged: Collection[int], asleep: Collection[int] = ()
) -> list[pb.VersionInfo]:
    """All versions that were ever begun, ascending. Reads the disk. Raises StoreError."""
    published = set(store.numbers())
    decisions = {decision.version: decision for decision in store.decisions()}
    fitting = {
        int(path.name.removesuffix(_FITTING))
        for path in store.directory.glob(f"*{_FITTING}")
        if path.name.removesuffix(_FITTING).isdecimal()
    }
    found = [
        _describe(store, number, decisions.get(number), live, staged, number in published)
        for number in sorted(published | decisions.keys() | fitting)
    ]
    for info in found:
        info.asleep = info.version in asleep
    return found


def _describe(
    store: VersionStore, number: int, decision: Decision | None, live: Live, staged: Collection[int], published: bool
) -> pb.VersionInfo:
    damage, manifest = "", None
    if published:
        try:
            manifest = store.manifest(number)
        except StoreError as error:
            damage = str(error)
    info = pb.VersionInfo(version=number, state=_state(number, decision, live, staged, published))
    if manifest is not None:
        _add_manifest(info, manifest)
    if decision is not None:
        info.verdict, info.reason = decision.verdict, decision.reason
        info.created_us = info.created_us or decision.time_us
        _add_metrics(info, decision.metrics)
    if damage:
        info.reason = damage
    return info


def _state(number: int, decision: Decision | None, live: Live, staged: Collection[int], published: bool) -> str:
    if number == live.live:
        return "live"
    if number == live.previous:
        return "previous"
    if decision is not None and decision.verdict in ("refused", "undecided", "abandoned"):
        return decision.verdict
    if not published:
        return "fitting"
    return "staged" if number in staged else "archived"


def _add_manifest(info: pb.VersionInfo, manifest: Manifest) -> None:
    info.weights = manifest.weights
    info.parent = manifest.parent or 0
    info.verdict, info.reason = manifest.verdict, manifest.reason
    info.rows_trained = manifest.rows_trained
    info.created_us = manifest.created_us
    _add_metrics(info, manifest.metrics)


def _add_metrics(info: pb.VersionInfo, metrics: dict[str, object] | dict[str, float]) -> None:
    for name, value in metrics.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            info.metrics[name] = float(value)
