"""Lies about the parts of segments that a client fetches when it opens a collection."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from he_engine.errors import HesearchError, TamperedDataError, Unavailable
from he_proto.v1 import hesearch_pb2 as pb
from tests.malicious.lies import lie
from tests.malicious.manifests import flipped, other_length
from tests.malicious.pieces import refusal
from tests.malicious.server import Call, Tell, copy_of, silent
from tests.malicious.world import PARAMETERS, TWIN

DATA = TamperedDataError
PART = "ReadSegmentPart"
Change = Callable[[Call, bytes], bytes]


def part(change: Change) -> Tell:
    """The part that was asked for, changed, in messages of a random size."""

    def tell(call: Call) -> list[Any]:
        found = call.honest()
        return chunked(call, change(call, b"".join(r.chunk for r in found)))

    return tell


def chunked(call: Call, raw: bytes) -> list[Any]:
    size = max(1, int(len(raw) * call.rng.uniform(0.05, 1)))
    return [pb.ReadSegmentPartResponse(chunk=raw[i : i + size]) for i in range(0, len(raw), size)]


def other_segment(call: Call, raw: bytes) -> bytes:
    """The same kind of part of another segment of the collection, cut or filled to the length if need be."""
    context = call.request.context
    manifest = call.world.main.call("ReadManifest", pb.ReadManifestRequest(context=context), timeout_s=60)
    others = [s for s in manifest.live_segments if s != call.request.segment_id]
    chosen = others[int(call.rng.integers(len(others)))]
    return fitted(call.world.read(call.world.main, context.collection, chosen, call.request.kind), raw)


def twin_segment(call: Call, raw: bytes) -> bytes:
    """The same kind of part of another collection under the same key."""
    context = copy_of(call.request.context)
    context.collection = TWIN
    manifest = call.world.main.call("ReadManifest", pb.ReadManifestRequest(context=context), timeout_s=60)
    chosen = manifest.live_segments[int(call.rng.integers(len(manifest.live_segments)))]
    return fitted(call.world.read(call.world.main, TWIN, chosen, call.request.kind), raw)


def other_kind(call: Call, raw: bytes) -> bytes:
    """Another part of the same segment."""
    kinds = [k for k in (pb.PART_KIND_INDEX, *KINDS.values()) if k != call.request.kind]
    kind = kinds[int(call.rng.integers(len(kinds)))]
    return fitted(call.world.read(call.world.main, call.request.context.collection, call.request.segment_id, kind), raw)


def fitted(found: bytes, like: bytes) -> bytes:
    return (found * (1 + len(like) // max(1, len(found))))[: len(like)]


def zeroed(_: Call, raw: bytes) -> bytes:
    return bytes(len(raw))


def random_bytes(call: Call, raw: bytes) -> bytes:
    return call.rng.bytes(len(raw))


def moved(call: Call, raw: bytes) -> bytes:
    """Rotated by some bytes."""
    at = int(call.rng.integers(1, len(raw)))
    return raw[at:] + raw[:at]


CHANGED: dict[str, Change] = {
    "bits flipped": flipped,
    "another length": other_length,
    "another segment's": other_segment,
    "the twin collection's": twin_segment,
    "another part": other_kind,
    "zeros": zeroed,
    "random bytes": random_bytes,
    "bytes moved": moved,
}
KINDS = {
    "a row table": pb.PART_KIND_ROWS,
    "a fingerprint": pb.PART_KIND_FINGERPRINT,
    "a hint": pb.PART_KIND_HINT,
    "payloads": pb.PART_KIND_PAYLOADS,
}
for kind_name, kind in KINDS.items():
    for how, change in CHANGED.items():
        lie(f"{kind_name}: {how}", "open", PART, DATA, part=kind)(part(change))


def hint_coefficients(on: bool) -> Change:
    """Coefficients of some blocks' hints, all of them at score positions (multiples of g), or none."""

    def change(call: Call, raw: bytes) -> bytes:
        size, degree = PARAMETERS.hint_bytes_per_block, PARAMETERS.ring.degree
        bits = 8 * size // degree
        altered = bytearray(raw)
        for _ in range(int(call.rng.integers(1, 5))):
            block = int(call.rng.integers(len(raw) // size))
            position = PARAMETERS.stride * int(call.rng.integers(PARAMETERS.rows_per_block))
            if not on:
                position += int(call.rng.integers(1, PARAMETERS.stride))
            part_ = slice(block * size, (block + 1) * size)
            mask = int(call.rng.integers(1, 1 << (bits - 1))) << (position * bits)
            altered[part_] = (int.from_bytes(altered[part_], "little") ^ mask).to_bytes(size, "little")
        return bytes(altered) if altered != raw else flipped(call, raw)

    return change


lie("hints altered at score positions", "open", PART, DATA, part=pb.PART_KIND_HINT)(part(hint_coefficients(True)))
lie("hints altered off the score positions", "open", PART, DATA, part=pb.PART_KIND_HINT)(part(hint_coefficients(False)))


@lie("a part in messages of other sizes", "open", PART, harmless=True)
@part
def as_it_is(_: Call, raw: bytes) -> bytes:
    return raw


def rearranged(how: str) -> Tell:
    def tell(call: Call) -> list[Any]:
        raw = b"".join(r.chunk for r in call.honest())
        size = max(1, len(raw) // int(call.rng.integers(3, 9)))
        pieces = [pb.ReadSegmentPartResponse(chunk=raw[i : i + size]) for i in range(0, len(raw), size)]
        at = int(call.rng.integers(len(pieces) - 1))
        if how == "repeated":
            pieces.insert(at, pieces[at])
        elif how == "missing":
            del pieces[at]
        else:
            pieces[at], pieces[at + 1] = pieces[at + 1], pieces[at]
        return pieces

    return tell


for how in ("repeated", "missing", "in another order"):
    lie(f"messages of a part {how}", "open", PART, DATA)(rearranged(how))


@lie("a part without end", "open", PART, DATA)
def endless_part(call: Call) -> Iterator[Any]:
    pieces = call.honest()
    while call.alive():
        yield from pieces


@lie("empty messages of a part without end", "open", PART, Unavailable, hasty=True, everything=True)
def empty_part(call: Call) -> Iterator[Any]:
    while call.alive():
        yield pb.ReadSegmentPartResponse()
        time.sleep(0.001)


@lie("no part and no end", "open", PART, Unavailable, hasty=True, everything=True)
def part_never(call: Call) -> Iterator[Any]:
    yield from silent(call)


@lie("an error in place of a part", "open", PART, HesearchError, harmless=True, hasty=True)
def part_error(call: Call) -> Iterator[Any]:
    raise refusal(call)
    yield
