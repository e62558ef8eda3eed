"""A network of one's own, as small as it can be: words are hashed, their embeddings averaged, and weighed.

`Bag` takes token ids; `Sentiment` puts preprocessing before it and words behind it. Run as a script, it writes weights
in which good words count for and bad words against: `python net.py weights.safetensors`.
"""

from __future__ import annotations

import sys
import zlib
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

BUCKETS = 4096
GOOD, BAD = ("good", "great", "lovely"), ("bad", "awful", "dull")


def ids_of(text: bytes) -> list[int]:
    """Ids of the words, at least one; 0 is no word."""
    return [1 + zlib.crc32(word) % (BUCKETS - 1) for word in text.lower().split()] or [0]


class Bag(nn.Module):
    """ids i64[n, words] to logits f32[n]."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(BUCKETS, 1, padding_idx=0)
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, ids: Tensor) -> Tensor:
        present = (ids != 0).sum(dim=1).clamp_min(1)
        logits: Tensor = self.words(ids)[:, :, 0].sum(dim=1) / present + self.bias
        return logits


class Sentiment:
    """What trimtab.toml names: `build`, and what goes before and after the network."""

    def build(self) -> nn.Module:
        return Bag()

    def preprocess(self, inputs: dict[str, Any]) -> Tensor:
        """Texts as ids, filled up with 0."""
        rows = [ids_of(text) for text in inputs["text"]]
        longest = max(map(len, rows))
        return torch.tensor([row + [0] * (longest - len(row)) for row in rows])

    def predict(self, logits: Tensor) -> tuple[Tensor, list[str]]:
        probability = torch.sigmoid(logits)
        return probability, ["good" if value > 0.5 else "bad" for value in probability.tolist()]

    def example(self, rows: int) -> dict[str, Any]:
        return {"text": [b"a good film"] * rows}


def main(path: str) -> None:
    """Writes the weights."""
    words = torch.zeros(BUCKETS, 1)
    for value, names in ((3.0, GOOD), (-3.0, BAD)):
        for name in names:
            words[ids_of(name.encode())[0]] = value
    save_file({"words.weight": words, "bias": torch.tensor(0.0)}, path)


if __name__ == "__main__":
    main(sys.argv[1])
