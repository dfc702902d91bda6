"""Opens a file of points, or of queries, by its suffix."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vectorfleet.cli.dense_files import DenseFile, FvecsFile, NpyFile
from vectorfleet.cli.jsonl_file import JsonlFile
from vectorfleet.cli.parquet_file import ParquetFile
from vectorfleet.cli.rows import Fields, FileError, PointFile

_DENSE: Final[Mapping[str, type[FvecsFile] | type[NpyFile]]] = {".fvecs": FvecsFile, ".npy": NpyFile}


def open_points(path: Path, fields: Fields) -> PointFile:
    """Opens a file of points.

    Raises:
        FileError: the format is not known, or the file is not of its format.
    """
    suffix = path.suffix.lower()
    try:
        if suffix in _DENSE:
            return _DENSE[suffix](path, fields)
        if suffix in (".jsonl", ".ndjson"):
            return JsonlFile(path, fields)
        if suffix == ".parquet":
            return ParquetFile(path, fields)
    except OSError as error:
        raise FileError(path, error.strerror or str(error)) from error
    raise FileError(
        path, f"the format {suffix or 'without a suffix'} is not known: .fvecs, .npy, .parquet and .jsonl are"
    )


def read_vectors(path: Path) -> NDArray[np.float32]:
    """Reads queries: the whole of an `.npy` (one vector is enough) or `.fvecs` file, as float32 (n, dim).

    Raises:
        FileError: it is none.
    """
    reader = _DENSE.get(path.suffix.lower())
    if reader is None:
        raise FileError(path, "queries are read from .npy or .fvecs")
    opened: DenseFile = reader(path, Fields())
    (rows,) = opened.batches(0, opened.rows)
    assert rows.vectors is not None
    return rows.vectors
