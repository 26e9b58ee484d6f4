"""Amounts used, in one SQLite file, so that neither a restart nor a crash ever lowers one.

The file holds a mark for each count, at or above it. A use that would pass the mark first raises it, durably, to a
hundredth of the limit more than is used then: some 100 writes for a limit, whatever the number of uses. After a crash
the count is the mark, so up to a hundredth of a limit counts as used that was not. `close` writes the counts
themselves.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from he_engine.errors import HesearchError, Unavailable
from he_server.storage.database import Database

EVER = -1  #: the period that does not end
_MARKS = 100  #: writes for a limit
_KEPT = 65536  #: counts in memory, some 20 MB; the others are in the file


@dataclass(slots=True)
class _Count:
    period: int
    used: int
    mark: int


@dataclass(frozen=True, slots=True)
class Use:
    """`amount` more of `key` in a period (a number of a day, or EVER), of which there is `limit`."""

    key: str
    period: int
    amount: int
    limit: int


class Counts:
    """One open file. Not thread-safe: its owner has a lock."""

    def __init__(self, path: Path, kept: int = _KEPT) -> None:
        """Raises Unavailable, also for a damaged file: its counts are lost then."""
        self._kept = kept
        self._counts: OrderedDict[str, _Count] = OrderedDict()  # the latest used last
        with _errors("opened; if it is damaged, put a backup into its place, or remove it: all counts are 0 then"):
            self._database = Database(path)
            if not self._database.schema_version:
                with self._database.transaction() as db:
                    db.execute("CREATE TABLE counts (key TEXT PRIMARY KEY, period INTEGER, mark INTEGER) WITHOUT ROWID")
                    self._database.stamp(1)

    def used(self, key: str, period: int) -> int:
        """Raises Unavailable."""
        return self._count(key, period).used

    def add(self, uses: Iterable[Use]) -> None:
        """All of them, or none where that raises Unavailable."""
        counted = [(use, self._count(use.key, use.period)) for use in uses]
        while len(self._counts) > max(self._kept, len(counted)):
            key, count = next(iter(self._counts.items()))
            self._settle([(key, count)])
            del self._counts[key]
        raised = {
            use.key: max(count.used + use.amount, min(use.limit, count.used + use.amount + use.limit // _MARKS))
            for use, count in counted
            if count.used + use.amount > count.mark
        }
        self._write([(use.key, use.period, raised[use.key]) for use, _ in counted if use.key in raised])
        for use, count in counted:
            count.used += use.amount
            count.mark = raised.get(use.key, count.mark)

    def forget_before(self, day: int) -> None:
        """Removes the counts of days before. Raises Unavailable."""
        for key in [key for key, count in self._counts.items() if EVER != count.period < day]:
            del self._counts[key]
        with _errors("written"), self._database.transaction() as db:
            db.execute("DELETE FROM counts WHERE period != ? AND period < ?", (EVER, day))

    def close(self) -> None:
        """Raises Unavailable where the counts could not be written; marks stand for them then."""
        try:
            self._settle(self._counts.items())
        finally:
            self._database.close()

    def _count(self, key: str, period: int) -> _Count:
        count = self._counts.get(key)
        if count is None or count.period != period:
            with _errors("read"):
                row = self._database.one("SELECT mark FROM counts WHERE key = ? AND period = ?", key, period)
            mark = row[0] if row else 0
            count = self._counts[key] = _Count(period, mark, mark)
        self._counts.move_to_end(key)
        return count

    def _settle(self, counts: Iterable[tuple[str, _Count]]) -> None:
        self._write([(key, count.period, count.used) for key, count in counts if count.used != count.mark])

    def _write(self, rows: list[tuple[str, int, int]]) -> None:
        if rows:
            with _errors("written"), self._database.transaction() as db:
                db.executemany("INSERT OR REPLACE INTO counts VALUES (?, ?, ?)", rows)


@contextlib.contextmanager
def _errors(doing: str) -> Iterator[None]:
    try:
        yield
    except HesearchError as error:
        raise Unavailable(f"quotas: the file of what was used could not be {doing}") from error
