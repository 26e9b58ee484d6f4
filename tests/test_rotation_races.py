"""Rotation, drop and upload in each other's way: what one of them does must not take a file or a key from another."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from he_engine.errors import Conflict, TamperedDataError
from he_server.access.access import Caller
from he_server.storage.rekey import rotate
from he_server.storage.store import Store
from tests.server_fixture import FakeClient, naive_answers, residues, running
from tests.store_fixture import COLLECTION, KEK, RECORD, described, made, path_of, uploaded, verify

ROTATE = float("inf")  #: no key is so old: only files that are under an old one are written anew


@pytest.mark.parametrize("sealed_before", [False, True])
def test_searches_go_on_when_the_files_of_an_older_one_go(tmp_path: Path, sealed_before: bool) -> None:
    """Who comes after a rotation must not join the scan of the files before it."""
    kek = tmp_path / "kek"
    kek.write_bytes(bytes(range(32)))
    kek.chmod(0o600)
    at_rest = {"kek": f"file:{kek}"}
    data = tmp_path / "data"
    with running(data, over_grpc=False, **(at_rest if sealed_before else {})) as endpoint:
        client = FakeClient(endpoint).create()
        segments = [client.segment(200) for _ in range(2)]
        for segment in segments:
            client.write(segment)
        client.commit(1, segments)
    queries = residues(np.random.default_rng(5), 1)
    with running(data, over_grpc=False, **at_rest) as endpoint:
        client.endpoint = endpoint
        service = endpoint.service
        under_way = service.answer(iter(client.answer_requests(2, queries)), Caller())
        next(under_way)
        assert rotate(service.store, 0.0 if sealed_before else ROTATE) == 2
        newcomer = service.answer(iter(client.answer_requests(2, queries)), Caller())
        next(newcomer)
        under_way.close()  # type: ignore[attr-defined]
        for _ in range(2):
            answers = client.answer(2, queries)
            for segment in segments:
                assert (answers[segment.id] == naive_answers(segment.blocks, queries)).all()
        newcomer.close()  # type: ignore[attr-defined]


def test_a_dropped_collection_comes_back(tmp_path: Path) -> None:
    """As an import brings it, after its folder was cleaned away."""
    now = 1e9
    store = Store(tmp_path, clock_s=lambda: now)
    store.create(RECORD, b"sealed", 10)
    uploaded(store, [b"index"])
    store.drop(RECORD)
    now += 3601
    other = b"o" * 16
    store.create(replace(RECORD, name="other", collection_id=other), b"sealed", 10)
    uploaded(store, [b"index"], other)  # looks for what is left over, first
    store.create(RECORD, b"sealed", 10)
    assert verify(store, uploaded(store, [b"index"]))
    store.close()


def test_an_upload_that_outlives_its_collection(tmp_path: Path) -> None:
    """Its data key is gone, though the collection is back with a new one."""
    store = Store(tmp_path, kek=KEK)
    store.create(RECORD, b"sealed", 10)
    with store.upload(described([b"index"])) as late:
        late.write(b"index")
        late.finish()
        store.drop(RECORD)
        store.create(RECORD, b"sealed", 10)
        with pytest.raises(Conflict, match="its data key was replaced"):
            late.publish()
    assert [key.generation for state in store.states() for key in state.keys] == [2]
    store.close()


def test_a_sealed_file_in_anothers_place_while_the_server_runs(tmp_path: Path) -> None:
    first, second = made(tmp_path, KEK, [[b"1" * 5000], [b"2" * 5000]])
    store = Store(tmp_path, kek=KEK)
    path_of(tmp_path, first).write_bytes(path_of(tmp_path, second).read_bytes())
    with store.segment(RECORD, first) as snapshot:
        (segment,) = snapshot.segments
        with pytest.raises(TamperedDataError, match="another segment's"):
            segment.source.read(0, 1)
        with pytest.raises(TamperedDataError, match="another segment's"), store.reading(segment):
            pass
    with pytest.raises(TamperedDataError, match="is damaged"):
        store.snapshot(RECORD, 2)
    assert not store.has((COLLECTION, first))
    store.close()


def test_a_rotation_passes_over_what_is_damaged(tmp_path: Path) -> None:
    """And says so: it is not searched any more, and keeps its key."""
    damaged, sound = made(tmp_path, KEK, [[b"1" * 5000], [b"2" * 5000]])
    with path_of(tmp_path, damaged).open("r+b") as file:
        os.pwrite(file.fileno(), b"x", 9000)
    store = Store(tmp_path, kek=KEK)
    assert rotate(store, 0.0) == 1
    assert not store.has((COLLECTION, damaged))
    assert verify(store, sound)
    assert [key.generation for state in store.states() for key in state.keys] == [1, 2]
    store.close()
