"""One config from a file and flags: what is printed can be fed back, and what is wrong is named."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tomllib
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from he_engine.errors import InvalidInput
from he_server import cli
from he_server.config import ServerConfig
from he_server.config_file import add_flags, make_config, read_toml, to_toml

ODD = ServerConfig(
    data=Path('a "folder"\\with\ttabs\x7fand ünïcode 🗝'),
    listen="[::1]:0",
    insecure=True,
    kek="exec:get-key --of 'me'",
    data_key_days=1e-9,
    wait_s=0,
    max_call_s=float("inf"),
    max_collection_bytes=1 << 62,
    log_level="debug",
)


def _flags(*arguments: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_flags(parser)
    return vars(parser.parse_args(arguments))


def _file(folder: Path, text: str) -> Path:
    (folder / "server.toml").write_text(text, encoding="utf-8")
    return folder / "server.toml"


@pytest.mark.parametrize("config", [ServerConfig(data=Path("data")), ODD])
def test_what_is_printed_can_be_fed_back(tmp_path: Path, config: ServerConfig) -> None:
    file = _file(tmp_path, to_toml(config))
    assert make_config(file, {}) == config
    assert list(tomllib.loads(to_toml(config))) == [one.name for one in fields(ServerConfig)]


@given(st.text(st.characters(codec="utf-8"), max_size=20))
def test_any_text_survives(text: str) -> None:
    config = replace(ODD, target=text)
    assert tomllib.loads(to_toml(config))["target"] == text


def test_every_field_is_documented_and_has_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    printed = to_toml(ODD).replace("\n# ", " ")
    with pytest.raises(SystemExit):
        _flags("--help")
    shown = " ".join(capsys.readouterr().out.split())
    for one in fields(ServerConfig):
        assert f" {one.metadata['doc']}\n{one.name} = " in printed
        assert f"--{one.name.replace('_', '-')}" in shown
        assert " ".join(one.metadata["doc"].split()[:3]) in shown


def test_flags_come_before_the_file(tmp_path: Path) -> None:
    file = _file(tmp_path, 'data = "there"\ninsecure = true\nthreads = 3\ngrace_s = 7\nmax_scans = 9\n')
    config = make_config(file, _flags("--threads", "5", "--grace", "0.5", "--no-insecure", "--listen", "[::1]:9"))
    assert asdict(config) == asdict(
        ServerConfig(data=Path("there"), threads=5, grace_s=0.5, listen="[::1]:9", max_scans=9)
    )
    assert make_config(file, _flags()).insecure
    assert make_config(file, _flags("--grace-s", "1")).grace_s == 1
    quiet = _file(tmp_path, 'data = "there"\nno_audit = true')
    assert make_config(quiet, _flags()).no_audit and not make_config(quiet, _flags("--audit")).no_audit
    assert make_config(_file(tmp_path, 'data = "there"'), _flags("--no-audit")).no_audit


def test_data_must_be_said(tmp_path: Path) -> None:
    for file in (None, _file(tmp_path, ""), _file(tmp_path, 'data = ""')):
        with pytest.raises(InvalidInput, match="data: got none, expected a folder"):
            make_config(file, {})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("thread = 1", r"got the key 'thread', expected 'threads'\?"),
        ("[zzz]\nthreads = 1", "got the key 'zzz', which is none of `hesearch serve"),
        ('threads = "2"', "threads: got '2', expected int"),
        ("threads = 2.0", "threads: got 2.0, expected int"),
        ("threads = true", "threads: got True, expected int"),
        ("wait_s = true", "wait_s: got True, expected float"),
        ("insecure = 1", "insecure: got 1, expected bool"),
        ("data = 1", "data: got 1, expected str"),
        ("listen = []", r"listen: got \[\], expected str"),
        ("threads =", "server.toml cannot be read as TOML: Invalid value"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason):
        read_toml(_file(tmp_path, text))


def test_a_file_that_is_no_text_or_not_there(tmp_path: Path) -> None:
    (tmp_path / "server.toml").write_bytes(b"\xff")
    with pytest.raises(InvalidInput, match="cannot be read as TOML: 'utf-8'"):
        read_toml(tmp_path / "server.toml")
    with pytest.raises(InvalidInput, match="cannot be read as TOML: No such file"):
        read_toml(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"wait_s": -1.0}, "wait_s: got -1.0, expected at least 0"),
        ({"wait_s": float("nan")}, "wait_s: got nan"),
        ({"idle_s": 0.0}, "idle_s: got 0.0, expected at least 0.01"),
        ({"log_format": "xml"}, "log_format: got 'xml', expected one of text, json"),
        ({"tls_cert": "a"}, "tls_cert, tls_key, tls_client_ca: got a part"),
        ({"tls_key": "a"}, "got a part"),
        ({"tls_client_ca": "a"}, "got a part"),
        ({"tls_cert": "a", "tls_key": "b"}, "tls_client_ca, token_issuer: got neither"),
        ({"tls_cert": "a", "tls_key": "b", "tls_client_ca": "c", "insecure": True}, "insecure: got it with tls_cert"),
        ({"token_issuer": "a"}, "token_issuer, token_audience: got one of them"),
        ({"token_audience": "a"}, "token_issuer, token_audience: got one of them"),
        ({"token_issuer": "a", "token_audience": "b"}, "token_issuer: got it without tls_cert"),
        ({"cluster": "ray://10.0.0.5:10001"}, "cluster: got 'ray://10.0.0.5:10001', expected auto, or host:port"),
        ({"cluster": "10.0.0.5"}, "cluster: got '10.0.0.5', expected auto, or host:port"),
        ({"cluster": ":6379"}, "cluster: got ':6379'"),
        ({"max_inflight_bytes": 1 << 20}, "max_inflight_bytes: got 1048576, expected at least max_query_bytes"),
        ({"max_message_bytes": 1 << 20}, "max_message_bytes: got 1048576, expected 2"),
        ({"max_message_bytes": 1 << 30}, "max_message_bytes: got 1073741824, expected 2"),
        ({"max_segments": 1_000_000}, "for max_manifest_bytes, max_segments"),
    ],
)
def test_values_that_make_no_sense(values: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason):
        ServerConfig(data=Path("data"), **values)


def test_smaller_messages_for_smaller_manifests() -> None:
    config = ServerConfig(data=Path("data"), max_manifest_bytes=1 << 20, max_segments=1000, max_message_bytes=2 << 20)
    assert config.max_message_bytes == 2 << 20


def _printed(*arguments: str) -> str:
    command = [sys.executable, "-m", "he_server", "--print-config", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_print_config(tmp_path: Path) -> None:
    first = _printed("--data", str(tmp_path / "data"), "--max-dim", "99")
    assert "max_dim = 99\n" in first
    assert _printed("--config", str(_file(tmp_path, first))) == first
    assert not (tmp_path / "data").exists()


def test_serve_names_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    arguments = parser.parse_args(["--config", str(_file(tmp_path, "nonsense = 1"))])
    assert cli.serve(arguments) == 1
    assert "hesearch serve: config: got the key 'nonsense'" in capsys.readouterr().err
