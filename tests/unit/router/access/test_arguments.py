"""The command line about access: when it asks for credentials, and which combinations make no sense."""

from __future__ import annotations

from pathlib import Path

import pytest

from router.access.arguments import access_settings_of
from router.access.settings import AccessSettings
from router.arguments import parse
from tests.signing import jwk_set, public_jwk, rsa_key
from vectorfleet.cluster.key_record import Limits

KEY = "0123456789abcdef" * 4


def settings(*arguments: str, **environment: str) -> AccessSettings:
    variables = {f"VECTORFLEET_{name}": value for name, value in environment.items()}
    return access_settings_of(parse(["--etcd", "e:1", *arguments], variables), variables)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "admin.key").write_text(f"{KEY}\n")
    (tmp_path / "jwks.json").write_bytes(jwk_set(public_jwk(rsa_key(), "k0")))
    return tmp_path


def test_nobody_is_asked_unless_something_says_so(files: Path) -> None:
    jwks = ("--jwks-file", str(files / "jwks.json"), "--jwt-audience", "a")
    assert not settings().required
    assert not settings("--auth", "off").required
    assert not settings("--audit-log", "-", "--limit-calls-per-s", "5").required
    assert settings("--auth", "required").required
    assert settings(AUTH="required").required
    assert settings("--admin-key-file", str(files / "admin.key")).required
    assert settings(ADMIN_KEY=KEY).required
    assert settings(*jwks).required
    assert settings(JWKS_URL="https://login.example/keys", JWT_AUDIENCE="a").required


def test_what_was_said_is_kept(files: Path) -> None:
    found = settings(
        "--jwks-file", str(files / "jwks.json"), "--jwt-audience", "a", "--jwt-issuer", "i", "--jwt-leeway-s", "1.5",
        "--jwt-scope-claim", "roles", "--limit-calls-per-s", "1", "--limit-points-per-s", "2", "--limit-points-per-day", "3",
        "--audit-log", "x", "--audit-reads", "0.5",
    )  # fmt: skip
    assert found.jwt is not None
    assert (found.jwt.audience, found.jwt.issuer, found.jwt.leeway_s, found.jwt.claim) == ("a", "i", 1.5, "roles")
    assert (found.limits, found.audit_log, found.audit_reads) == (Limits(1, 2, 3), "x", 0.5)
    assert KEY not in repr(settings(ADMIN_KEY=KEY))


@pytest.mark.parametrize(
    ("arguments", "environment", "why"),
    [
        (["--auth", "off"], {"ADMIN_KEY": KEY}, "contradicts"),
        (["--auth", "off", "--jwks-url", "https://a.example", "--jwt-audience", "a"], {}, "contradicts"),
        (["--jwks-url", "https://a.example"], {}, "--jwt-audience"),
        (["--jwt-audience", "a"], {}, "--jwt-audience"),
        (["--jwks-url", "https://a.example", "--jwks-file", "x", "--jwt-audience", "a"], {}, "exclude"),
        (["--jwt-grants-file", "x"], {}, "goes with"),
        ([], {"ADMIN_KEY": ""}, "holds no key"),
        ([], {"ADMIN_KEY": "short"}, "holds no key"),
        (["--admin-key-file", "x"], {"ADMIN_KEY": KEY}, "exclude"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: list[str], environment: dict[str, str], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        settings(*arguments, **environment)


def test_a_secret_that_is_missing_leaves_nothing_open(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        settings("--admin-key-file", str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    "arguments", [["--auth", "on"], ["--audit-reads", "2"], ["--limit-calls-per-s", "-1"], ["--jwt-leeway-s", "nan"]]
)
def test_what_is_out_of_range_ends_with_status_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        settings(*arguments)
    assert caught.value.code == 2
