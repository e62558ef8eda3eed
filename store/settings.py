"""Every setting of trimtab.toml: frozen, typed, a docstring per field. docs/project-file.md is generated from these
classes.

Knows nothing of files, paths or messages: project.py reads the file into these classes and says in one line what is
wrong. Durations are int µs here, whatever unit the file used.
"""

from __future__ import annotations

import itertools
import re
from typing import Annotated, Literal

from pydantic import Field, PlainValidator, field_validator, model_validator
from trimtab._native import Schema, TensorSchema
from trimtab.kernels.errors import ProgramError
from trimtab.kernels.schema import FeatureSpec, Transform
from trimtab.store.durations import format_duration, parse_duration
from trimtab.store.settings_base import Count, Duration, Port, Scalar, Settings, Share, scalar_text
from trimtab.store.settings_limits import LimitsSettings
from trimtab.store.settings_source import ENTRY, SHA256, InputSettings, OutputSettings, VersionsSettings
from trimtab.store.settings_tracing import TracingSettings

__all__ = [
    "BatchingSettings",
    "CaptureSettings",
    "DataSettings",
    "DriftSettings",
    "Duration",
    "FeatureSettings",
    "GateSettings",
    "InputSettings",
    "LabelSettings",
    "LimitsSettings",
    "MlflowSettings",
    "ModelSettings",
    "OutputSettings",
    "ProjectFile",
    "QueuePolicySettings",
    "RetrainSettings",
    "RolloutSettings",
    "SecuritySettings",
    "ServerSettings",
    "Settings",
    "TracingSettings",
    "VersionsSettings",
    "scalar_text",
]


class ServerSettings(Settings):
    """The serving process."""

    host: str = "127.0.0.1"
    """Address that gRPC and HTTP listen on; "0.0.0.0" for all."""
    grpc_port: Port = 8001
    """Port of the gRPC services; 0 takes a free one."""
    http_port: Port = 8002
    """Port of /metrics, /livez and /readyz; 0 takes a free one."""
    transport: Literal["auto", "native", "grpcio"] = "auto"
    """What speaks HTTP/2: "native", "grpcio", or "auto" for native where it was built."""
    io_threads: Annotated[int, Field(ge=1, le=64)] = 1
    """Threads of the native transport that read and write; each takes a share of the connections."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the models run; "auto" takes the GPU if there is one."""
    max_message_bytes: Annotated[int, Field(ge=1024)] = 67_108_864
    """Largest request or answer, in bytes."""
    drain_seconds: Annotated[float, Field(ge=0.0)] = 20.0
    """How long a stopping server may take to answer what it has accepted."""
    trainer: bool = True
    """Run the trainer process beside the server."""
    trainer_p99_budget: Annotated[float, Field(ge=0.0)] = 0.10
    """By which share the latency that 1 % of a model's requests exceed may rise while the trainer trains; it is slowed
    down as far as that takes, down to a twentieth of the time. 0: it is not slowed down. In lockstep it never is."""
    trainer_gpu_share: Annotated[int, Field(ge=1, le=100)] = 100
    """Per cent of the GPU's multiprocessors that the trainer may use (CUDA_MPS_ACTIVE_THREAD_PERCENTAGE). Only where
    NVIDIA's MPS runs; elsewhere it does nothing, and an event says so."""
    lockstep: bool = False
    """For replays: capture waits instead of dropping, has no rate cap, and schedules follow data time."""
    threads: Count = 1
    """CPU threads of one forward pass."""
    stall_seconds: Annotated[float, Field(ge=0.0)] = 30.0
    """Longest that a model may compute one batch. Then its requests are answered UNAVAILABLE, and it takes no others
    until it is done; the other models are served on. 0: no limit."""
    max_model_bytes: Annotated[int, Field(ge=0)] = 0
    """Most bytes that the weights and buffers of all versions that are awake may take together. For what would exceed
    it, versions that are merely kept fall asleep; if that is not enough, it is not loaded. 0: no limit."""
    limits: LimitsSettings = LimitsSettings()
    """What clients may take."""
    tracing: TracingSettings = TracingSettings()
    """OpenTelemetry spans."""

    @model_validator(mode="after")
    def _room(self) -> ServerSettings:
        # Only what was given can be wrong: the defaults make room for what is larger (client_limits).
        given, limits = self.limits.model_fields_set, self.limits
        if "connection_bytes" in given and limits.connection_bytes < self.max_message_bytes:
            raise ValueError(
                f"limits.connection_bytes: expected at least max_message_bytes ({self.max_message_bytes}), "
                f"got {limits.connection_bytes}"
            )
        least = self.client_limits()["connection_bytes"]
        if "total_bytes" in given and limits.total_bytes < least:
            raise ValueError(
                f"limits.total_bytes: expected at least connection_bytes ({least:.0f}), got {limits.total_bytes}"
            )
        return self

    def client_limits(self) -> dict[str, float]:
        """[server.limits] by name; where they are defaults, large enough for max_message_bytes."""
        limits: dict[str, float] = self.limits.model_dump()
        limits["connection_bytes"] = max(limits["connection_bytes"], self.max_message_bytes)
        limits["total_bytes"] = max(limits["total_bytes"], limits["connection_bytes"])
        return limits


