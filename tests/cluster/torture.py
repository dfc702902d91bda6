"""Kills and freezes the processes of a cluster at random moments, over and over, and checks what its clients saw.

    python -m tests.cluster.torture --rounds 200 --seed 1

Each round makes a collection on one long-lived cluster (etcd, two nodes, two routers), lets clients write, delete and read it
(workload.py), strikes (faults.py), lets everything run again, reads all of it, and holds the history against the guarantees
(history.py). The seed and the number of a round decide the collection, what the clients choose and the faults; `--first` starts
at a later round. A round that fails is saved: its history and the logs; the exit status is 1 then.

It stands beside the cluster tests and not in `loadtest/`: it measures nothing, and shares its parts with a short test.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import logging
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

import vectorfleet
from tests.cluster import faults, history, workload
from tests.cluster.waiting import until
from vectorfleet.cluster.placement import HashPlacement, hash_ranges
from vectorfleet.cluster.shard_map import ShardAssignment
from vectorfleet.local import LocalCluster, LocalClusterError

SHARD_ARGS: Final = ("--seal-points", "300", "--seal-age-s", "0.5")
"""So small that a round seals, trains, encodes and merges many times."""
TRAIN_POINTS: Final = 300
FAULTS_A_ROUND: Final = 3
BACKUPS_EVERY: Final = 3
"""Rounds, of which one makes backups while points change, and restores the last of them."""
_BACKUP_PAUSE_S: Final = 0.3
_RECOVERY_S: Final = 60.0
_LOG_TAIL_BYTES: Final = 200_000
_WRONG_SHOWN: Final = 20


@dataclass(slots=True)
class Round:
    """What a round did and found."""

    number: int
    hit: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    calls: list[history.Call] = field(default_factory=list)
    verdict: history.Verdict = field(default_factory=lambda: history.Verdict((), ()))
    happened: Counter[str] = field(default_factory=Counter)
    """Evidence of background work: segments made and merged, codebooks."""

    @property
    def failed(self) -> bool:
        return bool(self.problems or self.verdict.violations)


def start(
    data: Path,
    kind: type[LocalCluster] = LocalCluster,
    *,
    nodes: int = 2,
    routers: int = 2,
    shard_args: Sequence[str] = SHARD_ARGS,
) -> LocalCluster:
    """Starts a cluster to be tortured."""
    cluster = kind(data, nodes=nodes, routers=routers, shard_args=shard_args)
    cluster.start()
    return cluster


def play(
    cluster: LocalCluster,
    seed: int,
    number: int,
    blows: Sequence[faults.Fault] | None = None,
    writes_between: int = 40,
    wait_s: float = 4.0,
    settle: bool = True,
) -> Round:
    """Plays one round on a cluster whose processes all run.

    Args:
        cluster: started.
        seed: decides the round, together with its number.
        number: of the round.
        blows: the faults, where it is not the seed that chooses them.
        writes_between: acknowledged before a fault that comes after recovery.
        wait_s: how long they are waited for; then the fault comes all the same.
        settle: at the end, wait until nothing is left to seal, encode and merge, and read everything again.
    """
    rng = np.random.default_rng([seed, number])
    played = Round(number)
    name = f"round-{seed}-{number}"
    shards = int(rng.integers(1, 4))
    routers = [process.address for key, process in cluster.processes.items() if key.startswith("router")]
    with vectorfleet.Client(routers[0], timeout=_RECOVERY_S) as client:
        index = vectorfleet.IndexOptions(train_points=TRAIN_POINTS)
        uid = client.create_collection(name, dim=workload.DIM, metric="l2", shards=shards, index=index).uid
    placement = HashPlacement([ShardAssignment(n, *ends) for n, ends in enumerate(hash_ranges(shards))])
    book, recorder, stop = workload.Book(), history.Recorder(), threading.Event()
    workers = {
        role: workload.Worker(role, routers[at % len(routers)], name, placement, book, recorder)
        for at, role in enumerate(workload.ROLES)
    }
    archive = cluster.data / "backups" / name
    injector = faults.Injector(cluster)
    plan = faults.plan(rng, list(cluster.processes), FAULTS_A_ROUND) if blows is None else blows
    archivist = workload.Worker("archivist", routers[-1], name, placement, book, recorder)
    acts = [
        functools.partial(act, workers[role], np.random.default_rng([seed, number, at]), stop)
        for at, (role, act) in enumerate(workload.ROLES.items())
    ]
    if number % BACKUPS_EVERY == 0:
        acts.append(functools.partial(_back_up_on, archivist, str(archive), stop))
    with ThreadPoolExecutor(len(acts)) as pool:
        at_work = [pool.submit(act) for act in acts]
        try:
            for fault in plan:
                if fault.after_recovery:
                    injector.heal()
                    _wait_for_writes(recorder, writes_between, wait_s)
                injector.do(fault)
            injector.heal()
        except LocalClusterError as error:
            played.problems.append(f"the cluster was not healed: {error}")
        finally:
            stop.set()
        for task in at_work:
            task.result()
    played.hit = injector.hit
    try:
        _read_all(workers["reader"], played)
        if settle:
            with vectorfleet.Client(routers[-1], timeout=_RECOVERY_S) as client:
                client.wait_indexed(name, timeout=_RECOVERY_S)
            _read_all(workers["reader"], played)
        if archivist.backups:
            _restore(archivist, routers[-1], name, str(archive), played)  # the router that it reads from
    except (AssertionError, vectorfleet.VectorfleetError) as error:
        played.problems.append(str(error))
    played.problems += injector.crashed
    played.problems += [f"{key} does not run" for key, process in cluster.processes.items() if process.pid is None]
    for worker in (*workers.values(), archivist):
        worker.close()
    shutil.rmtree(archive, ignore_errors=True)
    _note_background_work(cluster, uid, played)
    played.calls = recorder.calls
    played.verdict = history.check(recorder.calls)
    if not played.failed:
        with vectorfleet.Client(routers[0], timeout=_RECOVERY_S) as client:
            until(lambda: _deleted(client, name), within_s=_RECOVERY_S, what="the collection is deleted")
    return played


def _back_up_on(archivist: workload.Worker, place: str, stop: threading.Event) -> None:
    while not stop.wait(_BACKUP_PAUSE_S):
        archivist.back_up(place)


def _restore(archivist: workload.Worker, router: str, name: str, place: str, played: Round) -> None:
    """Restores the last backup under another name: what it holds is part of the history."""
    backup, _, _ = archivist.backups[-1]
    restored = f"{name}-restored"
    with vectorfleet.Client(router, timeout=_RECOVERY_S) as client:
        client.restore_backup(place, backup=backup, collections={name: restored}, timeout=_RECOVERY_S)
        archivist.note_backup(restored)
        client.delete_collection(restored)
    played.happened["backups"] = len(archivist.backups)


def _wait_for_writes(recorder: history.Recorder, count: int, within_s: float) -> None:
    first = recorder.acknowledged_writes()
    with contextlib.suppress(AssertionError):
        until(lambda: recorder.acknowledged_writes() >= first + count, within_s=within_s, what="writes go on")


def _deleted(client: vectorfleet.Client, name: str) -> bool:
    with contextlib.suppress(vectorfleet.NotFound):
        client.delete_collection(name)
    return True


def _read_all(reader: workload.Worker, played: Round) -> None:
    """Every way to read everything, with nobody writing, as soon as all shards answer."""
    query = np.full(workload.DIM, 0.001, np.float32)
    until(lambda: reader.search_everything(query), within_s=_RECOVERY_S, what="all shards answer")
    assert reader.get(workload.CONTENDED), "the last get failed"
    walked, counted = reader.scroll(), reader.count()
    if walked < 0 or walked != counted:
        played.problems.append(f"at rest, a walk shows {walked} points and a count says {counted}")


def _note_background_work(cluster: LocalCluster, uid: str, played: Round) -> None:
    made = left = encoded = 0
    for segments in cluster.data.glob(f"node-*/replicas/{uid}/*/segments"):
        numbers = [int(path.name) for path in segments.iterdir() if path.name.isdecimal()]
        made += max(numbers, default=0)
        left += len(numbers)
        encoded += len(list(segments.glob("*/index-*")))
    codebooks = {path.stem for path in cluster.data.glob(f"node-*/codebooks/{uid}/*.codebook")}
    played.happened.update(
        {
            "segments made": made,
            "merged away": made - left,
            "encoded": encoded,
            "codebooks": max(map(int, codebooks), default=0),
        }
    )


def _keep(cluster: LocalCluster, seed: int, played: Round, folder: Path) -> Path:
    """Saves a failed round: its history, and the end of each log."""
    here = folder / f"seed-{seed}-round-{played.number}"
    history.save(here / "history.jsonl", played.calls, played.verdict)
    for log in (cluster.data / "logs").glob("*.log"):
        (here / log.name).write_bytes(log.read_bytes()[-_LOG_TAIL_BYTES:])
    return here


def report(played: Round) -> str:
    """Says what a round did, and what was wrong with it; a line for each."""
    happened = ", ".join(f"{count} {what}" for what, count in played.happened.items())
    state = "FAILED" if played.failed else "ok"
    undecided = f"; {len(played.verdict.undecided)} ids undecided" if played.verdict.undecided else ""
    head = f"round {played.number}: {state}; {history.summary(played.calls)}; {happened}; {'; '.join(played.hit)}{undecided}"
    wrong = [*played.problems, *(f"{one.point}: {one.what}" for one in played.verdict.violations)]
    return "\n    ".join([head, *wrong[:_WRONG_SHOWN]])


def main(arguments: Sequence[str] | None = None) -> int:
    """Plays rounds; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.cluster.torture", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--first", type=int, default=1, help="the number of the first round")
    parser.add_argument(
        "--minutes", type=float, default=0.0, help="stop after the round in which this time is over; 0: never"
    )
    parser.add_argument("--keep", type=Path, default=Path("torture-failures"), help="folder of failed rounds")
    given = parser.parse_args(arguments)
    logging.basicConfig(level="WARNING")
    print(f"seed {given.seed}, rounds {given.first} to {given.first + given.rounds - 1}", flush=True)
    began, done, failed, totals = time.monotonic(), 0, [], Counter[str]()
    data = Path(tempfile.mkdtemp(prefix="vectorfleet-torture-"))
    cluster = start(data)
    try:
        for number in range(given.first, given.first + given.rounds):
            played = play(cluster, given.seed, number)
            done += 1
            totals.update(played.happened, calls=len(played.calls), faults=len(played.hit))
            print(report(played), flush=True)
            if played.failed:
                failed.append(number)
                print(f"    kept in {_keep(cluster, given.seed, played, given.keep)}", flush=True)
                cluster.stop()
                shutil.rmtree(data)
                cluster = start(data)
            if given.minutes and time.monotonic() - began > 60 * given.minutes:
                break
    finally:
        cluster.stop()
        shutil.rmtree(data, ignore_errors=True)
    print(f"seed {given.seed}: {done} rounds in {time.monotonic() - began:.0f} s, {len(failed)} failed {failed or ''}")
    print(", ".join(f"{count} {what}" for what, count in totals.items()))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
