"""Ray's head is lost: searches go on for a while, the front end ends, and with a new head everything is there."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.servers import process
from he_client import Client, CollectionKey
from he_engine.errors import Unavailable
from tests.cluster_fixture import Nodes
from tests.conftest import unit_rows

_PATIENCE_S = 8  #: of Ray's processes with a head that is away
_ENDS_S = 90


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", str(_PATIENCE_S))


def _serve(folder: Path, nodes: Nodes) -> tuple[str, ...]:
    flags = ("--data", str(folder), "--listen", "127.0.0.1:0", "--insecure", "--threads", "1")
    return ("he_server", *flags, "--cluster", nodes.address, "--cluster-wait-s", "300")


def _ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def test_the_head_is_lost(tmp_path: Path) -> None:
    key, rows = CollectionKey.generate(), unit_rows(np.random.default_rng(1), 2000, 64)
    with Nodes(1) as nodes, process(*_serve(tmp_path, nodes), log=tmp_path / "log") as (address, pid):
        with Client(address, insecure=True) as client:
            notes = client.create_collection("notes", dim=64, key=key)
            notes.insert(range(2000), rows)
            before = notes.search(rows[7], k=5)
            nodes.lose_head()
            assert notes.search(rows[7], k=5) == before
            notes.insert([2000], rows[7:8])  # acknowledged without a head
        until_s = time.monotonic() + _ENDS_S
        while not _ended(pid):
            assert time.monotonic() < until_s, "the front end goes on without a head"
            time.sleep(0.1)
        with Client(address, insecure=True) as client, pytest.raises(Unavailable):
            client.describe("notes")
    with (
        Nodes(1) as nodes,
        process(*_serve(tmp_path, nodes), log=tmp_path / "log") as (address, _),
        Client(address, insecure=True) as client,
    ):
        notes = client.open_collection("notes", key=key)
        assert {hit.id for hit in notes.search(rows[7], k=2)} == {7, 2000}
