"""The worker processes of a `tenseal` server, seen from the server: started, asked, replaced, stopped.

Each is a fresh interpreter (nothing is inherited but one socket), and it ends when that socket closes, so also
when the server is killed. A reply is bytes of a length known beforehand: a worker that SEAL's parser had been
turned against could give wrong answers, not run code here.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence

from he_engine import errors
from he_engine.engine import Buffer
from he_engine.errors import HesearchError, Unavailable
from he_engine.tenseal_worker import receive_message, send_message

_ERROR_BYTES = 4096
_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from he_engine.tenseal_worker import main; main(*map(int, sys.argv[2:]))"
)


class Worker:
    """One process and our end of its socket. `send`, `receive` and `stop` need `lock`."""

    def __init__(self, dim: int, cache_bytes: int) -> None:
        self.lock = threading.Lock()
        self._arguments = (str(dim), str(cache_bytes))
        self._running: tuple[subprocess.Popen[bytes], socket.socket] | None = None
        self._closed = False

    @property
    def pid(self) -> int | None:
        """None while no process runs."""
        running = self._running
        return running[0].pid if running else None

    def send(self, request: Mapping[str, object], descriptors: Sequence[int] = ()) -> None:
        """Starts the process where there is none. Raises OSError when it is gone, Unavailable after `close`."""
        if self._closed:
            raise Unavailable("the engine is closed")
        if self._running is None:
            ours, theirs = socket.socketpair()
            with theirs:
                number = theirs.fileno()
                command = [sys.executable, "-c", _BOOT, json.dumps(sys.path), str(number), *self._arguments]
                process = subprocess.Popen(command, pass_fds=(number,), stdin=subprocess.DEVNULL)
            self._running = process, ours
        send_message(self._running[1], json.dumps(request).encode(), descriptors)

    def receive(self, length_bytes: int) -> bytearray | HesearchError:
        """The reply of `length_bytes`, or the error that the worker met. Raises EOFError or OSError when it is
        gone or replies with anything else."""
        if self._running is None:
            raise EOFError("the worker was stopped")
        message, _ = receive_message(self._running[1], 1 + max(length_bytes, _ERROR_BYTES))
        if message[:1] != b"\x01":
            if len(message) != 1 + length_bytes:
                raise OSError(f"reply: got {len(message)} bytes, expected {1 + length_bytes}")
            del message[0]
            return message
        name, _, text = message[1:].decode(errors="replace").partition(": ")
        kind = getattr(errors, name, None)
        if isinstance(kind, type) and issubclass(kind, HesearchError):
            return kind(text)
        return Unavailable(f"a tenseal worker met {name}")

    def close(self) -> None:
        """End the process for good; whichever thread waits in `receive` meets EOFError. Takes the lock itself."""
        self._closed = True
        if running := self._running:
            with contextlib.suppress(OSError):
                running[1].shutdown(socket.SHUT_RDWR)
        with self.lock:
            self.stop()

    def stop(self) -> None:
        """End the process; the next `send` starts another."""
        if self._running is not None:
            process, connection = self._running
            self._running = None
            connection.close()
            process.kill()  # it holds nothing that could be lost
            process.wait()


def ask(
    workers: Sequence[Worker],
    requests: Sequence[Mapping[str, object]],
    replies_bytes: Sequence[int],
    descriptors: Sequence[int] = (),
) -> list[bytearray]:
    """Each worker its own request, all at the same time; `workers` in the same order at every call.

    Raises what a worker reported, or Unavailable when one died: then all of these start afresh at the next call,
    because a reply that nobody awaited would be taken for the next one.
    """
    with contextlib.ExitStack() as stack:
        for worker in workers:
            stack.enter_context(worker.lock)
        try:
            for worker, request in zip(workers, requests, strict=True):
                worker.send(request, descriptors)
            replies = [worker.receive(n) for worker, n in zip(workers, replies_bytes, strict=True)]
        except BaseException as error:
            for worker in workers:
                worker.stop()
            if isinstance(error, (EOFError, OSError)):
                raise Unavailable("a tenseal worker process died; the next call starts a new one") from error
            raise
    failed = [reply for reply in replies if isinstance(reply, HesearchError)]
    if failed:
        raise failed[0]
    return [reply for reply in replies if not isinstance(reply, HesearchError)]


class QueryFiles:
    """Queries as a file in memory that workers read. The latest stays: blocks are asked for in several calls."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._latest: tuple[list[Buffer], list[str], int] | None = None  # queries, digests, descriptor

    @contextlib.contextmanager
    def open(self, queries: Sequence[Buffer]) -> Iterator[tuple[list[str], int]]:
        """(SHA-256 of each, descriptor of all end to end). Of the latest, `bytes` objects are not hashed again."""
        with self._lock:
            latest = self._latest
            known = {id(query): digest for query, digest in zip(*latest[:2], strict=True)} if latest else {}
            digests = [
                (known.get(id(query)) if isinstance(query, bytes) else None) or hashlib.sha256(query).hexdigest()
                for query in queries
            ]
            if latest is None or latest[1] != digests:
                self._drop()
                self._latest = latest = list(queries), digests, _written(queries)
            descriptor = os.dup(latest[2])
        try:
            yield digests, descriptor
        finally:
            os.close(descriptor)

    def _drop(self) -> None:
        if self._latest is not None:
            os.close(self._latest[2])
            self._latest = None

    def close(self) -> None:
        with self._lock:
            self._drop()


def _written(contents: Sequence[Buffer]) -> int:
    """The descriptor of a new nameless file that holds `contents`, end to end."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("queries")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    for content in contents:
        view = memoryview(content).cast("B")
        while view:
            view = view[os.write(descriptor, view) :]
    return descriptor
