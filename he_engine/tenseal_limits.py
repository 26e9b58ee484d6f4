"""What a worker process of the `tenseal` engine may use, set by itself before it reads anything from outside.

No core files, few descriptors, no large files, no child processes; on Linux also an amount of memory, and no way to
files, to other processes or to TCP. Each job has a time: the server ends the process after it, and should the server
be gone, the kernel does when the process has computed for as long.

Memory is counted as addresses (RLIMIT_AS): what the process has after its imports, then the cache, the largest job so
far and a reserve, since SEAL keeps what it ever took. The way to files is closed by Landlock, where the kernel has it:
a process that SEAL's parser was turned against could otherwise read what the server's user can, its memory included.
What this leaves: it can compute, open sockets other than TCP, and give wrong answers.
"""

from __future__ import annotations

import ctypes
import math
import os
import resource
import struct
import sys
from pathlib import Path

from he_engine.tenseal_format import ANSWER_BYTES

LEAST_S = 60.0  #: for every job: its part of the index may have to come from a slow disk
OPERATION_S = 0.002  #: for each ciphertext parsed and each product, of 0.5 and 0.1 ms on the reference machine
RESERVE_BYTES = 256 << 20
_STATM = Path("/proc/self/statm")
_FILE_BYTES = 1 << 20  #: of the files in memory through which SEAL takes and gives one ciphertext
_DESCRIPTORS = 64
_UNUSED = ("RLIMIT_CORE", "RLIMIT_NPROC")

#: Landlock (landlock_create_ruleset, landlock_restrict_self: the same numbers on every processor), by version: the
#: rights over files that it can take away. From 4 on TCP, too, from 6 on abstract sockets and signals to others.
_CREATE, _RESTRICT, _NO_NEW_PRIVILEGES = 444, 446, 38
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}


def job_s(dim: int, blocks: int, queries: int) -> float:
    """Seconds that a worker may take for these blocks and queries."""
    return LEAST_S + OPERATION_S * dim * (blocks + queries + blocks * queries)


class Limits:
    """Those of this process, from now on. Memory and time are soft limits: against mistakes."""

    def __init__(self, cache_bytes: int) -> None:
        for name in _UNUSED:
            _lower(getattr(resource, name), 0)
        _lower(resource.RLIMIT_FSIZE, _FILE_BYTES)
        _lower(resource.RLIMIT_NOFILE, _DESCRIPTORS)
        now_bytes = addresses_bytes()
        self._idle_bytes = now_bytes and now_bytes + cache_bytes + cache_bytes // 8 + RESERVE_BYTES
        close_files()
        self._largest_bytes = 0

    def begin(self, dim: int, blocks: int, queries: int) -> None:
        """A job: memory for its sums (in SEAL, saved, and joined to a reply), time."""
        self._largest_bytes = max(self._largest_bytes, 4 * blocks * queries * ANSWER_BYTES)
        if self._idle_bytes:
            _soft(resource.RLIMIT_AS, self._idle_bytes + self._largest_bytes)
        usage = resource.getrusage(resource.RUSAGE_SELF)
        _soft(resource.RLIMIT_CPU, math.ceil(usage.ru_utime + usage.ru_stime + job_s(dim, blocks, queries)))


def addresses_bytes() -> int:
    """Of this process; 0 where the system does not say so."""
    return int(_STATM.read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE") if _STATM.exists() else 0


def _lower(kind: int, value: int) -> None:
    """Soft and hard."""
    _, hard = resource.getrlimit(kind)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))


def _soft(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def landlock_version() -> int:
    """Of this kernel; 0 or less where it has none."""
    return int(ctypes.CDLL(None).syscall(_CREATE, None, ctypes.c_size_t(0), 1)) if sys.platform == "linux" else 0


def close_files() -> bool:
    """Takes from this process for good the right to open files by path, other than those in memory, to reach
    processes outside, and TCP. False where the kernel has no Landlock, or forbids it."""
    version = landlock_version()
    if version < 1:
        return False
    system = ctypes.CDLL(None)
    files = (1 << _FILE_RIGHTS.get(version, 16)) - 1
    wanted = struct.pack("<3Q", files, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    wanted = wanted[: 8 if version < 4 else 16 if version < 6 else 24]
    rules = system.syscall(_CREATE, wanted, ctypes.c_size_t(len(wanted)), 0)
    if rules < 0:
        return False
    try:
        failed = system.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) or system.syscall(_RESTRICT, rules, 0)
        return not failed
    finally:
        os.close(rules)
