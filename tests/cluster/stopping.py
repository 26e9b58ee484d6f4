"""A server whose answers Ray computes ends as any other: no stack in its log, as if it had crashed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster_fixture import Nodes

_ENDS_S = 60


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_is_told_to_stop(tmp_path: Path, number: signal.Signals) -> None:
    flags = ["--data", str(tmp_path / "data"), "--listen", "127.0.0.1:0", "--insecure", "--threads", "1"]
    with Nodes(1) as nodes, (tmp_path / "log").open("wb") as log:
        command = [sys.executable, "-m", "he_server", *flags, "--cluster", nodes.address]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log) as server:
            assert server.stdout is not None and server.stdout.readline().startswith(b"listening on ")
            os.kill(server.pid, number)
            assert server.wait(_ENDS_S) == 0
    said = (tmp_path / "log").read_text()
    assert number.name not in said and "PC: @" not in said
