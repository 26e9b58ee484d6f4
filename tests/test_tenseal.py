"""The `tenseal` engine: right within its documented error, strict about bytes, keyless and alive on the server."""

from __future__ import annotations

import copy
import importlib.util
import json
import math
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from he_engine.engine import MAX_QUERIES, Buffer, ClientEngine, EncryptedRows, IndexFile, ServerEngine
from he_engine.errors import (
    DimensionError,
    InvalidInput,
    MissingExtra,
    NormError,
    NotFound,
    ParameterError,
    ResidueError,
    SecretReuseError,
    Unavailable,
    WrongKeyError,
)
from he_engine.params import NOISE_VARIANCE
from tests.conftest import unit_rows

pytest.importorskip("tenseal")

from he_engine import tenseal_ring
from he_engine.tenseal_client import STATE_BYTES, TensealClient, generate_state
from he_engine.tenseal_format import (
    ANSWER_BYTES,
    CIPHERTEXT_BYTES,
    DEGREE,
    INDEX_SCALE,
    MODULUS,
    QUERY_SCALE,
    ROWS_PER_BLOCK,
    SECURITY,
    score_error_std,
)
from he_engine.tenseal_ring import SealRing
from he_engine.tenseal_server import TensealServer
from he_engine.tenseal_worker import Scorer, Source

DIM = 8
OFFSET = 4096  #: where the index starts in its file
Rows = NDArray[np.float64]


@pytest.fixture(scope="module")
def state() -> bytes:
    return generate_state()


@pytest.fixture(scope="module")
def client(state: bytes) -> TensealClient:
    return TensealClient(DIM, state)


@pytest.fixture(scope="module")
def server() -> Iterator[TensealServer]:
    server = TensealServer(DIM, 2)
    yield server
    server.close()


def stored(folder: Path, encrypted: EncryptedRows) -> IndexFile:
    path = folder / "index"
    path.write_bytes(bytes(OFFSET) + encrypted.index)
    return IndexFile(path, OFFSET, len(encrypted.index), encrypted.blocks)


def sources(buffer: Buffer, name: str, dim: int = DIM) -> list[Source]:
    """One for each block or query in the buffer."""

    view = memoryview(buffer)

    def reader(start: int) -> Callable[[int], bytes]:
        return lambda j: bytes(view[start + j * CIPHERTEXT_BYTES : start + (j + 1) * CIPHERTEXT_BYTES])

    step = dim * CIPHERTEXT_BYTES
    return [Source(f"{name}{start}", reader(start)) for start in range(0, len(view), step)]


# ---- right ---------------------------------------------------------------------------------------------------
def test_scores(client: TensealClient, server: TensealServer, rng: np.random.Generator, tmp_path: Path) -> None:
    """Three blocks, three queries, two workers: every error within 6.5 σ, their spread within 10 % of theory."""
    rows, vectors = unit_rows(rng, 2 * ROWS_PER_BLOCK + 100, DIM), unit_rows(rng, 3, DIM)
    encrypted = client.setup(rows)
    assert (encrypted.rows, encrypted.blocks) == (len(rows), 3)
    assert len(encrypted.index) == 3 * server.index_bytes_per_block
    index = stored(tmp_path, encrypted)
    server.check_index(index)
    queries = [client.query(vector) for vector in vectors]
    ciphertexts = [query.ciphertext for query in queries]
    assert [len(ciphertext) for ciphertext in ciphertexts] == [server.query_bytes] * 3
    server.check_queries(ciphertexts)
    answers = server.answer(index, 0, 3, ciphertexts)
    assert server.answer(index, 0, 3, ciphertexts[::-1]) == answers[::-1], "workers know them by content"
    assert [len(answer) for answer in answers] == [3 * server.answer_bytes_per_block] * 3
    errors = []
    for query, vector, answer in zip(queries, vectors, answers, strict=True):
        (scores,) = client.recover(query, [client.load(encrypted)], [answer])
        assert scores.shape == (len(rows),)
        errors.append(scores - rows @ vector)
    sigma = score_error_std()
    assert 4.7e-7 < sigma < 4.8e-7
    assert np.abs(errors).max() < 6.5 * sigma
    assert 0.9 < np.std(errors) / sigma < 1.1
    assert abs(np.mean(errors)) < 0.1 * sigma
    one_by_one = [server.answer(index, k, 1, [queries[1].ciphertext])[0] for k in range(3)]
    assert b"".join(one_by_one) == answers[1]


