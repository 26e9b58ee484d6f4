"""Lies about the stream of an answer: pieces that are missing, repeated, misplaced or misshapen; errors; no end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np

from he_engine import errors
from he_engine.errors import Conflict, FormatVersionError, HesearchError, TamperedAnswerError, Unavailable
from he_proto.v1 import hesearch_pb2 as pb
from tests.malicious.answers import Pieces, blocks, some
from tests.malicious.lies import lie
from tests.malicious.server import Call, Refused, Tell, copy_of, silent

WRONG = TamperedAnswerError


# ---- missing, repeated, in another order ---------------------------------------------------------------------
@lie("a truncated stream", "search", "Answer", WRONG)
def truncated(call: Call) -> Pieces:
    pieces = blocks(call)
    return pieces[: int(call.rng.integers(len(pieces)))]


@lie("dropped blocks", "search", "Answer", WRONG)
def dropped(call: Call) -> Pieces:
    pieces = blocks(call)
    gone = [id(p) for p in some(call, pieces)]
    return [p for p in pieces if id(p) not in gone]


@lie("a dropped segment", "search", "Answer", WRONG)
def dropped_segment(call: Call) -> Pieces:
    gone = call.world.segments[int(call.rng.integers(len(call.world.segments)))]
    return [p for p in blocks(call) if p.segment_id != gone]


@lie("a dropped query", "batch", "Answer", WRONG)
def dropped_query(call: Call) -> Pieces:
    return [p for p in blocks(call) if p.query != 1]


@lie("a repeated piece", "search", "Answer", WRONG)
def repeated(call: Call) -> Pieces:
    pieces = blocks(call)
    pieces.insert(int(call.rng.integers(len(pieces) + 1)), pieces[int(call.rng.integers(len(pieces)))])
    return pieces


@lie("a block answered twice, differently", "search", "Answer", WRONG)
def anew(call: Call) -> Pieces:
    pieces = blocks(call)
    again = copy_of(pieces[0])
    again.residues = pieces[1].residues
    pieces.insert(int(call.rng.integers(len(pieces) + 1)), again)
    return pieces


@lie("ranges that overlap", "search", "Answer", WRONG)
def overlapping(call: Call) -> Pieces:
    pieces = blocks(call)
    first = next(p for p in pieces if p.first_block == 1)
    for piece in pieces:
        if (piece.segment_id, piece.query, piece.first_block) == (first.segment_id, first.query, 0):
            piece.blocks = 2
            piece.residues = piece.residues + first.residues
    return pieces


@lie("pieces in another order", "search", "Answer", harmless=True)
def reordered(call: Call) -> Pieces:
    return blocks(call)


@lie("unknown fields in pieces", "search", "Answer", harmless=True)
def unknown_fields(call: Call) -> Iterator[Any]:
    """Field 15, of any bytes: other versions may send such."""
    for piece in blocks(call):
        extra = call.rng.bytes(int(call.rng.integers(1, 100)))
        yield piece.SerializeToString() + bytes([15 << 3 | 2, len(extra)]) + extra


# ---- misplaced, misshapen ------------------------------------------------------------------------------------
def with_fields(change: Callable[[Call, pb.AnswerResponse], None]) -> Tell:
    def tell(call: Call) -> Pieces:
        pieces = blocks(call)
        for piece in some(call, pieces):
            change(call, piece)
        return pieces

    return tell


@lie("pieces of a wrong length", "search", "Answer", WRONG)
@with_fields
def wrong_length(call: Call, piece: pb.AnswerResponse) -> None:
    size = len(piece.residues)
    length = int(call.rng.choice([0, 1, 4, size - 4, size - 1, size + 1, size + 4, 2 * size]))
    piece.residues = (piece.residues * 2)[:length]


@lie("a wrong number of blocks", "search", "Answer", WRONG)
@with_fields
def wrong_count(call: Call, piece: pb.AnswerResponse) -> None:
    piece.blocks = int(call.rng.choice(np.array([0, 2, 3, 1 << 32, (1 << 64) - 1], np.uint64)))


@lie("blocks that are not there", "search", "Answer", WRONG)
@with_fields
def behind_the_end(call: Call, piece: pb.AnswerResponse) -> None:
    piece.first_block = int(call.rng.choice(np.array([3, 4, 1 << 31, 1 << 63, (1 << 64) - 1], np.uint64)))


@lie("an answer to a query that was not sent", "search", "Answer", WRONG)
@with_fields
def unknown_query(call: Call, piece: pb.AnswerResponse) -> None:
    piece.query = int(call.rng.choice([call.request.header.queries, 63, 64, (1 << 32) - 1]))


@lie("an answer of a segment that is not live", "search", "Answer", WRONG)
@with_fields
def unknown_segment(call: Call, piece: pb.AnswerResponse) -> None:
    known = list(call.world.watch.names.values())
    names = [name for name in known if name not in call.world.entries] + [b"", bytes(32), piece.segment_id[:31]]
    piece.segment_id = names[int(call.rng.integers(len(names)))]


@lie("another format version", "search", "Answer", FormatVersionError)
@with_fields
def other_format(call: Call, piece: pb.AnswerResponse) -> None:
    piece.context.format_version = int(call.rng.choice([0, 2, 3, (1 << 32) - 1]))


@lie("another collection's name on an answer", "search", "Answer", FormatVersionError, WRONG)
@with_fields
def other_name(call: Call, piece: pb.AnswerResponse) -> None:
    piece.context.collection = ["twin", "Notes", "", "../notes"][int(call.rng.integers(4))]


@lie("another parameter digest on an answer", "search", "Answer", FormatVersionError, WRONG)
@with_fields
def other_digest(call: Call, piece: pb.AnswerResponse) -> None:
    piece.context.parameter_digest = [b"", bytes(32), call.rng.bytes(32)][int(call.rng.integers(3))]


@lie("an answer of the twin collection", "search", "Answer", WRONG, FormatVersionError)
def twin_answer(call: Call) -> Pieces:
    """Which has the same key and the same parameters; half the time under this one's name and segments."""
    context = copy_of(call.request.header.context)
    context.collection = "twin"
    manifest = call.world.main.call("ReadManifest", pb.ReadManifestRequest(context=context), timeout_s=60)
    header = copy_of(call.request)
    header.header.context.CopyFrom(context)
    header.header.collection_id, header.header.version = manifest.collection_id, manifest.version
    pieces: Pieces = call.ask(call.world.main, [header, *call.requests[1:]])
    if call.rng.random() < 0.7:
        names = dict(zip(manifest.live_segments, call.world.segments, strict=False))
        for piece in pieces:
            piece.context.collection = "notes"
            piece.segment_id = names[piece.segment_id]
    return pieces


