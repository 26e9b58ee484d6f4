"""Starts the server as a process of its own on loopback, and stops it by its process id.

All that it is given is on its command line: a folder, a port, a number of threads. No key, no text, no vector.
"""

from __future__ import annotations

import queue
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import IO

from he_engine.errors import Unavailable

READY = "listening on "
START_S = 60.0
STOP_S = 15.0  #: after SIGTERM; then it is killed
LOG_TAIL = 2000  #: characters of its stderr that a failed start shows


class ServerProcess:
    """`python -m he_server` with its data under `folder`. A context manager: leaving it stops the process.

    Raises Unavailable on entry when the server ends, or is not ready after START_S.
    """

    def __init__(self, folder: Path, threads: int) -> None:
        self.folder = folder
        self.command = [
            sys.executable, "-m", "he_server", "--data", str(folder / "data"),
            "--listen", "127.0.0.1:0", "--insecure", "--threads", str(threads),
        ]  # fmt: skip
        self.address = ""  #: host:port, when ready
        self.log = folder / "server.log"
        self._process: subprocess.Popen[str] | None = None

    @property
    def pid(self) -> int:
        """Raises Unavailable when it is not running."""
        if self._process is None:
            raise Unavailable("the demo's server is not running")
        return self._process.pid

    def __enter__(self) -> ServerProcess:
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as log:
            process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True
            )
        self._process = process
        try:
            self.address = self._wait_until_ready(process)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def _wait_until_ready(self, process: subprocess.Popen[str]) -> str:
        lines: queue.Queue[str] = queue.Queue()
        assert process.stdout is not None
        # Read to the end, or the server would wait for room in the pipe if it ever printed much.
        threading.Thread(target=_forward, args=(process.stdout, lines), daemon=True).start()
        try:
            while line := lines.get(timeout=START_S):
                if line.startswith(READY):
                    return line.removeprefix(READY).strip()
            what = "ended before it was ready"
        except queue.Empty:
            what = f"was not ready after {START_S:.0f} s"
        tail = self.log.read_text(errors="replace")[-LOG_TAIL:].strip()
        raise Unavailable(f"the demo's server {what}" + (f":\n{tail}" if tail else ""))

    def stop(self) -> None:
        """SIGTERM, and SIGKILL if that does not end it. Does nothing when it is not running."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _forward(stream: IO[str], lines: queue.Queue[str]) -> None:
    with stream:
        for line in stream:
            lines.put(line)
    lines.put("")
