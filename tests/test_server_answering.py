"""Answering: every block once, bounded memory, one snapshot whatever is committed, and an end when cancelled."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from he_engine import mapping
from he_engine.engine import Buffer, IndexFile, ServerEngine
from he_engine.errors import (
    AlreadyExists,
    Conflict,
    HesearchError,
    InvalidInput,
    ResidueError,
    TamperedDataError,
    Unavailable,
)
from he_engine.hint_server import HintServer
from he_engine.kernels._answer import targets
from he_engine.mapping import Mappings
from he_engine.params import Parameters
from he_proto import wire
from he_proto.chunks import CHUNK_BYTES, answer_requests, segment_requests
from he_proto.status import error_from_rpc
from he_proto.v1 import hesearch_pb2 as pb
from he_server.access.access import Caller
from he_server.search import answering
from he_server.search.answering import blocks_per_unit, units
from he_server.search.engines import Engines
from he_server.search.warming import warm
from he_server.service import Service
from he_server.storage.segment_file import Description, StoredSegment
from tests.server_fixture import BLOCK_BYTES, PARAMETERS, FakeClient, naive_answers, residues, running


class SlowEngine:
    """The real arithmetic, which waits before each unit until it is let through."""

    def __init__(self, *, open_for: int = 1 << 30) -> None:
        self._engine = HintServer(PARAMETERS)
        self._gate = threading.Semaphore(open_for)
        self.units = 0
        self.forgotten: list[Path] = []
        self.failing: HesearchError | None = None
        self.query_bytes = self._engine.query_bytes
        self.index_bytes_per_block = self._engine.index_bytes_per_block
        self.answer_bytes_per_block = self._engine.answer_bytes_per_block
        self.check_index = self._engine.check_index
        self.check_queries = self._engine.check_queries
        self.close = self._engine.close

    def let(self, count: int) -> None:
        self._gate.release(count)

    def answer(self, index: IndexFile, first_block: int, blocks: int, queries: Sequence[Buffer]) -> list[bytes]:
        self._gate.acquire()
        self.units += 1
        if self.failing:
            raise self.failing
        return self._engine.answer(index, first_block, blocks, queries)

    def forget(self, index: IndexFile) -> None:
        self.forgotten.append(index.path)
        self._engine.forget(index)


class Call(Caller):
    """A call that its caller may give up."""

    def __init__(self) -> None:
        self.active = True
        super().__init__(is_active=lambda: self.active)


@pytest.fixture
def one_block_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering, "_MIN_INDEX_BYTES", BLOCK_BYTES)
    monkeypatch.setattr(answering, "UNIT_INDEX_BYTES", BLOCK_BYTES)


# ---- how the work is cut -------------------------------------------------------------------------------------
class Sizes:
    """An engine of which only the sizes are asked."""

    def __init__(self, index: int, answer: int) -> None:
        self.index_bytes_per_block = index
        self.answer_bytes_per_block = answer


def _segment(blocks: int) -> StoredSegment:
    parts = [(1, blocks, bytes(32))]
    return StoredSegment(Description.of(bytes(16), bytes(32), blocks, parts), Path(f"/{blocks}"))


@given(
    index=st.integers(1, 1 << 30),
    answer=st.integers(1, 1 << 22),
    total=st.integers(0, 1 << 40),
    threads=st.integers(1, 256),
)
def test_a_unit_is_bounded(index: int, answer: int, total: int, threads: int) -> None:
    engine: ServerEngine = Sizes(index, answer)  # type: ignore[assignment]
    blocks = blocks_per_unit(engine, total, threads)
    assert blocks >= 1
    if blocks > 1:
        assert blocks * index <= answering.UNIT_INDEX_BYTES
        assert blocks * answer <= CHUNK_BYTES


@given(st.lists(st.integers(1, 20), max_size=6), st.integers(1, 25))
def test_units_cover_every_block_once(sizes: list[int], size: int) -> None:
    segments = [_segment(blocks) for blocks in sizes]
    found: dict[int, list[int]] = {number: [] for number in range(len(segments))}
    for unit in units(segments, size):
        assert 1 <= unit.blocks <= size
        number = next(i for i, segment in enumerate(segments) if segment is unit.segment)
        found[number] += range(unit.first_block, unit.first_block + unit.blocks)
    assert list(found.values()) == [list(range(blocks)) for blocks in sizes]


# ---- cancellation and failures -------------------------------------------------------------------------------
def _filled(client: FakeClient, blocks: int) -> None:
    segment = client.segment(blocks)
    client.write(segment)
    client.commit(1, [segment])


@pytest.mark.usefixtures("one_block_units")
def test_a_cancelled_call_stops(tmp_path: Path) -> None:
    engine = SlowEngine(open_for=1)
    with running(tmp_path, over_grpc=False, make_engine=lambda _: engine) as endpoint:
        client = FakeClient(endpoint).create()
        _filled(client, 20)
        call = Call()
        answers = endpoint.service.answer(iter(client.answer_requests(2, residues(client.rng, 1))), call)
        next(answers)
        call.active = False
        engine.let(20)
        with pytest.raises(Unavailable, match="cancelled"):
            list(answers)
        assert engine.units <= 1 + 2
        segment = client.segment()
        client.write(segment)
        client.commit(2, [segment])
        assert len(engine.forgotten) == 3, "both uploads were looked at, and nothing pins the retired segment"


@pytest.mark.usefixtures("one_block_units")
def test_a_client_that_leaves_stops_its_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = SlowEngine(open_for=1)
    answer = Service.answer

    def watched(service: Service, requests: Iterator[pb.AnswerRequest], call: Any) -> Iterator[pb.AnswerResponse]:
        context = call.is_active.__self__
        context.add_callback(lambda: engine.let(20))  # once the server knows that the client has gone
        return answer(service, requests, call)

    monkeypatch.setattr(Service, "answer", watched)
    with running(tmp_path, over_grpc=True, make_engine=lambda _: engine) as endpoint:
        client = FakeClient(endpoint).create()
        _filled(client, 20)
        assert endpoint.stub is not None
        answers = endpoint.stub.Answer(iter(client.answer_requests(2, residues(client.rng, 1))), timeout=60)
        next(answers)
        answers.cancel()
        with pytest.raises(grpc.RpcError) as caught:
            list(answers)
        assert isinstance(error_from_rpc(caught.value), Unavailable)
    assert engine.units <= 1 + 2, "one was taken, two were under way, and no other was computed"


@pytest.mark.usefixtures("one_block_units")
@pytest.mark.parametrize("over_grpc", [False, True])
def test_a_failing_unit_fails_the_call(tmp_path: Path, over_grpc: bool) -> None:
    engine = SlowEngine()
    with running(tmp_path, over_grpc=over_grpc, make_engine=lambda _: engine) as endpoint:
        client = FakeClient(endpoint).create()
        _filled(client, 20)
        engine.failing = ResidueError("index: broken")
        with pytest.raises(ResidueError, match="index: broken"):
            client.answer(2, residues(client.rng, 1))
        engine.failing = None
        assert client.answer(2, residues(client.rng, 1))


# ---- snapshots -----------------------------------------------------------------------------------------------
@pytest.mark.usefixtures("one_block_units")
@pytest.mark.parametrize("change", ["commit", "drop"])
def test_a_running_answer_keeps_its_snapshot(tmp_path: Path, change: str) -> None:
    """The segment that is being answered is retired meanwhile: its file stays until the answer is complete."""
    engine = SlowEngine()
    with running(tmp_path, over_grpc=False, make_engine=lambda _: engine) as endpoint:
        client = FakeClient(endpoint).create()
        segment = client.segment(12)
        client.write(segment)
        client.commit(1, [segment])
        path = tmp_path / "segments" / client.collection_id.hex() / segment.id.hex()
        queries = residues(client.rng, 1)
        answers = endpoint.service.answer(iter(client.answer_requests(2, queries)), Call())
        pieces = [next(answers)]
        if change == "commit":
            client.commit(2, [])
        else:
            request = pb.DropCollectionRequest(context=client.context, collection_id=client.collection_id)
            endpoint.call("DropCollection", request)
        assert path.exists()
        pieces += answers
        assert not path.exists()
        assert engine.forgotten[-1] == path
    got = b"".join(piece.residues for piece in sorted(pieces, key=lambda piece: piece.first_block))
    assert got == naive_answers(segment.blocks, queries).tobytes()


def test_commits_during_answers(tmp_path: Path) -> None:
    """Searches of the versions that they asked for, or conflicts; never a mixture, never a missing file."""
    with running(tmp_path, over_grpc=True) as endpoint:
        client = FakeClient(endpoint).create()
        queries = residues(client.rng, 1)
        expected: dict[int, tuple[bytes, bytes]] = {}

        def commit_all() -> None:
            writer = FakeClient(endpoint, seed=5)
            writer.collection_id = client.collection_id
            for version in range(1, 16):
                segment = writer.segment()
                writer.write(segment)
                expected[version + 1] = (segment.id, naive_answers(segment.blocks, queries).tobytes())
                writer.commit(version, [segment])

        with ThreadPoolExecutor(1) as pool:
            writing = pool.submit(commit_all)
            version = 1
            while not writing.done() or version == 1:
                if writing.done():
                    writing.result()
                version = client.manifest().version
                with contextlib.suppress(Conflict):
                    for segment_id, answer in client.answer(version, queries).items():
                        assert (segment_id, answer.tobytes()) == expected[version]
            writing.result()
        assert client.manifest().version == 16
        assert len(list((tmp_path / "segments" / client.collection_id.hex()).iterdir())) == 1


def test_concurrent_writers_one_wins(tmp_path: Path) -> None:
    with running(tmp_path, over_grpc=True) as endpoint:
        FakeClient(endpoint).create()

        def commit(number: int) -> int | str:
            writer = FakeClient(endpoint)
            try:
                return writer.commit(1, [], sealed_manifest=b"writer %d" % number)
            except HesearchError as error:
                return type(error).__name__

        with ThreadPoolExecutor(8) as pool:
            outcomes = list(pool.map(commit, range(8)))
        assert sorted(map(str, outcomes)) == ["2"] + ["Conflict"] * 7
        winner = outcomes.index(2)
        assert FakeClient(endpoint).manifest().sealed_manifest == b"writer %d" % winner


def test_concurrent_uploads_of_one_segment(tmp_path: Path) -> None:
    with running(tmp_path, over_grpc=True) as endpoint:
        client = FakeClient(endpoint).create()
        segment = client.segment(4)
        with ThreadPoolExecutor(6) as pool:
            list(pool.map(lambda _: client.write(segment), range(12)))
        assert client.write(segment).existed
        client.commit(1, [segment])
        assert client.read_part(segment, pb.PART_KIND_INDEX) == segment.contents[pb.PART_KIND_INDEX]
        assert not list((tmp_path / "incoming").iterdir())


def test_a_repaired_index_is_mapped_anew(tmp_path: Path) -> None:
    """Its bytes were altered on the disk after it had been mapped; the answers after the repair are right."""
    with running(tmp_path, over_grpc=False) as endpoint:
        client = FakeClient(endpoint).create()
        segment = client.segment(2)
        client.write(segment)
        client.commit(1, [segment])
        queries = residues(client.rng, 1)
        before = client.answer(2, queries)[segment.id]
        path = tmp_path / "segments" / client.collection_id.hex() / segment.id.hex()
        with path.open("r+b") as file:
            file.seek(4096 + 400)
            file.write(b"\0\0\0\1" * 10)
        assert not np.array_equal(client.answer(2, queries)[segment.id], before), "clients would refuse this"
        with pytest.raises(TamperedDataError):
            client.read_part(segment, pb.PART_KIND_INDEX)
        with pytest.raises(TamperedDataError, match="sending it again repairs it"):
            client.answer(2, queries)
        client.write(segment)
        assert np.array_equal(client.answer(2, queries)[segment.id], before)


def test_a_file_cut_short_while_mapped(tmp_path: Path) -> None:
    """Reading what is no longer there would end the process; instead the segment counts as damaged."""
    with running(tmp_path, over_grpc=False) as endpoint:
        client = FakeClient(endpoint).create()
        segment, other = client.segment(2), client.segment()
        for one in (segment, other):
            client.write(one)
        client.commit(1, [segment, other])
        queries = residues(client.rng, 1)
        before = client.answer(2, queries)
        os.truncate(tmp_path / "segments" / client.collection_id.hex() / segment.id.hex(), 4096)
        with pytest.raises(TamperedDataError, match="index: its file has 4096 bytes, expected at least 36864"):
            client.answer(2, queries)
        with pytest.raises(TamperedDataError, match="sending it again repairs it"):
            client.answer(2, queries)
        assert not client.write(segment).existed
        after = client.answer(2, queries)
        assert all(np.array_equal(after[one.id], before[one.id]) for one in (segment, other))


def test_a_file_that_has_gone(tmp_path: Path) -> None:
    with running(tmp_path, over_grpc=False) as endpoint:
        client = FakeClient(endpoint).create()
        _filled(client, 2)
        next((tmp_path / "segments" / client.collection_id.hex()).iterdir()).unlink()
        with pytest.raises(TamperedDataError, match="storage: a file is missing while reading an index"):
            client.answer(2, residues(client.rng, 1))


def test_a_system_without_descriptors_is_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: object) -> None:
        raise OSError(errno.EMFILE, "secret path")

    with running(tmp_path, over_grpc=True) as endpoint:
        client = FakeClient(endpoint).create()
        segment = client.segment()
        with monkeypatch.context() as patched:
            patched.setattr(mapping, "_Mapping", exhausted)
            with pytest.raises(Unavailable, match="storage: EMFILE while checking the index"):
                client.write(segment)
        client.write(segment)
        client.commit(1, [segment])
        with monkeypatch.context() as patched:
            patched.setattr(mapping, "_Mapping", exhausted)
            with pytest.raises(Unavailable, match="storage: EMFILE while reading an index"):
                client.answer(2, residues(client.rng, 1))
        assert client.answer(2, residues(client.rng, 1))


# ---- other engines -------------------------------------------------------------------------------------------
def _tenseal_request(dim: int) -> tuple[pb.CreateCollectionRequest, wire.TensealParameters]:
    parameters = wire.TensealParameters(dim=dim)
    request = pb.CreateCollectionRequest(
        context=wire.context(f"dim{dim}", parameters.digest),
        collection_id=dim.to_bytes(16, "little"),
        parameters=wire.parameters_to_wire(parameters),
        sealed_manifest=b"sealed",
    )
    return request, parameters


class MadeEngine:
    """An engine of which only is known whether it is closed, and what it has been told to forget."""

    def __init__(self, parameters: wire.PublicParameters) -> None:
        self.parameters = parameters
        self.closed = False
        self.forgotten: list[IndexFile] = []
        self.query_bytes = self.index_bytes_per_block = 1

    def forget(self, index: IndexFile) -> None:
        self.forgotten.append(index)

    def close(self) -> None:
        self.closed = True


class Made:
    """Makes engines and remembers them."""

    def __init__(self) -> None:
        self.engines: list[MadeEngine] = []

    def __call__(self, parameters: wire.PublicParameters) -> Any:
        self.engines.append(MadeEngine(parameters))
        return self.engines[-1]

    @property
    def open(self) -> list[int]:
        return [engine.parameters.dim for engine in self.engines if not engine.closed]


def test_refused_collections_take_no_engines_place(tmp_path: Path) -> None:
    made = Made()
    with running(tmp_path, over_grpc=False, make_engine=made) as endpoint:
        FakeClient(endpoint).create()
        for dim in range(1, 20):
            request, parameters = _tenseal_request(dim)
            request.context.CopyFrom(wire.context("notes", parameters.digest))
            with pytest.raises(AlreadyExists):
                endpoint.call("CreateCollection", request)
        for dim in range(1, 20):
            endpoint.call("CreateCollection", _tenseal_request(dim)[0])
        assert len(made.engines) == 1 + 19 + 19
        assert made.open == []


def _tenseal(dim: int) -> wire.TensealParameters:
    return wire.TensealParameters(dim=dim)


def test_engines_are_few() -> None:
    """Those of TenSEAL have processes, and a client chooses the dimension: the longest unused one goes."""
    made = Made()
    engines = Engines(made)
    for dim in (*range(1, 9), 1):
        with engines.using(_tenseal(dim)) as engine:
            assert engine is made.engines[dim - 1], "made once"
    with engines.using(_tenseal(9)):
        assert made.open == [1, 3, 4, 5, 6, 7, 8, 9]
    for dim in range(1, 40):
        with engines.using(Parameters.choose("compact", dim)):
            pass
    assert made.open == [1, 3, 4, 5, 6, 7, 8, 9, *range(8, 40)], "32 of the other kind, none at the cost of these"
    engines.close()
    assert made.open == []


def test_engines_in_use_stay() -> None:
    made = Made()
    engines = Engines(made)
    with contextlib.ExitStack() as calls:
        for dim in range(1, 9):
            calls.enter_context(engines.using(_tenseal(dim)))
        with pytest.raises(Unavailable, match="8 of other parameters are in use"), engines.using(_tenseal(9)):
            pass
        with engines.using(_tenseal(3)):
            pass
        assert made.open == [1, 2, 3, 4, 5, 6, 7, 8]
    with engines.using(_tenseal(9)):
        assert made.open == [2, 3, 4, 5, 6, 7, 8, 9]
    engines.close()


def test_only_the_segments_engine_forgets_it() -> None:
    """Another one may be busy, and would wait."""
    made = Made()
    engines = Engines(made)
    for dim in (1, 2):
        with engines.using(_tenseal(dim)):
            pass
    parts = [(1, 1, bytes(32))]
    segment = StoredSegment(Description.of(bytes(16), _tenseal(2).digest, 1, parts), Path("/x"))
    engines.forget(segment.description.parameter_digest, segment.index)
    assert [engine.forgotten for engine in made.engines] == [[], [segment.index]]
    engines.close()


class TensealClient:
    """A collection of dimension 2 and three blocks: random ciphertexts, as a server cannot tell them from others."""

    def __init__(self, endpoint: Any, rng: np.random.Generator) -> None:
        self._endpoint, self._rng = endpoint, rng
        self._request, parameters = _tenseal_request(2)
        endpoint.call("CreateCollection", self._request)
        self.index = self.ciphertexts(3)
        name, collection_id = self._request.context.collection, self._request.collection_id
        header = wire.segment_header(name, collection_id, parameters.digest, 3, {pb.PART_KIND_INDEX: self.index})
        endpoint.call("WriteSegment", list(segment_requests(header, [self.index])))
        commit = pb.CommitManifestRequest(
            context=self._request.context,
            collection_id=collection_id,
            expected_version=1,
            sealed_manifest=b"sealed 2",
            live_segments=[header.segment_id],
        )
        endpoint.call("CommitManifest", commit)
        self.segment_id = header.segment_id

    def ciphertexts(self, count: int) -> bytes:
        """So many blocks or queries."""
        from he_engine.tenseal_format import DEGREE, MODULUS, SEED_BYTES

        planes = (self._rng.integers(0, MODULUS, DEGREE, "<u8").tobytes() + self._rng.bytes(SEED_BYTES)
                  for _ in range(2 * count))  # fmt: skip
        return b"".join(planes)

    def answer(self, queries: Sequence[bytes]) -> list[pb.AnswerResponse]:
        ask = pb.AnswerHeader(
            context=self._request.context,
            collection_id=self._request.collection_id,
            version=2,
            queries=len(queries),
        )
        pieces: list[pb.AnswerResponse] = self._endpoint.call("Answer", list(answer_requests(ask, queries)))
        return pieces


def test_tenseal_answers(tmp_path: Path, rng: np.random.Generator) -> None:
    """Random ciphertexts, answered through the service and by the engine alone: the same bytes."""
    pytest.importorskip("tenseal")
    from he_engine.tenseal_format import ANSWER_BYTES
    from he_engine.tenseal_server import TensealServer

    with running(tmp_path, over_grpc=True) as endpoint:
        client = TensealClient(endpoint, rng)
        queries = [client.ciphertexts(1) for _ in range(2)]
        pieces = client.answer(queries)
        path = next((tmp_path / "segments").rglob(client.segment_id.hex()))
        alone = TensealServer(2, 1)
        expected = alone.answer(IndexFile(path, 4096, len(client.index), 3), 0, 3, queries)
        alone.close()
    assert sum(piece.blocks for piece in pieces) == 2 * 3
    for piece in pieces:
        first = piece.first_block * ANSWER_BYTES
        assert piece.residues == expected[piece.query][first : first + piece.blocks * ANSWER_BYTES]


def test_a_query_that_breaks_tenseal(tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its caller gets InvalidInput, which clients do not repeat; the server and whoever else asks go on."""
    pytest.importorskip("tenseal")
    from he_engine import tenseal_pool
    from tests.poisoned_worker import CRASH, boot, poisoned

    monkeypatch.setattr(tenseal_pool, "_BOOT", boot())
    with running(tmp_path, over_grpc=True) as endpoint:
        client = TensealClient(endpoint, rng)
        query = client.ciphertexts(1)
        expected = _residues(client.answer([query]))
        for said in ("2 worker processes ended", "could not bear, before"):
            with pytest.raises(InvalidInput, match=said):
                client.answer([poisoned(query, CRASH)])
        assert _residues(client.answer([query])) == expected


