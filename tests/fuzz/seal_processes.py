"""Where tests.fuzz.seal has its inputs parsed: a server of the engine `tenseal`, and a process of its own."""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import numpy as np

from he_engine.engine import IndexFile
from he_engine.errors import HesearchError, InvalidInput, ResidueError
from he_engine.tenseal_client import TensealClient
from he_engine.tenseal_format import ANSWER_BYTES, CIPHERTEXT_BYTES, check_residues, words
from he_engine.tenseal_server import TensealServer
from he_engine.tenseal_worker import receive_message, send_message
from tests.fuzz import seal_inputs
from tests.fuzz.seal_child import MEMORY, REFUSED, TAKEN
from tests.fuzz.target import scratch

HUNG_S = 5.0
GROWN_BYTES = 64 << 20  #: beyond what the process had before its first input; a ciphertext takes 64 KiB
ENDED, HUNG = "ended", "hung"
_START_S = 60.0
_CACHE_BYTES = 4 << 20  #: so that old blocks make room


# ---- through the server ---------------------------------------------------------------------------------------
class Server:
    """Of dimension 1, with one worker; a sound block and a sound query, whose answer is known."""

    def __init__(self, rng: Random) -> None:
        self._folder = scratch()
        self._server = TensealServer(1, 1, cache_bytes=_CACHE_BYTES)
        self.block, self.query, self._number = seal_inputs.fresh(rng), seal_inputs.fresh(rng), 0
        self._index = self._stored(self.block, 1)
        (self._expected,) = self._server.answer(self._index, 0, 1, [self.query])
        self._pid = self._server._workers[0].pid

    def _stored(self, content: bytes, blocks: int) -> IndexFile:
        self._number += 1
        path = self._folder / str(self._number)
        path.write_bytes(content)
        return IndexFile(path, 0, len(content), blocks)

    def as_query(self, data: bytes, *, checked: bool) -> str:
        """With the sound one in the same job. checked: as the service does, before a worker sees it."""
        with self._judging() as outcome:
            if checked:
                self._server.check_queries([data])
            outcome += [self._judged(*self._server.answer(self._index, 0, 1, [data, self.query]))]
        return outcome[0]

    def as_block(self, data: bytes, *, checked: bool) -> str:
        """With the sound one behind it in the same file, in its place where `data` has the right length."""
        index = self._stored(data + self.block, 2)
        with self._judging() as outcome:
            if checked:
                self._server.check_index(index)
            (answers,) = self._server.answer(index, 0, 2, [self.query])
            beside = answers[ANSWER_BYTES:] if len(data) == CIPHERTEXT_BYTES else self._expected
            outcome += [self._judged(answers[:ANSWER_BYTES], beside)]
        index.path.unlink()
        return outcome[0]

    @contextlib.contextmanager
    def _judging(self) -> Iterator[list[str]]:
        """What an error means, too."""
        outcome: list[str] = []
        try:
            yield outcome
        except ResidueError:
            outcome += [REFUSED]
        except InvalidInput as error:
            outcome += [ENDED if "processes ended" in str(error) else "refused by SEAL"]
        except HesearchError as error:
            outcome += [f"raised {type(error).__name__}"]
        if self._server._workers[0].pid != self._pid:
            self._pid = self._server._workers[0].pid
            outcome[:] = [ENDED]

    def _judged(self, got: bytes, beside: bytes) -> str:
        if beside != self._expected:
            return "another answer for the sound half"
        try:
            check_residues(words(got, ANSWER_BYTES, "answer"), "answer")
        except ResidueError:
            return "not canonical"
        return TAKEN

    @property
    def peak_bytes(self) -> int:
        """The most memory that the worker has had."""
        assert self._pid is not None
        return most_bytes(self._pid)

    def close(self) -> None:
        self._server.close()
        shutil.rmtree(self._folder)


def most_bytes(pid: int) -> int:
    """Of memory that a process has had. Not ru_maxrss: that begins with its parent's."""
    status = Path(f"/proc/{pid}/status").read_text()
    return 1024 * int(re.findall(r"VmHWM:\s+(\d+)", status)[0])


# ---- in a process of its own ----------------------------------------------------------------------------------
class Child:
    """tests.fuzz.seal_child, started when it is needed."""

    def __init__(self, state: bytes) -> None:
        self._state = state
        self._running: tuple[subprocess.Popen[bytes], socket.socket] | None = None
        self._first_bytes = 0
        self.starts = 0

    def _started(self) -> tuple[subprocess.Popen[bytes], socket.socket]:
        if self._running is None:
            ours, theirs = socket.socketpair()
            with theirs:
                command = [sys.executable, "-m", "tests.fuzz.seal_child", str(theirs.fileno())]
                process = subprocess.Popen(command, pass_fds=(theirs.fileno(),), stderr=subprocess.DEVNULL)
            self._running = process, ours
            self.starts += 1
            send_message(ours, self._state)
            receive_message(ours, 0, until_s=time.monotonic() + _START_S)
            self._first_bytes = most_bytes(process.pid)
        return self._running

    def parse(self, what: bytes, data: bytes) -> str:
        """Twice where the process had to be replaced, the second time in a new one. One that did not hang again did
        not hang: the machine was busy."""
        outcome = self._once(what, data)
        if self._running is None:
            again = self._once(what, data)
            self.close()
            return again if outcome in (HUNG, again) else f"{outcome}, then {again}"
        return outcome

    def _once(self, what: bytes, data: bytes) -> str:
        process, connection = self._started()
        try:
            send_message(connection, what + data)
            reply, _ = receive_message(connection, 4096, until_s=time.monotonic() + HUNG_S)
        except TimeoutError:
            self.stop()
            return HUNG
        except (EOFError, OSError):
            return f"{ENDED}: {_ending(self.stop())}"
        outcome = bytes(reply).decode()
        if outcome == MEMORY or most_bytes(process.pid) - self._first_bytes > GROWN_BYTES:
            self.stop()
            return MEMORY
        return outcome

    def stop(self) -> int:
        """Its exit status: of one that has ended, its own."""
        assert self._running is not None
        process, connection = self._running
        self._running = None
        connection.close()
        process.kill()
        return process.wait()

    def close(self) -> None:
        if self._running is not None:
            self.stop()


def _ending(status: int) -> str:
    return signal.Signals(-status).name if status < 0 else f"exit {status}"


def sound_answer(state: bytes) -> bytes:
    """Of a row 1 to a query 1, of the key in `state`."""
    client, server, folder = TensealClient(1, state), TensealServer(1, 1), scratch()
    try:
        (folder / "index").write_bytes(client.setup(np.ones((1, 1))).index)
        query = client.query(np.ones(1)).ciphertext
        (answer,) = server.answer(IndexFile(folder / "index", 0, CIPHERTEXT_BYTES, 1), 0, 1, [query])
        return answer
    finally:
        server.close()
        shutil.rmtree(folder)
