"""What a store does by itself while it is served: it removes what was given up, and replaces data keys that are old."""

from __future__ import annotations

import logging
import threading
from types import TracebackType

from he_engine.errors import HesearchError
from he_server.storage.rekey import rotate
from he_server.storage.store import Store

_log = logging.getLogger(__name__)
_LOOK_S = 3600.0  #: at most, between two looks
_DAY_S = 24 * 3600.0


class Upkeep:
    """Looks in a thread of its own, at once and then every hour, or more often where uploads that were given up are to
    go sooner. A context manager that ends it."""

    def __init__(self, store: Store, key_days: float) -> None:
        """key_days: 0: no new keys; files that are under an old one are written anew all the same."""
        self._store = store
        self._older_than_s = key_days * _DAY_S if key_days else float("inf")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="upkeep")
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._store.leftovers.collect_if_due()
                self._store.leftovers.remove_strays_if_due()
                if self._store.sealed:
                    self._rotate()
            except HesearchError as error:
                _log.error("upkeep: %s", error)
            except Exception as error:  # a defect: the next look may fare better
                _log.error("upkeep failed", exc_info=error)
            self._stop.wait(min(_LOOK_S, self._store.leftovers.every_s))

    def _rotate(self) -> None:
        written = rotate(self._store, self._older_than_s, self._stop.is_set)
        if written:
            _log.warning("data keys: %d files were written anew under their collection's newest key", written)

    def __enter__(self) -> Upkeep:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
