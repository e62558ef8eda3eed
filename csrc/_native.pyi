"""Types of the native extension; the code is in csrc/."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

# Missing values: NaN in reals and booleans, INT64_MIN in integers, an empty string in strings.

class Schema:
    """The typed columns of a model's requests, in order: the features, then the `keys` key columns. Immutable,
    hashable.

    Types are "real", "boolean", "integer" and "string". Raises ValueError on an unknown type, an empty or repeated
    name, or where no field is left that is not a key.
    """

    def __init__(self, names: Sequence[str], types: Sequence[str], keys: int = 0) -> None: ...
    @property
    def names(self) -> list[str]: ...
    @property
    def types(self) -> list[str]: ...
    @property
    def keys(self) -> int: ...
    def __len__(self) -> int: ...

class Slab:
    """Rows of a schema, column by column; owns its memory and keeps it from batch to batch. One thread at a time may
    touch it."""

    def __init__(self, schema: Schema) -> None: ...
    @property
    def rows(self) -> int: ...
    @property
    def schema(self) -> Schema: ...
    @property
    def nbytes(self) -> int:
        """Bytes that the rows take."""

    def __len__(self) -> int: ...
    def clear(self) -> None:
        """Drops all rows and keeps the memory."""

    def truncate(self, rows: int) -> None:
        """Drops the rows from `rows` on; IndexError if there are not so many."""

    def reals(self, column: int) -> NDArray[np.float32]:
        """[rows] of a real or boolean column: a read-only view, true until the slab changes, safe to hold longer."""

    def integers(self, column: int) -> NDArray[np.int64]:
        """[rows] of an integer column, a view as of reals()."""

    def strings(self, column: int) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
        """Offsets [rows + 1] and UTF-8 bytes of a string column, views as of reals()."""

    def extend(self, other: Slab, indices: NDArray[np.int32] | None = None, start: int = 0, stop: int = -1) -> None:
        """Appends rows of a slab of an equal schema: those at `indices`, or [start, stop), where -1 is the end. All
        or nothing."""

    def append_columns(
        self,
        columns: Sequence[
            NDArray[np.float32] | NDArray[np.int64] | tuple[NDArray[np.int32] | NDArray[np.int64], NDArray[np.uint8]]
        ],
    ) -> None:
        """Appends rows given as one contiguous array per field: float32 (real, boolean), int64 (integer), offsets and
        bytes (string). ValueError, with nothing appended, on another dtype or shape, a boolean other than 0, 1 or
        NaN, no UTF-8."""

    def copy_columns(self, into: NDArray[np.uint8], offsets: NDArray[np.int64], start: int, stop: int) -> None:
        """Copies the numbers of the rows [start, stop), float32 (real, boolean) or int64 (integer), into a contiguous
        buffer, each column to its offset in bytes; -1: not that one. IndexError where rows or bytes are out of range,
        ValueError for a string column, with nothing written."""

class WireError(ValueError):
    """A request that is not what the protocol or the model asks for (INVALID_ARGUMENT): str() says what was expected
    and what came."""

class InferRequest:
    """A decoded ModelInferRequest: views into its bytes, which it keeps alive. One thread at a time may touch it."""

    @property
    def model_name(self) -> str: ...
    @property
    def model_version(self) -> str: ...
    @property
    def id(self) -> str: ...
    @property
    def rows(self) -> int:
        """Rows in the request; 0 until check()."""

    @property
    def time_us(self) -> int | None:
        """The request's own data time (parameter trimtab_time_us), microseconds UTC; None until check()."""

    @property
    def parameters(self) -> dict[str, bool | int | float | str]:
        """The parameters of the request, not of its tensors."""

    @property
    def inputs(self) -> list[tuple[str, str, tuple[int, ...]]]:
        """Name, datatype and shape of each input, as they came."""

    @property
    def requested_outputs(self) -> list[str]:
        """Names of the outputs asked for; none means all."""

    def check(self, schema: Schema) -> int:
        """Checks parameters, names, datatypes, shapes, sizes and values for a schema and returns the number of rows;
        WireError.

        A schema takes one tensor [n] or [n, 1] per field in any order, or, where all features are real, one FP32 or
        FP64 tensor "features" [n, features] beside the key columns. Reals take FP32, FP64, INT32, INT64 and BOOL;
        booleans the same with values 0, 1 or NaN; integers the same with whole values within 64 bits or NaN; strings
        BYTES that are UTF-8. FP64 and integers are rounded to the nearest float32 in real columns.
        """

    def append_to(self, slab: Slab, start: int = 0, stop: int = -1) -> None:
        """Copies rows [start, stop), -1 being the end, to the end of a slab of the schema that was checked. All or
        nothing; ValueError before check(), for another schema, or for a string column beyond 2 GiB; IndexError."""

