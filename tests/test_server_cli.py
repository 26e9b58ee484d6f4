"""`hesearch serve` as an operator meets it: one ready line, a clean end, and refusals that say what to do."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from he_engine.errors import InvalidInput, MissingExtra, Overloaded, Unavailable
from he_proto import wire
from he_proto.status import error_from_rpc
from he_proto.v1 import hesearch_pb2 as pb
from he_server import cli
from he_server.config import ServerConfig
from he_server.rpc.grpc_server import Adapter, GrpcServer
from he_server.rpc.idle import CallWatch
from he_server.rpc.listening import require_listenable, split_address
from he_server.service import Service
from tests.server_fixture import Endpoint, FakeClient, running


class Served:
    """A server in its own process, killed with the test if it is still there."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "he_server", *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def end(self, number: int) -> tuple[int, str, str]:
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    served = Served("--data", str(tmp_path / "data"), "--listen", "127.0.0.1:0", "--insecure", "--threads", "1")
    yield served
    served.process.kill()
    served.process.communicate()


def _create(address: str) -> None:
    with grpc.insecure_channel(address) as channel:
        create = channel.unary_unary(
            "/hesearch.v1.HeSearch/CreateCollection",
            request_serializer=pb.CreateCollectionRequest.SerializeToString,
            response_deserializer=pb.Collection.FromString,
        )
        endpoint = None
        request = FakeClient(endpoint).create_request()  # type: ignore[arg-type]
        assert create(request, timeout=60).version == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_ready_line_and_clean_end(served: Served, number: int, tmp_path: Path) -> None:
    ready = served.line()
    assert ready.startswith("listening on 127.0.0.1:")
    _create(ready.removeprefix("listening on ").strip())
    code, out, err = served.end(number)
    assert (code, out, err) == (0, "", "")
    with running(tmp_path / "data", over_grpc=False) as endpoint:
        assert FakeClient(endpoint).describe().version == 1


def test_the_index_is_warmed_at_the_start(tmp_path: Path) -> None:
    with running(tmp_path / "data", over_grpc=False) as endpoint:
        client = FakeClient(endpoint).create()
        segment = client.segment(2)
        client.write(segment)
        client.commit(1, [segment])
    served = Served("--data", str(tmp_path / "data"), "--listen", "127.0.0.1:0", "--insecure")
    served.line()
    assert served.process.stderr is not None
    assert "hesearch serve: read 0.0 of 0.0 MB of indexes into memory in" in served.process.stderr.readline()
    assert served.end(signal.SIGTERM)[0] == 0


def test_a_second_server_on_the_folder_says_so(served: Served, tmp_path: Path) -> None:
    served.line()
    second = Served("--data", str(tmp_path / "data"), "--listen", "127.0.0.1:0", "--insecure")
    out, err = second.process.communicate(timeout=60)
    assert (second.process.returncode, out) == (1, "")
    assert f"another server (process {served.process.pid}) has it open" in err


def test_a_killed_server_frees_the_folder(served: Served, tmp_path: Path) -> None:
    _create(served.line().removeprefix("listening on ").strip())
    served.end(signal.SIGKILL)
    with running(tmp_path / "data", over_grpc=False) as endpoint:
        assert FakeClient(endpoint).describe().version == 1


def test_all_permitted_files_may_be_open(tmp_path: Path) -> None:
    """A shell's soft limit is often far below the hard one."""
    serve = ["-m", "he_server", "--data", str(tmp_path), "--listen", "127.0.0.1:0", "--insecure"]
    script = 'ulimit -Sn 64 && exec "$@"'
    with subprocess.Popen(["sh", "-c", script, "sh", sys.executable, *serve], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        soft, hard = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
        process.kill()
    assert soft == hard == resource.getrlimit(resource.RLIMIT_NOFILE)[1]


def test_a_service_may_be_closed_twice(tmp_path: Path) -> None:
    service = Service(ServerConfig(data=tmp_path))
    service.close()
    with (tmp_path / "other").open("w") as other:  # takes the number of the closed lock, or a later one
        service.close()
        other.write("still open")


def _arguments(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    cli.add_serve_parser(parser.add_subparsers())
    return parser.parse_args(["serve", *arguments])


def test_serve_is_a_subcommand(tmp_path: Path) -> None:
    arguments = _arguments("--data", str(tmp_path))
    assert arguments.run is cli.serve
    assert (arguments.listen, arguments.insecure, arguments.threads) == (None, None, None), "so the file decides"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--listen", "127.0.0.1:0"], "tls_cert, tls_key: got none; give --tls-cert and --tls-key, or --insecure"),
        (["--listen", "0.0.0.0:0", "--insecure"], "served on loopback only"),
        (["--listen", "[::]:0", "--insecure"], "served on loopback only"),
        (["--listen", "127.0.0.1", "--insecure"], "expected host:port"),
        (["--listen", "unix:/tmp/x", "--insecure"], "expected host:port"),
        (["--listen", "127.0.0.1:65536", "--insecure"], "expected host:port"),
        (["--listen", "127.0.0.1:0", "--insecure", "--threads", "0"], "threads: got 0"),
        (
            ["--listen", "127.0.0.1:0", "--insecure", "--tls-cert", "x", "--tls-key", "x", "--tls-client-ca", "x"],
            "insecure: got it with tls_",
        ),
    ],
)
def test_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], reason: str) -> None:
    assert cli.serve(_arguments("--data", str(tmp_path / "data"), *options)) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("hesearch serve: ")
    assert reason in captured.err
    assert not (tmp_path / "data").exists()


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        _arguments("--help")
    assert caught.value.code == 0
    assert "hesearch serve --data ./data --listen 127.0.0.1:0 --insecure" in capsys.readouterr().out


