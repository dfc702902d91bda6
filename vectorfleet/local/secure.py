"""What makes a local cluster a secure one: an authority and certificates of its own, an admin key, and a user in its etcd.

All of it lies in one folder. The authority stays; what it signs is made anew at each start, for the hosts of that start. No
secret is ever an argument of a process, where every user of the machine could read it: they are files for their owner alone.
"""

from __future__ import annotations

import base64
import http.client
import json
import secrets
import ssl
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from vectorfleet._security import Security
from vectorfleet.cluster.etcd import DEFAULT_PREFIX
from vectorfleet.identity import TRUST_DOMAIN_DEFAULT
from vectorfleet.local.failure import LocalClusterError

DAYS: Final = 3650
ETCD_USER: Final = "vectorfleet"
ADMIN_KEY: Final = "admin.key"
_TIMEOUT_S: Final = 5.0
_DONE_BEFORE: Final = ("already exists", "already granted", "authentication is already enabled")
"""etcd's answers to a step that an earlier start had come to."""


class LocalSecurity:
    """The certificates of a cluster in a folder, and what each process is told of them.

    Args:
        folder: of all that is secret.
        audit_log: which all routers and shard servers share.
    """

    def __init__(self, folder: Path, audit_log: Path) -> None:
        self.folder: Final = folder
        self.audit_log: Final = audit_log

    @property
    def client(self) -> Security:
        """What a client of this cluster needs."""
        return Security(
            self._file("ca.crt"),
            self._file("client.crt"),
            self._file("client.key"),
            api_key=self.folder / ADMIN_KEY,
        )

    @property
    def client_config(self) -> Path:
        """Where `write_client_config` writes."""
        return self.folder / "client.toml"

    def write_client_config(self, addresses: Iterable[str]) -> None:
        """Says in a client's configuration file what it needs for these routers."""
        files = f'ca = "ca.crt"\ncert = "client.crt"\nkey = "client.key"\napi_key_file = "{ADMIN_KEY}"\n'
        self.client_config.write_text("\n".join(f'["{address}"]\n{files}' for address in addresses))

    def prepare(self, hosts: Sequence[str]) -> None:
        """Makes what is missing, and all certificates anew.

        Args:
            hosts: names and addresses of this machine under which the processes are reached.

        Raises:
            LocalClusterError: the package cryptography is missing, or the folder cannot be used.
        """
        try:
            from vectorfleet import authority
        except ImportError as error:
            raise LocalClusterError("a secure cluster needs cryptography: pip install 'vectorfleet[local]'") from error
        make = authority.renew_certificates if (self.folder / "ca.key").exists() else authority.write_certificates
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            make(self.folder, hosts, DAYS, TRUST_DOMAIN_DEFAULT)
            for name in ("etcd-root.password", "etcd.password", ADMIN_KEY):
                if not (self.folder / name).exists():
                    authority.write_new(self.folder / name, secrets.token_urlsafe(32).encode(), 0o600)
        except (OSError, ValueError) as error:
            raise LocalClusterError(f"the certificates in {self.folder} cannot be made: {error}") from error

    def etcd_flags(self) -> list[str]:
        """For etcd: TLS towards clients and members, both of which show a certificate."""
        ca, certificate, key = self._file("ca.crt"), self._file("etcd.crt"), self._file("etcd.key")
        ours = {"client-cert-auth": "true", "trusted-ca-file": ca, "cert-file": certificate, "key-file": key}
        return [f"--{side}{name}={value}" for side in ("", "peer-") for name, value in ours.items()]

    def server_flags(self, role: str) -> list[str]:
        """For a router or a shard server."""
        ca, certificate, key = self._file("ca.crt"), self._file(f"{role}.crt"), self._file(f"{role}.key")
        ours = ["--tls-ca", ca, "--tls-cert", certificate, "--tls-key", key]
        etcd = ["--etcd-ca", ca, "--etcd-cert", certificate, "--etcd-key", key]
        user = ["--etcd-user", ETCD_USER, "--etcd-password-file", self._file("etcd.password")]
        access = ["--admin-key-file", self._file(ADMIN_KEY)] if role == "router" else []
        return [*ours, *etcd, *user, *access, "--audit-log", str(self.audit_log)]

    def etcd_connection(self, address: str, timeout_s: float) -> http.client.HTTPSConnection:
        """A connection to etcd's gateway that shows a certificate."""
        context = ssl.create_default_context(cafile=self._file("ca.crt"))
        context.load_cert_chain(self._file("etcd.crt"), self._file("etcd.key"))
        return http.client.HTTPSConnection(address, timeout=timeout_s, context=context)

    def enable_users(self, address: str) -> None:
        """Gives etcd a user for this cluster's keys and switches its access control on; may be called again.

        Raises:
            LocalClusterError: etcd refuses, or does not answer.
        """
        root = (self.folder / "etcd-root.password").read_text()
        password = (self.folder / "etcd.password").read_text()
        first, last = _b64(DEFAULT_PREFIX), _b64(DEFAULT_PREFIX[:-1] + chr(ord(DEFAULT_PREFIX[-1]) + 1))
        permission = {"permType": "READWRITE", "key": first, "range_end": last}
        steps: list[tuple[str, dict[str, Any]]] = [
            ("user/add", {"name": "root", "password": root}),
            ("role/add", {"name": "root"}),
            ("user/grant", {"user": "root", "role": "root"}),
            ("user/add", {"name": ETCD_USER, "password": password}),
            ("role/add", {"name": ETCD_USER}),
            ("role/grant", {"name": ETCD_USER, "perm": permission}),
            ("user/grant", {"user": ETCD_USER, "role": ETCD_USER}),
            ("enable", {}),
        ]
        connection = self.etcd_connection(address, _TIMEOUT_S)
        try:
            if "user name is empty" in str(_ask(connection, "status", {}).get("error", "")):
                return  # it wants to know who asks: access control is on
            for step, request in steps:
                answer = _ask(connection, step, request)
                told = str(answer.get("error", ""))
                if told and not any(known in told for known in _DONE_BEFORE):
                    raise LocalClusterError(f"etcd refuses auth/{step}: {told}")
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise LocalClusterError(f"etcd's users cannot be set up: {error}") from error
        finally:
            connection.close()

    def _file(self, name: str) -> str:
        return str(self.folder / name)


def _ask(connection: http.client.HTTPSConnection, step: str, request: Mapping[str, Any]) -> dict[str, Any]:
    connection.request("POST", f"/v3/auth/{step}", json.dumps(request), {"Content-Type": "application/json"})
    answer: dict[str, Any] = json.loads(connection.getresponse().read())
    return answer


def _b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