class SecuritySettings(Settings):
    """Who may do what."""

    admin: Literal["socket"] = "socket"
    """Where Lifecycle is served: only on a Unix socket that the server's user alone may open."""
    model_control: Literal["socket", "everywhere"] = "socket"
    """Where models may be loaded and unloaded, and log settings changed: only on the admin socket, or by every
    client."""
    tls_certificate: str = ""
    """PEM file with the server's certificate and those between it and its root, relative to this folder. With it the
    gRPC and HTTP ports speak TLS 1.2 and 1.3 only. Read again when it changes."""
    tls_key: str = ""
    """PEM file with the certificate's private key, without a password."""
    tls_client_ca: str = ""
    """PEM file with the certificates that sign clients': every client must then show one. Empty: any client."""
    shared_memory: bool = False
    """Let clients register memory for inputs and outputs: system shared memory (/dev/shm) and, where there is NVIDIA's
    driver, memory on a GPU. They can then read and write whatever lies there that the server's user can open: for
    clients that are trusted with that."""

    @model_validator(mode="after")
    def _whole(self) -> SecuritySettings:
        if bool(self.tls_certificate) != bool(self.tls_key):
            raise ValueError("tls_certificate and tls_key belong together; give both, or none")
        if self.tls_client_ca and not self.tls_certificate:
            raise ValueError("tls_client_ca needs tls_certificate and tls_key")
        return self


class MlflowSettings(Settings):
    """Where runs and model versions are recorded. Serving and training go on when it is down."""

    enabled: bool = True
    """Record runs, metrics, lineage and model versions in MLflow."""
    tracking_uri: str = ""
    """Tracking server; empty: an SQLite database of its own under state/."""
    experiment: Annotated[str, Field(min_length=1)] = "trimtab"
    """Name of the MLflow experiment."""


class DataSettings(Settings):
    """The history that the project was made from, and that `trimtab train` reads."""

    path: str = ""
    """CSV or Parquet file; relative to this folder."""
    time: str = ""
    """Column with each row's time; empty: file order, one second a row."""
    label_time: str = ""
    """Column with the time at which each row's label became known; empty: at once."""
    train_rows: Annotated[int, Field(ge=0)] = 0
    """Train on this many of the oldest rows; 0: see `until`."""
    until: Scalar = ""
    """Train on rows before this value of the time column; empty, with train_rows 0: on the oldest 30 %."""

    @model_validator(mode="after")
    def _one_bound(self) -> DataSettings:
        if self.train_rows and self.until:
            raise ValueError("train_rows and until exclude each other; give one")
        return self


def _transform(value: object) -> Transform:
    try:
        return Transform.parse(value)
    except ProgramError as error:
        raise ValueError(str(error)) from None


# What a feature without a chain gets.
_CHAINS = {
    "real": (Transform("impute"), Transform("piecewise_linear")),
    "boolean": (Transform("impute"),),
    "integer": (Transform("vocabulary"),),
    "string": (Transform("vocabulary"),),
}


