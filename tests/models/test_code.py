"""Code of the user's own: taken from the project's folder only, and only as trimtab.toml names it."""

import hashlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from trimtab.models.code import allow, allowed, checked_bytes, checked_path, read_entry
from trimtab.models.errors import CodeError


@pytest.fixture(autouse=True)
def _no_modules_left() -> Iterator[None]:
    before, path = set(sys.modules), list(sys.path)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]
    sys.path[:] = path


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_an_entry_is_loaded_with_what_it_imports_beside_it(tmp_path: Path) -> None:
    write(tmp_path, "beside_me.py", "NUMBER = 3")
    write(tmp_path, "my_entry.py", "from beside_me import NUMBER\ndef build(): return NUMBER")
    assert read_entry(tmp_path, "my_entry:build")[0]() == 3


def test_a_module_in_a_package_may_import_relatively(tmp_path: Path) -> None:
    write(tmp_path, "my_pack/__init__.py", "")
    write(tmp_path, "my_pack/parts.py", "NUMBER = 4")
    write(tmp_path, "my_pack/net.py", "from .parts import NUMBER\ndef build(): return NUMBER")
    assert read_entry(tmp_path, "my_pack.net:build")[0]() == 4


def test_an_edited_file_is_executed_anew_and_never_its_bytecode(tmp_path: Path) -> None:
    path = write(tmp_path, "my_edit.py", "def build(): return 1")
    assert read_entry(tmp_path, "my_edit:build")[0]() == 1
    stamp = path.stat()
    write(tmp_path, "my_edit.py", "def build(): return 2")
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert read_entry(tmp_path, "my_edit:build")[0]() == 2
    assert not (tmp_path / "__pycache__").exists()


@pytest.mark.parametrize(
    ("text", "entry", "expected"),
    [
        ("", "absent:build", "module 'absent' not found: no absent.py in"),
        ("x = 1", "my_bad:build", "my_bad.py has no 'build'; it has x"),
        ("build = 1", "my_bad:build", "expected a class or a function, found int"),
        ("1 / 0", "my_bad:build", "my_bad.py cannot be imported: ZeroDivisionError"),
        ("raise SystemExit(3)", "my_bad:build", "my_bad.py cannot be imported: SystemExit"),
        ("def", "my_bad:build", "my_bad.py cannot be imported: SyntaxError"),
    ],
)
def test_what_cannot_be_loaded_is_named(tmp_path: Path, text: str, entry: str, expected: str) -> None:
    write(tmp_path, "my_bad.py", text)
    with pytest.raises(CodeError, match=expected):
        read_entry(tmp_path, entry)
    assert "my_bad" not in sys.modules or text.startswith(("x", "build")) or entry.startswith("absent")


def test_an_installed_package_is_not_shadowed(tmp_path: Path) -> None:
    write(tmp_path, "numpy.py", "def build(): pass")
    with pytest.raises(CodeError, match="an installed package has this name"):
        read_entry(tmp_path, "numpy:build")


def test_outside_the_folder_is_refused(tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    outside = write(tmp_path, "outside.py", "def build(): pass")
    (project / "linked.py").symlink_to(outside)
    for name in ("../outside.py", "linked.py", str(outside)):
        with pytest.raises(CodeError, match="outside"):
            checked_path(project, name)
    with pytest.raises(CodeError, match="leads to"):
        read_entry(project, "linked:build")
    with pytest.raises(CodeError, match="no file"):
        checked_path(project, "absent.py")
    with pytest.raises(CodeError, match="expected a plain file"):
        checked_path(project, ".")


def test_what_everybody_may_write_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "pack/my_open.py", "def build(): pass")
    path.chmod(0o646)
    with pytest.raises(CodeError, match=r"can be written by everybody \(mode 646\)"):
        read_entry(tmp_path, "pack.my_open:build")
    path.chmod(0o644)
    path.parent.chmod(0o777)
    with pytest.raises(CodeError, match=r"pack can be written by everybody"):
        read_entry(tmp_path, "pack.my_open:build")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_what_belongs_to_another_user_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "my_gift.py", "def build(): pass")
    os.chown(path, 12345, -1)
    with pytest.raises(CodeError, match="belongs to user 12345"):
        read_entry(tmp_path, "my_gift:build")


def test_a_program_must_be_the_very_file_that_was_pinned(tmp_path: Path) -> None:
    write(tmp_path, "model.pt2", "code")
    good = hashlib.sha256(b"code").hexdigest()
    assert checked_bytes(tmp_path, "model.pt2", good) == b"code"
    with pytest.raises(CodeError, match="not the file that was pinned"):
        checked_bytes(tmp_path, "model.pt2", "0" * 64)


def test_only_entries_that_were_allowed_are_found(tmp_path: Path) -> None:
    with pytest.raises(CodeError, match=r"not named in trimtab\.toml"):
        allowed("os:system")
    allow(tmp_path, ["my_own:Model", ""])
    assert allowed("my_own:Model").directory == tmp_path
    with pytest.raises(CodeError, match=r"not named in trimtab\.toml"):
        allowed("")
