"""Versions: numbers, immutability, verification, and steps that may be run twice."""

from __future__ import annotations

import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from trimtab.store.errors import StoreError, VersionConflict, VersionDamaged, VersionUnknown
from trimtab.store.files import sha256_bytes
from trimtab.store.versions import Decision, Manifest, VersionStore

FILES: dict[str, bytes | Path] = {
    "weights.safetensors": b"weights",
    "columns.json": b"{}",
    "reference.arrow": b"sketch",
}


@pytest.fixture
def store(tmp_path: Path) -> VersionStore:
    return VersionStore(tmp_path / "versions")


def published(store: VersionStore, owner: str = "w1") -> int:
    number = store.allocate(owner)
    store.publish(number, FILES, Manifest(version=number, task="binary", metrics={"log_loss": 0.5}))
    return number


def test_publishing_fills_in_the_hashes_and_verifies(store: VersionStore) -> None:
    number = published(store)
    manifest = store.manifest(number)
    assert manifest.files == {name: sha256_bytes(data) for name, data in FILES.items() if isinstance(data, bytes)}
    assert manifest.weights == manifest.files["weights.safetensors"]
    assert manifest.metrics == {"log_loss": 0.5}
    store.verify(number)
    assert store.numbers() == [1]
    assert not store.fitting(number).exists()


def test_an_owner_gets_the_same_number_and_nobody_else_does(store: VersionStore) -> None:
    assert store.allocate("a") == store.allocate("a") == 1
    assert store.fitting(1).is_dir()
    assert store.allocate("b") == 2
    assert (store.owner(1), store.owner(2), store.owner(3)) == ("a", "b", None)


def test_numbers_are_never_used_again(store: VersionStore) -> None:
    store.allocate("a")
    store.abandon(1, "the data check failed")
    assert not store.fitting(1).exists()
    assert store.allocate("b") == 2
    assert VersionStore(store.directory).allocate("c") == 3


def test_many_at_once_get_distinct_numbers(store: VersionStore) -> None:
    with ThreadPoolExecutor(8) as pool:
        numbers = list(pool.map(lambda i: VersionStore(store.directory).allocate(f"w{i // 2}"), range(40)))
    assert sorted(set(numbers)) == list(range(1, 21))
    assert all(numbers[2 * i] == numbers[2 * i + 1] for i in range(20))


def test_publishing_the_same_again_changes_nothing(store: VersionStore) -> None:
    number = published(store)
    before = (store.path(number) / "manifest.json").read_bytes()
    store.publish(number, FILES, Manifest(version=number, created_us=99))
    assert (store.path(number) / "manifest.json").read_bytes() == before


def test_publishing_something_else_is_refused(store: VersionStore) -> None:
    number = published(store)
    with pytest.raises(VersionConflict, match="published before, with other contents"):
        store.publish(number, FILES | {"columns.json": b"[]"}, Manifest(version=number))
    store.verify(number)


def test_files_may_be_given_as_paths(store: VersionStore, tmp_path: Path) -> None:
    number = store.allocate("w")
    (store.fitting(number) / "fit.safetensors").write_bytes(b"weights")
    store.publish(
        number, FILES | {"weights.safetensors": store.fitting(number) / "fit.safetensors"}, Manifest(version=number)
    )
    assert (store.path(number) / "weights.safetensors").read_bytes() == b"weights"
    with pytest.raises(StoreError, match="cannot read"):
        store.publish(2, FILES | {"columns.json": tmp_path / "none"}, Manifest(version=2))


@pytest.mark.parametrize(
    "name", ["../x.json", "a/b.json", "model.pkl", "manifest.json", ".hidden.json", "x", "weights.pt", ""]
)
def test_names_that_no_version_has(store: VersionStore, name: str) -> None:
    with pytest.raises(StoreError, match="is no name for a version's file"):
        store.publish(1, FILES | {name: b""}, Manifest(version=1))


def test_manifests_that_do_not_belong(store: VersionStore) -> None:
    with pytest.raises(StoreError, match="its manifest says version 2"):
        store.publish(1, FILES, Manifest(version=2))
    with pytest.raises(StoreError, match=r"no weights.safetensors among"):
        store.publish(1, {"columns.json": b"{}"}, Manifest(version=1))
    with pytest.raises(VersionConflict, match="names other contents"):
        store.publish(1, FILES, Manifest(version=1, files={"weights.safetensors": "0" * 64}))


