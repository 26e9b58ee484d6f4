"""A flipped bit in any file is noticed by whoever reads it, or changes nothing that is read: tests/fuzz/bitflips.py."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from he_engine.errors import HesearchError, TamperedDataError
from he_server.operate import fsck
from he_server.storage.catalogue import Catalogue
from tests.fuzz.bitflips import Files, Kind, flip
from tests.fuzz.messages import Server

RUNS, SEED = 40, 1
#: Every bit of these files counts.
WHOLE = {"segment file", "sealed segment file", "archive", "client cache"}
WHOLE |= {f"{prefix}backup, {name}" for prefix in ("", "sealed ") for name in ("catalogue.sqlite", "segment file")}


@pytest.fixture(scope="module")
def files() -> Iterator[Files]:
    with Files() as made:
        yield made


def test_flipped_bits_are_detected(files: Files) -> None:
    for kind in files.kinds:
        line = flip(kind, RUNS, SEED)
        assert not line["failures"], line
        assert line["detected"] + line["no_effect"] == RUNS
        assert line["no_effect"] == 0 or kind.name not in WHOLE, line
        assert line["detected"] > RUNS / 2 or "catalogue" not in kind.name, "most of its pages are in use"


def test_a_reader_that_does_not_look_is_noticed() -> None:
    line = flip(Kind(name="unchecked", data=b"content", read=lambda data: data), RUNS, SEED)
    assert (line["failures"], line["failed"][0]["what"]) == (RUNS, "other content")
    line = flip(Kind(name="broken", data=b"\0", read=lambda data: [0][data[0]]), RUNS, SEED)
    assert (line["failures"], line["failed"][0]["what"]) == (RUNS, "IndexError")


# ---- what flips once found -----------------------------------------------------------------------------------
@pytest.fixture
def catalogue(tmp_path: Path) -> Path:
    Server(tmp_path / "data").service.close()
    return tmp_path / "data/catalogue.sqlite"


def test_a_schema_that_is_no_text(catalogue: Path) -> None:
    """SQLite quotes it in its message, which is then no UTF-8."""
    sound = catalogue.read_bytes()
    start = sound.index(b"CREATE TABLE segments")
    for at in range(start, start + 21):
        catalogue.write_bytes(sound[:at] + bytes([sound[at] ^ 0x80]) + sound[at + 1 :])
        with pytest.raises(TamperedDataError):
            Catalogue(catalogue).close()
        _require_fsck_to_tell(catalogue.parent)


def _require_fsck_to_tell(root: Path) -> None:
    with contextlib.suppress(HesearchError):
        assert not fsck.check(root).clean


@pytest.mark.parametrize("cast", ["TEXT", "INTEGER"])
@pytest.mark.parametrize(
    ("table", "column"),
    [
        ("folder", "wrapped_key"),
        ("collections", "state"),
        ("collections", "manifest"),
        ("collections", "collection_id"),
        ("segments", "cell"),
        ("segments", "segment_id"),
        ("segments", "collection_id"),
    ],
)
def test_columns_of_another_type(catalogue: Path, table: str, column: str, cast: str) -> None:
    """One bit of a row says whether a value is text or bytes."""
    with contextlib.closing(sqlite3.connect(catalogue)) as db, db:
        if column == "wrapped_key":
            db.execute(f"UPDATE folder SET wrapped_key = CAST('12' AS {cast})")
        else:
            db.execute(f"UPDATE {table} SET {column} = CAST({column} AS {cast})")
    with pytest.raises(TamperedDataError):
        Catalogue(catalogue).close()
    _require_fsck_to_tell(catalogue.parent)
