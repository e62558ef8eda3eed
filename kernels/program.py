"""The column program: what turns a slab's raw columns into a model's inputs, the same in training and in serving.

A program is data: a schema, chains of fitted ops, and what the sketch counts. Executors (`reference`, `cpu`, `cuda`)
run it. Its JSON is canonical, its hash the sha256 of that JSON; the version that was trained through a program names
its hash.

Outputs are in the order of the chains: float32 features (each chain's own, then its missing flag) and int64 ids.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from trimtab._native import Schema
from trimtab.kernels import canonical, grammar
from trimtab.kernels import operations as ops
from trimtab.kernels.errors import ProgramError
from trimtab.kernels.grammar import FIELD_TYPES, FieldType
from trimtab.kernels.operations import Operation, operation_from_json
from trimtab.kernels.sketch_spec import CategoryField, RealField, SketchField, SketchSpec

__all__ = ["CategoryField", "Chain", "ColumnProgram", "Field", "RealField", "SketchField", "SketchSpec"]

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Field:
    """A column of the schema."""

    name: str
    type: FieldType


@dataclass(frozen=True, slots=True)
class Chain:
    """One branch of a feature's transforms: the field's position in the schema, and the ops from raw value to
    output."""

    field: int
    operations: tuple[Operation, ...]

    @property
    def terminal(self) -> Operation | None:
        """The op that emits ids or several features; None where the chain emits its real value."""
        last = self.operations[-1] if self.operations else None
        if isinstance(last, (ops.Embedding, ops.OneHot)):
            last = self.operations[-2]
        return last if last is not None and last.op in grammar.IDS | grammar.EXPAND else None

    @property
    def one_hot(self) -> bool:
        """Whether the ids are emitted as features."""
        return bool(self.operations) and isinstance(self.operations[-1], ops.OneHot)

    @property
    def flagged(self) -> bool:
        """Whether a missing flag is emitted."""
        return any(isinstance(op, ops.Impute) and op.flag for op in self.operations)

    @property
    def id_size(self) -> int:
        """How many ids the chain can produce, PAD, NULL and OOV included; 0 where it produces none."""
        terminal = self.terminal
        if isinstance(terminal, ops.Vocabulary):
            return ops.FIRST_ID + len(terminal.values)
        if isinstance(terminal, ops.Bucketise):
            return ops.FIRST_ID + len(terminal.edges) + 1
        if isinstance(terminal, (ops.HashBucket, ops.Cross)):
            return ops.FIRST_ID + terminal.buckets
        return 0

    @property
    def width(self) -> int:
        """How many features the chain emits."""
        terminal = self.terminal
        if terminal is None:
            main = 1
        elif isinstance(terminal, ops.PiecewiseLinear):
            main = max(len(terminal.edges) - 1, 1)
        elif isinstance(terminal, ops.Cyclic):
            main = 2
        else:
            main = self.id_size - 1 if self.one_hot else 0
        return main + self.flagged

    @property
    def emits_id(self) -> bool:
        """Whether the chain emits one int64 id."""
        return self.id_size > 0 and not self.one_hot


@dataclass(frozen=True)
class ColumnProgram:
    """A fitted, checked program. Raises ProgramError when made of parts that do not fit together."""

    fields: tuple[Field, ...]
    chains: tuple[Chain, ...]
    sketch: SketchSpec
    keys: int = 0

    def __post_init__(self) -> None:
        names = [field.name for field in self.fields]
        if not all(names) or len(set(names)) != len(names):
            raise ProgramError("program: a field has no name or appears twice")
        if not 0 <= self.keys < len(self.fields):
            raise ProgramError(f"program: {len(self.fields)} fields of which {self.keys} are keys: no feature is left")
        features = len(self.fields) - self.keys
        for chain in self.chains:
            if not 0 <= chain.field < features:
                raise ProgramError(f"program: a chain reads field {chain.field}, and there are {features} features")
            _check_chain(chain, self.fields, features)
        if [field.name for field in self.sketch.fields] != names[:features]:
            raise ProgramError("program: the sketch's fields are not the program's features")
        for field, summary in zip(self.fields, self.sketch.fields, strict=False):
            _check_sketch(field, summary)

    @cached_property
    def schema(self) -> Schema:
        """The native schema of the slabs that the program reads."""
        return Schema([field.name for field in self.fields], [field.type for field in self.fields], self.keys)

    @cached_property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the float32 outputs, such as `x`, `x.missing`, `x.ple_3`, `x.sin`, `x.one_hot_2`."""
        return tuple(name for chain in self.chains for name in self._names(chain))

    @cached_property
    def n_features(self) -> int:
        """Number of float32 outputs."""
        return sum(chain.width for chain in self.chains)

    @cached_property
    def id_names(self) -> tuple[str, ...]:
        """Names of the int64 outputs: the field's, with `.bin`, `.hash` or `.cross.OTHER` where it is not its
        vocabulary."""
        return tuple(self._id_name(chain) for chain in self.chains if chain.emits_id)

    @cached_property
    def id_sizes(self) -> tuple[int, ...]:
        """Rows that an embedding table needs for each int64 output: ids are in [0, size)."""
        return tuple(chain.id_size for chain in self.chains if chain.emits_id)

    @property
    def n_ids(self) -> int:
        """Number of int64 outputs."""
        return len(self.id_sizes)

    @cached_property
    def hash(self) -> str:
        """Lower-case hex sha256 of `to_json()`."""
        return canonical.digest(self.to_json())

    def to_json(self) -> str:
        """Canonical JSON: equal programs, equal text."""
        return canonical.dumps(
            {
                "format": FORMAT,
                "fields": [{"name": field.name, "type": field.type} for field in self.fields],
                "keys": self.keys,
                "chains": [{"field": c.field, "ops": [op.to_json() for op in c.operations]} for c in self.chains],
                "sketch": self.sketch.to_json(),
            }
        )

    @classmethod
    def from_json(cls, text: str) -> ColumnProgram:
        """The program that `to_json` wrote. Raises ProgramError on anything else."""
        items = canonical.loads(text, "column program")
        if items.get("format") != FORMAT:
            raise ProgramError(f"column program: expected format {FORMAT}, got {str(items.get('format'))[:40]}")
        canonical.as_object(items, "column program", frozenset({"format", "fields", "keys", "chains", "sketch"}))
        fields = tuple(_field_from_json(value) for value in canonical.as_list(items["fields"], "fields"))
        chains = tuple(_chain_from_json(value) for value in canonical.as_list(items["chains"], "chains"))
        keys = canonical.as_integer(items["keys"], "keys", 0, len(fields))
        return cls(fields, chains, SketchSpec.from_json(items["sketch"]), keys)

    def _names(self, chain: Chain) -> Iterator[str]:
        name, terminal, main = self.fields[chain.field].name, chain.terminal, chain.width - chain.flagged
        if terminal is None:
            yield name
        elif isinstance(terminal, ops.PiecewiseLinear):
            yield from (f"{name}.ple_{i}" for i in range(main))
        elif isinstance(terminal, ops.Cyclic):
            yield from (f"{name}.sin", f"{name}.cos")
        elif chain.one_hot:
            yield from (f"{self._id_name(chain)}.one_hot_{i}" for i in range(1, main + 1))
        if chain.flagged:
            yield f"{name}.missing"

    def _id_name(self, chain: Chain) -> str:
        name, terminal = self.fields[chain.field].name, chain.terminal
        if isinstance(terminal, ops.Cross):
            return f"{name}.cross.{self.fields[terminal.other].name}"
        return name + {"bucketise": ".bin", "hash_bucket": ".hash"}.get(terminal.op if terminal else "", "")


