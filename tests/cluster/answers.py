"""What a cluster answers: the same bits as one process, whatever its nodes, the storage and the sealing."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import ray

from he_client import Client, CollectionKey
from he_engine.errors import Conflict, NotFound, TamperedDataError, Unavailable
from he_engine.params import Parameters
from he_proto import wire
from he_proto.chunks import answer_requests
from he_proto.v1 import hesearch_pb2 as pb
from he_server.access.access import Caller
from he_server.config import ServerConfig
from he_server.service import Service
from he_server.storage.kek import new_kek_file
from tests.cluster_fixture import Nodes, actors, serving
from tests.conftest import unit_rows
from tests.postgres_fixture import PostgresServer, postgres
from tests.s3_fixture import ENVIRONMENT, S3Server, s3, s3_server

__all__ = ["postgres", "s3", "s3_server"]

ROWS, DIM, SEGMENTS = 3000, 64, 5
Residues = dict[tuple[bytes, int], bytes]


@pytest.fixture(scope="module", params=[1, 2], ids=["1-node", "2-nodes"])
def nodes(request: pytest.FixtureRequest) -> Iterator[Nodes]:
    os.environ.update(ENVIRONMENT)  # of the actors
    with Nodes(request.param) as started:
        yield started


def filled(address: str, key: CollectionKey, profile: str) -> None:
    with Client(address, insecure=True) as client:
        collection = client.create_collection("notes", dim=DIM, key=key, profile=profile)
        for number in range(SEGMENTS):
            collection.insert(_ids(number), unit_rows(np.random.default_rng(number), ROWS // SEGMENTS, DIM))


def _ids(number: int) -> list[str]:
    return [f"{number}/{row}" for row in range(ROWS // SEGMENTS)]


def queries_of(parameters: wire.PublicParameters, count: int) -> list[bytes]:
    """Canonical residues from a seed."""
    assert isinstance(parameters, Parameters)
    words, rng = parameters.block_words, np.random.default_rng(7)
    return [rng.integers(0, min(parameters.ring.primes), words, np.uint32).tobytes() for _ in range(count)]


def opened(
    service: Service, queries: int = 3, version: int = 0, caller: Caller | None = None
) -> Iterator[pb.AnswerResponse]:
    """An Answer call with canonical residues from a seed for queries."""
    (record,) = service.store.collections()
    parameters = wire.parameters_from_wire(pb.Parameters.FromString(record.parameters))
    asked = queries_of(parameters, queries)
    header = pb.AnswerHeader(
        context=wire.context(record.name, record.parameter_digest),
        collection_id=record.collection_id,
        version=version or record.version,
        queries=queries,
    )
    return service.answer(iter(answer_requests(header, asked)), caller or Caller())


def residues(service: Service, queries: int = 3, version: int = 0) -> Residues:
    """Every segment's answer to each query, whole."""
    got: dict[tuple[bytes, int], list[pb.AnswerResponse]] = {}
    for piece in opened(service, queries, version):
        got.setdefault((piece.segment_id, piece.query), []).append(piece)
    return {name: _joined(pieces) for name, pieces in got.items()}


def _joined(pieces: Sequence[pb.AnswerResponse]) -> bytes:
    """Of one segment and query: every block once."""
    ordered = sorted(pieces, key=lambda piece: piece.first_block)
    ends = [piece.first_block + piece.blocks for piece in ordered]
    assert [piece.first_block for piece in ordered] == [0, *ends[:-1]]
    return b"".join(piece.residues for piece in ordered)


