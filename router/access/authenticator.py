"""From the bytes of a credential to its holder: API keys, the admin key, tokens.

A call on the way to its answer costs one SHA-256 and a look into a dictionary: what was verified is remembered by its hash, for
at most `REMEMBERED_MAX` credentials, until it expires or what verified it changes. For an API key that is the key map as it
stands at each call, so that a revocation counts from the moment at which etcd's watch tells of it. No credential is
kept, only hashes.
"""

from __future__ import annotations

import asyncio
import hmac
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from router.access.admin_key import AdminKey
from router.access.grants import Grants
from router.access.jwks import Jwks
from router.access.jwt_tokens import NOTHING, JwtRules, KeySet, UnknownKey, verify
from router.access.principal import Principal
from router.access.scopes import Scopes
from vectorfleet.cluster.coordinator import Coordinator
from vectorfleet.cluster.key_record import KeyRecord, digest_of, key_id_of
from vectorfleet.errors import Unauthenticated, Unavailable

REMEMBERED_MAX: Final = 10_000
_NO_DIGEST: Final = "0" * 64
_HEADER: Final = "authorization"
_ADMIN: Final = Principal("admin-key", Scopes.of(["admin:*"]))


@dataclass(frozen=True, slots=True)
class _Known:
    """A credential that was verified."""

    principal: Principal
    expires_s: float
    record: KeyRecord | None = None
    """Of an API key: holds while the key map shows just this."""
    admin_digest: str = ""
    """Of the admin key: holds while it is this one."""
    keys: KeySet | None = None
    """Of a token: holds while the set that verified it is the newest."""
    granted: Mapping[str, Sequence[str]] | None = None
    """Of a token: holds while these are the grants."""


class Authenticator:
    """Verifies credentials. To be used from one event loop."""

    def __init__(
        self,
        coordinator: Coordinator,
        admin_key: AdminKey | None,
        rules: JwtRules | None,
        jwks: Jwks | None,
        grants: Grants | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Knows nobody yet.

        Args:
            coordinator: shows the API keys.
            admin_key: None: there is none.
            rules: what a token must say; None: tokens are not accepted.
            jwks: the keys that verify tokens; None as well.
            grants: scopes of tokens' subjects besides those in the tokens.
            clock: Unix time in seconds, as keys expire by it.
        """
        self._coordinator = coordinator
        self._admin_key = admin_key
        self._rules = rules
        self._remembered: OrderedDict[str, _Known] = OrderedDict()
        self._jwks = jwks
        self._grants = grants
        self._clock = clock

    async def run(self) -> None:
        """Follows files and URLs until it is cancelled."""
        async with asyncio.TaskGroup() as group:
            if self._admin_key is not None:
                group.create_task(self._admin_key.run(), name="following the admin key")
            if self._jwks is not None:
                group.create_task(self._jwks.run(), name="following the JWK set")
            if self._grants is not None:
                group.create_task(self._grants.run(), name="following the grants")

    async def authenticate(self, credential: str) -> Principal:
        """Returns the holder of a credential.

        Raises:
            Unauthenticated: nobody's, or not any more.
            Unavailable: what it would be verified by has not been loaded yet.
        """
        digest = digest_of(credential)
        known = self._remembered.get(digest)
        if known is not None and self._holds(known):
            self._remembered.move_to_end(digest)
            return known.principal
        known = await self._verified(credential, digest)
        self._remembered[digest] = known
        if len(self._remembered) > REMEMBERED_MAX:
            self._remembered.popitem(last=False)
        return known.principal

    @property
    def _granted(self) -> Mapping[str, Sequence[str]]:
        return NOTHING if self._grants is None else self._grants.by_subject

    def _holds(self, known: _Known) -> bool:
        if known.record is not None and self._coordinator.state.keys.get(known.record.id) is not known.record:
            return False
        if known.admin_digest and (self._admin_key is None or self._admin_key.digest != known.admin_digest):
            return False
        if known.keys is not None and (
            self._jwks is None or self._jwks.keys is not known.keys or self._granted is not known.granted
        ):
            return False
        return self._clock() < known.expires_s

    async def _verified(self, credential: str, digest: str) -> _Known:
        if self._admin_key is not None and hmac.compare_digest(digest, self._admin_key.digest):
            return _Known(_ADMIN, math.inf, admin_digest=digest)
        key_id = key_id_of(credential)
        if key_id:
            return self._key(key_id, digest)
        if self._jwks is None or self._rules is None:
            raise Unauthenticated("the credential is not valid", reason="CREDENTIAL_INVALID")
        return await self._token(credential, self._jwks, self._rules)

    def _key(self, key_id: str, digest: str) -> _Known:
        state = self._coordinator.state
        if state.epoch == 0:
            raise Unavailable("no key has been loaded from etcd yet", reason="COORDINATOR_UNAVAILABLE")
        record = state.keys.get(key_id)
        # A key that is unknown, revoked or wrong takes the same time and gets the same words.
        same = hmac.compare_digest(digest, _NO_DIGEST if record is None else record.digest)
        if record is None or not same:
            raise Unauthenticated("the key is not valid", reason="CREDENTIAL_INVALID")
        known = _Known(
            Principal(f"key:{key_id}", Scopes.of(record.scopes), record.limits),
            record.expire_time_ms / 1000 if record.expire_time_ms else math.inf,
            record,
        )
        if not self._holds(known):
            raise Unauthenticated("the key has expired", reason="CREDENTIAL_EXPIRED")
        return known

    async def _token(self, token: str, jwks: Jwks, rules: JwtRules) -> _Known:
        for attempt in range(2):
            if jwks.keys is not None:
                try:
                    verified = verify(token, jwks.keys, rules, self._granted)
                    return _Known(verified.principal, verified.expires_s, keys=jwks.keys, granted=self._granted)
                except UnknownKey:
                    pass
            if attempt == 0:
                await jwks.refetch()
        if jwks.keys is None:
            raise Unavailable("the keys that verify tokens cannot be fetched", reason="JWKS_UNAVAILABLE")
        raise Unauthenticated("the token is signed by a key that is not known", reason="CREDENTIAL_INVALID")


def credential_of(metadata: Sequence[tuple[str, Any]] | None) -> str:
    """The credential in a call's metadata.

    Raises:
        Unauthenticated: there is none, there are several, or it is no bearer's.
    """
    found = [value for name, value in metadata or () if name == _HEADER]
    if not found:
        raise Unauthenticated(
            "this call carries no credential: it needs an API key or a token", reason="CREDENTIAL_MISSING"
        )
    scheme, _, credential = found[0].partition(" ")
    if len(found) > 1 or scheme.lower() != "bearer" or not credential:
        message = "one header `authorization: Bearer …` is needed, and no more than one"
        raise Unauthenticated(message, reason="CREDENTIAL_INVALID")
    return str(credential)
