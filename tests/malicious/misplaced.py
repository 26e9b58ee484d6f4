"""Lies about which answer it is: right numbers in the wrong places, of another query, or of another version."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from he_proto.v1 import hesearch_pb2 as pb
from tests.malicious.answers import WRONG, Pieces, blocks, same_place
from tests.malicious.lies import lie
from tests.malicious.server import Call, Tell, copy_of


def swapping(field: str) -> Tell:
    def tell(call: Call) -> Pieces:
        pieces = blocks(call)
        pairs = [(a, b) for a in pieces for b in pieces if same_place(a, b, field)]
        a, b = pairs[int(call.rng.integers(len(pairs)))]
        a.residues, b.residues = b.residues, a.residues
        return pieces

    return tell


lie("two blocks swapped", "search", "Answer", WRONG)(swapping("first_block"))
lie("two segments swapped", "search", "Answer", WRONG)(swapping("segment_id"))
lie("another query's answer, of the same call", "batch", "Answer", WRONG)(swapping("query"))


@lie("all answers of two queries exchanged", "batch", "Answer", WRONG)
def exchanged(call: Call) -> Pieces:
    pieces = blocks(call)
    for piece in pieces:
        piece.query = {0: 1, 1: 0}.get(piece.query, piece.query)
    return pieces


@lie("one block's answer for all", "search", "Answer", WRONG)
def copied(call: Call) -> Pieces:
    pieces = blocks(call)
    for piece in pieces:
        piece.residues = pieces[0].residues
    return pieces


@lie("a replayed answer", "search", "Answer", WRONG)
def replayed(call: Call) -> Pieces:
    """To an earlier query, maybe for the same vector."""
    return call.world.earlier[int(call.rng.integers(len(call.world.earlier)))]


def of_version(server: str) -> Tell:
    def tell(call: Call) -> Iterator[Any]:
        """Of the segments that are asked for, as far as that server has them, and under their names; else its own."""
        other = getattr(call.world, server)
        context = call.request.header.context
        version = other.call("ReadManifest", pb.ReadManifestRequest(context=context), timeout_s=60).version
        header = copy_of(call.request)
        header.header.version = version
        pieces: Pieces = call.ask(other, [header, *call.requests[1:]])
        if call.rng.random() < 0.5:
            ids = list(dict.fromkeys(p.segment_id for p in pieces))
            names = dict(zip(ids, call.world.segments, strict=False))
            for piece in pieces:
                piece.segment_id = names.get(piece.segment_id, piece.segment_id)
        yield from pieces

    return tell


lie("an answer for an older version", "search", "Answer", WRONG)(of_version("old"))
lie("an answer for a forked version", "search", "Answer", WRONG)(of_version("fork"))
