"""Vectors, ids and payloads from the files people have: .npy, .npz, .csv, .parquet, and lines of text."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from he_client.results import RowId
from he_engine.errors import InvalidInput, MissingExtra, NotFound


@dataclass(frozen=True, slots=True)
class Table:
    """What one file holds; None where it does not say."""

    vectors: NDArray[Any]
    ids: list[RowId] | None
    payloads: list[str | None] | None


def read_table(path: Path) -> Table:
    """Rows from a file, by its ending.

    .npy: an array (n, d). .npz: `vectors`, optional `ids` and `payloads`. .csv: a header line; a column `id`, a
    column `payload`, and either one column `vector` ("0.1 0.2 …", commas and brackets allowed) or all other columns
    as coordinates.
    .parquet: columns `vector` (lists), optional `id` and `payload`. Raises NotFound, InvalidInput, MissingExtra.
    """
    readers = {".npy": _npy, ".npz": _npz, ".csv": _csv, ".parquet": _parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise InvalidInput(f"{path}: got the ending {path.suffix!r}, expected one of {', '.join(readers)}")
    if not path.is_file():
        raise NotFound(f"{path}: no such file")
    try:
        return reader(path)
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        if isinstance(error, InvalidInput):
            raise
        raise InvalidInput(f"{path}: not a readable {path.suffix} file of rows ({type(error).__name__})") from None


def read_lines(path: Path) -> list[str]:
    """Lines without their ends. Raises NotFound, InvalidInput."""
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise NotFound(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InvalidInput(f"{path}: not UTF-8 text") from None


def parse_ids(texts: list[str]) -> list[RowId]:
    """Each one by itself: an integer where it is written as Python writes one ("17", "-3"), else a text ("017")."""
    return [int(t) if _INTEGER.fullmatch(t) else t for t in texts]


_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,18}")


def _npy(path: Path) -> Table:
    return Table(np.load(path, allow_pickle=False), None, None)


def _npz(path: Path) -> Table:
    with np.load(path, allow_pickle=False) as archive:
        ids = archive["ids"].tolist() if "ids" in archive else None
        payloads = archive["payloads"].tolist() if "payloads" in archive else None
        return Table(archive["vectors"], ids, payloads)


def _csv(path: Path) -> Table:
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if any(_is_number(c) for c in reader.fieldnames or []):
            raise InvalidInput(f"{path}: got no header line, expected one that names the columns")
        columns = [c for c in reader.fieldnames or [] if c not in ("id", "payload", "vector")]
        rows = list(reader)
    if rows and "vector" in rows[0]:
        vectors = [[float(x) for x in row["vector"].strip("[] ").replace(",", " ").split()] for row in rows]
    else:
        vectors = [[float(row[c]) for c in columns] for row in rows]
    ids = parse_ids([row["id"] for row in rows]) if rows and "id" in rows[0] else None
    payloads: list[str | None] | None = [row["payload"] for row in rows] if rows and "payload" in rows[0] else None
    return Table(np.array(vectors, np.float64), ids, payloads)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _parquet(path: Path) -> Table:
    try:
        from pyarrow import parquet
    except ImportError:
        raise MissingExtra(f"{path}: reading Parquet needs pyarrow: pip install pyarrow") from None
    table = parquet.read_table(path)
    vectors = np.array(table["vector"].to_pylist(), np.float64)
    ids = table["id"].to_pylist() if "id" in table.column_names else None
    payloads = table["payload"].to_pylist() if "payload" in table.column_names else None
    return Table(vectors, ids, payloads)
