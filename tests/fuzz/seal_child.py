"""The process that parses what tests.fuzz.seal sends it, within the limits of a worker; started anew when it ends.

first       the engine state of a client
request     what (1 byte) ‖ bytes: a file of SEAL's own, or an answer as a client gets it
reply       the outcome; to the first, nothing
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from random import Random

import numpy as np

from he_engine.errors import HesearchError
from he_engine.tenseal_client import TensealClient, TensealSegment
from he_engine.tenseal_format import QUERY_SCALE
from he_engine.tenseal_limits import Limits
from he_engine.tenseal_ring import SealRing, memory_file, sealapi
from he_engine.tenseal_worker import receive_message, send_message
from tests.fuzz.seal_inputs import fresh

FILE, ANSWER, BROKEN = b"f", b"a", b"b"
TAKEN, REFUSED, LATER, MEMORY = "taken", "refused", "refused later", "memory"
MAX_BYTES = 128 << 20
_SEALS = (ArithmeticError, LookupError, RuntimeError, ValueError)


class Parser:
    """Holds a key, as a client does."""

    def __init__(self, state: bytes) -> None:
        self._ring, self._client = SealRing(), TensealClient(1, state)
        self._query = self._client.query(np.ones(1))
        self._evaluator = sealapi().Evaluator(self._ring.context)
        self._other = self._ring.load_fresh(fresh(Random(1)), QUERY_SCALE)

    def parse(self, request: bytearray) -> str:
        try:
            if request[:1] == ANSWER:
                return self._answer(bytes(request[1:]))
            if request[:1] == BROKEN:
                return _misbehave(bytes(request[1:]))
            return self._file(bytes(request[1:]))
        except MemoryError:
            return MEMORY

    def _answer(self, data: bytes) -> str:
        try:
            self._client.recover(self._query, [TensealSegment(1, 1)], [data])
        except HesearchError:
            return REFUSED
        except _SEALS as error:
            return f"raised {type(error).__name__}"
        return TAKEN

    def _file(self, data: bytes) -> str:
        """Also what becomes of one that SEAL takes, where a worker would go on with it."""
        ciphertext, product = sealapi().Ciphertext(), sealapi().Ciphertext()
        with memory_file() as (_, path):
            Path(path).write_bytes(data)
            try:
                ciphertext.load(self._ring.context, path)
            except _SEALS:
                return REFUSED
        try:
            self._evaluator.multiply(ciphertext, self._other, product)
            self._evaluator.add_inplace(product, product)
            self._ring.save_answer(product)
        except _SEALS:
            return LATER
        return TAKEN


def _misbehave(how: bytes) -> str:
    """As a parser must not, to see that it is noticed."""
    if how == b"exit":
        os._exit(3)
    while how == b"spin":
        pass
    return f"grown by {len(b'1' * (96 << 20))}"


def main(descriptor: int) -> None:
    with socket.socket(fileno=descriptor) as connection:
        state, _ = receive_message(connection, MAX_BYTES)
        parser, limits = Parser(bytes(state)), Limits(0)
        limits.begin(1, 1, 1)
        send_message(connection, b"")
        while True:
            try:
                request, _ = receive_message(connection, MAX_BYTES)
            except (EOFError, ConnectionError):
                return
            send_message(connection, parser.parse(request).encode())


if __name__ == "__main__":
    main(int(sys.argv[1]))
