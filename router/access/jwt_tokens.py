"""JSON Web Tokens: whether one is genuine, meant for us and in force, and what it allows. The keys are an argument.

What is accepted is narrow: signatures by asymmetric keys of a JWK set, by algorithms of one list that the token does not choose
from freely: each key allows only those of its own kind, so that neither `none` nor a public key taken for an HMAC secret gets
through. Keys are never taken from the token itself (`jwk`, `jku`, `x5u`). `exp`, `aud` and `sub` must be there.

The one file that knows PyJWT.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import jwt

from router.access.principal import Principal
from router.access.scopes import Scopes
from vectorfleet.errors import Unauthenticated

ALGORITHMS: Final[dict[tuple[str, str], tuple[str, ...]]] = {
    ("RSA", ""): ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    ("EC", "P-256"): ("ES256",),
    ("EC", "P-384"): ("ES384",),
    ("EC", "P-521"): ("ES512",),
    ("OKP", "Ed25519"): ("EdDSA",),
}
"""By kind of key and curve; all asymmetric. A key of another kind is passed over."""
NOTHING: Final[Mapping[str, Sequence[str]]] = MappingProxyType({})
TOKEN_CHARS_MAX: Final = 8 * 1024
"""gRPC's own limit on all metadata of a call is about as much."""
KEYS_MAX: Final = 100
LEEWAY_DEFAULT_S: Final = 30.0
CLAIM_DEFAULT: Final = "scope"
_SUBJECT_CHARS_MAX: Final = 256
_WHY: Final[tuple[tuple[type[Exception], str, str], ...]] = (
    (jwt.ExpiredSignatureError, "CREDENTIAL_EXPIRED", "the token has expired"),
    (jwt.ImmatureSignatureError, "CREDENTIAL_INVALID", "the token is not valid yet"),
    (jwt.InvalidAudienceError, "CREDENTIAL_INVALID", "the token is meant for another audience"),
    (jwt.InvalidIssuerError, "CREDENTIAL_INVALID", "the token is of another issuer"),
    (jwt.MissingRequiredClaimError, "CREDENTIAL_INVALID", "the token lacks one of exp, aud, sub"),
    (jwt.InvalidSignatureError, "CREDENTIAL_INVALID", "the token's signature does not hold"),
    (jwt.InvalidAlgorithmError, "CREDENTIAL_INVALID", "the token is signed by an algorithm that is not accepted"),
)


class UnknownKey(Exception):
    """The token names a key that is not among those known: it may have been added since."""


@dataclass(frozen=True, slots=True)
class VerifyingKey:
    """One public key, and the algorithms that it may be used with."""

    key: Any
    algorithms: tuple[str, ...]


KeySet = Mapping[str, VerifyingKey]
"""By `kid`; a key without one stands under ""."""


@dataclass(frozen=True, slots=True)
class JwtRules:
    """What a token must say."""

    audience: str
    issuer: str = ""
    """"": any."""
    leeway_s: float = LEEWAY_DEFAULT_S
    claim: str = CLAIM_DEFAULT
    """The claim that holds the scopes: a text with spaces between them, or a list of texts."""


@dataclass(frozen=True, slots=True)
class Verified:
    """A genuine token."""

    principal: Principal
    expires_s: float
    """Unix time, with the leeway in it."""


def key_set(text: bytes) -> KeySet:
    """Reads a JWK set; passes over the keys that are of no use here: symmetric, for encryption, too short, of unknown kinds.

    Raises:
        ValueError: this is no JWK set, or none of its keys is of use.
    """
    try:
        entries = json.loads(text)["keys"]
        candidates = [entry for entry in entries if isinstance(entry, dict)]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"this is no JWK set: {type(error).__name__}") from error
    if len(candidates) > KEYS_MAX:
        raise ValueError(f"the JWK set has {len(candidates)} keys, over {KEYS_MAX}")
    keys: dict[str, VerifyingKey] = {}
    for entry in candidates:
        key = _verifying_key(entry)
        kid = entry.get("kid", "")
        if key is not None and isinstance(kid, str):
            keys[kid] = key
    if not keys:
        raise ValueError(
            "the JWK set has no public key that could verify a signature: RSA from 2048 bits, EC or Ed25519"
        )
    return keys


