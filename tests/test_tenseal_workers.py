"""Worker processes of the `tenseal` engine: what a ciphertext could do that breaks SEAL ends one process, no more."""

from __future__ import annotations

import os
import resource
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from he_engine.engine import IndexFile
from he_engine.errors import InvalidInput, Unavailable

pytest.importorskip("tenseal")

from he_engine import tenseal_pool, tenseal_server
from he_engine.tenseal_format import ANSWER_BYTES, CIPHERTEXT_BYTES, DEGREE, MODULUS, SEED_BYTES
from he_engine.tenseal_limits import RESERVE_BYTES, job_s, landlock_version
from he_engine.tenseal_server import TensealServer
from tests.poisoned_worker import CRASH, HOARD, OPEN, PAUSE, PAUSED, SPIN, boot, poisoned

DIM = 2
BLOCK_BYTES = DIM * CIPHERTEXT_BYTES
SHORT_S = 3.0  #: a job of this size takes milliseconds


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[TensealServer]:
    """Of two workers that some ciphertexts break, as tests.poisoned_worker says."""
    monkeypatch.setattr(tenseal_pool, "_BOOT", boot())
    server = TensealServer(DIM, 2)
    yield server
    server.close()


@pytest.fixture
def stored(tmp_path: Path) -> Callable[[bytes], IndexFile]:
    def write(blocks: bytes) -> IndexFile:
        path = tmp_path / str(len(list(tmp_path.iterdir())))
        path.write_bytes(blocks)
        return IndexFile(path, 0, len(blocks), len(blocks) // BLOCK_BYTES)

    return write


def ciphertexts(rng: np.random.Generator, blocks: int = 1) -> bytes:
    planes = (rng.integers(0, MODULUS, DEGREE, "<u8").tobytes() + rng.bytes(SEED_BYTES) for _ in range(DIM * blocks))
    return b"".join(planes)


def pids(server: TensealServer) -> list[int | None]:
    return [worker.pid for worker in server._workers]


# ---- what ends a worker ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", [CRASH, HOARD])
def test_what_breaks_a_worker_is_refused(
    server: TensealServer, stored: Callable[[bytes], IndexFile], rng: np.random.Generator, kind: bytes
) -> None:
    """As a query and as a block: an error that clients do not repeat. Of two workers one is replaced, one goes on, and
    both give the answers of before."""
    index, query = stored(ciphertexts(rng, 2)), ciphertexts(rng)
    expected = server.answer(index, 0, 2, [query])
    before = pids(server)
    with pytest.raises(InvalidInput, match="2 worker processes ended") as caught:
        server.answer(index, 0, 1, [poisoned(query, kind)])
    assert not isinstance(caught.value, Unavailable)
    one_left = [pid for pid in pids(server) if pid in before]
    assert len(one_left) == 1 and None in pids(server)
    assert server.answer(index, 0, 2, [query]) == expected
    assert one_left[0] in pids(server) and None not in pids(server)
    bad = stored(poisoned(ciphertexts(rng, 2), kind))
    with pytest.raises(InvalidInput, match="2 worker processes ended"):
        server.answer(bad, 0, 2, [ciphertexts(rng)])
    assert server.answer(index, 0, 2, [query]) == expected
    assert server.answer(bad, 1, 1, [query]), "the block beside it is sound"


def test_a_job_over_its_time_is_ended(
    server: TensealServer,
    stored: Callable[[bytes], IndexFile],
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The server ends it; who asks the other worker meanwhile is answered."""
    index, query = stored(ciphertexts(rng, 2)), ciphertexts(rng)
    first, second = server.answer(index, 0, 1, [query]), server.answer(index, 1, 1, [query])
    monkeypatch.setattr(tenseal_server, "job_s", lambda *_: SHORT_S)
    refused: list[InvalidInput] = []

    def ask() -> None:
        with pytest.raises(InvalidInput, match=f"took more than {SHORT_S:.0f} s") as caught:
            server.answer(index, 0, 1, [poisoned(query, SPIN)])
        refused.append(caught.value)

    thread = threading.Thread(target=ask)
    thread.start()
    assert server.answer(index, 1, 1, [query]) == second
    thread.join()
    assert refused
    assert server.answer(index, 0, 1, [query]) == first


def test_what_broke_workers_is_refused_at_once_when_it_comes_again(
    server: TensealServer, stored: Callable[[bytes], IndexFile], rng: np.random.Generator
) -> None:
    """Also among others, who are answered without it; of one that broke in company nobody knows more."""
    index, sound = stored(ciphertexts(rng, 2)), [ciphertexts(rng) for _ in range(2)]
    bad = poisoned(ciphertexts(rng), CRASH)
    for broke in ([sound[0], bad], [bad]):
        with pytest.raises(InvalidInput, match="2 worker processes ended"):
            server.answer(index, 0, 2, broke)
        expected, before = server.answer(index, 0, 2, sound), pids(server)
        for again in (broke, [bad, *sound]):
            with pytest.raises(InvalidInput, match="before"):
                server.answer(index, 0, 2, again)
        assert pids(server) == before and server.answer(index, 0, 2, sound) == expected


def test_who_waits_with_it_is_refused_without_another_try(
    server: TensealServer,
    stored: Callable[[bytes], IndexFile],
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As other units of the search that brought it, which are asked for before its first one is given up."""
    monkeypatch.setattr(tenseal_server, "job_s", lambda *_: SHORT_S)
    index, query = stored(ciphertexts(rng)), poisoned(ciphertexts(rng), SPIN)
    errors: list[str] = []

    def ask() -> None:
        with pytest.raises(InvalidInput) as caught:
            server.answer(index, 0, 1, [query])
        errors.append(str(caught.value))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted("before" in error for error in errors) == [False, True, True]


def test_so_many_refusals_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tenseal_pool, "REMEMBERED", 2)
    refusals = tenseal_pool.Refusals()
    for digests in (["a"], ["b", "c"], ["d", "b", "c"], ["d"]):
        refusals.add(digests)
    refusals.require_none(["a", "b"])
    for digests in (["c", "b"], ["a", "d"]):
        with pytest.raises(InvalidInput, match="before"):
            refusals.require_none(digests)


def test_the_kernel_ends_a_job_too(
    stored: Callable[[bytes], IndexFile], rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Should the server be gone: here it waits ten times as long."""
    monkeypatch.setattr(tenseal_pool, "_BOOT", boot(limit_s=1.0))
    server = TensealServer(DIM)
    index, query = stored(ciphertexts(rng)), ciphertexts(rng)
    expected = server.answer(index, 0, 1, [query])
    with pytest.raises(InvalidInput, match="2 worker processes ended"):
        server.answer(index, 0, 1, [poisoned(query, SPIN)])
    assert server.answer(index, 0, 1, [query]) == expected
    server.close()


def test_a_worker_killed_in_the_middle_of_a_job(
    server: TensealServer,
    stored: Callable[[bytes], IndexFile],
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By who had nothing to do with the job: it is done again, and nobody notices."""
    index, query = stored(ciphertexts(rng)), poisoned(ciphertexts(rng), PAUSE)
    server.answer(index, 0, 1, [ciphertexts(rng)])
    (pid,) = (pid for pid in pids(server) if pid is not None)
    answers: list[list[bytes]] = []
    thread = threading.Thread(target=lambda: answers.append(server.answer(index, 0, 1, [query])))
    thread.start()
    os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)
    monkeypatch.setenv(PAUSED, "1")
    os.kill(pid, signal.SIGKILL)
    thread.join()
    assert answers == [server.answer(index, 0, 1, [query])]
    assert pid not in pids(server)


def test_a_worker_killed_while_idle_counts_for_nothing(
    server: TensealServer, stored: Callable[[bytes], IndexFile], rng: np.random.Generator
) -> None:
    index, query = stored(ciphertexts(rng, 2)), ciphertexts(rng)
    expected = server.answer(index, 0, 2, [query])
    for _ in range(3):
        for pid in pids(server):
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
        assert server.answer(index, 0, 2, [query]) == expected


def test_a_worker_that_does_not_start(
    stored: Callable[[bytes], IndexFile], rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Is nobody's input."""
    index, query = stored(ciphertexts(rng)), ciphertexts(rng)
    monkeypatch.setattr(tenseal_pool, "_BOOT", "raise SystemExit(1)")
    server = TensealServer(DIM)
    with pytest.raises(Unavailable, match="did not start"):
        server.answer(index, 0, 1, [query])
    monkeypatch.setattr(tenseal_pool.sys, "executable", "/nowhere/python")
    with pytest.raises(Unavailable, match="did not start: No such file"):
        server.answer(index, 0, 1, [query])
    monkeypatch.undo()
    assert server.answer(index, 0, 1, [query])
    server.close()


# ---- limits ----------------------------------------------------------------------------------------------------
def test_limits_are_those_of_the_process(
    server: TensealServer, stored: Callable[[bytes], IndexFile], rng: np.random.Generator
) -> None:
    index, query = stored(ciphertexts(rng)), ciphertexts(rng)
    server.answer(index, 0, 1, [query])
    (pid,) = (pid for pid in pids(server) if pid is not None)

    def limit(kind: int) -> tuple[int, int]:
        return resource.prlimit(pid, kind)

    for kind, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_FSIZE, 1 << 20),
    ):
        assert limit(kind) == (value, value)
    assert 0 < limit(resource.RLIMIT_CPU)[0] <= 10 + job_s(DIM, 1, 1)
    cache_bytes = tenseal_server.CACHE_BYTES // 2
    assert RESERVE_BYTES < limit(resource.RLIMIT_AS)[0] - cache_bytes < 4 * RESERVE_BYTES


