"""API keys, as etcd holds them: what a key may do, and the hash of its secret. Pure.

A key is `vfk_` + ID + `_` + SECRET: 16 and 64 hexadecimal digits, both random. The id is no secret; logs and lists show it. Of
the secret nothing is kept but the SHA-256 of the whole key. That is enough: slow hashes protect what people think up, and
nobody finds 256 random bits by trying.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Final, Self

FORMAT_VERSION: Final = 1
_KEY: Final = re.compile(r"vfk_([0-9a-f]{16})_[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one caller may ask of one router; 0: as the router's own limits say."""

    calls_per_s: float = 0.0
    points_per_s: float = 0.0
    """Points written and deleted, and queries."""
    points_per_day: float = 0.0
    """The same, over a day."""


NO_LIMITS: Final = Limits()


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """One API key."""

    id: str
    digest: str
    """SHA-256 of the key, 64 hexadecimal digits."""
    scopes: tuple[str, ...]
    description: str = ""
    create_time_ms: int = 0
    expire_time_ms: int = 0
    """0: never."""
    limits: Limits = NO_LIMITS
    mod_revision: int = 0
    """etcd's revision of its creation. Not stored."""

    def to_json(self) -> bytes:
        """The value that etcd holds."""
        body = asdict(self)
        del body["mod_revision"]
        return json.dumps({"format_version": FORMAT_VERSION, **body}, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, value: bytes, mod_revision: int = 0) -> Self:
        """Reads what `to_json` wrote; raises `ValueError` where it did not."""
        body = json.loads(value)
        version = body.get("format_version") if isinstance(body, dict) else None
        if version != FORMAT_VERSION:
            raise ValueError(f"key record has format version {version}; this release reads {FORMAT_VERSION}")
        known = _known(cls, body)
        return cls(**{**known, "scopes": tuple(body["scopes"]), "limits": Limits(**_known(Limits, body["limits"]))}).at(
            mod_revision
        )

    def at(self, mod_revision: int) -> Self:
        """The same record, as etcd holds it since a revision."""
        return replace(self, mod_revision=mod_revision)


def new_key() -> tuple[str, str]:
    """Makes a key; returns its id and the whole of it."""
    key_id = secrets.token_hex(8)
    return key_id, f"vfk_{key_id}_{secrets.token_hex(32)}"


def key_id_of(credential: str) -> str:
    """The id within a key; "": this has not the form of one."""
    match = _KEY.fullmatch(credential)
    return match[1] if match else ""


def digest_of(credential: str) -> str:
    """What is kept of a credential: 64 hexadecimal digits."""
    return hashlib.sha256(credential.encode(errors="surrogatepass")).hexdigest()


def _known(cls: Any, body: Mapping[str, Any]) -> dict[str, Any]:
    return {field.name: body[field.name] for field in fields(cls) if field.name in body}
