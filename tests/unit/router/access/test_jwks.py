"""The JWK set from a URL: fetched beside the calls, bounded in time, size and number; and the first admin's key from a file."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from router.access import admin_key as admin_key_module
from router.access import jwks as jwks_module
from router.access.admin_key import AdminKey
from router.access.authenticator import Authenticator
from router.access.jwks import Jwks
from router.access.jwt_tokens import JwtRules
from tests.signing import AUDIENCE, jwk_set, public_jwk, rsa_key, token
from tests.unit.router.access.door import soon
from vectorfleet.cluster.key_record import digest_of, new_key
from vectorfleet.cluster.shard_map import ClusterState
from vectorfleet.cluster.static import StaticCluster, StaticCoordinator
from vectorfleet.errors import Unauthenticated, Unavailable

OLD = jwk_set(public_jwk(rsa_key(), "k0"))
NEW = jwk_set(public_jwk(rsa_key(1), "k1"))


class Provider(ThreadingHTTPServer):
    """An identity provider's web server: what it answers can be changed, and what it is asked is counted."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Page)
        self.status, self.body, self.asked = 200, OLD, 0
        self.going_on = threading.Event()
        self.going_on.set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/keys?secret=s"


class _Page(BaseHTTPRequestHandler):
    server: Provider

    def do_GET(self) -> None:
        self.server.asked += 1
        self.server.going_on.wait(60)
        if not self.server.status:
            self.wfile.write(self.server.body)  # no HTTP at all
            return
        self.send_response(self.server.status)
        if self.server.status == 302:
            self.send_header("Location", self.server.url)
            self.server.status = 200
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def provider() -> Iterator[Provider]:
    server = Provider()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.going_on.set()
    server.shutdown()
    server.server_close()
    thread.join()


def verifying(jwks: Jwks) -> Authenticator:
    return Authenticator(StaticCoordinator(), None, JwtRules(AUDIENCE), jwks)


async def refusal(under: Authenticator, credential: str) -> Exception:
    with pytest.raises((Unauthenticated, Unavailable)) as caught:
        await under.authenticate(credential)
    return caught.value


async def test_the_first_token_makes_the_keys_be_fetched(provider: Provider) -> None:
    under = verifying(Jwks(provider.url))
    assert (await under.authenticate(token())).name == "jwt:ada"
    await under.authenticate(token())
    assert provider.asked == 1


async def test_a_rotation_is_noticed_by_the_first_token_of_the_new_key(
    provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    under = verifying(Jwks(provider.url))
    await under.authenticate(token())
    provider.body = NEW
    assert "not known" in str(await refusal(under, token(rsa_key(1), "k1"))), "not yet: the pause holds"
    assert provider.asked == 1
    monkeypatch.setattr(jwks_module, "REFETCH_PAUSE_S", 0.0)
    assert await under.authenticate(token(rsa_key(1), "k1"))
    assert "not known" in str(await refusal(under, token())), "the old key left the set, and its tokens with it"


async def test_made_up_keys_make_nobody_fetch(provider: Provider) -> None:
    under = verifying(Jwks(provider.url))
    refusals = [await refusal(under, token(kid=f"k{number}")) for number in range(1, 30)]
    assert all(isinstance(one, Unauthenticated) for one in refusals)
    assert provider.asked == 1


async def test_a_provider_that_hangs_holds_up_no_known_caller(
    provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jwks_module, "FETCH_WAIT_S", 0.05)
    jwks = Jwks(provider.url)
    under = verifying(jwks)
    await under.authenticate(token())
    monkeypatch.setattr(jwks_module, "REFETCH_PAUSE_S", 0.0)
    provider.going_on.clear()
    strangers = [asyncio.create_task(refusal(under, token(kid=f"s{number}"))) for number in range(5)]
    await soon(lambda: provider.asked == 2)
    assert await under.authenticate(token())
    assert all("not known" in str(why) for why in await asyncio.gather(*strangers))
    assert provider.asked == 2, "one fetch for all of them"
    provider.going_on.set()
    await soon(lambda: jwks._fetching is None)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (0, b"garbage\r\n"),
        (0, b""),
        (500, OLD),
        (404, OLD),
        (302, OLD),
        (200, b""),
        (200, b"{}"),
        (200, b" " * 2**20 + OLD),
    ],
)
async def test_where_a_fetch_fails_the_last_keys_go_on(
    provider: Provider, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, status: int, body: bytes
) -> None:
    never = verifying(Jwks(provider.url))
    provider.status, provider.body = status, body
    assert isinstance(await refusal(never, token()), Unavailable)
    assert "cannot be read" in caplog.text
    assert "secret=s" not in caplog.text
    provider.status, provider.body = 200, OLD
    monkeypatch.setattr(jwks_module, "REFETCH_PAUSE_S", 0.0)
    await never.authenticate(token())
    provider.status, provider.body = status, body
    await refusal(never, token(kid="k9"))
    assert await never.authenticate(token())


