"""A thin asyncio client of etcd's v3 API: ranges, compare-and-swap, leases, watches, users, TLS.

The one file that speaks etcd's protocol; it knows nothing of collections or nodes. Why not a package:
docs/decisions/0002-etcd-client.md. It keeps to one endpoint while that answers and turns to the next when it does not; each
endpoint has a channel of its own, so that host names, addresses and TLS names all work as they stand.

Invariants: no call waits for ever (a watch that stays quiet is asked for a sign of life). A swap whose answer was lost may be
tried again: see `swap`. Whatever etcd or the way to it fails with becomes `Unavailable`/COORDINATOR_UNAVAILABLE.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import grpc

from vectorfleet import limits
from vectorfleet.errors import Unavailable
from vectorfleet.internal.etcd.v1 import auth_pb2, kv_pb2, lease_pb2, watch_pb2
from vectorfleet.rpc_options import CHANNEL_OPTIONS
from vectorfleet.tls import TlsFiles, TlsWatch

RETRY_PAUSE_S: Final = 0.2
VALUE_BYTES_MAX: Final = 1_500_000
"""etcd's own limit on a request is 1.5 MiB by default."""
PAGE_KEYS: Final = 40
"""Keys of one page of a load."""

assert PAGE_KEYS * VALUE_BYTES_MAX < limits.MESSAGE_BYTES_MAX, "a page of the largest values must fit a message"

_KEEPALIVE_OPTIONS: Final = (
    *CHANNEL_OPTIONS,
    ("grpc.enable_http_proxy", 0),  # etcd stands beside us: a proxy for the world outside is not on the way
)
_FINAL_CODES: Final = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)
"""etcd has understood and refused: no other endpoint would answer otherwise."""
_TOKEN_REFUSALS: Final = ("invalid auth token", "revision of auth store is old", "user name is empty")
"""What etcd says of a token that it has forgotten (it restarts, or the token lapses) or that was made for older rules."""

_log = logging.getLogger(__name__)
T = TypeVar("T")


class LeaseGone(Exception):
    """The lease has lapsed or was revoked, and its keys went with it."""


@dataclass(frozen=True, slots=True)
class EtcdTls:
    """How to trust etcd and how to be trusted by it: PEM files, read again when they change."""

    ca: Path | None = None
    """Who signs etcd's certificates; None: gRPC's default roots."""
    certificate: Path | None = None
    """Of this client, where etcd asks for one."""
    key: Path | None = None
    server_name: str = ""
    """The name that etcd's certificate must bear; "": the endpoint's."""

    def watch(self) -> TlsWatch:
        """Reads the files. Raises `ValueError` where they cannot be used."""
        return TlsWatch(TlsFiles(self.ca, self.certificate, self.key))


@dataclass(frozen=True, slots=True)
class EtcdTimeouts:
    """How long etcd may take."""

    call_s: float = 5.0
    """One call with all its attempts: an election among etcd's members takes about two seconds."""
    attempt_s: float = 2.0
    """One attempt, where there is another endpoint to turn to."""
    quiet_s: float = 5.0
    """A watch that was quiet for so long is asked for a sign of life; without one for as long again, it is dead."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A key as it stands, or, with `value` None, one that was deleted."""

    key: str
    value: bytes | None
    mod_revision: int
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Swap:
    """The outcome of a compare-and-swap."""

    swapped: bool
    revision: int
    current: Entry | None = None
    """Where it was refused: the key as it stood then; None: it did not exist."""


