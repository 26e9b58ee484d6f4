"""A call that has ended is gone at once: nothing of it waits for the garbage collector, which looks rarely at what has
lived for a while, and so lets a server grow."""

from __future__ import annotations

import contextlib
import gc
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from he_engine.errors import HesearchError
from he_proto.v1 import hesearch_pb2 as pb
from he_server.rpc.calls import Call
from he_server.service import Service
from tests.observing_fixture import observed
from tests.server_fixture import FakeClient, residues

CALLS = 10


def _calls() -> int:
    return sum(type(thing) is Call for thing in gc.get_objects())


@contextlib.contextmanager
def _no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _cancelled(client: FakeClient, queries: np.ndarray[Any, Any]) -> None:
    """The first piece of an answer is taken, and no more."""
    assert client.endpoint.stub is not None
    pieces = client.endpoint.stub.Answer(iter(client.answer_requests(2, queries)))
    next(pieces)
    pieces.cancel()


def _upload_cancelled(client: FakeClient, requests: list[pb.WriteSegmentRequest]) -> None:
    """While the server waits for the rest."""
    assert client.endpoint.stub is not None
    taken, end = threading.Event(), threading.Event()

    def some() -> Iterator[pb.WriteSegmentRequest]:
        yield requests[0]
        yield requests[1]
        taken.set()
        end.wait(60)

    call = client.endpoint.stub.WriteSegment.future(some())
    assert taken.wait(60)
    call.cancel()
    end.set()


class Broken(Service):
    """Has a defect."""

    def list_collections(self, *_: Any) -> Any:
        raise RuntimeError("a defect")


def _refused(call: Callable[[], object]) -> None:
    with pytest.raises(HesearchError):
        call()


def test_nothing_is_left_of_a_call(tmp_path: Path) -> None:
    """Of none that ended well, failed, was refused or cancelled, or met a defect."""
    with observed(tmp_path, make_service=Broken) as endpoint:
        client = FakeClient(endpoint).create()
        segment = client.segment(blocks=64)
        client.write(segment)
        client.commit(1, [segment])
        another, queries = client.segment(blocks=128), residues(client.rng, 8)
        kinds: list[Callable[[], object]] = [
            client.describe,
            client.manifest,
            lambda: client.read_part(segment, pb.PART_KIND_HINT),
            lambda: client.write(segment),
            lambda: client.answer(2, queries),
            lambda: _cancelled(client, queries),
            lambda: _upload_cancelled(client, another.requests()),
            lambda: _refused(lambda: client.answer(1, queries)),
            lambda: _refused(lambda: client.commit(7, [])),
            lambda: _refused(lambda: client.read_part(segment, pb.PART_KIND_HINT, segment_id=bytes(32))),
            lambda: _refused(lambda: endpoint.call("ListCollections", pb.ListCollectionsRequest(format_version=1))),
        ]
        with _no_collector():
            before = _calls()
            for call in kinds:
                for _ in range(CALLS):
                    call()
            end = time.monotonic() + 60
            while _calls() > before and time.monotonic() < end:
                time.sleep(0.01)  # a call's thread goes on a little after its client has all
            assert _calls() == before