def corrupt(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_damage_is_found_and_named(store: VersionStore) -> None:
    folder = store.path(published(store))
    weights = folder / "weights.safetensors"
    corrupt(weights)
    with pytest.raises(VersionDamaged, match=r"'weights.safetensors': expected sha256 .*, found"):
        store.verify(1)
    weights.unlink()
    with pytest.raises(VersionDamaged, match=r"'weights.safetensors' is missing"):
        store.verify(1)
    os.symlink("/etc/hostname", weights)
    with pytest.raises(VersionDamaged, match="expected a plain file"):
        store.verify(1)


def test_a_planted_pickle_is_refused_and_never_run(store: VersionStore, tmp_path: Path) -> None:
    folder = store.path(published(store))

    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(tmp_path / "exploded"),)

    (folder / "optimizer.pkl").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(VersionDamaged, match=r"'optimizer.pkl' is not in the manifest"):
        store.verify(1)
    (folder / "optimizer.pkl").rename(folder / "manifest.json")
    with pytest.raises(VersionDamaged, match=r"manifest.json is not a manifest"):
        store.verify(1)
    assert not (tmp_path / "exploded").exists()


def test_a_manifest_that_is_a_link_or_of_another_version(store: VersionStore) -> None:
    published(store)
    published(store, "w2")
    (store.path(2) / "manifest.json").write_bytes((store.path(1) / "manifest.json").read_bytes())
    with pytest.raises(VersionDamaged, match="is of version 1"):
        store.verify(2)
    (store.path(2) / "manifest.json").unlink()
    (store.path(2) / "manifest.json").symlink_to("../1/manifest.json")
    with pytest.raises(VersionDamaged, match=r"cannot read manifest.json"):
        store.verify(2)


def test_versions_that_are_not_there(store: VersionStore) -> None:
    published(store)
    with pytest.raises(VersionUnknown, match="no version 7; published: 1"):
        store.verify(7)


def test_a_version_folder_that_is_a_link(store: VersionStore) -> None:
    store.path(published(store)).rename(store.directory / "elsewhere")
    store.path(1).symlink_to("elsewhere")
    with pytest.raises(VersionDamaged, match="expected a folder"):
        store.verify(1)


def test_what_a_crash_left_half_written_is_written_anew(store: VersionStore) -> None:
    number = store.allocate("w")
    half = store.directory / f".{number}.publishing"
    half.mkdir()
    (half / "weights.safetensors").write_bytes(b"wei")
    assert store.numbers() == []
    store.publish(number, FILES, Manifest(version=number))
    store.verify(number)
    assert not half.exists()


def test_decisions_are_kept_in_order_and_once(store: VersionStore) -> None:
    published(store)
    first = Decision(version=1, verdict="initial", reason="the first", metrics={"log_loss": 0.5})
    store.decide(first)
    store.decide(first)
    store.decide(Decision(version=1, verdict="refused", reason="worse"))
    store.decide(first)
    assert [line.verdict for line in store.decisions()] == ["initial", "refused", "initial"]
    assert all(line.time_us > 0 for line in store.decisions())
    assert (store.directory.parent / "decisions.jsonl").is_file()


def test_a_torn_decision_is_left_out_and_a_broken_one_is_named(store: VersionStore) -> None:
    store.decide(Decision(version=1, verdict="initial", reason="r"))
    path = store.directory.parent / "decisions.jsonl"
    with open(path, "ab") as file:
        file.write(b'{"version": 2, "verd')
    assert len(store.decisions()) == 1
    store.decide(Decision(version=2, verdict="undecided", reason="too few rows"))
    assert [line.version for line in store.decisions()] == [1, 2]
    with open(path, "ab") as file:
        file.write(b"nonsense\n")
    with pytest.raises(StoreError, match=r"decisions.jsonl: line 3 cannot be read"):
        store.decisions()


def test_abandoning_twice_is_one_verdict_and_published_versions_stay(store: VersionStore) -> None:
    store.allocate("a")
    store.abandon(1, "killed", recipe="refresh")
    store.abandon(1, "killed", recipe="refresh")
    assert [(line.verdict, line.recipe) for line in store.decisions()] == [("abandoned", "refresh")]
    assert store.allocate("a") == 1
    assert not store.fitting(1).exists()
    published(store, "b")
    with pytest.raises(VersionConflict, match="cannot be abandoned"):
        store.abandon(2, "no")
