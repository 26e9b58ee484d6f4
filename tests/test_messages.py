"""What somebody is told who did something wrong, or whose server is in trouble: what it was, and what to do."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from he_client import (
    Client,
    CollectionKey,
    DamagedDataError,
    DuplicateIdError,
    LimitExceeded,
    NotFound,
    TamperedDataError,
)
from he_client.advice import advised
from he_client.cli import main
from he_engine.errors import HesearchError
from he_proto.v1 import hesearch_pb2 as pb
from he_server.config import ServerConfig
from he_server.rpc.grpc_server import GrpcServer
from he_server.service import Service
from tests.conftest import unit_rows
from tests.lying_fixture import forget_parts, lying_client
from tests.sdk_fixture import grpc_address
from tests.test_repair import DIM, QUERY, ROWS, damage, fill


@pytest.fixture
def key() -> CollectionKey:
    return CollectionKey.generate()


def _ran(*arguments: str, stdin: int = subprocess.DEVNULL, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if name != "GRPC_VERBOSITY"}
    command = [sys.executable, "-m", "he_client.cli", *arguments]
    return subprocess.run(
        command, stdin=stdin, capture_output=True, text=True, timeout=60, check=False, env=clean | environment
    )


# ---- damage --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["grpc", "folder"])
def test_damage_that_the_server_reports(kind: str, key: CollectionKey, tmp_path: Path) -> None:
    """It names the segment and both ways out, and is not what a client found out against the server's word."""
    with grpc_address(tmp_path) as address:
        client = Client(address, insecure=True) if kind == "grpc" else Client(":memory:")
        folder = tmp_path if kind == "grpc" else client._remote.transport._service.config.data  # type: ignore[attr-defined]
        with client:
            second = fill(client, key)[1]
            damage(folder, second, pb.PART_KIND_INDEX)
            for act in (
                lambda: client.export_collection("c", tmp_path / "a"),
                lambda: client.open_collection("c", key=key).search(QUERY),
                lambda: client.open_collection("c", key=key).search(QUERY),
            ):
                with pytest.raises(
                    DamagedDataError, match=r"fsck DATA --repair --from BACKUP.*hesearch repair"
                ) as raised:
                    act()
                assert str(raised.value).count(second.hex()[:16]) == 1


