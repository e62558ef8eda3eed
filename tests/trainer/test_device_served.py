"""A project whose refreshes are to run on a GPU, served: there where there is one, on the CPU and told elsewhere."""

from __future__ import annotations

from pathlib import Path

import torch
from trimtab.store.live import LiveStore
from trimtab.store.versions import VersionStore

from .stream import MODEL, make_project, serving

HOURS = (40, 76)


def test_a_refresh_on_a_gpu_or_for_want_of_one_on_the_cpu(tmp_path: Path) -> None:
    project = make_project(tmp_path / "project", retrain='device = "cuda"')
    with serving(project) as server:
        server.play(*HOURS)
        assert server.stop() == 0
        log = server.log.read_text()
    paths = project.model_state(MODEL)
    live = LiveStore(paths.live).read()
    assert live is not None
    assert live.live == 2
    isa = VersionStore(paths.versions).manifest(2).isa
    if torch.cuda.is_available():
        assert isa == torch.cuda.get_device_name()
        assert "trains on the CPU" not in log
    else:
        assert isa == torch.backends.cpu.get_cpu_capability()
        assert log.count("torch sees no GPU; trains on the CPU") == 1
