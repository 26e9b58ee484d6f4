"""The server in this process: the same service, messages and errors, without a port.

Apart from the command line's `serve`, the one place where the client imports the server.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from he_client.advice import advised
from he_engine.errors import HesearchError, Unavailable
from he_proto.status import error_from_status, status_of
from he_server.access.access import Caller
from he_server.config import ServerConfig
from he_server.service import Service

_MEMORY = Path("/dev/shm")
ATTEMPTS = 4  #: files or memory may be scarce for a moment


class EmbeddedTransport:
    """Serves `folder`, or a temporary folder that is deleted on close. Raises what Service raises."""

    def __init__(self, folder: Path | None) -> None:
        self._forget: Callable[[], object] = _nothing
        if folder is None:
            folder = Path(tempfile.mkdtemp(prefix="hesearch-", dir=_MEMORY if _MEMORY.is_dir() else None))
            self._forget = weakref.finalize(self, _remove, folder, os.getpid())  # also when the interpreter ends
        self._closed = False
        everybody = 1 << 30  # whoever calls is this process, which knows best
        self._service = Service(ServerConfig(data=folder, max_scans=everybody, max_inflight_bytes=everybody << 20))

    @property
    def attempts(self) -> int:
        return 1 if self._closed else ATTEMPTS

    def call(self, method: str, request: Any, *, timeout_s: float) -> Any:  # noqa: ARG002  nothing to wait for
        try:
            return self._method(method)(request, Caller())
        except HesearchError as error:
            raise _as_a_client_sees(method, error) from None

    def stream(self, method: str, request: Any, *, timeout_s: float) -> Generator[Any, None, None]:  # noqa: ARG002
        try:
            yield from self._method(method)(request, Caller())
        except HesearchError as error:
            raise _as_a_client_sees(method, error) from None

    def _method(self, name: str) -> Any:
        """CreateCollection → create_collection. Raises Unavailable after `close`."""
        if self._closed:
            raise Unavailable("this client is closed")
        return getattr(self._service, re.sub(r"(?<!^)([A-Z])", r"_\1", name).lower())

    def close(self) -> None:
        self._closed = True
        self._service.close()
        self._forget()


def _nothing() -> None:
    """A folder that was given stays."""


def _remove(folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # a forked child must not take the folder away from its parent
        shutil.rmtree(folder, ignore_errors=True)


def _as_a_client_sees(method: str, error: HesearchError) -> HesearchError:
    """The error as it would have come over the wire, so that both transports behave alike."""
    status = status_of(error)
    return advised(method, error_from_status(status.code, status.message, status.name))