class EtcdClient:
    """Calls one etcd cluster; to be used from one event loop."""

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        tls: EtcdTls | None = None,
        username: str = "",
        password: str = "",
        timeouts: EtcdTimeouts | None = None,
    ) -> None:
        """Connects when first used.

        Args:
            endpoints: host:port of one or more members.
            tls: None: in the clear.
            username: of etcd's own users; "": none.
            password: of that user.
            timeouts: None: the usual ones.

        Raises:
            ValueError: no endpoint, or one that is not host:port; or a file of `tls` cannot be used.
        """
        if not endpoints:
            raise ValueError("etcd needs at least one endpoint")
        for endpoint in endpoints:
            if "/" in endpoint or not endpoint.rpartition(":")[2].isdecimal():
                raise ValueError(f"an endpoint of etcd is host:port, not {endpoint!r}")
        if username and tls is None:
            _log.warning("the password of etcd's user %s travels in the clear: use TLS", username)
        self._endpoints = tuple(endpoints)
        self._server_name = "" if tls is None else tls.server_name
        self._certificates = None if tls is None else tls.watch()
        self._channels = self._dial()
        self._current = 0
        self._user = (username, password)
        self._token: str | None = None
        self._timeouts = timeouts or EtcdTimeouts()

    async def close(self) -> None:
        """Ends all calls and closes the channels."""
        await asyncio.gather(*(channel.close() for channel in self._channels))

    # ------------------------------------------------------------------ keys

    async def load(self, prefix: str) -> tuple[int, list[Entry]]:
        """Reads all keys below a prefix as they stood together at one revision, agreed by a quorum."""
        entries: list[Entry] = []
        end = _prefix_end(prefix)
        request = kv_pb2.RangeRequest(key=prefix.encode(), range_end=end, limit=PAGE_KEYS)
        while True:
            page = await self._unary("KV/Range", request, kv_pb2.RangeResponse)
            if request.revision == 0:
                request.revision = page.header.revision
            entries += [_entry(kv) for kv in page.kvs]
            if not page.more:
                return request.revision, entries
            request.key = page.kvs[-1].key + b"\0"

    async def put(self, key: str, value: bytes, lease: int = 0) -> int:
        """Writes a key whatever it was; returns the revision. Raises `LeaseGone`."""
        response = await self._unary("KV/Put", _put(key, value, lease), kv_pb2.PutResponse)
        return int(response.header.revision)

    async def swap(
        self, key: str, expected: int, value: bytes | None, *, lease: int = 0, also: tuple[str, bytes] | None = None
    ) -> Swap:
        """Replaces a key that is still as expected, in one transaction.

        An attempt whose answer was lost is made again, and may then find its own result: the caller takes a refusal that shows
        exactly the value that it wanted to write for success.

        Args:
            key: what to compare and replace.
            expected: the key's mod_revision; 0: it does not exist.
            value: the new value; None: delete it.
            lease: that the new value shall live under.
            also: a further (key, value) to write.

        Raises:
            LeaseGone: the lease has lapsed.
            Unavailable: etcd did not answer in time; the swap may have happened.
        """
        name = key.encode()
        compare = kv_pb2.Compare(
            result=kv_pb2.COMPARE_RESULT_EQUAL,
            target=kv_pb2.COMPARE_TARGET_MOD,
            key=name,
            mod_revision=expected,
        )
        operation = (
            kv_pb2.RequestOp(request_delete_range=kv_pb2.DeleteRangeRequest(key=name))
            if value is None
            else kv_pb2.RequestOp(request_put=_put(key, value, lease))
        )
        operations = [operation]
        if also is not None:
            operations.append(kv_pb2.RequestOp(request_put=_put(*also, 0)))
        request = kv_pb2.TxnRequest(
            compare=[compare],
            success=operations,
            failure=[kv_pb2.RequestOp(request_range=kv_pb2.RangeRequest(key=name))],
        )
        response = await self._unary("KV/Txn", request, kv_pb2.TxnResponse)
        found = [] if response.succeeded else response.responses[0].response_range.kvs
        return Swap(response.succeeded, response.header.revision, _entry(found[0]) if found else None)

    # ------------------------------------------------------------------ leases

    async def grant(self, ttl_s: int) -> tuple[int, int]:
        """Makes a lease; returns its id and the seconds that etcd gives it, which may be more than asked."""
        response = await self._unary(
            "Lease/LeaseGrant", lease_pb2.LeaseGrantRequest(ttl=ttl_s), lease_pb2.LeaseGrantResponse
        )
        return response.id, response.ttl

    async def keep_alive(self, lease: int, timeout_s: float) -> int:
        """Renews a lease; returns its new seconds. Raises `LeaseGone`."""

        async def attempt(channel: grpc.aio.Channel, metadata: Metadata, attempt_s: float) -> Any:
            call = _method(channel.stream_stream, "Lease/LeaseKeepAlive", lease_pb2.LeaseKeepAliveResponse)(
                metadata=metadata, timeout=attempt_s
            )
            try:
                await call.write(lease_pb2.LeaseKeepAliveRequest(id=lease))
                await call.done_writing()
                return await call.read()
            finally:
                call.cancel()

        response = await self._attempts(attempt, timeout_s)
        if response is grpc.aio.EOF:
            raise _unavailable("etcd ended a renewal without an answer")
        if response.ttl <= 0:
            raise LeaseGone
        return int(response.ttl)

    async def revoke(self, lease: int, timeout_s: float) -> None:
        """Ends a lease, and with it its keys, at once. One that is gone already is fine."""
        request = lease_pb2.LeaseRevokeRequest(id=lease)
        with suppress(LeaseGone):
            await self._unary("Lease/LeaseRevoke", request, lease_pb2.LeaseRevokeResponse, timeout_s)

    # ------------------------------------------------------------------ watches

    async def watch(self, prefix: str, revision: int) -> AsyncGenerator[list[Entry], None]:
        """Streams the changes below a prefix from a revision on, in order; all those of one revision come together.

        Yields an empty list when the watch stands and whenever it has shown a sign of life. Close the iterator
        (`contextlib.aclosing`).

        Raises:
            Unavailable: it broke, it is silent, the member lost its quorum, or the revision is compacted: load again.
        """
        self._renew()
        endpoint = self._current
        metadata = (*await self._metadata(self._timeouts.call_s), ("hasleader", "true"))
        call = _method(self._channels[endpoint].stream_stream, "Watch/Watch", watch_pb2.WatchResponse)(
            metadata=metadata
        )
        create = watch_pb2.WatchCreateRequest(
            key=prefix.encode(), range_end=_prefix_end(prefix), start_revision=revision, progress_notify=True
        )
        try:
            async with asyncio.timeout(self._timeouts.call_s):
                await call.write(watch_pb2.WatchRequest(create_request=create))
            async with aclosing(_with_signs_of_life(call, self._timeouts.quiet_s)) as responses:
                async for response in responses:
                    if response.compact_revision:
                        raise _unavailable(f"etcd has compacted revision {revision}")
                    if response.canceled:
                        self._token = None  # a forgotten token is refused as "permission denied" here
                        self._turn_from(endpoint)
                        raise _unavailable(f"etcd ended the watch: {response.cancel_reason}")
                    yield [_entry(event.kv, event.type == watch_pb2.EVENT_TYPE_DELETE) for event in response.events]
            self._turn_from(endpoint)
            raise _unavailable("etcd ended the watch")
        except grpc.aio.AioRpcError as error:
            self._turn_from(endpoint)
            raise _unavailable(f"the watch of etcd at {self._endpoints[endpoint]} broke: {error.details()}") from error
        except TimeoutError as error:
            self._turn_from(endpoint)
            raise _unavailable(f"etcd at {self._endpoints[endpoint]} is silent") from error
        finally:
            call.cancel()

    # ------------------------------------------------------------------ calls

    async def _unary(
        self, method: str, request: Any, response_type: Any, timeout_s: float | None = None, *, user: bool = True
    ) -> Any:
        async def attempt(channel: grpc.aio.Channel, metadata: Metadata, attempt_s: float) -> Any:
            return await _method(channel.unary_unary, method, response_type)(
                request, metadata=metadata, timeout=attempt_s
            )

        return await self._attempts(attempt, timeout_s or self._timeouts.call_s, user=user)

    async def _attempts(self, attempt: Attempt[T], timeout_s: float, *, user: bool = True) -> T:
        """Makes a call, at one endpoint after the other, until one answers or the time is up."""
        now = asyncio.get_running_loop().time
        until = now() + timeout_s
        while True:
            self._renew()
            endpoint = self._current
            metadata = await self._metadata(until - now()) if user else ()
            attempt_s = until - now() if len(self._endpoints) == 1 else min(until - now(), self._timeouts.attempt_s)
            try:
                return await attempt(self._channels[endpoint], metadata, attempt_s)
            except grpc.aio.AioRpcError as error:
                details = error.details() or ""
                forgotten = self._token is not None and any(refusal in details for refusal in _TOKEN_REFUSALS)
                if forgotten:
                    self._token = None
                elif error.code() in _FINAL_CODES:
                    if "lease not found" in details:
                        raise LeaseGone from error
                    raise _unavailable(f"etcd refuses: {details}") from error
                else:
                    self._turn_from(endpoint)
                if until - now() <= RETRY_PAUSE_S:
                    message = f"etcd at {', '.join(self._endpoints)} does not answer: {details}"
                    raise _unavailable(message) from error
            await asyncio.sleep(RETRY_PAUSE_S)

    async def _metadata(self, timeout_s: float) -> Metadata:
        name, password = self._user
        if not name:
            return ()
        if self._token is None:
            request = auth_pb2.AuthenticateRequest(name=name, password=password)
            try:
                response = await self._unary(
                    "Auth/Authenticate", request, auth_pb2.AuthenticateResponse, timeout_s, user=False
                )
            except Unavailable as error:
                if "authentication is not enabled" not in error.message:
                    raise
                return ()  # users are prepared and not switched on yet
            self._token = str(response.token)
        return (("token", self._token),)

    def _renew(self) -> None:
        # Calls are few here: three looks at files are nothing beside one. What is under way keeps its old channel.
        if self._certificates is not None and self._certificates.look():
            self._channels = self._dial()

    def _dial(self) -> list[grpc.aio.Channel]:
        if self._certificates is None:
            return [grpc.aio.insecure_channel(endpoint, options=_KEEPALIVE_OPTIONS) for endpoint in self._endpoints]
        options: list[tuple[str, Any]] = list(_KEEPALIVE_OPTIONS)
        if self._server_name:
            options.append(("grpc.ssl_target_name_override", self._server_name))
        credentials = self._certificates.material.channel_credentials()
        return [grpc.aio.secure_channel(endpoint, credentials, options=options) for endpoint in self._endpoints]

    def _turn_from(self, endpoint: int) -> None:
        # Calls that failed together turn once.
        if self._current == endpoint:
            self._current = (endpoint + 1) % len(self._endpoints)


