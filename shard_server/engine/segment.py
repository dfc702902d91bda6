"""A segment: an immutable, searchable part of a replica, in a directory of its own.

    vectors   float32[rows, dim], raw, C order          memory-mapped; the kernel keeps what is read
    sums      checksums of blocks of them               memory-mapped until all are verified, see `raw_vectors`
    ids       the rows' ids, see `ids`                  memory-mapped
    hashes    from an id to its row, likewise           memory-mapped
    lengths   float32[rows], the vectors' norms         memory-mapped; under COSINE alone
    terms     the payloads' values, see `postings`      memory-mapped; filters read it
    index-V   FAISS IVF-PQ codes under codebook V       memory-mapped; absent: the segment is searched exactly
              (index-V-flat: the codes alone, in one list, while the segment is young)

Each says its kind and format version in 64 bytes: in front, the index at its end.

The sums, the terms and the index are derived: where one is damaged or missing it is built again. All else is the truth. Which
rows are alive is not kept here, because it changes: see `view` and `store`.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from shard_server.durable import sync_folder
from shard_server.engine import files, index, postings, scoring
from shard_server.engine.ids import Ids, hashes_parts, ids_parts
from shard_server.engine.passing import PassingRows
from shard_server.engine.postings import Postings
from shard_server.engine.raw_vectors import BlockSums, RawVectors, rows_per_block
from vectorfleet.errors import DataLoss
from vectorfleet.internal.v1 import storage_pb2
from vectorfleet.v1 import types_pb2

VECTORS: Final = "vectors"
_VECTORS: Final = b"VF-VECTR"
_SUMS: Final = b"VF-SUMS "
_IDS: Final = b"VF-IDS  "
_HASHES: Final = b"VF-HASH "
_LENGTHS: Final = b"VF-LENGT"
_TERMS: Final = b"VF-TERMS"
_CHUNK_BYTES: Final = 8 << 20


@dataclass(frozen=True, slots=True)
class Source:
    """Rows that go into a new segment, from a buffer or an older segment."""

    vectors: NDArray[np.float32] | RawVectors
    """float32[n, dim], raw."""
    rows: NDArray[np.int64]
    """int64[r]: the rows to take, ascending."""
    ids: Ids
    """Of all in `vectors`."""
    terms: Sequence[Postings]
    """Of rows that follow one another from the first on; of all in `vectors` at least."""
    codes: index.SegmentIndex | None = None
    """Flat ones of the first of `vectors`, under the codebook that the new segment is encoded with."""


@dataclass(frozen=True, slots=True)
class Segment:
    """An open segment. Thread-safe; its files stay readable until the last reference goes, even once unlinked."""

    entry: storage_pb2.SegmentEntry
    directory: Path
    metric: int
    vectors: RawVectors = field(repr=False)
    ids: Ids
    lengths: NDArray[np.float32] | None = field(repr=False)
    """float32[rows] norms, under COSINE."""
    index: index.SegmentIndex | None = field(repr=False)
    terms: Postings = field(repr=False)
    passing: PassingRows = field(repr=False)

    @property
    def number(self) -> int:
        """Its number within the replica; never used again."""
        return self.entry.segment

    @property
    def rows(self) -> int:
        """Rows, alive or dead."""
        return self.entry.rows

    @property
    def codebook_version(self) -> int:
        """The codebook of its index; 0: not encoded."""
        return self.entry.codebook_version if self.index is not None else 0

    @property
    def has_lists(self) -> bool:
        """Whether it is encoded, and its rows stand in lists of which a query visits some."""
        return self.index is not None and not self.index.is_flat

    @property
    def index_path(self) -> Path:
        """The index file."""
        return self.directory / self.entry.index.name

    @property
    def disk_bytes(self) -> int:
        """Bytes of all its files."""
        derived = self.entry.index.bytes + self.entry.terms.bytes + self.entry.sums.bytes
        return sum(entry.bytes for entry in self.entry.files) + derived

    def prepared(self, rows: slice | NDArray[np.int64]) -> NDArray[np.float32]:
        """float32[n, dim] rows as the metric compares them: normalised under COSINE, else (of a slice) in place."""
        part = self.vectors[rows]
        return part if self.lengths is None else scoring.normalised(part, self.lengths[rows])

    def with_index(self, entry: storage_pb2.SegmentEntry) -> Segment:
        """The same segment with the index file that `entry` names."""
        encoded = index.SegmentIndex.mapped(self.directory / entry.index.name)
        return replace(self, entry=entry, index=encoded)


def open_segment(
    directory: Path,
    entry: storage_pb2.SegmentEntry,
    dim: int,
    metric: int,
    payload_of: Callable[[bytes], bytes] | None = None,
) -> Segment:
    """Checks the files and maps them, without the index: see `attach_index`.

    Of the raw vectors only the presence, size and header are checked, since they are most of the bytes: see `raw_vectors`.

    Args:
        directory: the segment's.
        entry: what the manifest says of it.
        dim: components of a vector.
        metric: `Metric` number.
        payload_of: the payload of a live row by its id; terms that are lost are made of it, lost sums of the vectors, which
            are read whole, and the segment's entry is then a new one. None: what is lost is not made again.

    Raises:
        DataLoss: a file is damaged, missing or of an unknown format; the message names it.
        OSError: what is lost cannot be written, or memory or open files are short.
    """
    files.verify(directory, [one for one in entry.files if one.name != VECTORS])
    files.check_size(directory / VECTORS, _vectors_entry(entry))
    matrix = _mapped(directory / VECTORS, _VECTORS, dim, entry.rows).view(np.float32).reshape(entry.rows, dim)
    ids = Ids.mapped(
        _mapped(directory / "ids", _IDS, 0, entry.rows),
        _mapped(directory / "hashes", _HASHES, 0, entry.rows),
        entry.rows,
    )
    lengths = _mapped(directory / "lengths", _LENGTHS, 1, entry.rows) if metric == types_pb2.METRIC_COSINE else None
    try:
        files.verify(directory, [entry.terms])
    except DataLoss:
        if payload_of is None:
            raise
        entry = _write_lost_terms(directory, entry, map(payload_of, map(ids.one, range(entry.rows))))
    try:
        files.verify(directory, [entry.sums])
    except DataLoss:
        if payload_of is None:
            raise
        entry = _write_lost_sums(directory, entry, dim)
    block_rows, _ = files.check_header(directory / "sums", _SUMS)
    sums = _mapped(directory / "sums", _SUMS, block_rows, entry.rows).view("<u8")
    terms = Postings(_mapped(directory / "terms", _TERMS, 0, entry.rows), entry.rows)
    return Segment(
        entry=entry,
        directory=directory,
        metric=metric,
        vectors=RawVectors(directory / VECTORS, matrix, sums, block_rows),
        ids=ids,
        lengths=None if lengths is None else lengths.view(np.float32),
        index=None,
        terms=terms,
        passing=PassingRows(terms),
    )


def _vectors_entry(entry: storage_pb2.SegmentEntry) -> storage_pb2.FileEntry:
    for one in entry.files:
        if one.name == VECTORS:
            return one
    raise DataLoss(f"the manifest names no vectors of segment {entry.segment}")


def attach_index(segment: Segment) -> Segment:
    """The same segment with the index that its entry names. Raises `DataLoss` where that is damaged: encode again then."""
    files.verify(segment.directory, [segment.entry.index])
    attached = segment.with_index(segment.entry)
    assert attached.index is not None
    if attached.index.rows != segment.rows:
        raise DataLoss(f"{segment.index_path} holds {attached.index.rows} rows where the manifest says {segment.rows}")
    return attached


def _mapped(path: Path, kind: bytes, columns: int, rows: int) -> NDArray[np.uint8]:
    if files.check_header(path, kind) != (columns, rows):
        raise DataLoss(f"{path} has another shape than the manifest says")
    # A plain array over the mapping: slices of np.memmap would each cost a Python-level __array_finalize__.
    return np.asarray(np.memmap(path, np.uint8, "r", files.HEADER_BYTES)).view(np.ndarray)


def write_segment(
    directory: Path,
    number: int,
    sources: Sequence[Source],
    dim: int,
    metric: int,
    codebook: index.Codebook | None,
    joinable: Sequence[Path] = (),
    *,
    flat: bool = False,
) -> storage_pb2.SegmentEntry:
    """Writes a new segment of all rows of `sources`, in order, and makes it durable.

    Args:
        directory: where the segment's directory comes to stand; a leftover of that name is replaced.
        number: the segment's number.
        sources: at least one row in all.
        dim: components of a vector.
        metric: `Metric` number.
        codebook: encodes the rows; None: none is encoded.
        joinable: index files under `codebook` that hold exactly the rows of `sources`, in order: they are joined
            instead of encoding again, where that can be.
        flat: encode without lists, which takes an eighth of the time.

    Returns:
        The manifest's entry.

    Raises:
        OSError: the files cannot be written; nothing is left of them.
    """
    final = directory / str(number)
    building = directory / f"{number}.building"
    for leftover in (building, final):
        shutil.rmtree(leftover, ignore_errors=True)
    building.mkdir(parents=True)
    try:
        entry = _write_files(building, number, sources, dim, metric)
        if codebook is not None:
            written = _write_codes(building, sources, dim, metric, codebook, joinable, flat=flat)
            entry.index.CopyFrom(written)
            entry.codebook_version = codebook.version
        sync_folder(building)
        building.rename(final)
    except BaseException:
        # On a full disk every byte counts, and the next attempt may be far off.
        shutil.rmtree(building, ignore_errors=True)
        raise
    sync_folder(directory)
    return entry


def _write_files(
    building: Path,
    number: int,
    sources: Sequence[Source],
    dim: int,
    metric: int,
) -> storage_pb2.SegmentEntry:
    rows = sum(len(source.rows) for source in sources)
    taken = [(source.ids, source.rows) for source in sources]
    blocks = BlockSums(dim)
    written = [
        files.write(building / VECTORS, _summed(_vector_parts(sources, rows, dim), blocks)),
        files.write(building / "ids", itertools.chain([files.header(_IDS, 0, rows)], ids_parts(taken))),
        files.write(building / "hashes", itertools.chain([files.header(_HASHES, 0, rows)], hashes_parts(taken))),
    ]
    if metric == types_pb2.METRIC_COSINE:
        lengths = (scoring.norms(chunk).tobytes() for chunk in _chunks(sources, dim))
        written.append(files.write(building / "lengths", itertools.chain([files.header(_LENGTHS, 1, rows)], lengths)))
    terms = files.write(building / "terms", _terms_parts(_renumbered(sources), rows))
    sums = files.write(building / "sums", _sums_parts(blocks, rows, dim))
    return storage_pb2.SegmentEntry(segment=number, rows=rows, files=written, terms=terms, sums=sums)


def _write_codes(
    building: Path,
    sources: Sequence[Source],
    dim: int,
    metric: int,
    codebook: index.Codebook,
    joinable: Sequence[Path],
    *,
    flat: bool,
) -> storage_pb2.FileEntry:
    path = building / f"index-{codebook.version}"
    if flat:
        known, left = _without_known(sources)
        # Another name than that of the index to come: both stand beside each other until the manifest names one.
        return index.write_flat(building / f"{path.name}-flat", codebook, _prepared_chunks(left, dim, metric), known)
    joined = index.concatenate(path, codebook, list(joinable)) if joinable else None
    return joined or index.encode(path, codebook, _prepared_chunks(sources, dim, metric))


def _without_known(sources: Sequence[Source]) -> tuple[index.SegmentIndex | None, Sequence[Source]]:
    """The codes that the first source brings, if all of its rows are taken; and the rows that lack codes then."""
    first, *others = sources
    known = first.codes
    if known is None or len(first.rows) < len(first.vectors):
        return None, sources
    return known, [replace(first, rows=first.rows[known.rows :]), *others]


def write_index(segment: Segment, codebook: index.Codebook) -> storage_pb2.SegmentEntry:
    """Encodes an existing segment under another codebook, beside its present index; returns the new entry."""
    path = segment.directory / f"index-{codebook.version}"
    building = path.with_suffix(".building")
    every = Source(segment.vectors, np.arange(segment.rows), segment.ids, ())
    sealed = index.encode(building, codebook, _prepared_chunks([every], segment.vectors.shape[1], segment.metric))
    building.rename(path)
    sync_folder(segment.directory)
    sealed.name = path.name
    entry = _copied(segment.entry)
    entry.index.CopyFrom(sealed)
    entry.codebook_version = codebook.version
    return entry


def _chunks(sources: Sequence[Source], dim: int) -> Iterator[NDArray[np.float32]]:
    step = max(1, _CHUNK_BYTES // (4 * dim))
    for source in sources:
        for first in range(0, len(source.rows), step):
            yield source.vectors[source.rows[first : first + step]]


def _vector_parts(sources: Sequence[Source], rows: int, dim: int) -> Iterator[bytes | memoryview]:
    yield files.header(_VECTORS, dim, rows)
    for chunk in _chunks(sources, dim):
        yield np.ascontiguousarray(chunk).data.cast("B")


def _summed(parts: Iterable[bytes | memoryview], blocks: BlockSums) -> Iterator[bytes | memoryview]:
    for part in parts:
        blocks.add(part)
        yield part


def _sums_parts(blocks: BlockSums, rows: int, dim: int) -> Iterator[bytes]:
    yield files.header(_SUMS, rows_per_block(dim), rows)
    yield blocks.finish()


def _renumbered(sources: Sequence[Source]) -> Iterator[tuple[Postings, NDArray[np.uint32]]]:
    """The terms of sources, with the new number of each of their rows."""
    rows = 0
    for source in sources:
        new = np.full(sum(part.rows for part in source.terms), postings.DROPPED, np.uint32)
        new[source.rows] = np.arange(rows, rows + len(source.rows))
        rows += len(source.rows)
        first = 0
        for part in source.terms:
            yield part, new[first : first + part.rows]
            first += part.rows


def _terms_parts(sources: Iterable[tuple[Postings, NDArray[np.uint32]]], rows: int) -> Iterator[bytes]:
    yield files.header(_TERMS, 0, rows)
    yield from postings.merged(list(sources))


def _write_lost_terms(
    directory: Path, entry: storage_pb2.SegmentEntry, payloads: Iterator[bytes]
) -> storage_pb2.SegmentEntry:
    blocks = postings.Blocks()
    while chunk := list(itertools.islice(payloads, postings.BLOCK_ROWS)):
        blocks.add(chunk)
    every = Source(np.empty((0, 0), np.float32), np.arange(entry.rows), Ids.of([]), blocks.postings)
    written = _replace(directory / "terms", _terms_parts(_renumbered([every]), entry.rows))
    repaired = _copied(entry)
    repaired.terms.CopyFrom(written)
    return repaired


def _write_lost_sums(directory: Path, entry: storage_pb2.SegmentEntry, dim: int) -> storage_pb2.SegmentEntry:
    blocks = BlockSums(dim)
    for chunk in files.verifying(directory / VECTORS, _vectors_entry(entry)):
        blocks.add(chunk)
    repaired = _copied(entry)
    repaired.sums.CopyFrom(_replace(directory / "sums", _sums_parts(blocks, entry.rows, dim)))
    return repaired


def _replace(path: Path, parts: Iterable[bytes]) -> storage_pb2.FileEntry:
    """Writes a file of an existing segment anew."""
    building = path.with_suffix(".building")
    written = files.write(building, parts)
    building.rename(path)
    sync_folder(path.parent)
    written.name = path.name
    return written


def _copied(entry: storage_pb2.SegmentEntry) -> storage_pb2.SegmentEntry:
    copied = storage_pb2.SegmentEntry()
    copied.CopyFrom(entry)
    return copied


def _prepared_chunks(sources: Sequence[Source], dim: int, metric: int) -> Iterator[NDArray[np.float32]]:
    for chunk in _chunks(sources, dim):
        yield scoring.normalised(chunk) if metric == types_pb2.METRIC_COSINE else chunk
