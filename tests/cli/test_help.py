"""--help: quick, complete, with examples, and docs/cli.md is made of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from trimtab.cli.app import COMMANDS
from trimtab.cli.reference import reference

from . import files

DOCS = Path(__file__).parents[2] / "docs" / "cli.md"

# What is promised; more may be added.
FLAGS = {
    "init": "--label --time --key --exclude --include --label-time --task --positive --train-rows --until",
    "train": "",
    "serve": "--grpc-port --http-port --no-trainer --transport --device",
    "replay": "--label --time --key --exclude --include --label-time --task --positive --train-rows --until "
    "--label-delay --tick --pace --compare --attach --report",
    "status": "",
    "versions": "",
    "drift": "",
    "timeline": "--entries --html --model",
    "promote": "",
    "rollback": "",
    "publish": "--reason --model",
    "alias": "--remove --model",
    "load": "",
    "unload": "",
    "retrain": "",
}


def test_the_docs_are_current() -> None:
    assert DOCS.read_text(encoding="utf-8") == reference(), "run: python -m trimtab.cli.reference > docs/cli.md"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_teaches(command: str) -> None:
    section = reference().partition(f"## trimtab {command}\n")[2].partition("\n## ")[0]
    for flag in [*FLAGS[command].split(), "-C", "--json", "--help"]:
        assert f"{flag} " in section
    assert "Examples:" in section
    assert f"    trimtab {command}" in section


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from trimtab.cli.app import main; main(['--help']);"
        "heavy = {'torch', 'pandas', 'numpy', 'pyarrow', 'mlflow', 'grpc', 'rich', 'pydantic', 'optuna'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip().endswith("[]"), done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_does_not_load_torch(command: str) -> None:
    code = (
        f"import sys; from trimtab.cli.app import main; main(['{command}', '--help']);"
        "print(sorted({'torch', 'pandas', 'mlflow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip().endswith("[]"), done.stdout


def test_version_and_no_command() -> None:
    from importlib.metadata import version

    done = files.trimtab("--version")
    assert (done.code, done.out.strip()) == (0, f"trimtab {version('trimtab')}")
    assert "Commands:" in files.trimtab("--help").out