def _check_chain(chain: Chain, fields: tuple[Field, ...], features: int) -> None:
    field = fields[chain.field]
    branches = grammar.split(field.name, field.type, [op.op for op in chain.operations])
    if len(branches) != 1:
        raise ProgramError(f"feature {field.name!r}: a chain of a program is one branch, and this is {len(branches)}")
    terminal = chain.terminal
    if isinstance(terminal, ops.Vocabulary):
        _check_values(field, terminal.values)
    if isinstance(terminal, ops.Cross):
        if not 0 <= terminal.other < features:
            raise ProgramError(f"feature {field.name!r}: cross with field {terminal.other}, and there are {features}")
        if fields[terminal.other].type == "real":
            raise ProgramError(f"feature {field.name!r}: cross with {fields[terminal.other].name!r}, which is real")


def _check_sketch(field: Field, summary: SketchField) -> None:
    if isinstance(summary, CategoryField):
        if field.type == "real":
            raise ProgramError(f"feature {field.name!r}: a real is sketched by edges, not by categories")
        _check_values(field, summary.values)
    elif field.type == "string":
        raise ProgramError(f"feature {field.name!r}: a string is sketched by categories, not by edges")


def _check_values(field: Field, values: tuple[int, ...] | tuple[str, ...]) -> None:
    wanted = str if field.type == "string" else int
    if any(type(value) is not wanted for value in values[:1]):
        raise ProgramError(f"feature {field.name!r}: a vocabulary of {field.type} must hold {wanted.__name__} values")


def _field_from_json(value: object) -> Field:
    items = canonical.as_object(value, "field", frozenset({"name", "type"}))
    for kind in FIELD_TYPES:
        if items["type"] == kind:
            return Field(canonical.as_text(items["name"], "field name"), kind)
    raise ProgramError(f"field: unknown type {str(items['type'])[:40]!r}, expected one of {list(FIELD_TYPES)}")


def _chain_from_json(value: object) -> Chain:
    items = canonical.as_object(value, "chain", frozenset({"field", "ops"}))
    field = canonical.as_integer(items["field"], "chain: field", 0, 1 << 20)
    ops_json = canonical.as_list(items["ops"], f"chain of field {field}")
    return Chain(
        field, tuple(operation_from_json(op, f"chain of field {field}, op {i}") for i, op in enumerate(ops_json))
    )
