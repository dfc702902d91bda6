"""Scopes by subject: they come to a token's own, follow their file, and grant nothing that is no scope."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from router.access import grants as grants_module
from router.access.authenticator import Authenticator
from router.access.grants import Grants
from router.access.jwks import Jwks
from router.access.jwt_tokens import JwtRules
from tests.signing import AUDIENCE, jwk_set, public_jwk, rsa_key, token
from tests.unit.router.access.door import soon
from vectorfleet.cluster.static import StaticCoordinator

ACCOUNT = "system:serviceaccount:search:loader"


async def test_a_subject_gets_what_the_file_grants_and_loses_it_with_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(grants_module, "FILE_POLL_S", 0.01)
    (tmp_path / "jwks.json").write_bytes(jwk_set(public_jwk(rsa_key(), "k0")))
    path = tmp_path / "grants.toml"
    path.write_text(f'"{ACCOUNT}" = ["write:films"]\n"ada" = ["admin:*"]\n')
    grants = Grants(path)
    under = Authenticator(StaticCoordinator(), None, JwtRules(AUDIENCE), Jwks(tmp_path / "jwks.json"), grants)
    bare, own = token(sub=ACCOUNT, scope=None), token(sub=ACCOUNT, scope="read:films")
    assert (await under.authenticate(bare)).scopes.granted == {"write:films"}
    assert (await under.authenticate(own)).scopes.granted == {"read:films", "write:films"}
    assert (await under.authenticate(token(sub=f"{ACCOUNT}2", scope=None))).scopes.granted == frozenset()
    following = asyncio.create_task(under.run())
    for text, said in (("[", "is no TOML"), (f'"{ACCOUNT}" = ["own:films"]', "must have a list of scopes")):
        path.write_text(text)
        await soon(lambda said=said: said in caplog.text)
        assert (await under.authenticate(bare)).scopes.granted == {"write:films"}, "the last grants go on"
    path.write_text(f'"{ACCOUNT}" = []')
    await soon(lambda: grants.by_subject == {ACCOUNT: ()})
    assert (await under.authenticate(bare)).scopes.granted == frozenset()
    following.cancel()


@pytest.mark.parametrize(
    "text", ["what", '"a" = "read:*"', '"a" = ["read"]', '"a" = [7]', '[a]\nb = ["read:*"]', "\udcff"]
)
def test_what_grants_no_scopes_is_refused_at_the_start(tmp_path: Path, text: str) -> None:
    path = tmp_path / "grants.toml"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=str(path)):
        Grants(path)