def test_json(tmp_path: Path) -> None:
    served = Served(
        "--data", str(tmp_path), "--listen", "127.0.0.1:0", "--insecure", "--metrics", "127.0.0.1:0", "--json"
    )
    ready = json.loads(served.line())
    assert ready["listening"].startswith("127.0.0.1:")
    with urllib.request.urlopen(f"http://{ready['metrics']}/metrics") as answer:
        assert b"hesearch_" in answer.read()
    assert ready["format_version"] == 1
    assert served.end(signal.SIGTERM)[0] == 0


# ---- addresses -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("listen", "expected"),
    [
        ("127.0.0.1:1", ("127.0.0.1", 1)),
        ("localhost:65535", ("localhost", 65535)),
        ("[::1]:0", ("::1", 0)),
    ],
)
def test_addresses(listen: str, expected: tuple[str, int]) -> None:
    assert split_address(listen) == expected
    require_listenable(ServerConfig(data=Path("data"), listen=listen, insecure=True))


@pytest.mark.parametrize("listen", ["", ":1", "::1:1", "127.0.0.1:", "a:b:1", "[::1]", "127.0.0.1:-1"])
def test_bad_addresses(listen: str) -> None:
    with pytest.raises(InvalidInput, match="listen: got"):
        split_address(listen)


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "8.8.8.8:1", "[::]:0", "[fe80::1]:1"])
def test_plaintext_only_on_loopback(listen: str) -> None:
    with pytest.raises(InvalidInput, match="served on loopback only"):
        require_listenable(ServerConfig(data=Path("data"), listen=listen, insecure=True))
    require_listenable(
        ServerConfig(data=Path("data"), listen=listen, tls_cert="cert", tls_key="key", tls_client_ca="ca")
    )


# ---- the port ------------------------------------------------------------------------------------------------
def test_a_taken_port_is_an_error(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        config = ServerConfig(data=tmp_path, listen=listen, insecure=True)
        with Service(config) as service, pytest.raises(Unavailable, match="is taken"):
            GrpcServer(service)


def test_a_taken_port_is_noticed_before_anything_is_made(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        command = [sys.executable, "-m", "he_server", "--data", data, "--listen", listen, "--insecure"]
        done = subprocess.run(command, capture_output=True, text=True)
    said = f"hesearch serve: listen: {listen} is taken, or not an address of this machine\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", said)
    assert not data.exists()


def test_health_and_reflection(tmp_path: Path) -> None:
    with running(tmp_path, over_grpc=True, reflection=True) as endpoint:
        channel = endpoint._channel
        check = health_pb2_grpc.HealthStub(channel).Check
        for service in ("", "hesearch.v1.HeSearch"):
            answer = check(health_pb2.HealthCheckRequest(service=service), timeout=60)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        (listed,) = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([request]))
        assert "hesearch.v1.HeSearch" in {s.name for s in listed.list_services_response.service}
    with running(tmp_path, over_grpc=True) as endpoint, pytest.raises(grpc.RpcError, match="UNIMPLEMENTED"):
        list(reflection_pb2_grpc.ServerReflectionStub(endpoint._channel).ServerReflectionInfo(iter([request])))