Metadata = tuple[tuple[str, str], ...]
Attempt = Callable[[grpc.aio.Channel, Metadata, float], Awaitable[T]]


async def _with_signs_of_life(call: Any, quiet_s: float) -> AsyncGenerator[watch_pb2.WatchResponse, None]:
    """Reads a watch to its end; raises `TimeoutError` when it stays silent although it was asked for a sign of life."""
    progress = watch_pb2.WatchRequest(progress_request=watch_pb2.WatchProgressRequest())
    asked = False
    reading = asyncio.ensure_future(call.read())
    try:
        while True:
            await asyncio.wait([reading], timeout=quiet_s)  # a read that is cancelled would end the whole call
            if reading.done():
                response, asked = reading.result(), False
                if response is grpc.aio.EOF:
                    return
                reading = asyncio.ensure_future(call.read())
                yield response
            elif asked:
                raise TimeoutError
            else:
                asked = True
                with suppress(asyncio.InvalidStateError):  # it broke just now, as the read will tell
                    async with asyncio.timeout(quiet_s):
                        await call.write(progress)
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


def _method(kind: Callable[..., Any], method: str, response_type: Any) -> Any:
    return kind(
        f"/etcdserverpb.{method}",
        request_serializer=_serialized,
        response_deserializer=response_type.FromString,
    )


def _serialized(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data


def _put(key: str, value: bytes, lease: int) -> kv_pb2.PutRequest:
    return kv_pb2.PutRequest(key=key.encode(), value=value, lease=lease)


def _entry(kv: kv_pb2.KeyValue, deleted: bool = False) -> Entry:
    # Other programs may write any bytes below our prefix; such a key is nobody's and is passed over later.
    return Entry(kv.key.decode(errors="replace"), None if deleted else kv.value, kv.mod_revision, kv.lease)


def _prefix_end(prefix: str) -> bytes:
    # The last byte of ours is "/" or another ASCII character: no carry.
    data = prefix.encode()
    return data[:-1] + bytes([data[-1] + 1])


def _unavailable(message: str) -> Unavailable:
    return Unavailable(message, reason="COORDINATOR_UNAVAILABLE")
