"""The extension module. Private: use :mod:`scant`."""

from collections.abc import Callable
from typing import Any

planes: tuple[str, ...]  # of SCANT_PLANES; what is below "sync" and "journal" is there with them
commit: str
dtype_names: list[str]
moved_dtypes: dict[str, int]
reduce_op_names: list[str]
no_rank: int
by_row: str
value_kind_names: list[str]
residual_kind_names: list[str]
codec_kernels: str

_Part = tuple[int, int]
_View = tuple[int, int, int, bool]

def counters() -> list[tuple[str, str, str, int]]: ...
def counters_prometheus() -> str: ...
def crc32c(address: int, size: int, crc: int, /) -> int: ...
def read_view(array: object) -> _View: ...
def write_view(array: object) -> _View: ...

# ---- codec ----

def parse_all(data: object) -> list[Record]:
    """All records of a message, one behind the other."""

def accumulate(
    records: list[Record],
    first: int,
    address: int,
    elements: int,
    weight: float,
    threads: int,
    /,
) -> None: ...

_Curve = tuple[float, list[tuple[float, str, float, float]]]

def default_points() -> list[tuple[float, str]]: ...
def allocate(
    curves: list[_Curve], budget_bytes: float, /
) -> tuple[list[int], float, float, float]: ...
def select_top_k(address: int, elements: int, count: int, /) -> bytes: ...
def select_row_top_k(address: int, elements: int, columns: int, density: float, /) -> bytes: ...
def select_random_k(elements: int, count: int, seed: int, step: int, /) -> bytes: ...
def select_threshold(address: int, elements: int, threshold: float, /) -> bytes: ...

class Block:
    """One block of a record."""

    @property
    def values(self) -> str: ...
    @property
    def positions(self) -> str: ...
    @property
    def entries(self) -> int: ...
    @property
    def elements(self) -> int: ...
    @property
    def bytes(self) -> int: ...

class Report:
    """What one step of an encoder did."""

    @property
    def bytes(self) -> int: ...
    @property
    def entries(self) -> int: ...
    @property
    def nonfinite(self) -> int: ...
    @property
    def forced(self) -> int: ...
    @property
    def energy(self) -> float: ...
    @property
    def energy_left(self) -> float: ...
    @property
    def energy_kept(self) -> float: ...

