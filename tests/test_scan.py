"""Shared scans: who comes at the same time shares units; every answer is right, complete and one's own."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from he_engine.engine import Buffer, IndexFile
from he_engine.errors import InvalidInput, ResidueError, Unavailable
from he_server.search import answering, scan
from he_server.search.answering import SLOW_S, Pace, Piece, Searched
from he_server.search.scan import RIDER_QUERIES, SHARED_QUERIES, Scan, Scans, _Call
from he_server.storage.segment_file import Description, StoredSegment
from tests.server_fixture import PARAMETERS

BLOCK_BYTES = answering.UNIT_INDEX_BYTES  # every block is a unit
ANSWER_BYTES = 1 << 10


class GatedEngine:
    """Says who asked for what; each unit waits until it is let through."""

    query_bytes = 8
    index_bytes_per_block = BLOCK_BYTES
    answer_bytes_per_block = ANSWER_BYTES

    def __init__(self, *, open_for: int = 1 << 30) -> None:
        self._gate = threading.Semaphore(open_for)
        self.entered = threading.Semaphore(0)
        self.calls: list[tuple[int, int]] = []  #: (unit, queries)
        self.failing: Exception | None = None
        self.refused: Sequence[Buffer] = ()

    def let(self, count: int) -> None:
        self._gate.release(count)

    def answer(self, index: IndexFile, first_block: int, blocks: int, queries: Sequence[Buffer]) -> list[bytes]:
        assert blocks == 1
        unit = int(index.path.name) * 1000 + first_block
        self.calls.append((unit, len(queries)))
        self.entered.release()
        self._gate.acquire()
        if self.failing:
            raise self.failing
        if any(query in self.refused for query in queries):
            raise InvalidInput("a query")
        return [expected(query, unit) for query in queries]


def expected(query: Buffer, unit: int) -> bytes:
    return (bytes(query) + unit.to_bytes(8, "little")) * (ANSWER_BYTES // 16)


def segments(*blocks: int) -> list[StoredSegment]:
    out = []
    for number, count in enumerate(blocks):
        description = Description.of(bytes(16), bytes(32), count, [(1, count * BLOCK_BYTES, bytes(32))])
        out.append(StoredSegment(description, Path(f"/{number}")))
    return out


def queries(first: int, count: int) -> list[bytes]:
    return [number.to_bytes(8, "little") for number in range(first, first + count)]


@pytest.fixture(params=[1, 3])
def pool(request: pytest.FixtureRequest) -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(request.param) as threads:
        yield threads


def make(engine: GatedEngine, stored: Sequence[StoredSegment], pool: ThreadPoolExecutor) -> Scan:
    return Scan(engine, stored, pool, pool._max_workers, lambda s: contextlib.nullcontext(s.index))  # type: ignore[arg-type]


def right(pieces: Sequence[Piece], asked: Sequence[bytes], sizes: Sequence[int]) -> bool:
    got = {(piece.query, int(piece.unit.segment.path.name) * 1000 + piece.unit.first_block): piece for piece in pieces}
    every = [1000 * number + block for number, size in enumerate(sizes) for block in range(size)]
    return (
        len(pieces) == len(got)
        and set(got) == {(number, unit) for number in range(len(asked)) for unit in every}
        and all(piece.answers == expected(asked[number], unit) for (number, unit), piece in got.items())
    )


def start(
    shared: Scan, asked: Sequence[bytes], active: Callable[[], bool] = lambda: True
) -> tuple[list[Piece], threading.Thread]:
    """A caller in a thread of its own; join it with `.join()`."""
    pieces: list[Piece] = []
    thread = threading.Thread(target=lambda: pieces.extend(shared.answer(asked, active)))
    thread.start()
    return pieces, thread


def riders(shared: Scan) -> int:
    with shared._lock:
        return len(shared._riders)


def wait_for(condition: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(2000):
        if condition():
            return
        pause.wait(0.005)
    raise AssertionError("waited 10 s")


def test_a_lone_call(pool: ThreadPoolExecutor) -> None:
    engine = GatedEngine()
    sizes = (3, 1, 7)
    asked = queries(0, 2)
    pieces = list(make(engine, segments(*sizes), pool).answer(asked, lambda: True))
    assert right(pieces, asked, sizes)
    assert [count for _, count in engine.calls] == [2] * 11
    assert list(make(engine, [], pool).answer(asked, lambda: True)) == []


def test_who_comes_meanwhile_shares_the_rest() -> None:
    """B and C come while unit 0 is computed for A: units 1 to 9 are computed once for all three, unit 0 once more."""
    engine = GatedEngine(open_for=0)
    with ThreadPoolExecutor(1) as pool:
        shared = make(engine, segments(10), pool)
        callers = [(queries(0, 1), *start(shared, queries(0, 1)))]
        engine.entered.acquire()
        callers += [(queries(number, 1), *start(shared, queries(number, 1))) for number in (1, 2)]
        wait_for(lambda: riders(shared) == 3)
        engine.let(100)
        for asked, pieces, thread in callers:
            thread.join()
            assert right(pieces, asked, [10])
    assert engine.calls == [(0, 1), *((unit, 3) for unit in range(1, 10)), (0, 2)]


def test_so_many_queries_at_a_time(pool: ThreadPoolExecutor) -> None:
    """40 queries: in groups of at most SHARED_QUERIES, and as few as there can be."""
    engine = GatedEngine()
    asked = queries(0, 40)
    pieces = list(make(engine, segments(4), pool).answer(asked, lambda: True))
    assert right(pieces, asked, [4])
    assert sorted(engine.calls) == sorted([(unit, n) for unit in range(4) for n in (SHARED_QUERIES, RIDER_QUERIES)])


def test_a_slow_reader_stops_itself_alone(monkeypatch: pytest.MonkeyPatch, pool: ThreadPoolExecutor) -> None:
    monkeypatch.setattr(scan, "CALL_ANSWER_BYTES", 3 * ANSWER_BYTES)
    engine = GatedEngine()
    shared = make(engine, segments(50), pool)
    slow_query, fast_query = queries(0, 1), queries(1, 1)
    now_s = [0.0]
    pace = Pace(lambda: now_s[0])
    slow = shared.answer(slow_query, lambda: True, pace=pace)
    first = next(slow)
    wait_for(lambda: shared._workers == 0)
    now_s[0] = SLOW_S
    assert not pace.slow()
    now_s[0] += 0.1
    assert pace.slow()
    assert len(engine.calls) == 1 + 3 * pool._max_workers, "one was taken, three a thread wait"
    assert right(list(shared.answer(fast_query, lambda: True)), fast_query, [50])
    assert right([first, *slow], slow_query, [50])


def test_only_time_without_room_counts_as_slow() -> None:
    now_s = [0.0]
    pace = Pace(lambda: now_s[0])
    for _ in range(4):
        pace.full()
        now_s[0] += SLOW_S / 4
        pace.full()
        pace.room()
        now_s[0] += 100
        pace.room()
    assert not pace.slow()
    pace.full()
    now_s[0] += 0.01
    assert pace.slow()


def test_who_asks_little_waits_little() -> None:
    """Beside four calls of 64 queries, one query has its answers within two rounds; theirs take eight."""
    engine = GatedEngine(open_for=0)
    sizes = [10]
    with ThreadPoolExecutor(1) as pool:
        shared = make(engine, segments(*sizes), pool)
        many = [(queries(100 * n, 64), *start(shared, queries(100 * n, 64))) for n in range(4)]
        wait_for(lambda: riders(shared) == 32)
        asked = queries(1, 1)
        pieces, thread = start(shared, asked)
        wait_for(lambda: riders(shared) == 33)
        engine.let(2 * sizes[0])
        thread.join(10)
        soon = right(pieces, asked, sizes)
        engine.let(1000)
        for _, _, caller in many:
            caller.join(10)
        assert soon
        assert all(right(got, their_queries, sizes) for their_queries, got, _ in many)
    assert len(engine.calls) <= 9 * sizes[0]


class Idle(Executor):
    """Starts nothing: the test goes round the circle itself."""

    def submit(self, *_: Any, **__: Any) -> Any:
        return None


def test_nobody_starves() -> None:
    """A call of 64 queries gets its fifth beside four callers of 32 that come again at once; one reader stalls."""
    shared = Scan(GatedEngine(), segments(50), Idle(), 1, lambda s: contextlib.nullcontext(s.index))  # type: ignore[arg-type]

    def join(count: int) -> _Call:
        return shared._join(queries(0, count), lambda: True, bool, Pace())

    def lacks(call: _Call) -> bool:
        return any(rider.lacks for rider in shared._riders if rider.call is call)

    def turn() -> None:
        number = shared._find()
        assert number is not None
        for rider in shared._board(number):
            rider.call.held_bytes = scan.CALL_ANSWER_BYTES if rider.call is stalled else 0

    stalled = join(32)
    turn()
    large, others = join(64), [join(32) for _ in range(4)]
    turns = 0
    while lacks(large) and turns < 1000:
        turn()
        turns += 1
        for number, call in enumerate(others):
            if not lacks(call):
                shared._riders = [rider for rider in shared._riders if rider.call is not call]
                others[number] = join(32)
    assert 400 < turns < 600, "64 · 50 units at a fifth of 32 a turn are 500 turns"


def test_leaving(pool: ThreadPoolExecutor) -> None:
    """Nothing is computed any more for who has left; those who shared with it go on."""
    engine = GatedEngine(open_for=0)
    shared = make(engine, segments(20), pool)
    going = [True]
    asked = queries(5, 1)
    stays, thread = start(shared, asked)
    leaver = shared.answer(queries(9, 2), lambda: going[0])
    taker = threading.Thread(target=lambda: next(leaver))
    taker.start()
    wait_for(lambda: riders(shared) == 2)
    engine.let(8)
    taker.join()
    going[0] = False
    engine.let(1000)
    with pytest.raises(Unavailable, match="cancelled"):
        list(leaver)
    assert riders(shared) <= 1
    thread.join()
    assert right(stays, asked, [20])
    before = len(engine.calls)
    assert riders(shared) == 0
    assert right(list(shared.answer(asked, lambda: True)), asked, [20])
    assert engine.calls[before:] and {count for _, count in engine.calls[before:]} == {1}


def test_closing_waits_for_its_units() -> None:
    """A call may unpin its segments when it has ended: nothing may read them for it then."""
    engine = GatedEngine(open_for=1)
    with ThreadPoolExecutor(1) as pool:
        shared = make(engine, segments(3), pool)
        call = shared.answer(queries(0, 1), lambda: True)
        next(call)
        engine.entered.acquire()
        engine.entered.acquire()  # the second unit is being computed
        closing = threading.Thread(target=call.close)  # type: ignore[attr-defined]
        closing.start()
        closing.join(0.2)
        assert closing.is_alive()
        engine.let(1)
        closing.join(10)
        assert not closing.is_alive()
    assert len(engine.calls) == 2


def test_an_error_reaches_all_who_shared(pool: ThreadPoolExecutor) -> None:
    engine = GatedEngine(open_for=0)
    engine.failing = ResidueError("index: broken")
    shared = make(engine, segments(4), pool)
    caught: list[BaseException] = []

    def ask(number: int) -> None:
        try:
            list(shared.answer(queries(number, 1), lambda: True))
        except ResidueError as error:
            caught.append(error)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    wait_for(lambda: riders(shared) == 4)
    engine.let(1000)
    for thread in threads:
        thread.join()
    assert [str(error) for error in caught] == ["index: broken"] * 4
    assert len({id(error) for error in caught}) == 4, "each thread raises its own"
    engine.failing = None
    assert right(list(shared.answer(queries(0, 1), lambda: True)), queries(0, 1), [4])


def test_a_query_that_is_refused_is_its_callers_alone() -> None:
    """It fails the unit that three share; the other two get that unit, and all others, as if it were not there."""
    engine = GatedEngine(open_for=0)
    engine.refused = queries(1, 1)
    errors: list[str] = []
    with ThreadPoolExecutor(1) as pool:
        shared = make(engine, segments(3), pool)
        first = start(shared, queries(0, 1))
        engine.entered.acquire()

        def ask() -> None:
            with pytest.raises(InvalidInput) as caught:
                list(shared.answer(queries(1, 1), lambda: True))
            errors.append(str(caught.value))

        second = threading.Thread(target=ask)
        second.start()
        third = start(shared, queries(2, 1))
        wait_for(lambda: riders(shared) == 3)
        engine.let(100)
        for thread in (first[1], second, third[1]):
            thread.join()
    assert errors == ["a query"]
    assert right(first[0], queries(0, 1), [3]) and right(third[0], queries(2, 1), [3])
    assert engine.calls[1] == (1, 3)


def test_many_callers_at_any_time(monkeypatch: pytest.MonkeyPatch, pool: ThreadPoolExecutor) -> None:
    """Callers of 1 to 40 queries come, read at their own pace, and go; seeded."""
    monkeypatch.setattr(scan, "CALL_ANSWER_BYTES", 20 * ANSWER_BYTES)
    engine = GatedEngine()
    sizes = (5, 2, 6)
    shared = make(engine, segments(*sizes), pool)
    outcomes: list[bool] = []

    def caller(seed: int) -> None:
        rng = np.random.default_rng(seed)
        pause = threading.Event()
        for turn in range(5):
            asked = queries(1000 * seed + 100 * turn, int(rng.integers(1, 41)))
            answers = shared.answer(asked, lambda: True)
            if rng.random() < 0.2:
                next(answers)
                answers.close()  # type: ignore[attr-defined]
                continue
            pieces = []
            for piece in answers:
                pieces.append(piece)
                if rng.random() < 0.02:
                    pause.wait(0.002)
            outcomes.append(right(pieces, asked, sizes))

    threads = [threading.Thread(target=caller, args=(seed,)) for seed in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) > 30 and all(outcomes)
    assert riders(shared) == 0
    assert max(count for _, count in engine.calls) <= SHARED_QUERIES
    wait_for(lambda: shared._workers == 0)


def test_scans_last_as_long_as_their_calls(pool: ThreadPoolExecutor) -> None:
    def version(number: int) -> Searched:
        return Searched(number, PARAMETERS, segments(2))

    engine = GatedEngine()
    scans = Scans(pool, 1, lambda s: contextlib.nullcontext(s.index))
    with scans.of(engine, version(1)) as a, scans.of(engine, version(1)) as b, scans.of(engine, version(2)) as c:  # type: ignore[arg-type]
        assert a is b and a is not c
        assert len(scans._scans) == 2
    assert not scans._scans