def test_full_slots_do_not_wrap(client: TensealClient) -> None:
    """Every score ±1 in both parts of every slot: the largest plaintext there is, all of it in two coefficients."""
    rows = np.zeros((ROWS_PER_BLOCK, DIM))
    rows[:, 3] = 1
    vector = -rows[0]
    query, encrypted = client.query(vector), client.setup(rows)
    scorer = Scorer(DIM, 0)
    (answer,) = scorer.answer(sources(encrypted.index, "x"), sources(query.ciphertext, "y"))
    (scores,) = client.recover(query, [client.load(encrypted)], [answer])
    assert np.abs(scores + 1).max() < 6.5 * score_error_std()
    assert math.sqrt(2) * INDEX_SCALE * QUERY_SCALE < MODULUS / 2


def test_noise_is_the_estimated_one(client: TensealClient, state: bytes) -> None:
    """Variance η/2 = 10.5 of a coefficient, as the security table assumes: |slot|² of an encryption of 0 is N·σ²."""
    api, ring = tenseal_ring.sealapi(), SealRing()
    key = ring.load_secret_key(state)
    decryptor, encoder = api.Decryptor(ring.context, key), api.CKKSEncoder(ring.context)
    squares = []
    zero = client.query(np.zeros(DIM)).ciphertext
    for j in range(DIM):
        plaintext = api.Plaintext()
        fresh = zero[j * CIPHERTEXT_BYTES : (j + 1) * CIPHERTEXT_BYTES]
        decryptor.decrypt(ring.load_fresh(fresh, QUERY_SCALE), plaintext)
        squares.append(np.abs(QUERY_SCALE * np.array(encoder.decode_complex(plaintext))) ** 2)
    assert np.mean(squares) / DEGREE == pytest.approx(NOISE_VARIANCE, rel=0.05)
    assert SECURITY.multi_target_core_svp_quantum >= 128


