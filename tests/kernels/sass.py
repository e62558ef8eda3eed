"""Counting the instructions of a compiled kernel's inner loop: SASS as nvdisasm prints it, read as a graph of basic
blocks."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

_LABEL = re.compile(r"^(\.L_\w+):")
_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;")
_TARGET = re.compile(r"`\((\.L_\w+)\)")


@dataclass
class Block:
    """Instructions that are always run together, and the blocks that may follow."""

    instructions: list[str] = field(default_factory=list)
    successors: list[int] = field(default_factory=list)


def disassembled(cubin: bytes, nvdisasm: str) -> str:
    """What nvdisasm prints of a cubin."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        return subprocess.run([nvdisasm, str(path)], capture_output=True, text=True, check=True).stdout


def blocks_of(text: str, kernel: str = "trimtab_columns") -> list[Block]:
    """The kernel's basic blocks, in the order of their addresses."""
    body = text.split(f".text.{kernel}:", 1)[1]
    blocks, labels, targets = [Block()], dict[str, int](), list[tuple[int, str]]()
    for line in body.splitlines():
        if line.startswith(".text.") or line.lstrip().startswith(".section"):
            break
        if label := _LABEL.match(line):
            if blocks[-1].instructions:
                blocks[-1].successors.append(len(blocks))
                blocks.append(Block())
            labels[label[1]] = len(blocks) - 1
        elif found := _INSTRUCTION.match(line):
            text = found[1]
            blocks[-1].instructions.append(text)
            operation = re.sub(r"^@!?U?P\w+\s+", "", text)
            if operation.startswith(("BRA", "EXIT", "RET", "JMP")):
                target = _TARGET.search(text)
                if target:
                    targets.append((len(blocks) - 1, target[1]))
                unconditional = operation == text and not re.match(r"BRA\.(DIV|CONV)|BRA\s+!?U?P", operation)
                if not unconditional:
                    blocks[-1].successors.append(len(blocks))
                blocks.append(Block())
    for source, label_name in targets:
        blocks[source].successors.append(labels[label_name])
    return blocks


def path_length(blocks: list[Block], start: int, stop: int) -> tuple[int, list[int]]:
    """The fewest instructions on a way from block to block, both of them included, and that way."""
    best = {start: (len(blocks[start].instructions), [start])}
    waiting = deque([start])
    while waiting:
        here = waiting.popleft()
        length, way = best[here]
        if here == stop:
            continue
        for after in blocks[here].successors:
            if after >= len(blocks):
                continue
            reached = length + len(blocks[after].instructions)
            if after not in best or reached < best[after][0]:
                best[after] = (reached, [*way, after])
                waiting.append(after)
    return best.get(stop, (0, []))


def loops_with(blocks: list[Block], is_marked: Callable[[str], bool]) -> list[list[str]]:
    """The instructions of each innermost loop that has marked ones: of the ways from its head through all marked blocks
    back to the head the shortest, so what is rare and branched around does not count."""
    # What warps do that come to a shuffle one after the other lies behind all else; warps that are together pass it by.
    apart = (i for i, block in enumerate(blocks) if any("WARPSYNC.COLLECTIVE" in x for x in block.instructions))
    end = next(apart, len(blocks))
    marked = [i for i, block in enumerate(blocks[:end]) if any(map(is_marked, block.instructions))]
    edges = [(head, tail) for tail in range(end) for head in blocks[tail].successors if head <= tail]
    loops = [(head, tail) for head, tail in edges if any(head <= i <= tail for i in marked)]
    inner = [
        (head, tail)
        for head, tail in loops
        if not any(head <= a and b <= tail and (a, b) != (head, tail) for a, b in loops)
    ]
    found = []
    for head, tail in inner:
        through = [head, *(i for i in marked if head <= i <= tail), tail]
        ways = [path_length(blocks, a, b)[1] for a, b in pairwise(through)]
        way = [head, *(block for part in ways for block in part[1:])]
        found.append([text for block in way for text in blocks[block].instructions])
    return found