class TensorSchema:
    """The input tensors of a model that takes tensors as they are: (name, datatype, dims after the rows). Immutable,
    hashable.

    A dimension of -1 takes any size from 1 on; requests share a batch only where they agree on it. ValueError on no
    inputs, an empty or repeated name, an unknown datatype, dimensions that are neither -1 nor positive, too many.
    """

    def __init__(self, inputs: Sequence[tuple[str, str, Sequence[int]]]) -> None: ...
    @property
    def inputs(self) -> list[tuple[str, str, tuple[int, ...]]]: ...
    @property
    def variable(self) -> bool:
        """Whether some dimension is -1."""

    def __len__(self) -> int: ...

class TensorSlab:
    """Rows of a TensorSchema, one contiguous buffer [rows, dims...] an input; owns its memory and keeps it from batch
    to batch. One thread at a time may touch it."""

    def __init__(self, schema: TensorSchema) -> None: ...
    @property
    def rows(self) -> int: ...
    @property
    def schema(self) -> TensorSchema: ...
    @property
    def nbytes(self) -> int:
        """Bytes that the rows take."""

    def __len__(self) -> int: ...
    def clear(self) -> None:
        """Drops all rows and keeps the memory."""

    def shape(self, input: int) -> tuple[int, ...]:
        """[rows, dims...] of an input."""

    def array(self, input: int) -> NDArray[Any]:
        """[rows, dims...] of an input that is not BYTES (BF16 as the uint16 of its bits): a view, true until the slab
        changes, safe to hold longer. Writable, since torch takes no other."""

    def strings(self, input: int) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
        """Offsets [elements + 1] and bytes of a BYTES input, views as of array()."""

    def append_zeros(self, rows: int, variable: int = 1) -> None:
        """Appends rows of zeros and empty strings, for warming up; `variable` is the size of variable dimensions."""

class TensorRequest:
    """A serialised ModelInferRequest checked against a TensorSchema: every input once, with its datatype and shape
    [n, dims...] exactly, as raw or typed contents. WireError. What the native core does with such requests, for
    tests."""

    def __init__(self, body: bytes, schema: TensorSchema) -> None: ...
    def assign(self, body: bytes, schema: TensorSchema) -> None:
        """As a new object, in the memory of this one. After a WireError it has no rows."""

    @property
    def rows(self) -> int: ...
    def fits(self, slab: TensorSlab) -> bool:
        """Whether the slab takes rows of this request: an equal schema, and it is empty or has the same variable
        dimensions."""

    def append_to(self, slab: TensorSlab, start: int = 0, stop: int = -1) -> None:
        """Copies rows [start, stop), -1 being the end, to the end of a slab. All or nothing; ValueError where it does
        not fit; IndexError."""

def decode_infer(body: bytes) -> InferRequest:
    """Parses a serialised ModelInferRequest in place; WireError on bytes that are none."""

def encode_infer_response(
    model_name: str,
    model_version: str,
    id: str,
    weights: str,
    request_id: str,
    outputs: Sequence[tuple[str, str, NDArray[Any]]],
) -> bytes:
    """A serialised ModelInferResponse with raw contents and the parameters trimtab_weights and trimtab_request_id.

    Outputs are (name, datatype, C-contiguous array [rows, ...] of that datatype); ValueError on others.
    """

