"""`hesearch protect` as a shell user meets it: keys, files of texts there and back, errors that change nothing."""

from __future__ import annotations

import json
import re
import stat
from pathlib import Path
from typing import Any

import pytest

from he_client import AlreadyExists
from he_client.cli import main
from he_client.commands.text_files import TEXT, text_file
from he_client.protect.text import PseudonymKey, Pseudonyms

NOTES = (
    "id,mrn,note,ward\n"
    '1,12345678,"Anna Meyer, MRN 12345678, anna@ward.local",Anna Meyer\n'
    '2, AB-77001 ,"seen by ANNA MEYER on 2020-01-02\nmore, ""quoted""",\n'
    "3,,nothing,x\n"
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pass").write_text("secret words\n")
    (tmp_path / "vault-pass").write_text("other words\n")
    (tmp_path / "names").write_text("Anna Meyer\nBen O'Neil\n")
    (tmp_path / "notes.csv").write_text(NOTES)
    assert _run("keygen", "p.key", "--of", "pseudonyms", "--passphrase-file", "pass") == 0
    assert _run("keygen", "v.key", "--of", "vault", "--passphrase-file", "vault-pass") == 0
    return tmp_path


def _run(*arguments: str) -> int:
    return main(["protect", *arguments])


PSEUDONYMS = ["--pseudonymise", "MRN", "--key", "p.key", "--passphrase-file", "pass"]
VAULT = ["--vault", "names.vault", "--vault-key", "v.key", "--vault-passphrase-file", "vault-pass"]
TOKENS = ["--names", "names", "--tokenise", "PERSON", *VAULT]


def test_a_table_there_and_back(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    options = ["--column", "note", "--ids", "mrn=MRN", *PSEUDONYMS, *TOKENS, "--json"]
    assert _run("text", "notes.csv", "safe.csv", *options) == 0
    assert json.loads(capsys.readouterr().out) == {
        "texts": 6, "replaced": {"DATE_TIME": 1, "EMAIL_ADDRESS": 1, "MRN": 3, "PERSON": 2},
    }  # fmt: skip
    of = Pseudonyms(PseudonymKey.load("p.key", "secret words"), "MRN").of
    safe = (folder / "safe.csv").read_text()
    first, second = re.findall(r"\[PERSON:[a-z]{16}\]", safe)
    assert safe == (
        "id,mrn,note,ward\n"
        f'1,[MRN#{of("12345678")}],"{first}, MRN [MRN#{of("12345678")}], [EMAIL_ADDRESS]",Anna Meyer\n'
        f'2, [MRN#{of("AB-77001")}] ,"seen by {second} on [DATE_TIME]\nmore, ""quoted""",\n'
        "3,,nothing,x\n"
    )
    assert _run("reveal", "safe.csv", "again.csv", *VAULT) == 0
    assert "put 2 values back" in capsys.readouterr().out
    assert (folder / "again.csv").read_text() == safe.replace(first, "Anna Meyer").replace(second, "ANNA MEYER")
    assert all(stat.S_IMODE((folder / name).stat().st_mode) == 0o600 for name in ("safe.csv", "p.key", "names.vault"))


def test_lines_and_what_is_kept(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "notes.txt").write_text("room R-17 of Anna Meyer\n\nsee https://example.org/a, 10.0.0.7\u2028x\r\nlast")
    options = ["--pattern", r"ROOM=R-(\d+)", "--keep", "URL", "--names", "names"]
    assert _run("text", "notes.txt", "safe.txt", *options) == 0
    expected = "room R-[ROOM] of [PERSON]\n\nsee https://example.org/a, [IP_ADDRESS]\u2028x\r\nlast\n"
    assert (folder / "safe.txt").read_bytes().decode() == expected
    assert "not looked for" not in capsys.readouterr().out
    assert _run("text", "names", "safe-2.txt") == 0
    assert "replaced nothing; names of people were not looked for" in capsys.readouterr().out


def test_json_lines(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows: list[dict[str, Any]] = [{"n": 1, "t": "MRN 1234567 Müller", "o": "MRN 1234567 \ud800"}, {"t": None}]
    (folder / "notes.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert _run("text", "notes.jsonl", "safe.jsonl", "--column", "t") == 0
    safe = [json.loads(line) for line in (folder / "safe.jsonl").read_text().splitlines()]
    assert safe == [rows[0] | {"t": "MRN [MRN] Müller"}, {"t": None}]
    capsys.readouterr()
    theirs = "[PERSON:bbbbbbbbbbbbbbbb]"
    (folder / "other.jsonl").write_text(json.dumps({"deep": [theirs], "t": theirs}))
    assert _run("text", "names", "safe.txt", *TOKENS) == 0
    assert _run("reveal", "other.jsonl", "again.jsonl", *VAULT) == 0
    assert "put 0 values back; 1 token of other vaults stayed" in capsys.readouterr().out


def test_a_vault_goes_on(folder: Path) -> None:
    for name in ("one.txt", "two.txt"):
        assert _run("text", "names", name, *TOKENS) == 0
    assert (folder / "one.txt").read_text() == (folder / "two.txt").read_text()


@pytest.mark.parametrize(
    ("code", "words", "arguments"),
    [
        (2, "name those to protect with --column", ["text", "notes.csv", "new"]),
        (2, "line 2: no column 'nope'", ["text", "notes.csv", "new", "--column", "nope"]),
        (2, "got a column twice", ["text", "notes.csv", "new", "--column", "mrn", "--ids", "mrn=MRN"]),
        (2, "has no columns", ["text", "names", "new", "--column", "note"]),
        (2, "expected COLUMN=ENTITY", ["text", "notes.csv", "new", "--ids", "mrn"]),
        (2, "expected ENTITY=REGEX", ["text", "names", "new", "--pattern", "=x"]),
        (2, "pattern: got '('", ["text", "names", "new", "--pattern", "A=("]),
        (2, "patterns find no names", ["text", "names", "new", "--tokenise", "PERSON", *VAULT]),
        (2, "expected one of CREDIT_CARD", ["text", "names", "new", "--keep", "NONE"]),
        (2, "got an entity twice", ["text", "names", "new", "--keep", "MRN", *PSEUDONYMS]),
        (2, "needs --key", ["text", "names", "new", "--pseudonymise", "MRN"]),
        (2, "needs --vault", ["text", "names", "new", "--names", "names", "--tokenise", "PERSON"]),
        (2, "hesearch vault key", ["reveal", "names", "new", "--vault", "v", "--vault-key", "p.key",
                                   "--vault-passphrase-file", "pass"]),
        (3, "vault names.vault", ["reveal", "names", "new", *VAULT]),
        (3, "no.txt", ["text", "no.txt", "new"]),
        (3, "no folder", ["text", "names", "no folder/new"]),
        (4, "never overwritten", ["text", "names", "pass"]),
        (4, "never overwritten", ["keygen", "p.key", "--of", "vault", "--passphrase-file", "pass"]),
        (5, "wrong passphrase", ["text", "names", "new", "--pseudonymise", "MRN", "--key", "p.key",
                                 "--passphrase-file", "vault-pass"]),
        (7, "not installed", ["text", "names", "new", "--model", "no_such_model"]),
    ],
)  # fmt: skip
def test_errors_change_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str], code: int, words: str, arguments: list[str]
) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert _run(*arguments) == code
    printed = capsys.readouterr()
    assert words in printed.err and "12345678" not in printed.err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", b"", "header"),
        ("a.csv", b"t,t\nx,y\n", "every column once"),
        ("a.csv", b"t,u\nx\n", "line 2: got 1 cells, expected 2"),
        ("a.csv", b't,u\n"x"y,z\n', "line 2: not CSV"),
        ("a.csv", b't\n"MRN 1234567', "not CSV"),
        ("a.csv", b"t\nx\n\xff\n", "not UTF-8"),
        ("a.jsonl", b'{"t": "x"}\n{"t": 7}\n', "line 2: column 't': got int"),
        ("a.jsonl", b'{"t": "x"}\n\n', "line 2: not JSON"),
        ("a.jsonl", b'["t"]', "line 1: expected a JSON object"),
        ("a.jsonl", b'{"u": "x"}', "line 1: no column 't'"),
        ("a.jsonl", b'{"t": "\\ud800"}', "line 1: not UTF-8"),
        ("a.jsonl", b"[" * 100_000, "line 1: not JSON"),
    ],
)
def test_files_that_are_none(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes, words: str
) -> None:
    (folder / name).write_bytes(content)
    assert _run("text", name, "new", "--column", "t") == 2
    assert words in (printed := capsys.readouterr().err) and "1234567" not in printed
    assert not (folder / "new").exists()


def test_a_file_that_comes_meanwhile_stays(tmp_path: Path) -> None:
    source, target = tmp_path / "notes.txt", tmp_path / "safe.txt"
    source.write_text("a note\n")
    with pytest.raises(AlreadyExists), text_file(source, target, "protect") as file:
        file.write(list(file.rows([TEXT])))
        target.write_text("somebody else's")
    assert target.read_text() == "somebody else's"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "safe.txt"]