@pytest.mark.parametrize("sealed", [False, True], ids=["unsealed", "sealed"])
@pytest.mark.parametrize("profile", ["compact", "exact"])
def test_the_same_bits_as_one_process(tmp_path: Path, nodes: Nodes, profile: str, sealed: bool) -> None:
    new_kek_file(tmp_path / "kek")
    settings = {"kek": f"file:{tmp_path / 'kek'}"} if sealed else {}
    key = CollectionKey.generate()
    with serving(tmp_path / "data", None, **settings) as (address, service):
        filled(address, key, profile)
        expected = residues(service)
    assert len(expected) == 3 * SEGMENTS
    with serving(tmp_path / "data", nodes, cluster_shards=2, **settings) as (address, service):
        assert residues(service) == expected
        with Client(address, insecure=True) as client:
            rows = unit_rows(np.random.default_rng(1), ROWS // SEGMENTS, DIM)
            hits = client.open_collection("notes", key=key).search(rows[17], k=1)
            assert [hit.id for hit in hits] == ["1/17"]


def test_several_front_ends_of_one_storage(
    tmp_path: Path, nodes: Nodes, postgres: PostgresServer, s3: S3Server
) -> None:
    """They share actors, and neither keeps a copy; what one writes, compacts or drops, the other's next search sees."""
    new_kek_file(tmp_path / "kek")
    where = {
        "catalogue": postgres.new_database(),
        "segments": s3.new_bucket(),
        "kek": f"file:{tmp_path / 'kek'}",
        "cache_bytes": 0,
        "cluster_shards": 2,
    }
    key = CollectionKey.generate()
    with (
        serving(tmp_path / "a", nodes, **where) as (one, service),
        serving(tmp_path / "b", nodes, **where) as (other, other_service),
    ):
        filled(one, key, "exact")
        assert residues(other_service) == residues(service)
        assert actors(service).namespace == actors(other_service).namespace
        assert _copies(tmp_path / "b") == []  # it only searched
        with Client(one, insecure=True) as client, Client(other, insecure=True) as reader:
            first = client.open_collection("notes", key=key)
            second = reader.open_collection("notes", key=key)
            fresh = unit_rows(np.random.default_rng(99), 10, DIM)
            first.insert([f"fresh {row}" for row in range(10)], fresh)
            assert [hit.id for hit in second.search(fresh[3], k=1)] == ["fresh 3"]
            first.delete(["fresh 3"])
            assert second.search(fresh[3], k=1)[0].id != "fresh 3"
            first.compact()
            assert [hit.id for hit in second.search(fresh[4], k=1)] == ["fresh 4"]
            client.drop_collection("notes")
            with pytest.raises(NotFound):
                second.search(fresh[4], k=1)
        for shard in range(2):  # they would stay for other front ends
            ray.kill(ray.get_actor(f"shard-{shard}-0", actors(service).namespace))


def _copies(folder: Path) -> list[Path]:
    return [path for path in (folder / "segments").rglob("*") if path.is_file()]


def test_a_stale_version_and_a_damaged_segment_are_errors(tmp_path: Path, nodes: Nodes) -> None:
    key = CollectionKey.generate()
    with serving(tmp_path, nodes, cluster_shards=2) as (address, service):
        filled(address, key, "compact")
        with pytest.raises(Conflict):
            residues(service, version=2)
        victim = sorted((tmp_path / "segments").rglob("*"))[-1]
        content = bytearray(victim.read_bytes())
        content[9000] ^= 1
        victim.write_bytes(content)
        with pytest.raises(TamperedDataError, match="does not match its digest"):
            residues(service)
        with pytest.raises(TamperedDataError, match="sending it again repairs it"):
            residues(service)
        with Client(address, insecure=True) as client:
            client.repair_collection("notes", key=key, confirm=True)
        assert len(residues(service)) == 3 * (SEGMENTS - 1)


def test_who_leaves_holds_nobody_up(tmp_path: Path, nodes: Nodes) -> None:
    """A call given up in the middle is forgotten by every shard; one whose client reads slowly delays no other."""
    key = CollectionKey.generate()
    with serving(tmp_path, nodes, cluster_shards=2) as (address, service):
        filled(address, key, "compact")
        expected = residues(service)
        slow = opened(service)
        next(slow)
        assert residues(service) == expected
        slow.close()
        shards = [actors(service).actor(shard, 0) for shard in range(2)]
        for _ in range(100):
            if all(ray.get(shard.ping.remote())["calls"] == 0 for shard in shards):
                break
            time.sleep(0.05)
        else:
            raise AssertionError("a call is remembered after 5 s")


def test_no_ray_there(tmp_path: Path) -> None:
    config = ServerConfig(data=tmp_path, insecure=True, cluster="127.0.0.1:1")
    with pytest.raises(Unavailable, match=r"no Ray found at '127\.0\.0\.1:1'; run `ray start` first"):
        Service(config)
