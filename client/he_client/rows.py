"""Row tables: which id each row of a segment has, and what else a client must know of it, sealed at rest. Ids and
payloads, checked and encoded; whole rows, decrypted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from he_client.results import Payload, RowId
from he_engine.errors import DimensionError, DuplicateIdError, InvalidInput, TamperedDataError
from he_proto.v1 import hesearch_pb2 as pb

MAX_ID_BYTES = 1024


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class RowTable:
    """One entry a row, in the order of the index."""

    ids: list[RowId]
    squares: NDArray[np.float64] | None  #: ‖x‖² of the rows as they were encoded (norm ≤ 1), under the l2 metric
    seed: bytes
    payload_salt: bytes
    payload_lengths: NDArray[np.uint64]  #: sealed bytes of each payload, 0: none; empty: no row has one

    def to_bytes(self) -> bytes:
        is_text = np.array([isinstance(i, str) for i in self.ids], bool)
        table = pb.RowTable(
            rows=len(self.ids),
            is_text=np.packbits(is_text, bitorder="little").tobytes() if is_text.any() else b"",
            numbers=[i for i in self.ids if isinstance(i, int)],
            texts=[i for i in self.ids if isinstance(i, str)],
            squares=b"" if self.squares is None else self.squares.astype("<f8").tobytes(),
            seed=self.seed,
            payload_salt=self.payload_salt,
            payload_lengths=self.payload_lengths.tolist(),
        )
        return table.SerializeToString()

    @classmethod
    def parse(cls, raw: bytes, rows: int) -> RowTable:
        """Raises TamperedDataError for a table that does not describe `rows` rows."""
        try:
            table = pb.RowTable.FromString(raw)
        except Exception:
            raise TamperedDataError("row table: not a message of this format") from None
        is_text = np.unpackbits(np.frombuffer(table.is_text, np.uint8), bitorder="little")[:rows]
        texts, numbers = iter(table.texts), iter(table.numbers)
        if is_text.size == 0:
            ids: list[RowId] = list(numbers)
        else:
            ids = [next(texts, "") if text else next(numbers, 0) for text in is_text]
        complete = (
            table.rows == rows
            and len(table.texts) + len(table.numbers) == rows == len(ids)
            and len(table.texts) == int(is_text.sum())
            and len(table.squares) in (0, 8 * rows)
            and len(table.payload_lengths) in (0, rows)
        )
        if not complete:
            raise TamperedDataError(f"row table: does not describe {rows} rows")
        return cls(
            ids=ids,
            squares=np.frombuffer(table.squares, "<f8") if table.squares else None,
            seed=table.seed,
            payload_salt=table.payload_salt,
            payload_lengths=np.array(table.payload_lengths, np.uint64),
        )


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Rows:
    """Rows as they are stored, decrypted: what it takes to encrypt the same ones again."""

    ids: list[RowId]
    encoded: NDArray[Any]  #: (n, d), from the engine's `decrypt`
    squares: NDArray[np.float64] | None  #: as in the row table
    payloads: list[bytes | None]  #: as `encode_payloads` makes them

    @classmethod
    def joined(cls, parts: Sequence[Rows]) -> Rows:
        """All of one collection, at least one; end to end."""
        squares = [p.squares for p in parts if p.squares is not None]
        return cls(
            ids=[i for p in parts for i in p.ids],
            encoded=np.concatenate([p.encoded for p in parts]),
            squares=np.concatenate(squares) if squares else None,
            payloads=[payload for p in parts for payload in p.payloads],
        )


def check_ids(ids: Iterable[Any], rows: int | None = None) -> list[RowId]:
    """Plain int and str ids. Raises InvalidInput, DimensionError or DuplicateIdError."""
    scalar = isinstance(ids, np.ndarray) and ids.ndim == 0
    if isinstance(ids, str | bytes) or not isinstance(ids, Iterable) or scalar:
        raise InvalidInput(f"ids: got {type(ids).__name__}, expected a list of int or str")
    raw = list(ids.tolist()) if isinstance(ids, np.ndarray) else list(ids)
    checked: list[RowId] = []
    for position, value in enumerate(raw):
        plain = int(value) if isinstance(value, np.integer) else value
        if isinstance(plain, bool) or not isinstance(plain, int | str):
            raise InvalidInput(f"ids: got {type(value).__name__} at position {position}, expected int or str")
        if isinstance(plain, int) and not -(1 << 63) <= plain < 1 << 63:
            raise InvalidInput(f"ids: the integer at position {position} does not fit 64 bits")
        if isinstance(plain, str) and not _is_storable(plain):
            raise InvalidInput(f"ids: the text at position {position} must have 1 to {MAX_ID_BYTES} bytes of UTF-8")
        checked.append(plain)
    if rows is not None and len(checked) != rows:
        raise DimensionError(f"ids: got {len(checked)}, expected one for each of {rows} vectors")
    if len(set(checked)) != len(checked):
        raise DuplicateIdError("ids: an id occurs twice in this call")
    return checked


def _is_storable(text: str) -> bool:
    try:
        return 1 <= len(text.encode()) <= MAX_ID_BYTES
    except UnicodeEncodeError:  # a lone surrogate
        return False


_TEXT, _BYTES = b"t", b"b"


def encode_payloads(payloads: Sequence[Payload | None] | None, rows: int) -> list[bytes | None] | None:
    """Each payload with its type in the first byte. Raises InvalidInput or DimensionError."""
    if payloads is None:
        return None
    if isinstance(payloads, str | bytes | np.ndarray) or not isinstance(payloads, Iterable):
        raise InvalidInput(f"payloads: got {type(payloads).__name__}, expected a list of str, bytes or None")
    encoded: list[bytes | None] = []
    for position, payload in enumerate(payloads):
        if payload is None:
            encoded.append(None)
        elif isinstance(payload, str):
            encoded.append(_TEXT + payload.encode("utf-8", "surrogatepass"))
        elif isinstance(payload, bytes):
            encoded.append(_BYTES + payload)
        else:
            kind = type(payload).__name__
            raise InvalidInput(f"payloads: got {kind} at position {position}, expected str, bytes or None")
    if len(encoded) != rows:
        raise DimensionError(f"payloads: got {len(encoded)}, expected one for each of {rows} vectors")
    return encoded


def decode_payload(raw: bytes) -> Payload:
    """Raises TamperedDataError for a text that is none."""
    try:
        return raw[1:].decode("utf-8", "surrogatepass") if raw[:1] == _TEXT else raw[1:]
    except UnicodeDecodeError:
        raise TamperedDataError("payload: got bytes that are no UTF-8, expected text") from None
