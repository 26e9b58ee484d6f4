"""Who may write: one change at a time, and none after a sync that failed.

What the kernel does with pages that it could not write is unknown, so such a failure is the end of writing: it is
ReadOnlyError from then on, until the folder is opened again. Reading goes on.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator

from he_engine.errors import ReadOnlyError

_log = logging.getLogger(__name__)


class Writes:
    """Of one store. Thread-safe."""

    def __init__(self) -> None:
        self.failed = False  #: a sync did
        self.change = threading.Lock()  #: held by the one that is made; may be held while the disk works

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Around every write. Raises ReadOnlyError after one in which a sync failed."""
        self._require_writable()
        try:
            yield
        except ReadOnlyError as error:
            self.failed = True
            _log.critical("no more writes until a restart: %s", error)
            raise

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """Around a change of the catalogue: no other is made meanwhile, nor this one after a sync that failed."""
        with self.writing(), self.change:
            self._require_writable()
            yield

    def _require_writable(self) -> None:
        if self.failed:
            raise ReadOnlyError("storage: a sync to disk failed; this server takes no writes until it is restarted")
