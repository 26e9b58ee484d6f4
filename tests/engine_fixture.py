"""A hint engine with both halves in one process, for tests of the mathematics."""

from __future__ import annotations

import secrets
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from he_engine.engine import EncryptedRows, IndexFile
from he_engine.hint_client import HintClient, HintQuery, HintSegment, generate_state
from he_engine.hint_server import HintServer
from he_engine.keys import RootKey
from he_engine.params import Parameters


class Both:
    """Client and server of one collection."""

    def __init__(self, folder: Path, profile: str, dim: int, stride: int | None = None, target: str = "") -> None:
        self.parameters = Parameters.choose(profile, dim, stride)
        self.key = RootKey(secrets.token_bytes(32))
        self.state = generate_state()
        self.client = HintClient(self.parameters, self.key, bytes(16), self.state, threads=1, target=target)
        self.server = HintServer(self.parameters, target)
        self.folder = folder

    def setup(self, rows: NDArray[np.float64]) -> tuple[EncryptedRows, HintSegment, IndexFile]:
        encrypted = self.client.setup(rows)
        path = self.folder / secrets.token_hex(8)
        path.write_bytes(encrypted.index)
        index = IndexFile(path, 0, len(encrypted.index), encrypted.blocks)
        self.server.check_index(index)
        return encrypted, self.client.load(encrypted), index

    def answer(self, query: HintQuery, index: IndexFile) -> bytes:
        self.server.check_queries([query.ciphertext])
        return self.server.answer(index, 0, index.blocks, [query.ciphertext])[0]

    def scores(self, rows: NDArray[np.float64], vector: NDArray[np.float64]) -> NDArray[np.float64]:
        _, segment, index = self.setup(rows)
        query = self.client.query(vector)
        return self.client.recover(query, [segment], [self.answer(query, index)])[0]