def test_damage_has_an_exit_code_of_its_own(
    key: CollectionKey, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = ["--server", str(tmp_path / "data")]
    with Client(tmp_path / "data") as client:
        damage(tmp_path / "data", fill(client, key)[1], pb.PART_KIND_INDEX)
    assert main(["export", "c", str(tmp_path / "a"), *server]) == 9
    assert "hesearch repair" in capsys.readouterr().err


def test_what_the_client_finds_is_not_called_damage(key: CollectionKey) -> None:
    def flipped(responses: list[Any]) -> list[Any]:
        responses[0].chunk = bytes([responses[0].chunk[0] ^ 1]) + responses[0].chunk[1:]
        return responses

    with lying_client() as (client, transport):
        fill(client, key)
        forget_parts(client)
        transport.lies["ReadSegmentPart"] = flipped
        with pytest.raises(TamperedDataError) as raised:
            client.open_collection("c", key=key)
        assert not isinstance(raised.value, DamagedDataError)


def test_an_archive_that_is_cut_off(key: CollectionKey, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = tmp_path / "a"
    with Client(tmp_path / "data") as client:
        fill(client, key)
        client.export_collection("c", archive)
    archive.write_bytes(archive.read_bytes()[:-1000])
    assert main(["import", str(archive), "--server", f"{tmp_path}/data"]) == 9
    assert "copy or export it again" in capsys.readouterr().err


def test_files_that_are_something_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text").write_text("passphrase\n" * 10)
    file = str(tmp_path / "text")
    server = ["--server", f"{tmp_path}/"]
    assert main(["import", file, *server]) == 2
    assert "not a hesearch archive" in capsys.readouterr().err
    assert main(["compact", "c", "--key", file, "--passphrase-file", file, *server]) == 2
    assert "not a hesearch key file" in capsys.readouterr().err


# ---- limits --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("embedded", [False, True])
def test_a_limit_says_what_helps(embedded: bool, key: CollectionKey, tmp_path: Path) -> None:
    config = ServerConfig(
        data=tmp_path, listen="127.0.0.1:0", insecure=True, max_segment_bytes=1_200_000, max_segments=1
    )
    with Service(config) as service:
        server = GrpcServer(service)
        with Client(":memory:" if embedded else server.address, insecure=not embedded) as client:
            if embedded:
                client._remote.transport._service.close()  # type: ignore[attr-defined]
                client._remote.transport._service = service  # type: ignore[attr-defined]
            made = client.create_collection("c", dim=DIM, key=key)
            with pytest.raises(LimitExceeded, match=r"; send fewer rows at a time, or ask the server's operator$"):
                made.insert(range(9000), unit_rows(np.random.default_rng(0), 9000, DIM))
            made.insert(range(5), ROWS[:5])
            with pytest.raises(LimitExceeded, match=r"; compact the collection, or ask the server's operator$"):
                made.insert(range(5, 9), ROWS[5:9])
        server.stop(0)


def test_other_errors_stay_as_they_are() -> None:
    error = HesearchError("x")
    assert advised("WriteSegment", error) is error
    assert str(advised("CreateCollection", LimitExceeded("x"))) == "x; ask the server's operator"


# ---- ids -----------------------------------------------------------------------------------------------------
def test_ids_are_found_by_position_and_never_quoted(key: CollectionKey) -> None:
    with Client(":memory:") as client:
        made = client.create_collection("c", dim=DIM, key=key)
        made.insert(["anna", "bob"], ROWS[:2])
        with pytest.raises(DuplicateIdError, match=r"1 of 2 is in .* already, at position 1 .*\(upsert") as raised:
            made.insert(["carl", "anna"], ROWS[:2])
        assert "anna" not in str(raised.value)
        with pytest.raises(DuplicateIdError, match=r"2 of 3 are in .* the first at position 0 "):
            made.insert(["bob", "anna", "carl"], ROWS[:3])
        with pytest.raises(NotFound, match=r"1 of 3 is not in .*, at position 2 .*nothing was deleted"):
            made.delete(["anna", "bob", "carl"])
        assert made.count() == 2


# ---- servers and terminals -----------------------------------------------------------------------------------
def test_plaintext_servers_and_silence(tmp_path: Path) -> None:
    with grpc_address(tmp_path) as address:
        ran = _ran("info", "--server", address)
        assert ran.returncode == 8
        (line,) = ran.stderr.splitlines()
        assert "--ca" in line and "--insecure (loopback only)" in line
        assert "Handshake failed" in _ran("health", address, "--timeout", "1", GRPC_VERBOSITY="INFO").stderr


@pytest.mark.parametrize("arguments", [["info", "--server", "127.0.0.1"], ["create", "c", "--dim", "4"], ["health"]])
def test_a_forgotten_port(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    CollectionKey.generate().save(tmp_path / "k", "p")
    (tmp_path / "p").write_text("p")
    if arguments[0] == "create":
        arguments = [*arguments, "--key", "k", "--passphrase-file", "p", "--server", "127.0.0.1"]
    if arguments == ["health"]:
        with pytest.raises(SystemExit):
            main([*arguments, "127.0.0.1"])
    else:
        assert main(arguments) in (2, 3)
    assert "host:port" in capsys.readouterr().err


def test_which_passphrase_is_missing(tmp_path: Path) -> None:
    (tmp_path / "p").write_text("p")
    for name in ("one", "two"):
        CollectionKey.generate().save(tmp_path / name, "p")
    keys = ["--key", str(tmp_path / "one"), "--new-key", str(tmp_path / "two"), "--server", f"{tmp_path}/"]
    ran = _ran("reseal", "c", *keys, "--passphrase-file", str(tmp_path / "p"))
    assert ran.returncode == 2
    assert str(tmp_path / "two") in ran.stderr and "give --new-passphrase-file" in ran.stderr
    assert "give --passphrase-file" in _ran("reseal", "c", *keys).stderr


@pytest.mark.parametrize(("answer", "code", "left"), [("y\n", 0, 0), ("n\n", 2, 1), ("\n", 2, 1)])
def test_drop_asks(answer: str, code: int, left: int, key: CollectionKey, tmp_path: Path) -> None:
    with Client(tmp_path / "data") as client:
        fill(client, key)
    terminal, end = pty.openpty()
    try:
        os.write(terminal, answer.encode())
        ran = _ran("drop", "c", "--server", f"{tmp_path}/data", stdin=end)
    finally:
        os.close(terminal)
        os.close(end)
    assert ran.returncode == code
    assert "drop c with all its rows [y/N]" in ran.stderr
    with Client(tmp_path / "data") as client:
        assert len(client.list_collections()) == left


def test_one_is_not_many(key: CollectionKey, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key.save(tmp_path / "k", "p")
    (tmp_path / "p").write_text("p")
    np.savez(tmp_path / "one.npz", vectors=ROWS[:1], ids=np.array([7]))
    access = ["--key", str(tmp_path / "k"), "--passphrase-file", str(tmp_path / "p"), "--server", f"{tmp_path}/data"]
    main(["create", "c", "--dim", str(DIM), *access])
    capsys.readouterr()
    main(["insert", "c", str(tmp_path / "one.npz"), *access])
    main(["upsert", "c", str(tmp_path / "one.npz"), *access])
    main(["compact", "c", *access])
    main(["export", "c", str(tmp_path / "a"), *access[4:]])
    out = capsys.readouterr().out
    assert out.startswith("inserted 1 row; 1 in all\nupserted 1 row; 1 in all\n1 segment became 1: 0 rows ")
    assert ", 1 segment, " in out
