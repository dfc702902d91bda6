"""FAISS's indexes: training, encoding, scanning lists. No other module knows FAISS but `comparing`.

What FAISS gives: fast IVF-PQ scans (4-bit "FastScan" codes, masks inside the scan, files that can be memory-mapped). What
it does not, and what is done about each:

* FastScan cannot remove or update rows: dead rows are masked here and dropped by compaction.
* An index per segment would train its own centroids: all segments share one `Codebook`, so that a batch is assigned to
  lists once and approximate distances of several segments can be compared.
* PQ distances are approximations (recall@10 of 0.66 to 0.79 at best): they choose candidates, which are compared again
  on raw vectors that FAISS reads in place from mapped memory.
* It takes the GIL once a query to look for Ctrl-C: switched off too, since a busy event loop would slow scans sixtyfold.
* m must divide the dimension: vectors are padded with zeros inside the index, which changes no distance.
* To find a row's list among thousands costs eight times what its code costs. A code does not depend on the list, so fresh rows
  get codes alone: an index of one list, which FastScan reads through as fast as it visits the lists of a hundred times as many.

OpenMP's thread count belongs to the calling thread; processes set OMP_NUM_THREADS=1 before they import this module, and
parallelism comes from many queries at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Final

import faiss
import numpy as np
import xxhash
from numpy.typing import NDArray

from shard_server.engine import files
from shard_server.engine.bitmap import LiveRows
from vectorfleet import limits
from vectorfleet.errors import DataLoss, InvalidRequest
from vectorfleet.internal.v1 import storage_pb2
from vectorfleet.v1 import types_pb2

Matrix = NDArray[np.float32]
Rows = NDArray[np.int64]

faiss.InterruptCallback.clear_instance()

_CODEBOOK: Final = b"VF-CODEB"
_INDEX: Final = b"VF-INDEX"
_ENCODE_ROWS: Final = 16_384
_WRITE_BYTES: Final = 1 << 20
_CODE_BYTES_PER_CALL: Final = 1 << 30
_EACH_QUERY_BY_ITSELF: Final = 11
"""FastScan's implementation that keeps candidates in a reservoir and scans for one query after another."""
_EACH_LIST_ONCE: Final = 13
"""The one that visits a list once for all queries that want it, with the same results: a third less where several do, a fifth
more where most lists are wanted by one."""
_VISITS_SHARED: Final = 2.5
"""Queries that want a list, on average, from which on it is visited once for all."""
assert limits.NLIST_MAX <= 1 << 16, "the number of a list fits uint16"


@dataclass(frozen=True)
class Codebook:
    """Coarse centroids and PQ codebooks: one for all shards of a collection, immutable, known by its checksum."""

    version: int
    checksum: str
    """XXH3-64 of the file's content, 16 hexadecimal digits."""
    nlist: int
    m: int
    content: bytes = field(repr=False)
    index: Any = field(repr=False)
    """The trained FAISS index without rows."""

    @classmethod
    def load(cls, content: bytes, version: int) -> Codebook:
        """Reads what `train_codebook` returned. Raises `DataLoss` where it is no such thing, or of an unknown format."""
        checksum = f"{xxhash.xxh3_64_intdigest(content):016x}"
        what = f"codebook version {version} (checksum {checksum})"
        files.parse_header(content, _CODEBOOK, what)
        try:
            index = _empty_index(content)
        except (RuntimeError, ValueError, IndexError) as error:
            raise DataLoss(f"{what} cannot be read: {error}") from error
        return cls(version, checksum, int(index.nlist), int(index.pq.M), content, index)

    @property
    def codes_alone(self) -> bool:
        """Whether rows may be encoded without lists: reading all their codes is fast with FastScan alone."""
        return isinstance(self.index, faiss.IndexIVFPQFastScan)

    @cached_property
    def code_bytes(self) -> int:
        """Bytes of an encoded row: its code and its number."""
        return int(self.index.code_size) + 8

    @cached_property
    def default_nprobe(self) -> int:
        """Lists to visit where the caller does not say; about 1.25·√nlist, at least 40."""
        return max(1, min(self.nlist, max(40, int(1.25 * float(self.nlist) ** 0.5))))

    @cached_property
    def centroids(self) -> Matrix:
        """float32[nlist, width]: the centres of the lists, in FAISS's own memory."""
        held = faiss.downcast_index(self.index.quantizer).get_xb()
        return np.asarray(faiss.rev_swig_ptr(held, self.nlist * self.index.d)).reshape(self.nlist, self.index.d)

    @cached_property
    def _half_squares(self) -> NDArray[np.float32]:
        return np.asarray(0.5 * np.vecdot(self.centroids, self.centroids), np.float32)

    @cached_property
    def _width(self) -> int:
        return int(self.index.d)

    @cached_property
    def _euclidean(self) -> bool:
        return bool(self.index.metric_type == faiss.METRIC_L2)

    def distances(self, queries: Matrix) -> Matrix:
        """How far each list is from each query: float32[nq, nlist]; of use to compare a query's lists alone, smaller is nearer.

        A matrix product: a third of what FAISS's flat quantizer takes to keep the best of so many.
        """
        keys: Matrix = pad(queries, self._width) @ self.centroids.T
        # (|q - c|² - |q|²) / 2, or -q·c
        return np.subtract(self._half_squares, keys, out=keys) if self._euclidean else np.negative(keys, out=keys)

    def assign(self, queries: Matrix, nprobe: int) -> Rows:
        """Finds each query's nearest lists, once for all segments: int64[nq, nprobe], in no order."""
        return _smallest(self.distances(queries), min(nprobe, self.nlist))