def _residues(pieces: Sequence[pb.AnswerResponse]) -> list[tuple[int, bytes]]:
    """In the order of blocks."""
    return sorted((piece.first_block, piece.residues) for piece in pieces)


# ---- the hint engine ----------------------------------------------------------------------------------------------
@pytest.fixture
def index(tmp_path: Path) -> Callable[[np.ndarray], IndexFile]:
    def write(words: np.ndarray) -> IndexFile:
        path = tmp_path / "index"
        path.write_bytes(bytes(4096) + words.tobytes())
        return IndexFile(path, 4096, words.nbytes, len(words))

    return write


def test_hint_server(index: Callable[[np.ndarray], IndexFile], rng: np.random.Generator) -> None:
    engine = HintServer(PARAMETERS)
    words, queries = residues(rng, 3), residues(rng, 2)
    file = index(words)
    engine.check_index(file)
    engine.check_queries([query.tobytes() for query in queries])
    answers = engine.answer(file, 1, 2, [bytearray(queries[0].tobytes()), queries[1].tobytes()])
    expected = naive_answers(words[1:], queries)
    assert answers == [one.tobytes() for one in expected]
    assert [len(one) for one in answers] == [2 * engine.answer_bytes_per_block] * 2
    engine.forget(file)
    words[2, 0, 0, 0, 0] = PARAMETERS.ring.primes[0]
    with pytest.raises(ResidueError, match="index from block 0: got a residue that is not canonical, word 8192"):
        engine.check_index(index(words))
    engine.close()


