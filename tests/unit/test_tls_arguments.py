"""What the servers' command lines say of certificates, and when they refuse to speak in the clear."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from router.arguments import parse as parse_router
from shard_server.arguments import parse as parse_shard
from tests.certificates import write
from vectorfleet.tls import TlsFiles
from vectorfleet.tls_arguments import transport_of
from vectorfleet.transport import Transport


def router(*arguments: str, environment: dict[str, str] | None = None) -> Transport:
    return transport_of(parse_router(["--etcd", "127.0.0.1:1", *arguments], environment or {}))


def shard(*arguments: str, environment: dict[str, str] | None = None) -> Transport:
    node = ["--data", "d", "--advertise", "node:7701", "--etcd", "127.0.0.1:1"]
    return transport_of(parse_shard([*node, *arguments], environment or {}))


ANYWHERE = "0.0.0.0"  # noqa: S104 (it is refused)

both = pytest.mark.parametrize("transport", [router, shard])
Make = Callable[..., Transport]


def flags(files: TlsFiles) -> list[str]:
    return ["--tls-ca", str(files.ca), "--tls-cert", str(files.cert), "--tls-key", str(files.key)]


@both
@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "localhost", "::1"])
def test_on_this_machine_alone_nothing_is_needed(transport: Make, host: str) -> None:
    assert not transport("--host", host).secure


@both
@pytest.mark.parametrize("host", [ANYWHERE, "10.1.2.3", "::", "router.example", "127.0.0.1.example"])
def test_beyond_it_the_clear_must_be_asked_for(transport: Make, host: str, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match=r"in the clear: give --tls-ca.*or --insecure"):
        transport("--host", host)
    assert not transport("--host", host, "--insecure").secure
    assert "reads along" in caplog.text
    assert not transport(environment={"VECTORFLEET_HOST": host, "VECTORFLEET_INSECURE": "1"}).secure


@both
def test_so_must_an_etcd_elsewhere(transport: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    elsewhere = ["--etcd", "127.0.0.1:2379, etcd-0.etcd:2379"]
    certificates = flags(write(tmp_path))
    for ours in ([], certificates):
        with pytest.raises(ValueError, match=r"etcd at etcd-0\.etcd:2379 in the clear: give --etcd-ca, or --insecure"):
            transport(*elsewhere, *ours)
        assert transport(*elsewhere, *ours, "--etcd-ca", "ca.crt").secure == bool(ours)
        assert transport(*elsewhere, *ours, "--insecure").secure == bool(ours)
    assert "speaks to etcd at etcd-0.etcd:2379 in the clear" in caplog.text


@both
def test_certificates_switch_tls_on(transport: Make, tmp_path: Path) -> None:
    files = write(tmp_path)
    assert transport("--host", ANYWHERE, *flags(files)).secure
    variables = {"VECTORFLEET_TLS_CA": files.ca, "VECTORFLEET_TLS_CERT": files.cert, "VECTORFLEET_TLS_KEY": files.key}
    assert transport(environment={name: str(path) for name, path in variables.items()}).secure


@both
@pytest.mark.parametrize("left_out", [0, 2, 4])
def test_a_part_of_them_is_none(transport: Make, tmp_path: Path, left_out: int) -> None:
    given = flags(write(tmp_path))
    with pytest.raises(ValueError, match="go together"):
        transport(*given[:left_out], *given[left_out + 2 :])


@both
def test_what_is_wrong_with_a_file_is_said_at_the_start(transport: Make, tmp_path: Path) -> None:
    files = write(tmp_path)
    assert files.key
    files.key.unlink()
    with pytest.raises(ValueError, match=r"router\.key cannot be read: No such file"):
        transport(*flags(files))


def test_a_router_may_do_without_clients_certificates_and_a_shard_server_never(tmp_path: Path) -> None:
    files = flags(write(tmp_path))
    assert router(*files).identifies
    assert not router(*files, "--client-certificates", "none").identifies
    assert not router(*files, environment={"VECTORFLEET_CLIENT_CERTIFICATES": "none"}).identifies
    assert shard(*files, environment={"VECTORFLEET_CLIENT_CERTIFICATES": "none"}).identifies
    with pytest.raises(SystemExit):
        router(*files, environment={"VECTORFLEET_CLIENT_CERTIFICATES": "perhaps"})
