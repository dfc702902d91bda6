"""An identity provider in a few lines: key pairs, JWK sets and tokens, good and bad."""

from __future__ import annotations

import base64
import json
import time
from functools import cache
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

AUDIENCE = "vectors.example"
ISSUER = "https://login.example"


@cache
def rsa_key(number: int = 0) -> RSAPrivateKey:
    """A key that all tests of a process share: making one takes a tenth of a second."""
    return rsa.generate_private_key(65_537, 2048)


@cache
def ec_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@cache
def ed_key() -> ed25519.Ed25519PrivateKey:
    return ed25519.Ed25519PrivateKey.generate()


def public_jwk(key: Any, kid: str | None, **rest: Any) -> dict[str, Any]:
    """The public half as a JWK."""
    kinds = {
        RSAPrivateKey: RSAAlgorithm,
        ec.EllipticCurvePrivateKey: ECAlgorithm,
        ed25519.Ed25519PrivateKey: OKPAlgorithm,
    }
    algorithm: Any = next(found for kind, found in kinds.items() if isinstance(key, kind))
    named = {} if kid is None else {"kid": kid}
    return {**json.loads(algorithm.to_jwk(key.public_key())), **named, **rest}


def jwk_set(*keys: dict[str, Any]) -> bytes:
    return json.dumps({"keys": list(keys)}).encode()


def claims(**changes: Any) -> dict[str, Any]:
    """What a good token says; a change to None leaves a claim out."""
    now = int(time.time())
    said = {
        "sub": "ada",
        "aud": AUDIENCE,
        "iss": ISSUER,
        "exp": now + 3600,  # tests make theirs when they are collected
        "nbf": now - 5,
        "scope": "read:*",
        **changes,
    }
    return {name: value for name, value in said.items() if value is not None}


def token(key: Any = None, kid: str | None = "k0", algorithm: str = "RS256", **changes: Any) -> str:
    """A token signed by a key, the first RSA key unless told otherwise."""
    headers = {} if kid is None else {"kid": kid}
    return jwt.encode(claims(**changes), key or rsa_key(), algorithm, headers)


def raw_token(header: Any, body: Any, signature: bytes = b"") -> str:
    """Any three parts, whatever they are."""
    parts = (part if isinstance(part, bytes) else json.dumps(part).encode() for part in (header, body, signature))
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)
