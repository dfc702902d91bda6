"""How many shard servers a collection needs, with how much memory and disk: arithmetic on the layout of a replica.

Every line of a plan is a piece of the layout that ARCHITECTURE.md describes, or a ceiling that the servers keep to; the
constants below repeat theirs, and tests hold the two equal, and the predicted bytes to those of real files. What is no
layout is measured: the memory of an idle process. Pure; nothing here looks at a cluster or at a clock.

Predicted is the state at rest, one segment for each `SEGMENT_BYTES_MAX` of raw vectors, and the memory and disk that
writes, merges and trainings take while they run. The part of the raw vectors that is to stay in memory is the reader's
choice: searches need them in part (exact comparison of candidates), and what is not in memory is read from disk.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from vectorfleet import limits
from vectorfleet.cluster.codebook_shape import CodebookShape, codebook_shape, lists_of, sample_points_max
from vectorfleet.v1 import types_pb2

FAST_SCAN_BLOCK_ROWS: Final = 32
"""FAISS pads each inverted list to whole blocks: half a block a list on average."""
LIST_BYTES: Final = 16
"""Of each list in an index file: its size, and the size of its blocks."""
ROW_ID_BYTES: Final = 8
HASH_BYTES: Final = 12
"""Of the `hashes` file: a 64-bit hash and a row number."""
OFFSET_BYTES: Final = 8
"""Of the `ids` file, beside the id itself."""
NORM_BYTES: Final = 4
POSTING_BYTES: Final = 28
"""Of one value of a payload: 4 for the row, and 24 for the value, shared by the rows that have it; here, none do."""
FILTER_BYTES: Final = 4
"""Of a row in memory, where filters are used: bitmaps of what passes, and the rows' lists."""
STORED_POINT_BYTES: Final = 16
"""RocksDB's sequence number and the point's version, beside id and payload."""
STORE_FILTER_BYTES: Final = 1.25
"""Ten bits a point of the Bloom filter."""
STORE_BLOCK_BYTES: Final = 4096
"""RocksDB indexes its files by blocks of this size: one key each, in memory."""
SEGMENT_BYTES_MAX: Final = 16 << 30
SEAL_POINTS: Final = 16_384
SEAL_BYTES: Final = 64 << 20
BUFFERED_ROW_BYTES: Final = 208
"""Of a buffered point beside its vector."""
WRITE_BYTES_MAX: Final = 256 << 20
SEARCH_BYTES_MAX: Final = 512 << 20
READ_BYTES_MAX: Final = 128 << 20
SEALING_BYTES_MAX: Final = 64 << 20
STORE_WRITE_BUFFER_BYTES: Final = 32 << 20
STORE_BYTES_MAX: Final = 256 << 20
"""What all stores of a node share, for blocks and for what is not in their files yet."""
REPLICA_BYTES: Final = 4 << 20
"""Of an open store beside that."""
STORE_WAL_BYTES_MAX: Final = 256 << 20
LIST_POINTS_SAMPLED: Final = 64
SAMPLE_POINTS_MIN: Final = 65_536
PROCESS_BYTES: Final = 64 << 20
"""An idle shard server's own memory: 36 MB measured, Linux, Python 3.11, faiss-cpu 1.15.1, and its threads."""
SCANNED_BYTES_A_CORE_S: Final = 4e9
"""Codes that one core scans in a second, raw vectors compared: 11,400 queries/s of 375 kB each, measured with FAISS 1.15.1 on
500,000 × 128 SIFT descriptors, 2,048 lists, 48 visited, m 64, batches of 100, on a Xeon with AVX-512."""
CANDIDATES: Final = int(limits.K_DEFAULT * limits.OVERSAMPLE_DEFAULT)

MEMORY_USABLE: Final = limits.MEMORY_SHARE
"""Of a machine's memory; the rest is the kernel's and the kubelet's."""
DISK_USABLE: Final = 0.8
"""Of a volume: RocksDB's compactions, and rows that are dead and not yet dropped, want room."""
_GIB: Final = 1 << 30


