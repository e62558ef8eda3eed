"""Which ops may follow which: the grammar of a feature's chain of transforms.

A chain is a row of branches. A branch starts from the field's raw value, applies real ops to it, and ends with the op
that emits (a terminal), or, for the last branch, with the real value itself. So `["vocabulary", "impute",
"piecewise_linear"]` on an integer emits a category id and, from the raw value again, a piecewise-linear encoding. Every
branch becomes one chain of the IR.

This module knows names and types only; parameters are checked by `schema` (fixed ones) and `operations` (fitted ones).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from trimtab.kernels.errors import ProgramError

FieldType = Literal["real", "boolean", "integer", "string"]
FIELD_TYPES: tuple[FieldType, ...] = ("real", "boolean", "integer", "string")

# Select a value and never compute one, so the value stays the raw fp32 input (or an fp32 parameter): what bins may
# compare.
EXACT = frozenset({"impute", "clip"})
REAL = EXACT | {"log1p", "signed_log", "standardise", "min_max", "robust", "quantile_normal"}
CATEGORY = frozenset({"vocabulary", "hash_bucket", "cross"})
IDS = CATEGORY | {"bucketise"}
RENDER = frozenset({"embedding", "one_hot"})
EXPAND = frozenset({"piecewise_linear", "cyclic"})
OPS = REAL | IDS | RENDER | EXPAND
# Names kept for later: known, and refused with a reason.
RESERVED = frozenset({"lookup"})


def split(name: str, kind: FieldType, ops: Sequence[str]) -> list[range]:
    """The branches of feature `name`'s chain as ranges of positions in `ops`. Raises ProgramError, naming the feature
    and op."""
    if not ops and kind != "string":
        return [range(0)]
    branches: list[range] = []
    start = 0
    for position, op in enumerate(ops):
        if op in RENDER:
            # Belongs to the branch that the op before it closed.
            if not branches or start != position or ops[position - 1] not in IDS:
                raise ProgramError(f"feature {name!r}: {op} must directly follow one of {sorted(IDS)}")
            branches[-1] = range(branches[-1].start, position + 1)
            start = position + 1
            continue
        _check(name, kind, ops[start:position], op)
        if op in IDS or op in EXPAND:
            branches.append(range(start, position + 1))
            start = position + 1
    if start < len(ops):
        branches.append(range(start, len(ops)))
    if not branches:
        raise ProgramError(f"feature {name!r}: a string needs one of {sorted(CATEGORY)}")
    return branches


def _check(name: str, kind: FieldType, before: Sequence[str], op: str) -> None:
    if op in RESERVED:
        raise ProgramError(f"feature {name!r}: op {op!r} is reserved and not implemented")
    if op in CATEGORY:
        if kind == "real":
            raise ProgramError(f"feature {name!r}: {op} needs a boolean, integer or string, and the type is real")
        if before:
            raise ProgramError(f"feature {name!r}: {op} reads the raw value and cannot follow {before[-1]}")
    elif kind == "string":
        raise ProgramError(f"feature {name!r}: {op} needs a number, and the type is string")
    elif op == "bucketise" and not EXACT.issuperset(before):
        raise ProgramError(f"feature {name!r}: bucketise compares raw values and may only follow {sorted(EXACT)}")
    elif op == "impute" and "impute" in before:
        raise ProgramError(f"feature {name!r}: impute appears twice before the same terminal")
