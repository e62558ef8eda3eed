"""`trimtab status`: the running server, its models and its trainer at a glance."""

from __future__ import annotations

from pathlib import Path

from trimtab.cli.options import Directory, Json

__all__ = ["status"]


def status(directory: Directory = Path("."), as_json: Json = False) -> None:
    """Show how the running server, its models and its trainer are. Fails where no server is running.

    \b
    Examples:
      trimtab status -C flights
      trimtab status --json
    """
    from trimtab.cli.output import Output, number, when
    from trimtab.cli.running import admin_of, server_of
    from trimtab.store.project import Project

    output = Output(as_json)
    project = Project.load(directory)
    with admin_of(project) as admin:
        found = admin.status()
    where = server_of(project)
    state = "draining" if found.draining else "ready" if found.ready else "starting"
    if where is not None:
        output.say(
            f"server {state}, pid {where.pid}, up {_span(found.uptime_seconds)}: grpc {where.grpc}, http {where.http}"
        )
    output.table(
        (
            "model",
            "live",
            "previous",
            "requests",
            "rows",
            "failed",
            "captured",
            "dropped",
            "labels",
            "drifted",
            "quality",
        ),
        [
            (
                model.name,
                model.live or "–",
                model.previous or "–",
                number(model.requests),
                number(model.rows),
                number(model.failed),
                number(model.captured_rows),
                number(model.dropped_rows),
                number(model.labels),
                model.drifted_features,
                ", ".join(f"{name} {number(value)}" for name, value in sorted(model.quality.items()))
                or "no mature labels",
            )
            for model in found.models
        ],
        right=("live", "previous", "requests", "rows", "failed", "captured", "dropped", "labels", "drifted"),
    )
    for model in found.models:
        if model.HasField("drift_pin"):
            pin = model.drift_pin
            idle = "" if pin.fits else "; it does not fit the live version, which is compared with its training data"
            rows = number(pin.rows)
            output.say(f"{model.name}: drift reference pinned {when(pin.pinned_us)}: {pin.origin}, {rows} rows{idle}")
    trainer = found.trainer
    said = f"trainer {trainer.state}"
    if trainer.pid:
        said += f", pid {trainer.pid}, {trainer.workflows} workflows, {trainer.cpu_seconds:.1f} s of CPU"
    said += f", {trainer.restarts} restarts" if trainer.restarts else ""
    said += f", in step {trainer.step}" if trainer.step else ""
    output.say(said + (f"; last error: {trainer.last_error}" if trainer.last_error else ""))
    output.result(
        {
            "state": state,
            "pid": where.pid if where else None,
            "grpc": where.grpc if where else None,
            "http": where.http if where else None,
            "version": found.version,
            "uptime_seconds": found.uptime_seconds,
            "models": [
                {
                    "name": model.name,
                    "live": model.live or None,
                    "previous": model.previous or None,
                    "weights": model.weights,
                    "requests": model.requests,
                    "rows": model.rows,
                    "failed": model.failed,
                    "queued": model.queued,
                    "captured_rows": model.captured_rows,
                    "dropped_rows": model.dropped_rows,
                    "labels": model.labels,
                    "quality": dict(model.quality),
                    "drifted_features": model.drifted_features,
                    "drift_pin": {
                        "origin": model.drift_pin.origin,
                        "pinned_us": model.drift_pin.pinned_us,
                        "rows": model.drift_pin.rows,
                        "sha256": model.drift_pin.sha256,
                        "fits": model.drift_pin.fits,
                    }
                    if model.HasField("drift_pin")
                    else None,
                }
                for model in found.models
            ],
            "trainer": {
                "state": trainer.state,
                "pid": trainer.pid or None,
                "restarts": trainer.restarts,
                "step": trainer.step or None,
                "last_error": trainer.last_error or None,
                "workflows": trainer.workflows,
                "cpu_seconds": trainer.cpu_seconds,
            },
        }
    )


def _span(seconds: float) -> str:
    whole = int(seconds)
    days, hours, minutes = whole // 86400, whole // 3600 % 24, whole // 60 % 60
    parts = [f"{days} d" if days else "", f"{hours} h" if hours else "", f"{minutes} min" if minutes else ""]
    return " ".join(part for part in parts if part) or f"{whole} s"
