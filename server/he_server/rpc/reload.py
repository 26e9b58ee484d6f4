"""SIGHUP: what may be replaced while the server runs is read again; what does not load stays as it was."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from he_engine.errors import HesearchError

_log = logging.getLogger(__name__)


def reload(sources: Mapping[str, Callable[[], None]]) -> None:
    """Calls each source, which takes what its files hold now or raises a HesearchError and stays as it was; says in
    the log which did what."""
    for name, source in sources.items():
        try:
            source()
        except HesearchError as error:
            _log.error("%s: not reloaded, the old ones stay: %s", name, error)
        else:
            _log.info("%s: reloaded", name)
    if not sources:
        _log.info("nothing to reload")
