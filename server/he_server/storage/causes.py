"""Why PostgreSQL, object storage or an actor failed, for the log of who runs the server: callers learn no addresses."""

from __future__ import annotations

import logging
import re
import threading
import time

_AGAIN_S = 60.0
_MOST = 500  #: characters
_QUERY = re.compile(r"\?[^\s?]+=\S*")  #: of a URL: some services have signatures there
_log = logging.getLogger(__name__)


class Causes:
    """Thread-safe. The same kind of failure is said once a minute, as calls are repeated."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._said: dict[str, float] = {}  # by kind: when

    def say(self, kind: str, text: str) -> None:
        """kind: one of a few, such as "storage: GenericError while listing". text: what the library says of it."""
        now_s = time.monotonic()
        with self._lock:
            if now_s - self._said.get(kind, -_AGAIN_S) < _AGAIN_S:
                return
            self._said[kind] = now_s
        _log.warning("%s: %s", kind, _QUERY.sub("?…", " ".join(text.split()))[:_MOST])
