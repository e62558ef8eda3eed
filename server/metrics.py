"""/metrics: renders what the parts of the server count. Nothing is counted here but calls by status.

Two halves make the page. The hub's counters (requests, stages, batches; Triton's names beside ours) are rendered by
native code without the GIL (csrc/metrics_text.h). The rest is few and slow to change: a collector reads it when it is
asked. Names are listed in docs/serving.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from trimtab._native import Hub
from trimtab.kernels.drift import JOINT
from trimtab.protos.v1 import trimtab_pb2 as pb
from trimtab.server.channel import TrainerChannel
from trimtab.server.served import Model, Registry
from trimtab.server.statistics import Distribution
from trimtab.server.tracing import SpanSender

__all__ = ["Metrics"]

_TRAINER_STATES = ("absent", "starting", "idle", "working", "backing-off", "failed")
Sample = tuple[tuple[str, ...], float]


class Metrics(Collector):
    """See the module. `page` is what the HTTP side answers."""

    def __init__(
        self, registry: Registry, hub: Hub, channel: TrainerChannel, trainer_status: Callable[[], pb.TrainerStatus]
    ) -> None:
        self._hub = hub
        self._registry = registry
        self._channel = channel
        self._trainer_status = trainer_status
        self._calls: Counter[tuple[str, str]] = Counter()
        self.native_calls: Callable[[], list[tuple[str, str, int]]] = list
        """Ended calls that native code counts: method, code, how many."""
        self.duty: Callable[[], float] | None = None
        """Share of the time in which the trainer may train; None: nobody slows it down."""
        self.spans: SpanSender | None = None
        """Of traced requests; None: nothing is traced."""
        self.registry = CollectorRegistry()
        self.registry.register(self)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)

    def page(self) -> bytes:
        """The whole page, in Prometheus' text format. From any thread; takes milliseconds."""
        return generate_latest(self.registry) + self._hub.render()

    def call(self, method: str, code: str) -> None:
        """Counts an ended call. On the loop."""
        self._calls[method, code] += 1

    def collect(self) -> Iterator[Metric]:
        """All of it, as it is now."""
        yield InfoMetricFamily("trimtab", "The server.", value={"version": version("trimtab")})
        yield _gauge("trimtab_ready", "1 while requests are taken.", (), [((), float(self._registry.ready))])
        calls = self._calls + Counter({(method, code): count for method, code, count in self.native_calls()})
        yield _counter("trimtab_calls", "Ended calls by method and gRPC status.", ("method", "code"), calls.items())
        models = list(self._registry.models.values())
        yield from _versions(models)
        yield from _kept(models)
        yield from _drift(models)
        yield from _quality(models)
        yield from self._training()
        if self.spans is not None:
            sent = [((), float(self.spans.sent))]
            yield _counter("trimtab_spans", "Traced requests whose spans the collector took.", (), sent)
            dropped = [((reason,), float(count)) for reason, count in self.spans.dropped().items()]
            yield _counter("trimtab_spans_dropped", "Traced requests whose spans were lost.", ("reason",), dropped)

    def _training(self) -> Iterator[Metric]:
        status = self._trainer_status()
        states = [((state,), float(state == status.state)) for state in _TRAINER_STATES]
        yield _gauge("trimtab_trainer_state", "1 for the state that the trainer is in.", ("state",), states)
        restarts = [((), float(status.restarts))]
        yield _counter("trimtab_trainer_restarts", "Times that the trainer ended and was started again.", (), restarts)
        workflows = [((), float(status.workflows))]
        yield _counter("trimtab_trainer_workflows", "Workflows that the trainer has finished.", (), workflows)
        seconds = [((), status.cpu_seconds)]
        yield _counter("trimtab_trainer_cpu_seconds", "CPU time of the trainer, in seconds.", (), seconds)
        if self.duty is not None:
            duty = [((), self.duty())]
            yield _gauge("trimtab_trainer_duty", "Share of the time in which the trainer may train.", (), duty)
        waiting = [((), float(self._channel.waiting))]
        yield _gauge("trimtab_trainer_waiting_commands", "Commands that are not acknowledged yet.", (), waiting)
        durations = [((kind,), distribution) for kind, distribution in list(self._channel.durations.items())]
        help_text = "Seconds from a command to its acknowledgement: the duration of the trainer's work."
        yield _histogram("trimtab_trainer_command_seconds", help_text, ("command",), durations)


