"""The process that computes for a `tenseal` server: parse, multiply, add. Public parameters only, no key.

SEAL holds the interpreter lock during every call and parses bytes from strangers, so it runs here and not in the
server, and within limits (he_engine.tenseal_limits). A worker reads requests from one socket and dies with it, as it
does of anything that SEAL is not expected to raise, such as MemoryError. Nothing is pickled in either direction:

    greeting    an empty message, once the process is ready
    message     length (8 bytes, little-endian) ‖ bytes; a request carries the descriptors of the index and of the
                queries along with its length
    request     JSON: {"blocks": [[key, offset], …], "queries": [[key, offset], …]} or {"forget": prefix}
    reply       0 ‖ answers, query by query, block by block    or    1 ‖ "ErrorName: message"
"""

from __future__ import annotations

import faulthandler
import functools
import json
import os
import signal
import socket
import struct
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from he_engine.engine import Buffer
from he_engine.errors import HesearchError, ResidueError
from he_engine.tenseal_format import CIPHERTEXT_BYTES, INDEX_SCALE, POLY_BYTES, QUERY_SCALE
from he_engine.tenseal_limits import Limits
from he_engine.tenseal_ring import SealRing, sealapi

_LENGTH = struct.Struct("<Q")
MAX_REQUEST_BYTES = 16 << 20
PARSED_BYTES = 2 * POLY_BYTES  #: of one ciphertext inside SEAL


@dataclass(frozen=True)
class Source:
    """One block or one query: d ciphertexts, and a name under which they may be kept parsed."""

    key: str
    read: Callable[[int], Buffer]  #: coordinate → CIPHERTEXT_BYTES bytes


@dataclass
class _Stack:
    """The ciphertexts of one source that are parsed already."""

    kept: bool = True
    parsed: dict[int, Any] = field(default_factory=dict)


class Scorer:
    """Σ_j x_j·y_j over ciphertexts, with the latest sources kept parsed: at most `cache_bytes` of them."""

    def __init__(self, dim: int, cache_bytes: int) -> None:
        self.dim = dim
        self.ring = SealRing()
        self._evaluator = sealapi().Evaluator(self.ring.context)
        self._stacks: OrderedDict[str, _Stack] = OrderedDict()
        self._capacity = cache_bytes // (dim * PARSED_BYTES)

    def answer(self, blocks: Sequence[Source], queries: Sequence[Source]) -> list[bytes]:
        """For each query, the answers of all blocks end to end. Raises ResidueError before SEAL parses.

        Coordinate by coordinate, so what is held beyond the cache is one sum for each pair.
        """
        index = [(self._stack(source.key), source) for source in blocks]
        asked = [(self._stack(source.key), source) for source in queries]
        ciphertext = sealapi().Ciphertext
        sums = [[ciphertext() for _ in blocks] for _ in queries]
        product = ciphertext()
        multiply, add = self._evaluator.multiply, self._evaluator.add_inplace
        for j in range(self.dim):
            rows = [self._plane(stack, source, j, INDEX_SCALE) for stack, source in index]
            for (stack, source), row_sums in zip(asked, sums, strict=True):
                coordinate = self._plane(stack, source, j, QUERY_SCALE)
                for row, total in zip(rows, row_sums, strict=True):
                    if j == 0:
                        multiply(row, coordinate, total)
                    else:
                        multiply(row, coordinate, product)
                        add(total, product)
        return [b"".join(map(self.ring.save_answer, row_sums)) for row_sums in sums]

    def _plane(self, stack: _Stack, source: Source, j: int, scale: float) -> Any:
        parsed = stack.parsed.get(j)
        if parsed is None:
            parsed = self.ring.load_fresh(source.read(j), scale)
            if stack.kept:
                stack.parsed[j] = parsed
        return parsed

    def _stack(self, key: str) -> _Stack:
        """The stack of this name, now the latest; the oldest make room for it."""
        if key in self._stacks:
            self._stacks.move_to_end(key)
            return self._stacks[key]
        if not self._capacity:
            return _Stack(kept=False)
        while len(self._stacks) >= self._capacity:
            self._drop(next(iter(self._stacks)))
        return self._stacks.setdefault(key, _Stack())

    def _drop(self, key: str) -> None:
        stack = self._stacks.pop(key)
        stack.kept = False
        stack.parsed.clear()

    def forget(self, prefix: str) -> None:
        """Drop what is kept under every key that begins so."""
        for key in [key for key in self._stacks if key.startswith(prefix)]:
            self._drop(key)