def _smallest(keys: Matrix, n: int) -> Rows:
    """The positions of each row's n smallest: int64[rows, n], in no order."""
    # To partition the values and look for those up to the n-th costs half of `argpartition`, which moves positions.
    bound = np.partition(keys, n - 1, axis=1)[:, n - 1 : n]
    flat = (keys <= bound).ravel().nonzero()[0]
    if len(flat) != n * len(keys):  # some tie with the n-th
        return np.ascontiguousarray(np.argpartition(keys, n - 1, axis=1)[:, :n], np.int64)
    positions: Rows = (flat % keys.shape[1]).reshape(len(keys), n)
    return positions


def _empty_index(content: bytes) -> Any:
    """The trained index in a codebook file, without rows; a new one at each call."""
    return faiss.deserialize_index(np.frombuffer(content, np.uint8, offset=files.HEADER_BYTES))


def _empty_flat_index(codebook: Codebook) -> Any:
    """An index without rows whose codes are those of `codebook`, and which has one list for all rows."""
    like = codebook.index
    quantizer = faiss.IndexFlatL2(like.d)
    quantizer.add(np.zeros((1, like.d), np.float32))
    index = faiss.IndexIVFPQFastScan(quantizer, like.d, 1, like.pq.M, like.pq.nbits, like.metric_type)
    index.by_residual = False
    index.pq = like.pq
    index.is_trained = True
    return index


def _sharing_lists(index: Any) -> Any:
    """A second index on the same lists, which belong to the first: how FastScan scans is an attribute, and two would race."""
    shared = faiss.IndexIVFPQFastScan(
        index.quantizer, index.d, index.nlist, index.pq.M, index.pq.nbits, index.metric_type, index.bbs, False
    )
    shared.by_residual = False
    shared.pq = index.pq
    shared.replace_invlists(index.invlists, False)
    shared.ntotal = index.ntotal
    shared.is_trained = True
    return shared


def _faiss_metric(metric: int) -> Any:
    return faiss.METRIC_L2 if metric == types_pb2.METRIC_L2 else faiss.METRIC_INNER_PRODUCT


def pad(vectors: Matrix, width: int) -> Matrix:
    """Appends zero components up to `width`; returns the same array where none are missing."""
    if vectors.shape[1] == width:
        return np.ascontiguousarray(vectors)
    padded = np.zeros((len(vectors), width), np.float32)
    padded[:, : vectors.shape[1]] = vectors
    return padded


