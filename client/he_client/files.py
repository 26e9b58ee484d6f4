"""Vectors, ids and payloads from the files people have: .npy, .npz, .csv, .parquet, and lines of text."""

from __future__ import annotations

import csv
import math
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format
from numpy.typing import NDArray

from he_client.results import RowId
from he_engine.errors import HesearchError, InvalidInput, MissingExtra, NotFound

MAX_CELL = 1 << 20  #: characters of a vector in one cell
MAX_RATIO = 1032  #: of an array in a .npz to the file: deflate cannot do better


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
    except HesearchError:
        raise
    except Exception as error:  # NumPy, zipfile, csv and Arrow have their own, MemoryError among them
        raise InvalidInput(f"{path}: not a readable {path.suffix} file of rows ({type(error).__name__})") from None


def read_lines(path: Path) -> list[str]:
    """Lines without their ends, which are line feeds: no other separator ends one. Raises NotFound, InvalidInput."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise NotFound(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InvalidInput(f"{path}: not UTF-8 text") from None
    return text.removesuffix("\n").split("\n") if text else []


def parse_ids(texts: list[str]) -> list[RowId]:
    """Each one by itself: an integer where it is written as Python writes one ("17", "-3"), else a text ("017")."""
    return [int(t) if _INTEGER.fullmatch(t) else t for t in texts]


_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,18}")


def _npy(path: Path) -> Table:
    with path.open("rb") as file:
        return Table(_array(file, path.stat().st_size), None, None)


def _npz(path: Path) -> Table:
    with zipfile.ZipFile(path) as archive:
        arrays: dict[str, NDArray[Any]] = {}
        for name in ("vectors", "ids", "payloads"):
            if f"{name}.npy" in archive.namelist():
                member = archive.getinfo(f"{name}.npy")
                with archive.open(member) as file:
                    arrays[name] = _array(file, min(member.file_size, MAX_RATIO * path.stat().st_size))
    ids, payloads = (arrays[name].tolist() if name in arrays else None for name in ("ids", "payloads"))
    return Table(arrays["vectors"], ids, payloads)


def _array(file: IO[bytes], size_bytes: int) -> NDArray[Any]:
    """An array in .npy format. NumPy makes room for what the header says, so that is compared with the size first."""
    version = format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError
    shape, _, dtype = (format.read_array_header_1_0 if version == (1, 0) else format.read_array_header_2_0)(file)
    start = file.tell()
    if dtype.hasobject or min(shape, default=0) < 0 or start + math.prod(shape) * max(1, dtype.itemsize) > size_bytes:
        raise ValueError
    file.seek(0)
    return format.read_array(file, allow_pickle=False)


def _csv(path: Path) -> Table:
    csv.field_size_limit(MAX_CELL)  # of the process; as it comes, it is too short for 16384 numbers
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        columns = next(reader, [])
        if any(_is_number(c) for c in columns):
            raise InvalidInput(f"{path}: got no header line, expected one that names the columns")
        if len(set(columns)) != len(columns):
            raise InvalidInput(f"{path}: got a column twice, expected each once")
        at = {column: position for position, column in enumerate(columns)}
        coordinates = [at[column] for column in columns if column not in ("id", "payload")]
        vectors: list[NDArray[np.float64]] = []
        texts: list[str] = []
        payloads: list[str | None] = []
        for row in filter(None, reader):
            if len(row) != len(columns):
                got = f"line {reader.line_num} has {len(row)} cells, expected {len(columns)}"
                raise InvalidInput(f"{path}: not a readable .csv file of rows ({got})")
            if "vector" in at:
                cells = row[at["vector"]].strip("[] ").replace(",", " ").split()
            else:
                cells = [row[position] for position in coordinates]
            vectors.append(np.array([float(cell) for cell in cells], np.float64))
            if "id" in at:
                texts.append(row[at["id"]])
            if "payload" in at:
                payloads.append(row[at["payload"]])
    ids = parse_ids(texts) if "id" in at and vectors else None
    return Table(np.array(vectors, np.float64), ids, payloads if "payload" in at and vectors else None)


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
