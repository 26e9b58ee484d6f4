"""Everything that an operator may set, in one frozen object made by the command line (or by a test)."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from he_engine.engine import MAX_QUERIES
from he_engine.errors import InvalidInput
from he_engine.params import MAX_DIM
from he_proto.wire import MAX_MANIFEST_BYTES


def _cores() -> int:
    return len(os.sched_getaffinity(0))


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """Where the data is, what is listened on, and the limits. Raises InvalidInput for one that makes no sense.

    Memory per Answer call is at most max_query_bytes for the queries (and one query more while they come), plus 8 MiB
    a thread of answers and those of one unit for 8 queries: see he_server.scan.

    Health checks and reflection have threads of their own, so they are answered while all `calls` are taken. What
    idle_s does not bound: a client that sends a little now and then, and one that announces a call of a single
    message and never sends it. Both hold one of the threads until their deadline or their connection ends.
    """

    data: Path  #: folder of one server; made if it is not there
    listen: str = "127.0.0.1:50051"  #: host:port; port 0 takes a free one
    insecure: bool = False  #: plaintext, and then on loopback only
    threads: int = field(default_factory=_cores)  #: that compute answers
    calls: int = 64  #: served at the same time; as many again wait for a place, more are refused as Unavailable
    wait_s: float = 10.0  #: for a place; then Unavailable, too
    idle_s: float = 30.0  #: a call whose client neither sends nor takes the next message for so long is cancelled
    target: str = ""  #: instruction set of the kernels; empty: the best that this machine has
    grace_s: float = 10.0  #: for running calls, when stopping
    orphan_age_s: float = 24 * 3600.0  #: segments that were not committed are deleted after that

    max_dim: int = MAX_DIM
    max_queries: int = MAX_QUERIES  #: in one Answer call
    max_query_bytes: int = 256 << 20  #: of one Answer call, all its queries
    max_segment_bytes: int = 1 << 30  #: of one segment, all its parts
    max_manifest_bytes: int = MAX_MANIFEST_BYTES
    max_segments: int = 100_000  #: live ones, in one manifest
    max_collections: int = 10_000

    def __post_init__(self) -> None:
        for name in ("threads", "calls", "max_dim", "max_queries", "max_segments", "max_collections"):
            if getattr(self, name) < 1:
                raise InvalidInput(f"{name}: got {getattr(self, name)}, expected at least 1")
        if not self.wait_s >= 0:
            raise InvalidInput(f"wait_s: got {self.wait_s}, expected at least 0")
        if not self.idle_s > 0:
            raise InvalidInput(f"idle_s: got {self.idle_s}, expected more than 0")
        if self.max_manifest_bytes > MAX_MANIFEST_BYTES:
            raise InvalidInput(
                f"max_manifest_bytes: got {self.max_manifest_bytes}, "
                f"expected at most {MAX_MANIFEST_BYTES}, which one message can carry"
            )
