"""What a collection will cost, before it exists: bytes from the layout alone, times from the rates of a machine.

Letters as in docs/scheme.md: P primes, N ring degree, I planes, g stride, B = N/g rows a block, L bits of a stored
hint's coefficient. K blocks hold n rows. `he_client.calibrate` measures rates; nothing here does.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable
from dataclasses import dataclass

from he_client.arrival import GROUP_BLOCKS
from he_client.collection import SEGMENT_BYTES
from he_engine.errors import InvalidInput
from he_engine.hint_client import CACHE_BYTES, SUM_BYTES
from he_engine.params import RINGS, Parameters, Profile, max_stride
from he_engine.sealing import OVERHEAD_BYTES
from he_engine.verify import CHECKS, SALT_BYTES

QUERIES = 100  #: that a client asks for each time it downloads the hints
MARGIN = 0.1  #: of the cost: what is not worth more memory
ID_MEMORY_BYTES = 200  #: a row: an integer id in a list, and in the dictionary to its segment and row (measured)
CALL_S = 2e-3  #: of a gRPC call in Python, both ends, beside the network (measured: 1.6 to 2.5 ms)
GRPC_BYTES_PER_S = 5e8  #: that one such call moves (measured: 0.4 to 0.6 GB/s); a faster link counts as this
_ROW_TABLE_BYTES = 34  #: of a row table: the seed, with its tag and length


def candidates(profile: Profile, dim: int) -> list[Parameters]:
    """Every stride worth a look: a block fits a segment, and no smaller stride holds a row in one plane already.

    Raises ParameterError for a dimension that no stride admits.
    """
    Parameters.choose(profile, dim)
    strides = (1 << i for i in range(max_stride(RINGS[profile]).bit_length()))
    found = [Parameters(profile=profile, dim=dim, stride=g) for g in strides if g < 2 * dim]
    return [p for p in found if 4 * p.block_words <= SEGMENT_BYTES]


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes of n rows inserted in one call. Raises InvalidInput unless n ≥ 1.

    Exact for ids 0 to n − 1 without payloads; other ids, payloads and the metric l2 (8 bytes a row) change row tables.
    """

    parameters: Parameters
    rows: int  #: n

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise InvalidInput(f"rows: got {self.rows}, expected at least 1")

    @property
    def blocks(self) -> int:
        """K = ⌈n/B⌉."""
        return self.parameters.blocks_for(self.rows)

    @property
    def segment_blocks(self) -> int:
        """Blocks of every segment but the last."""
        return max(1, SEGMENT_BYTES // self.query_bytes)

    @property
    def segments(self) -> int:
        return -(-self.blocks // self.segment_blocks)

    @property
    def group_segments(self) -> int:
        """Segments that a client verifies and decrypts together (he_client.arrival)."""
        return min(self.segments, -(-GROUP_BLOCKS // self.segment_blocks))

    @property
    def groups(self) -> int:
        return -(-self.segments // self.group_segments)

    @property
    def query_bytes(self) -> int:
        """4·P·I·N, of a query and of a block alike."""
        return 4 * self.parameters.block_words

    @property
    def index_bytes(self) -> int:
        """K·4·P·I·N."""
        return self.blocks * self.query_bytes

    @property
    def answer_bytes(self) -> int:
        """K·4·P·B, of one query; without the framing of messages, some 150 bytes for each of at most 1 MiB."""
        return self.blocks * 4 * len(self.parameters.ring.primes) * self.parameters.rows_per_block

    @property
    def hint_bytes(self) -> int:
        """K·N·L/8."""
        return self.blocks * self.parameters.hint_bytes_per_block

    @property
    def fingerprint_bytes(self) -> int:
        """Sealed: 3·(query bytes) and a salt, a segment."""
        return self.segments * (OVERHEAD_BYTES + SALT_BYTES + CHECKS * self.query_bytes)

    @property
    def row_table_bytes(self) -> int:
        """Sealed protobuf: a number of rows, a seed, and an id a row as a zigzag varint."""
        step = self.segment_blocks * self.parameters.rows_per_block
        full, last = self.segments - 1, self.rows - (self.segments - 1) * step

        def ids(segment: int) -> int:
            """Bytes of a full segment's ids: more from segment to segment."""
            return _id_bytes((segment + 1) * step) - _id_bytes(segment * step)

        everything = _id_bytes(self.rows)
        # A varint has one byte, and one more from each power of 128 on: counted where ids first reach it.
        lengths = _varint_bytes(everything - _id_bytes(full * step)) + full
        for power in range(1, _varint_bytes(everything)):
            lengths += full - bisect.bisect_left(range(full), 1 << (7 * power), key=ids)
        counts = full * _varint_bytes(step) + _varint_bytes(last)
        return self.segments * (OVERHEAD_BYTES + _ROW_TABLE_BYTES + 2) + counts + lengths + everything

    @property
    def cache_bytes(self) -> int:
        """What a client downloads before its first search, and keeps: hints, fingerprints, row tables."""
        return self.hint_bytes + self.fingerprint_bytes + self.row_table_bytes

    @property
    def stored_bytes(self) -> int:
        """All parts at the server, as `hesearch info` says; files add at most 20 KiB a segment."""
        return self.index_bytes + self.cache_bytes

    @property
    def expanded_hint_bytes(self) -> int:
        """K·4·P·N, in the client's memory; block secrets have as many."""
        return self.blocks * 4 * len(self.parameters.ring.primes) * self.parameters.ring.degree

    @property
    def secret_bytes(self) -> int:
        """Block secrets that the client keeps from query to query (he_engine.hint_client.CACHE_BYTES)."""
        return min(self.expanded_hint_bytes, CACHE_BYTES)

    @property
    def fingerprint_memory_bytes(self) -> int:
        """Fingerprints, and the sum of each group of several segments."""
        last = self.segments - (self.groups - 1) * self.group_segments
        sums = 0 if self.group_segments == 1 else self.groups - (last == 1)
        one = CHECKS * self.query_bytes
        return self.segments * one + min(sums * one, SUM_BYTES)

    @property
    def client_memory_bytes(self) -> int:
        """While a collection is open; answers under way come on top."""
        ids = ID_MEMORY_BYTES * self.rows
        return self.expanded_hint_bytes + self.secret_bytes + self.fingerprint_memory_bytes + ids


def _varint_bytes(value: int) -> int:
    return max(1, -(-value.bit_length() // 7))


def _id_bytes(rows: int) -> int:
    """Of the ids 0 to rows − 1, id i as the varint of 2i: one byte each, and one more from 2^(7k − 1) on, k ≥ 1."""
    return rows + sum(max(0, rows - (1 << (7 * k - 1))) for k in range(1, 10))


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """How fast machines are with one set of parameters. Per row: per row of whole blocks."""

    server_bytes_per_s: float  #: index read by an answer, all threads of the server
    client_threads: int  #: that recover answers
    query_s: float  #: to encrypt one query
    recover_group_s: float  #: verify, decrypt and rank: what a group costs however few rows it has
    recover_row_s: float  #: … and each row, on one thread
    derive_row_s: float  #: more, for a row whose block secrets are not kept
    build_row_s: float  #: to encrypt, seal and hash, all cores
    open_row_s: float  #: to check, unseal and expand what was downloaded


@dataclass(frozen=True, slots=True)
class Link:
    """Between client and server, software included."""

    bytes_per_s: float
    round_trip_s: float

    @classmethod
    def over(cls, network_bytes_per_s: float, network_round_trip_s: float) -> Link:
        """What gRPC makes of a network. Raises InvalidInput for a rate ≤ 0, a round trip < 0, or one not finite."""
        if not 0 < network_bytes_per_s < math.inf:
            raise InvalidInput(f"link: got {network_bytes_per_s:g} bytes a second, expected more than 0")
        if not 0 <= network_round_trip_s < math.inf:
            raise InvalidInput(f"round trip: got {network_round_trip_s:g} s, expected at least 0")
        return cls(min(network_bytes_per_s, GRPC_BYTES_PER_S), network_round_trip_s + CALL_S)

    def seconds(self, size_bytes: int) -> float:
        return size_bytes / self.bytes_per_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What one stride costs. Bytes are those of `Sizes`."""

    stride: int
    segments: int
    server_memory_bytes: int  #: the index, which must stay in memory for these times; a server has under 200 MB besides
    server_disk_bytes: int
    client_cache_bytes: int  #: on disk, with `Client(cache=…)`
    client_memory_bytes: int
    upload_bytes: int  #: once
    upload_encrypt_s: float
    upload_send_s: float
    upload_s: float  #: both; a segment is encrypted while the one before is sent
    open_bytes: int  #: once for each client without a cache
    open_s: float
    sent_bytes: int  #: a query
    received_bytes: int
    encrypt_s: float
    send_s: float
    server_s: float
    receive_s: float
    recover_s: float  #: all of verifying, decrypting and ranking, on the client's threads
    recover_work_s: float  #: the same on one
    latency_s: float
    limit: str  #: what takes most of a query: "server", "link" or "client"
    cost_s: float  #: a query with its share of opening the collection: what `choose` compares


def predict(
    parameters: Parameters, rows: int, rates: Rates, link: Link, queries: int = QUERIES, *, overlap: float = 1.0
) -> Plan:
    """Bytes and times of n rows at one stride.

    A query: encrypt + send + round trip + pass, where the pass is three stages that overlap: the server reads the
    index and sends answers as it has them, and the client recovers each group of segments when its answers have come.
    With G groups of equal size, the stage that limits takes all of its time, and the others that of one group:

        pass = max over stages (stage + Σ others of one group),   one group: 1/G of the work of a stage

    That is with `overlap` 1: each stage has a machine of its own. Where they share one, they hinder each other; with 0
    they would take turns, and in between the pass is between both.

    Upload is the same with two stages, encryption and sending, and the segments as groups. Opening reads three parts
    a segment, one after the other.
    """
    sizes = Sizes(parameters, rows)
    padded = sizes.blocks * parameters.rows_per_block
    derived = 1 - sizes.secret_bytes / sizes.expanded_hint_bytes
    work_s = sizes.groups * rates.recover_group_s + padded * (rates.recover_row_s + derived * rates.derive_row_s)
    server_s = sizes.index_bytes / rates.server_bytes_per_s
    send_s, receive_s = link.seconds(sizes.query_bytes), link.seconds(sizes.answer_bytes)
    recover_s = work_s / min(rates.client_threads, sizes.groups)
    stages = [(server_s, server_s), (receive_s, receive_s), (recover_s, work_s)]
    in_turn_s = server_s + receive_s + recover_s
    passed_s = overlap * overlapped(stages, pieces=sizes.groups) + (1 - overlap) * in_turn_s
    build_s, upload_s = padded * rates.build_row_s, link.seconds(sizes.stored_bytes)
    open_s = (2 + 3 * sizes.segments) * link.round_trip_s + link.seconds(sizes.cache_bytes) + padded * rates.open_row_s
    latency_s = rates.query_s + send_s + link.round_trip_s + passed_s
    shares = {
        "server": server_s,
        "link": send_s + link.round_trip_s + receive_s,
        "client": rates.query_s + recover_s,
    }
    return Plan(
        stride=parameters.stride,
        segments=sizes.segments,
        server_memory_bytes=sizes.index_bytes,
        server_disk_bytes=sizes.stored_bytes,
        client_cache_bytes=sizes.cache_bytes,
        client_memory_bytes=sizes.client_memory_bytes,
        upload_bytes=sizes.stored_bytes,
        upload_encrypt_s=build_s,
        upload_send_s=upload_s,
        upload_s=overlapped([(build_s, build_s), (upload_s, upload_s)], pieces=sizes.segments),
        open_bytes=sizes.cache_bytes,
        open_s=open_s,
        sent_bytes=sizes.query_bytes,
        received_bytes=sizes.answer_bytes,
        encrypt_s=rates.query_s,
        send_s=send_s,
        server_s=server_s,
        receive_s=receive_s,
        recover_s=recover_s,
        recover_work_s=work_s,
        latency_s=latency_s,
        limit=max(shares, key=lambda name: shares[name]),
        cost_s=latency_s + open_s / queries,
    )


def overlapped(stages: Iterable[tuple[float, float]], pieces: int) -> float:
    """Seconds of stages (elapsed, work) through which `pieces` equal pieces pass one after the other."""
    everything = list(stages)
    one_of_each = sum(work for _, work in everything) / pieces
    return max(elapsed + one_of_each - work / pieces for elapsed, work in everything)


def choose(plans: Iterable[Plan]) -> Plan:
    """Of the strides whose cost is within MARGIN of the lowest, the one with the least client memory.

    The cost is a query's latency with its share of the download before the first one. Latency alone would take ever
    larger strides on slow links: a query shrinks by 4·P·d·N/2g bytes with each doubling, but the hints that every new
    client downloads and expands double. Counting the opening once in `queries` queries puts both in seconds. What is
    left between neighbours is often less than such a prediction is worth, and memory is not, as it is exact.
    """
    everything = list(plans)
    enough_s = min(plan.cost_s for plan in everything) * (1 + MARGIN)
    return min((p for p in everything if p.cost_s <= enough_s), key=lambda p: p.client_memory_bytes)