class FeatureSettings(Settings):
    """One column of a request, in order."""

    name: Annotated[str, Field(min_length=1)]
    """Name of the column and of the request's input tensor."""
    type: Literal["real", "boolean", "integer", "string"]
    """What the column holds. "integer" and "string" are categories unless the chain says otherwise."""
    transforms: tuple[Annotated[Transform, PlainValidator(_transform)], ...] = ()
    """The chain: names or tables, `["impute", { op = "clip", low = 0.0, high = 1.0 }]`; empty:
    impute and piecewise_linear (real), impute (boolean), vocabulary (integer, string)."""

    @field_validator("name")
    @classmethod
    def _not_reserved(cls, value: str) -> str:
        if value.startswith("_"):
            raise ValueError(f"{value!r}: names that start with an underscore are the captures' own; rename the column")
        return value

    @model_validator(mode="after")
    def _meaningful(self) -> FeatureSettings:
        try:
            self.spec()
        except ProgramError as error:
            raise ValueError(str(error)) from None
        return self

    def spec(self) -> FeatureSpec:
        """The feature as fitting takes it."""
        return FeatureSpec(self.name, self.type, self.transforms or _CHAINS[self.type])


class LabelSettings(Settings):
    """What is predicted, and how its truth comes back."""

    column: str = ""
    """Column of the data with the truth. Must be given, but for models that take tensors."""
    key: tuple[str, ...] = ()
    """Columns that identify a row for Feedback, instead of the request id; captured, but features only where listed
    as such."""
    horizon: Duration = parse_duration("30d")
    """How long after its request a row may still be labelled."""
    absent_means: Literal["unknown", "negative"] = "unknown"
    """What a row past the horizon without a label is: left out, or a negative."""
    cohort: Annotated[Duration, Field(gt=0)] = parse_duration("1h")
    """Rows of requests this close together become mature together: once 95 % are labelled, or past the horizon."""


class QueuePolicySettings(Settings):
    """How requests of one priority wait: Triton's ModelQueuePolicy."""

    timeout_action: Literal["REJECT", "DELAY"] = "REJECT"
    """What a request gets that waited longer than its timeout: "REJECT" answers DEADLINE_EXCEEDED, "DELAY" puts it
    behind all others."""
    default_timeout_microseconds: Annotated[int, Field(ge=0)] = 0
    """Longest wait of requests that do not say; 0: none."""
    allow_timeout_override: bool = True
    """Whether a request's `timeout` parameter takes the default's place."""
    max_queue_size: Annotated[int, Field(ge=0)] = 16_384
    """Most requests that wait; beyond it they get RESOURCE_EXHAUSTED. 0: any number."""