@pytest.mark.parametrize(
    "url",
    ["http://login.example/keys", "ftp://127.0.0.1/k", "file:///etc/passwd", "keys", "https://a:b@login.example/"],
)
def test_an_address_that_could_be_forged_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="--jwks-url"):
        Jwks(url)


def test_a_file_must_hold_a_set_at_the_start(tmp_path: Path) -> None:
    path = tmp_path / "jwks.json"
    with pytest.raises(FileNotFoundError):
        Jwks(path)
    path.write_text("{}")
    with pytest.raises(ValueError, match="JWK set"):
        Jwks(path)


# ------------------------------------------------------------------------------------------------------- the admin key


@pytest.mark.parametrize(
    "text", ["", "short", "x" * 31, "x" * 2000, "x" * 20 + " " + "x" * 20, "é" * 40, "x" * 40 + "\0"]
)
def test_what_protects_nothing_is_no_admin_key(tmp_path: Path, text: str) -> None:
    path = tmp_path / "admin.key"
    path.write_text(text)
    for source, named in ((path, str(path)), (text, "VECTORFLEET_ADMIN_KEY")):
        with pytest.raises(ValueError, match="holds no key") as caught:
            AdminKey(source)
        assert named in str(caught.value)
        assert not text.strip() or text not in str(caught.value).replace(named, "")


async def test_an_admin_key_is_replaced_in_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(admin_key_module, "FILE_POLL_S", 0.01)
    path = tmp_path / "admin.key"
    path.write_text("a" * 40 + "\n")
    key = AdminKey(path)
    under = Authenticator(StaticCoordinator(), key, None, None)
    assert (await under.authenticate("a" * 40)).name == "admin-key"
    following = asyncio.create_task(under.run())
    path.write_text("too short")
    (tmp_path / "next").write_text("b" * 40)
    (tmp_path / "next").rename(path)
    await soon(lambda: key.digest == digest_of("b" * 40))
    assert await under.authenticate("b" * 40)
    assert isinstance(await refusal(under, "a" * 40), Unauthenticated)
    path.unlink()
    await soon(lambda: "No such file" in caplog.text)
    assert await under.authenticate("b" * 40), "a file that is gone locks nobody out"
    following.cancel()


async def test_before_etcd_was_ever_reached_only_keys_wait(tmp_path: Path) -> None:
    path = tmp_path / "jwks.json"
    path.write_bytes(OLD)
    nothing_loaded = StaticCoordinator(StaticCluster(ClusterState()))
    under = Authenticator(nothing_loaded, AdminKey("a" * 40), JwtRules(AUDIENCE), Jwks(path))
    why = await refusal(under, new_key()[1])
    assert isinstance(why, Unavailable), "perhaps it is a good one"
    assert why.reason == "COORDINATOR_UNAVAILABLE"
    assert (await under.authenticate("a" * 40)).name == "admin-key"
    assert (await under.authenticate(token())).name == "jwt:ada"


async def test_no_more_is_remembered_than_allowed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("router.access.authenticator.REMEMBERED_MAX", 5)
    path = tmp_path / "jwks.json"
    path.write_bytes(OLD)
    under = verifying(Jwks(path))
    for number in range(20):
        await under.authenticate(token(sub=f"user-{number}"))
    assert len(under._remembered) == 5
