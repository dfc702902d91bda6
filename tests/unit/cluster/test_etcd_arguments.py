"""What the command line says of etcd, and what it refuses."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from vectorfleet.cluster.etcd_arguments import add_etcd_arguments, coordinator_of


def parsed(arguments: list[str], environment: dict[str, str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_etcd_arguments(parser, environment)
    return parser.parse_args(arguments)


def test_arguments_win_over_the_environment() -> None:
    environment = {"VECTORFLEET_ETCD": "a:1", "VECTORFLEET_ETCD_PREFIX": "/x/", "VECTORFLEET_ETCD_USER": "ann"}
    found = parsed(["--etcd-prefix", "/y/"], environment)
    assert (found.etcd, found.etcd_prefix, found.etcd_user) == ("a:1", "/y/", "ann")


def test_etcd_must_be_named_somewhere(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises((SystemExit, argparse.ArgumentError)):
        parsed([], {})
    capsys.readouterr()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--etcd", ","], "at least one endpoint"),
        (["--etcd", "http://a:1"], "host:port"),
        (["--etcd", "a"], "host:port"),
        (["--etcd", "a:1", "--etcd-prefix", "/x"], "end in '/'"),
        (["--etcd", "a:1", "--etcd-cert", "c.pem"], "go together"),
    ],
)
async def test_what_makes_no_sense_is_refused(arguments: list[str], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        coordinator_of(parsed(arguments, {}), {})


async def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ca\.pem cannot be read"):
        coordinator_of(parsed(["--etcd", "a:1", "--etcd-ca", str(tmp_path / "ca.pem")], {}), {})


async def test_a_coordinator_comes_of_it_and_has_no_state_yet(tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text("secret\n")
    arguments = ["--etcd", "127.0.0.1:1, 127.0.0.1:2", "--etcd-user", "ann", "--etcd-password-file", str(password)]
    coordinator = coordinator_of(parsed(arguments, {}), {})
    assert (coordinator.state.epoch, coordinator.connected, coordinator.leading) == (0, False, False)
    await coordinator.close()
