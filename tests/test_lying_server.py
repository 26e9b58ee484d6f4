"""A server that lies, seen through the SDK: every lie is refused, and nothing is decrypted before it is verified."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from he_client import (
    Client,
    Collection,
    CollectionKey,
    Conflict,
    FormatVersionError,
    HesearchError,
    InvalidInput,
    TamperedAnswerError,
    TamperedDataError,
    Unavailable,
)
from he_proto.v1 import hesearch_pb2 as pb
from tests.conftest import unit_rows
from tests.engine_fixture import Both
from tests.lying_fixture import (
    Lie,
    LyingTransport,
    block_by_block,
    copy_of,
    decrypted_answers,
    decrypted_segments,
    forbid_decryption,
    forget_parts,
    lying_client,
    whole_answers,
)

DIM, STRIDE = 16, 128  # 16 rows a block under compact, 32 under the others
Pieces = list[pb.AnswerResponse]


@pytest.fixture
def key() -> CollectionKey:
    return CollectionKey.generate()


@pytest.fixture
def server(key: CollectionKey, rng: np.random.Generator) -> Iterator[tuple[Client, LyingTransport, Collection]]:
    """Three segments of three blocks, one of which is retired again."""
    with lying_client() as (client, transport):
        made = client.create_collection("c", dim=DIM, stride=STRIDE, key=key, profile="compact")
        rows = unit_rows(rng, 120, DIM)
        for first in (0, 40, 80):
            made.insert(range(first, first + 40), rows[first : first + 40], payloads=[f"{i:03}" for i in range(40)])
        made.retired = made._state.current[1][1].id  # type: ignore[attr-defined]
        made.delete(range(40, 80))
        yield client, transport, made


# ---- pieces of an answer -------------------------------------------------------------------------------------
def changed(position: int, **fields: Any) -> Callable[[Pieces], Pieces]:
    """The pieces, with some fields of one of them replaced."""

    def lie(pieces: Pieces) -> Pieces:
        for name, value in fields.items():
            setattr(pieces[position], name, value(pieces[position]) if callable(value) else value)
        return pieces

    return lie


def two_overlapping(pieces: Pieces) -> Pieces:
    """Blocks 0–1 and 1–2 of one segment, instead of 0, 1 and 2."""
    mine = sorted((p for p in pieces if same_place(p, pieces[0])), key=lambda p: p.first_block)
    rest = [p for p in pieces if not same_place(p, pieces[0])]
    joined = [copy_of(mine[0]), copy_of(mine[1])]
    for number, piece in enumerate(joined):
        piece.blocks = 2
        piece.residues = mine[number].residues + mine[number + 1].residues
    return [*joined, *rest]


def same_place(a: pb.AnswerResponse, b: pb.AnswerResponse) -> bool:
    return (a.segment_id, a.query) == (b.segment_id, b.query)


WRONG_PLACE = "not asked for"
WRONG_PIECE = "repeats blocks, exceeds its segment or has a wrong length"
BAD_PIECES: list[tuple[str, Lie, str]] = [
    ("block twice", lambda p: [*p, p[0]], WRONG_PIECE),
    ("a block anew", lambda p: [*p, changed(0, residues=p[1].residues)([copy_of(p[0])])[0]], WRONG_PIECE),
    ("overlapping ranges", two_overlapping, WRONG_PIECE),
    ("a byte short", changed(3, residues=lambda p: p.residues[:-1]), WRONG_PIECE),
    ("a byte long", changed(3, residues=lambda p: p.residues + b"\0"), WRONG_PIECE),
    ("a residue short", changed(3, residues=lambda p: p.residues[:-4]), WRONG_PIECE),
    ("nothing", changed(3, residues=b""), WRONG_PIECE),
    ("two blocks announced, one sent", changed(0, blocks=2), WRONG_PIECE),
    ("one block announced, two sent", changed(0, residues=lambda p: 2 * p.residues), WRONG_PIECE),
    ("no block", changed(0, blocks=0, residues=b""), WRONG_PIECE),
    ("an empty piece more", lambda p: [*p, changed(0, blocks=0, residues=b"")([copy_of(p[0])])[0]], WRONG_PIECE),
    ("behind the end", changed(0, first_block=3), WRONG_PIECE),
    ("across the end", changed(0, first_block=2, blocks=2, residues=lambda p: 2 * p.residues), WRONG_PIECE),
    ("at 2^64 − 1", changed(0, first_block=(1 << 64) - 1), WRONG_PIECE),
    ("2^64 − 1 blocks", changed(0, blocks=(1 << 64) - 1), WRONG_PIECE),
    ("query 2 of 2", changed(0, query=2), WRONG_PLACE),
    ("query 2^32 − 1", changed(0, query=(1 << 32) - 1), WRONG_PLACE),
    ("a piece for query 2 more", lambda p: [*p, changed(0, query=2)([copy_of(p[0])])[0]], WRONG_PLACE),
    ("unknown segment", changed(0, segment_id=bytes(32)), WRONG_PLACE),
    ("no segment", changed(0, segment_id=b""), WRONG_PLACE),
    ("block missing", lambda p: p[1:], "1 blocks are missing"),
    ("last block missing", lambda p: p[:-1], "1 blocks are missing"),
    ("one query missing", lambda p: [q for q in p if q.query], "6 blocks are missing"),
    ("everything missing", lambda _: [], "12 blocks are missing"),
    ("blocks swapped", lambda p: swap(p, "first_block"), "fail verification"),
    ("queries swapped", lambda p: swap(p, "query"), "fail verification"),
    ("segments swapped", lambda p: swap(p, "segment_id"), "fail verification"),
]  # fmt: skip


def swap(pieces: Pieces, field: str) -> Pieces:
    """Two pieces that differ in this field alone, exchanged."""
    place = ("segment_id", "query", "first_block")

    def differ(a: Any, b: Any) -> bool:
        return all((getattr(a, f) != getattr(b, f)) == (f == field) for f in place)

    a, b = next((a, b) for a, b in itertools.combinations(pieces, 2) if differ(a, b))
    a.residues, b.residues = b.residues, a.residues
    return pieces


@pytest.mark.parametrize(("name", "lie", "message"), BAD_PIECES, ids=[name for name, *_ in BAD_PIECES])
def test_a_bad_piece_is_refused(
    server: tuple[Client, LyingTransport, Collection],
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
    name: str,  # noqa: ARG001
    lie: Lie,
    message: str,
) -> None:
    _, transport, made = server
    queries = unit_rows(rng, 2, DIM)
    honest = made.search(queries, k=80)
    transport.lies["Answer"] = lambda pieces: block_by_block(pieces)[::-1]
    for mine, other in zip(honest, made.search(queries, k=80), strict=True):
        assert {h.id for h in mine} == {h.id for h in other}, "any order and any split is an honest answer"
    answers: set[bytes] = set()

    def told(pieces: Pieces) -> Pieces:
        answers.update(whole_answers(pieces))
        return lie(block_by_block(pieces))

    transport.lies["Answer"] = told
    decrypted = decrypted_answers(monkeypatch)
    with pytest.raises(TamperedAnswerError, match=message):
        made.search(queries, k=5)
    assert answers.issuperset(decrypted), "the other query's may have been, when all of it was there and right"
    assert len(decrypted) < len(answers)


def test_answers_of_a_retired_segment_are_refused(
    server: tuple[Client, LyingTransport, Collection], rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, transport, made = server
    retired: bytes = made.retired  # type: ignore[attr-defined]
    transport.lies["Answer"] = lambda p: [*p, changed(0, segment_id=retired)([copy_of(p[0])])[0]]
    with pytest.raises(TamperedAnswerError, match=WRONG_PLACE):
        made.search(unit_rows(rng, 1, DIM)[0])
    forbid_decryption(monkeypatch)
    transport.lies["Answer"] = changed(0, segment_id=retired)
    with pytest.raises(TamperedAnswerError, match=WRONG_PLACE):
        made.search(unit_rows(rng, 1, DIM)[0])


@pytest.mark.parametrize(
    ("field", "error"),
    [
        ({"format_version": 2}, FormatVersionError),
        ({"format_version": 0}, FormatVersionError),
        ({"collection": "d"}, FormatVersionError),
        ({"collection": "../c"}, TamperedAnswerError),
        ({"collection": ""}, TamperedAnswerError),
        ({"parameter_digest": bytes(32)}, FormatVersionError),
        ({"parameter_digest": bytes(31)}, TamperedAnswerError),
        ({"parameter_digest": b""}, TamperedAnswerError),
    ],
)
@pytest.mark.parametrize("position", [0, -1])
def test_answers_in_another_context_are_refused(
    server: tuple[Client, LyingTransport, Collection],
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
    field: dict[str, Any],
    error: type[HesearchError],
    position: int,
) -> None:
    _, transport, made = server

    def lie(pieces: Pieces) -> Pieces:
        for name, value in field.items():
            setattr(pieces[position].context, name, value)
        return pieces

    transport.lies["Answer"] = lie
    forbid_decryption(monkeypatch)
    with pytest.raises(error):
        made.search(unit_rows(rng, 1, DIM))


def test_a_description_of_another_collection_is_refused(
    server: tuple[Client, LyingTransport, Collection], key: CollectionKey
) -> None:
    client, transport, _ = server

    def lie(found: pb.Collection) -> pb.Collection:
        found.context.collection = "d"
        return found

    transport.lies["DescribeCollection"] = lie
    for action in (lambda: client.describe("c"), lambda: client.open_collection("c", key=key)):
        with pytest.raises(FormatVersionError, match="expected 'c'"):
            action()


MALFORMED: list[tuple[Callable[[pb.Collection], object], str]] = [
    (lambda found: setattr(found.context, "collection", "\x1b[2J"), "collection: got"),
    (lambda found: setattr(found.context, "collection", ""), "collection: got"),
    (lambda found: setattr(found.context, "parameter_digest", bytes(31)), "parameter_digest: got 31 bytes"),
    (lambda found: setattr(found.context, "parameter_digest", b""), "parameter_digest: got 0 bytes"),
    (lambda found: setattr(found.parameters, "stride", 0), "stride: got 0"),
    (lambda found: setattr(found.parameters, "stride", 3), "stride"),
    (lambda found: setattr(found.parameters, "dim", 1 << 20), "dim"),
    (lambda found: setattr(found.parameters, "profile", "none"), "profile"),
]


@pytest.mark.parametrize(("change", "reason"), MALFORMED)
def test_a_malformed_description_is_the_fault_of_the_server(
    server: tuple[Client, LyingTransport, Collection],
    key: CollectionKey,
    tmp_path: Path,
    change: Callable[[pb.Collection], object],
    reason: str,
) -> None:
    """Not of the caller's input, whoever reads it: of all that a description is used for, and of one in a list."""
    client, transport, _ = server

    def one(found: pb.Collection) -> pb.Collection:
        change(found)
        return found

    def listed(found: pb.ListCollectionsResponse) -> pb.ListCollectionsResponse:
        change(found.collections[0])
        return found

    transport.lies = {"DescribeCollection": one, "ListCollections": listed}
    actions: list[Callable[[], object]] = [
        lambda: client.describe("c"),
        client.list_collections,
        lambda: client.export_collection("c", tmp_path / "archive", progress=False),
    ]
    if "parameter_digest" in reason or "collection" in reason:
        actions += [
            lambda: client.open_collection("c", key=key),
            lambda: client.repair_collection("c", key=key),
            lambda: client.drop_collection("c"),
        ]
    for action in actions:
        with pytest.raises(HesearchError) as caught:
            action()
        assert isinstance(caught.value, TamperedDataError | FormatVersionError), caught.value
        assert not isinstance(caught.value, InvalidInput)
        assert reason in str(caught.value)
    assert not (tmp_path / "archive").exists()