def test_calls_that_last_are_few(tmp_path: Path) -> None:
    """Who keeps hundreds of them open takes nobody's place, and health is told all the same."""
    with running(tmp_path, over_grpc=True, reflection=True) as endpoint:
        health, held = health_pb2_grpc.HealthStub(endpoint._channel), threading.Event()
        reflection = reflection_pb2_grpc.ServerReflectionStub(endpoint._channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")

        def asked() -> Iterator[Any]:
            yield request
            held.wait(60)

        watches = [health.Watch(health_pb2.HealthCheckRequest(), timeout=60) for _ in range(100)]
        reflections = [reflection.ServerReflectionInfo(asked(), timeout=60) for _ in range(100)]
        for calls in (watches, reflections):
            codes = []
            for call in calls:
                try:
                    next(call)
                except grpc.RpcError as error:
                    codes.append(error.code())
            assert codes == [grpc.StatusCode.RESOURCE_EXHAUSTED] * 96
        assert health.Check(health_pb2.HealthCheckRequest(), timeout=60).status
        assert FakeClient(endpoint).create().describe().version == 1
        held.set()
        for call in watches:
            call.cancel()


def test_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "grpc_health"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "grpc_health", None)
    config = ServerConfig(data=tmp_path, listen="127.0.0.1:0", insecure=True)
    with Service(config) as service, pytest.raises(MissingExtra, match=r"pip install '\.\[server\]'"):
        GrpcServer(service)


@contextlib.contextmanager
def _stalled(endpoint: Endpoint, client: FakeClient) -> Iterator[Any]:
    """An upload whose client sends the header and then nothing: the call, as a future."""
    assert endpoint.stub is not None
    reading, writing = os.pipe()

    def requests() -> Iterator[pb.WriteSegmentRequest]:
        yield client.segment().requests()[0]
        os.read(reading, 1)
        os.close(reading)

    held = endpoint.stub.WriteSegment.future(requests(), timeout=60)
    try:
        yield held
    finally:
        held.cancel()
        os.write(writing, b"x")
        os.close(writing)


def test_more_calls_than_admitted_are_refused(tmp_path: Path) -> None:
    """As Overloaded, so that clients try again; other kinds of calls, and health, are answered all the same."""
    with running(tmp_path, over_grpc=True, max_transfers=1, max_waiting=0) as endpoint:
        client = FakeClient(endpoint).create()
        with _stalled(endpoint, client):
            with pytest.raises(Overloaded, match="this server serves 1 at the same time"):
                while True:  # until the held call has reached the server
                    client.write(client.segment())
            assert client.describe().version == 1
            health = health_pb2_grpc.HealthStub(endpoint._channel).Check(health_pb2.HealthCheckRequest(), timeout=60)
            assert health.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize("limits", [{"idle_s": 0.05}, {"max_call_s": 1.0}])
def test_a_call_over_its_time_loses_its_place(tmp_path: Path, limits: dict[str, float]) -> None:
    with running(tmp_path, over_grpc=True, max_transfers=1, max_waiting=0, **limits) as endpoint:
        client = FakeClient(endpoint).create()
        with _stalled(endpoint, client) as held:
            with pytest.raises(grpc.RpcError) as caught:
                held.result()
            assert caught.value.code() is grpc.StatusCode.CANCELLED
            assert isinstance(error_from_rpc(caught.value), Unavailable)
            while True:  # until the server's side of it has ended, too
                with contextlib.suppress(Unavailable):
                    assert not client.write(client.segment()).existed
                    break


class _Context:
    """What an adapter asks of a call."""

    def __init__(self) -> None:
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True

    def is_active(self) -> bool:
        return not self.cancelled

    def auth_context(self) -> dict[str, list[bytes]]:
        return {}

    def invocation_metadata(self) -> None: ...

    def set_trailing_metadata(self, _: object) -> None: ...

    def abort(self, code: grpc.StatusCode, message: str) -> None:
        raise RuntimeError(f"{code.name}: {message}")


def test_only_waits_for_the_client_are_limited(tmp_path: Path) -> None:
    """Also where it takes no answers; but not while the server works, however long."""
    now = 0.0
    watch = CallWatch(30, 100, clock_s=lambda: now)
    with running(tmp_path, over_grpc=False) as endpoint:
        client = FakeClient(endpoint).create()
        segment = client.segment()
        client.write(segment)
        adapter = Adapter(endpoint.service, watch)
        request = pb.ReadSegmentPartRequest(context=client.context, segment_id=segment.id, kind=pb.PART_KIND_HINT)
        context = _Context()
        responses = adapter.handlers["ReadSegmentPart"].stream_stream(iter([request]), context)
        now += 31  # nothing has been asked for yet
        assert next(responses).chunk
        watch.look()
        assert not context.cancelled
        now += 29
        watch.look()
        assert not context.cancelled
        now += 1
        watch.look()
        assert context.cancelled
        assert list(responses) == []
        context = _Context()
        with watch.calling(context.cancel):
            now += 99
            watch.look()
            assert not context.cancelled
            now += 1
            watch.look()
        assert context.cancelled
    assert list(watch.received(iter([1, 2]), context.cancel)) == [1, 2]
    assert not watch._limits
    watch.close()


def test_channel_options_are_plain() -> None:
    assert dict(wire.CHANNEL_OPTIONS)["grpc.max_receive_message_length"] > wire.MAX_MANIFEST_BYTES + (2 << 20)
