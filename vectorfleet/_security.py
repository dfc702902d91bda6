"""What a client needs to trust a cluster and to be trusted by it, and where it is found.

Each setting on its own: the argument; else the environment (`VECTORFLEET_CA`, `VECTORFLEET_CERT`, `VECTORFLEET_KEY`,
`VECTORFLEET_INSECURE`); else the configuration file (`VECTORFLEET_CONFIG`, or ~/.config/vectorfleet/config.toml). The file has a
table for each cluster, named by its address, so that what is meant for one cluster never reaches another:

    ["router.example:7700"]
    ca = "ca.crt"           # relative to this file
    cert = "client.crt"
    key = "client.key"
    api_key_file = "api.key"

A credential comes whole from one of the three: from `api_key` or `token`; `VECTORFLEET_API_KEY`, `VECTORFLEET_API_KEY_FILE`,
`VECTORFLEET_TOKEN` or `VECTORFLEET_TOKEN_FILE`; `api_key_file` or `token_file`. It is sent over TLS, or to this machine.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import grpc

from vectorfleet._arguments import refuse
from vectorfleet._credentials import Secret
from vectorfleet.loopback import is_loopback
from vectorfleet.tls import TlsError, TlsFiles

SYSTEM: Final = "system"
"""As `ca`: the authorities that gRPC trusts by default, for routers with a public certificate."""
_FILES: Final = ("ca", "cert", "key")
_TRANSPORT: Final = (*_FILES, "insecure")
_CREDENTIALS: Final = ("api_key", "token")
_YES: Final = frozenset({"1", "true", "yes", "on"})


@dataclass(frozen=True, slots=True)
class Security:
    """How a client trusts the cluster and is trusted by it. What is None comes from the environment or the configuration file."""

    ca: str | os.PathLike[str] | None = None
    """Who signs the router's certificate (PEM), or "system"; switches TLS on. "": no TLS, whatever else is said."""
    cert: str | os.PathLike[str] | None = None
    """This client's certificate (PEM), where the router wants one."""
    key: str | os.PathLike[str] | None = None
    """The key of that certificate (PEM)."""
    insecure: bool | None = None
    """True: speak in the clear to another machine. Whoever is between reads along."""
    api_key: Secret | None = field(default=None, repr=False)
    """An API key: the key itself, the path of its file, or a function that returns it before each call."""
    token: Secret | None = field(default=None, repr=False)
    """A JSON Web Token, likewise; a file is read again when it changes."""

    @property
    def tls(self) -> bool:
        """Whether the connection is encrypted, once it was resolved."""
        return bool(self.ca)

    def credentials(self) -> grpc.ChannelCredentials:
        """Reads the files of a connection that is encrypted. Raises `InvalidRequest`."""
        ca, cert, key = (
            None if path is None or path == SYSTEM else Path(path) for path in (self.ca, self.cert, self.key)
        )
        try:
            return TlsFiles(ca, cert, key).read().channel_credentials()
        except TlsError as error:
            refuse("security", str(error))


def resolve(address: str, given: Security | None = None, environment: Mapping[str, str] = os.environ) -> Security:
    """Puts together what the arguments, the environment and the configuration file say of a cluster.

    Args:
        address: of the router, as the caller names it.
        given: the arguments.
        environment: of the process.

    Raises:
        InvalidRequest: they do not fit together, or something is missing; the message says what.
    """
    found = replace(given or Security())
    for more in (_of_environment(environment), _of_file(address, environment)):
        missing = {name: getattr(more, name) for name in _TRANSPORT if getattr(found, name) is None}
        if found.api_key is None and found.token is None:
            missing |= {name: getattr(more, name) for name in _CREDENTIALS}
        found = replace(found, **missing)
    if (found.cert is None) != (found.key is None):
        refuse(
            "security", f"a certificate and its key go together: give {'key' if found.key is None else 'cert'} as well"
        )
    if found.cert is not None and found.ca is None:
        refuse("security", 'give ca as well: who signs the router\'s certificate, or "system"')
    here = is_loopback(address.rpartition(":")[0].rpartition("/")[2])
    if not found.tls and not here and (found.api_key is not None or found.token is not None):
        refuse(
            "security",
            f"{address} is not this machine, and without TLS whoever is between could take the credential and use it: give ca",
        )
    if not found.tls and not found.insecure and not here:
        refuse(
            "security",
            f"{address} is not this machine, and without TLS whoever is between reads along: give ca (and cert and key), or "
            "insecure where the network itself keeps everybody else out",
        )
    return found


