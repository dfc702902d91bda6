"""Keys and tokens as metadata: from a text, a file, a function; and nowhere else to be seen."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import vectorfleet
from tests.unit.client.fake import FakeCluster
from tests.unit.client.fixtures import Blocking
from vectorfleet import errors
from vectorfleet._credentials import CHARS_MAX, Credentials
from vectorfleet._security import Security, resolve
from vectorfleet.errors import InvalidRequest


def test_none_is_none() -> None:
    assert Credentials().metadata() is None
    assert not Credentials()


def test_a_text() -> None:
    for given in (Credentials(api_key="vfk_1"), Credentials(token="vfk_1")):  # noqa: S106
        assert given.metadata() == (("authorization", "Bearer vfk_1"),)
        assert "vfk_1" not in repr(given)


@pytest.mark.parametrize("make", [Path, os.fspath])
def test_a_file_is_read_again_when_it_changes(tmp_path: Path, make: Any) -> None:
    path = tmp_path / "token"
    path.write_text("first\n")
    given = Credentials(token=Path(make(path)))
    assert given.metadata() == (("authorization", "Bearer first"),)
    (tmp_path / "next").write_text("second\n")
    (tmp_path / "next").rename(path)
    assert given.metadata() == (("authorization", "Bearer second"),)
    path.unlink()
    assert given.metadata() == (("authorization", "Bearer second"),), "a file that is being replaced costs no call"


def test_a_function_is_asked_before_each_call() -> None:
    tokens = iter(["a", "b"])
    given = Credentials(token=lambda: next(tokens))
    assert [given.metadata(), given.metadata()] == [(("authorization", f"Bearer {one}"),) for one in "ab"]


@pytest.mark.parametrize("text", ["", " ", "a b", "a\nb", "é", "a\x00", "x" * (CHARS_MAX + 1)])
def test_what_cannot_be_sent_is_refused_without_being_shown(tmp_path: Path, text: str) -> None:
    path = tmp_path / "token"
    path.write_text(f"{text}|{text}" if text else "")
    for make in (lambda: Credentials(api_key=text), lambda: Credentials(api_key=lambda: text).metadata()):
        with pytest.raises(InvalidRequest) as caught:
            make()
        assert caught.value.field == "api_key"
        assert len(text.strip()) < 2 or text not in str(caught.value)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="nowhere cannot be read: No such file"):
        Credentials(token=tmp_path / "nowhere")
    with pytest.raises(InvalidRequest, match="exclude each other"):
        Credentials(api_key="a", token="b")  # noqa: S106


def test_a_function_that_returns_no_text() -> None:
    with pytest.raises(InvalidRequest):
        Credentials(token=lambda: None).metadata()  # type: ignore[arg-type,return-value]


# ----------------------------------------------------------------------------------------------- where they come from

ROUTER = "router.example:7700"
TLS = {"HOME": "/nowhere", "VECTORFLEET_CA": "ca.crt"}


def shown(given: Security | None, environment: dict[str, str]) -> Any:
    found = resolve(ROUTER, given, environment)
    return found.api_key, found.token


def test_the_argument_wins_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    config = tmp_path / "client.toml"
    config.write_text(
        f'["{ROUTER}"]\nca = "ca.crt"\ntoken_file = "a.token"\n["other.example:1"]\napi_key_file = "b.key"\n'
    )
    environment = {"VECTORFLEET_CONFIG": str(config)}
    assert shown(None, environment) == (None, tmp_path / "a.token")
    environment["VECTORFLEET_API_KEY"] = "from-the-environment"
    assert shown(None, environment) == ("from-the-environment", None), "a credential comes whole from one place"
    assert shown(Security(token="mine"), environment) == (None, "mine")  # noqa: S106
    assert shown(None, {**TLS, "VECTORFLEET_TOKEN_FILE": "x"}) == (None, Path("x"))
    assert shown(None, {**TLS, "VECTORFLEET_TOKEN": "x"}) == (None, "x")
    assert shown(None, {**TLS, "VECTORFLEET_API_KEY_FILE": "x", "VECTORFLEET_TOKEN": ""}) == (Path("x"), None)


def test_two_places_of_one_kind_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="exclude each other"):
        resolve(ROUTER, None, {**TLS, "VECTORFLEET_TOKEN": "x", "VECTORFLEET_TOKEN_FILE": "y"})


@pytest.mark.parametrize(
    "given",
    [Security(api_key="k"), Security(token="t", insecure=True), Security(token=Path("t"))],  # noqa: S106
)
def test_a_credential_does_not_go_in_the_clear_to_another_machine(given: Security) -> None:
    for address in (
        ROUTER,
        "10.0.0.7:7700",
        "dns:///router.example:7700",
        "127.0.0.1.example:1",
        "localhost.example:1",
    ):
        with pytest.raises(InvalidRequest, match="could take the credential"):
            resolve(address, given, {"HOME": "/nowhere"})
    for address in ("127.0.0.1:7700", "localhost:7700", "[::1]:7700"):
        assert resolve(address, given, {"HOME": "/nowhere"})
    assert resolve(ROUTER, replace(given, ca="ca.crt"), {"HOME": "/nowhere"})


def test_a_repr_tells_no_secret() -> None:
    assert "a-secret" not in repr(Security(api_key="a-secret"))
    assert "a-secret" not in repr(resolve("127.0.0.1:1", Security(token="a-secret"), {"HOME": "/nowhere"}))  # noqa: S106


# ---------------------------------------------------------------------------------------------------- on the wire


@pytest.mark.parametrize("make", [vectorfleet.Client, Blocking])
def test_every_call_carries_it(fake: FakeCluster, make: Any) -> None:
    asked = 0

    def token() -> str:
        nonlocal asked
        asked += 1
        return f"token-{asked}"

    client = make(fake.address, token=token, timeout=10)
    client.create_collection("films", dim=2)
    vectors = [[0.0, 1.0]] * 3
    client.upsert("films", ids=[1, 2, 3], vectors=vectors)
    client.search("films", vectors=vectors[:1])
    fake.fail("Count", errors.Unavailable("away"))
    client.count("films")
    client.get("films", ids=[1])
    client.delete("films", ids=[1])
    list(client.scroll("films"))
    client.list_collections()
    client.get_collection("films")
    client.cluster()
    client.create_backup("/backups")
    client.restore_backup("/backups", collections={"films": "again"})
    client.delete_collection("films")
    client.close()
    assert len(fake.calls) == 13
    assert [one["authorization"] for one in fake.metadata] == [
        f"Bearer token-{n + 1}" for n in range(len(fake.metadata))
    ]


def test_a_function_that_fails_fails_the_call_as_it_is(fake: FakeCluster) -> None:
    def token() -> str:
        raise LookupError("the vault is sealed")

    with vectorfleet.Client(fake.address, token=token) as client, pytest.raises(LookupError, match="sealed"):
        client.list_collections()