def _mapped(folder: Path) -> int:
    return sum(str(folder) in line for line in Path("/proc/self/maps").read_text().splitlines())


def test_warm_pages_are_in_the_page_tables(index: Callable[[np.ndarray], IndexFile], rng: np.random.Generator) -> None:
    file, engine = index(residues(rng, 64)), HintServer(PARAMETERS)

    def resident_bytes() -> int:
        smaps = Path("/proc/self/smaps").read_text().split(str(file.path))
        return sum(int(mapping.split("Rss:")[1].split()[0]) << 10 for mapping in smaps[1:])

    engine._mapped(file)
    assert resident_bytes() < file.length_bytes / 2
    engine.warm(file)
    assert resident_bytes() == file.length_bytes
    engine.close()


def test_what_is_live_is_warmed(tmp_path: Path) -> None:
    with running(tmp_path, over_grpc=False) as endpoint:
        assert warm(endpoint.service, threading.Event()).index_bytes == 0
        client = FakeClient(endpoint).create()
        segments = [client.segment(3), client.segment(), client.segment(2)]
        for one in segments:
            client.write(one)
        client.commit(1, segments[:2])
        warmth = warm(endpoint.service, threading.Event())
        assert (warmth.index_bytes, warmth.warm_bytes) == (4 * BLOCK_BYTES, 4 * BLOCK_BYTES)
        assert str(warmth).startswith("read 0.1 of 0.1 MB of indexes into memory in ")
        stopped = threading.Event()
        stopped.set()
        assert warm(endpoint.service, stopped).warm_bytes == 0
        os.truncate(tmp_path / "segments" / client.collection_id.hex() / segments[1].id.hex(), 4096)
        assert warm(endpoint.service, threading.Event()).warm_bytes == 3 * BLOCK_BYTES
        client.commit(2, [])
        assert warm(endpoint.service, threading.Event()).index_bytes == 0


