"""The model that all servers of a comparison run: an MLP of 32 → 128 → 1 with ReLU, from a fixed seed.

Imported by the peers' own processes, which have torch and may have nothing else of this project.
"""

from __future__ import annotations

import torch

FEATURES, HIDDEN = 32, 128


def network() -> torch.nn.Module:
    """The network, in evaluation mode."""
    torch.manual_seed(0)
    layers = [torch.nn.Linear(FEATURES, HIDDEN), torch.nn.ReLU(), torch.nn.Linear(HIDDEN, 1)]
    return torch.nn.Sequential(*layers).eval().requires_grad_(False)