class SizingError(ValueError):
    """No number of nodes serves this demand; the message says why and what to change."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What is to be stored."""

    points: int
    dim: int
    replicas: int = 1
    cosine: bool = False
    m: int = 0
    """PQ sub-quantisers; 0: the cluster's default."""
    nlist: int = 0
    """Inverted lists; 0: the cluster's default."""
    id_bytes: int = 16
    payload_bytes: int = 256
    """Of the JSON of one point, on average."""
    payload_values: int = 4
    """Of one point, arrays counted by their elements: what filters can ask for."""
    cached: float = 0.1
    """The part of the raw vectors that is to stay in memory, 0 to 1."""
    shards: int = 0
    """0: one for each node."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What one node offers."""

    memory_bytes: int
    disk_bytes: int
    cores: int


@dataclass(frozen=True, slots=True)
class Item:
    """One part of a node's memory or disk."""

    name: str
    bytes: int
    grows: bool
    """With the points; otherwise it is the same for any number."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A number of nodes on which the demand fits, and what each of them needs."""

    demand: Demand
    machine: Machine
    nodes: int
    shards: int
    shape: CodebookShape
    nprobe: int
    memory: tuple[Item, ...]
    """Of one node."""
    disk: tuple[Item, ...]
    """Of one node."""

    @property
    def memory_bytes(self) -> int:
        """What a pod must be given, rounded up to 256 MiB: all of it, and so much that a node admits what it is to hold."""
        whole = sum(item.bytes for item in self.memory)
        # Pages of raw vectors are the kernel's to take back: a node does not count them.
        counted = whole - sum(item.bytes for item in self.memory if item.name == _CACHED)
        return _up(max(whole, math.ceil(counted / limits.MEMORY_SHARE)), 256 << 20)

    @property
    def volume_bytes(self) -> int:
        """What a volume must hold, with room to work, rounded up to 1 GiB."""
        return _up(math.ceil(sum(item.bytes for item in self.disk) / DISK_USABLE), _GIB)

    @property
    def index_bytes_a_vector(self) -> float:
        """Resident bytes that the index and the tombstones cost one point of one copy: what `vectorfleet status` counts."""
        copies = self.demand.points * self.demand.replicas
        counted = (item.bytes for item in self.memory if item.name in _COUNTED)
        return self.nodes * sum(counted) / copies

    @property
    def scanned_codes(self) -> int:
        """Codes that a query looks at, over all shards."""
        return self.demand.points * self.nprobe // self.shape.nlist

    @property
    def scanned_bytes(self) -> int:
        """Their bytes."""
        return self.scanned_codes * code_bytes(self.shape.m)

    @property
    def core_seconds(self) -> float:
        """One core's time for a query, about."""
        return self.scanned_bytes / SCANNED_BYTES_A_CORE_S

    @property
    def lists_wanted(self) -> int:
        """The lists that so many points would get if a training's memory allowed any number."""
        return min(limits.NLIST_MAX, lists_of(self.demand.points / self.shards))

    @property
    def compared_rows(self) -> int:
        """Raw vectors that a query with default parameters compares, over all shards."""
        return min(CANDIDATES * self.shards, self.scanned_codes)


def plan(demand: Demand, machine: Machine) -> Plan:
    """Finds the smallest number of nodes on which a demand fits.

    Raises:
        SizingError: none does, or a number is out of range.
    """
    _check(demand)
    first = max(demand.replicas, 1)
    last = demand.shards * demand.replicas if demand.shards else limits.SHARDS_MAX
    low, high = first, last
    if not _fits(_at(demand, machine, high)):
        raise SizingError(_why_not(_at(demand, machine, high)))
    while low < high:  # more nodes never need more of each: bisection finds the least
        middle = (low + high) // 2
        if _fits(_at(demand, machine, middle)):
            high = middle
        else:
            low = middle + 1
    return _at(demand, machine, high)


