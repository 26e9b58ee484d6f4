"""What the catalogue asks of the database that has its rows: he_server.storage.database, or postgres beside it."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any, Protocol


class Writer(Protocol):
    """What a transaction writes through. Values are bytes and numbers; `?` stands for each."""

    def execute(self, statement: str, values: tuple[object, ...] = ..., /) -> Any: ...

    def executemany(self, statement: str, values: Iterable[tuple[object, ...]], /) -> Any: ...


class Backend(Protocol):
    """Thread-safe. Raises what sqlite_errors or postgres_errors make of failures."""

    @property
    def failed(self) -> bool:
        """The disk failed, and there are no more transactions."""

    def exclusive(self) -> AbstractContextManager[object]:
        """Nobody else writes meanwhile, so what is checked holds for the one transaction that may follow. Reentrant."""

    def view(self) -> AbstractContextManager[object]:
        """All that is read meanwhile is of one moment."""

    def transaction(self) -> AbstractContextManager[Writer]:
        """All of it or nothing; durable when the block has ended."""

    def one(self, statement: str, *values: object) -> Any:
        """The first row."""

    def all(self, statement: str, *values: object) -> list[Any]: ...

    def close(self) -> None: ...