# ---- lies about residues -------------------------------------------------------------------------------------
@pytest.mark.parametrize("profile", ["exact", "compact", "precise"])
def test_three_thousand_lies(
    tmp_path: Any, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, profile: str
) -> None:
    """1000 a profile: replays, other queries' answers, multiples of what the server knows added, single residues."""
    both = Both(tmp_path, profile, DIM, STRIDE)
    rows = unit_rows(rng, 5 * both.parameters.rows_per_block, DIM)
    encrypted, segment, index = both.setup(rows)
    queries = [both.client.query(v) for v in (rows[0], rows[0], rows[1])]
    older, query, other = queries
    honest = both.answer(query, index)
    both.client.recover(query, [segment], [honest])
    primes = np.array(both.parameters.ring.primes, np.int64)
    words = np.frombuffer(honest, "<u4").reshape(index.blocks, len(primes), -1).astype(np.int64)
    q = primes[None, :, None]
    known = [
        np.frombuffer(source, "<u4").astype(np.int64)[: words.size].reshape(words.shape)
        for source in (
            np.resize(np.frombuffer(b, np.uint8), 4 * words.size) for b in (encrypted.index, query.ciphertext)
        )
    ]
    replays = [np.frombuffer(both.answer(o, index), "<u4").reshape(words.shape) for o in (older, other)]
    lies = [np.zeros_like(words), q - 1 - words, words[::-1], np.roll(words, 1, axis=2), *replays]
    lies += [(words + int(c) * k) % q for k in known for c in rng.integers(1, primes.min(), 100)]
    lies += [(words * int(c)) % q for c in rng.integers(2, primes.min(), 50)]
    while len(lies) < 1000:
        lie = words.copy()
        place = tuple(int(rng.integers(size)) for size in lie.shape)
        lie[place] = (lie[place] + 1) % primes[place[1]]
        lies.append(lie)
    forbid_decryption(monkeypatch)
    for lie in lies:
        assert not np.array_equal(lie, words)
        with pytest.raises(TamperedAnswerError, match="nothing was decrypted"):
            both.client.recover(query, [segment], [lie.astype("<u4").tobytes()])


