"""Metrics of storage elsewhere: what is fetched, sent, kept and asked, by numbers that name nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import obstore
import pytest

from he_engine.errors import HesearchError, TamperedDataError, Unavailable
from he_proto.v1 import hesearch_pb2 as pb
from he_server.storage.objects import Objects
from he_server.storage.remote_segments import RemoteSegments
from he_server.storage.tally import COUNTS, Tally
from tests.observing_fixture import Observed, observed
from tests.postgres_fixture import PostgresServer, postgres
from tests.s3_fixture import S3Server, s3, s3_server
from tests.server_fixture import FakeClient, residues

__all__ = ["postgres", "s3", "s3_server"]

_NAME = "planted-collection"


@pytest.fixture
def where(postgres: PostgresServer, s3: S3Server) -> dict[str, Any]:
    return {"catalogue": postgres.new_database(), "segments": s3.new_bucket()}


@pytest.fixture
def two(tmp_path: Path, where: dict[str, Any]) -> Iterator[tuple[Observed, Observed]]:
    """Servers of one bucket and one catalogue; the second keeps next to nothing that nobody reads."""
    with observed(tmp_path / "a", **where) as one, observed(tmp_path / "b", cache_bytes=1, **where) as other:
        yield one, other


def _stored(endpoint: Observed, count: int = 1) -> FakeClient:
    client = FakeClient(endpoint, _NAME).create()
    segments = [client.segment() for _ in range(count)]
    for segment in segments:
        client.write(segment)
    client.commit(1, segments)
    return client


def _count(endpoint: Observed, name: str) -> float:
    assert name in COUNTS
    return endpoint.value(f"hesearch_{name}_total")


def _bytes_here(folder: Path) -> int:
    return sum(path.stat().st_size for path in (folder / "segments").rglob("*") if path.is_file())


def _searched(client: FakeClient, endpoint: Observed) -> None:
    client.endpoint = endpoint
    client.answer(2, residues(client.rng, 1))


def test_what_is_sent_fetched_and_kept(two: tuple[Observed, Observed], tmp_path: Path) -> None:
    one, other = two
    client = _stored(one, count=2)
    stored = _bytes_here(tmp_path / "a")
    assert (_count(one, "object_puts"), _count(one, "object_put_bytes")) == (2, stored)
    assert one.value("hesearch_cached_bytes") == stored > 0
    assert one.value("hesearch_cached_bytes_limit") == one.service.config.cache_bytes
    assert (_count(one, "segment_fetches"), _count(other, "segment_fetches")) == (0, 0)

    _searched(client, other)
    assert (_count(other, "segment_fetches"), _count(other, "segment_fetched_bytes")) == (2, stored)
    assert _count(other, "segment_evictions") == 0, "both were read at once"
    _searched(client, other)
    assert _count(other, "segment_fetches") == 2, "they are here"
    assert other.value("hesearch_cached_bytes") == _bytes_here(tmp_path / "b") == stored
    for name in ("object_failures", "segment_failed_fetches", "catalogue_failed_looks"):
        assert (_count(one, name), _count(other, name)) == (0, 0), name


def test_what_makes_room_is_counted(two: tuple[Observed, Observed], tmp_path: Path) -> None:
    one, other = two
    client = _stored(one)
    _searched(client, other)
    segment = client.segment()
    client.write(segment)  # at the other, which has room for one
    assert _count(other, "segment_evictions") == 1
    assert other.value("hesearch_cached_bytes") == _bytes_here(tmp_path / "b")


def test_questions_to_the_catalogue(two: tuple[Observed, Observed]) -> None:
    one, other = two
    before = _count(other, "catalogue_looks")
    FakeClient(one, _NAME).create()
    assert _count(other, "catalogue_looks") == before + 1, "the scrape before asked, too"
    refreshes = _count(other, "catalogue_refreshes")
    FakeClient(one, "another", seed=2).create()
    other.call("ListCollections", pb.ListCollectionsRequest(format_version=1))
    assert _count(other, "catalogue_refreshes") == refreshes + 1
    assert _count(other, "catalogue_reloads") == 0


def test_objects_that_are_gone_and_storage_that_is_away(two: tuple[Observed, Observed], where: dict[str, Any]) -> None:
    one, other = two
    client = _stored(one)
    with contextlib.closing(Objects(where["segments"])) as objects:
        for found in objects.list():
            obstore.delete(objects._store, found.name)
    with pytest.raises(TamperedDataError):
        _searched(client, other)
    assert _count(other, "segment_failed_fetches") >= 1
    assert _count(other, "object_failures") == 0, "the storage answered"

    remote = one.service.store._segments
    assert isinstance(remote, RemoteSegments)
    away = Objects("s3://no-such-bucket/prefix?" + where["segments"].partition("?")[2])
    remote._objects._store = away._store
    client.endpoint = one
    with pytest.raises(HesearchError):
        client.write(client.segment())
    assert _count(one, "object_failures") == 1
    assert _count(one, "object_puts") == 1, "the first alone"
    away.close()


def test_a_catalogue_that_is_away(tmp_path: Path, s3: S3Server) -> None:
    try:
        database = PostgresServer()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    with database, observed(tmp_path, catalogue=database.new_database(), segments=s3.new_bucket()) as endpoint:
        _stored(endpoint)
        assert _count(endpoint, "catalogue_failed_looks") == 0
        with database.away():
            with pytest.raises(Unavailable):
                endpoint.call("ListCollections", pb.ListCollectionsRequest(format_version=1))
            assert _count(endpoint, "catalogue_failed_looks") >= 1, "a scrape needs no catalogue"
            assert "hesearch_collections " not in endpoint.scrape()
        endpoint.call("ListCollections", pb.ListCollectionsRequest(format_version=1))
        assert endpoint.value("hesearch_collections") == 1


def test_no_number_names_what_it_is_about(two: tuple[Observed, Observed], where: dict[str, Any]) -> None:
    one, other = two
    client = _stored(one)
    _searched(client, other)
    described = client.describe()
    bucket = where["segments"].partition("://")[2].partition("/")[0]
    for endpoint in two:
        text = endpoint.scrape()
        for planted in (_NAME, described.collection_id.hex(), bucket, "some/prefix", "postgresql", "127.0.0.1"):
            assert planted not in text, planted
        samples = [line for line in text.splitlines() if line.split("_total")[0] in {f"hesearch_{n}" for n in COUNTS}]
        assert len(samples) == len(COUNTS), "each once, without labels"


def test_a_folder_of_its_own_counts_nothing(tmp_path: Path) -> None:
    with observed(tmp_path) as endpoint:
        client = _stored(endpoint)
        _searched(client, endpoint)
        assert [_count(endpoint, name) for name in COUNTS] == [0] * len(COUNTS)
        assert endpoint.value("hesearch_cached_bytes") == endpoint.value("hesearch_cached_bytes_limit") == 0


def test_only_names_that_are_known_are_counted() -> None:
    tally = Tally()
    with pytest.raises(KeyError):
        tally.add(_NAME)
    assert set(tally.values()) == set(COUNTS)