def code_bytes(m: int) -> int:
    """Bytes of one row's 4-bit codes: FAISS packs pairs of sub-quantisers."""
    return (m + m % 2) // 2


def default_nprobe(nlist: int) -> int:
    """Lists that a search visits where the caller does not say."""
    return max(1, min(nlist, max(40, int(1.25 * float(nlist) ** 0.5))))


def index_bytes(rows: float, segments: float, shape: CodebookShape) -> dict[str, float]:
    """Bytes of the index of `rows` rows that lie in `segments` segments, by part."""
    filled = min(shape.nlist, rows / segments) if rows else 0.0
    padding_rows = segments * filled * (FAST_SCAN_BLOCK_ROWS - 1) / 2
    return {
        _CODES: rows * code_bytes(shape.m),
        _ROW_IDS: rows * ROW_ID_BYTES,
        _PADDING: padding_rows * code_bytes(shape.m) + segments * shape.nlist * LIST_BYTES,
        _TOMBSTONES: rows / 8,
    }


_CACHED: Final = "raw vectors kept in memory"
_CODES: Final = "codes"
_ROW_IDS: Final = "row ids of the codes"
_PADDING: Final = "padding and sizes of lists"
_TOMBSTONES: Final = "tombstones"
_COUNTED: Final = frozenset({_CODES, _ROW_IDS, _PADDING, _TOMBSTONES})


def _at(demand: Demand, machine: Machine, nodes: int) -> Plan:
    shards = demand.shards or nodes
    shape = codebook_shape(
        types_pb2.INDEX_KIND_IVF_PQ_FAST_SCAN, demand.dim, demand.points, shards, demand.nlist, demand.m
    )
    held = math.ceil(shards * demand.replicas / nodes)  # replicas of the fullest node
    shard_rows = demand.points / shards
    rows = held * shard_rows
    segment_rows = min(shard_rows, SEGMENT_BYTES_MAX / (4 * demand.dim))
    index = index_bytes(rows, held * max(1, math.ceil(shard_rows / segment_rows)), shape)
    return Plan(
        demand=demand,
        machine=machine,
        nodes=nodes,
        shards=shards,
        shape=shape,
        nprobe=default_nprobe(shape.nlist),
        memory=_memory(demand, rows, held, segment_rows, index, shape),
        disk=_disk(demand, rows, held, segment_rows, index, shape),
    )


def _memory(
    demand: Demand, rows: float, held: int, segment_rows: float, index: dict[str, float], shape: CodebookShape
) -> tuple[Item, ...]:
    width = math.ceil(demand.dim / shape.m) * shape.m
    key_bytes = demand.id_bytes + 20
    stored = demand.id_bytes + STORED_POINT_BYTES + demand.payload_bytes
    buffered = min(SEAL_POINTS, SEAL_BYTES / (4 * demand.dim))
    sampled = min(
        sample_points_max(demand.dim, demand.points), max(LIST_POINTS_SAMPLED * shape.nlist, SAMPLE_POINTS_MIN)
    )
    row_code_bytes = code_bytes(shape.m) + ROW_ID_BYTES
    grows = {
        **index,
        _CACHED: demand.cached * rows * _raw_bytes(demand),
        "filters on payloads": rows * (FILTER_BYTES if demand.payload_values else 0),
        "filters and indexes of the store": rows * (STORE_FILTER_BYTES + stored * key_bytes / STORE_BLOCK_BYTES),
    }
    fixed = {
        # The file's content and the index made of it, of the present version and of the one that takes over.
        "codebooks": 4 * shape.nlist * width * 4,
        # One that takes writes and one that is being sealed; normalised copies under COSINE.
        "buffers": held * 2 * buffered * (4 * demand.dim * (2 if demand.cosine else 1) + BUFFERED_ROW_BYTES),
        "the stores' buffers and caches": STORE_BYTES_MAX + held * REPLICA_BYTES,
        "calls under way, at most": WRITE_BYTES_MAX + SEARCH_BYTES_MAX + READ_BYTES_MAX,
        "sealing": SEALING_BYTES_MAX,
        # One at a time: the joined index, and the largest of its parts.
        "merging": 2 * min(segment_rows, rows) * row_code_bytes,
        # The sample, and its copy of the index's width.
        "training": 2 * sampled * 4 * width,
        "process": PROCESS_BYTES,
    }
    return _items(grows, fixed)