def verify(token: str, keys: KeySet, rules: JwtRules, granted: Mapping[str, Sequence[str]] = NOTHING) -> Verified:
    """Verifies a token by PyJWT's clock, which is the machine's.

    Args:
        token: whatever a caller sent.
        keys: that may have signed it.
        rules: what it must say.
        granted: subject → scopes that come to the token's own.

    Raises:
        UnknownKey: it is signed by a key that is not among `keys`.
        Unauthenticated: it is no token, not genuine, not in force, or not for us; the message says which.
    """
    if len(token) > TOKEN_CHARS_MAX or not token.isascii():
        raise _invalid("this is no token")
    try:
        key = _key_for(token, keys)
        claims = jwt.decode(
            token,
            key=key.key,
            algorithms=list(key.algorithms),
            audience=rules.audience,
            issuer=rules.issuer or None,
            leeway=rules.leeway_s,
            options={"require": ["exp", "aud", "sub"], "enforce_minimum_key_length": True},
        )
        return _verified(claims, rules, granted)
    except (UnknownKey, Unauthenticated):
        raise
    except Exception as error:  # whatever a stranger's bytes make a parser raise, the token is not accepted
        for kind, reason, message in _WHY:
            if isinstance(error, kind):
                raise Unauthenticated(message, reason=reason) from None
        raise _invalid("this is no token") from None


def _key_for(token: str, keys: KeySet) -> VerifyingKey:
    header = jwt.get_unverified_header(token)
    kid = header.get("kid")
    if kid is None:
        if len(keys) > 1:
            raise _invalid("the token does not name its key (kid), and there are several")
        return next(iter(keys.values()))
    if kid not in keys:
        # One that asks for a symmetric algorithm, or for none, need not make anybody fetch keys.
        if not any(header.get("alg") in algorithms for algorithms in ALGORITHMS.values()):
            raise jwt.InvalidAlgorithmError
        raise UnknownKey
    return keys[kid]


def _verified(claims: Mapping[str, Any], rules: JwtRules, granted: Mapping[str, Sequence[str]]) -> Verified:
    subject, expires_s = claims["sub"], float(claims["exp"]) + rules.leeway_s
    if not isinstance(subject, str) or not 1 <= len(subject) <= _SUBJECT_CHARS_MAX:
        raise _invalid(f"the token's sub is not a text of 1 to {_SUBJECT_CHARS_MAX} characters")
    if not math.isfinite(expires_s):
        raise _invalid("the token's exp is no time")
    own = claims.get(rules.claim, "")
    listed = own.split() if isinstance(own, str) else own if isinstance(own, list) else []
    scopes = [*(scope for scope in listed if isinstance(scope, str)), *granted.get(subject, ())]
    return Verified(Principal(f"jwt:{subject}", Scopes.of(scopes)), expires_s)


def _verifying_key(entry: Mapping[str, Any]) -> VerifyingKey | None:
    kind = (str(entry.get("kty")), str(entry.get("crv", "")))
    if kind not in ALGORITHMS or entry.get("use", "sig") != "sig" or "d" in entry:
        return None
    algorithms = tuple(name for name in ALGORITHMS[kind] if name == entry.get("alg", name))
    try:
        keys = [jwt.PyJWK(dict(entry), name).key for name in algorithms[:1]]
    except (jwt.PyJWTError, ValueError, TypeError, KeyError):
        return None
    if not keys or (kind[0] == "RSA" and keys[0].key_size < 2048):
        return None
    return VerifyingKey(keys[0], algorithms)


def _invalid(message: str) -> Unauthenticated:
    return Unauthenticated(message, reason="CREDENTIAL_INVALID")
