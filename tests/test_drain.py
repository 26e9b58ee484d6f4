"""How a server ends, and what its clients see of it: what runs is finished, what comes later is tried again."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from he_client import Client, CollectionKey
from he_proto.v1 import hesearch_pb2 as pb
from he_proto.v1 import hesearch_pb2_grpc
from tests.server_fixture import Endpoint, FakeClient, FakeSegment
from tests.test_server_cli import Served

_DIM = 16


@pytest.fixture
def starts(tmp_path: Path) -> Iterator[Any]:
    """starts(*arguments): a server of one folder, as often as it is called."""
    all_served: list[Served] = []

    def start(*arguments: str, listen: str = "127.0.0.1:0") -> Served:
        folder = ("--data", str(tmp_path / "data"), "--insecure", "--threads", "1")
        all_served.append(Served(*folder, "--listen", listen, *arguments))
        return all_served[-1]

    yield start
    for served in all_served:
        served.process.kill()
        served.process.communicate()


class Upload:
    """A WriteSegment call of which the server has the header, and the rest is held back until `go_on`."""

    def __init__(self, channel: grpc.Channel, segment: FakeSegment) -> None:
        self._requests = segment.requests()
        self._reading, self._writing = os.pipe()
        stub = hesearch_pb2_grpc.HeSearchStub(channel)
        self.call = stub.WriteSegment.future(self._held(), timeout=60)

    def _held(self) -> Iterator[pb.WriteSegmentRequest]:
        yield from self._requests[:2]
        os.read(self._reading, 1)
        yield from self._requests[2:]

    def go_on(self) -> None:
        os.write(self._writing, b"x")


class Running:
    """A server, an upload that it works at, and a watcher of its health."""

    def __init__(self, served: Served, folder: Path) -> None:
        self.address = served.line().split()[-1]
        self.channel = grpc.insecure_channel(self.address)
        endpoint = Endpoint(None, self.address)  # type: ignore[arg-type]
        client = FakeClient(endpoint).create()
        self.segment = client.segment(100)
        self.upload = Upload(self.channel, self.segment)
        while not list((folder / "incoming").iterdir()):
            pass
        watch = health_pb2_grpc.HealthStub(self.channel).Watch(health_pb2.HealthCheckRequest(), timeout=60)
        self.health = (response.status for response in watch)
        assert next(self.health) == health_pb2.HealthCheckResponse.SERVING
        endpoint.close()

    def refused(self) -> grpc.StatusCode:
        """The code with which a new call, on a new connection, ends."""
        with grpc.insecure_channel(self.address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            stub = hesearch_pb2_grpc.HeSearchStub(channel)
            with pytest.raises(grpc.RpcError) as caught:
                stub.ListCollections(pb.ListCollectionsRequest(format_version=1), timeout=60)
        return caught.value.code()


def test_a_running_call_is_finished_and_no_other_begins(starts: Any, tmp_path: Path) -> None:
    served = starts("--grace", "60")
    running = Running(served, tmp_path / "data")
    served.process.send_signal(signal.SIGTERM)
    assert next(running.health) == health_pb2.HealthCheckResponse.NOT_SERVING
    assert running.refused() is grpc.StatusCode.UNAVAILABLE
    running.upload.go_on()
    assert running.upload.call.result().segment_id == running.segment.id
    running.channel.close()
    out, err = served.process.communicate(timeout=60)
    assert (served.process.returncode, out, err) == (0, "", "")


def test_after_the_grace_calls_are_cancelled(starts: Any, tmp_path: Path) -> None:
    served = starts("--grace", "0.1")
    running = Running(served, tmp_path / "data")
    served.process.send_signal(signal.SIGTERM)
    assert running.upload.call.code() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE)
    running.upload.go_on()
    running.channel.close()
    served.process.communicate(timeout=60)
    assert served.process.returncode == 0


def test_searches_and_inserts_survive_a_restart(starts: Any) -> None:
    """The client asks all the time, while the server ends, is not there, and starts again."""
    served = starts("--grace", "60")
    address = served.line().split()[-1]
    rows = np.eye(_DIM)
    done = {"search": 0, "insert": 0}
    stop = threading.Event()
    failures: list[Exception] = []
    with Client(address, insecure=True) as client:
        key = CollectionKey.generate()
        notes = client.create_collection("notes", dim=_DIM, key=key)
        notes.insert([0], rows[:1])
        other = client.open_collection("notes", key=key)

        def repeat(name: str, action: Any) -> None:
            try:
                while not stop.is_set():
                    action(done[name] + 1)
                    done[name] += 1
            except Exception as error:
                failures.append(error)

        def search(_: int) -> None:
            assert notes.search(rows[0], k=1)[0].id == 0

        def insert(number: int) -> None:
            other.insert([number], rows[1:2])

        threads = [
            threading.Thread(target=repeat, args=("search", search)),
            threading.Thread(target=repeat, args=("insert", insert)),
        ]
        for thread in threads:
            thread.start()
        try:
            for number in (signal.SIGTERM, signal.SIGKILL):
                before = dict(done)
                while not failures and any(done[name] < before[name] + 3 for name in done):
                    stop.wait(0.01)
                served.end(number)
                served = starts("--grace", "60", listen=address)
                served.line()
        finally:
            before = dict(done)
            while not failures and any(done[name] < before[name] + 3 for name in done):
                stop.wait(0.01)
            stop.set()
            for thread in threads:
                thread.join()
        assert not failures
        assert other.count() == 1 + done["insert"]