@lie("bytes that are no message", "search", "Answer", HesearchError)
def garbage(call: Call) -> Iterator[Any]:
    pieces = blocks(call)
    at = int(call.rng.integers(len(pieces)))
    for number, piece in enumerate(pieces):
        yield piece.SerializeToString()[:-1] if number == at else piece


@lie("a message larger than any may be", "search", "Answer", errors.LimitExceeded)
def oversized(call: Call) -> Iterator[Any]:
    piece = blocks(call)[0]
    piece.residues = bytes(21 << 20)
    yield piece


# ---- errors, and no end --------------------------------------------------------------------------------------
NAMES = [
    "InvalidInput", "ParameterError", "DimensionError", "ResidueError", "NotFound", "AlreadyExists", "Conflict",
    "FormatVersionError", "LimitExceeded", "TamperedDataError", "Unavailable", "Overloaded", "Unauthenticated",
    "PermissionDenied", "QuotaExceeded", "ReadOnlyError", "MissingExtra", "SecretReuseError", "Exception", "object", "",
]  # fmt: skip


def refusal(call: Call) -> Refused:
    codes = [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK]
    message = "".join(map(chr, call.rng.integers(32, 127, int(call.rng.integers(0, 3000)))))
    return Refused(codes[int(call.rng.integers(len(codes)))], NAMES[int(call.rng.integers(len(NAMES)))], message)


@lie("an error in place of an answer", "search", "Answer", HesearchError, harmless=True, hasty=True)
def error_instead(call: Call) -> Iterator[Any]:
    raise refusal(call)
    yield


@lie("an error after a part of the answer", "search", "Answer", HesearchError, harmless=True, hasty=True)
def error_later(call: Call) -> Iterator[Any]:
    pieces = blocks(call)
    yield from pieces[: int(call.rng.integers(1, len(pieces) + 1))]
    raise refusal(call)


@lie("a wrong answer, then an error", "search", "Answer", WRONG, Conflict, Unavailable, harmless=True)
def error_after_lie(call: Call) -> Iterator[Any]:
    """Asked again, and refused all the same where it was noticed; gRPC may hand over the error before the answer."""
    pieces = blocks(call)
    for piece in some(call, pieces):
        piece.residues = bytes(len(piece.residues))
    yield from pieces
    codes = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.ABORTED, grpc.StatusCode.NOT_FOUND)
    raise Refused(codes[int(call.rng.integers(3))])


@lie("a conflict, always", "search", "Answer", Conflict, everything=True)
def conflict(_: Call) -> Iterator[Any]:
    raise Refused(grpc.StatusCode.ABORTED, "Conflict")
    yield


@lie("no answer and no end", "search", "Answer", Unavailable, hasty=True, everything=True)
def hanging(call: Call) -> Iterator[Any]:
    yield from blocks(call)[: int(call.rng.integers(3))]
    yield from silent(call)


@lie("an end that does not come", "search", "Answer", Unavailable, hasty=True, everything=True)
def unending(call: Call) -> Iterator[Any]:
    yield from blocks(call)
    yield from silent(call)


@lie("pieces without end", "search", "Answer", WRONG)
def endless(call: Call) -> Iterator[Any]:
    pieces = blocks(call)
    while call.alive():
        yield pieces[int(call.rng.integers(len(pieces)))]


@lie("empty pieces without end", "search", "Answer", WRONG)
def endless_empty(call: Call) -> Iterator[Any]:
    piece = blocks(call)[0]
    piece.blocks, piece.residues = 0, b""
    while call.alive():
        yield piece
        time.sleep(0.001)
