"""What principals and their tenants have used, counted against what they may; who asks for more is refused."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from he_engine.errors import QuotaExceeded
from he_server.access.principals import Principal
from he_server.access.quota_counts import EVER, Counts, Use
from he_server.access.quota_table import QuotaTable

_DAY_S = 86400
_BUCKETS = 65536  #: parties whose calls are counted; one more, and the one that called least lately starts anew


class Quotas:
    """Thread-safe. What it takes from a quota it does not give back. Every method raises QuotaExceeded, which says
    whose quota it is and when it frees, and then has taken nothing; `queries` and `transfer` also Unavailable, where
    the counts cannot be read or written."""

    def __init__(self, table: QuotaTable, counts: Path, now: Callable[[], float] = time.time) -> None:
        """`counts`: its SQLite file, made if it is not there. `now`: seconds since 1970. Raises Unavailable."""
        self.table = table  #: may be replaced at any time
        self._now = now
        self._lock = threading.Lock()
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # calls that it may make, as of when
        self._day = self._today()
        self._counts = Counts(counts)
        self._counts.forget_before(self._day)

    def call(self, principal: Principal) -> None:
        """One call, whatever it is."""
        now = self._now()
        with self._lock:
            filled: dict[str, tuple[float, float]] = {}
            for share in self.table.shares(principal):
                rate = share.quota.calls_per_s
                if rate is None:
                    continue
                most = max(1.0, rate)
                tokens, since = self._buckets.get(share.party, (most, now))
                tokens = min(most, tokens + max(0.0, now - since) * rate)
                if tokens < 1:
                    self._buckets[share.party] = (tokens, now)  # a clock that was set back goes on from here
                    raise QuotaExceeded(
                        f"calls_per_s of {share.party}: {rate:g} are allowed; free again in {(1 - tokens) / rate:.2g} s"
                    )
                filled[share.party] = (tokens - 1, now)
            for party, bucket in filled.items():
                self._buckets[party] = bucket
                self._buckets.move_to_end(party)
            while len(self._buckets) > _BUCKETS:
                self._buckets.popitem(last=False)

    def queries(self, principal: Principal, collection_id: bytes, count: int) -> None:
        """So many queries to a collection, before they are answered."""
        uses = []
        for share in self.table.shares(principal):
            if (limit := share.quota.queries_per_day) is not None:
                uses.append((f"queries_per_day of {share.party}", "", count, limit))
            if (limit := share.quota.queries_per_collection) is not None:
                uses.append((f"queries_per_collection of {share.party}", collection_id.hex(), count, limit))
        self._use(uses)

    def transfer(self, principal: Principal, count_bytes: int) -> None:
        """So many bytes, either way, before they are taken or sent."""
        self._use(
            [
                (f"bytes_per_day of {share.party}", "", count_bytes, share.quota.bytes_per_day)
                for share in self.table.shares(principal)
                if share.quota.bytes_per_day is not None
            ]
        )

    def create(self, principal: Principal, own: int, in_tenant: int) -> None:
        """One more collection; the numbers are those that there are now."""
        for share, there_are in zip(self.table.shares(principal), (own, in_tenant), strict=True):
            limit = share.quota.collections
            if limit is not None and there_are >= limit:
                raise QuotaExceeded(
                    f"collections of {share.party}: {limit} are allowed, and there are {there_are}; drop one"
                )

    def close(self) -> None:
        """Writes the counts as they are. Raises Unavailable."""
        with self._lock:
            self._counts.close()

    def _today(self) -> int:
        return int(self._now() // _DAY_S)

    def _use(self, wanted: list[tuple[str, str, int, int]]) -> None:
        """Of (quota, collection or nothing, amount, limit): all or none."""
        if not wanted:
            return
        with self._lock:
            if (day := self._today()) != self._day:
                self._counts.forget_before(day)
                self._day = day
            uses = []
            for quota, collection, amount, limit in wanted:
                use = Use(f"{quota} {collection}".rstrip(), EVER if collection else day, amount, limit)
                used = self._counts.used(use.key, use.period)
                if used + amount > limit:
                    raise QuotaExceeded(
                        f"{quota}: {limit} are allowed, {used} are used, got {amount} more; {self._frees(use)}"
                    )
                uses.append(use)
            self._counts.add(uses)

    @staticmethod
    def _frees(use: Use) -> str:
        if use.amount > use.limit:
            return "that is more than the whole quota"
        if use.period == EVER:
            return "it never frees; ask the operator"
        return f"free again at {datetime.fromtimestamp((use.period + 1) * _DAY_S, UTC):%Y-%m-%dT%H:%MZ}"