def _versions(models: list[Model]) -> Iterator[Metric]:
    info, live, epoch = [], [], []
    swaps: list[Sample] = []
    for model in models:
        current, swap = model.swap.current, model.swap
        live.append(((model.name,), float(current.live)))
        epoch.append(((model.name,), float(current.epoch)))
        swaps.append(((model.name, "promoted"), float(swap.promotions)))
        swaps.append(((model.name, "rolled_back"), float(swap.rollbacks)))
        swaps.append(((model.name, "refused"), float(swap.refusals)))
        roles = {current.live: "live", current.previous: "previous"}
        if model.engine.ready:
            for number, loaded in model.engine.table.loaded.items():
                role = roles.get(number, "staged")
                info.append(((model.name, str(number), role, loaded.weights[:16]), 1.0))
    labels = ("model", "version", "role", "weights")
    yield _gauge("trimtab_version_info", "1 for each loaded version.", labels, info)
    yield _gauge("trimtab_live_version", "Number of the live version.", ("model",), live)
    yield _gauge("trimtab_live_epoch", "Changes of the live version since the first.", ("model",), epoch)
    yield from _sleep(models)
    yield _counter("trimtab_swaps", "Promotions, rollbacks and refused candidates.", ("model", "kind"), swaps)


def _sleep(models: list[Model]) -> Iterator[Metric]:
    asleep: list[Sample] = []
    naps: list[Sample] = []
    for model in models:
        sleeps = model.swap.naps
        asleep.append(((model.name,), float(len(sleeps.asleep))))
        naps += [
            ((model.name, kind), float(count))
            for kind, count in (("asleep", sleeps.slept), ("awake", sleeps.woken), ("failed", sleeps.failed))
        ]
    yield _gauge("trimtab_versions_asleep", "Loaded versions that sleep.", ("model",), asleep)
    text = "Versions that fell asleep, that woke, and that could not be woken."
    yield _counter("trimtab_naps", text, ("model", "kind"), naps)
    durations = [((model.name,), model.swap.naps.seconds) for model in models]
    yield _histogram("trimtab_wake_seconds", "Seconds that waking a version took.", ("model",), durations)


def _kept(models: list[Model]) -> Iterator[Metric]:
    stats = [((model.name,), model.captures.stats()) for model in models if model.captures is not None]
    for name, attribute, help_text in (
        ("trimtab_captured_rows", "rows", "Served rows kept."),
        ("trimtab_capture_dropped_rows", "dropped", "Rows lost to the rate cap, a full queue or a full disk."),
        ("trimtab_capture_sampled_out_rows", "sampled_out", "Rows that the sampling policy left out."),
        ("trimtab_capture_damages", "damaged", "Damaged or missing segments found."),
    ):
        yield _counter(name, help_text, ("model",), [(k, float(getattr(s, attribute))) for k, s in stats])
    for name, attribute, help_text in (
        ("trimtab_capture_bytes", "bytes", "Bytes of all segments on disk."),
        ("trimtab_capture_segments", "segments", "Sealed segments."),
        ("trimtab_capture_pending_rows", "pending", "Rows kept that are not on disk yet."),
    ):
        yield _gauge(name, help_text, ("model",), [(k, float(getattr(s, attribute))) for k, s in stats])
    outcomes = [
        ((model.name, outcome), float(getattr(model.label_counts, outcome)))
        for model in models
        for outcome in ("accepted", "duplicate", "conflict", "invalid")
    ]
    yield _counter("trimtab_labels", "Labels that came, by outcome.", ("model", "outcome"), outcomes)
    stored = [((model.name,), float(model.labels.count())) for model in models]
    yield _gauge("trimtab_labels_stored", "Label revisions stored.", ("model",), stored)


