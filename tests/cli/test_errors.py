"""Whatever is wrong with a file, a flag or the machine: one clear line, an exit code, no traceback."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from trimtab.cli import app
from trimtab.cli.errors import DataError, UsageError, line_of

from . import files


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"a,b\n", "no rows"),
        (b"a,b\n1,2\n3\n", "Expected 2 columns, got 1"),
        (b"PAR1PAR1", "Parquet"),
        (bytes(range(128, 256)), "neither Parquet nor UTF-8"),
        (b"a,b\n1,2\n3,4\n", "no column 'y'"),
        (b"a,y\n1,2\n3,2\n", "'2' in every row"),
        (b"y\n" + b"1\n2\n" * 9, "is left to be a feature"),
        (b"a,y\n1,0\n", "'0' in every row"),
    ],
)
def test_init_of_a_file_that_is_wrong(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "data.csv").write_bytes(content)
    line = files.fails("init", tmp_path / "data.csv", "--label", "y", "-C", tmp_path / "made")
    assert said in line
    assert not (tmp_path / "made").exists()


def test_init_of_no_file_and_a_folder(tmp_path: Path) -> None:
    assert "no file" in files.fails("init", tmp_path / "none.csv", "--label", "y", "-C", tmp_path)
    assert "is a folder" in files.fails("init", tmp_path, "--label", "y", "-C", tmp_path)


def test_flags_that_do_not_fit() -> None:
    assert "--label" in files.fails("init", "x.csv", code=2)
    assert "see `trimtab init --help`" in files.fails("init", "x.csv", code=2)
    assert "no such option" in files.fails("init", "x.csv", "--lable", "y", code=2).lower()
    assert "'trian'" in files.fails("trian", code=2)
    assert "valid integer" in files.fails("promote", "seven", code=2)
    assert "--grpc-port: expected a port" in files.fails("serve", "--grpc-port", "99999", code=2)
    assert "--device: expected one of" in files.fails("serve", "--device", "tpu", code=2)


@pytest.mark.parametrize("command", ["train", "serve", "status", "versions", "drift", "rollback", "retrain"])
def test_no_project(tmp_path: Path, command: str) -> None:
    assert "no trimtab.toml in" in files.fails(command, "-C", tmp_path)


def test_an_unknown_key(tmp_path: Path) -> None:
    data = files.csv(files.digits(), tmp_path / "digits.csv")
    assert files.trimtab("init", data, "--label", "kind", "-C", tmp_path).code == 0
    path = tmp_path / "trimtab.toml"
    path.write_text(path.read_text().replace("[model.drift]", "[model.drift]\nwindow_row = 3"))
    line = files.fails("train", "-C", tmp_path)
    assert "unknown key 'window_row'" in line
    assert "did you mean 'window_rows'" in line
    path.write_text("[[model]\n")
    assert "not valid TOML" in files.fails("serve", "-C", tmp_path)


def test_data_that_changed_under_the_project(tmp_path: Path) -> None:
    data = files.csv(files.digits(), tmp_path / "digits.csv")
    assert files.trimtab("init", data, "--label", "kind", "-C", tmp_path).code == 0
    files.csv(files.digits().drop_columns(["x"]), data)
    assert "no column 'x'" in files.fails("train", "-C", tmp_path)
    files.csv(files.digits().set_column(0, "x", [["a", "b"] * 600]), data)
    assert "column 'x': expected real" in files.fails("train", "-C", tmp_path)


def test_a_full_disk(tmp_path: Path) -> None:
    """The file size that a process may write stands for the disk: it raises EFBIG at the same places."""
    data = files.csv(files.loans(), tmp_path / "loans.csv")
    limited = f"import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); \
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); from trimtab.cli.app import main; raise SystemExit(main(\
['init', {str(data)!r}, '--label', 'bad', '-C', {str(tmp_path / 'made')!r}]))"
    done = subprocess.run([sys.executable, "-c", limited], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    lines = done.stderr.strip().split("\n")
    assert lines[-1].startswith("trimtab: ")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "made" / "trimtab.toml").exists()


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_no_permission(tmp_path: Path) -> None:
    data = files.csv(files.digits(), tmp_path / "digits.csv")
    data.chmod(0)
    assert "permission denied" in files.fails("init", data, "--label", "kind", "-C", tmp_path)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    data = files.csv(files.digits(), tmp_path / "digits.csv")
    (tmp_path / "file").write_text("x")
    line = files.fails("init", data, "--label", "kind", "-C", tmp_path / "file" / "made")
    assert str(tmp_path / "file") in line


@pytest.mark.parametrize(
    ("error", "line", "code"),
    [
        (DataError("x.csv: no\nrows"), "x.csv: no rows", 1),
        (UsageError("--a"), "--a", 2),
        (KeyboardInterrupt(), "interrupted", 130),
        (OSError(errno.ENOSPC, "No space left", "/x"), "/x: no space left on the device", 1),
        (OSError(errno.EADDRINUSE, "Address in use"), "the port is in use; give another one, or 0 for a free one", 1),
        (PermissionError(errno.EACCES, "Permission denied", "/y"), "/y: permission denied", 1),
        (MemoryError(), "not enough memory", 1),
    ],
)
def test_lines(error: BaseException, line: str, code: int) -> None:
    assert line_of(error) == (line, code)


def test_every_rooms_errors_have_a_line() -> None:
    from trimtab.client.errors import NotFound
    from trimtab.kernels.errors import ColumnError
    from trimtab.models.errors import LabelError
    from trimtab.server.errors import QueueFull
    from trimtab.store.errors import DiskFull
    from trimtab.trainer.errors import RowsUnfit

    for kind in (NotFound, ColumnError, LabelError, QueueFull, DiskFull, RowsUnfit):
        assert line_of(kind("what\nhappened")) == ("what happened", 1)
    assert line_of(ZeroDivisionError("ours")) is None


def test_our_own_faults_are_one_line_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(name: str) -> None:
        raise ZeroDivisionError("division\nby zero")

    monkeypatch.setattr(app, "command_of", broken)
    monkeypatch.delenv("TRIMTAB_TRACEBACK", raising=False)
    assert app.main(["status"]) == 70
    err = capsys.readouterr().err
    assert err.startswith("trimtab: internal error: ZeroDivisionError: division by zero (TRIMTAB_TRACEBACK=1")
    assert err.count("\n") == 1
    monkeypatch.setenv("TRIMTAB_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        app.main(["status"])


def test_interrupting_a_search(tmp_path: Path) -> None:
    data = files.csv(files.digits(), tmp_path / "digits.csv")
    assert files.trimtab("init", data, "--label", "kind", "-C", tmp_path).code == 0
    path = tmp_path / "trimtab.toml"
    path.write_text(path.read_text().replace("# search_trials = 8", "search_trials = 100000"))
    process = subprocess.Popen(
        [sys.executable, "-m", "trimtab.cli.app", "train", "-C", str(tmp_path)], stderr=subprocess.PIPE, text=True
    )
    fitting = tmp_path / "state" / "digits" / "versions" / "1.fitting"
    while not fitting.exists():
        assert process.poll() is None
        os.sched_yield()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err.strip()) == (130, "trimtab: interrupted")


def test_a_reader_that_leaves(tmp_path: Path) -> None:
    data = files.csv(files.loans(), tmp_path / "loans.csv")
    process = subprocess.Popen(
        [sys.executable, "-m", "trimtab.cli.app", "init", str(data), "--label", "bad", "-C", str(tmp_path / "made")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait(60) == 1
    assert "Traceback" not in err
    assert "BrokenPipe" not in err