def test_mapped_files_hold_no_descriptors_and_are_few(tmp_path: Path, rng: np.random.Generator) -> None:
    """The longest unused mapping makes room, and stays until no array is over it."""
    mappings = Mappings(8)
    engine, queries = HintServer(PARAMETERS, "", mappings), residues(rng, 1)
    words = residues(rng, 20)
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    indices = []
    for k in range(20):
        path = tmp_path / str(k)
        path.write_bytes(bytes(100 * k) + words[k].tobytes())  # at any offset
        indices.append(IndexFile(path, 100 * k, BLOCK_BYTES, 1))
    first, sixth = engine._mapped(indices[0]), engine._mapped(indices[5])
    expected = naive_answers(words, queries)[0]
    for _ in range(2):
        for k, index in enumerate(indices):
            assert engine.answer(index, 0, 1, [queries.tobytes()]) == [expected[k].tobytes()]
            engine.answer(indices[5], 0, 1, [queries.tobytes()])
        assert _mapped(tmp_path) == 8 + 1
    assert np.shares_memory(engine._mapped(indices[5]), sixth), "used all the time"
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors
    assert np.array_equal(first, words[:1])
    assert not first.flags.writeable
    del first, sixth
    assert _mapped(tmp_path) == 8
    engine.forget(indices[5])
    assert _mapped(tmp_path) == 7
    other = HintServer(PARAMETERS, "", mappings)
    other.check_index(indices[5])
    engine.close()
    assert _mapped(tmp_path) == 1, "the other engine's"
    other.close()
    assert _mapped(tmp_path) == 0


