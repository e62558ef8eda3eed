"""What the trainer's environment says of its share of a GPU."""

from __future__ import annotations

from pathlib import Path

from trimtab.server.gpu_share import mps_runs, share_environment


def test_a_trainer_on_the_cpu_is_told_nothing() -> None:
    assert share_environment(30, on_gpu=False, mps=True) == ({}, "")


def test_under_mps_it_gets_its_share_and_a_lower_priority() -> None:
    found, told = share_environment(30, on_gpu=True, mps=True)
    assert found == {"CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": "30", "CUDA_MPS_CLIENT_PRIORITY": "1"}
    assert not told
    assert share_environment(100, on_gpu=True, mps=True)[0] == {"CUDA_MPS_CLIENT_PRIORITY": "1"}


def test_a_share_that_does_nothing_is_told_of() -> None:
    found, told = share_environment(30, on_gpu=True, mps=False)
    assert not found
    assert "trainer_gpu_share = 30 does nothing" in told
    assert share_environment(100, on_gpu=True, mps=False) == ({}, "")


def test_mps_runs_where_its_pipe_is(tmp_path: Path) -> None:
    environment = {"CUDA_MPS_PIPE_DIRECTORY": str(tmp_path)}
    assert not mps_runs(environment)
    (tmp_path / "control").touch()
    assert mps_runs(environment)
