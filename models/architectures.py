"""The architectures: linear, a multilayer perceptron with category embeddings, and a network of the user's own.

`build(config, program, task)` makes a module whose shapes follow from the column program; `forward(features f32[n, F],
ids i64[n, C])` gives logits [n, K]. A configuration is plain JSON, and lives in a version's manifest.

Randomness never comes from torch's global generator: initial weights come from the configuration's `seed`, and
dropout draws from a generator that the training loop hands over (`Network.use_generator`). So a fit depends on its
inputs alone, whatever else the process does. All ids share one embedding table (column offsets added), so that a row
costs one lookup.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from trimtab.kernels.program import ColumnProgram
from trimtab.models.code import allowed
from trimtab.models.entry import ColumnShape, Definition
from trimtab.models.errors import ArchitectureError, CodeError
from trimtab.models.tasks import Task

__all__ = ["Forward", "Linear", "Mlp", "Network", "Own", "build"]

MAX_WIDTH = 1 << 16

Forward = Callable[[Tensor, Tensor], Tensor]
"""features f32[n, F], ids i64[n, C] -> logits [n, K]."""


class Network(nn.Module):
    """What both architectures share: the table of embeddings, and a size."""

    offsets: Tensor
    code = ""
    """sha256 in hex of the file that it comes from, where that is the user's."""

    def __init__(self, features: int, id_sizes: tuple[int, ...], dimension: int, generator: torch.Generator) -> None:
        super().__init__()
        self.n_features, self.n_ids = features, len(id_sizes)
        starts = [sum(id_sizes[:position]) for position in range(len(id_sizes))]
        # Follows from the program, so it is not saved with the weights.
        self.register_buffer("offsets", torch.tensor(starts, dtype=torch.int64), persistent=False)
        self.table = nn.Parameter(torch.empty(sum(id_sizes), dimension).normal_(0.0, 0.05, generator=generator))

    def embed(self, ids: Tensor) -> Tensor:
        """f32[n, C, dimension] of ids i64[n, C]."""
        return functional.embedding(ids + self.offsets, self.table)

    def use_generator(self, generator: torch.Generator | None) -> None:
        """Where dropout draws from while training."""
        for module in self.modules():
            if isinstance(module, Dropout):
                module.generator = generator

    def forward_of(self) -> Forward:
        """The forward pass for serving: the same operations on the same weights, without nn.Module's way of calling,
        which costs more than a small layer does. For a module in evaluation mode that does not change any more."""
        return self.forward

    def packed_of(self) -> Forward | None:
        """The forward pass for serving on copies of the weights that are laid out for this processor; None where there
        is nothing to lay out. Better for many rows, worse for few."""
        return None

    def size(self) -> int:
        """Bytes of the weights."""
        return sum(p.numel() * p.element_size() for p in self.parameters())


class Linear(Network):
    """A weight per feature and category: logistic, softmax or linear regression. Starts at zero."""

    def __init__(self, features: int, id_sizes: tuple[int, ...], outputs: int, generator: torch.Generator) -> None:
        super().__init__(features, id_sizes, outputs, generator)
        nn.init.zeros_(self.table)
        self.weight = nn.Parameter(torch.zeros(outputs, features))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, features: Tensor, ids: Tensor) -> Tensor:
        logits = functional.linear(features, self.weight, self.bias)
        return logits + self.embed(ids).sum(dim=1) if self.n_ids else logits


