"""Files of certificates: what is wrong with them is said when they are read, and a renewal is taken up once it is whole."""

from __future__ import annotations

import dataclasses
import ssl
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization

from tests.certificates import authority, write
from vectorfleet.tls import TlsError, TlsFiles, TlsWatch


def complaint(files: TlsFiles) -> str:
    with pytest.raises(TlsError) as caught:
        files.read()
    return str(caught.value)


@pytest.fixture
def files(tmp_path: Path) -> TlsFiles:
    return write(tmp_path)


def test_sound_files_are_read_as_they_are(files: TlsFiles) -> None:
    assert files.ca
    assert files.cert
    assert files.key
    material = files.read()
    assert material.ca == files.ca.read_bytes() == authority().certificate_pem
    assert (material.cert, material.key) == (files.cert.read_bytes(), files.key.read_bytes())
    assert TlsFiles(files.ca).read().cert is None


@pytest.mark.parametrize("name", ["ca", "cert", "key"])
def test_the_file_at_fault_is_named(files: TlsFiles, name: str, tmp_path: Path) -> None:
    path = getattr(files, name)
    whole = path.read_bytes()
    for content in (b"", b"no PEM at all", whole[: len(whole) // 2]):
        path.write_bytes(content)
        assert str(path) in complaint(files)
    path.unlink()
    assert complaint(files) == f"{path} cannot be read: No such file or directory"
    path.mkdir()
    assert complaint(files) == f"{path} cannot be read: Is a directory"


def test_a_key_that_is_not_the_certificates(files: TlsFiles, tmp_path: Path) -> None:
    other = write(tmp_path / "other")
    wrong = dataclasses.replace(files, key=other.key)
    assert complaint(wrong) == f"the key in {other.key} is not that of the certificate in {files.cert}"


def test_a_key_without_its_certificate(files: TlsFiles) -> None:
    assert "go together" in complaint(dataclasses.replace(files, cert=None))


def test_a_key_that_wants_a_passphrase_is_refused_without_asking_for_it(files: TlsFiles) -> None:
    assert files.key
    key = serialization.load_pem_private_key(files.key.read_bytes(), None)
    sealed = serialization.BestAvailableEncryption(b"passphrase")
    encrypted = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, sealed)
    files.key.write_bytes(encrypted)
    assert "wants a passphrase" in complaint(files)


def test_a_renewal_is_taken_up_when_its_last_file_is_there(
    files: TlsFiles, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    watch = TlsWatch(files)
    before = watch.material
    assert (watch.look(), watch.generation) == (False, 0)
    new = write(tmp_path / "new")
    for name in ("cert", "key"):
        assert (watch.look(), watch.material) == (False, before), "the old pair goes on"
        getattr(files, name).write_bytes(getattr(new, name).read_bytes())
    assert watch.look()
    assert (watch.generation, watch.material) == (1, new.read())
    assert not watch.look()
    assert sum("not taken over yet" in record.message for record in caplog.records) == 1, "told once, not each second"


def test_files_that_vanish_leave_the_last_good_ones(files: TlsFiles) -> None:
    assert files.key
    watch = TlsWatch(files)
    before = watch.material
    key = files.key.read_bytes()
    files.key.unlink()
    assert not watch.look()
    files.key.write_bytes(key)
    assert not watch.look(), "the same again is no change"
    assert (watch.generation, watch.material) == (0, before)


def test_what_was_checked_is_what_was_read(files: TlsFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new = write(tmp_path / "new")
    check = ssl.SSLContext.load_cert_chain

    def replaced_meanwhile(context: ssl.SSLContext, *arguments: Any, **options: Any) -> None:
        for name in ("cert", "key"):
            getattr(files, name).write_bytes(getattr(new, name).read_bytes())
        check(context, *arguments, **options)

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", replaced_meanwhile)
    assert "change while they are read" in complaint(files)
    assert files.read().cert == new.read().cert, "and the next look finds them whole"
