"""A worker process of the `tenseal` engine in which some ciphertexts do what a defect of SEAL could do.

No ciphertext is known to do it to SEAL itself (tests/fuzz/seal.py), so the defect is put in: everything else, limits
included, is the real process. `boot` is what the pool starts instead of its own program.
"""

from __future__ import annotations

import ctypes
import os
import signal
from typing import Any

from he_engine import tenseal_limits, tenseal_worker
from he_engine.engine import Buffer
from he_engine.tenseal_format import POLY_BYTES, SEED_BYTES
from he_engine.tenseal_ring import SealRing

#: The first bytes of a seed that does it.
CRASH, SPIN, HOARD, PAUSE, OPEN = b"crash", b"spin", b"hoard", b"pause", b"open"
PAUSED = "HESEARCH_TEST_PAUSED"  #: an environment variable: from now on PAUSE does nothing
ENOUGH_BYTES = 4 << 30  #: HOARD stops here, where nothing else stops it


def poisoned(ciphertext: Buffer, kind: bytes) -> bytes:
    """The first plane with another seed."""
    out = bytearray(ciphertext)
    out[POLY_BYTES : POLY_BYTES + SEED_BYTES] = kind.ljust(SEED_BYTES, b"\0")
    return bytes(out)


def boot(limit_s: float = tenseal_limits.LEAST_S) -> str:
    """limit_s: after which the kernel ends the process."""
    return (
        "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from tests import poisoned_worker; "
        f"poisoned_worker.main({limit_s}, *map(int, sys.argv[2:]))"
    )


def _act(seed: bytes) -> None:
    if seed.startswith(CRASH):
        ctypes.string_at(8)
    elif seed.startswith(SPIN):
        while True:
            pass
    elif seed.startswith(HOARD):
        hoard = [bytes(64 << 20)]
        while len(hoard) * len(hoard[0]) < ENOUGH_BYTES:
            hoard.append(bytes(64 << 20))
    elif seed.startswith(PAUSE) and PAUSED not in os.environ:
        os.kill(os.getpid(), signal.SIGSTOP)
    elif seed.startswith(OPEN):
        _require_shut()


def _require_shut() -> None:
    """Crashes where the process reaches anything that it has no use for."""
    for path in ("/etc/passwd", f"/proc/{os.getppid()}/mem", "/proc/self/maps"):
        try:
            os.close(os.open(path, os.O_RDONLY))
        except PermissionError:
            continue
        os.abort()
    try:
        os.kill(os.getppid(), signal.SIGCONT)
    except PermissionError:
        return
    os.abort()


def main(limit_s: float, *arguments: int) -> None:
    load = SealRing.load_fresh

    def load_fresh(self: SealRing, ciphertext: Buffer, scale: float) -> Any:
        _act(bytes(memoryview(ciphertext)[POLY_BYTES:]))
        return load(self, ciphertext, scale)

    SealRing.load_fresh = load_fresh  # type: ignore[method-assign]
    tenseal_limits.LEAST_S = limit_s
    tenseal_worker.main(*arguments)