def test_replays_by_the_server(
    server: tuple[Client, LyingTransport, Collection], rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer to the same vector, encrypted a moment ago; and a constant answer to everything."""
    _, transport, made = server
    vector = unit_rows(rng, 1, DIM)[0]
    kept: list[Pieces] = []
    transport.lies["Answer"] = lambda pieces: kept.append(pieces) or pieces
    made.search(vector)
    forbid_decryption(monkeypatch)
    zeros = [changed(0, residues=bytes(len(p.residues)))([copy_of(p)])[0] for p in kept[0]]
    for pieces in (kept[0], zeros):
        transport.lies["Answer"] = lambda _, pieces=pieces: pieces
        with pytest.raises(TamperedAnswerError, match="fail verification"):
            made.search(vector)


# ---- groups of segments --------------------------------------------------------------------------------------
@pytest.fixture
def five_groups(
    key: CollectionKey, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[LyingTransport, Collection, list[set[Any]]]]:
    """Of two segments each, but for the last; each group as the set of the engine's segments."""
    monkeypatch.setattr("he_client.arrival.GROUP_BLOCKS", 4)
    with lying_client() as (client, transport):
        made = client.create_collection("c", dim=DIM, stride=STRIDE, key=key, profile="compact")
        rows = unit_rows(rng, 180, DIM)
        for first in range(0, 180, 20):
            made.insert(range(first, first + 20), rows[first : first + 20], payloads=["text"] * 20)
        reader = client.open_collection("c", key=key, payloads="direct")
        engine = [s.engine for s in reader._state.current[1]]
        yield transport, reader, [set(engine[i : i + 2]) for i in range(0, 9, 2)]


@pytest.mark.parametrize("lied", range(5))
@pytest.mark.parametrize("shuffled", [False, True])
def test_a_lie_in_one_group(
    five_groups: tuple[LyingTransport, Collection, list[set[Any]]],
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
    lied: int,
    shuffled: bool,
) -> None:
    """That group is not decrypted, nothing is returned, and the server sees what it sees of an honest search: all
    pieces taken, and no call after it."""
    transport, reader, groups = five_groups
    ids = [s.id for s in reader._state.current[1]]
    taken: list[int] = []

    def answers(pieces: Pieces, *, lie: bool) -> Iterator[pb.AnswerResponse]:
        pieces = block_by_block(pieces)
        if shuffled:
            pieces = [pieces[i] for i in rng.permutation(len(pieces))]
        for piece in pieces:
            if lie and piece.segment_id == ids[2 * lied] and piece.query == 1 and piece.first_block == 1:
                piece.residues = bytes(len(piece.residues))
            yield piece
            taken.append(piece.blocks)
            reader._workers.submit(int).result()  # the one worker has judged all that is complete

    decrypted = decrypted_segments(monkeypatch)
    transport.lies["Answer"] = lambda pieces: answers(pieces, lie=False)
    queries = unit_rows(rng, 2, DIM)
    assert [len(hits) for hits in reader.search(queries, k=3)] == [3, 3]
    everything = set().union(*groups)
    assert all(decrypted.count(segment) == 2 for segment in everything) and len(decrypted) == 18
    assert sum(taken) == 2 * 18
    report = reader.last_search
    for record in (decrypted, taken, transport.calls):
        record.clear()
    transport.lies["Answer"] = lambda pieces: answers(pieces, lie=True)
    with pytest.raises(TamperedAnswerError, match="fail verification"):
        reader.search(queries, k=3)
    assert all(decrypted.count(segment) <= 1 for segment in groups[lied]), "query 0 alone was answered honestly"
    assert sum(taken) == 2 * 18
    assert transport.calls == ["Answer"]
    assert reader.last_search is report


def test_a_lie_is_not_asked_again(server: tuple[Client, LyingTransport, Collection], rng: np.random.Generator) -> None:
    """Once is enough: repeating the call would give the server more tries."""
    _, transport, made = server
    transport.lies["Answer"] = lambda pieces: pieces[1:]
    transport.calls.clear()
    with pytest.raises(TamperedAnswerError):
        made.search(unit_rows(rng, 1, DIM)[0])
    assert transport.calls.count("Answer") == 1


@pytest.mark.parametrize("method", ["Answer", "CommitManifest"])
def test_a_server_that_is_always_ahead(
    server: tuple[Client, LyingTransport, Collection], rng: np.random.Generator, method: str
) -> None:
    """Tried 16 times."""
    _, transport, made = server

    def late() -> None:
        raise Conflict("another writer came first")

    transport.before[method] = late
    transport.calls.clear()
    with pytest.raises(Conflict, match="try again"):
        made.search(unit_rows(rng, 1, DIM)[0]) if method == "Answer" else made.delete([0])
    assert transport.calls.count(method) == 16


# ---- parts of segments ---------------------------------------------------------------------------------------
def of_kind(transport: LyingTransport, kind: pb.PartKind, lie: Lie) -> None:
    """Lie in parts of one kind."""

    def alter(responses: list[pb.ReadSegmentPartResponse]) -> Any:
        return lie(responses) if transport.requests[-1].kind == kind else responses

    transport.lies["ReadSegmentPart"] = alter


def chunk(content: bytes) -> list[pb.ReadSegmentPartResponse]:
    return [pb.ReadSegmentPartResponse(chunk=content)]


def content(responses: list[pb.ReadSegmentPartResponse]) -> bytes:
    return b"".join(r.chunk for r in responses)


def bit_changed(raw: bytes, position: int) -> bytes:
    """One low bit: residues stay canonical, so that only a digest or a tag can tell."""
    return raw[:position] + bytes([raw[position] ^ 1]) + raw[position + 1 :]


PARTS = {k: pb.PartKind.Value(f"PART_KIND_{k}") for k in ("HINT", "ROWS", "FINGERPRINT")}


@pytest.mark.parametrize("part", PARTS)
def test_an_altered_part_is_refused(
    server: tuple[Client, LyingTransport, Collection], key: CollectionKey, part: str
) -> None:
    client, transport, _ = server
    forget_parts(client)
    of_kind(transport, PARTS[part], lambda r: chunk(bit_changed(content(r), 8)))
    with pytest.raises(TamperedDataError, match=f"{part} part does not match its digest"):
        client.open_collection("c", key=key)


@pytest.mark.parametrize("lie", [lambda raw: raw[:-1], lambda raw: raw + b"\0", lambda _: b""])
def test_a_part_of_another_length_is_refused(
    server: tuple[Client, LyingTransport, Collection], key: CollectionKey, lie: Lie
) -> None:
    client, transport, _ = server
    forget_parts(client)
    of_kind(transport, PARTS["HINT"], lambda r: chunk(lie(content(r))))
    with pytest.raises(TamperedDataError, match=r"got \d+ bytes, expected \d+"):
        client.open_collection("c", key=key)


def test_an_endless_part_is_not_read_on(server: tuple[Client, LyingTransport, Collection], key: CollectionKey) -> None:
    client, transport, _ = server
    forget_parts(client)
    taken = []

    def endless(responses: list[pb.ReadSegmentPartResponse]) -> Iterator[pb.ReadSegmentPartResponse]:
        part = chunk(content(responses))[0]
        for number in range(1000):
            taken.append(number)
            yield part

    of_kind(transport, PARTS["HINT"], endless)
    with pytest.raises(TamperedDataError, match="expected"):
        client.open_collection("c", key=key)
    assert len(taken) == 2, "stopped at the first byte too many"


@pytest.mark.parametrize("mode", ["cache", "direct"])
def test_altered_payloads_are_refused(
    server: tuple[Client, LyingTransport, Collection], key: CollectionKey, rng: np.random.Generator, mode: Any
) -> None:
    client, transport, _ = server
    forget_parts(client)
    reader = client.open_collection("c", key=key, payloads=mode)
    for position in (0, 5, -1):
        of_kind(
            transport,
            pb.PART_KIND_PAYLOADS,
            lambda r, at=position: chunk(bit_changed(content(r), at % len(content(r)))),
        )
        with pytest.raises(TamperedDataError):
            reader.search(unit_rows(rng, 1, DIM)[0], k=1)
    transport.lies.clear()
    assert reader.search(unit_rows(rng, 1, DIM)[0], k=1)[0].payload


def test_the_record_of_another_row_is_refused(
    server: tuple[Client, LyingTransport, Collection], key: CollectionKey, rng: np.random.Generator
) -> None:
    """All records have one length here, so that only the seal can tell them apart."""
    client, transport, _ = server
    reader = client.open_collection("c", key=key, payloads="direct")
    vector = unit_rows(rng, 1, DIM)[0]
    assert reader.search(vector, k=1)[0].payload
    size = transport.requests[-1].length_bytes

    def other(_: Any) -> Any:
        request = copy_of(transport.requests[-1])
        request.offset_bytes = request.offset_bytes + size if request.offset_bytes == 0 else request.offset_bytes - size
        return list(transport.honest.stream("ReadSegmentPart", request, timeout_s=1.0))

    of_kind(transport, pb.PART_KIND_PAYLOADS, other)
    with pytest.raises(TamperedDataError, match="record"):
        reader.search(vector, k=1)


# ---- anything ------------------------------------------------------------------------------------------------
TARGETS = ("DescribeCollection", "ReadManifest", "ReadSegmentPart", "Answer")


def fuzzed(rng: np.random.Generator, message: Any) -> Any:
    """Bits flipped or bytes cut in the encoding, or one field set to another message's value."""
    raw = bytearray(message.SerializeToString())
    kind = rng.integers(4)
    if kind == 0 and raw:
        for _ in range(int(rng.integers(1, 4))):
            raw[int(rng.integers(min(len(raw), 200)))] ^= 1 << int(rng.integers(8))
    elif kind == 1 and raw:
        raw[int(rng.integers(len(raw)))] ^= 1 << int(rng.integers(8))
    elif kind == 2:
        del raw[int(rng.integers(len(raw) + 1)) :]
    else:
        return field_changed(rng, message)
    try:
        return type(message).FromString(bytes(raw))
    except Exception:
        raise Unavailable("the transport could not decode a response") from None


def field_changed(rng: np.random.Generator, message: Any) -> Any:
    fields = [f for f in type(message).DESCRIPTOR.fields if f.type in (f.TYPE_BYTES, f.TYPE_UINT64, f.TYPE_UINT32)]
    field = fields[int(rng.integers(len(fields)))]
    if field.name == "live_segments":
        ids = list(message.live_segments)
        del message.live_segments[:]
        message.live_segments.extend([ids[:-1], [*ids, ids[0]], [*ids, bytes(32)], [bytes(3)]][int(rng.integers(4))])
    elif field.type == field.TYPE_BYTES:
        setattr(message, field.name, [b"", bytes(16), bytes(32), rng.bytes(40)][int(rng.integers(4))])
    else:
        setattr(message, field.name, int(rng.choice([0, 1, 2, 3, 7, 2**31, 2**32 - 1])))
    return message


def fuzzed_stream(rng: np.random.Generator, messages: list[Any]) -> list[Any]:
    position = int(rng.integers(len(messages)))
    kind = rng.integers(5)
    if kind == 0:
        del messages[position]
    elif kind == 1:
        messages.insert(int(rng.integers(len(messages) + 1)), messages[position])
    elif kind == 2 and len(messages) > 1:
        other = (position + 1) % len(messages)
        name = str(rng.choice([f.name for f in type(messages[0]).DESCRIPTOR.fields if f.name != "context"]))
        mine, theirs = getattr(messages[position], name), getattr(messages[other], name)
        setattr(messages[position], name, theirs)
        setattr(messages[other], name, mine)
    else:
        messages[position] = fuzzed(rng, messages[position])
    return messages


@pytest.mark.parametrize("target", TARGETS)
def test_fuzzed_responses(
    key: CollectionKey, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    """200 altered responses of each method: an error of the tree, or the hits that an honest server gives."""
    monkeypatch.setattr("time.sleep", lambda _: None)
    rows, queries = unit_rows(rng, 70, 8), unit_rows(rng, 2, 8)
    refused = 0
    with lying_client() as (client, transport):
        made = client.create_collection("c", dim=8, stride=64, key=key)
        made.insert(range(35), rows[:35], payloads=[f"text {i}" for i in range(35)])
        made.insert(range(35, 70), rows[35:])
        made.delete([3, 40])
        expected = made.search(queries, k=70)
        streams = target in ("ReadSegmentPart", "Answer")
        if target == "Answer":
            alter: Lie = lambda p: fuzzed_stream(rng, block_by_block(p))  # noqa: E731
        else:
            alter = lambda r: fuzzed_stream(rng, r) if streams else fuzzed(rng, r)  # noqa: E731
        for _ in range(200):
            forget_parts(client)
            lied = int(rng.integers(4)) if target == "ReadSegmentPart" else 0
            seen = itertools.count()
            transport.lies = {target: lambda r, at=lied, seen=seen: alter(r) if next(seen) == at else r}
            try:
                found = client.open_collection("c", key=key).search(queries, k=70)
                assert found == expected
            except Conflict:
                raise AssertionError("no other writer: nothing to conflict with") from None
            except HesearchError:
                refused += 1
        transport.lies = {}
        assert made.search(queries, k=70) == expected
    assert refused > 30, "the lies that are not noticed did not matter"
