"""What is found wrong while a search goes on is raised when nothing of it is left to send.

A server must not see from what a client does next whether an answer was right. So what is sent follows from the shape
of the responses alone: calls that break off are made again, later calls of the same search are made, and a newer
manifest is read, all as if every answer had been right.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from he_engine.errors import HesearchError


@contextlib.contextmanager
def raised_last() -> Iterator[list[BaseException]]:
    """A list for what was found wrong; its first entry is raised at the end of the `with` block, also in the place of
    an error of ours that ended it: that the server lied matters more."""
    wrong: list[BaseException] = []
    try:
        yield wrong
    except HesearchError:
        if not wrong:
            raise
    if wrong:
        raise wrong[0] from None
