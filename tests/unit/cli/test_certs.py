"""`vectorfleet certs`: an authority and certificates that OpenSSL and our own checks take for sound."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography import x509

from vectorfleet.cli import main
from vectorfleet.tls import TlsFiles

ROLES = ("router", "shard", "etcd", "client")


def certs(*arguments: str, code: int = 0) -> Result:
    done = CliRunner().invoke(main, ["certs", *arguments], prog_name="vectorfleet")
    assert done.exit_code == code, (done.output, done.exception)
    return done


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def names(path: Path) -> set[str]:
    found = certificate(path).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {str(name.value) for name in found}


def test_files_that_fit_together(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "pki"
    told = certs(str(folder), "--hosts", "localhost, 127.0.0.1,*.shard.example", "--days", "7").output
    written = {f"{name}.{kind}" for name in ("ca", *ROLES) for kind in ("crt", "key")}
    assert {path.name for path in folder.iterdir()} == written
    assert {line.removeprefix(f"wrote {folder}/") for line in told.splitlines() if line.startswith("wrote")} == written
    for path in folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == (0o600 if path.suffix == ".key" else 0o644), path
    for role in ROLES:
        TlsFiles(folder / "ca.crt", folder / f"{role}.crt", folder / f"{role}.key").read()
        checked = ["openssl", "verify", "-x509_strict", "-CAfile", str(folder / "ca.crt"), str(folder / f"{role}.crt")]
        assert subprocess.run(checked, capture_output=True, text=True, check=True).stdout.endswith(": OK\n")
        valid = certificate(folder / f"{role}.crt")
        assert (valid.not_valid_after_utc - valid.not_valid_before_utc).days == 7
    hosts = {"localhost", "127.0.0.1", "*.shard.example"}
    assert names(folder / "router.crt") == hosts | {"spiffe://vectorfleet/router"}
    assert names(folder / "shard.crt") == hosts | {"spiffe://vectorfleet/shard"}
    assert names(folder / "etcd.crt") == hosts
    assert names(folder / "client.crt") == {"spiffe://vectorfleet/client/default"}, "a client cannot pass for a server"


def test_nothing_is_overwritten_and_a_renewal_keeps_the_authority(tmp_path: Path) -> None:
    certs(str(tmp_path), "--trust-domain", "prod.example")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert "nothing is overwritten" in certs(str(tmp_path), code=1).output
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    certs(str(tmp_path), "--renew", "--trust-domain", "prod.example")
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert after.keys() == before.keys()
    assert {name for name in after if after[name] == before[name]} == {"ca.crt", "ca.key"}
    assert "spiffe://prod.example/router" in names(tmp_path / "router.crt")
    assert stat.S_IMODE((tmp_path / "router.key").stat().st_mode) == 0o600


@pytest.mark.parametrize("content", [None, "", "no key"])
def test_a_renewal_without_an_authority(tmp_path: Path, content: str | None) -> None:
    certs(str(tmp_path))
    (tmp_path / "ca.key").unlink()
    if content is not None:
        (tmp_path / "ca.key").write_text(content)
    assert certs(str(tmp_path), "--renew", code=1).output.startswith("Error: ")


@pytest.mark.parametrize("hosts", ["bücher.example", "a b\udcff"])
def test_names_that_no_certificate_can_bear(tmp_path: Path, hosts: str) -> None:
    certs(str(tmp_path / "new"), "--hosts", hosts, code=1)
    assert not (tmp_path / "new").exists()


def test_without_cryptography_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "vectorfleet.authority", raising=False)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    assert "pip install 'vectorfleet[certs]'" in certs(str(tmp_path), code=1).output
