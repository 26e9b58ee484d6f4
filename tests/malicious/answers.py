"""Lies about the residues of answers: other numbers in the right places."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from he_engine.errors import TamperedAnswerError
from he_proto.v1 import hesearch_pb2 as pb
from tests.malicious.lies import lie
from tests.malicious.server import Call, Tell, copy_of
from tests.malicious.world import PARAMETERS, folded, primes

U64 = NDArray[np.uint64]
Pieces = list[pb.AnswerResponse]
SHAPE = (len(PARAMETERS.ring.primes), PARAMETERS.rows_per_block)  #: of the answer of one block
WRONG = TamperedAnswerError


def blocks(call: Call) -> Pieces:
    """The honest answer, one message a block, in a random order."""
    pieces = list(split(call.honest()))
    return [pieces[i] for i in call.rng.permutation(len(pieces))]


def split(pieces: Iterable[pb.AnswerResponse]) -> Iterator[pb.AnswerResponse]:
    """One message a block."""
    for piece in pieces:
        size = len(piece.residues) // piece.blocks
        for number in range(piece.blocks):
            one = copy_of(piece)
            one.first_block, one.blocks = piece.first_block + number, 1
            one.residues = piece.residues[number * size : (number + 1) * size]
            yield one


def residues(piece: pb.AnswerResponse) -> U64:
    return np.frombuffer(piece.residues, "<u4").astype(np.uint64).reshape(SHAPE)


def packed(values: U64) -> bytes:
    return values.astype("<u4").tobytes()


def some(call: Call, pieces: Pieces) -> Pieces:
    """One piece, or several, or all."""
    count = (1, int(call.rng.integers(1, len(pieces) + 1)), len(pieces))[int(call.rng.integers(3))]
    return [pieces[i] for i in call.rng.permutation(len(pieces))[:count]]


def changing(change: Callable[[Call, pb.AnswerResponse, U64], U64]) -> Tell:
    """`change` the residues, (P, B), of some blocks; what comes of it is reduced."""

    def tell(call: Call) -> Pieces:
        pieces = blocks(call)
        for piece in some(call, pieces):
            before = residues(piece)
            piece.residues = packed(change(call, piece, before.copy()) % primes())
        return pieces

    return tell


def amount(call: Call) -> U64:
    """(P, 1): a multiplier that is not zero, for each prime; often a small one."""
    largest = (4, 1 << 16, min(PARAMETERS.ring.primes))[int(call.rng.integers(3))]
    chosen: U64 = call.rng.integers(1, largest, (SHAPE[0], 1)).astype(np.uint64)
    return chosen


def place(call: Call) -> tuple[int, int]:
    return int(call.rng.integers(SHAPE[0])), int(call.rng.integers(SHAPE[1]))


def sent_query(call: Call, number: int) -> U64:
    """The ciphertext of one query, as one stack."""
    words = np.frombuffer(b"".join(r.chunk for r in call.requests[1:]), "<u4")
    chosen: U64 = words.reshape(call.request.header.queries, -1)[number].astype(np.uint64)
    return chosen


def with_query(call: Call, change: Callable[[U64], U64], number: int) -> list[Any]:
    """The requests, with another query in the place of this one."""
    words = np.frombuffer(b"".join(r.chunk for r in call.requests[1:]), "<u4").astype(np.uint64)
    words = words.reshape(call.request.header.queries, SHAPE[0], -1)
    words[number] = change(words[number]) % primes()
    raw = packed(words)
    chunks = [raw[i : i + (1 << 20)] for i in range(0, len(raw), 1 << 20)]
    return [call.request, *(pb.AnswerRequest(chunk=c) for c in chunks)]


PLACE = ("segment_id", "query", "first_block")


def same_place(a: Any, b: Any, but: str) -> bool:
    """They differ in this field alone."""
    return all((getattr(a, f) != getattr(b, f)) == (f == but) for f in PLACE)


@lie("one residue", "search", "Answer", WRONG)
@changing
def one_residue(call: Call, _: pb.AnswerResponse, values: U64) -> U64:
    row, column = place(call)
    values[row, column] += amount(call)[row, 0]
    return values


@lie("a multiple of a block added", "search", "Answer", WRONG)
@changing
def plus_block(call: Call, piece: pb.AnswerResponse, values: U64) -> U64:
    entry = call.world.entries[piece.segment_id]
    return values + amount(call) * call.world.folded_block(piece.segment_id, int(call.rng.integers(entry.blocks)))


@lie("a multiple of the query added", "search", "Answer", WRONG)
@changing
def plus_query(call: Call, piece: pb.AnswerResponse, values: U64) -> U64:
    return values + amount(call) * folded(sent_query(call, piece.query))


@lie("a multiple of the answer", "search", "Answer", WRONG)
@changing
def scaled(call: Call, _: pb.AnswerResponse, values: U64) -> U64:
    return values * (amount(call) + np.uint64(1))


@lie("a negated answer", "search", "Answer", WRONG)
@changing
def negated(_: Call, __: pb.AnswerResponse, values: U64) -> U64:
    return primes() - values


@lie("a constant added to every residue", "search", "Answer", WRONG)
@changing
def plus_constant(call: Call, _: pb.AnswerResponse, values: U64) -> U64:
    return values + amount(call)


@lie("zeros", "search", "Answer", WRONG)
@changing
def zeros(_: Call, __: pb.AnswerResponse, values: U64) -> U64:
    return values * np.uint64(0)


@lie("q - 1 everywhere", "search", "Answer", WRONG)
@changing
def largest(_: Call, __: pb.AnswerResponse, values: U64) -> U64:
    return values * np.uint64(0) + primes() - np.uint64(1)


@lie("random residues", "search", "Answer", WRONG)
@changing
def random_residues(call: Call, _: pb.AnswerResponse, values: U64) -> U64:
    return call.rng.integers(0, primes().astype(np.int64), values.shape).astype(np.uint64)


@lie("residues in another order", "search", "Answer", WRONG)
@changing
def permuted(call: Call, _: pb.AnswerResponse, values: U64) -> U64:
    first, second = call.rng.choice(SHAPE[1], 2, replace=False)
    values[:, [first, second]] = values[:, [second, first]]
    return values


@lie("residues of another prime", "search", "Answer", WRONG)
@changing
def other_prime(_: Call, __: pb.AnswerResponse, values: U64) -> U64:
    return values[::-1]


@lie("residues as big-endian numbers", "search", "Answer", WRONG)
def big_endian(call: Call) -> Pieces:
    pieces = blocks(call)
    for piece in some(call, pieces):
        piece.residues = np.frombuffer(piece.residues, "<u4").astype(">u4").tobytes()
    return pieces


@lie("a multiple of q added: residues that are not canonical", "search", "Answer", WRONG)
def plus_modulus(call: Call) -> Pieces:
    """The same answer modulo q."""
    pieces = blocks(call)
    for piece in some(call, pieces):
        values = residues(piece)
        for _ in range(int(call.rng.integers(1, 4))):
            row, column = place(call)
            values[row, column] = values[row, column] % primes()[row, 0] + primes()[row, 0]
        piece.residues = packed(values)
    return pieces


@lie("opposite changes in two blocks", "search", "Answer", WRONG)
def opposite(call: Call) -> Pieces:
    """Which cancel where every block has the same weights."""
    pieces = blocks(call)
    (row, column), change = place(call), amount(call)
    for piece, sign in zip(pieces[:2], (1, -1), strict=True):
        values = residues(piece)
        values[row, column] += change[row, 0] if sign > 0 else primes()[row, 0] - change[row, 0]
        piece.residues = packed(values % primes())
    return pieces


@lie("opposite changes in one block", "search", "Answer", WRONG)
@changing
def opposite_inside(call: Call, _: pb.AnswerResponse, values: U64) -> U64:
    row, change = int(call.rng.integers(SHAPE[0])), amount(call)
    first, second = call.rng.choice(SHAPE[1], 2, replace=False)
    values[row, first] += change[row, 0]
    values[row, second] += primes()[row, 0] - change[row, 0]
    return values


@lie("opposite changes for two queries", "batch", "Answer", WRONG)
def opposite_queries(call: Call) -> Pieces:
    """Which cancel where the checks of two queries are added."""
    pieces = blocks(call)
    first = pieces[0]
    second = next(p for p in pieces if same_place(p, first, "query"))
    (row, column), change = place(call), amount(call)
    for piece, plus in ((first, change[row, 0]), (second, primes()[row, 0] - change[row, 0])):
        values = residues(piece)
        values[row, column] += plus
        piece.residues = packed(values % primes())
    return pieces


@lie("an answer to a query changed a little", "search", "Answer", WRONG)
def altered_query(call: Call) -> Pieces:
    def change(query: U64) -> U64:
        row = int(call.rng.integers(SHAPE[0]))
        query[row, call.rng.integers(query.shape[1])] += amount(call)[row, 0]
        return query

    return call.ask(call.world.main, with_query(call, change, 0))


@lie("an answer to a multiple of the query", "search", "Answer", WRONG)
def scaled_query(call: Call) -> Pieces:
    factor = amount(call) + np.uint64(1)
    return call.ask(call.world.main, with_query(call, lambda query: query * factor, 0))


@lie("an answer computed with an altered block", "search", "Answer", WRONG)
@changing
def altered_block(call: Call, piece: pb.AnswerResponse, values: U64) -> U64:
    """One word of the index is another, so one product in the fold."""
    query = sent_query(call, piece.query).reshape(SHAPE[0], -1)
    row = int(call.rng.integers(SHAPE[0]))
    slot = int(call.rng.integers(query.shape[1]))
    column = slot // PARAMETERS.planes // PARAMETERS.stride  # there is one plane, so slots lie in order
    values[row, column] += amount(call)[row, 0] * query[row, slot] % primes()[row, 0]
    return values
