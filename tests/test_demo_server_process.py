"""The demo's server process: it is ready when entered, gone when left, and a failed start says why."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from he_client import Client
from he_client.demo import server_process
from he_client.demo.server_process import ServerProcess
from he_engine.errors import Unavailable

READY = "import signal; print('listening on 127.0.0.1:1', flush=True); signal.pause()"
DEAF = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {READY}"
FAILING = "import sys; print('something else', flush=True); sys.exit('no room on the disk')"


def _running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _script(folder: Path, source: str) -> ServerProcess:
    server = ServerProcess(folder, threads=1)
    server.command = [sys.executable, "-c", source]
    return server


def test_the_real_server_answers_and_is_stopped(tmp_path: Path) -> None:
    pytest.importorskip("grpc_health", reason="needs the extra [server]")
    with ServerProcess(tmp_path, threads=1) as server:
        pid = server.pid
        assert _running(pid)
        assert server.address.startswith("127.0.0.1:")
        with Client(server.address, insecure=True) as client:
            assert client.list_collections() == []
    assert not _running(pid)


def test_the_command_line_holds_a_folder_a_port_and_nothing_else(tmp_path: Path) -> None:
    assert ServerProcess(tmp_path, threads=3).command[1:] == [
        "-m", "he_server", "--data", str(tmp_path / "data"),
        "--listen", "127.0.0.1:0", "--insecure", "--threads", "3",
    ]  # fmt: skip


def test_it_is_stopped_when_the_body_raises(tmp_path: Path) -> None:
    pid = 0
    with pytest.raises(ZeroDivisionError), _script(tmp_path, READY) as server:
        pid = server.pid
        raise ZeroDivisionError
    assert pid and not _running(pid)


def test_one_that_ignores_sigterm_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_process, "STOP_S", 0.01)
    with _script(tmp_path, DEAF) as server:
        pid = server.pid
    assert not _running(pid)


def test_one_that_ended_by_itself_can_be_left(tmp_path: Path) -> None:
    with _script(tmp_path, READY) as server:
        os.kill(server.pid, signal.SIGKILL)
    server.stop()
    with pytest.raises(Unavailable, match="not running"):
        _ = server.pid


def test_a_failed_start_shows_what_the_server_said(tmp_path: Path) -> None:
    with (
        pytest.raises(Unavailable, match=r"ended before it was ready(.|\n)*no room on the disk"),
        _script(tmp_path, FAILING),
    ):
        pass


def test_one_that_never_gets_ready_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_process, "START_S", 0.01)
    server = _script(tmp_path, "import signal; signal.pause()")
    with pytest.raises(Unavailable, match="was not ready"), server:
        pass
    with pytest.raises(Unavailable, match="not running"):
        _ = server.pid
