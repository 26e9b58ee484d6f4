"""Everything that an operator may set, in one frozen object made from a file and flags (or by a test)."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from he_engine.engine import MAX_QUERIES
from he_engine.errors import InvalidInput
from he_engine.params import MAX_DIM
from he_proto import wire
from he_proto.chunks import CHUNK_BYTES

_MESSAGE_SPARE_BYTES = 64 << 10  #: of the other fields beside a manifest or a chunk
_OBJECT_AGE_S = 3600  #: the least age of objects that are removed since no row names them
_ID_BYTES = 2 + wire.DIGEST_BYTES  #: of one live segment in a CommitManifest message


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def memory_bytes() -> int:
    """That this process may have: the machine's, or its control group's where that is less."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
        return min(machine, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return machine


def _setting(group: str, doc: str, **rules: Any) -> dict[str, Any]:
    """Metadata of a field. `least`: of a number; `choices`: of a text."""
    return {"group": group, "doc": doc, **rules}


def require_postgresql(url: str) -> None:
    """Raises InvalidInput, which does not quote it: it may have a password."""
    try:
        parts = urlsplit(url)
        secret = parts.password is not None or "password" in parse_qs(parts.query)
    except ValueError:
        parts, secret = urlsplit(""), False
    if secret:
        raise InvalidInput("catalogue: got a password in it, expected it in ~/.pgpass or PGPASSWORD")
    if parts.scheme not in ("postgresql", "postgres"):
        raise InvalidInput("catalogue: expected postgresql://USER@HOST/DATABASE, or nothing")


def require_ray_address(address: str) -> None:
    """Raises InvalidInput."""
    host, _, port = address.rpartition(":")
    if address != "auto" and not (host and "/" not in host and port.isdecimal()):
        raise InvalidInput(f"cluster: got {address!r}, expected auto, or host:port of Ray's head, not of ray://")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """Where the data is, what is listened on, and the limits. Each field's doc is what `--help` and `--print-config`
    say of it. Raises InvalidInput for values that make no sense.

    Health checks have threads of their own, so they are answered while all places are taken. What idle_s does not
    bound is a client that sends or takes a little now and then: it keeps its place until max_call_s.
    """

    data: Path = field(metadata=_setting("where", "folder of one server; made if it is not there"))
    listen: str = field(default="127.0.0.1:50051", metadata=_setting("where", "host:port; port 0 takes a free one"))
    insecure: bool = field(default=False, metadata=_setting("where", "no TLS, and then on loopback only"))
    tls_cert: str = field(
        default="",
        metadata=_setting("where", "PEM file: the server's certificate and those between it and its authority"),
    )
    tls_key: str = field(default="", metadata=_setting("where", "PEM file: the certificate's private key, unencrypted"))
    tls_client_ca: str = field(
        default="",
        metadata=_setting("where", "PEM file: authorities, one of which must have signed a client's certificate"),
    )

    catalogue: str = field(
        default="",
        metadata=_setting(
            "where",
            "postgresql://USER@HOST/DATABASE that has the catalogue; a password belongs in ~/.pgpass or PGPASSWORD; "
            "empty: a file in the data folder",
        ),
    )
    segments: str = field(
        default="",
        metadata=_setting(
            "where",
            "s3://BUCKET/PREFIX (of another S3 than AWS: ?endpoint=https://…), gs://… or az://… that has the segments, "
            "with credentials from the environment or the machine, and the catalogue in PostgreSQL; the data folder "
            "then has copies. Empty: they are in the data folder",
        ),
    )
    cache_bytes: int = field(
        default=64 << 30,
        metadata=_setting("where", "bytes of such copies that stay, beside those that are in use", least=0),
    )

    cluster: str = field(
        default="",
        metadata=_setting(
            "cluster",
            "Ray, whose actors compute the answers: auto (the one on this machine) or host:port of its head; empty: "
            "threads of this process do",
        ),
    )
    cluster_shards: int = field(
        default=0,
        metadata=_setting("cluster", "actors that a collection is spread over; 0: as many as there are nodes", least=0),
    )
    cluster_replicas: int = field(
        default=1, metadata=_setting("cluster", "actors that hold the same part, each in its memory", least=1)
    )
    cluster_wait_s: float = field(
        default=30.0,
        metadata=_setting("cluster", "how long a call waits while a part has no actor that replies", least=1),
    )

    policies: str = field(
        default="",
        metadata=_setting(
            "access",
            "folder of Cedar policies (`hesearch policy new` makes one); empty: with TLS the ready roles, and without "
            "everybody on this machine may do everything",
        ),
    )
    operating_tenant: str = field(
        default="local", metadata=_setting("access", "tenant whose operators and auditors are those of this server")
    )
    quotas: str = field(default="", metadata=_setting("access", "TOML file of quotas; empty: nothing is bounded"))
    token_issuer: str = field(
        default="", metadata=_setting("access", "issuer whose tokens are taken, as their `iss` says it; empty: none")
    )
    token_audience: str = field(default="", metadata=_setting("access", "what their `aud` must contain"))
    token_jwks: str = field(
        default="",
        metadata=_setting("access", "JWKS file with the issuer's keys; empty: they are asked for over HTTPS"),
    )
    token_ca: str = field(
        default="",
        metadata=_setting("access", "PEM file: authorities of the issuer's certificate; empty: the system's"),
    )
    token_tenant_claim: str = field(default="tenant", metadata=_setting("access", "claim that has the tenant"))
    token_groups_claim: str = field(default="groups", metadata=_setting("access", "claim that has the groups"))
    no_audit: bool = field(default=False, metadata=_setting("access", "write no audit log"))

    kek: str = field(
        default="",
        metadata=_setting(
            "data at rest",
            "key that seals the data folder: file:PATH, passphrase:PATH or exec:PROGRAM; empty: not sealed",
        ),
    )
    previous_kek: str = field(
        default="", metadata=_setting("data at rest", "the key before this one, for the start at which it is replaced")
    )
    data_key_days: float = field(
        default=0.0,
        metadata=_setting("data at rest", "collections get a new data key when theirs is so old; 0: never", least=0),
    )
    index_memory_bytes: int = field(
        default_factory=lambda: memory_bytes() // 2,
        metadata=_setting(
            "data at rest",
            "bytes of decrypted indexes that a sealed folder keeps in memory; with cluster, of all that each actor "
            "keeps; default: half of this machine's memory",
            least=0,
        ),
    )
    orphan_age_s: float = field(
        default=24 * 3600.0,
        metadata=_setting("data at rest", "segments that were not committed are deleted after that", least=0),
    )

    threads: int = field(
        default_factory=_cores,
        metadata=_setting(
            "work",
            "threads that compute answers; with cluster, those of each actor, which takes as many CPUs of Ray; "
            "default: all cores of this machine",
            least=1,
        ),
    )
    device: str = field(
        default="cpu",
        metadata=_setting(
            "work",
            "what computes answers of the hint engine: gpu is the first that CUDA shows, with the extra gpu, and has "
            "not been run on one yet",
            choices=("cpu", "gpu"),
        ),
    )
    target: str = field(
        default="", metadata=_setting("work", "instruction set of the kernels; empty: the best that this machine has")
    )

    max_scans: int = field(
        default=2,
        metadata=_setting(
            "overload",
            "Answer calls that are computed at the same time; who comes then is refused at once, and tries again. They "
            "share passes over memory: 2 take 1.3 to 1.7 times as long as one, 4 take 1.6 to 2.5 times, 8 take 2.5 to "
            "4 times. A larger number serves more in all, and each later; 1 serves each as if it were alone",
            least=1,
        ),
    )
    max_answers: int = field(
        default=64,
        metadata=_setting(
            "overload", "Answer calls at the same time: those that are computed, send queries or take answers", least=1
        ),
    )
    max_transfers: int = field(
        default=16, metadata=_setting("overload", "WriteSegment and ReadSegmentPart calls at the same time", least=1)
    )
    max_other_calls: int = field(
        default=64, metadata=_setting("overload", "calls of all other methods at the same time", least=1)
    )
    max_waiting: int = field(
        default=16,
        metadata=_setting("overload", "calls of each of these three kinds that wait for a place", least=0),
    )
    wait_s: float = field(
        default=0.05, metadata=_setting("overload", "how long they wait; then they are refused, as Overloaded", least=0)
    )
    max_inflight_bytes: int = field(
        default_factory=lambda: max(512 << 20, memory_bytes() // 8),
        metadata=_setting(
            "overload",
            "bytes of queries and answers of all Answer calls together; default: an eighth of the memory",
            least=1,
        ),
    )

    max_call_s: float = field(
        default=600.0,
        metadata=_setting("time", "calls that take longer are cancelled, whatever their deadline", least=0.01),
    )
    idle_s: float = field(
        default=30.0,
        metadata=_setting(
            "time", "a call whose client neither sends nor takes the next message for so long is cancelled", least=0.01
        ),
    )
    grace_s: float = field(
        default=10.0, metadata=_setting("time", "what running calls get when the server is told to stop", least=0)
    )

    keepalive_s: float = field(
        default=60.0,
        metadata=_setting("connections", "a connection on which nothing came for so long is pinged", least=1),
    )
    keepalive_timeout_s: float = field(
        default=20.0, metadata=_setting("connections", "how long it has to reply; then it is closed", least=1)
    )
    min_ping_s: float = field(
        default=10.0,
        metadata=_setting("connections", "clients that ping more often are disconnected; ours ping every 30", least=0),
    )
    connection_age_s: float = field(
        default=3600.0,
        metadata=_setting(
            "connections",
            "a connection of that age is ended, and its client connects anew (to another server, with a new "
            "certificate); running calls end first; 0: never",
            least=0,
        ),
    )

    max_message_bytes: int = field(
        default=wire.MAX_MESSAGE_BYTES,
        metadata=_setting("sizes", "bytes of one message; a manifest and the ids of its segments must fit"),
    )
    max_dim: int = field(default=MAX_DIM, metadata=_setting("sizes", "dimension of vectors", least=1))
    max_queries: int = field(default=MAX_QUERIES, metadata=_setting("sizes", "queries in one Answer call", least=1))
    max_query_bytes: int = field(
        default=256 << 20, metadata=_setting("sizes", "bytes of all queries of one Answer call", least=1)
    )
    max_segment_bytes: int = field(
        default=1 << 30, metadata=_setting("sizes", "bytes of all parts of one segment", least=1)
    )
    max_collection_bytes: int = field(
        default=1 << 40,
        metadata=_setting(
            "sizes",
            "bytes of all segments of one collection, those that are not committed yet and replaced ones included",
            least=1,
        ),
    )
    max_manifest_bytes: int = field(
        default=wire.MAX_MANIFEST_BYTES, metadata=_setting("sizes", "bytes of one sealed manifest", least=1)
    )
    max_segments: int = field(default=100_000, metadata=_setting("sizes", "live segments in one manifest", least=1))
    max_collections: int = field(default=10_000, metadata=_setting("sizes", "collections in this folder", least=1))

    reflection: bool = field(
        default=False, metadata=_setting("observing", "tell callers what methods there are (gRPC reflection)")
    )
    metrics: str = field(
        default="",
        metadata=_setting(
            "observing",
            "host:port on which Prometheus finds the metrics, without TLS on loopback, elsewhere as calls are served; "
            "empty: none",
        ),
    )
    log_format: str = field(
        default="text",
        metadata=_setting("observing", "lines of the log, which goes to stderr", choices=("text", "json")),
    )
    log_level: str = field(
        default="warning",
        metadata=_setting(
            "observing", "the least serious lines of the log", choices=("debug", "info", "warning", "error")
        ),
    )
    traces: str = field(
        default="", metadata=_setting("observing", "OTLP endpoint to which traces are sent; empty: none")
    )

    def __post_init__(self) -> None:
        for one in fields(self):
            value, least, choices = getattr(self, one.name), one.metadata.get("least"), one.metadata.get("choices")
            if least is not None and not value >= least:
                raise InvalidInput(f"{one.name}: got {value}, expected at least {least}")
            if choices and value not in choices:
                raise InvalidInput(f"{one.name}: got {value!r}, expected one of {', '.join(choices)}")
        if bool(self.tls_cert) is not bool(self.tls_key) or (self.tls_client_ca and not self.tls_cert):
            raise InvalidInput("tls_cert, tls_key, tls_client_ca: got a part, expected both of the first two, or none")
        if self.tls_cert and not (self.tls_client_ca or self.token_issuer):
            raise InvalidInput(
                "tls_client_ca, token_issuer: got neither, expected one of them: nobody could prove who calls"
            )
        if bool(self.token_issuer) is not bool(self.token_audience):
            raise InvalidInput("token_issuer, token_audience: got one of them, expected both or none")
        if self.token_issuer and not self.tls_cert:
            raise InvalidInput("token_issuer: got it without tls_cert; tokens are taken over TLS only")
        if self.insecure and self.tls_cert:
            raise InvalidInput("insecure: got it with tls_cert, expected one of the two")
        if self.catalogue:
            require_postgresql(self.catalogue)
        if self.cluster:
            require_ray_address(self.cluster)
        if self.segments and not self.catalogue:
            raise InvalidInput("segments: got object storage without catalogue, expected one in PostgreSQL")
        if self.segments and self.orphan_age_s < _OBJECT_AGE_S:
            raise InvalidInput(
                f"orphan_age_s: got {self.orphan_age_s}, expected at least {_OBJECT_AGE_S} with object storage: other "
                "servers' uploads take time"
            )
        if self.max_inflight_bytes < self.max_query_bytes:
            raise InvalidInput(
                f"max_inflight_bytes: got {self.max_inflight_bytes}, expected at least max_query_bytes, "
                f"{self.max_query_bytes}"
            )
        needed = max(CHUNK_BYTES, self.max_manifest_bytes + _ID_BYTES * self.max_segments) + _MESSAGE_SPARE_BYTES
        if not needed <= self.max_message_bytes <= wire.MAX_MESSAGE_BYTES:
            raise InvalidInput(
                f"max_message_bytes: got {self.max_message_bytes}, expected {needed} (for max_manifest_bytes, "
                f"max_segments) to {wire.MAX_MESSAGE_BYTES}"
            )