def train_codebook(sample: Matrix, *, kind: int, metric: int, nlist: int, m: int, seed: int) -> bytes:
    """Trains coarse centroids and PQ codebooks on prepared vectors (normalised under COSINE).

    Args:
        sample: float32[n, dim].
        kind: `IndexKind` number: FastScan or 8-bit IVF-PQ.
        metric: `Metric` number.
        nlist: inverted lists, at most n.
        m: PQ sub-quantisers; the dimension is padded to a multiple.
        seed: for a reproducible k-means.

    Returns:
        The codebook file's content.

    Raises:
        InvalidRequest: too few vectors for these parameters.
    """
    bits = 8 if kind == types_pb2.INDEX_KIND_IVF_PQ else 4
    if len(sample) < max(nlist, 2**bits):
        raise InvalidRequest(
            f"training {nlist} lists with {bits}-bit codes needs at least {max(nlist, 2**bits)} vectors, not {len(sample)}"
        )
    width = -(-sample.shape[1] // m) * m
    faiss_metric = _faiss_metric(metric)
    # Rows belong to the list with the nearest centroid in L2 under every metric; `Codebook.assign` then visits lists by the
    # metric itself. Lists by direction, FAISS's default for inner products, would scatter the long vectors over all lists.
    quantizer = faiss.IndexFlatL2(width)
    index: Any
    if bits == 4:
        index = faiss.IndexIVFPQFastScan(quantizer, width, nlist, m, bits, faiss_metric)
    else:
        index = faiss.IndexIVFPQ(quantizer, width, nlist, m, bits, faiss_metric)
    # Codes of the vector, not of its residual: a row's code then does not depend on its list, no table per list is needed,
    # and FastScan is three times as fast. The comparison on raw vectors makes up for the coarser codes.
    index.by_residual = False
    index.cp.spherical = False
    index.cp.seed = index.pq.cp.seed = seed
    index.cp.min_points_per_centroid = index.pq.cp.min_points_per_centroid = 1
    index.cp.max_points_per_centroid = index.pq.cp.max_points_per_centroid = 256
    index.train(pad(sample, width))
    return files.header(_CODEBOOK, sample.shape[1], nlist) + bytes(faiss.serialize_index(index))


class SegmentIndex:
    """Encoded rows, of a segment or of a buffer; row numbers are FAISS ids. Read-only and thread-safe."""

    def __init__(self, index: Any) -> None:
        """Takes a FAISS index that does not change any more."""
        self._index = self._for_batches = index
        if isinstance(self._index, faiss.IndexIVFPQFastScan):
            self._index.implem = _EACH_QUERY_BY_ITSELF
            self._for_batches = _sharing_lists(index)
            self._for_batches.implem = _EACH_LIST_ONCE
        self.rows = int(self._index.ntotal)
        self._parameters = (
            faiss.IVFPQSearchParameters if isinstance(self._index, faiss.IndexIVFPQ) else faiss.IVFSearchParameters
        )
        # FAISS's attributes are dear to read, and every search needs these.
        self._width = int(self._index.d)
        self._codes_bytes = self.rows * int(self._index.code_size)
        self._nlist = int(self._index.nlist)
        self.is_flat = self._nlist == 1
        """Whether all rows stand in one list: a search reads them all."""
        lists = self._index.invlists
        self._sizes = np.asarray([lists.list_size(number) for number in range(self._nlist)], np.int64)
        self._list_of: NDArray[np.uint16] | None = None

    @classmethod
    def mapped(cls, path: Path) -> SegmentIndex:
        """Maps a file that is known to be whole. Raises `DataLoss` where it is of an unknown format, and `OSError`."""
        files.check_header(path, _INDEX, at_end=True)
        try:
            return cls(faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC | faiss.IO_FLAG_READ_ONLY))
        except RuntimeError as error:
            raise files.unreadable(path, error) from error

    @classmethod
    def flat(cls, codebook: Codebook, chunks: Iterable[Matrix], before: SegmentIndex | None = None) -> SegmentIndex:
        """Encodes prepared vectors in memory, without lists.

        Args:
            codebook: one with `codes_alone`.
            chunks: float32[n, dim] each, row after row.
            before: rows that come first, encoded likewise with the same codebook; they are copied.
        """
        index = _empty_flat_index(codebook) if before is None else faiss.clone_index(before._index)
        _add(index, chunks)
        return cls(index)

    def rows_per_list(self, bits: NDArray[np.uint8] | None) -> NDArray[np.int64]:
        """How many rows of a bitmap (None: of all) each list holds: int64[nlist]."""
        lists = self._index.invlists
        if bits is None:
            return self._sizes
        if self._list_of is None:
            list_of = np.empty(self.rows, np.uint16)
            for number in range(self._nlist):
                if size := lists.list_size(number):
                    list_of[faiss.rev_swig_ptr(lists.get_ids(number), size)] = number
            self._list_of = list_of  # 2 bytes a row, of segments that are searched with filters alone
        chosen = np.unpackbits(bits, count=self.rows, bitorder="little").view(np.bool_)
        return np.bincount(self._list_of[chosen], minlength=self._nlist)

    def scan(
        self,
        queries: Matrix,
        lists: Rows,
        k: int,
        live: LiveRows,
        check: Callable[[], None] = lambda: None,
    ) -> tuple[NDArray[np.float32], Rows]:
        """Approximate nearest live rows within the given lists; of a flat index, among all.

        Args:
            queries: float32[nq, dim], prepared.
            lists: int64[nq, nprobe] from `Codebook.assign`, of the codebook that this index was encoded with; -1: none.
            k: candidates a query.
            live: the rows that may be found.
            check: called between calls of FAISS, each of bounded length; raises to end the search.

        Returns:
            float32[nq, k] approximate distances (squared L2 or inner product) and int64[nq, k] rows; -1 where none is left.
        """
        queries = pad(queries, self._width)
        nq = len(queries)
        if self.is_flat:
            lists = np.zeros((nq, 1), np.int64)
        distances = np.empty((nq, k), np.float32)
        rows = np.empty((nq, k), np.int64)
        # FAISS asks how far the lists are, and does not look: codes are not of residuals.
        list_distances = np.zeros(lists.shape, np.float32)
        if live.bits is None:
            parameters = _visiting(self._parameters, lists.shape[1])
        else:
            parameters = self._parameters(nprobe=lists.shape[1], sel=faiss.IDSelectorBitmap(live.bits))
        visited_bytes = self._codes_bytes * lists.shape[1] // self._nlist
        step = max(1, _CODE_BYTES_PER_CALL // max(1, visited_bytes))
        shared = min(nq, step) * lists.shape[1] >= _VISITS_SHARED * self._nlist
        scanned = self._for_batches if shared else self._index
        for first in range(0, nq, step):
            check()
            last = min(nq, first + step)
            # Python's wrapper refuses selectors, the C++ method takes them.
            scanned.search_preassigned_c(
                last - first,
                faiss.swig_ptr(queries[first:last]),
                k,
                faiss.swig_ptr(lists[first:last]),
                faiss.swig_ptr(list_distances[first:last]),
                faiss.swig_ptr(distances[first:last]),
                faiss.swig_ptr(rows[first:last]),
                False,
                parameters,
            )
        return distances, rows


@lru_cache(maxsize=64)
def _visiting(kind: Any, nprobe: int) -> Any:
    """Search parameters that only say how many lists to visit: making them takes as long as scanning thirty lists."""
    return kind(nprobe=nprobe)


def _add(index: Any, chunks: Iterable[Matrix]) -> None:
    for chunk in chunks:
        for first in range(0, len(chunk), _ENCODE_ROWS):
            index.add(pad(chunk[first : first + _ENCODE_ROWS], index.d))


def encode(path: Path, codebook: Codebook, chunks: Iterable[Matrix]) -> storage_pb2.FileEntry:
    """Encodes prepared vectors (float32[n, dim] each) row after row; writes them to `path`, synced.

    Raises:
        OSError: the file cannot be written.
    """
    index = _empty_index(codebook.content)
    _add(index, chunks)
    return _write(index, path)


def write_flat(
    path: Path, codebook: Codebook, chunks: Iterable[Matrix], before: SegmentIndex | None = None
) -> storage_pb2.FileEntry:
    """The same without lists; see `SegmentIndex.flat`."""
    # FAISS's quantizer is emptied before an index is written, so a copy is: `before` is being searched.
    return _write(SegmentIndex.flat(codebook, chunks, before)._index, path)


def concatenate(path: Path, codebook: Codebook, sources: list[Path]) -> storage_pb2.FileEntry | None:
    """Joins segments encoded with `codebook` without encoding again; rows follow one another in the order of `sources`.

    Returns:
        The file, synced. None, with nothing written, where FAISS cannot be trusted to: encode again then.

    Raises:
        OSError: the file cannot be written.
    """
    joined = _empty_index(codebook.content)
    centroids = joined.quantizer.reconstruct_n(0, codebook.nlist)
    for source in sources:
        if _append_would_overrun(joined):
            return None
        part = faiss.read_index(str(source))
        part.quantizer.add(centroids)  # FAISS joins only what it sees to agree
        joined.merge_from(part, joined.ntotal)
    return _write(joined, path)


def _append_would_overrun(index: Any) -> bool:
    """Whether appending packed lists writes beyond their memory: FAISS 1.15's BlockInvertedLists::add_entries does.

    It asks whether a list ends at the end of a block by comparing its length, in rows, with the size of a block in bytes
    (32 rows); where one is a multiple of the other, it copies whole blocks to a place past the end. Seen as "malloc():
    corrupted top size" with a list of 1,024 rows and m = 64.
    """
    if not isinstance(index, faiss.IndexIVFFastScan):
        return False
    block_bytes = 32 * (-(-int(index.pq.M) // 2))
    sizes = [index.invlists.list_size(number) for number in range(index.nlist)]
    return any(size and size % block_bytes == 0 for size in sizes)


def _write(index: Any, path: Path) -> storage_pb2.FileEntry:
    # Lists are assigned through the codebook, once for all segments: a copy of its centroids in each file would cost memory.
    index.quantizer.reset()
    # FAISS's own writer says nothing when closing the file fails, and so can leave a short one; ours raises. FAISS reads from
    # the front, so the file says what it is at its end.
    with files.Output(path) as output:
        faiss.write_index(index, faiss.PyCallbackIOWriter(output.write, _WRITE_BYTES))
        output.write(files.header(_INDEX, int(index.d), int(index.ntotal)))
        return output.finish()
