"""The worker processes of a `tenseal` server, seen from the server: started, asked, replaced, stopped.

Each is a fresh interpreter (nothing is inherited but one socket), and it ends when that socket closes, so also
when the server is killed. A reply is bytes of a length known beforehand: a worker that SEAL's parser had been
turned against could give wrong answers, not run code here.

A worker that dies, or takes longer than its job may, is replaced, and the job is done once more: it may have been
killed for what others did. If its successor ends so, too, what was asked is refused, with an error after which clients
do not ask again; if the same queries come again all the same, no worker is asked.
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
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from he_engine import errors
from he_engine.engine import Buffer
from he_engine.errors import HesearchError, InvalidInput, Unavailable
from he_engine.tenseal_worker import receive_message, send_message, wait_until

TRIES = 2
START_S = 60.0  #: for a process to start
REMEMBERED = 256  #: refusals; of 64 queries at most (MAX_QUERIES), 4 MiB in all
_ERROR_BYTES = 4096
#: NumPy's libraries start threads as they load. Landlock would not hold those: it binds the thread that asks for it.
_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from he_engine.tenseal_worker import main; main(*map(int, sys.argv[2:]))"
)


class Worker:
    """One process and our end of its socket. `lock` is for all but `close` and `pid`."""

    def __init__(self, dim: int, cache_bytes: int) -> None:
        self.lock = threading.Lock()
        self._arguments = (str(dim), str(cache_bytes))
        self._running: tuple[subprocess.Popen[bytes], socket.socket] | None = None
        self._ready = False  #: it has greeted, so what ends it from now on is not its start
        self._closed = False

    @property
    def pid(self) -> int | None:
        """None while no process runs."""
        running = self._running
        return running[0].pid if running else None

    def start(self) -> None:
        """A process, where there is none or it ended with nothing to do. Raises Unavailable, also after `close`."""
        if self._closed:
            raise Unavailable("the engine is closed")
        if self._running is not None and self._running[0].poll() is None:
            return
        self.stop()
        ours, theirs = socket.socketpair()
        with theirs:
            number = theirs.fileno()
            command = [sys.executable, "-c", _BOOT, json.dumps(sys.path), str(number), *self._arguments]
            try:
                process = subprocess.Popen(
                    command, pass_fds=(number,), stdin=subprocess.DEVNULL, env={**os.environ, **_ONE_THREAD}
                )
            except OSError as error:
                ours.close()
                raise Unavailable(f"a tenseal worker process did not start: {error.strerror}") from error
        self._running, self._ready = (process, ours), False

    def wait_ready(self, until_s: float) -> None:
        """Until the process has greeted. Raises Unavailable where it ends, or has not at `until_s` (time.monotonic)."""
        if self._ready or self._running is None:
            return
        try:
            receive_message(self._running[1], 0, until_s=until_s)
        except (EOFError, OSError) as error:
            raise Unavailable("a tenseal worker process did not start; its stderr may say why") from error
        self._ready = True

    def send(self, request: Mapping[str, object], descriptors: Sequence[int], until_s: float) -> None:
        """Raises EOFError or OSError when the process is gone, or has not taken all of it at `until_s`."""
        if self._running is None:
            raise EOFError("the worker was stopped")
        wait_until(self._running[1], until_s)
        send_message(self._running[1], json.dumps(request).encode(), descriptors)

    def receive(self, length_bytes: int, until_s: float) -> bytearray | HesearchError:
        """The reply of `length_bytes`, or the error that the worker met. Raises EOFError or OSError when it is
        gone, has not replied at `until_s`, or replies with anything else."""
        if self._running is None:
            raise EOFError("the worker was stopped")
        message, _ = receive_message(self._running[1], 1 + max(length_bytes, _ERROR_BYTES), until_s=until_s)
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
        """End the process; the next `start` makes another."""
        if self._running is not None:
            process, connection = self._running
            self._running = None
            connection.close()
            process.kill()  # it holds nothing that could be lost
            process.wait()


@dataclass(frozen=True, slots=True)
class Job:
    """For one worker: what it is asked, how long the reply is, and how long it may take."""

    request: Mapping[str, object]
    reply_bytes: int
    limit_s: float


class Refusals:
    """The latest queries that were refused together, by their digests: which of them is to blame is not known, nor
    whether it was a block. As clients encrypt each query anew, only who asked them asks them again. Thread-safe."""

    def __init__(self) -> None:
        self._latest: deque[frozenset[str]] = deque(maxlen=REMEMBERED)

    def add(self, digests: Sequence[str]) -> None:
        if not self._known(digests):
            self._latest.append(frozenset(digests))

    def require_none(self, digests: Sequence[str]) -> None:
        """Raises InvalidInput where these queries, or some of them by themselves, were refused before."""
        if self._known(digests):
            raise InvalidInput("tenseal: got queries that the engine refused, or could not bear, before")

    def _known(self, digests: Sequence[str]) -> bool:
        asked = set(digests)
        return any(refused <= asked for refused in self._latest.copy())


def ask(
    workers: Sequence[Worker],
    jobs: Sequence[Job],
    descriptors: Sequence[int] = (),
    check: Callable[[], object] = bool,
) -> list[bytearray]:
    """Each worker its own job, all at the same time; `workers` in the same order at every call. `check` is called when
    no other call has them, and may raise.

    Raises what a worker reported, InvalidInput where one ended or went over its time twice, Unavailable after `close`.
    """
    replies: dict[int, bytearray | HesearchError] = {}
    with contextlib.ExitStack() as stack:
        for worker in workers:
            stack.enter_context(worker.lock)
        check()
        try:
            for _ in range(TRIES):
                _try(workers, jobs, descriptors, replies)
        except BaseException:
            for worker in workers:  # a reply that nobody awaits would be taken for the next one
                worker.stop()
            raise
    done: list[bytearray] = []
    for number, job in enumerate(jobs):
        reply = replies.get(number)
        if reply is None:
            raise InvalidInput(
                f"tenseal: {TRIES} worker processes ended over this, or took more than {job.limit_s:.0f} s each: got "
                "blocks or a query that the engine cannot bear"
            )
        if isinstance(reply, HesearchError):
            raise reply
        done.append(reply)
    return done


def _try(
    workers: Sequence[Worker],
    jobs: Sequence[Job],
    descriptors: Sequence[int],
    replies: dict[int, bytearray | HesearchError],
) -> None:
    """Adds the replies that are missing, of those who give one; ends the other workers."""
    missing = [number for number in range(len(jobs)) if number not in replies]
    for number in missing:
        workers[number].start()
    ready_s = time.monotonic() + START_S
    for number in missing:
        workers[number].wait_ready(ready_s)
    began_s = time.monotonic()
    for number in missing:
        with contextlib.suppress(EOFError, OSError):  # `receive` meets it, too
            workers[number].send(jobs[number].request, descriptors, began_s + jobs[number].limit_s)
    for number in missing:
        try:
            replies[number] = workers[number].receive(jobs[number].reply_bytes, began_s + jobs[number].limit_s)
        except (EOFError, OSError):
            workers[number].stop()


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
