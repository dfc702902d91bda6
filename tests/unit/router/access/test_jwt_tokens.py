"""Tokens: what is accepted, and everything that must not be."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from functools import cache
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given
from hypothesis import strategies as st

from router.access.jwt_tokens import JwtRules, UnknownKey, key_set, verify
from router.access.scopes import Action
from tests.signing import (
    AUDIENCE,
    ISSUER,
    claims,
    ec_key,
    ed_key,
    jwk_set,
    public_jwk,
    raw_token,
    rsa_key,
    token,
)
from vectorfleet.errors import Unauthenticated

RULES = JwtRules(AUDIENCE, ISSUER, leeway_s=10)


@cache
def keys() -> Any:
    return key_set(jwk_set(public_jwk(rsa_key(), "k0"), public_jwk(ec_key(), "k1"), public_jwk(ed_key(), "k2")))


def refusal(credential: str, rules: JwtRules = RULES, known: Any = None) -> Unauthenticated:
    with pytest.raises(Unauthenticated) as caught:
        verify(credential, known or keys(), rules)
    assert len(credential) < 8 or credential not in str(caught.value)
    return caught.value


@pytest.mark.parametrize(
    ("key", "kid", "algorithm"),
    [(rsa_key, "k0", "RS256"), (rsa_key, "k0", "PS512"), (ec_key, "k1", "ES256"), (ed_key, "k2", "EdDSA")],
)
def test_a_good_token_is_accepted(key: Any, kid: str, algorithm: str) -> None:
    verified = verify(token(key(), kid, algorithm, scope="openid read:films write:logs-*"), keys(), RULES)
    assert verified.principal.name == "jwt:ada"
    assert verified.principal.scopes.allow(Action.READ, "films")
    assert verified.principal.scopes.allow(Action.WRITE, "logs-1")
    assert not verified.principal.scopes.allow(Action.WRITE, "films")
    assert time.time() + 3600 < verified.expires_s < time.time() + 3611


@pytest.mark.parametrize("scope", [["read:films", 7, None], "read:films"])
def test_scopes_may_be_a_list_or_a_text_under_any_claim(scope: Any) -> None:
    rules = JwtRules(AUDIENCE, claim="vectors")
    scopes = verify(token(vectors=scope, scope="admin:*"), keys(), rules).principal.scopes
    assert scopes.granted == {"read:films"}


@pytest.mark.parametrize("scope", [None, 7, {"read:films": 1}, "", [["admin:*"]]])
def test_a_token_without_scopes_may_nothing(scope: Any) -> None:
    assert verify(token(scope=scope), keys(), RULES).principal.scopes.granted == frozenset()


@pytest.mark.parametrize(
    ("changes", "words", "reason"),
    [
        ({"exp": int(time.time()) - 11}, "expired", "CREDENTIAL_EXPIRED"),
        ({"nbf": int(time.time()) + 3600}, "not valid yet", "CREDENTIAL_INVALID"),
        ({"aud": "others.example"}, "audience", "CREDENTIAL_INVALID"),
        ({"aud": ["others.example", AUDIENCE + "2"]}, "audience", "CREDENTIAL_INVALID"),
        ({"aud": None}, "lacks", "CREDENTIAL_INVALID"),
        ({"exp": None}, "lacks", "CREDENTIAL_INVALID"),
        ({"sub": None}, "lacks", "CREDENTIAL_INVALID"),
        ({"sub": "x" * 300}, "sub", "CREDENTIAL_INVALID"),
        ({"iss": "https://evil.example"}, "issuer", "CREDENTIAL_INVALID"),
        ({"exp": 1e308 * 10}, "token", "CREDENTIAL_INVALID"),
        ({"exp": "soon"}, "token", "CREDENTIAL_INVALID"),
        ({"nbf": 1e308 * 10}, "token", "CREDENTIAL_INVALID"),
    ],
)
def test_a_claim_that_does_not_hold_is_named(changes: dict[str, Any], words: str, reason: str) -> None:
    refused = refusal(token(**changes))
    assert words in refused.message
    assert refused.reason == reason


def test_clocks_may_differ_by_the_leeway() -> None:
    now = int(time.time())
    assert verify(token(exp=now - 5, nbf=now + 5), keys(), RULES)


def test_a_token_for_several_audiences_is_for_each() -> None:
    assert verify(token(aud=["others.example", AUDIENCE]), keys(), RULES)


def test_the_signature_must_be_of_the_named_key() -> None:
    assert "signature" in refusal(token(rsa_key(1))).message
    good = token()
    head, body, signature = good.split(".")
    forged = base64.urlsafe_b64encode(json.dumps(claims(scope="admin:*")).encode()).rstrip(b"=").decode()
    assert "signature" in refusal(f"{head}.{forged}.{signature}").message
    assert refusal(f"{head}.{body}.").reason == "CREDENTIAL_INVALID"


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "nOnE", "", None, 7, ["RS256"], {"a": 1}])
@pytest.mark.parametrize("kid", ["k0", "unheard-of", None])
def test_no_signature_is_no_token(algorithm: Any, kid: str | None) -> None:
    header = {"typ": "JWT", "alg": algorithm, **({} if kid is None else {"kid": kid})}
    assert refusal(raw_token(header, claims(scope="admin:*"))).reason == "CREDENTIAL_INVALID"


def test_a_public_key_is_no_shared_secret() -> None:
    public = rsa_key().public_key()
    pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    der = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    for secret in (pem, der, json.dumps(public_jwk(rsa_key(), "k0")).encode()):
        unsigned = raw_token({"alg": "HS256", "kid": "k0"}, claims(scope="admin:*")).rpartition(".")[0]
        mac = hmac.new(secret, unsigned.encode(), hashlib.sha256).digest()
        forged = f"{unsigned}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"
        assert "algorithm" in refusal(forged).message


def test_a_key_is_used_with_its_own_algorithms_alone() -> None:
    only = key_set(jwk_set(public_jwk(rsa_key(), "k0", alg="RS256")))
    assert verify(token(), only, RULES)
    assert "algorithm" in refusal(token(algorithm="RS512"), known=only).message
    assert "algorithm" in refusal(token(ec_key(), "k0", "ES256"), known=only).message


def test_keys_come_from_the_set_alone() -> None:
    # A key that the token itself carries, or points at, is not looked at.
    evil = rsa_key(1)
    header = {"alg": "RS256", "kid": "k0", "jwk": public_jwk(evil, "k0"), "jku": "https://evil.example/jwks"}
    unsigned = raw_token(header, claims(scope="admin:*")).rpartition(".")[0]
    signed = token(evil, scope="admin:*")
    assert "signature" in refusal(f"{unsigned}.{signed.rpartition('.')[2]}").message


def test_an_extension_that_must_be_understood_is_refused() -> None:
    assert refusal(raw_token({"alg": "RS256", "kid": "k0", "crit": ["exp"]}, claims())).reason == "CREDENTIAL_INVALID"


def test_an_unknown_key_is_told_apart_for_those_who_can_fetch_it() -> None:
    with pytest.raises(UnknownKey):
        verify(token(kid="k9"), keys(), RULES)


def test_a_token_that_names_no_key_needs_a_set_of_one() -> None:
    assert verify(token(kid=None), key_set(jwk_set(public_jwk(rsa_key(), None))), RULES)
    assert "kid" in refusal(token(kid=None)).message


@pytest.mark.parametrize(
    "text",
    [
        "", ".", "..", "a.b.c", "a" * 9000, "e30.e30.", "vfk_1", "é.é.é", "\ud800", "\x00",
        raw_token([], {}), raw_token({"alg": "RS256", "kid": ["k0"]}, {}), raw_token(b"[" * 3000, {}),
        raw_token({"alg": "RS256", "kid": "k0"}, b"{"), raw_token({"alg": "RS256", "kid": {"a": "b"}}, {}),
        raw_token({"alg": "RS256", "kid": "k0", "b64": False, "crit": ["b64"]}, {}),
    ],
)  # fmt: skip
def test_garbage_is_refused_with_a_reason(text: str) -> None:
    assert refusal(text).reason == "CREDENTIAL_INVALID"


@given(st.text() | st.binary().map(lambda data: base64.urlsafe_b64encode(data).decode() + ".e30.e30"))
def test_no_text_breaks_it(text: str) -> None:
    refusal(text)


def test_a_set_keeps_only_public_keys_for_signatures() -> None:
    short = rsa.generate_private_key(65_537, 1024)  # noqa: S505 (that is the point)
    found = key_set(
        jwk_set(
            public_jwk(rsa_key(), "good"),
            public_jwk(short, "short"),
            public_jwk(rsa_key(1), "enc", use="enc"),
            public_jwk(rsa_key(1), "mac", alg="HS256"),
            {"kty": "oct", "kid": "oct", "k": "c2VjcmV0"},
            {"kty": "RSA", "kid": "half"},
            {"kty": ["RSA"], "kid": "odd"},
            {"kid": "nothing"},
            {"kty": "EC", "crv": "secp256k1", "kid": "curve", "x": "AA", "y": "AA"},
        )
    )
    assert set(found) == {"good"}


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"{}", b'{"keys": 7}', b'{"keys": []}', b'{"keys": [7]}', b"[" * 10**5, b"\xff"]
)
def test_what_is_no_set_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match="JWK set"):
        key_set(text)
