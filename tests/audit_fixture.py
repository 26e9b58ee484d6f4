"""Entries of an audit log, and processes that append them: `python -m tests.audit_fixture kill|rate|… FOLDER`."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import sys
import threading
import time
from pathlib import Path

from he_engine.errors import HesearchError, ReadOnlyError
from he_engine.keys import RootKey
from he_server.access.principals import Principal
from he_server.audit.entry import AuditEntry, Line
from he_server.audit.log import AuditLog, open_audit_log
from he_server.storage.kek import SecretKek
from tests.faults.faultio import ERRORS, Action, Calls, Fault, FaultIO

ADA = Principal("ada", "acme", frozenset(["searcher"]), "token")
THREADS = 4


def kek(number: int = 1) -> SecretKek:
    return SecretKek(RootKey(bytes([number]) * 32))


def entry(number: int, principal: Principal | None = ADA) -> AuditEntry:
    """`number` is its request's id, by which it is found again."""
    return AuditEntry(
        principal=principal,
        action="Search",
        resource="Collection/acme/notes",
        allowed=number % 3 > 0,
        policies=("searcher",) if number % 3 else (),
        request_bytes=100 + number,
        request_id=f"{number:08x}",
    )


def run_threads(log: AuditLog, each: int, acknowledged: list[int], threads: int = THREADS) -> None:
    """Threads append; what was acknowledged is listed at once. A log that fails ends them."""

    def work(number: int) -> None:
        with contextlib.suppress(ReadOnlyError):
            for of in range(number * each, (number + 1) * each):
                log.append(entry(of))
                acknowledged.append(of)

    working = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for thread in working:
        thread.start()
    for thread in working:
        thread.join()


def _kill(folder: Path) -> None:
    """Appends until it is killed, and prints what was acknowledged."""
    with open_audit_log(folder) as log:
        number = 0
        while True:
            log.append(entry(number))
            print(number, flush=True)
            number += 1


def _rate(scratch: Path) -> None:
    """How many entries a second some threads append, and how many of them share a sync."""
    for sealed in (False, True):
        for count in (1, 8, 32):
            data, start = scratch / f"{sealed}-{count}", time.perf_counter()
            with open_audit_log(data, kek() if sealed else None) as log:
                run_threads(log, 1000, [], threads=count)
            seconds = time.perf_counter() - start
            lines = [Line.parse(raw) for raw in (data / "audit/log").read_bytes().splitlines(keepends=True)]
            print(
                f"{'sealed' if sealed else 'plain '}, {count:2} threads: {count * 1000 / seconds:6.0f} entries/s, "
                f"{seconds:.2f} ms each, {len(lines) / len({line.batch for line in lines}):.1f} a sync, "
                f"{sum(len(line.raw) for line in lines) / len(lines):.0f} bytes"
            )


def _power(folder: Path, record: Path) -> None:
    """Three lives of a log, each of which ends with a sync that fails; all calls recorded, with a mark after each
    acknowledgement."""
    io = FaultIO()
    io.watch(folder)
    logging.disable()
    with io.recording(record):
        for life in range(3):
            with open_audit_log(folder, kek() if life else None) as log:
                for of in range(life * 100, life * 100 + 12):
                    log.append(entry(of))
                    io.mark(str(of))
                    if of % 5 == 0:
                        log.head()
                io.arm(Fault("sync", Calls.SYNC, Action.FAIL, errno.EIO), 0)
                with contextlib.suppress(ReadOnlyError):
                    log.append(entry(life * 100 + 99))
                io.disarm()


def _errors(scratch: Path) -> None:
    """Every kind of fault at each of the first calls; prints, for each run, what was acknowledged and how it ended."""
    io, runs = FaultIO(), []
    logging.disable()
    for fault in ERRORS:
        for index in range(14):
            folder, acknowledged, errors = scratch / f"{fault.name}-{index}", list[int](), list[str]()
            folder.mkdir()
            open_audit_log(folder).close()
            io.watch(folder)
            log = open_audit_log(folder)
            io.arm(fault, index)
            for of in range(4):
                try:
                    log.append(entry(of))
                    acknowledged.append(of)
                    log.head()
                except HesearchError as error:
                    errors.append(type(error).__name__)
            log.close()
            io.disarm()
            runs.append({"folder": str(folder), "acknowledged": acknowledged, "errors": errors})
    print(json.dumps(runs))


if __name__ == "__main__":
    {"kill": _kill, "rate": _rate, "power": _power, "errors": _errors}[sys.argv[1]](*map(Path, sys.argv[2:]))
