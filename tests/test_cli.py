"""The command line as a shell user meets it: a server process, then every verb, text and JSON, and exit codes."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from he_client import Client, InvalidInput
from he_client.cli import build_parser, main
from he_client.files import read_table
from tests.conftest import unit_rows

DIM = 8


@pytest.fixture
def server(tmp_path: Path) -> Iterator[list[str]]:
    """Arguments that reach a `hesearch serve` process."""
    command = [sys.executable, "-m", "he_client.cli", "serve", "--data", str(tmp_path / "data")]
    process = subprocess.Popen([*command, "--listen", "127.0.0.1:0", "--insecure"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("listening on 127.0.0.1:")
    yield ["--server", line.split()[-1], "--insecure"]
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    assert process.stdout.read() == "", "one line, and no more"


@pytest.fixture
def files(tmp_path: Path, rng: np.random.Generator) -> dict[str, Any]:
    rows = unit_rows(rng, 12, DIM)
    np.save(tmp_path / "rows.npy", rows)
    np.save(tmp_path / "query.npy", rows[3])
    (tmp_path / "ids.txt").write_text("\n".join(map(str, range(12))))
    (tmp_path / "texts.txt").write_text("\n".join(f"text {i}" for i in range(12)))
    (tmp_path / "pass").write_text("secret words\n")
    key = ["--key", str(tmp_path / "c.key"), "--passphrase-file", str(tmp_path / "pass")]
    return {"rows": rows, "key": key, "folder": tmp_path}


def _json(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> Any:
    code = main([*arguments, "--json"])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    return json.loads(printed.out)


def test_every_verb(server: list[str], files: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    folder, key, rows = files["folder"], files["key"], files["rows"]
    passphrase = key[2:]
    assert main(["keygen", str(folder / "c.key"), *passphrase]) == 0
    assert main(["keygen", str(folder / "c.key"), *passphrase]) == 4
    capsys.readouterr()
    made = _json(capsys, ["create", "c", "--dim", str(DIM), *key, *server])
    assert (made["name"], made["profile"], made["version"]) == ("c", "exact", 1)
    lists = ["--ids", str(folder / "ids.txt"), "--payloads", str(folder / "texts.txt")]
    assert _json(capsys, ["insert", "c", str(folder / "rows.npy"), *lists, *key, *server]) == {
        "inserted": 12,
        "count": 12,
    }
    ((best, *_),) = _json(capsys, ["search", "c", str(folder / "query.npy"), "-k", "2", *key, *server])["hits"]
    assert (best["id"], best["payload"]) == (3, "text 3")
    assert main(["search", "c", str(folder / "query.npy"), "-k", "1", *key, *server]) == 0
    assert "text 3" in capsys.readouterr().out
    assert _json(capsys, ["delete", "c", "3", "4", *key, *server]) == {"deleted": 2, "count": 10}
    (info,) = _json(capsys, ["info", *server])["collections"]
    assert (info["name"], info["version"], info["segments"]) == ("c", 3, 1)
    np.savez(folder / "more.npz", vectors=rows[3:5], ids=np.array(["a", "b"]), payloads=np.array(["x", "y"]))
    assert _json(capsys, ["insert", "c", str(folder / "more.npz"), *key, *server])["count"] == 12
    lines = ["id,payload,vector", *(f"{i},p{i},{' '.join(map(str, rows[0]))}" for i in (70, 71))]
    (folder / "more.csv").write_text("\n".join(lines))
    assert _json(capsys, ["insert", "c", str(folder / "more.csv"), *key, *server])["count"] == 14
    assert main(["drop", "c", *server]) == 2, "nobody can be asked"
    assert "give --yes" in capsys.readouterr().err
    assert main(["drop", "c", *server, "--yes"]) == 0
    capsys.readouterr()
    assert _json(capsys, ["info", *server]) == {"collections": []}


def test_exit_codes_and_messages(files: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, key = files["folder"], files["key"]
    here = ["--server", str(tmp_path / "embedded")]
    main(["keygen", str(folder / "c.key"), *key[2:]])
    main(["create", "c", "--dim", str(DIM), *key, *here])
    (folder / "wrong").write_text("other words\n")
    wrong = [*key[:2], "--passphrase-file", str(folder / "wrong")]
    rows = str(folder / "rows.npy")
    capsys.readouterr()
    for expected, arguments, said in (
        (3, ["search", "nope", rows, *key, *here], "nope"),
        (2, ["insert", "c", rows, *key, *here], "--ids"),
        (2, ["insert", "c", str(folder / "ids.txt"), *key, *here], ".txt"),
        (3, ["insert", "c", str(folder / "no.npy"), *key, *here], "no such file"),
        (5, ["search", "c", rows, *wrong, *here], "passphrase"),
        (4, ["create", "c", "--dim", "8", *key, *here], "c"),
        (8, ["info", "--server", "127.0.0.1:1", "--insecure"], ""),
    ):
        assert main(arguments) == expected
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.startswith("hesearch: ") and said in printed.err
        assert "Traceback" not in printed.err and "words" not in printed.err


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    """Each command's, and each verb's; and the parser takes every one."""
    parser, seen = build_parser(), 0
    for command, one in _parsers(parser, "hesearch"):
        _, _, examples = one.format_help().partition("\nexample")
        lines = [line for line in examples.replace("\\\n", " ").splitlines() if line.startswith("  hesearch ")]
        assert any(f"{line.strip()} ".startswith(f"{command} ") for line in lines), command
        for line in lines:
            words = shlex.split(re.split(r"  +\(| > ", line)[0].strip())[1:]
            if not any("…" in word for word in words):
                assert parser.parse_args(words), line
                seen += 1
    assert seen > 40
    assert not capsys.readouterr().err


def _parsers(parser: argparse.ArgumentParser, name: str) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    yield name, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for verb, one in action.choices.items():
                yield from _parsers(one, f"{name} {verb}")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("headless.csv", "0.1,0.2,0.3\n0.4,0.5,0.6\n", "header"),
        ("short.csv", "id,a,b\n1,0.1\n", "not a readable"),
        ("words.csv", "id,a,b\n1,x,y\n", "not a readable"),
        ("no.npz", "not a zip", "not a readable"),
    ],
)
def test_files_that_are_not_tables(tmp_path: Path, name: str, content: str, said: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InvalidInput, match=said):
        read_table(tmp_path / name)


def test_csv_with_brackets_and_mixed_ids(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('id,vector\n7,"[0.5, 0.5]"\n007,0.5 -0.5\n-3,"1,0"\n--3,0 1\n')
    table = read_table(tmp_path / "a.csv")
    assert table.ids == [7, "007", -3, "--3"], "an id is a number only where it is written as one"
    assert table.vectors.tolist() == [[0.5, 0.5], [0.5, -0.5], [1, 0], [0, 1]]


@pytest.mark.parametrize(
    "target", ["localhost", "127.0.0.1", "127.0.0.1:99999", "http://127.0.0.1:5005", ":other:", ""]
)
def test_targets_that_are_neither_address_nor_folder(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidInput, match="target"):
        Client(target)
    with pytest.raises(InvalidInput, match="insecure"):
        Client("folder/", insecure=True)
    assert list(tmp_path.iterdir()) == []


def test_commands_do_not_make_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--server", str(tmp_path / "typo")]) == 3
    assert "no such folder" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