@pytest.mark.parametrize("target", targets())
@pytest.mark.parametrize("queries", [1, 3])
def test_what_the_disk_cannot_read_ends_no_process(
    tmp_path: Path, rng: np.random.Generator, target: str, queries: int
) -> None:
    """As a bad sector does: the pages are mapped, and a read of them is a SIGBUS."""
    path = tmp_path / "index"
    words = residues(rng, 64)
    path.write_bytes(words.tobytes())
    index = IndexFile(path, 0, 64 * BLOCK_BYTES, 64)
    with contextlib.closing(HintServer(PARAMETERS, target)) as engine:
        asked = [residues(rng, 1).tobytes()] * queries
        expected = engine.answer(index, 0, 1, asked)
        stacks = engine._mapped(index)
        engine._mapped = lambda _: stacks  # type: ignore[method-assign]  # its length was looked at before
        for _ in range(3):
            os.truncate(path, BLOCK_BYTES)
            with pytest.raises(TamperedDataError, match="cannot read"):
                engine.answer(index, 0, 64, asked)
            with pytest.raises(TamperedDataError, match="cannot read"):
                engine.check_index(index)
            path.write_bytes(words.tobytes())
            assert engine.answer(index, 0, 1, asked) == expected


@pytest.mark.parametrize("faults", [False, True])
def test_any_other_bus_error_ends_the_process(tmp_path: Path, faults: bool) -> None:
    """In whatever order handlers were put in place."""
    script = f"""
import faulthandler, mmap, os, resource
import numpy as np
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
from he_engine.kernels._answer import AnswerKernel
words, kernel = np.zeros((1, 1, 16), np.uint32), AnswerKernel(4, [2**30 + 1], 1, 1)
kernel.first_noncanonical(words)
if {faults}: faulthandler.enable()
kernel.first_noncanonical(words)
with open({str(tmp_path / "f")!r}, "w+b") as file:
    file.truncate(8192)
    mapped = mmap.mmap(file.fileno(), 8192)
    file.truncate(0)
    mapped[5000]
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == -signal.SIGBUS, ended.stderr
    assert ("Bus error" in ended.stderr) == faults


def test_hint_server_refuses_wrong_lengths(index: Callable[[np.ndarray], IndexFile], rng: np.random.Generator) -> None:
    engine = HintServer(PARAMETERS)
    file = index(residues(rng, 1))
    for length in (BLOCK_BYTES - 4, BLOCK_BYTES + 4, 0):
        with pytest.raises(ResidueError, match=f"got {length} bytes, expected {BLOCK_BYTES}"):
            engine.check_index(IndexFile(file.path, 4096, length, 1))
        with pytest.raises(ResidueError, match=f"got {length} bytes, expected {BLOCK_BYTES}"):
            engine.check_queries([bytes(length)])
