"""SPIFFE IDs as they are read."""

from __future__ import annotations

import pytest

from vectorfleet.identity import Identity, identity_of, parse


@pytest.mark.parametrize(
    ("uri", "identity"),
    [
        ("spiffe://vectorfleet/router", Identity("vectorfleet", "router")),
        ("spiffe://prod.example/client/billing", Identity("prod.example", "client", "billing")),
        ("spiffe://a/b/c/d", Identity("a", "b", "c/d")),
    ],
)
def test_ids_that_are_ours(uri: str, identity: Identity) -> None:
    assert parse(uri) == identity
    assert str(identity) == uri
    assert identity_of({"peer_spiffe_id": [uri.encode()]}) == identity


@pytest.mark.parametrize("uri", ["", "spiffe://", "spiffe://a", "spiffe://a/", "spiffe:///router", "https://a/router"])
def test_uris_that_are_none(uri: str) -> None:
    assert parse(uri) is None
    assert identity_of({"peer_spiffe_id": [uri.encode()]}) is None


def test_a_connection_without_any() -> None:
    assert identity_of({}) is None
    assert identity_of({"x509_common_name": [b"router"]}) is None, "a name alone is nobody's identity"
    assert identity_of({"peer_spiffe_id": [b"spiffe://a/\xff"]}) == Identity("a", "\ufffd")
