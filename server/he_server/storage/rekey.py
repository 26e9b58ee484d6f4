"""Rotation of data keys: a collection gets a new one, its files are written anew, then the old one is forgotten.

All of it goes on while the collection is searched and written, and may stop anywhere: what is left is found by
comparing each file's generation with the newest. A folder just sealed is the same case, from generation 0 to 1.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from he_engine.errors import LimitExceeded, NotFound, TamperedDataError, Unavailable
from he_server.storage.store import Store

_log = logging.getLogger(__name__)


def rotate(
    store: Store,
    older_than_s: float,
    stop: Callable[[], bool] = lambda: False,
    progress: Callable[[int], None] = lambda _: None,
    now_s: Callable[[], float] = time.time,
) -> int:
    """New data keys where they were made `older_than_s` ago or earlier, and every file under its newest; the number
    of files written. `progress` is given each file's bytes. A damaged file keeps its old key, and stays.

    What does not fit the disk is passed over: it raises LimitExceeded in the end. Raises ReadOnlyError, Unavailable
    where the disk fails. It goes on when it is called again.
    """
    written = 0
    too_large: LimitExceeded | None = None
    room_bytes = float("inf")
    for state in store.states():
        collection_id = state.record.collection_id
        try:
            if state.newest_key is not None and now_s() - state.newest_key.made_s >= older_than_s:
                store.data_keys.add(collection_id)
            for record in store.data_keys.outdated(collection_id):
                if stop():
                    return written
                if record.stored_bytes >= room_bytes:
                    continue
                try:
                    written += store.data_keys.reseal(record)
                except (NotFound, TamperedDataError, Unavailable) as error:  # dropped meanwhile, damaged, unreadable
                    _log.warning("data keys: a segment was left as it is: %s", error)
                except LimitExceeded as error:
                    too_large, room_bytes = error, record.stored_bytes
                progress(record.stored_bytes)
            store.data_keys.drop_old(collection_id)
        except NotFound:  # the collection was dropped meanwhile
            continue
    if too_large is not None:
        raise too_large
    return written