def encode_infer_responses(
    model_name: str,
    model_version: str,
    weights: str,
    ids: Sequence[str],
    request_ids: Sequence[str],
    counts: Sequence[int],
    outputs: Sequence[tuple[str, str, NDArray[Any]]],
    wanted: Sequence[Sequence[str] | None],
) -> list[bytes]:
    """The answers to all requests of a batch: request i gets the next counts[i] rows of each output that it wants
    (None or empty: all). ValueError on an unknown output, or where the counts do not add up to the outputs' rows."""

def crc32c(data: bytes | bytearray | memoryview | NDArray[Any], seed: int = 0) -> int:
    """CRC-32C (Castagnoli) of contiguous bytes that follow bytes whose CRC-32C is `seed`."""

def crc32c_portable(data: bytes | bytearray | memoryview | NDArray[Any], seed: int = 0) -> int:
    """crc32c by tables, on any processor: what crc32c falls back to."""

def sample_ids(ids: NDArray[np.uint8], seed: int, inclusion: float, policy: float) -> tuple[NDArray[np.int32], int]:
    """Positions of the ids [n, 16] whose hash (trimtab.store.sampling.hash_unit) is below `inclusion`, ascending, and
    how many are below `policy`."""

CPU_LEVEL: str
"""Which of CPU_LEVELS column programs run on: the best, unless the environment variable TRIMTAB_CPU named another when
the module was imported (ImportError where this machine does not have it)."""
CPU_LEVELS: tuple[str, ...]
"""What this machine can run, the best first, of v4 (AVX-512), v3 (AVX2), v2 and portable. All give the same bits."""

class ColumnTable:
    """Rows of a schema in arrays that are borrowed, not copied: nobody may write to them while a program reads them.

    values: one contiguous array per field as Slab.append_columns takes them (string offsets int32), or, where all
    fields are real and none is a key, float32 [rows, fields], C-contiguous. Raises ValueError on anything else.
    """

    def __init__(
        self,
        schema: Schema,
        values: NDArray[np.float32]
        | Sequence[NDArray[np.float32] | NDArray[np.int64] | tuple[NDArray[np.int32], NDArray[np.uint8]]],
    ) -> None: ...
    @property
    def schema(self) -> Schema: ...
    @property
    def values(
        self,
    ) -> (
        NDArray[np.float32]
        | Sequence[NDArray[np.float32] | NDArray[np.int64] | tuple[NDArray[np.int32], NDArray[np.uint8]]]
    ):
        """The arrays as they were given: a matrix, or one a field."""

    @property
    def rows(self) -> int: ...
    def __len__(self) -> int: ...

