"""Every segment that a shared catalogue names, fetched and checked whole, while servers go on.

The rows are of one moment and the files of later ones, so what seems wrong is looked at again: a segment without a row
went meanwhile, one with another row (another copy, another data key) is checked as that says, and one whose row is the
same is damaged. A file is removed only after its row, so the second look cannot be too early.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from he_engine.errors import FormatVersionError, HesearchError, TamperedDataError, Unavailable
from he_server.operate.fsck_rows import Rows, open_segment, open_state, require_described
from he_server.storage.catalogue_rows import SegmentRecord, State
from he_server.storage.folder import place
from he_server.storage.places import Place
from he_server.storage.postgres_reader import PostgresReader

if TYPE_CHECKING:  # what brings extras is imported where it is wanted
    from he_server.storage.objects import Objects

AT_ONCE = 4  #: segments
MEMORY_BYTES = 1 << 30  #: of objects that are checked at the same time; a larger one is checked alone
ADVICE = (
    "bring it back from the bucket's versions or from a copy of the folder; without one, a client's `hesearch repair` "
    "keeps what can be read of it"
)


@dataclass(frozen=True, slots=True)
class Checked:
    """One segment."""

    file_bytes: int = 0  #: that were read, where it is sound
    problem: str = ""
    retired: bool = False  #: while it was looked at


@dataclass(slots=True)
class Total:
    """Of all of them."""

    unchecked: int
    checked_bytes: int = 0
    retired: int = 0
    problems: list[str] = field(default_factory=list)
    away: Unavailable | None = None  #: what it ended with


class Room:
    """Memory for objects: who comes waits until it fits, or is alone."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._used_bytes = 0
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def taken(self, length_bytes: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._used_bytes or self._used_bytes + length_bytes <= self._most_bytes)
            self._used_bytes += length_bytes
        try:
            yield
        finally:
            with self._changed:
                self._used_bytes -= length_bytes
                self._changed.notify_all()


class SegmentCheck:
    """`objects`: None where files are in the folder `segments`."""

    def __init__(self, rows: Rows, database: PostgresReader, objects: Objects | None, segments: Path) -> None:
        self._rows = rows
        self._database = database
        self._objects = objects
        self._segments = segments
        self._room = Room(MEMORY_BYTES)

    def run(self, progress: Callable[[int, int], None]) -> Total:
        """`progress` is given the bytes that were looked at, and those of all. It ends where catalogue or storage are
        away: the caller knows whether there is something to tell nevertheless."""
        records = [self._rows.segments[key][0] for key in sorted(self._rows.segments)]
        live, total, looked_bytes = self._rows.live, Total(len(records)), 0
        all_bytes = sum(record.stored_bytes for record in records)
        with contextlib.closing(self._each(records)) as results:
            try:
                for record, found in results:
                    total.unchecked -= 1
                    looked_bytes += record.stored_bytes
                    total.checked_bytes += found.file_bytes
                    total.retired += found.retired
                    if found.problem:
                        state = "live" if record.key in live else "not live"
                        total.problems.append(f"{self._rows.label_of(record.key)} ({state}): {found.problem}; {ADVICE}")
                    progress(looked_bytes, all_bytes)
            except Unavailable as error:
                total.away = error
        return total

    def _each(self, records: list[SegmentRecord]) -> Generator[tuple[SegmentRecord, Checked]]:
        """In this order, several at a time, and no more of them waiting than are under way."""
        pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="fsck")
        coming: deque[tuple[SegmentRecord, Future[Checked]]] = deque()
        try:
            for record in records:
                if len(coming) == 2 * AT_ONCE:
                    first, result = coming.popleft()
                    yield first, result.result()
                coming.append((record, pool.submit(self._check, record)))
            while coming:
                first, result = coming.popleft()
                yield first, result.result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _check(self, record: SegmentRecord) -> Checked:
        state = self._rows.collections[record.collection_id]
        while True:
            try:
                return Checked(self._verified(record, state))
            except (TamperedDataError, FormatVersionError) as error:
                problem = str(error)
            if (cells := self._database.newest_row(record.key)) is None:
                return Checked(retired=True)
            try:
                now, _ = open_segment(self._rows.key, record.key, cells[1])
                state = open_state(self._rows.key, record.collection_id, cells[0])
            except HesearchError as error:
                return Checked(problem=f"its row is damaged ({error})")
            if now == record:
                return Checked(problem=problem)
            record = now

    def _verified(self, record: SegmentRecord, state: State) -> int:
        """The bytes read. Raises TamperedDataError, FormatVersionError, Unavailable."""
        path = "" if self._objects else str(place(self._segments, record.file_id))
        one = Place.of(record, state, path)
        with self._room.taken(0 if path else one.most_bytes):
            description = one.verified(self._objects)
        require_described(description, record, state)
        return description.file_bytes