class Dropout(nn.Module):
    """Zeroes values with probability p while training and scales the others, drawing from its own generator."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.generator: torch.Generator | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p <= 0.0:
            return x
        if self.generator is None:
            raise ArchitectureError("dropout: training needs a generator (Network.use_generator)")
        keep = torch.empty(x.shape, dtype=x.dtype, device=self.generator.device)
        return x * keep.bernoulli_(1.0 - self.p, generator=self.generator).to(x.device).div_(1.0 - self.p)


class Dense(nn.Module):
    """x W' + b, drawn as torch's own linear layer draws, from the generator given."""

    def __init__(self, inputs: int, outputs: int, generator: torch.Generator) -> None:
        super().__init__()
        bound = 1.0 / math.sqrt(max(inputs, 1))
        self.weight = nn.Parameter(torch.empty(outputs, inputs).uniform_(-bound, bound, generator=generator))
        self.bias = nn.Parameter(torch.empty(outputs).uniform_(-bound, bound, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight, self.bias)


class Mlp(Network):
    """Features and embeddings side by side through hidden layers with ReLU and dropout."""

    def __init__(
        self,
        features: int,
        id_sizes: tuple[int, ...],
        outputs: int,
        generator: torch.Generator,
        *,
        widths: tuple[int, ...],
        dropout: float,
        dimension: int,
    ) -> None:
        super().__init__(features, id_sizes, dimension, generator)
        layers: list[nn.Module] = []
        inputs = features + dimension * len(id_sizes)
        for width in widths:
            layers += [Dense(inputs, width, generator), nn.ReLU()]
            if dropout > 0.0:
                layers.append(Dropout(dropout))
            inputs = width
        layers.append(Dense(inputs, outputs, generator))
        self.layers = nn.Sequential(*layers)

    def forward(self, features: Tensor, ids: Tensor) -> Tensor:
        x = torch.cat([features, self.embed(ids).flatten(1)], dim=1) if self.n_ids else features
        logits: Tensor = self.layers(x)
        return logits

    def forward_of(self) -> Forward:
        """See Network."""
        *hidden, last = [(layer.weight, layer.bias) for layer in self.layers if isinstance(layer, Dense)]
        linear, embed = functional.linear, self.embed if self.n_ids else None

        def forward(features: Tensor, ids: Tensor) -> Tensor:
            x = features if embed is None else torch.cat([features, embed(ids).flatten(1)], dim=1)
            for weight, bias in hidden:
                x = linear(x, weight, bias).relu_()
            return linear(x, *last)

        return forward

    def packed_of(self) -> Forward | None:
        """See Network. oneDNN's product, with the bias within it; its own ReLU makes zero of NaN. The last layer is
        mostly narrow, and stays as it was."""
        if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
            return None
        product = torch.ops.mkldnn._linear_pointwise.default
        pack = torch.ops.mkldnn._reorder_linear_weight.default
        *layers, last = [
            (layer.weight.detach(), layer.bias.detach()) for layer in self.layers if isinstance(layer, Dense)
        ]
        if not layers:
            return None
        hidden = [(pack(weight, None), bias) for weight, bias in layers]
        linear, embed = functional.linear, self.embed if self.n_ids else None

        def forward(features: Tensor, ids: Tensor) -> Tensor:
            x = features if embed is None else torch.cat([features, embed(ids).flatten(1)], dim=1)
            for weight, bias in hidden:
                x = product(x, weight, bias, "none", [], "").relu_()
            return linear(x, *last)

        return forward


class Own(Network):
    """The user's own module, `net`; see models/entry.py.

    What it draws while training (torch's dropout has no generator of its own) comes from the training loop's generator:
    torch's global one is seeded from it for the time of a forward pass.
    """

    def __init__(self, definition: Definition, shape: ColumnShape, seed: int) -> None:
        nn.Module.__init__(self)
        self.n_features, self.n_ids = shape.features, len(shape.categories)
        self.width = shape.outputs
        self.code = definition.code
        self.net = definition.build(shape, seed)
        self._generator: torch.Generator | None = None
        if definition.parameters_to_tune is not None:
            chosen = {id(parameter) for parameter in definition.parameters_to_tune(self.net)}
            for parameter in self.net.parameters():
                parameter.requires_grad_(id(parameter) in chosen)

    def size(self) -> int:
        """Bytes of the weights and buffers."""
        return sum(t.numel() * t.element_size() for t in [*self.parameters(), *self.buffers()])

    def use_generator(self, generator: torch.Generator | None) -> None:
        """Where what it draws while training comes from."""
        self._generator = generator

    def forward(self, features: Tensor, ids: Tensor) -> Tensor:
        if not self.training or self._generator is None:
            logits = self.net(features, ids)
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self._generator.initial_seed())
                logits = self.net(features, ids)
        if not isinstance(logits, Tensor) or logits.shape != (len(features), self.width):
            gives = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise CodeError(f"entry: expected logits {[len(features), self.width]}, the network gives {gives}")
        return logits


def build(config: Mapping[str, Any], program: ColumnProgram, task: Task) -> Network:
    """The module of a configuration, on the CPU, in training mode.

    `{"kind": "linear", "seed": 0}`, or `{"kind": "mlp", "seed": 0, "widths": [128, 64], "dropout": 0.1, "embedding":
    8}`, or, where trimtab.toml names that entry, `{"kind": "entry", "seed": 0, "entry": "module:name"}`. Other keys are
    ignored. Raises ArchitectureError, CodeError.
    """
    kind = config.get("kind")
    if kind == "entry":
        name = str(config.get("entry", ""))
        found, code = allowed(name).read()
        definition = Definition.of(name, found, "columns", code)
        shape_of = ColumnShape(program.n_features, program.id_sizes, task.width, task.kind, task.classes)
        return Own(definition, shape_of, _integer(config, "seed", 0, 0, 1 << 63))
    generator = torch.Generator().manual_seed(_integer(config, "seed", 0, 0, 1 << 63))
    shape = (program.n_features, program.id_sizes, task.width, generator)
    if kind == "linear":
        return Linear(*shape)
    if kind != "mlp":
        raise ArchitectureError(f"architecture: expected 'linear' or 'mlp', got {str(kind)[:40]!r}")
    widths = config.get("widths", (128, 64))
    if not isinstance(widths, list | tuple) or len(widths) > 16:
        raise ArchitectureError("architecture: widths: expected a list of at most 16 integers")
    checked = tuple(_integer({"widths": width}, "widths", 0, 1, MAX_WIDTH) for width in widths)
    dropout = config.get("dropout", 0.0)
    if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0.0 <= dropout < 1.0:
        raise ArchitectureError(f"architecture: dropout: expected a number in [0, 1), got {str(dropout)[:40]}")
    dimension = _integer(config, "embedding", 8, 1, MAX_WIDTH)
    return Mlp(*shape, widths=checked, dropout=float(dropout), dimension=dimension)


def _integer(config: Mapping[str, Any], key: str, default: int, low: int, high: int) -> int:
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ArchitectureError(f"architecture: {key}: expected an integer in [{low}, {high}], got {str(value)[:40]}")
    return value
