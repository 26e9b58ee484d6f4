"""Brings live indexes into memory when a server starts, so that no search waits for the disk or for page tables."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from he_server.service import Service

_log = logging.getLogger(__name__)

MEMORY_SHARE = 0.75  #: of this machine's: beyond that, what is read drives out what was read before


@dataclass(frozen=True, slots=True)
class Warmth:
    """What was brought into memory."""

    index_bytes: int  #: of all live segments
    warm_bytes: int
    huge_page_bytes: int  #: of all files that this process has mapped
    seconds: float

    def __str__(self) -> str:
        return (
            f"read {self.warm_bytes / 1e6:,.1f} of {self.index_bytes / 1e6:,.1f} MB of indexes into memory in "
            f"{self.seconds:.1f} s ({self.huge_page_bytes / 1e6:,.1f} MB in huge pages)"
        )


def warm(service: Service, stop: threading.Event) -> Warmth:
    """Every live segment of every collection, until `stop` or MEMORY_SHARE is full; damaged ones are passed over."""
    began = time.monotonic()
    room = MEMORY_SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if service.config.cluster:
        room = math.inf  # its shards take what fits there
    elif service.store.sealed:
        room = min(room, service.config.index_memory_bytes)
    total = warmed = 0
    for engine, searched in service.live():
        total += sum(segment.index_bytes for segment in searched.segments)
        warmed += service.answerer.warm(engine, searched, room - warmed, stop)
    return Warmth(total, warmed, huge_page_bytes(), time.monotonic() - began)


def huge_page_bytes() -> int:
    """Of files mapped into this process, what its page tables hold in huge pages; 0 where the system does not tell."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
            if line.startswith("FilePmdMapped:"):
                return int(line.split()[1]) << 10
    return 0


class Warmer:
    """Warms in a thread of its own and says on stderr what came of it. A context manager that ends it."""

    def __init__(self, service: Service) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(service,), name="warm")
        self._thread.start()

    def _run(self, service: Service) -> None:
        try:
            warmth = warm(service, self._stop)
        except Exception as error:  # a defect: the server serves all the same, cold
            _log.error("indexes were not read into memory", exc_info=error)
            return
        if warmth.index_bytes and service.config.cluster:
            told = f"told the cluster's shards to read {warmth.index_bytes / 1e6:,.1f} MB of indexes"
            print(f"hesearch serve: {told}", file=sys.stderr, flush=True)
        elif warmth.index_bytes:
            print(f"hesearch serve: {warmth}", file=sys.stderr, flush=True)

    def __enter__(self) -> Warmer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