def test_cache_changes_nothing(client: TensealClient, rng: np.random.Generator) -> None:
    """No cache, one too small for the request, and one that holds everything: the same bytes, also again."""
    index = client.setup(unit_rows(rng, ROWS_PER_BLOCK + 1, DIM)).index
    queries = b"".join(client.query(v).ciphertext for v in unit_rows(rng, 2, DIM))
    stack_bytes = DIM * 2 * 8 * DEGREE
    answers = []
    for cache_bytes in (0, 2 * stack_bytes, 8 * stack_bytes):
        scorer = Scorer(DIM, cache_bytes)
        for _ in range(2):
            answers.append(scorer.answer(sources(index, "x"), sources(queries, "y")))
        held = sum(len(stack.parsed) for stack in scorer._stacks.values())
        assert held == min(4, cache_bytes // stack_bytes) * DIM
        scorer.forget("x")
        assert not any(key.startswith("x") for key in scorer._stacks)
    assert all(answer == answers[0] for answer in answers)


def test_replaced_file(client: TensealClient, server: TensealServer, tmp_path: Path) -> None:
    """Parsed blocks belong to a file, not to its name; a file that is gone is NotFound."""
    first, second = np.eye(DIM)[:2], -np.eye(DIM)[:2]
    query = client.query(first[0])
    for rows in (first, second):
        encrypted = client.setup(rows)
        (tmp_path / "index").unlink(missing_ok=True)
        index = stored(tmp_path, encrypted)
        (answer,) = server.answer(index, 0, 1, [bytearray(query.ciphertext)])
        (scores,) = client.recover(query, [client.load(encrypted)], [answer])
        assert np.allclose(scores, rows @ first[0], atol=1e-5)
        server.forget(index)
    index.path.unlink()
    server.forget(index)
    with pytest.raises(NotFound):
        server.answer(index, 0, 1, [query.ciphertext])
    with pytest.raises(NotFound):
        server.check_index(index)


def test_protocols(client: TensealClient, server: TensealServer) -> None:
    c: ClientEngine = client
    s: ServerEngine = server
    assert c.answer_bytes_per_block == s.answer_bytes_per_block == ANSWER_BYTES == 98_304
    assert c.query_bytes == s.query_bytes == s.index_bytes_per_block == c.index_bytes_per_block == 32_832 * DIM
    assert c.rows_per_block == server.rows_per_block == 4096


# ---- strict --------------------------------------------------------------------------------------------------
@pytest.fixture
def no_seal(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on, SEAL parses nothing."""

    def refuse(*_: Any) -> Any:
        raise AssertionError("SEAL was given bytes")

    monkeypatch.setattr(SealRing, "_load", refuse)


def spoiled(buffer: bytes | bytearray, residue: int, value: int) -> bytes:
    """With one residue replaced; counted over 8-byte words, seeds included."""
    out = bytearray(buffer)
    out[8 * residue : 8 * residue + 8] = value.to_bytes(8, "little")
    return bytes(out)


@pytest.mark.usefixtures("no_seal")
@pytest.mark.parametrize("value", [MODULUS, MODULUS + 1, 2**64 - 1])
def test_residues_are_checked_before_seal(server: TensealServer, state: bytes, tmp_path: Path, value: int) -> None:
    ciphertexts = bytes(DIM * CIPHERTEXT_BYTES)
    server.check_queries([ciphertexts])
    seed = spoiled(ciphertexts, CIPHERTEXT_BYTES // 8 - 1, value)  # the last word of a seed: not a residue
    server.check_queries([seed])
    words = CIPHERTEXT_BYTES // 8
    for residue in (0, 3 * words + DEGREE - 1, (DIM - 1) * words):
        bad = spoiled(ciphertexts, residue, value)
        with pytest.raises(ResidueError, match="canonical"):
            server.check_queries([bad])
        path = tmp_path / "bad"
        path.write_bytes(bad)
        with pytest.raises(ResidueError, match="canonical"):
            server.check_index(IndexFile(path, 0, len(bad), 1))
        ring = object.__new__(SealRing)
        with pytest.raises(ResidueError, match="canonical"):
            ring.load_fresh(spoiled(bytes(CIPHERTEXT_BYTES), 5, value), INDEX_SCALE)
        with pytest.raises(ResidueError, match="canonical"):
            ring.load_answer(spoiled(bytes(ANSWER_BYTES), 3 * DEGREE - 1, value), INDEX_SCALE)
    with pytest.raises(ResidueError, match="engine state"):
        TensealClient(DIM, spoiled(state, 7, value))


def test_worker_checks_too(client: TensealClient, server: TensealServer, tmp_path: Path) -> None:
    """What no one checked beforehand stops in the worker, with the same error, and the worker goes on."""
    encrypted, query = client.setup(np.eye(DIM)), client.query(np.eye(DIM)[0])
    index = stored(tmp_path, encrypted)
    with pytest.raises(ResidueError, match="canonical"):
        server.answer(index, 0, 1, [spoiled(query.ciphertext, 0, MODULUS)])
    index.path.write_bytes(index.path.read_bytes()[:-1])
    with pytest.raises(ResidueError, match="index"):
        server.answer(index, 0, 1, [query.ciphertext])
    pids = [worker.pid for worker in server._workers]
    index = stored(tmp_path, encrypted)
    assert len(server.answer(index, 0, 1, [query.ciphertext])[0]) == ANSWER_BYTES
    assert [worker.pid for worker in server._workers] == pids


@pytest.mark.parametrize("change", [-8, -1, 1, 8, CIPHERTEXT_BYTES])
def test_wrong_lengths(client: TensealClient, server: TensealServer, tmp_path: Path, change: int) -> None:
    encrypted, query = client.setup(np.eye(DIM)), client.query(np.eye(DIM)[0])
    index = stored(tmp_path, encrypted)

    def altered(buffer: bytes) -> bytes:
        return buffer[:change] if change < 0 else buffer + bytes(change)

    with pytest.raises(ResidueError, match=r"got .* expected"):
        server.check_queries([altered(query.ciphertext)])
    with pytest.raises(ResidueError, match=r"got .* expected"):
        server.answer(index, 0, 1, [altered(query.ciphertext)])
    with pytest.raises(ResidueError, match=r"got .* expected"):
        server.check_index(IndexFile(index.path, OFFSET, index.length_bytes + change, 1))
    if change < 0:
        index.path.write_bytes(index.path.read_bytes()[:change])
        with pytest.raises(ResidueError, match=r"got .* expected"):
            server.check_index(index)
    with pytest.raises(ResidueError, match=r"got .* expected"):
        client.recover(query, [client.load(encrypted)], [altered(bytes(ANSWER_BYTES))])


def test_all_answers_are_checked_before_any_is_decrypted(
    client: TensealClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    segment = client.load(client.setup(np.eye(DIM)))
    query = client.query(np.eye(DIM)[0])
    monkeypatch.setattr(TensealClient, "_decrypt", lambda *_: pytest.fail("decrypted"))
    good, bad = bytes(ANSWER_BYTES), spoiled(bytes(ANSWER_BYTES), 0, MODULUS)
    with pytest.raises(ResidueError, match="answer 1"):
        client.recover(query, [segment, segment], [good, bad])
    with pytest.raises(ValueError, match="argument"):
        client.recover(query, [segment, segment], [good])


def test_ranges_and_counts(client: TensealClient, server: TensealServer, tmp_path: Path) -> None:
    index = stored(tmp_path, client.setup(np.eye(DIM)))
    query = client.query(np.eye(DIM)[0]).ciphertext
    for first, blocks in ((-1, 1), (0, 0), (0, 2), (1, 1)):
        with pytest.raises(InvalidInput, match="blocks"):
            server.answer(index, first, blocks, [query])
    for count in (0, MAX_QUERIES + 1):
        with pytest.raises(InvalidInput, match="queries"):
            server.answer(index, 0, 1, [query] * count)
        with pytest.raises(InvalidInput, match="queries"):
            server.check_queries([query] * count)


def test_bad_vectors(client: TensealClient) -> None:
    for shape in ((DIM,), (0, DIM), (2, DIM + 1), (1, 1, DIM)):
        with pytest.raises(DimensionError, match="rows"):
            client.setup(np.zeros(shape))
    for shape in ((1, DIM), (DIM - 1,)):
        with pytest.raises(DimensionError, match="query"):
            client.query(np.zeros(shape))
    for value in (math.nan, math.inf, -math.inf, 1.001, 1e200):
        rows = np.zeros((3, DIM))
        rows[2, 1] = value
        with pytest.raises(NormError, match="vector 2"):
            client.setup(rows)
        with pytest.raises(NormError, match="query"):
            client.query(rows[2])


@pytest.mark.parametrize("dim", [0, -1, 16385])
def test_bad_parameters(state: bytes, dim: int) -> None:
    with pytest.raises(ParameterError, match="dim"):
        TensealClient(dim, state)
    with pytest.raises(ParameterError, match="dim"):
        TensealServer(dim)
    with pytest.raises(InvalidInput, match="workers"):
        TensealServer(DIM, 0)


def test_bad_states_and_parts(client: TensealClient, state: bytes) -> None:
    for wrong in (b"", state[:-1], state + bytes(8)):
        with pytest.raises(ResidueError, match=f"expected {STATE_BYTES}"):
            TensealClient(DIM, wrong)
    parts = {"index": b"", "hint": b"", "seed": b"", "fingerprint": b""}
    for name in ("hint", "seed", "fingerprint"):
        with pytest.raises(ResidueError, match="expected none"):
            client.load(EncryptedRows(rows=1, blocks=1, **(parts | {name: b"x"})))
    for rows, blocks in ((0, 0), (1, 2), (ROWS_PER_BLOCK + 1, 1)):
        with pytest.raises(ResidueError, match="blocks"):
            client.load(EncryptedRows(rows=rows, blocks=blocks, **parts))


def test_weak_rings_are_refused() -> None:
    """SEAL's own table, at its 192-bit level, is asked as well."""
    with pytest.raises(ParameterError, match="SEAL refuses"):
        SealRing(2048)


# ---- secret --------------------------------------------------------------------------------------------------
def test_encryption_is_fresh(client: TensealClient) -> None:
    """No c0 and no seed twice, in a query or between queries, rows alike."""
    vector = np.zeros(DIM)
    many = [client.query(vector).ciphertext for _ in range(3)]
    many += [bytes(client.setup(vector[None]).index) for _ in range(2)]
    pieces = [
        ciphertext[start : start + CIPHERTEXT_BYTES]
        for ciphertext in many
        for start in range(0, len(ciphertext), CIPHERTEXT_BYTES)
    ]
    assert len({piece[:-64] for piece in pieces}) == len({piece[-64:] for piece in pieces}) == 5 * DIM


def test_another_key_gives_no_scores(client: TensealClient) -> None:
    other = TensealClient(DIM, generate_state())
    encrypted, query = client.setup(np.eye(DIM)), client.query(np.eye(DIM)[0])
    (answer,) = Scorer(DIM, 0).answer(sources(encrypted.index, "x"), sources(query.ciphertext, "y"))
    with pytest.raises(WrongKeyError) as caught:
        other.recover(query, [other.load(encrypted)], [answer])
    assert not any(character.isdigit() for character in str(caught.value))


def test_client_is_not_copied_pickled_or_shown(state: bytes) -> None:
    client = TensealClient(DIM, state)
    for take in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(SecretReuseError):
            take(client)
    assert repr(client) == "<TensealClient>"
    assert repr(client.query(np.zeros(DIM))) == "TensealQuery()"
    client.close()
    with pytest.raises(SecretReuseError):
        client.query(np.zeros(DIM))
    with pytest.raises(SecretReuseError):
        client.setup(np.zeros((1, DIM)))


def test_server_and_worker_load_nothing_secret() -> None:
    """The server's process has no TenSEAL, the worker's no code of ours that knows a key, nor a key for SEAL."""
    script = """
import json, sys
import he_engine.tenseal_server
server = sorted(sys.modules)
from he_engine.tenseal_worker import Scorer
scorer = Scorer(4, 0)
names = [type(value).__name__ for value in vars(scorer).values()]
print(json.dumps([server, sorted(sys.modules), names, scorer.ring.context.using_keyswitching()]))
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, env=environment)
    in_server, in_worker, held, key_switching = json.loads(done.stdout)
    secret = {f"he_engine.{name}" for name in ("tenseal_client", "hint_client", "hint_rows", "keys", "kernels._client")}
    assert not secret & set(in_worker)
    assert "tenseal" not in in_server
    assert "tenseal" in in_worker
    assert not {"SecretKey", "Decryptor", "Encryptor", "RelinKeys", "GaloisKeys"} & set(held)
    assert not key_switching


# ---- alive ---------------------------------------------------------------------------------------------------
def test_other_threads_run_while_an_answer_is_computed(
    client: TensealClient, server: TensealServer, tmp_path: Path
) -> None:
    index = stored(tmp_path, client.setup(np.eye(DIM)))
    query = client.query(np.eye(DIM)[0]).ciphertext
    ticks, stop = [0], threading.Event()

    def tick() -> None:
        while not stop.is_set():
            ticks[0] += 1

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        before = ticks[0]
        for _ in range(5):
            server.answer(index, 0, 1, [query])
        assert ticks[0] - before > 100
    finally:
        stop.set()
        thread.join()


def test_many_threads_ask(
    client: TensealClient, server: TensealServer, rng: np.random.Generator, tmp_path: Path
) -> None:
    """Concurrent calls with different queries get their own answers."""
    index = stored(tmp_path, client.setup(unit_rows(rng, ROWS_PER_BLOCK + 5, DIM)))
    queries = [client.query(v).ciphertext for v in unit_rows(rng, 6, DIM)]
    expected = [server.answer(index, 0, 2, [query])[0] for query in queries]
    results: dict[int, bytes] = {}

    def work(number: int) -> None:
        results[number] = server.answer(index, 0, 2, [bytearray(queries[number])])[0]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(queries))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [results[number] for number in range(len(queries))] == expected


def test_close_ends_the_workers(client: TensealClient, tmp_path: Path) -> None:
    """Also one that is at work: it is stopped here, so that its answer cannot come first."""
    server = TensealServer(DIM, 2)
    assert [worker.pid for worker in server._workers] == [None, None], "started when needed"
    index = stored(tmp_path, client.setup(np.zeros((ROWS_PER_BLOCK + 1, DIM))))
    query = client.query(np.zeros(DIM)).ciphertext
    server.answer(index, 0, 2, [query])
    pids = [worker.pid for worker in server._workers if worker.pid is not None]
    assert len(pids) == 2
    os.kill(pids[0], signal.SIGSTOP)
    outcome: list[BaseException] = []

    def ask() -> None:
        try:
            server.answer(index, 0, 2, [query])
        except Unavailable as error:
            outcome.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    server.close()
    thread.join()
    assert len(outcome) == 1
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    with pytest.raises(Unavailable, match="closed"):
        server.answer(index, 0, 1, [query])
    server.close()


# ---- elsewhere -----------------------------------------------------------------------------------------------
def test_without_files_in_memory(
    client: TensealClient, state: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """macOS has no memfd_create: temporary files, of which none stays."""
    monkeypatch.delattr(os, "memfd_create", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    other = TensealClient(DIM, state)
    rows = np.eye(DIM)
    encrypted, query = other.setup(rows), other.query(rows[2])
    folder = tmp_path / "store"
    folder.mkdir()
    server = TensealServer(DIM)
    (answer,) = server.answer(stored(folder, encrypted), 0, 1, [query.ciphertext])
    server.close()
    (scores,) = client.recover(query, [client.load(encrypted)], [answer])
    assert np.allclose(scores, rows[2], atol=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_residues_of_what_seal_compresses() -> None:
    """A constant plaintext is one residue N times, so Zstandard shrinks it: read word by word instead."""
    api, ring = tenseal_ring.sealapi(), SealRing()
    plaintext = api.Plaintext()
    api.CKKSEncoder(ring.context).encode(0.25, QUERY_SCALE, plaintext)
    assert ring.saved(plaintext) is None
    residues = np.frombuffer(ring.residues(plaintext, DEGREE), "<u8")
    assert (residues == int(0.25 * QUERY_SCALE)).all()


def test_without_tenseal(state: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingExtra, match=r"\.\[tenseal\]"):
        TensealServer(DIM)
    tenseal_ring.sealapi.cache_clear()
    monkeypatch.setitem(sys.modules, "tenseal", None)
    monkeypatch.setitem(sys.modules, "tenseal.sealapi", None)
    with pytest.raises(MissingExtra, match=r"\.\[tenseal\]"):
        TensealClient(DIM, state)
    tenseal_ring.sealapi.cache_clear()
