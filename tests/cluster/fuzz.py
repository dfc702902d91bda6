"""Sends malformed and extreme requests to every RPC of a real cluster, and looks that none of them does harm.

    python -m tests.cluster.fuzz --requests 20000 --seed 1

Public services are asked through the router, the internal one at the shard server. What counts as harm: a process that ends;
an answer of INTERNAL, UNKNOWN or DATA_LOSS; a connection that breaks; a refused request that changed something; an accepted one
that left something else than it said, or something that the contract forbids; a log that grows with the requests, or tells of an
error: what a request left behind may fail later, in background work.

Which RPCs there are is read from the descriptors. One that writes points (`_WRITING`) is asked one request after another, on a
collection of its own that is compared with a plain dictionary; the others are asked many at a time, on one that must stay as
it is. That one is large enough to be trained and encoded. What makes collections or keys (`_MAKING`) is undone at once,
and so is what changes the logging (`_TUNING`): a line for each query is what such a request asks for.
The router wants a credential: without one, there are no keys to be made.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import itertools
import os
import random
import shutil
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import grpc
import numpy as np
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import status_pb2

import vectorfleet
from tests.cluster.fuzz_target import Points, Target, cluster_with_a_key
from tests.cluster.requests import Requests, floats
from tests.cluster.sound_requests import DIM, STILL, hints, mend
from vectorfleet import errors, limits
from vectorfleet.internal.v1 import shard_service_pb2
from vectorfleet.rpc_options import CHANNEL_OPTIONS
from vectorfleet.v1 import (
    cluster_service_pb2,
    collection_service_pb2,
    key_service_pb2,
    point_service_pb2,
    search_service_pb2,
)

FILES: Final = (
    cluster_service_pb2, collection_service_pb2, key_service_pb2, point_service_pb2, search_service_pb2, shard_service_pb2,
)  # fmt: skip
AT_ONCE: Final = 24
TIMEOUT_S: Final = 2.5
CHECK_EVERY: Final = 500
LOG_LINES_EVERY: Final = 100
"""Requests for one line of a log, at least."""
_LOG_LINES_FREE: Final = 50
_LOG_LINES_WHEN_DONE: Final = 20
_WRITING: Final = frozenset({"Upsert", "Delete", "BulkUpsert", "Write"})
_MAKING: Final = frozenset({"CreateCollection", "CreateKey", "RestoreBackup"})
_MAKING_AT_ONCE: Final = 4
_TUNING: Final = frozenset({"SetDiagnostics", "Tune"})
_TOLD: Final = frozenset({"CreateCollection", "CreateBackup", "RestoreBackup"})
"""What is worth lines of a log when it is done."""
_HARM: Final = frozenset({grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN})
_PREFACES: Final = (
    b"", b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0",
)  # fmt: skip
_HARM_REASONS: Final = frozenset({"INTERNAL", "UNREACHABLE", "DATA_LOSS", "MESSAGE_TOO_LARGE"})
"""UNREACHABLE and MESSAGE_TOO_LARGE are what gRPC itself says: of a broken connection, and of an answer that it cannot take."""
_SAID_BY_THE_CLIENT: Final = "Internal error from Core"
"""What grpc.aio makes of a message that it could not send any more, the server having refused the one before."""
_FINDINGS_KEPT: Final = 10
_EPOCH_MAX: Final = 10


@dataclass(slots=True)
class Report:
    """What became of the requests to one RPC."""

    method: str
    codes: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)

    def find(self, what: str, request: Sequence[bytes] = ()) -> None:
        """Notes harm, and the request that did it."""
        if len(self.findings) < _FINDINGS_KEPT:
            self.findings.append(f"{what}; request {[content[:300].hex() for content in request]}")


def methods() -> list[MethodDescriptor]:
    """Every RPC of the contract."""
    services = [service for file in FILES for service in file.DESCRIPTOR.services_by_name.values()]
    return [method for service in services for method in service.methods]


def run(target: Target, method: MethodDescriptor, count: int, seed: int) -> Report:
    """Sends `count` requests to one RPC; blocks."""
    changing = method.name in _WRITING
    name = f"for-{method.name}" if changing else STILL
    target.prepare_once(name)
    before, lines, failures = target.points(name), target.log_lines(), Counter(target.logged_errors())
    report = Report(method.full_name)
    key = target.client.keys.create(["read:nothing"]).key.id if target.metadata else ""
    place = str(target.cluster.data / "backups" / "fuzz")
    requests = Requests(f"{seed} {method.full_name}", hints(name, *target.place(name), place, key), mend)
    asyncio.run(_Campaign(target, method, name, requests, report).run(count))
    target.remove_what_was_made()
    if method.name in _TUNING:
        target.reset_diagnostics()
    if not changing and target.points(name) != before:
        report.find("the collection has changed")
    told = _LOG_LINES_WHEN_DONE * report.codes["OK"] if method.name in _TOLD else 0
    if (grown := target.log_lines() - lines - told) > _LOG_LINES_FREE + count // LOG_LINES_EVERY:
        report.find(f"the logs grew by {grown} lines in {count} requests")
    for line in Counter(target.logged_errors()) - failures:
        report.find(f"logged: {line}")
    _look_at_processes(target, report)
    return report


def run_garbage(target: Target, count: int, seed: int) -> Report:
    """Opens `count` connections to each server and sends what is no HTTP/2; blocks. What counts is that others are served on."""
    report, chance = Report("connections"), random.Random(f"{seed} connections")
    target.prepare_once(STILL)
    servers = [process.address for name, process in target.cluster.processes.items() if name != "etcd"]
    for number in range(count):
        for address in servers:
            host, _, port = address.rpartition(":")
            with socket.create_connection((host, int(port)), timeout=TIMEOUT_S) as connection:
                with contextlib.suppress(OSError):  # it may hang up on us
                    connection.sendall(chance.choice(_PREFACES) + chance.randbytes(chance.choice((0, 1, 9, 100, 5000))))
                report.codes["sent"] += 1
        if number % 20 == 0:
            target.points(STILL)
    _look_at_processes(target, report)
    return report


def _look_at_processes(target: Target, report: Report) -> None:
    for process, pid in target.pids.items():
        if target.cluster.processes[process].pid != pid:
            report.find(f"{process} ended with {target.cluster.processes[process].exit_code}")


class _Campaign:
    """All requests to one RPC."""

    def __init__(self, target: Target, method: MethodDescriptor, name: str, requests: Requests, report: Report) -> None:
        self._target = target
        self._method = method
        self._name = name
        self._requests = requests
        self._report = report
        self._request_type = GetMessageClass(method.input_type)
        self._response_type = GetMessageClass(method.output_type)
        self._metadata = () if ".internal." in method.full_name else target.metadata
        self._expected: Points = {}

    async def run(self, count: int) -> None:
        internal = ".internal." in self._method.full_name
        address = self._target.place(self._name)[1] if internal else self._target.cluster.address
        async with grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
            call = self._caller(channel)
            batches = [self._batch() for _ in range(count)]
            if self._method.name not in _WRITING:
                queue = iter(batches)
                at_once = _MAKING_AT_ONCE if self._method.name in _MAKING else AT_ONCE
                await asyncio.gather(*(self._work(call, queue) for _ in range(at_once)))
                return
            self._expected = self._target.points(self._name)
            for number, batch in enumerate(batches, 1):
                await self._change(call, batch)
                if number % CHECK_EVERY == 0 or number == count:
                    self._compare(batch)

    def _batch(self) -> list[bytes]:
        """The next request; several messages where the RPC takes a stream."""
        size = self._requests.below(4) if self._method.client_streaming else 1
        batch: list[bytes] = []
        while len(batch) < size:
            content = self._requests.next_bytes(self._request_type)
            if self._may_be_sent(content):
                batch.append(content)
        return batch

    def _may_be_sent(self, content: bytes) -> bool:
        """Leaves out what is no fault and would cost minutes, or leave this machine."""
        message = self._parsed(content)
        if getattr(message, "epoch", 0) > _EPOCH_MAX and self._requests.below(100):
            return False  # the node waits for such a shard map
        if isinstance(message, collection_service_pb2.CreateCollectionRequest):
            spec = message.spec
            return not 8 < spec.shards <= limits.SHARDS_MAX and spec.embedding_model in ("", "/no/such/model")
        if isinstance(message, shard_service_pb2.TrainCodebookRequest):
            known = {"", "nonsense", "127.0.0.1:1", *(one.address for one in self._target.cluster.processes.values())}
            return all(source.address in known for source in message.sources)
        return True

    def _parsed(self, content: bytes) -> Message | None:
        try:
            return self._request_type.FromString(content)
        except DecodeError:
            return None

    def _caller(self, channel: grpc.aio.Channel) -> Callable[[Sequence[bytes]], Any]:
        path = f"/{self._method.containing_service.full_name}/{self._method.name}"
        streams = (self._method.client_streaming, self._method.server_streaming)
        make = {
            (False, False): channel.unary_unary,
            (False, True): channel.unary_stream,
            (True, False): channel.stream_unary,
            (True, True): channel.stream_stream,
        }[streams]
        call = make(path, request_serializer=None, response_deserializer=self._response_type.FromString)

        async def ask(batch: Sequence[bytes]) -> list[Message]:
            sent: Any = _each(batch) if streams[0] else batch[0]
            if streams[1]:
                return [response async for response in call(sent, timeout=TIMEOUT_S, metadata=self._metadata)]
            return [await call(sent, timeout=TIMEOUT_S, metadata=self._metadata)]

        return ask

    async def _work(self, call: Callable[[Sequence[bytes]], Any], queue: Iterable[list[bytes]]) -> None:
        for batch in queue:
            answer = await self._ask(call, batch)
            accepted = not isinstance(answer, errors.VectorfleetError)
            if accepted and self._method.name == "DeleteCollection":
                self._report.find("a collection was deleted", batch)
            # Past its deadline, it may have been made.
            if self._method.name in _MAKING and (accepted or answer.reason == "DEADLINE_EXCEEDED"):
                await asyncio.to_thread(self._undo, self._parsed(batch[0]), [] if not accepted else answer)

    def _undo(self, message: Any, answers: Sequence[Message]) -> None:
        """Deletes what a request has made."""
        made = []
        for answer in answers:
            if isinstance(answer, key_service_pb2.CreateKeyResponse):
                self._target.client.keys.revoke(answer.key.id)
        if isinstance(message, collection_service_pb2.CreateCollectionRequest):
            made = [message.spec.name]
        elif isinstance(message, cluster_service_pb2.RestoreBackupRequest):
            made = [one.name for one in self._target.client.list_collections()] if not message.collections else []
            made += [target.name or target.collection for target in message.collections]
        for name in made:
            if name != STILL and not name.startswith("for-"):
                # A request that was late may have named what cannot be.
                with contextlib.suppress(vectorfleet.NotFound, vectorfleet.InvalidRequest):
                    self._target.client.delete_collection(name)

    async def _ask(
        self, call: Callable[[Sequence[bytes]], Any], batch: Sequence[bytes]
    ) -> errors.VectorfleetError | list[Message]:
        try:
            responses: list[Message] = await call(batch)
        except grpc.aio.AioRpcError as error:
            failure = errors.from_rpc_error(error)
            self._report.codes[failure.reason] += 1
            harm = error.code() in _HARM or failure.reason in _HARM_REASONS
            if harm and error.details() != _SAID_BY_THE_CLIENT:
                self._report.find(f"answered {error.code().name}: {failure}", batch)
            return failure
        self._report.codes["OK"] += 1
        for response in responses:
            self._look_inside(response, batch)
        return responses

    def _look_inside(self, response: Message, batch: Sequence[bytes]) -> None:
        """Answers that carry errors of their own."""
        reasons = [gap.reason for gap in response.coverage.missing] if hasattr(response, "coverage") else []
        if isinstance(response, shard_service_pb2.SearchResponse):
            reasons = [result.error_reason for result in response.results]
        if isinstance(response, search_service_pb2.SearchStreamResponse) and response.error:
            reasons = [errors.from_status(status_pb2.Status.FromString(response.error)).reason]
            self._report.codes[reasons[0]] += 1
        if {"INTERNAL", "DATA_LOSS"} & set(reasons):
            self._report.find(f"answered with {str(response)[:300]}", batch)

    # ------------------------------------------------------------------ what changes state

    async def _change(self, call: Callable[[Sequence[bytes]], Any], batch: Sequence[bytes]) -> None:
        answer = await self._ask(call, batch)
        accepted = not isinstance(answer, errors.VectorfleetError)
        messages = [self._parsed(content) for content in batch]
        if accepted and None in messages:
            self._report.find("a request that does not parse was accepted", batch)
        elif accepted:
            for message in messages:
                self._accept(message)
        elif self._method.client_streaming or answer.retryable:  # some of it may have been written
            self._expected = self._target.points(self._name)

    def _accept(self, message: Any) -> None:
        """What an accepted request has changed."""
        if isinstance(message, point_service_pb2.DeleteRequest):
            self._remove(message.ids)
        elif isinstance(message, shard_service_pb2.WriteRequest):
            self._remove(message.mutation.delete.ids)
            upsert = message.mutation.upsert
            self._put(upsert.ids, upsert.vectors, upsert.payloads)
        elif message.packed.ids:
            self._put(message.packed.ids, message.packed.vectors, message.packed.payloads)
        else:
            for point in message.points:
                vector = floats(*point.values.values) if point.HasField("values") else point.vector
                self._put([point.id], vector, [point.payload])

    def _put(self, ids: Sequence[str], vectors: bytes, payloads: Sequence[bytes]) -> None:
        rows = [vectors[at : at + 4 * DIM] for at in range(0, len(vectors), 4 * DIM)]
        for point, vector, payload in itertools.zip_longest(ids, rows, payloads, fillvalue=b""):
            self._expected[str(point)] = (bytes(vector), bytes(payload))

    def _remove(self, ids: Iterable[str]) -> None:
        for point in ids:
            self._expected.pop(point, None)

    def _compare(self, batch: Sequence[bytes]) -> None:
        found = self._target.points(self._name)
        if found != self._expected:
            wrong = sorted(
                point for point in found.keys() | self._expected.keys() if found.get(point) != self._expected.get(point)
            )
            self._report.find(
                f"{self._name} does not hold what was accepted: {[point[:20] for point in wrong[:5]]}", batch
            )
            self._expected = found
        for point, (vector, _) in found.items():
            if not (
                1 <= len(point.encode()) <= limits.ID_BYTES_MAX and np.isfinite(np.frombuffer(vector, "<f4")).all()
            ):
                self._report.find(f"{self._name} holds what the contract forbids: {point[:20]!r}")
        shown = self._target.client.search(self._name, vectors=[[0.0] * DIM], k=limits.K_MAX, exact=True).hits[0]
        if sorted(hit.id for hit in shown) != sorted(found):
            self._report.find(f"a search of {self._name} does not show what a walk does")


async def _each(batch: Sequence[bytes]) -> AsyncIterator[bytes]:
    for content in batch:
        yield content


def main(arguments: Sequence[str] | None = None) -> int:
    """Fuzzes every RPC; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.cluster.fuzz", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--requests", type=int, default=20_000, help="to each RPC")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--only", nargs="*", default=(), help="names of RPCs; none: all")
    given = parser.parse_args(arguments)
    print(f"seed {given.seed}, {given.requests} requests to each RPC", flush=True)
    data = Path(tempfile.mkdtemp(prefix="vectorfleet-fuzz-"))
    harmed = 0
    os.environ["HF_HUB_OFFLINE"] = "1"  # a name of a model must not be looked for elsewhere
    with cluster_with_a_key(data) as cluster, Target(cluster) as target:
        campaigns = [
            (method.name, functools.partial(run, target, method, given.requests, given.seed)) for method in methods()
        ]
        campaigns.append(
            ("connections", functools.partial(run_garbage, target, max(1, given.requests // 100), given.seed))
        )
        for name, campaign in campaigns:
            if given.only and name not in given.only:
                continue
            began = time.monotonic()
            report = campaign()
            codes = ", ".join(f"{count} {code}" for code, count in report.codes.most_common())
            print(f"{report.method}: {codes} ({time.monotonic() - began:.0f} s)", flush=True)
            for finding in report.findings:
                print(f"    {finding[:1500]}", flush=True)
            harmed += bool(report.findings)
    shutil.rmtree(data, ignore_errors=True)
    print(f"seed {given.seed}: {harmed} RPCs were harmed")
    return 1 if harmed else 0


if __name__ == "__main__":
    sys.exit(main())