class BatchingSettings(Settings):
    """How rows of waiting requests form one batch. Names as in Triton's model configuration."""

    max_batch_size: Count = 1024
    """Most rows of one forward pass. Rows that are large, images say, want fewer."""
    oversize: Literal["split", "refuse"] = "split"
    """What becomes of a request of more rows: run in pieces and answered as one, or INVALID_ARGUMENT."""
    max_queue_delay_microseconds: Annotated[int, Field(ge=0)] = 0
    """How long a batch may wait to become fuller; 0: never."""
    preferred_batch_size: tuple[Count, ...] = ()
    """Batch sizes that are not waited beyond."""
    preserve_ordering: bool = False
    """Answer requests in the order in which they came, also across versions and priorities."""
    priority_levels: Annotated[int, Field(ge=0, le=1000)] = 0
    """Number of priorities; requests name one in their `priority` parameter, 1 being the most urgent. 0: none."""
    default_priority_level: Annotated[int, Field(ge=0)] = 0
    """Priority of requests that name none; needed where there are priorities."""
    max_queue_size: Annotated[int, Field(ge=0)] = 16_384
    """Most requests that wait (of each priority); beyond it they get RESOURCE_EXHAUSTED. 0: any number."""
    default_timeout_microseconds: Annotated[int, Field(ge=0)] = 0
    """Longest wait of requests that do not say; 0: none."""
    timeout_action: Literal["REJECT", "DELAY"] = "REJECT"
    """What a request gets that waited longer: DEADLINE_EXCEEDED, or a place behind all others."""
    allow_timeout_override: bool = True
    """Whether a request's `timeout` parameter takes the default's place."""
    priority_queue_policy: dict[Scalar, QueuePolicySettings] = Field(default_factory=dict)
    """Policies of single priorities, by level: `[model.batching.priority_queue_policy.1]`. The others have the one
    above."""

    @model_validator(mode="after")
    def _consistent(self) -> BatchingSettings:
        if any(size > self.max_batch_size for size in self.preferred_batch_size):
            raise ValueError(f"preferred_batch_size: expected sizes of at most max_batch_size ({self.max_batch_size})")
        levels = self.priority_levels
        if levels and not 1 <= self.default_priority_level <= levels:
            raise ValueError(
                f"default_priority_level: expected 1 to priority_levels ({levels}), got {self.default_priority_level}"
            )
        if not levels and self.default_priority_level:
            raise ValueError("default_priority_level needs priority_levels")
        for level in self.priority_queue_policy:
            if not (level.isascii() and level.isdecimal() and 1 <= int(level) <= levels):
                raise ValueError(
                    f"priority_queue_policy: expected levels 1 to priority_levels ({levels}), got {level!r}"
                )
        return self

    def queue_policy(self, level: int) -> QueuePolicySettings:
        """The policy of a priority from 1 on; of all requests where there are no priorities."""
        own = self.priority_queue_policy.get(str(level))
        if own is not None:
            return own
        return QueuePolicySettings(
            timeout_action=self.timeout_action,
            default_timeout_microseconds=self.default_timeout_microseconds,
            allow_timeout_override=self.allow_timeout_override,
            max_queue_size=self.max_queue_size,
        )


