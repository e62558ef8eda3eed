"""The native front with a reference behind it, to measure the serving pass against. Prints its address.

--echo: every message is its own answer: what the front alone costs.
--loop ROWS: the front and a model with nothing else (csrc/loop_target.h): the last ROWS × 128 bytes of a request are
its rows; one memcpy of them into a batch of at most BATCH rows, one forward pass of the peers' network over all that
waits, by whichever way of running it on the CPU is the fastest for so many rows, one memcpy of a ready-made answer head
and the outputs. The answer is as long as Trimtab's own.
"""

from __future__ import annotations

import argparse
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
from trimtab import _native

INFER = "/inference.GRPCInferenceService/ModelInfer"
BATCH = 1024
PACKED = 256
HEAD = 150


def sockets(address: str, threads: int) -> tuple[str, list[int]]:
    """The address as bound, and a listening socket for each thread (a Unix socket has one)."""
    if address.startswith("unix:"):
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(address.removeprefix("unix:"))
        made = [listening]
    else:
        host, _, port = address.rpartition(":")
        made = []
        for _ in range(threads):
            each = socket.socket()
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            each.bind((host, int(port)))
            port = each.getsockname()[1]
            made.append(each)
        address = f"{host}:{port}"
    for each in made:
        each.listen(1024)
        each.setblocking(False)
    return address, [each.detach() for each in made]


def compute(target: Any, network: Any, rows: int) -> None:
    """Answers batches until the target closes."""
    import torch

    torch.set_num_threads(1)
    batch = np.zeros((max(BATCH, rows), 32), np.float32)
    tensor = torch.from_numpy(batch)
    with torch.inference_mode():
        while count := target.take(batch):
            target.answer(network(tensor[:count]).numpy())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--echo", action="store_true")
    parser.add_argument("--loop", type=int, metavar="ROWS")
    parser.add_argument("--address", default="127.0.0.1:0")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cores", help="comma-separated cores, one a thread, in order")
    options = parser.parse_args()
    address, listening = sockets(options.address, options.threads)
    target: Any
    if options.loop:
        sys.path.insert(0, str(Path(__file__).parents[1] / "peers"))
        import torch
        from network import network
        from torch.nn import functional

        made = network()
        first, last = made[0], made[2]
        weight, bias = first.weight.detach(), first.bias.detach()
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, None)

        def forward(rows: torch.Tensor) -> torch.Tensor:
            if len(rows) < PACKED:
                hidden = functional.linear(rows, weight, bias)
            else:
                hidden = torch.ops.mkldnn._linear_pointwise(rows, packed, bias, "none", [], "")
            return functional.linear(hidden.relu_(), last.weight, last.bias)

        target = _native.LoopTarget(options.loop, 128, 4, b"\0" * HEAD)
        threading.Thread(target=compute, args=(target, forward, options.loop), daemon=True).start()
    else:
        target = _native.EchoTarget()
    front = _native.Front(_native.FrontLimits(), options.threads)
    front.listen(0, listening, [(INFER, "ModelInfer", 0, True, 0, target)], None)
    front.start()
    print(address, flush=True)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    if options.loop:
        target.close()
    front.close()


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    main()
