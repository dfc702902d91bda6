"""Malformed and extreme requests, made from the descriptors of the contract: a seed decides them all.

A message is filled field by field: with what is sound there, with what is nearly so, or with what its type holds at its edges.
Some requests are wilder than others, so that faults are met at every depth of a server's checks. The bytes may then be
cut, flipped, doubled, or replaced. Pure: knows no server.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor as Field
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

Hints = Mapping[str, tuple[Sequence[Any], Sequence[Any]]]
"""Field name → (sound values, values that look like them); "Message.field" goes before "field"."""

_INTEGERS: Final = (0, 1, 2, 3, 100, 255, 256, 1024, 1025, 4096, 4097, 10_000, 10_001, 65_536, 65_537, 2**31 - 1)
_FLOATS: Final = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-45, 3.4e38, -3.4e38, float("nan"), float("inf"), float("-inf"))
_STRINGS: Final = (
    "", "a", " ", "\0", "a\0b", "../../x", "é" * 128, "é" * 129, "x" * 256, "x" * 257, "x" * 5000, "\U0010ffff", "a\nb", "%s%n",
)  # fmt: skip
_BYTES: Final = (
    b"", b"\0", b"\xff" * 7, b"{}", b"[]", b"null", b'{"a":NaN}', b'{"a":1', b'{"a":"\xff"}', b'{"a":' * 2000, b"x" * 70_000,
)  # fmt: skip
_LENGTHS: Final = (0, 1, 1, 1, 2, 2, 3, 5)
_LONG_LENGTHS: Final = (1024, 1025, 10_000, 10_001)
_DEPTH_MAX: Final = 6
_WILDNESSES: Final = (0.0, 0.05, 0.05, 0.2, 0.5, 1.0)


class Requests:
    """A stream of requests; each call gives the next one."""

    def __init__(self, seed: str, hints: Hints, mend: Callable[[random.Random, Message], None]) -> None:
        """Begins a stream.

        Args:
            seed: decides everything.
            hints: what means something.
            mend: makes the fields of a message fit together, and those of the messages in it.
        """
        self._random = random.Random(seed)
        self._hints = hints
        self._mend = mend
        self._wildness = 0.0

    def next_bytes(self, kind: type[Message]) -> bytes:
        """The next request of a type, as bytes that may be no such message at all."""
        self._wildness = self._random.choice(_WILDNESSES)
        message = self._message(kind, 0)
        if not self._wild():
            self._mend(self._random, message)
        content = message.SerializeToString()
        if self._random.random() < 0.6:
            return content
        for _ in range(self._random.choice((1, 1, 2, 5))):
            content = self._random.choice(_MUTATIONS)(self._random, content)
        return content

    def _wild(self) -> bool:
        return self._random.random() < self._wildness

    def below(self, bound: int) -> int:
        """A number from 0 to bound - 1."""
        return self._random.randrange(bound)

    def _message(self, kind: type[Message], depth: int) -> Message:
        message = kind()
        left_out = {
            field.name
            for oneof in message.DESCRIPTOR.oneofs
            for field in self._random.sample(list(oneof.fields), len(oneof.fields) - 1)
        }
        for field in message.DESCRIPTOR.fields:
            if field.name in left_out:
                continue
            if depth < _DEPTH_MAX and not (self._wild() and self._random.random() < 0.5):
                self._fill(message, field, depth)
        return message

    def _fill(self, message: Message, field: Field, depth: int) -> None:
        if not field.is_repeated:
            if field.message_type is not None:
                getattr(message, field.name).CopyFrom(self._message(GetMessageClass(field.message_type), depth + 1))
            else:
                setattr(message, field.name, self._value(field))
            return
        target = getattr(message, field.name)
        if is_map(field):
            key, value = (field.message_type.fields_by_name[name] for name in ("key", "value"))
            for _ in range(self._random.choice(_LENGTHS)):
                target[self._value(key)] = self._value(value)
        elif field.message_type is not None:
            kind = GetMessageClass(field.message_type)
            target.extend(self._message(kind, depth + 1) for _ in range(self._random.choice(_LENGTHS)))
        elif self._wild() and self._random.random() < 0.05:
            value = self._value(field)
            short = value[:300] if isinstance(value, str | bytes) else value
            target.extend([short] * self._random.choice(_LONG_LENGTHS))
        else:
            target.extend(self._value(field) for _ in range(self._random.choice(_LENGTHS)))

    def _value(self, field: Field) -> Any:
        hints = self._hints.get(f"{field.containing_type.name}.{field.name}", self._hints.get(field.name))
        if hints is not None and not (self._wild() and self._random.random() < 0.5):
            sound, odd = hints
            return self._random.choice(odd if odd and self._wild() else sound)
        if field.enum_type is not None and not self._wild():
            return self._random.choice(field.enum_type.values).number
        if field.cpp_type in (Field.CPPTYPE_FLOAT, Field.CPPTYPE_DOUBLE):
            return self._random.choice(_FLOATS)
        if field.cpp_type == Field.CPPTYPE_BOOL:
            return self._random.random() < 0.5
        if field.cpp_type == Field.CPPTYPE_STRING:
            return self._random.choice(_BYTES if field.type == Field.TYPE_BYTES else _STRINGS)
        edges = {
            Field.CPPTYPE_UINT32: (2**32 - 1,),
            Field.CPPTYPE_UINT64: (2**32, 2**63, 2**64 - 1),
            Field.CPPTYPE_INT64: (-1, 2**63 - 1, -(2**63)),
        }.get(field.cpp_type, (-1, -(2**31)))
        return self._random.choice((*_INTEGERS, *edges))


def is_map(field: Field) -> bool:
    """Whether a field is a map; those of the contract map scalars to scalars."""
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)


def floats(*values: float) -> bytes:
    """Little-endian float32s, as vectors travel."""
    return struct.pack(f"<{len(values)}f", *values)


def _cut(chance: random.Random, content: bytes) -> bytes:
    return content[: chance.randrange(len(content) + 1)]


def _flip(chance: random.Random, content: bytes) -> bytes:
    if not content:
        return b"\xff"
    at = chance.randrange(len(content))
    return content[:at] + bytes([content[at] ^ (1 << chance.randrange(8))]) + content[at + 1 :]


def _doubled(chance: random.Random, content: bytes) -> bytes:
    at = chance.randrange(len(content) + 1)
    return (content[at:] + content)[: 1 << 20]


def _inserted(chance: random.Random, content: bytes) -> bytes:
    at = chance.randrange(len(content) + 1)
    return content[:at] + chance.randbytes(chance.choice((1, 2, 8, 64))) + content[at:]


def _random_bytes(chance: random.Random, content: bytes) -> bytes:
    return chance.randbytes(chance.choice((1, 3, 17, 300)))


def _nested(chance: random.Random, content: bytes) -> bytes:
    """Groups within groups, or messages within messages, deeper than a parser goes."""
    if chance.random() < 0.5:
        return bytes([(chance.randrange(1, 9) << 3) | 3]) * chance.choice((50, 5000))
    for _ in range(chance.choice((5, 120))):
        length = len(content)
        if length > 1 << 14:
            break
        size = bytes([length & 0x7F | 0x80, length >> 7]) if length > 127 else bytes([length])
        content = bytes([(chance.randrange(1, 9) << 3) | 2]) + size + content
    return content


_MUTATIONS: Final[Sequence[Callable[[random.Random, bytes], bytes]]] = (
    _cut, _flip, _flip, _flip, _doubled, _inserted, _random_bytes, _nested,
)  # fmt: skip