class CaptureSettings(Settings):
    """Which served rows are kept, and for how long. Rows beyond a cap or budget are counted, not kept."""

    enabled: bool = True
    """Keep served rows and predictions. Without them nothing can be retrained."""
    sample: Literal["all", "rate", "stratified"] = "all"
    """"all" rows, a share of requests ("rate"), or a share that depends on the prediction ("stratified")."""
    rate: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Share of requests kept where sample = "rate"."""
    strata_edges: tuple[float, ...] = ()
    """For "stratified": ascending edges between strata of the prediction (its largest value, where it has several)."""
    strata_rates: tuple[Annotated[float, Field(gt=0.0, le=1.0)], ...] = ()
    """For "stratified": the share of requests kept in each stratum; one more than there are edges."""
    max_rows_per_second: Count = 20_000
    """Beyond this rate, a share of requests by hash of their id is kept."""
    max_rows: Count = 5_000_000
    """Most rows kept; the oldest segments go first."""
    max_bytes: Annotated[int, Field(ge=1_048_576)] = 2_147_483_648
    """Disk budget of all captures, in bytes; the oldest segments go first."""
    max_age: Annotated[Duration, Field(gt=0)] = parse_duration("90d")
    """Rows older than this, against the newest row, go."""
    flush_rows: Count = 8192
    """Rows that are written to the open segment together."""
    flush_seconds: Annotated[float, Field(gt=0.0)] = 1.0
    """Longest time that a row waits to be written: what a crash can cost."""
    seal_rows: Count = 65_536
    """Rows of a full segment."""
    seal_seconds: Annotated[float, Field(gt=0.0)] = 30.0
    """Longest time that a segment stays open: the trainer reads sealed ones only."""

    @model_validator(mode="after")
    def _strata(self) -> CaptureSettings:
        if self.sample != "stratified":
            if self.strata_edges or self.strata_rates:
                raise ValueError('strata_edges and strata_rates need sample = "stratified"')
            return self
        if len(self.strata_rates) != len(self.strata_edges) + 1:
            raise ValueError(
                f"strata_rates: expected {len(self.strata_edges) + 1} (edges + 1), got {len(self.strata_rates)}"
            )
        if any(low >= high for low, high in itertools.pairwise(self.strata_edges)):
            raise ValueError(f"strata_edges: expected ascending numbers, got {list(self.strata_edges)}")
        return self


TRAINING = "training"
"""What drift windows are compared with where nothing else is chosen."""


class DriftSettings(Settings):
    """Comparison of what is served with what the model was trained on."""

    enabled: bool = True
    """Compare windows of served rows with the training data."""
    window: Duration = 0
    """Length of one window in data time, such as "1h" or "7d", at least "1s"; windows begin at multiples of it from a
    Monday, midnight UTC. 0: windows are of rows."""
    window_rows: Annotated[int, Field(ge=10)] = 5000
    """Least rows of one window. With `window`: only where it is given, the least rows of what is compared; fewer are
    kept, and not compared."""
    window_seconds: Annotated[float, Field(ge=0.0)] = 10.0
    """Least time of one window of rows, so that a busy model is not compared all the time; in lockstep rows alone
    count."""
    keep_windows: Annotated[int, Field(ge=1, le=100_000)] = 200
    """Newest windows whose sketches are kept on disk, at most 256 MiB of them."""
    reference: str = "training"
    """What a window is compared with: "training", the training data, or how much data time before it the kept windows
    lie that it is compared with, such as "7d" (needs `window`, and is a multiple of it); the training data while there
    are none. What is pinned by `trimtab drift --pin` goes before either."""
    seasons: Annotated[int, Field(ge=1, le=100)] = 1
    """How many such stretches before a window are summed for it to be compared with: more rows tell smaller changes
    from chance."""
    sliding: Annotated[int, Field(ge=1, le=1000)] = 1
    """Windows that are compared together: each time that one closes, it and those before it, merged. 1: each alone."""
    max_rows_per_second: Annotated[int, Field(ge=0)] = 100_000
    """Beyond this rate whole batches are left out of the statistics, which need no more; 0: every row counts, as in
    lockstep."""
    joint: bool = True
    """Compare, too, the columns together, by a sample of rows: how they depend on one another no column shows."""
    joint_rows_per_second: Count = 1000
    """Rows that this takes a second, at most; in lockstep all."""
    alpha: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.01
    """False discovery rate over the features of one window (Benjamini-Hochberg), and of the columns together."""
    min_effect: Annotated[float, Field(ge=0.0)] = 0.1
    """Smallest effect size that counts, however significant."""
    joint_min_effect: Annotated[float, Field(ge=0.0)] = 0.01
    """Likewise of the columns together: 0.01 where two of ten independent columns come to be correlated by 0.5, or one
    column moves by 0.15 deviations."""
    persistence: Count = 3
    """Windows in a row that a feature must be drifted before it alarms."""

    @field_validator("window")
    @classmethod
    def _long_enough(cls, value: int) -> int:
        if 0 < value < 1_000_000:
            raise ValueError(f"expected at least 1s, or 0 for windows of rows, got {format_duration(value)}")
        return value

    @field_validator("reference")
    @classmethod
    def _known_reference(cls, value: str) -> str:
        if value == TRAINING:
            return value
        try:
            parse_duration(value)
        except ValueError as error:
            raise ValueError(f"expected {TRAINING!r}, or {str(error).removeprefix('expected ')}") from None
        return value

    @model_validator(mode="after")
    def _whole_seasons(self) -> DriftSettings:
        season = self.season
        if self.reference == TRAINING:
            return self
        if not self.window or not season or season % self.window:
            window = format_duration(self.window) if self.window else "not given"
            raise ValueError(f"reference: expected a multiple of window ({window}), got {self.reference!r}")
        least = self.seasons * season // self.window + self.sliding
        if self.keep_windows < least:
            raise ValueError(f"keep_windows: expected at least {least} for that reference, got {self.keep_windows}")
        return self

    @property
    def season(self) -> int:
        """How much data time, µs, before a window those lie that it is compared with; 0: the training data."""
        return 0 if self.reference == TRAINING else parse_duration(self.reference)

    @property
    def least_rows(self) -> int:
        """Rows that are compared, at least; windows of rows have enough when they close."""
        return self.window_rows if self.window and "window_rows" in self.model_fields_set else 1


class RetrainSettings(Settings):
    """When and how a challenger is trained."""

    enabled: bool = True
    """Retrain at all; by hand it is always possible."""
    every_labels: Annotated[int, Field(ge=0)] = 2000
    """Refresh after this many newly matured rows; 0: not by count."""
    on_drift: bool = False
    """Refresh when a feature's drift alarms."""
    on_quality: Annotated[float, Field(ge=0.0)] = 0.0
    """Refresh when the realised loss is worse by this share than when the version went live; 0: not by quality."""
    schedule: str = ""
    """Cron expression for a search of a new recipe, in data time (UTC); empty: never."""
    min_interval: Duration = 0
    """Least time between two retrainings that were not asked for by hand."""
    chunk_labels: Count = 250
    """Rows that are scored, then trained on, at a time."""
    steps: Count = 4
    """Optimiser steps for each such chunk."""
    learning_rate: Annotated[float, Field(gt=0.0)] = 0.001
    """Of AdamW, when refreshing."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where refreshes take their steps. "cpu" is the default because nothing has been measured on a GPU yet; "cuda"
    goes on on the CPU where there is no GPU or no room on it, and an event says so. Searches run on the CPU."""
    batch_size: Count = 512
    """Rows of one optimiser step."""
    half_life_rows: Count = 15_000
    """A row this many rows old is drawn half as often as the newest."""
    replay_fraction: Share = 0.25
    """Share of each batch that is drawn from all of history alike."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Same data, code and seed: same weights (on the CPU, bit for bit)."""
    search_trials: Count = 8
    """Recipes that a search tries."""
    search_seconds: Annotated[float, Field(ge=0.0)] = 0.0
    """Time limit of a search; 0: none. With a limit, what is found depends on the machine's speed."""

    @field_validator("schedule")
    @classmethod
    def _cron(cls, value: str) -> str:
        if value:
            from croniter import croniter

            if not croniter.is_valid(value):
                raise ValueError(f'expected a cron expression such as "0 3 1 * *", got {value!r}')
        return value


