"""Takes the trainer's place: attends, writes down each command, acknowledges it. `fake_trainer.py -C DIRECTORY`.

Does as files in DIRECTORY say: `crash-KIND` (removed first): dies before acknowledging a command of that kind;
`mute`: never attends.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
from trimtab.protos.v1 import trimtab_pb2 as pb
from trimtab.protos.v1.trimtab_pb2_grpc import LifecycleStub


def main(directory: Path) -> None:
    if (directory / "mute").exists():
        print("the fake trainer is mute", file=sys.stderr)
        sys.exit(7)
    admin = json.loads((directory / "state" / "server.json").read_text())["admin"]
    reports: queue.SimpleQueue[pb.TrainerReport | None] = queue.SimpleQueue()
    reports.put(pb.TrainerReport(status=pb.TrainerStatus(state="idle")))
    workflows = 0

    def stream() -> Iterator[pb.TrainerReport]:
        while (report := reports.get()) is not None:
            yield report

    with grpc.insecure_channel(f"unix:{admin}") as channel:
        for command in LifecycleStub(channel).Attend(stream()):
            kind = command.WhichOneof("command")
            line = json.dumps({"pid": os.getpid(), "sequence": command.sequence, "kind": kind, "time": time.time()})
            with (directory / "commands.jsonl").open("a") as file:
                file.write(line + "\n")
            marker = directory / f"crash-{kind}"
            if marker.exists():
                marker.unlink()
                print(f"crashing on {kind}", file=sys.stderr, flush=True)
                os._exit(3)
            report = pb.TrainerReport(acknowledges=command.sequence)
            if kind == "retrain":
                workflows += 1
                report.retrained.CopyFrom(pb.RetrainResponse(workflow_id="w", version=2, verdict="undecided"))
                report.quality.add(model_name="tiny", version=1, rows=9, metrics={"log_loss": 0.5})
                report.events.add(kind="trainer", model_name="tiny", message="trained")
            report.status.CopyFrom(pb.TrainerStatus(state="idle", workflows=workflows, cpu_seconds=1.5))
            reports.put(report)
            if kind == "shutdown":
                break
        reports.put(None)


if __name__ == "__main__":
    main(Path(sys.argv[2]))