def _disk(
    demand: Demand, rows: float, held: int, segment_rows: float, index: dict[str, float], shape: CodebookShape
) -> tuple[Item, ...]:
    names = demand.id_bytes + OFFSET_BYTES + HASH_BYTES
    codes = sum(index.values()) - index[_TOMBSTONES]
    row_bytes = _raw_bytes(demand) + names + code_bytes(shape.m) + ROW_ID_BYTES
    grows = {
        "raw vectors": rows * _raw_bytes(demand),
        "codes": codes,
        "ids and their hashes": rows * names,
        "values of payloads, for filters": rows * POSTING_BYTES * demand.payload_values,
        "payloads": rows * (demand.id_bytes + STORED_POINT_BYTES + demand.payload_bytes),
    }
    fixed = {
        "logs": held * (STORE_WAL_BYTES_MAX + 2 * SEAL_BYTES),
        # One at a time, beside the old ones.
        "a merged segment": min(segment_rows, rows) * row_bytes,
        "codebooks": 2 * shape.nlist * math.ceil(demand.dim / shape.m) * shape.m * 4,
    }
    return _items(grows, fixed)


def _raw_bytes(demand: Demand) -> int:
    return 4 * demand.dim + (NORM_BYTES if demand.cosine else 0)


def _items(grows: dict[str, float], fixed: dict[str, float]) -> tuple[Item, ...]:
    def of(parts: dict[str, float], with_points: bool) -> Iterable[Item]:
        return (Item(name, math.ceil(size), with_points) for name, size in parts.items())

    return tuple(sorted((*of(grows, True), *of(fixed, False)), key=lambda item: -item.bytes))


def _fits(candidate: Plan) -> bool:
    machine = candidate.machine
    return (
        candidate.memory_bytes <= machine.memory_bytes * MEMORY_USABLE and candidate.volume_bytes <= machine.disk_bytes
    )


def _why_not(largest: Plan) -> str:
    machine = largest.machine
    short = (
        ("memory", largest.memory_bytes, int(machine.memory_bytes * MEMORY_USABLE), "--node-memory")
        if largest.memory_bytes > machine.memory_bytes * MEMORY_USABLE
        else ("disk", largest.volume_bytes, machine.disk_bytes, "--node-disk")
    )
    what, needed, usable, option = short
    return (
        f"even {largest.nodes:,} nodes with {largest.shards:,} shards need {needed / _GIB:,.1f} GiB of {what} each, and "
        f"{usable / _GIB:,.1f} GiB of it can be used: choose a larger {option}, or fewer points"
    )


def _check(demand: Demand) -> None:
    ranges = (
        ("points", demand.points, 1, 10**12),
        ("dim", demand.dim, 1, limits.DIM_MAX),
        ("replicas", demand.replicas, 1, 16),
        ("shards", demand.shards, 0, limits.SHARDS_MAX),
        ("m", demand.m, 0, demand.dim),
        ("nlist", demand.nlist, 0, limits.NLIST_MAX),
        ("id-bytes", demand.id_bytes, 1, limits.ID_BYTES_MAX),
        ("payload-values", demand.payload_values, 0, limits.PAYLOAD_BYTES_MAX),
        ("payload-bytes", demand.payload_bytes, 0, limits.PAYLOAD_BYTES_MAX),
        ("cached", demand.cached, 0, 1),
    )
    for name, value, least, most in ranges:
        if not least <= value <= most:
            raise SizingError(f"{name} must be {least:,} to {most:,}, not {value:,}")


def _up(size: int, step: int) -> int:
    return -(-size // step) * step