def test_the_largest_job_fits(
    server: TensealServer, stored: Callable[[bytes], IndexFile], rng: np.random.Generator
) -> None:
    """Ten blocks, as the service asks for at most, and as many queries as there may be; a cache of everything."""
    index, queries = stored(ciphertexts(rng, 10)), [ciphertexts(rng) for _ in range(64)]
    answers = server.answer(index, 0, 10, queries)
    assert [len(answer) for answer in answers] == [10 * ANSWER_BYTES] * 64
    before = pids(server)
    assert server.answer(index, 0, 10, queries) == answers
    assert pids(server) == before, "none was replaced"


@pytest.mark.skipif(landlock_version() < 6, reason="the kernel cannot forbid signals")
def test_a_worker_reaches_nothing_else(
    server: TensealServer, stored: Callable[[bytes], IndexFile], rng: np.random.Generator
) -> None:
    """No file, not the memory of the server, no signal to it."""
    index, query = stored(ciphertexts(rng)), poisoned(ciphertexts(rng), OPEN)
    assert len(server.answer(index, 0, 1, [query])[0]) == ANSWER_BYTES


@pytest.mark.skipif(landlock_version() < 1, reason="this kernel has no Landlock")
def test_no_thread_of_a_worker_is_outside_of_its_limits(
    server: TensealServer, stored: Callable[[bytes], IndexFile], rng: np.random.Generator
) -> None:
    """They share memory: who has one of them has all."""
    server.answer(stored(ciphertexts(rng)), 0, 1, [ciphertexts(rng)])
    worker = next(worker for worker in server._workers if worker.pid is not None)
    told = [(task / "status").read_text() for task in Path(f"/proc/{worker.pid}/task").iterdir()]
    assert told and all("NoNewPrivs:\t1" in status for status in told)
