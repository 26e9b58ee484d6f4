"""Inputs nearly right: valid samples with bits flipped, bytes cut, numbers at their edges, fields dropped or repeated.

What a format allows is changed by a mutator that knows its shape: bytes (files of fixed fields), protobuf (a tree of
numbered fields), text (JSON, CSV). All randomness comes from one random.Random, so a seed repeats a run.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

Mutate = Callable[[Random, bytes, Sequence[bytes]], bytes]  #: (randomness, a sample, all samples) → an input

MAX_BYTES = 1 << 16  #: of an input
EDGES = sorted(
    {v for b in (0, 7, 8, 15, 16, 31, 32, 47, 48, 53, 62, 63, 64) for v in ((1 << b) - 1, 1 << b, (1 << b) + 1)}
)
_TOKENS = (
    b"",
    b"\0",
    b"\xff",
    b"\0" * 16,
    b"\xff" * 16,
    b"HESEARCH",
    b"%s%n",
    b"../",
    b"\xed\xa0\x80",
    b"nan",
    b"-1",
    b"1e999",
)


# ---- bytes ---------------------------------------------------------------------------------------------------
def mutate_bytes(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """One to four changes, wherever they fall: half of them in the first 256 bytes, where headers are."""
    out = bytearray(data)
    for _ in range(1 << rng.randrange(3)):
        size = len(out)
        at = rng.randrange(min(size, 256) if rng.random() < 0.5 else size) if size else 0
        kind = rng.randrange(10)
        if kind <= 1 and size:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 2 and size:
            out[at] = rng.randrange(256)
        elif kind == 3:
            del out[at:]
        elif kind == 4:
            del out[at : at + (1 << rng.randrange(8))]
        elif kind == 5:
            out[at:at] = rng.choice(_TOKENS) or rng.randbytes(1 << rng.randrange(8))
        elif kind == 6:
            width = rng.choice((1, 2, 4, 8))
            number = rng.choice(EDGES) % (1 << 8 * width)
            out[at : at + width] = number.to_bytes(width, rng.choice(("little", "big")))
        elif kind == 7:
            other = rng.choice(others)
            out[at:] = other[rng.randrange(len(other)) if other else 0 :]
        elif kind == 8:
            piece = out[at : at + (1 << rng.randrange(9))]
            out[at:at] = piece * rng.randrange(1, 5)
        elif size:
            start = rng.randrange(size)
            length = 1 << rng.randrange(7)
            out[at : at + length] = out[start : start + length]
    return bytes(out[:MAX_BYTES])


# ---- protobuf ------------------------------------------------------------------------------------------------
Field = tuple[int, int, Any]  #: (number, wire type, value: int or bytes)


def fields(data: bytes) -> list[Field] | None:
    """A serialised message as its fields in order; None where it is none."""
    found: list[Field] = []
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        value: Any
        if wire == 0:
            value, at = _varint(data, at)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
            value, at = data[at : at + length], at + length
        elif wire == 2:
            length, at = _varint(data, at)
            value, at = data[at : at + length], at + length
        else:
            return None
        if not number or at > len(data):
            return None
        found.append((number, wire, value))
    return found


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data):
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at
    return value, at + 1  # past the end: the caller sees that


def _encoded(value: int, padding: int = 0) -> bytes:
    out = bytearray()
    while True:
        byte, value = value & 127, value >> 7
        if not value and not padding:
            return bytes([*out, byte])
        out.append(byte | 128)
        padding -= not value


def joined(message: Sequence[Field]) -> bytes:
    """The fields, serialised."""
    out = bytearray()
    for number, wire, value in message:
        out += _encoded(number << 3 | wire)
        if wire == 0:
            out += _encoded(value)
        else:
            out += (_encoded(len(value)) if wire == 2 else b"") + value
    return bytes(out)


def mutate_protobuf(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """One to four changes of fields, at any depth; one in eight inputs has changed bytes instead."""
    if rng.random() < 0.125:
        return mutate_bytes(rng, data, others)
    for _ in range(1 << rng.randrange(3)):
        data = _change(rng, data, others, 4)
    return data[:MAX_BYTES]


def _change(rng: Random, data: bytes, others: Sequence[bytes], depth: int) -> bytes:
    message = fields(data)
    if not message:
        return mutate_bytes(rng, data, others) if message is None else joined([_made_up(rng)])
    at = rng.randrange(len(message))
    number, wire, value = message[at]
    kind = rng.randrange(12)
    if kind <= 3 and wire == 2 and depth and value and fields(value):
        message[at] = (number, wire, _change(rng, value, others, depth - 1))
    elif kind <= 5:
        message[at] = (number, wire, _other_value(rng, wire, value))
    elif kind == 6:
        del message[at]
    elif kind == 7:
        message[at:at] = [message[at]] * (1 << rng.randrange(7))
    elif kind == 8:
        other = fields(rng.choice(others))
        message.insert(at, rng.choice(other) if other else _made_up(rng))
    elif kind == 9:
        message.insert(at, _made_up(rng))
    elif kind == 10:
        message[at] = (rng.randrange(1, 12), wire, value)
    else:  # bytes that do not follow the rules: padded varints, groups, lengths beyond the end
        tail = (
            _encoded(number << 3) + _encoded(rng.choice(EDGES), rng.randrange(12)),
            b"\x0b" * (1 << rng.randrange(8)),
            _encoded(number << 3 | 2) + _encoded(rng.choice(EDGES)),
            _encoded(rng.choice(EDGES)),
        )
        return joined(message[:at]) + rng.choice(tail) + joined(message[at:])
    return joined(message)


def _other_value(rng: Random, wire: int, value: Any) -> Any:
    if wire == 0:
        near = (value + 1, max(0, value - 1), value ^ (1 << rng.randrange(64)))
        return (rng.choice(EDGES) if rng.random() < 0.7 else rng.choice(near)) % (1 << 64)
    if wire == 2:
        return mutate_bytes(rng, value, [value])
    return (rng.choice(EDGES) % (1 << 64)).to_bytes(8, "little")[: 8 if wire == 1 else 4]


def _made_up(rng: Random) -> Field:
    wire = rng.choice((0, 1, 2, 2, 5))
    value: Any = rng.choice(EDGES) % (1 << 64)
    if wire:
        value = rng.randbytes({1: 8, 2: 1 << rng.randrange(7), 5: 4}[wire])
    return rng.randrange(1, 12), wire, value


# ---- text ----------------------------------------------------------------------------------------------------
_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
_TEXTS = (
    b"0", b"-1", b"1e999", b"-1e999", b"NaN", b"Infinity", b"nan", b"null", b"true", b"[]", b"{}", b'""', b"1_000",
    b"9" * 400, b"9" * 5000, b"\xef\xbb\xbf", b'"\\ud800"', b"\\u0000", b"[" * 2000, b'{"a":' * 2000, b",", b",,",
    b"\n", b"\r", b'"', b"'", b"1" + b"0" * 18, str(1 << 31).encode(), str(1 << 40).encode(), str(1 << 63).encode(),
    str(1 << 64).encode(), b"0" * 32,
)  # fmt: skip


def mutate_text(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Numbers replaced, odd tokens put in, lines and bytes changed."""
    for _ in range(1 << rng.randrange(3)):
        kind = rng.randrange(6)
        if kind <= 1 and (found := list(_NUMBER.finditer(data))):
            at = rng.choice(found)
            number = rng.choice(_TEXTS) if rng.random() < 0.5 else str(rng.choice(EDGES) * rng.choice((1, -1))).encode()
            data = data[: at.start()] + number + data[at.end() :]
        elif kind == 2:
            place = rng.randrange(len(data) + 1)
            data = data[:place] + rng.choice(_TEXTS) + data[place:]
        elif kind == 3:
            lines = data.split(b"\n")
            at_line = rng.randrange(len(lines))
            lines[at_line : at_line + 1] = [lines[at_line]] * rng.randrange(4)
            data = b"\n".join(lines)
        else:
            data = mutate_bytes(rng, data, others)
    return data[:MAX_BYTES]


