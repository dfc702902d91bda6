"""Backups, as the two clients speak of them: values, requests, and the call that tells how far it is until it is done."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import grpc

from vectorfleet import _arguments as arguments
from vectorfleet import errors
from vectorfleet._calls import Calls
from vectorfleet._credentials import Metadata
from vectorfleet.v1 import cluster_service_pb2 as pb

RequestT = TypeVar("RequestT")
ResponseT = TypeVar("ResponseT", pb.CreateBackupResponse, pb.RestoreBackupResponse)


@dataclass(frozen=True, slots=True)
class TransferProgress:
    """How far a backup or a restore has come; totals grow until every shard has said what it has to move.

    Attributes:
        shards_total: shards that take part.
        shards_done: of those, the ones that are done.
        bytes_total: to be moved, as far as known.
        bytes_done: of those, moved.
        bytes_reused: that need not be moved: an earlier backup left them at the destination.
    """

    shards_total: int
    shards_done: int
    bytes_total: int
    bytes_done: int
    bytes_reused: int


@dataclass(frozen=True, slots=True)
class BackedUpCollection:
    """One collection of a backup; `seqnos` says of each shard which write is the last one in it."""

    name: str
    seqnos: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Backup:
    """A complete backup.

    Attributes:
        id: unique within its destination; later ones sort behind.
        destination: where it is.
        create_time: when it began.
        collections: what is in it.
        objects: files that it consists of.
        bytes: of those files.
        new_objects: objects that it had to write; the rest was there from earlier backups.
        new_bytes: of those objects.
    """

    id: str
    destination: str
    create_time: datetime.datetime
    collections: tuple[BackedUpCollection, ...]
    objects: int
    bytes: int
    new_objects: int
    new_bytes: int


@dataclass(frozen=True, slots=True)
class RestoredBackup:
    """What was restored: the id of the backup, and the names of the collections made."""

    id: str
    collections: tuple[str, ...]


OnProgress = Callable[[TransferProgress], None]
"""Told several times a second how far it is."""


def create_request(destination: str, collections: Iterable[str] | None) -> pb.CreateBackupRequest:
    """Makes the request of a backup. Raises `InvalidRequest`."""
    names = [] if collections is None else arguments.names(collections)
    return pb.CreateBackupRequest(destination=arguments.text(destination, "destination"), collections=names)


def restore_request(
    source: str, backup: str, collections: Iterable[str] | Mapping[str, str] | None
) -> pb.RestoreBackupRequest:
    """Makes the request of a restore. Raises `InvalidRequest`."""
    renamed = collections if isinstance(collections, Mapping) else {}
    names = [] if collections is None else arguments.names(collections)
    return pb.RestoreBackupRequest(
        source=arguments.text(source, "source"),
        backup=arguments.text(backup, "backup"),
        collections=[
            pb.RestoreTarget(collection=name, name=arguments.text(renamed.get(name, ""), f"collections[{name!r}]"))
            for name in names
        ],
    )


def progress_of(message: pb.TransferProgress) -> TransferProgress:
    """Reads how far it is."""
    return TransferProgress(
        message.shards_total, message.shards_done, message.bytes_total, message.bytes_done, message.bytes_reused
    )


def backup_of(message: pb.Backup) -> Backup:
    """Reads a complete backup."""
    return Backup(
        id=message.id,
        destination=message.destination,
        create_time=message.create_time.ToDatetime(tzinfo=datetime.UTC),
        collections=tuple(BackedUpCollection(one.name, tuple(one.seqnos)) for one in message.collections),
        objects=message.objects,
        bytes=message.bytes,
        new_objects=message.new_objects,
        new_bytes=message.new_bytes,
    )


def followed(
    method: grpc.UnaryStreamMultiCallable[RequestT, ResponseT],
    request: RequestT,
    timeout: float,
    on_progress: OnProgress | None,
    calls: Calls,
) -> ResponseT:
    """Makes a call and follows it to its end; returns its last message. Raises what `calls` makes of a channel's error."""
    try:
        call = method(request, timeout=arguments.seconds(timeout), metadata=calls.metadata())
    except ValueError as error:
        raise calls.failure(error) from error
    last = None
    try:
        for last in call:
            if on_progress is not None:
                on_progress(progress_of(last.progress))
    except grpc.RpcError as error:
        raise calls.failure(error) from error
    finally:
        call.cancel()  # where the caller's function raised, or an interrupt came
    return _whole(last)


async def followed_async(
    method: grpc.aio.UnaryStreamMultiCallable[RequestT, ResponseT],
    request: RequestT,
    timeout: float,  # noqa: ASYNC109 (of the call, not of a task)
    on_progress: OnProgress | None,
    metadata: Metadata | None,
    failure: Callable[[BaseException], errors.VectorfleetError],
) -> ResponseT:
    """The same on an event loop."""
    call = method(request, timeout=arguments.seconds(timeout), metadata=metadata)
    last = None
    try:
        async for last in call:
            if on_progress is not None:
                on_progress(progress_of(last.progress))
    except (grpc.RpcError, grpc.aio.UsageError, asyncio.CancelledError) as error:
        raise failure(error) from error
    finally:
        call.cancel()  # where the caller's function raised
    return _whole(last)


def _whole(last: ResponseT | None) -> ResponseT:
    if last is None:
        raise errors.InternalError("the router ended the call without an answer")
    return last
