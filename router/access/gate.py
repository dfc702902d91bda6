"""The router's door: who calls, whether he may, how much; and the line in the audit log. Outside of everything else that serves.

1. Before a byte of the request is looked at, the credential is verified. A caller who fails here is answered at once, whatever he
   sent and whether or not there is such a method: he learns nothing, and costs no parsing.
2. The request's collection is looked at, not looked up: whoever may not act on a name gets the same answer whether or not a
   collection has it.
3. On a stream each message goes through both again. A message that may not be ends the stream, after the answers to those
   before it; so does a credential that has expired or was revoked meanwhile. Limits make a stream wait, since it can be made
   to; other calls are refused.

Everything else happens within: what handlers raise is a status by the time it comes back here, so the log says what the
caller saw.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import grpc
from google.protobuf.message import Message

from router.access.authenticator import Authenticator, credential_of
from router.access.principal import ANYBODY, Principal, caller
from router.access.rates import Rates
from router.access.rules import RULES, Needs, Rule
from router.access.scopes import Action
from vectorfleet import errors, serving
from vectorfleet.audit import AuditLog
from vectorfleet.telemetry.context import read
from vectorfleet.telemetry.work import current_or_none

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

STREAM_COLLECTIONS_MAX: Final = 100
"""Collections of one stream that get a line of their own."""
STRANGERS_LINES_PER_S: Final = 100
"""Lines for calls without a valid credential; what comes beyond shares one line a second, so that no stranger fills the disk."""
STREAM_PAUSE_MAX_S: Final = 1.0
"""A stream that waits for its limits looks so often whether its credential still holds."""
_NO_RULE: Final = Rule(Needs.CREDENTIAL, Action.ADMIN)
"""Of a method that does not exist: those who may come in learn that it does not."""
_SHOWN_CHARS_MAX: Final = 150
_DENIED: Final = frozenset({grpc.StatusCode.UNAUTHENTICATED.name, grpc.StatusCode.PERMISSION_DENIED.name})


@dataclass(slots=True)
class _Call:
    """One call, from the door to its end."""

    method: str
    rule: Rule
    metadata: Any
    principal: Principal = ANYBODY
    refused: errors.VectorfleetError | None = None
    began_s: float = field(default_factory=time.monotonic)
    messages: dict[str, int] = field(default_factory=dict)
    """By collection."""
    details: dict[str, str] = field(default_factory=dict)
    _request_id: str = ""

    def note(self, request: Any) -> None:
        """Counts a message of the call."""
        if not isinstance(request, Message):
            return
        collection = self.rule.collection(request)
        if collection in self.messages or len(self.messages) < STREAM_COLLECTIONS_MAX:
            self.messages[collection] = self.messages.get(collection, 0) + 1

    def request_id(self) -> str:
        """The one that its answer and the router's log carry; of a call that is refused here, the caller's own or a new one."""
        served = current_or_none()
        if not self._request_id:
            self._request_id = read(self.metadata or ()).request_id or secrets.token_hex(8)
        return self._request_id if served is None else served.request_id


Enter: TypeAlias = Callable[[_Call, Any], Any]
"""Looks at a request, or makes a stream of them that is looked at; returns it for the handler."""
_call: ContextVar[_Call | None] = ContextVar("call", default=None)


def account(**details: str) -> None:
    """Adds to the audit line of the call at hand what only its handler knows, such as the id of a key that it made."""
    call = _call.get()
    if call is not None:
        call.details.update(details)


class Gate(grpc.aio.ServerInterceptor):
    """Lets calls in, or not. Made for one event loop."""

    def __init__(
        self, authenticator: Authenticator | None, rates: Rates, audit: AuditLog | None, audit_reads: float = 0.0
    ) -> None:
        """Guards nothing until a server has it as its outermost interceptor.

        Args:
            authenticator: None: everybody may do everything.
            rates: what one caller may ask.
            audit: None: nothing is written.
            audit_reads: the share of reads that get a line, 0 to 1; what is denied, written or administered always does.
        """
        self._authenticator = authenticator
        self._rates = rates
        self._audit = audit
        self._audit_reads = audit_reads
        # Every call passes here: a handler is wrapped once, not once a call. Only real methods get in.
        self._wrapped: dict[str, tuple[Handler, Handler]] = {}
        self._refusing: Handler = grpc.stream_stream_rpc_method_handler(self._refuse)
        self._strangers = 0
        self._folded: Counter[str] = Counter()
        self._denied: Callable[[str], None] = lambda reason: None

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Asks for the credential of one call, and prepares what follows."""
        method = handler_call_details.method
        rule = RULES.get(method, _NO_RULE)
        if rule.needs is Needs.NOTHING:
            return await continuation(handler_call_details)
        call = _Call(method, rule, handler_call_details.invocation_metadata)
        _call.set(call)
        try:
            await self._identify(call)
        except Exception as error:
            call.refused = serving.as_vectorfleet_error(error, "authentication")
            return self._refusing
        caller.set(call.principal)
        handler: Any = await continuation(handler_call_details)
        if handler is None:
            return None  # gRPC answers UNIMPLEMENTED
        known, guarded = self._wrapped.get(method, (None, None))
        if known is handler:
            return guarded
        wrapped = self._wrap(handler)
        self._wrapped[method] = handler, wrapped
        return wrapped

    def observe(self, denied: Callable[[str], None]) -> None:
        """Has `denied` told the reason of each call that is turned away here."""
        self._denied = denied

    def close(self) -> None:
        """Writes what is still to be told."""
        self._tell_folded()

    async def _identify(self, call: _Call) -> None:
        if self._authenticator is not None:
            call.principal = await self._authenticator.authenticate(credential_of(call.metadata))

    def _wrap(self, handler: Any) -> Handler:
        changes: dict[str, Any] = {}
        enter = self._messages if handler.request_streaming else self._entered
        for kind in ("unary_unary", "stream_unary"):
            if getattr(handler, kind) is not None:
                changes[kind] = self._guarded(getattr(handler, kind), enter)
        for kind in ("unary_stream", "stream_stream"):
            if getattr(handler, kind) is not None:
                changes[kind] = self._guarded_stream(getattr(handler, kind), enter)
        wrapped: Handler = handler._replace(**changes)
        return wrapped

    def _guarded(self, handle: Callable[..., Awaitable[Any]], enter: Enter) -> Callable[..., Awaitable[Any]]:
        async def run(request: Any, context: Context) -> Any:
            call = _call.get()
            assert call is not None, "the door was passed"
            try:
                response = await handle(enter(call, request), context)
            except BaseException as error:
                await self._end(call, context, error)
                raise
            self._account(call, context, "OK", "")
            return response

        return run

    def _guarded_stream(
        self, handle: Callable[..., AsyncIterator[Any]], enter: Enter
    ) -> Callable[..., AsyncIterator[Any]]:
        async def run(request: Any, context: Context) -> AsyncIterator[Any]:
            call = _call.get()
            assert call is not None, "the door was passed"
            try:
                async for response in handle(enter(call, request), context):
                    yield response
            except BaseException as error:
                await self._end(call, context, error)
                raise
            self._account(call, context, "OK", "")

        return run

    async def _refuse(self, _: Any, context: Context) -> AsyncIterator[Any]:
        """Answers a call without a valid credential. As a stream's handler, since those run before the request has come."""
        call = _call.get()
        assert call is not None, "the door was tried"
        assert call.refused is not None, "and was shut"
        await self._end(call, context, call.refused)
        yield

    # ------------------------------------------------------------------ decisions

    def _entered(self, call: _Call, request: Any) -> Any:
        call.note(request)
        self._authorise(call, request)
        self._rates.admit(call.principal, self._weight(call, request), time.monotonic())
        return request

    async def _messages(self, call: _Call, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for request in requests:
            call.note(request)
            while True:
                await self._identify(call)
                self._authorise(call, request)
                try:
                    self._rates.admit(call.principal, self._weight(call, request), time.monotonic())
                    break
                except errors.ResourceExhausted as error:
                    if error.reason != "RATE_LIMITED":
                        raise
                    await asyncio.sleep(min(error.retry_after_s, STREAM_PAUSE_MAX_S))
            yield request

    @staticmethod
    def _authorise(call: _Call, request: Any) -> None:
        if not isinstance(request, Message):
            return  # it did not parse: it can do nothing, and its parser's words are its answer
        collection = call.rule.collection(request)
        if not call.rule.allows(call.principal, collection):
            wanted = "admin:*" if call.rule.needs is Needs.CLUSTER else f"{call.rule.action}:{collection}"
            raise errors.PermissionDenied(
                f"this needs the scope {wanted[:_SHOWN_CHARS_MAX]}, which the credential lacks"
            )

    @staticmethod
    def _weight(call: _Call, request: Any) -> int:
        weigh = call.rule.weigh
        return weigh(request) if weigh is not None and isinstance(request, Message) else 0

    # ------------------------------------------------------------------ accounts

    async def _end(self, call: _Call, context: Context, error: BaseException) -> None:
        """Accounts for a call that failed; answers it, where that was decided here."""
        if isinstance(error, errors.VectorfleetError):
            self._denied(error.reason)
            self._account(call, context, error.code.name, error.reason)
            await serving.abort(context, error, call.request_id())
        elif isinstance(error, grpc.aio.AbortError):
            self._account(call, context, *serving.told(context))
        else:  # the caller is gone, or has what it wanted
            self._account(call, context, "CANCELLED", "CANCELLED")

    def _account(self, call: _Call, context: Context, code: str, reason: str) -> None:
        audit = self._audit
        if audit is None:
            return
        if code not in _DENIED and call.rule.action is Action.READ and random.random() >= self._audit_reads:  # noqa: S311
            return
        if code == grpc.StatusCode.UNAUTHENTICATED.name and not self._room_for_stranger(reason):
            return
        for collection, messages in (call.messages or {"": 0}).items():
            audit.record(
                who=call.principal.name,
                method=call.method.lstrip("/"),
                collection=collection,
                code=code,
                reason=reason,
                peer=context.peer(),
                request_id=call.request_id(),
                ms=round(1000 * (time.monotonic() - call.began_s), 3),
                messages=messages,
                **call.details,
            )

    def _room_for_stranger(self, reason: str) -> bool:
        if not self._strangers:
            asyncio.get_running_loop().call_later(1.0, self._tell_folded)
        self._strangers += 1
        if self._strangers <= STRANGERS_LINES_PER_S:
            return True
        self._folded[reason] += 1
        return False

    def _tell_folded(self) -> None:
        for reason, calls in self._folded.items():
            if self._audit is not None:
                self._audit.record(who="", code=grpc.StatusCode.UNAUTHENTICATED.name, reason=reason, calls=calls)
        self._folded.clear()
        self._strangers = 0