def hint(message: str, security: Security) -> str:
    """What a failed connection may mean, as far as gRPC's words for it tell; "" where they tell nothing."""
    for sign, meaning in _SIGNS.items():
        if sign in message:
            return meaning
    if not any(sign in message for sign in _CLOSED):
        return ""
    if not security.tls:
        return "it may speak TLS alone: give ca"
    if security.cert is None:
        return "it may want a certificate: give cert and key"
    return "it may refuse this certificate: expired, or signed by an authority that it does not trust"


_SIGNS: Final = {
    "WRONG_VERSION_NUMBER": "it does not speak TLS: leave ca out, or start it with certificates",
    "Hostname Verification Check failed": "its certificate is for other names than this address",
    "certificate has expired": "its certificate has expired",
    "certificate is not yet valid": "its certificate is not valid yet: compare the clocks",
    "certificate signature failure": "its certificate is not signed by the authority in ca",
    "CERTIFICATE_VERIFY_FAILED": "its certificate is not signed by the authority in ca",
}
_CLOSED: Final = ("Socket closed", "Connection reset", "Broken pipe")


def _of_environment(environment: Mapping[str, str]) -> Security:
    def of(name: str) -> str | None:
        return environment.get(f"VECTORFLEET_{name.upper()}") or None

    def secret(name: str) -> Secret | None:
        path = of(f"{name}_file")
        if path is not None and of(name) is not None:
            refuse("security", f"VECTORFLEET_{name.upper()} and VECTORFLEET_{name.upper()}_FILE exclude each other")
        return of(name) if path is None else Path(path)

    insecure = of("insecure")
    return Security(
        of("ca"),
        of("cert"),
        of("key"),
        insecure=None if insecure is None else insecure.lower() in _YES,
        api_key=secret("api_key"),
        token=secret("token"),
    )


def _of_file(address: str, environment: Mapping[str, str]) -> Security:
    path = config_path(environment)
    table = _tables(path, bool(environment.get("VECTORFLEET_CONFIG"))).get(address, {})
    secrets = {name: f"{name}_file" for name in _CREDENTIALS}
    kinds = {**dict.fromkeys((*_FILES, *secrets.values()), str), "insecure": bool}
    if not isinstance(table, dict) or any(type(value) is not kinds.get(name) for name, value in table.items()):
        refuse(
            "security",
            f'{path}: ["{address}"] may hold ca, cert, key, api_key_file and token_file, each the name of a file, and '
            "insecure, a boolean",
        )
    places = {
        name: value if value == SYSTEM else str(path.parent / Path(value).expanduser())
        for name, value in table.items()
        if name in _FILES
    }
    credentials = {name: path.parent / Path(table[key]).expanduser() for name, key in secrets.items() if key in table}
    return Security(**places, insecure=table.get("insecure"), **credentials)


def _tables(path: Path, wanted: bool) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if wanted:
            refuse("security", f"VECTORFLEET_CONFIG names {path}, which is not there")
        return {}
    except (OSError, ValueError) as error:
        refuse("security", f"{path} cannot be read: {getattr(error, 'strerror', None) or error}")


def config_path(environment: Mapping[str, str]) -> Path:
    """Where the configuration file is."""
    if environment.get("VECTORFLEET_CONFIG"):
        return Path(environment["VECTORFLEET_CONFIG"]).expanduser()
    home = environment.get("XDG_CONFIG_HOME") or Path(environment.get("HOME") or "~").expanduser() / ".config"
    return Path(home) / "vectorfleet" / "config.toml"
