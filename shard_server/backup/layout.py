"""What lies where at a backup's destination, and how its lists are written. Pure.

    objects/<uid>/<shard>/<checksum>-<bytes>      a file of a shard, or the list of its files
    objects/<uid>/codebooks/<checksum>-<bytes>    a codebook
    backups/<id>.jsonl                            a backup's manifest: written last, so that a backup is complete or absent

An object's key tells its content, so that a file which an earlier backup left there is not sent again, and a file that
changed never replaces one that an earlier backup needs. Keys are kept apart by collection and shard: XXH3-64 finds damage, but
somebody who wanted to could make two contents of one checksum.

A manifest is two lines: a header with the checksum of the second, and a `BackupManifest` as JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Final, TypeVar

import xxhash
from google.protobuf import json_format
from google.protobuf.message import Message

from vectorfleet.errors import DataLoss, FailedPrecondition, InvalidRequest
from vectorfleet.internal.v1 import backup_pb2, storage_pb2

FORMAT_VERSION: Final = 1
BACKUPS: Final = "backups/"
_FORMAT: Final = "vectorfleet backup"
_SUFFIX: Final = ".jsonl"
_ID: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z.-]{0,127}")
M = TypeVar("M", bound=Message)


def shard_prefix(uid: str, shard: int) -> str:
    """Below this lie the objects of one shard."""
    return f"objects/{uid}/{shard}/"


def codebook_prefix(uid: str) -> str:
    """Below this lie the codebooks of one collection."""
    return f"objects/{uid}/codebooks/"


def object_of(prefix: str, entry: storage_pb2.FileEntry) -> backup_pb2.BackupObject:
    """The object that a file of this size and checksum becomes."""
    return backup_pb2.BackupObject(
        key=f"{prefix}{entry.checksum:016x}-{entry.bytes}", bytes=entry.bytes, checksum=entry.checksum
    )


def object_of_content(prefix: str, content: bytes) -> backup_pb2.BackupObject:
    """The object that a content becomes."""
    digest = xxhash.xxh3_64_intdigest(content)
    return object_of(prefix, storage_pb2.FileEntry(bytes=len(content), checksum=digest))


def absent(files: Iterable[backup_pb2.BackedUpFile], present: Mapping[str, int]) -> list[backup_pb2.BackedUpFile]:
    """The files of which no object is there yet: each content once. An object of another size than its key says is none."""
    wanted = {one.object.key: one for one in files}
    return [one for key, one in wanted.items() if present.get(key) != one.object.bytes]


def manifest_key(backup: str) -> str:
    """Where the manifest of a backup lies. Raises `InvalidRequest` for what is no id."""
    if _ID.fullmatch(backup) is None:
        raise InvalidRequest(f"{backup!r} is no backup id", field="backup")
    return f"{BACKUPS}{backup}{_SUFFIX}"


def backup_ids(keys: Iterable[str]) -> list[str]:
    """The ids of the backups whose manifests are among these keys, the oldest first."""
    names = (key.removeprefix(BACKUPS).removesuffix(_SUFFIX) for key in keys if key.endswith(_SUFFIX))
    return sorted(name for name in names if _ID.fullmatch(name))


def to_json(message: Message) -> bytes:
    """A message as one line of JSON."""
    text = json_format.MessageToJson(message, preserving_proto_field_name=True, indent=None)
    return text.encode()


def from_json(kind: type[M], content: bytes, key: str) -> M:
    """Reads what `to_json` wrote; fields that a newer release added are passed over. Raises `DataLoss` naming the object."""
    try:
        return json_format.Parse(content, kind(), ignore_unknown_fields=True)
    except (json_format.ParseError, UnicodeDecodeError) as error:
        raise damaged(key, f"it cannot be read: {error}") from error


def write_manifest(manifest: backup_pb2.BackupManifest) -> bytes:
    """The content of a manifest's object."""
    body = to_json(manifest)
    header = {"format": _FORMAT, "xxh3_64": f"{xxhash.xxh3_64_intdigest(body):016x}"}
    return json.dumps(header).encode() + b"\n" + body + b"\n"


def read_manifest(content: bytes, key: str) -> backup_pb2.BackupManifest:
    """Reads what `write_manifest` wrote.

    Raises:
        DataLoss: BACKUP_DAMAGED, naming the object.
        FailedPrecondition: BACKUP_FORMAT_UNKNOWN, a newer release wrote it.
    """
    first, _, rest = content.partition(b"\n")
    body = rest.removesuffix(b"\n")
    try:
        header = json.loads(first)
        sound = header["format"] == _FORMAT and header["xxh3_64"] == f"{xxhash.xxh3_64_intdigest(body):016x}"
    except (ValueError, KeyError, TypeError):
        sound = False
    if not sound:
        raise damaged(key, "it does not match its checksum")
    manifest = from_json(backup_pb2.BackupManifest, body, key)
    if manifest.format_version != FORMAT_VERSION:
        raise FailedPrecondition(
            f"{key} has format version {manifest.format_version}; this release reads version {FORMAT_VERSION}",
            reason="BACKUP_FORMAT_UNKNOWN",
        )
    return manifest


def damaged(key: str, how: str) -> DataLoss:
    """The error that names an object of a backup."""
    return DataLoss(f"the backup's object {key} is damaged: {how}", reason="BACKUP_DAMAGED")