class CompiledProgram:
    """A column program for the CPU; immutable, any number of threads may run it. See trimtab.kernels.cpu, its only
    user.

    chains: (field, [(op, reals, integers, texts), ...]). sketch: one (kind, reals, integers, texts, counted) a
    feature. level: another of CPU_LEVELS than CPU_LEVEL. Raises ValueError on anything that could not be run safely.
    """

    def __init__(
        self,
        schema: Schema,
        chains: Sequence[tuple[int, Sequence[tuple[str, Sequence[float], Sequence[int], Sequence[bytes]]]]],
        sketch: Sequence[tuple[str, Sequence[float], Sequence[int], Sequence[bytes], int]],
        level: str | None = None,
    ) -> None: ...
    @property
    def n_features(self) -> int: ...
    @property
    def n_ids(self) -> int: ...
    def run(
        self,
        rows: Slab | ColumnTable,
        counts: NDArray[np.uint64] | None,
        moments: NDArray[np.float64] | None,
        start: int = 0,
        stop: int = -1,
        features: NDArray[np.float32] | None = None,
        ids: NDArray[np.int64] | None = None,
        threads: int = 1,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Features [n, n_features] and ids [n, n_ids] of rows [start, stop), in the arrays given or new ones; adds
        them to counts and moments, in place.

        ValueError on rows of another schema or arrays that are too short, IndexError on rows out of range.
        """

    def sum_jointly(
        self,
        rows: Slab | ColumnTable,
        taken: NDArray[np.int64],
        phases: NDArray[np.uint16],
        sums: NDArray[np.int64],
    ) -> None:
        """Adds the rows at the positions `taken` [k] to the sums of a joint sketch, in place; phases and sums as
        trimtab.kernels.joint_spec has them. Raises as `run` does, and has added nothing then."""

class HeavyHitters:
    """The most frequent values of a stream in at most `capacity` counters (ValueError beyond [1, 2^24]), of texts or of
    integers. A count is never too large, and too small by at most `error` <= 2 * total / capacity; up to `capacity`
    different values are counted exactly. One thread at a time."""

    def __init__(self, capacity: int) -> None: ...
    @property
    def capacity(self) -> int: ...
    @property
    def total(self) -> int:
        """How many values were added."""

    @property
    def error(self) -> int: ...
    def add_texts(self, offsets: NDArray[np.int32], bytes: NDArray[np.uint8]) -> None:
        """Text i is bytes[offsets[i] : offsets[i + 1]]; empty ones are missing and passed over."""

    def add_integers(self, values: NDArray[np.int64]) -> None:
        """Missing ones are passed over."""

    def merge(self, other: HeavyHitters) -> None: ...
    def entries(self) -> list[tuple[bytes, int]]:
        """Values and counts, the most frequent first, ties by value. Integers as their eight bytes in memory."""

class RowSample:
    """Finite values of the at most `size` rows of smallest priorities (ValueError beyond [1, 2^24]), and the extremes
    of all of them. One thread at a time."""

    def __init__(self, size: int) -> None: ...
    @property
    def limit(self) -> int:
        """Rows of a larger priority are not kept any more."""

    @property
    def minimum(self) -> float:
        """The least of all finite values, infinite without any; -0 is 0."""

    @property
    def maximum(self) -> float:
        """The largest, likewise."""

    def values(self) -> NDArray[np.float32]:
        """The sample, in no order."""

def sample_rows(
    samples: list[RowSample],
    columns: list[NDArray[np.float32]],
    priorities: NDArray[np.uint64],
    rows: NDArray[np.int64] | None = None,
    threads: int = 1,
) -> None:
    """Adds the same rows of several columns [n], which have these priorities [n], each to its sample. `rows`: positions
    of all rows, at least, whose priority is not above the limit of any of the samples. The GIL is released. ValueError
    for other shapes, and rows beyond the columns."""

def count_quantiles(columns: list[NDArray[np.float32]], counts: list[NDArray[np.uint32]], threads: int = 1) -> None:
    """Adds each column [n] to the 65,536 counts of a quantile sketch: a value in the bucket that the upper half of its
    bits names, all NaN in bucket 0x7FC0. In place; the GIL is released."""

def sketch_values(
    values: NDArray[np.float32],
    edges: NDArray[np.float32],
    low: float,
    high: float,
    shift: float,
    counts: NDArray[np.uint64],
    moments: NDArray[np.float64],
    level: str | None = None,
) -> None:
    """Adds values [n], or of values [n, width] each row's largest (NaN where one of them is), to one field's part of a
    sketch's counts and moments, in place."""

HAS_FRONT: bool
"""Whether the native HTTP/2 front was built."""

class HotTarget:
    """What serves hot messages in native code, without Python: the hub, the group queue, an echo. Opaque; made by its
    subclasses."""

# The native front: only where HAS_FRONT.

class FrontLimits:
    """What the native front lets a client take; immutable. Every limit has a safe default: csrc/front_limits.h.

    Sizes in bytes: max_message_bytes, connection_bytes, total_bytes, output_bytes, header_bytes, stream_window,
    connection_window. Numbers: connections, streams, stream_requests; resets, controls and updates each as
    X_per_second and X_burst (reset_burst ...); message_rate, bytes a second. Seconds, 0 for no bound:
    handshake_seconds, header_seconds, message_seconds, write_seconds, idle_seconds, keepalive_seconds,
    keepalive_timeout_seconds, age_seconds, age_grace_seconds.
    Raises TypeError on another name, ValueError on a number out of range.
    """

    def __init__(self, **limits: float) -> None: ...
    def asdict(self) -> dict[str, float]: ...

class StreamFactory:
    """What wraps a connection's bytes (TLS); opaque, made by its subclasses."""

class TlsFactory(StreamFactory):
    """TLS 1.2 and 1.3 with the PEM files at these paths, read again when they change. With a client CA every client
    must show a certificate. Raises RuntimeError."""

    def __init__(self, certificate: str, key: str, client_ca: str = "") -> None: ...
    @property
    def reload_error(self) -> str:
        """Why files that have changed are not in use; empty: they are."""

class EchoTarget(HotTarget):
    """Answers every message with itself: for tests, and as the speed of the front alone."""

    def __init__(self) -> None: ...

class LoopTarget(HotTarget):
    """The front and a model with nothing else, to measure against: csrc/loop_target.h. Every request has `rows` rows,
    its last bytes; every answer is `head` and the outputs' bytes."""

    def __init__(self, rows: int, row_bytes: int, output_bytes: int, head: bytes) -> None: ...
    def take(self, to: NDArray[Any]) -> int:
        """Waits, copies the rows of what waits to the array (as many as it holds); how many; 0 once closed."""

    def answer(self, outputs: NDArray[Any]) -> None:
        """Answers what was taken; ValueError on too few outputs."""

    def close(self) -> None: ...

class Front:
    """HTTP/2 and gRPC on `threads` native threads. See csrc/front.h; trimtab.server.transport_native is its only
    user."""

    def __init__(self, limits: FrontLimits, threads: int = 1) -> None: ...
    def listen(
        self,
        index: int,
        sockets: Sequence[int],
        routes: Sequence[tuple[str, str, int, bool, int, HotTarget | None]],
        streams: StreamFactory | None = None,
    ) -> None:
        """Before start(): takes over listening sockets, one a thread or fewer.

        Routes: path, label, kind (0 unary, 1 client stream, 2 server stream, 3 duplex), whether draining waits for it,
        the number that events name it by, and what serves it natively.
        """

    def start(self) -> None: ...
    def fileno(self) -> int:
        """Readable when there are events."""

    def poll(self) -> list[tuple[Any, ...]]:
        """All events since the last time.

        (0, call, handler, deadline in monotonic ns or None, metadata, peer, identity, body or None): a call began.
        (1, call, body): a message of a stream. (2, call, 0): the client has sent all. (3, call, bytes): so much of the
        call's messages has left. (4, call, status): the call is over. (5, 0, listener): one thread has closed all of
        its connections. (6, 0, thread): no hot call is under way there, after watch_idle().
        """

    def command(self, commands: list[tuple[Any, ...]]) -> None:
        """(0, call, metadata, compression): initial metadata. (1, call, bytes, compression): a message. (2, call,
        number): bytes that were read, and 64 for each message. (3, call, status, text, trailing metadata, bytes or
        None, compression): the end, with an answer.

        Compression: 0 large answers to compressed requests, 1 none, 2 gzip; 4 more: not this message."""

    def stop(self, index: int, grace_ns: int) -> None: ...
    def watch_idle(self) -> None: ...
    def close(self, seconds: float = 5.0) -> bool:
        """Ends everything. False: a hot request has not come back in time, and its thread is left behind."""

    def ended(self) -> list[tuple[str, int, int]]:
        """Hot calls that have ended: label, status, number."""

    def counted(self) -> tuple[int, int]:
        """Hot calls that draining waits for: under way, ended."""

    @property
    def threads(self) -> int: ...
    @property
    def connections(self) -> int: ...
    @property
    def nbytes(self) -> int:
        """Bytes that calls hold: requests not answered, answers not sent."""

def valid_metadata(name: str, value: bytes) -> bool:
    """Whether gRPC can carry this as custom metadata."""

class QueuePolicy:
    """How requests of one priority level wait; Triton's ModelQueuePolicy. Times in seconds, sizes in requests (0: any
    number). `delay`: what times out goes behind all others, where it would else be refused."""

    def __init__(
        self,
        delay: bool = False,
        default_timeout: float = 0.0,
        allow_timeout_override: bool = True,
        max_queue_size: int = 4096,
    ) -> None: ...

class BatchPolicy:
    """How waiting requests become batches: csrc/batch_queue.h. Immutable; ValueError on what could not be served by."""

    def __init__(
        self,
        *,
        max_batch_size: int = 1024,
        max_queue_delay: float = 0.0,
        preferred: Sequence[int] = (),
        split_oversize: bool = True,
        preserve_ordering: bool = False,
        max_queue_bytes: int = 1073741824,
        levels: Sequence[QueuePolicy] = (),
        default_level: int = 0,
    ) -> None: ...

class Group:
    """Messages that are served together; made by GroupQueue.take(). What is not answered when it goes gets INTERNAL."""

    @property
    def bodies(self) -> list[bytes]: ...
    def answer(self, answers: Sequence[tuple[int, str, bytes]]) -> None:
        """(gRPC status, message of an error, answer) of each; ValueError on another number of them."""

class GroupQueue(HotTarget):
    """Messages that are served in groups by Python (csrc/group_queue.h). One thread takes and answers.

    At most `max_bytes` wait, and `max_group` messages are taken together.
    """

    def __init__(self, max_bytes: int, max_group: int) -> None: ...
    def take(self) -> Group | None:
        """All that waits, waiting without the GIL until there is something; None once closed and empty."""

    def set_draining(self, draining: bool) -> None: ...
    def close(self) -> None: ...

class BatchQueue:
    """The batching policy of one model (csrc/batch_queue.h), for tests and simulations. Requests are numbers, instants
    are ns; lane 0 is whatever is live, others are versions or aliases. One thread at a time."""

    def __init__(self, policy: BatchPolicy) -> None: ...
    def admit(
        self,
        name: int,
        now: int,
        *,
        rows: int = 1,
        lane: int = 0,
        deadline: int | None = None,
        timeout_us: int | None = None,
        priority: int = 0,
        size: int = 0,
    ) -> str:
        """Queues a request and returns "", or why it is refused: queue_full, deadline_passed, would_miss_deadline,
        too_large, no_such_priority."""

    def remove(self, name: int) -> bool: ...
    def decide(
        self, now: int, versions: Mapping[int, int], flush: bool = False, asleep: Sequence[int] = ...
    ) -> tuple[list[int], int, int | None, list[int], list[int], list[int]]:
        """(batch, its version, when to look again, expired, missed, orphaned); `versions`: what lanes stand for,
        `asleep`: which of them are."""

    @property
    def wanted(self) -> list[int]:
        """The versions that the last decision found asleep, and waited for."""

    def clear_version(self, version: int, versions: Mapping[int, int]) -> list[int]:
        """Takes out what waits for a version."""

    def waits_for(self, version: int, versions: Mapping[int, int]) -> bool:
        """Whether something waits for a version."""

    def computed(self, rows: int, ns: int, now: int) -> None:
        """Tells how long a batch took that was computed at `now`."""

    def clear(self) -> list[int]: ...
    def __len__(self) -> int: ...
    @property
    def rows(self) -> int: ...
    @property
    def bytes(self) -> int: ...

class Batch:
    """Requests of one model for one version, their rows read; made by Hub.take(). To be answered or failed once: what
    is not answered when it goes, fails. One thread at a time."""

    @property
    def model(self) -> str: ...
    @property
    def version(self) -> int: ...
    @property
    def requests(self) -> int: ...
    @property
    def rows(self) -> int: ...
    @property
    def slab(self) -> Slab | TensorSlab:
        """The rows of all requests, in order. Filled anew for a later batch once this one is gone."""

    @property
    def request_ids(self) -> NDArray[np.uint8]:
        """[requests, 16]"""

    @property
    def counts(self) -> NDArray[np.int32]:
        """[requests] rows of each."""

    @property
    def times_us(self) -> NDArray[np.int64]:
        """[requests] data time of each."""

    def answer(self, weights: str, outputs: Sequence[Any]) -> None:
        """Encodes and sends every answer. One contiguous array [rows, ...] per output of the model, of its datatype and
        dimensions (BYTES: an object array, or a list, of bytes or str); ValueError on others, with nothing sent."""

    def fail(self, status: int, message: str) -> None:
        """Answers every request with a gRPC status; does nothing where they are answered."""

class LocalOrigin:
    """Requests that come from the asyncio side. One thread, the loop's, calls it."""

    def __init__(self, target: HotTarget) -> None: ...
    def fileno(self) -> int:
        """An eventfd that is readable while answers wait."""

    def submit(
        self, token: int, body: bytes, timeout: float | None, in_stream: bool = False, traceparent: str = ""
    ) -> None:
        """A message and the seconds until its answer is of no use. ValueError on a token that is under way."""

    def cancel(self, token: int) -> None: ...
    def drain(self) -> list[tuple[int, int, bytes, str]]:
        """(token, gRPC status, answer, message) of each request that was answered."""

def keep_freed_memory() -> None:
    """Tells the C library to keep what is freed, up to some 100 MiB, for the next batch, where it would give it back to
    the system."""

class DeviceError(RuntimeError):
    """A GPU that this process cannot use, for now or ever again."""

    code: ClassVar[str]
    """The gRPC status that it is answered with: UNAVAILABLE."""

class CudaDriver:
    """NVIDIA's driver, where there is one: csrc/cuda_driver.h. Any thread."""

    def __init__(self, library: str = "libcuda.so.1") -> None:
        """Looks for it; may take a second. No error where there is none."""

    @property
    def devices(self) -> int:
        """How many GPUs there are; 0 where there is no driver."""

    @property
    def missing(self) -> str:
        """Why there are none; empty where there are."""

    @property
    def fault(self) -> str:
        """How the GPU was lost to this process; empty while it is not."""

    def fileno(self) -> int:
        """Readable from when the GPU is lost."""

class SharedMemory:
    """Regions of system shared memory and of CUDA memory, by name: csrc/shared_memory.h. Any thread."""

    def __init__(self, most_bytes: int, driver: CudaDriver | None = None) -> None:
        """`most_bytes`: of one request's inputs. `driver`: what opens CUDA memory; None: nothing does."""

    def register(self, name: str, key: str, offset: int, byte_size: int) -> bool:
        """Opens a window of /dev/shm's object `key`; False where the name is taken. WireError on what cannot be."""

    def register_cuda(self, name: str, handle: bytes, device: int, byte_size: int) -> bool:
        """Opens another process' memory on a GPU, by its CUDA IPC handle [64]; False where the name is taken. WireError
        on what cannot be, DeviceError where the GPU cannot be used. May take a second."""

    def unregister(self, name: str) -> bool:
        """Requests that use it keep it; False where there is no such region of system shared memory."""

    def unregister_cuda(self, name: str) -> bool:
        """The same for a region of CUDA memory; its handle is closed once nobody uses it."""

    def clear(self) -> None:
        """Unregisters all regions of system shared memory."""

    def clear_cuda(self) -> None:
        """Unregisters all regions of CUDA memory."""

    def regions(self) -> list[tuple[str, str, int, int]]:
        """(name, key, offset, byte_size) of each of system shared memory, by name."""

    def cuda_regions(self) -> list[tuple[str, int, int]]:
        """(name, device, byte_size) of each of CUDA memory, by name."""

    def read(self, name: str, offset: int, size: int) -> bytes:
        """Bytes of a region; WireError, DeviceError. For tests, as is write."""

    def write(self, name: str, offset: int, data: bytes) -> None: ...

class Tracing:
    """Which requests are traced, and those that were: csrc/tracing.h. Any thread."""

    def __init__(self, ratio: float, per_second: int, capacity: int) -> None:
        """`ratio`: share of requests without a traceparent; `capacity`: most spans that wait to be drained."""

    def drain(self) -> list[tuple[bytes, bytes | None, str, int, int, int, bool, int, str, int, int, int, int, int]]:
        """Takes what has ended: trace id, parent's id (None: a root), model ("": none), version, rows, rows of its
        batch, whether in a stream, gRPC status, request id (""), and ns of the monotonic clock (0: not reached):
        arrived, batch formed, computed, encoded, ended."""

    def trace(self, traceparent: bytes, now: int) -> bool:
        """A request from begin to end at `now`, in ns: whether it was traced. For tests."""

    @property
    def over_rate(self) -> int:
        """Requests that were beyond `per_second`."""

    @property
    def over_capacity(self) -> int:
        """Spans for which there was no room."""

class Hub(HotTarget):
    """Every model's requests from bytes to answers: csrc/hub.h. Any thread."""

    def __init__(self, shared_memory: SharedMemory | None = None) -> None:
        """`shared_memory`: what requests may use; None: requests that do are refused."""

    def trace(self, tracing: Tracing) -> None:
        """Traces from now on. Before the first request."""

    def add_model(
        self,
        name: str,
        schema: Schema | TensorSchema,
        outputs: Sequence[tuple[str, str, Sequence[int]]],
        policy: BatchPolicy,
        instances: int = 1,
        labels: Mapping[str, Sequence[str]] = ...,
    ) -> None:
        """`outputs`: name, datatype, dimensions after the rows (-1: any size). `instances`: most batches at a time.
        `labels`: names of an output's elements, for classification.
        ValueError where there is a model of that name."""

    def remove_model(self, name: str) -> bool:
        """Answers what waits with NOT_FOUND; False where there is no such model."""

    def install(self, name: str, live: int, loaded: Sequence[int], aliases: Mapping[str, int]) -> None:
        """From the next batch on these versions may be asked for; `live` 0: none serves. ValueError without such a
        model."""

    def set_draining(self, draining: bool) -> None: ...
    def waiting(self, name: str) -> int: ...
    def take(self, timeout: float) -> Batch | None:
        """The next batch, waiting without the GIL; None after `timeout` seconds, after wake(), where a version that is
        asleep is newly wanted, or where the hub is closed and nothing waits."""

    def wake(self) -> None: ...
    def close(self) -> None:
        """Batches form without waiting for company from now on."""

    def clear(self, status: int, message: str, model: str = "") -> None:
        """Answers all that waits, or all that waits for one model, with a gRPC status."""

    def pause(self, name: str, status: int, message: str = "") -> None:
        """Refuses the model's new requests with a gRPC status, until that is 0; what was admitted is computed.
        ValueError without such a model."""

    def put_to_sleep(self, name: str, version: int) -> bool:
        """Has requests for the version wait until `wake_up`; the first has `take` return and `wanted` name it. False,
        and nothing changed, where a request waits for it already, a batch of it is being computed, or it is not
        loaded. ValueError without such a model."""

    def wake_up(self, name: str, version: int) -> None:
        """Has the version compute again. ValueError without such a model."""

    def wanted(self) -> list[tuple[str, int]]:
        """(model, version) of what is asleep and was asked for, each once until it is woken or cleared."""

    def clear_version(self, name: str, version: int, status: int, message: str) -> None:
        """Answers what waits for a version with a gRPC status; the next request for it makes it wanted anew."""

    def in_flight(self, name: str) -> int:
        """The model's batches that were taken and not answered. ValueError without such a model."""

    def render(self) -> bytes:
        """Every model's counters in Prometheus' text format, rendered without the GIL."""

    def statistics(self, name: str) -> dict[str, Any]:
        """A copy of a model's counters: see trimtab.server.statistics."""

    def latencies(self, name: str) -> bytes:
        """uint64 counts of a model's answered requests by latency, in fine buckets: see
        trimtab.server.statistics.FINE_BOUNDS."""