_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 1.5, -0.0, 1e308, float("inf"), float("nan"), 1 << 31, 1 << 40, 1 << 63, 10**300,
    "", "0", "00", "00" * 12, "0" * 23, "zz", "\ud800", " 00", "é" * 40, [], {}, [[]], ["argon2id"], "argon2i",
    {"name": None}, 8, 16, 17, 31, 65, 256, 1 << 18, (1 << 18) + 1,
)  # fmt: skip


def mutate_json(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Members replaced, dropped or added; or, one time in three, the text changed."""
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError):
        return mutate_text(rng, data, others)
    if not isinstance(tree, dict) or rng.random() < 0.33:
        return mutate_text(rng, data, others)
    for _ in range(1 << rng.randrange(3)):
        node = tree
        while nested := [value for value in node.values() if isinstance(value, dict) and value]:
            if rng.random() < 0.5:
                break
            node = rng.choice(nested)
        if not node:
            break
        name, kind = rng.choice(list(node)), rng.randrange(5)
        if kind == 0:
            del node[name]
        elif kind == 1:
            node[rng.choice(("x", "sealed", "kdf", name + "s"))] = copy.deepcopy(rng.choice(_VALUES))
        elif kind == 2 and isinstance(node[name], str):
            node[name] = mutate_bytes(rng, node[name].encode("utf-8", "surrogatepass"), [b""]).decode("latin-1")
        else:
            node[name] = copy.deepcopy(rng.choice(_VALUES))
    return json.dumps(tree).encode()[:MAX_BYTES]
