"""Rotation of data keys: a collection gets a new one, its files are written anew, then the old one is forgotten.

All of it goes on while the collection is searched and written, and may stop anywhere: what is left is found by
comparing each file's generation with the newest. A folder just sealed is the same case, from generation 0 to 1.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from types import TracebackType

from he_engine.errors import HesearchError, NotFound, TamperedDataError, Unavailable
from he_server.storage.store import Store

_log = logging.getLogger(__name__)
_LOOK_S = 3600.0  #: between two looks for keys that are too old
DAY_S = 24 * 3600.0


def rotate(
    store: Store,
    older_than_s: float,
    stop: Callable[[], bool] = lambda: False,
    progress: Callable[[int], None] = lambda _: None,
    now_s: Callable[[], float] = time.time,
) -> int:
    """New data keys where they were made `older_than_s` ago or earlier, and every file under its newest; the number
    of files written. `progress` is given each file's bytes. A damaged file keeps its old key, and stays.

    Raises ReadOnlyError, LimitExceeded, Unavailable where the disk fails; it goes on when it is called again.
    """
    written = 0
    for state in store.states():
        collection_id = state.record.collection_id
        try:
            if state.newest_key is not None and now_s() - state.newest_key.made_s >= older_than_s:
                store.add_data_key(collection_id)
            for record in store.outdated(collection_id):
                if stop():
                    return written
                try:
                    written += store.reseal(record)
                except (NotFound, TamperedDataError, Unavailable) as error:  # dropped meanwhile, damaged, unreadable
                    _log.warning("data keys: a segment was left as it is: %s", error)
                progress(record.stored_bytes)
            store.drop_old_data_keys(collection_id)
        except NotFound:  # the collection was dropped meanwhile
            continue
    return written


class Rotator:
    """Rotates in a thread of its own, at once and then every hour. A context manager that ends it."""

    def __init__(self, store: Store, key_days: float) -> None:
        """key_days: 0: no new keys; files that are under an old one are written anew all the same."""
        self._store = store
        self._older_than_s = key_days * DAY_S if key_days else float("inf")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rekey")
        if store.sealed:
            self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                written = rotate(self._store, self._older_than_s, self._stop.is_set)
                if written:
                    _log.warning("data keys: %d files were written anew under their collection's newest key", written)
            except HesearchError as error:
                _log.error("data keys: %s", error)
            except Exception as error:  # a defect: the next look may fare better
                _log.error("data keys: the look for old ones failed", exc_info=error)
            self._stop.wait(_LOOK_S)

    def __enter__(self) -> Rotator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()
