"""Between a client and PostgreSQL: breaks the connection when COMMIT passes, before or after PostgreSQL has it."""

from __future__ import annotations

import contextlib
import socket
import tempfile
import threading
from pathlib import Path

_SOCKET = ".s.PGSQL.5432"
_READ_BYTES = 1 << 16


class Proxy:
    """On a Unix socket in a folder of its own; a context manager. `server`: the folder of PostgreSQL's socket."""

    def __init__(self, server: Path) -> None:
        self._server = str(server / _SOCKET)
        self._folder = tempfile.TemporaryDirectory(prefix="hesearch-px-")
        self.host = self._folder.name
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(f"{self.host}/{_SOCKET}")
        self._listener.listen()
        self.breaks = ""  #: at the next COMMIT: "before" PostgreSQL has it, or "after" it was made
        self.refuses = False  #: new connections, once one was broken
        self.broken = 0
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Proxy:
        self._run(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join()
        self._folder.cleanup()

    def _run(self, work: object, *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if self.refuses and self.broken:
                    client.close()
                    continue
                server = socket.socket(socket.AF_UNIX)
                server.connect(self._server)
                dropping = threading.Event()
                self._run(self._forward, client, server, dropping)
                self._run(self._back, server, client, dropping)

    def _forward(self, client: socket.socket, server: socket.socket, dropping: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(_READ_BYTES):
                if b"COMMIT" in data and self.breaks:
                    breaks, self.breaks = self.breaks, ""
                    self.broken += 1
                    if breaks == "before":
                        break
                    dropping.set()  # the answer, which comes once it was made
                server.sendall(data)
        _end(server)
        _end(client)

    @staticmethod
    def _back(server: socket.socket, client: socket.socket, dropping: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(_READ_BYTES):
                if dropping.is_set():
                    break
                client.sendall(data)
        _end(client)
        _end(server)


def _end(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