class GateSettings(Settings):
    """What a challenger must show before it goes live."""

    margin: Annotated[float, Field(ge=0.0)] = 0.03
    """A refresh may be worse by at most this: nats of log loss, or relative RMSE."""
    alpha: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.05
    """Error rate over the model's whole life, refused challengers included."""
    min_rows: Count = 500
    """Least rows of evidence."""
    min_blocks: Annotated[int, Field(ge=2)] = 8
    """Least independent blocks of time in the evidence."""
    bootstrap: Annotated[int, Field(ge=100)] = 1000
    """Block-bootstrap resamples."""
    max_latency_ratio: Annotated[float, Field(gt=0.0)] = 2.0
    """Slowest that a challenger may be, against the live version."""
    max_bytes: Count = 1_073_741_824
    """Largest size of a version's weights, in bytes."""
    slices: tuple[str, ...] = ()
    """Columns; on none of their common values may the challenger be worse by more than slice_margin."""
    slice_margin: Annotated[float, Field(ge=0.0)] = 0.05
    """In the unit of margin."""


class RolloutSettings(Settings):
    """How a challenger that passed goes live."""

    approve: Literal["auto", "person"] = "auto"
    """"auto" promotes it; "person" stages it and waits for `trimtab promote`."""


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


class ModelSettings(Settings):
    """One model: what it takes, what it predicts, how it is kept right."""

    name: str
    """Name of the model in requests, metrics and under state/."""
    task: Literal["", "binary", "multiclass", "regression"] = ""
    """What is predicted. Must be given, but for models that take tensors."""
    architecture: Literal["auto", "linear", "mlp"] = "auto"
    """"auto" lets the search choose."""
    entry: str = ""
    """A network of one's own: "module:name" of a Python class or function in this folder, instead of an
    architecture."""
    program: str = ""
    """A torch.export program (.pt2), relative to this folder, instead of `entry`; it takes tensors."""
    sha256: str = ""
    """Of the program, in hex: it is code, and runs only if it is this very file."""
    weights: str = ""
    """For models that take tensors: safetensors file, relative to this folder, that becomes version 1; empty: the
    weights that the program or the built module has of itself."""
    run: Literal["auto", "eager", "compiled"] = "auto"
    """How the forward pass runs on the CPU. "compiled": by AOTInductor, from the batch size on from which that is
    faster; staging a version then takes half a minute longer and needs a C++ compiler, without which it runs eagerly.
    Worth it for networks of one's own with layers of some 64 x 128 and more. "auto": networks that Trimtab builds, by
    weights laid out for the processor, from the batch size on from which that is faster; others eagerly. On a GPU both
    mean CUDA graphs, "compiled" of what torch.compile makes; what cannot be captured runs eagerly, and an event says
    why."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the forward pass on a GPU; weights stay fp32 on disk and in training. A version whose predictions then differ
    too much (bf16: 3 %, fp16: 0.4 %) runs in fp32, and an event says so."""
    columns: Literal["cpu", "gpu"] = "cpu"
    """Where columns are transformed and counted of batches that run by CUDA graphs. "gpu": in the graph, which takes
    CuPy; not measured yet, hence not the default."""
    graphs: Literal["shared", "own"] = "shared"
    """On a GPU. "shared": versions that compute the same have one set of CUDA graphs, and a batch of another version
    than the one before copies that version's weights over first; a swap costs one such copy. "own": each version has
    its own set; better where requests ask for two versions by turns all the time."""
    load: bool = True
    """Load the model when the server starts; otherwise only when it is asked for."""
    idle_seconds: Annotated[float, Field(ge=0.0)] = 0.0
    """After so many seconds without a request a version falls asleep: its weights leave the device for the host's
    memory (GPU), or memory altogether (CPU). The next request wakes it, and waits for that. 0: never."""
    classes: tuple[Scalar, ...] = ()
    """Label values of a classifier, in the order of its outputs."""
    positive: Scalar = ""
    """The class whose probability a binary model gives."""
    features: Annotated[tuple[FeatureSettings, ...], Field(alias="feature")] = ()
    """The columns of a request."""
    inputs: Annotated[tuple[InputSettings, ...], Field(alias="input")] = ()
    """Instead of features: the tensors of a request, as the model takes them."""
    outputs: Annotated[tuple[OutputSettings, ...], Field(alias="output")] = ()
    """With inputs: the tensors of an answer."""
    label: LabelSettings = LabelSettings()
    """The truth."""
    versions: VersionsSettings = VersionsSettings()
    """Versions."""
    batching: BatchingSettings = BatchingSettings()
    """Batching."""
    capture: CaptureSettings = CaptureSettings()
    """Captures."""
    drift: DriftSettings = DriftSettings()
    """Drift."""
    retrain: RetrainSettings = RetrainSettings()
    """Retraining."""
    gate: GateSettings = GateSettings()
    """The gate."""
    rollout: RolloutSettings = RolloutSettings()
    """Rollout."""

    @property
    def takes_tensors(self) -> bool:
        """Whether requests bring tensors that go to the model as they are, instead of columns."""
        return bool(self.inputs or self.outputs)

    @property
    def network(self) -> str:
        """For models of columns: what a search may choose, "auto", or the entry to use."""
        return self.entry or self.architecture

    @property
    def retrainable(self) -> bool:
        """Whether a trainer can do something for it."""
        return not self.takes_tensors

    @property
    def feature_names(self) -> tuple[str, ...]:
        """The features' names, in order."""
        return tuple(feature.name for feature in self.features)

    @property
    def extra_keys(self) -> tuple[str, ...]:
        """The key columns that are no features: captured (as strings) after them."""
        return tuple(key for key in self.label.key if key not in self.feature_names)

    def request_schema(self) -> Schema:
        """The columns of a request: the features, then the keys that are no features."""
        keys = self.extra_keys
        types = [feature.type for feature in self.features] + ["string"] * len(keys)
        return Schema([*self.feature_names, *keys], types, len(keys))

    def tensor_schema(self) -> TensorSchema:
        """The tensors of a request, of a model that takes tensors."""
        return TensorSchema([(given.name, given.datatype, given.dims) for given in self.inputs])

    def specs(self) -> tuple[FeatureSpec, ...]:
        """The features as fitting takes them."""
        return tuple(feature.spec() for feature in self.features)

    @field_validator("name")
    @classmethod
    def _file_name(cls, value: str) -> str:
        if _NAME.fullmatch(value) is None:
            raise ValueError(
                f"expected letters, digits, '_', '-', '.' (at most 64, a letter or digit first), got {value!r}"
            )
        return value

    @field_validator("entry")
    @classmethod
    def _importable(cls, value: str) -> str:
        if value and ENTRY.fullmatch(value) is None:
            raise ValueError(f'expected "module:name", got {value!r}')
        return value

    @model_validator(mode="after")
    def _sourced(self) -> ModelSettings:
        if self.entry and (self.program or self.architecture != "auto"):
            raise ValueError("entry excludes program and architecture; give one")
        if bool(self.program) != bool(self.sha256):
            raise ValueError("program and sha256 belong together: a program is code, and runs only if it is this file")
        if self.sha256 and SHA256.fullmatch(self.sha256) is None:
            raise ValueError(f"sha256: expected 64 hex digits, got {self.sha256!r}")
        if not self.takes_tensors:
            if self.program or self.weights:
                raise ValueError("program and weights are for models with [[model.input]] and [[model.output]]")
            return self
        if not (self.entry or self.program):
            raise ValueError("[[model.input]] needs a model of one's own: entry or program")
        for what, tensors in (("input", self.inputs), ("output", self.outputs)):
            names = [tensor.name for tensor in tensors]
            if not names:
                raise ValueError(f"section [[model.{what}]] is missing: models that take tensors name both")
            if len(set(names)) < len(names):
                raise ValueError(f"{what} {names!r}: expected distinct names")
        if self.features or self.label.column or self.task or self.classes:
            raise ValueError("[[model.input]] excludes features, label, task and classes: give tensors or columns")
        return self

    @model_validator(mode="after")
    def _precise(self) -> ModelSettings:
        if self.precision != "fp32" and self.run == "eager":
            raise ValueError(f'precision = "{self.precision}" needs run = "auto" or "compiled"; eager runs are fp32')
        return self

    @model_validator(mode="after")
    def _consistent(self) -> ModelSettings:
        if self.takes_tensors:
            return self
        if not self.task:
            raise ValueError("'task' is missing: What is predicted")
        if not self.features:
            raise ValueError("section [[model.feature]] is missing: The columns of a request")
        if not self.label.column:
            raise ValueError("section [model.label] or its 'column' is missing: Column of the data with the truth")
        names = self.feature_names
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"feature {name!r} is listed twice")
        if self.label.column in names:
            raise ValueError(f"label column {self.label.column!r} is listed as a feature")
        for key in self.label.key:
            if key.startswith("_") or self.label.key.count(key) > 1:
                raise ValueError(f"label key {key!r}: expected distinct names that do not start with an underscore")
        if len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes: expected distinct values, got {list(self.classes)}")
        if self.task == "regression":
            if self.classes or self.positive:
                raise ValueError('classes and positive are for classifiers, and task is "regression"')
            return self
        if self.task == "binary" and len(self.classes) != 2:
            raise ValueError(f"classes: expected the 2 label values of a binary task, got {len(self.classes)}")
        if self.task == "multiclass" and len(self.classes) < 3:
            raise ValueError(
                f"classes: expected the 3 or more label values of a multiclass task, got {len(self.classes)}"
            )
        if self.task == "binary" and self.positive not in self.classes:
            raise ValueError(f"positive: expected one of {list(self.classes)}, got {self.positive!r}")
        if self.task == "multiclass" and self.positive:
            raise ValueError('positive is for task = "binary"')
        return self


class ProjectFile(Settings):
    """trimtab.toml as a whole."""

    server: ServerSettings = ServerSettings()
    """The serving process."""
    security: SecuritySettings = SecuritySettings()
    """Security."""
    mlflow: MlflowSettings = MlflowSettings()
    """MLflow."""
    data: DataSettings = DataSettings()
    """Training data."""
    models: Annotated[tuple[ModelSettings, ...], Field(alias="model", min_length=1)]
    """The models."""

    @model_validator(mode="after")
    def _distinct(self) -> ProjectFile:
        names = [model.name for model in self.models]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"model {name!r} is there twice")
        return self
