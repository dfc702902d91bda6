"""Where a client's certificates come from, what is refused, and what a connection that failed is said to mean."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

import vectorfleet
from tests.certificates import write
from vectorfleet._security import Security, hint, resolve

ROUTER = "router.example:7700"


def refused(address: str, given: Security | None = None, environment: dict[str, str] | None = None) -> str:
    with pytest.raises(vectorfleet.InvalidRequest) as caught:
        resolve(address, given, {"HOME": "/nowhere", **(environment or {})})
    assert caught.value.field == "security"
    return caught.value.message


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    """An environment with a configuration file."""
    folder = tmp_path / ".config" / "vectorfleet"
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(
        f'["{ROUTER}"]\nca = "ca.crt"\ncert = "/abs/client.crt"\nkey = "~/client.key"\n["other.example:1"]\ninsecure = true\n'
    )
    return {"HOME": str(tmp_path)}


def test_the_argument_wins_over_the_environment_and_that_over_the_file(home: dict[str, str]) -> None:
    folder = Path(home["HOME"]) / ".config" / "vectorfleet"
    key = str(Path("~/client.key").expanduser())
    assert resolve(ROUTER, None, home) == Security(str(folder / "ca.crt"), "/abs/client.crt", key)
    environment = {**home, "VECTORFLEET_CA": "env.crt", "VECTORFLEET_CERT": "env.pem", "VECTORFLEET_KEY": ""}
    assert resolve(ROUTER, Security(cert="arg.pem"), environment) == Security("env.crt", "arg.pem", key)


def test_what_the_file_says_of_one_cluster_is_not_for_another(home: dict[str, str]) -> None:
    assert resolve("other.example:1", None, home) == Security(insecure=True)
    assert "without TLS" in refused("third.example:1", None, home)
    assert resolve("127.0.0.1:7700", None, home) == Security()


def test_a_file_that_is_named_must_be_there_and_make_sense(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    environment = {"VECTORFLEET_CONFIG": str(path)}
    assert "which is not there" in refused(ROUTER, None, environment)
    for text in ("what", "\udcff", "[", f'["{ROUTER}"]\ncertificate = "x"', f'"{ROUTER}" = 5', f'["{ROUTER}"]\nca = 5'):
        path.write_bytes(text.encode(errors="surrogateescape"))
        assert str(path) in refused(ROUTER, None, environment), text
    path.write_text(f'["{ROUTER}"]\nca = "system"\n')
    assert resolve(ROUTER, None, environment) == Security("system")


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (Security(), "is not this machine, and without TLS"),
        (Security(insecure=False), "is not this machine"),
        (Security("ca", cert="c"), "give key as well"),
        (Security("ca", key="k"), "give cert as well"),
        (Security(cert="c", key="k"), "give ca as well"),
    ],
)
def test_what_is_missing_is_said(given: Security, complaint: str) -> None:
    assert complaint in refused(ROUTER, given)


def test_the_clear_is_for_this_machine_or_asked_for() -> None:
    for address in ("127.0.0.1:1", "localhost:1", "[::1]:1", "dns:///localhost:1"):
        assert not resolve(address, None, {"HOME": "/nowhere"}).tls
    assert not resolve(ROUTER, Security(insecure=True), {"HOME": "/nowhere"}).tls
    environment = {"HOME": "/nowhere", "VECTORFLEET_CA": "ca", "VECTORFLEET_CERT": "cert", "VECTORFLEET_KEY": "key"}
    assert not resolve("127.0.0.1:1", Security(""), environment).tls
    assert not resolve(ROUTER, None, {"HOME": "/nowhere", "VECTORFLEET_INSECURE": "1"}).tls


@pytest.mark.parametrize("kind", [vectorfleet.Client, vectorfleet.AsyncClient])
def test_a_file_that_cannot_be_used_is_named(kind: Any, tmp_path: Path) -> None:
    files = write(tmp_path, "client")
    assert files.key
    files.key.write_text("no key")

    async def connect() -> None:
        one = kind("127.0.0.1:1", security=Security(files.ca, files.cert, files.key))
        await one.list_collections()

    with pytest.raises(vectorfleet.InvalidRequest, match=r"client\.key holds no private key"):
        asyncio.run(connect())


@pytest.mark.parametrize(
    ("message", "security", "meaning"),
    [
        ("… Socket closed", Security(), "it may speak TLS alone: give ca"),
        ("… Socket closed", Security("ca"), "it may want a certificate"),
        ("… Socket closed", Security("ca", "c", "k"), "it may refuse this certificate"),
        ("OPENSSL_internal:WRONG_VERSION_NUMBER", Security("ca"), "it does not speak TLS"),
        ("CERTIFICATE_VERIFY_FAILED: unable to get local issuer certificate", Security("ca"), "not signed by"),
        ("CERTIFICATE_VERIFY_FAILED: certificate has expired", Security("ca"), "has expired"),
        ("Hostname Verification Check failed.", Security("ca"), "other names"),
        ("Connection refused", Security("ca"), ""),
    ],
)
def test_what_a_failure_means(message: str, security: Security, meaning: str) -> None:
    told = hint(message, security)
    assert told.find(meaning) >= 0
    assert bool(told) == bool(meaning)
