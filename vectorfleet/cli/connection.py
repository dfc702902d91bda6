"""What commands that talk to a cluster have in common: `--address`, `--timeout`, `--json`, certificates, and the client."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from vectorfleet._client import Client
from vectorfleet._security import Security
from vectorfleet.limits import BACKUP_TIMEOUT_DEFAULT_S

DEFAULT_ADDRESS: Final = "127.0.0.1:7700"
DEFAULT_TIMEOUT_S: Final = 30.0

_SECURITY: Final = {
    "ca": 'Who signs the router\'s certificate (PEM), or "system"; switches TLS on.',
    "cert": "This client's certificate (PEM).",
    "key": "The key of that certificate (PEM).",
}

_CREDENTIALS: Final = {
    "api-key": "Holds the API key. [env: VECTORFLEET_API_KEY_FILE; VECTORFLEET_API_KEY: the key]",
    "token": "Holds a JSON Web Token. [env: VECTORFLEET_TOKEN_FILE; VECTORFLEET_TOKEN: the token]",
}

as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of text.")


def secured(command: Callable[..., None]) -> Callable[..., None]:
    """Adds what a client shows and trusts; the command gets it as `security`."""

    @functools.wraps(command)
    def run(
        *args: Any,
        ca: str | None,
        cert: str | None,
        key: str | None,
        insecure: bool,
        api_key_file: Path | None,
        token_file: Path | None,
        **options: Any,
    ) -> None:
        security = Security(ca, cert, key, insecure=insecure or None, api_key=api_key_file, token=token_file)
        command(*args, security=security, **options)

    # Files alone: every user of a machine can read command lines. The keys themselves may be in the environment.
    for name, meaning in reversed(_CREDENTIALS.items()):
        run = click.option(f"--{name}-file", metavar="FILE", type=click.Path(path_type=Path), help=meaning)(run)

    for name, meaning in reversed(_SECURITY.items()):
        run = click.option(
            f"--{name}", metavar="FILE", envvar=f"VECTORFLEET_{name.upper()}", show_envvar=True, help=meaning
        )(run)
    return click.option(
        "--insecure", is_flag=True, help="Speak in the clear to another machine. [env: VECTORFLEET_INSECURE]"
    )(run)


def connected(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options to a command, which gets `client` and `as_json` as arguments."""

    @_options(DEFAULT_TIMEOUT_S, "How long each call to the cluster may take.")
    @functools.wraps(command)
    def run(*args: Any, address: str, timeout: float, security: Security, **options: Any) -> None:
        with Client(address, timeout=timeout, security=security) as client:
            command(*args, client=client, **options)

    return run


def connected_for_long(command: Callable[..., None]) -> Callable[..., None]:
    """The same for a command that takes its time: it gets `timeout`, in seconds, as well."""

    @_options(BACKUP_TIMEOUT_DEFAULT_S, "How long all of it may take.")
    @functools.wraps(command)
    def run(*args: Any, address: str, security: Security, **options: Any) -> None:
        with Client(address, security=security) as client:
            command(*args, client=client, **options)

    return run


def _options(timeout_s: float, meaning: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    def add(command: Callable[..., None]) -> Callable[..., None]:
        timeout = click.option(
            "--timeout",
            type=click.FloatRange(min=0, min_open=True),
            default=timeout_s,
            show_default=True,
            metavar="SECONDS",
            help=meaning,
        )
        address = click.option(
            "--address",
            envvar="VECTORFLEET_ADDRESS",
            default=DEFAULT_ADDRESS,
            show_default=True,
            show_envvar=True,
            metavar="HOST:PORT",
            help="A router of the cluster.",
        )
        return as_json(timeout(address(secured(command))))

    return add