def _drift(models: list[Model]) -> Iterator[Metric]:
    effects: list[Sample] = []
    alarms: list[Sample] = []
    windows: list[Sample] = []
    estimates: list[Sample] = []
    evaluated: list[Sample] = []
    for model in models:
        newest = model.drift.newest if model.drift is not None else None
        if newest is None:
            continue
        if newest.HasField("estimate"):
            estimates.append(((model.name,), newest.estimate.loss))
            evaluated.append(((model.name,), newest.estimate.evaluated_loss))
        windows.append(((model.name,), float(newest.window)))
        for feature in newest.features:
            psi = next((s.effect for s in feature.statistics if s.name == "psi"), 0.0)
            effects.append(((model.name, feature.feature), psi))
            alarms.append(((model.name, feature.feature), float(feature.alarm)))
        if newest.HasField("joint"):
            effects.append(((model.name, JOINT), newest.joint.effect))
            alarms.append(((model.name, JOINT), float(newest.joint.alarm)))
    labels = ("model", "feature")
    said = "Population stability index of the newest window; of the columns together JointDrift.effect."
    yield _gauge("trimtab_drift_effect", said, labels, effects)
    yield _gauge("trimtab_drift_alarm", "1 where a feature's drift is significant, large and lasting.", labels, alarms)
    yield _counter("trimtab_drift_windows", "Drift windows closed.", ("model",), windows)
    yield _gauge("trimtab_estimated_loss", "Loss that the newest window lets expect.", ("model",), estimates)
    yield _gauge("trimtab_evaluated_loss", "Loss of the labelled rows that estimates stand on.", ("model",), evaluated)
    keepers = [((m.name,), k) for m in models if m.drift is not None and (k := m.engine.keeper) is not None]
    for name, attribute, help_text in (
        ("trimtab_drift_rows", "sketched_rows", "Served rows counted in drift windows."),
        (
            "trimtab_drift_left_out_rows",
            "unsketched_rows",
            "Served rows beyond those that drift windows count a second.",
        ),
        ("trimtab_drift_late_rows", "late_rows", "Served rows counted in a later drift window than their own."),
    ):
        yield _counter(name, help_text, ("model",), [(label, float(getattr(k, attribute))) for label, k in keepers])


def _quality(models: list[Model]) -> Iterator[Metric]:
    reports = [(model.name, number, report) for model in models for number, report in list(model.quality.items())]
    values = [
        ((name, str(number), metric), value)
        for name, number, report in reports
        for metric, value in report.metrics.items()
    ]
    labels = ("model", "version", "metric")
    yield _gauge("trimtab_quality", "Realised quality over the cohorts that are mature.", labels, values)
    rows = [((name, str(number)), float(report.rows)) for name, number, report in reports]
    yield _gauge("trimtab_quality_rows", "Rows behind trimtab_quality.", ("model", "version"), rows)


def _counter(name: str, text: str, labels: tuple[str, ...], samples: Iterable[tuple[tuple[str, ...], float]]) -> Metric:
    family = CounterMetricFamily(name, text, labels=labels)
    for key, value in samples:
        family.add_metric(key, value)
    return family


def _gauge(name: str, text: str, labels: tuple[str, ...], samples: Iterable[Sample]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=labels)
    for key, value in samples:
        family.add_metric(key, value)
    return family


def _histogram(
    name: str, text: str, labels: tuple[str, ...], samples: Iterable[tuple[tuple[str, ...], Distribution]]
) -> Metric:
    family = HistogramMetricFamily(name, text, labels=labels)
    for key, distribution in samples:
        family.add_metric(key, distribution.cumulative(), distribution.total)
    return family
