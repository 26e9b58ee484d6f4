"""`hesearch serve` as a process that is killed or stopped and started again, on the same folder and port."""

from __future__ import annotations

import os
import secrets
import signal
import socket
from pathlib import Path

import numpy as np

from he_client.demo.server_process import ServerProcess

PORTS = range(20_000, 30_000)
_OURS = secrets.randbelow(len(PORTS))  #: another process with the same seed takes other ports


def free_port(rng: np.random.Generator) -> int:
    """A port that is free on loopback, below those that outgoing connections take: nobody has it between two starts."""
    while True:
        port = PORTS[(int(rng.integers(len(PORTS))) + _OURS) % len(PORTS)]
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port


class Server(ServerProcess):
    """A context manager that starts it and, at the end, stops it where it still runs."""

    def __init__(self, folder: Path, port: int, *options: str, threads: int = 1) -> None:
        super().__init__(folder, threads)
        self.command[self.command.index("--listen") + 1] = f"127.0.0.1:{port}"
        self.command += options
        self.data = folder / "data"

    def start(self) -> None:
        """Raises Unavailable if it does not start."""
        self.__enter__()

    def kill(self) -> None:
        """SIGKILL: it has no moment to write anything."""
        os.kill(self.pid, signal.SIGKILL)
        self.stop()

    def terminate(self) -> int:
        """SIGTERM: its exit status, −9 where that did not end it."""
        process = self._process
        assert process is not None
        self.stop()
        return process.wait()