# ---- messages ------------------------------------------------------------------------------------------------
def send_message(connection: socket.socket, message: bytes, descriptors: Sequence[int] = ()) -> None:
    header = _LENGTH.pack(len(message))
    if descriptors:
        socket.send_fds(connection, [header], descriptors)
    else:
        connection.sendall(header)
    connection.sendall(message)


def receive_message(
    connection: socket.socket, limit_bytes: int, descriptors: int = 0, until_s: float | None = None
) -> tuple[bytearray, list[int]]:
    """(message, descriptors, at most that many). Raises EOFError when the other side is gone, OSError for a
    message over the limit, TimeoutError when it is not here at `until_s` (time.monotonic)."""
    wait_until(connection, until_s)
    header, received, _, _ = socket.recv_fds(connection, _LENGTH.size, descriptors)
    if len(header) != _LENGTH.size:
        raise EOFError("the other side closed the connection")
    (length,) = _LENGTH.unpack(header)
    if length > limit_bytes:
        raise OSError(f"message: got {length} bytes, expected at most {limit_bytes}")
    message = bytearray(length)
    view = memoryview(message)
    while view:
        wait_until(connection, until_s)
        got = connection.recv_into(view)
        if not got:
            raise EOFError("the other side closed the connection")
        view = view[got:]
    return message, received


def wait_until(connection: socket.socket, until_s: float | None) -> None:
    """So long the next call of it waits at most (time.monotonic), then it raises TimeoutError; None: for ever."""
    if until_s is not None:
        connection.settimeout(max(until_s - time.monotonic(), 0.01))  # what has come already is taken


# ---- the process ---------------------------------------------------------------------------------------------
def _read(descriptor: int, offset: int, j: int) -> bytes:
    plane = os.pread(descriptor, CIPHERTEXT_BYTES, offset + j * CIPHERTEXT_BYTES)
    if len(plane) != CIPHERTEXT_BYTES:
        raise ResidueError(f"index: coordinate {j} has {len(plane)} bytes, expected {CIPHERTEXT_BYTES}")
    return plane


def _sources(items: list[tuple[str, int]], descriptor: int) -> list[Source]:
    return [Source(key, functools.partial(_read, descriptor, offset)) for key, offset in items]


def _reply(scorer: Scorer, limits: Limits, request: dict[str, Any], descriptors: list[int]) -> bytes:
    if "forget" in request:
        scorer.forget(request["forget"])
        return b"\x00"
    index, queries = descriptors
    limits.begin(scorer.dim, len(request["blocks"]), len(request["queries"]))
    return b"\x00" + b"".join(scorer.answer(_sources(request["blocks"], index), _sources(request["queries"], queries)))


def serve(connection: socket.socket, scorer: Scorer, limits: Limits) -> None:
    """Greet, and answer requests until the other side closes the connection."""
    send_message(connection, b"")
    while True:
        try:
            message, descriptors = receive_message(connection, MAX_REQUEST_BYTES, 2)
        except (EOFError, ConnectionError):
            return
        try:
            reply = _reply(scorer, limits, json.loads(message), descriptors)
        except (HesearchError, OSError) as error:
            reply = f"\x01{type(error).__name__}: {error}".encode()
        except (RuntimeError, ValueError) as error:  # SEAL's, and the same again for the same bytes
            reply = f"\x01InvalidInput: tenseal: SEAL refuses a block or a query: {error}".encode()
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        try:
            send_message(connection, reply)
        except ConnectionError:
            return


def main(descriptor: int, dim: int, cache_bytes: int) -> None:
    """Entry point of the process. Ctrl-C is for the server, which closes the connection when it stops. Of a fatal
    signal stderr tells where it came, and nothing of the data."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.stderr is not None:
        faulthandler.enable()
    with socket.socket(fileno=descriptor) as connection:
        serve(connection, Scorer(dim, cache_bytes), Limits(cache_bytes))