class Record:
    """One range of one tensor in few bytes."""

    def __init__(self, data: object) -> None: ...
    @property
    def tensor(self) -> int: ...
    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def first(self) -> int: ...
    @property
    def elements(self) -> int: ...
    @property
    def entries(self) -> int: ...
    @property
    def nonfinite(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def blocks(self) -> list[Block]: ...
    @property
    def report(self) -> Report | None: ...
    def __len__(self) -> int: ...
    def __bytes__(self) -> bytes: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

class Encoder:
    """Addresses of floats in, records out."""

    def __init__(self, fields: dict[str, Any]) -> None: ...
    def encode(
        self, address: int, elements: int, density: float, values: str, threads: int, /
    ) -> Record: ...
    def probe(
        self, address: int, elements: int, points: list[tuple[float, str]] | None, threads: int, /
    ) -> _Curve: ...
    def read_residual(self, address: int, elements: int, /) -> None: ...
    def add_residual(self, address: int, elements: int, /) -> None: ...
    def clear_residual(self) -> None: ...
    def save(self) -> bytes: ...
    @staticmethod
    def restore(saved: bytes) -> Encoder: ...
    def take_over(self, other: Encoder) -> None: ...
    def describe(self) -> dict[str, Any]: ...

rank_max: int
part_elements_max: int
directions_seed: int

def seed_of_member(seed: int, member: int, as_owner: bool, /) -> int: ...
def point_for(
    density: float, values: str, rows: int, columns: int, elements: int, /
) -> tuple[float, str, int, str]: ...
def slice_ends(elements: int, members: int, /) -> list[int]: ...

_Encoders = list[Encoder | None]

class Factors:
    """Addresses of factors, column after column, and of matrices."""

    def __init__(
        self, rows: int, columns: int, first: int, elements: int, seed: int, rank: int, /
    ) -> None: ...
    def project(self, encoders: _Encoders, gradient: int, left: int, threads: int, /) -> None: ...
    def coefficients(self, whole: int, right: int, threads: int, /) -> bool: ...
    def encode_rest(
        self,
        encoder: Encoder,
        whole: int,
        elements: int,
        right: int,
        density: float,
        values: str,
        threads: int,
        /,
    ) -> Record: ...
    def add(
        self, right: int, times: float, first: int, out: int, elements: int, threads: int, /
    ) -> None: ...
    def set_basis(self, left: int, /) -> None: ...
    def read_basis(self, out: int, /) -> None: ...
    def learn(self, right: int, /) -> None: ...
    def read_directions(self, out: int, /) -> None: ...

# ---- sync ----

any_source: int

def sweep_orphans() -> None: ...

class DirectoryStore:
    def __init__(self, path: str) -> None: ...
    def set(self, key: str, value: bytes) -> None: ...
    def set_if_absent(self, key: str, value: bytes) -> bool: ...
    def get(self, key: str, timeout_s: float) -> bytes: ...

class Work:
    def done(self) -> bool: ...
    def wait(self, timeout_s: float = 0.0) -> None: ...
    def error(self) -> Exception | None: ...
    @property
    def source(self) -> int: ...

class Executor:
    @staticmethod
    def named(name: str) -> Executor: ...
    def post(self, callable: Callable[[], object]) -> None: ...
    def post_when_done(
        self, works: list[Work], chain: int, callable: Callable[[], object]
    ) -> None: ...
    def stop(self) -> None: ...
    @staticmethod
    def in_callback() -> bool: ...
    @staticmethod
    def run_callback(callable: Callable[[Any], Any], future: Any) -> Any: ...

class Communicator:
    """Addresses and byte counts in, Work out. The last argument is kept alive until the end."""

    def __init__(self, store: object, options: dict[str, Any]) -> None: ...
    @property
    def rank(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def epoch(self) -> int: ...
    def peers(self) -> list[dict[str, Any]]: ...
    def make_group(self, members: list[int], key: str) -> int: ...
    def release_group(self, group: int) -> None: ...
    def shrink(self, timeout_s: float) -> list[int]: ...
    def shutdown(self, timeout_s: float) -> None: ...
    def fail(self, reason: str, timeout_s: float) -> None: ...
    def abort(self, reason: str) -> None: ...
    def all_reduce(
        self,
        source: int,
        target: int,
        nbytes: int,
        dtype: int,
        op: int,
        group: int,
        timeout_s: float,
        keep: object,
        /,
    ) -> Work: ...
    def reduce(
        self,
        source: int,
        target: int,
        nbytes: int,
        dtype: int,
        op: int,
        root: int,
        group: int,
        timeout_s: float,
        keep: object,
        /,
    ) -> Work: ...
    def reduce_scatter(
        self,
        sources: list[_Part],
        target: int,
        nbytes: int,
        dtype: int,
        op: int,
        group: int,
        timeout_s: float,
        keep: object,
        /,
    ) -> Work: ...
    def reduce_scatter_equal(
        self,
        source: int,
        target: int,
        part_nbytes: int,
        parts: int,
        dtype: int,
        op: int,
        group: int,
        timeout_s: float,
        keep: object,
        /,
    ) -> Work: ...
    def all_gather(
        self,
        source: int,
        nbytes: int,
        targets: list[_Part],
        dtype: int,
        group: int,
        timeout_s: float,
        keep: object,
        /,
    ) -> Work: ...
    def all_gather_equal(
        self,
        source: int,
        target: int,
        part_nbytes: int,
        parts: int,
        dtype: int,
        group: int,
        timeout_s: float,
        keep: object,
        /,
    ) -> Work: ...
    def broadcast(
        self,
        data: int,
        nbytes: int,
        dtype: int,
        root: int,
        group: int,
        timeout_s: float,
        keep: object,
        /,
    ) -> Work: ...
    def gather(
        self,
        source: int,
        nbytes: int,
        targets: list[_Part],
        dtype: int,
        root: int,
        group: int,
        timeout_s: float,
        keep: object,
        /,
    ) -> Work: ...
    def scatter(
        self,
        sources: list[_Part],
        target: int,
        nbytes: int,
        dtype: int,
        root: int,
        group: int,
        timeout_s: float,
        keep: object,
        /,
    ) -> Work: ...
    def all_to_all(
        self,
        sources: list[_Part],
        targets: list[_Part],
        dtype: int,
        group: int,
        timeout_s: float,
        keep: object,
        /,
    ) -> Work: ...
    def exchange(
        self,
        sources: list[_Part],
        targets: list[_Part],
        received: int,
        ranks: int,
        priority: int,
        group: int,
        timeout_s: float,
        keep: object,
        /,
    ) -> Work: ...
    def send(
        self,
        data: int,
        nbytes: int,
        dtype: int,
        peer: int,
        tag: int,
        group: int,
        timeout_s: float,
        keep: object,
        /,
    ) -> Work: ...
    def recv(
        self,
        data: int,
        nbytes: int,
        dtype: int,
        peer: int,
        tag: int,
        group: int,
        timeout_s: float,
        keep: object,
        /,
    ) -> Work: ...
    def barrier(self, group: int, timeout_s: float, /) -> Work: ...

# Density and values of both legs; "q4 by row": each row sends its share.
_Point = tuple[float, str, float, str]

class GradientLayout:
    """Parts and slices of a model's gradients."""

    def __init__(self, shapes: list[tuple[int, int]], ranks: int, /) -> None: ...
    @property
    def ranks(self) -> int: ...
    @property
    def arena_elements(self) -> int: ...
    @property
    def elements(self) -> int: ...
    @property
    def offsets(self) -> list[int]: ...
    @property
    def parts(self) -> list[tuple[int, int, int]]: ...
    @property
    def slices(self) -> list[tuple[int, int, int, int]]: ...

class FusionPlan:
    """What travels together, how and at which points."""

    @staticmethod
    def make(
        layout: GradientLayout,
        buffers: list[tuple[str, int, list[_Point]]],
        reversed: int = 0,
    ) -> FusionPlan: ...
    @staticmethod
    def uniform(
        layout: GradientLayout,
        path: str,
        density: float,
        values: str,
        buffer_bytes: int,
        first_buffer_bytes: int,
        small_elements: int,
        /,
    ) -> FusionPlan: ...
    @staticmethod
    def parse(data: bytes, layout: GradientLayout, /) -> FusionPlan: ...
    def serialise(self, layout: GradientLayout, /) -> bytes: ...
    def sent_bytes(self, layout: GradientLayout, /) -> float: ...
    @property
    def buffers(self) -> list[tuple[str, int, int, list[_Point]]]: ...
    @property
    def reversed(self) -> int: ...

class Averager:
    """Turns the gradients of all ranks into their average, step by step."""

    def __init__(
        self,
        communicator: Communicator,
        layout: GradientLayout,
        arena: int,
        options: dict[str, Any],
        keep: object,
        /,
    ) -> None: ...
    def close(self) -> None: ...
    def set_plan(self, plan: FusionPlan, /) -> None: ...
    def start_auto_plan(self, fidelity_min: float, pinned: FusionPlan | None) -> None: ...
    @property
    def plan_hash(self) -> int: ...
    def ready(self, tensor: int, /) -> None: ...
    def finish(self, parameters_hash: int, samples: int = 0) -> None: ...
    def wait_for(self, tensors: list[int], /) -> bool: ...
    def arrived(self) -> list[int]: ...
    def wait(self) -> dict[str, Any]: ...
    def save(self) -> bytes: ...
    def restore(self, saved: bytes, /) -> None: ...
    def scale_residuals(self, factor: float, /) -> None: ...
    @property
    def residual_energy(self) -> float: ...
    @property
    def memory_bytes(self) -> int: ...

# ---- journal ----

_Memory = tuple[int, int]

class JournalFolder:
    """A journal's folder: what it holds, and what only its writer changes."""

    def __init__(self, path: str, writes: bool, replica: str = "", fill: bool = False) -> None: ...
    def look(self, check_files: bool = True) -> dict[str, Any]: ...
    def state(self, of_base: int | None = None, check_files: bool = True) -> dict[str, Any]: ...
    def fresh_sequence(self) -> int: ...
    def sync_state(self, of_base: int, /) -> None: ...
    def write_manifest(
        self, job: int, model: int, timeline: int, base: int, sequence: int, oldest: int, /
    ) -> None: ...
    def clear_begun(self) -> None: ...
    def summary(self, sequence: int, segment: str, offset: int, /) -> dict[str, Any]: ...

class JournalReplay:
    """Entries decoded into memory for gradients."""

    def __init__(self, folder: JournalFolder, bytes: list[int], /) -> None: ...
    def read(self, sequence: int, segment: str, offset: int, /) -> dict[str, Any]: ...
    def address(self, tensor: int, /) -> int: ...

class JournalWriter:
    """The log of a training, written beside it."""

    def __init__(
        self,
        folder: JournalFolder,
        job: int,
        model: int,
        sequence: int,
        joins: int | None,
        gradients: list[int],
        unsynced_steps: int,
        segment_bytes: int,
    ) -> None: ...
    def begin(
        self,
        step: int,
        found: list[_Memory],
        averager: Averager | None,
        state: list[_Memory],
        ranks: int,
        settings: str,
    ) -> None: ...
    def end(self) -> dict[str, Any]: ...
    def cut(self) -> int: ...
    def sync(self) -> None: ...
    def cost(self) -> dict[str, Any]: ...
    def close(self) -> None: ...

class JournalBase:
    """Bases of a training, copied and written beside it."""

    def __init__(
        self,
        folder: JournalFolder,
        rank: int,
        ranks: int,
        staging_bytes: int,
        chunk_bytes: int,
        keep_bases: int,
        /,
    ) -> None: ...
    def start(
        self,
        identity: tuple[int, int],
        timeline: int,
        step: int,
        sequence: int,
        ranks: int,
        sources: list[tuple[str, bytes, list[_Memory]]],
        residuals: str,
        averager: Averager | None,
    ) -> None: ...
    def grant(self, bytes: int, /) -> None: ...
    def finish_copying(self, late: str, content: bytes, /) -> float: ...
    def busy(self) -> bool: ...
    def poll(self, wait_s: float = 0.0) -> dict[str, Any] | None: ...
    def close(self) -> None: ...
