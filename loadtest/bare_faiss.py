"""The yardstick: FAISS alone, in a process of its own, on the same vectors with the same parameters as the cluster.

`python -m loadtest.bare_faiss DIRECTORY --nlist … --m … --nprobe … --oversample …` reads base.npy and queries.npy,
builds IVF-PQ FastScan with a rerank on raw vectors (FAISS's own `IndexRefineFlat`), and prints one JSON object. No
network, no durability, no deletes, no ids but row numbers: what remains between its figures and the cluster's is the
price of those.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loadtest.latency import Latencies

SECONDS = 4.0
"""How long each way of asking is measured: one by one on one thread and on a thread for each core, and in batches of 100."""
TRAINED_ON = 64
"""Vectors for each list that k-means sees, as in the cluster."""


@dataclass(frozen=True)
class Parameters:
    """What both sides use."""

    nlist: int
    m: int
    nprobe: int
    oversample: float
    k: int


def measure(directory: Path, parameters: Parameters, log: Callable[[str], None]) -> dict[str, Any]:
    """Runs the yardstick as a child process and returns its figures.

    Args:
        directory: holds base.npy and queries.npy, float32; rows.npy (int64 (queries, k)) is written there.
        parameters: the cluster's.
        log: told what goes on.
    """
    log(f"bare FAISS with {parameters}")
    options = [f"--{name}={value}" for name, value in asdict(parameters).items()]
    command = [sys.executable, "-m", "loadtest.bare_faiss", str(directory), *options]
    # FAISS reads it once, when it is loaded: one thread a search, as in a shard server.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        command, env=environment, cwd=root, stdout=subprocess.PIPE, check=True, timeout=900, text=True
    )
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def _build(faiss: Any, base: NDArray[np.float32], parameters: Parameters) -> tuple[Any, dict[str, float]]:
    cores = len(os.sched_getaffinity(0))
    faiss.omp_set_num_threads(cores)
    dim = base.shape[1]
    codes = faiss.IndexIVFPQFastScan(faiss.IndexFlatL2(dim), dim, parameters.nlist, parameters.m, 4, faiss.METRIC_L2)
    codes.by_residual = False
    index = faiss.IndexRefineFlat(codes)
    sample = np.random.default_rng(3).permutation(len(base))[: TRAINED_ON * parameters.nlist]
    start_s = time.perf_counter()
    index.train(base[sample])
    trained_s = time.perf_counter()
    index.add(base)
    added_s = time.perf_counter()
    codes.nprobe = parameters.nprobe
    index.k_factor = parameters.oversample
    return index, {"train_s": trained_s - start_s, "add_points_s": len(base) / (added_s - trained_s)}


def _single(index: Any, queries: NDArray[np.float32], k: int, callers: int) -> dict[str, float]:
    index.search(queries[:1], k)
    end_s = time.perf_counter() + SECONDS
    used_s = time.process_time()

    def ask(caller: int) -> list[float]:
        taken, at = [], caller
        while (start_s := time.perf_counter()) < end_s:
            index.search(queries[at % len(queries)][None], k)
            taken.append(time.perf_counter() - start_s)
            at += callers
        return taken

    start_s = time.perf_counter()
    with ThreadPoolExecutor(callers) as pool:
        taken = [one for each in pool.map(ask, range(callers)) for one in each]
    cpu_ms = (time.process_time() - used_s) * 1e3 / len(taken)
    return {**Latencies.of(taken, time.perf_counter() - start_s, 1).as_dict(), "cpu_ms": cpu_ms}


def _batches(index: Any, queries: NDArray[np.float32], k: int, size: int, callers: int) -> dict[str, float]:
    batches = [queries[start : start + size] for start in range(0, len(queries) - size + 1, size)]
    begin_s, used_s = time.perf_counter(), time.process_time()

    def ask(caller: int) -> list[float]:
        taken: list[float] = []
        while (start_s := time.perf_counter()) < begin_s + SECONDS:
            index.search(batches[(len(taken) * callers + caller) % len(batches)], k)
            taken.append(time.perf_counter() - start_s)
        return taken

    with ThreadPoolExecutor(callers) as pool:
        taken = [one for each in pool.map(ask, range(callers)) for one in each]
    cpu_ms = (time.process_time() - used_s) * 1e3 / (len(taken) * size)
    return {**Latencies.of(taken, time.perf_counter() - begin_s, size).as_dict(), "cpu_ms": cpu_ms}


def main() -> None:
    """Measures, and prints the figures."""
    parser = argparse.ArgumentParser(description="Bare FAISS on given vectors; prints JSON.")
    parser.add_argument("directory", type=Path)
    for name, kind in (("nlist", int), ("m", int), ("nprobe", int), ("oversample", float), ("k", int)):
        parser.add_argument(f"--{name}", type=kind, required=True)
    given = vars(parser.parse_args())
    directory = given.pop("directory")
    parameters = Parameters(**given)

    import faiss  # type: ignore[import-untyped,unused-ignore]  # after the environment is as it must be

    # Else FAISS takes Python's lock once a query to look for Ctrl-C.
    faiss.InterruptCallback.clear_instance()
    base, queries = np.load(directory / "base.npy"), np.load(directory / "queries.npy")
    index, built = _build(faiss, base, parameters)
    _, rows = index.search(queries, parameters.k)
    np.save(directory / "rows.npy", rows)
    cores = len(os.sched_getaffinity(0))
    # A batch over all cores, or a batch on each: whichever is faster is the yardstick.
    spread = _batches(index, queries, parameters.k, 100, 1)
    faiss.omp_set_num_threads(1)
    apart = _batches(index, queries, parameters.k, 100, cores)
    batches = max(spread, apart, key=lambda way: way["queries_s"])
    one, threads = (_single(index, queries, parameters.k, callers) for callers in (1, cores))
    json.dump({**built, "ways": {"one": one, "threads": threads, "batches": batches}}, sys.stdout)


if __name__ == "__main__":
    main()
