"""What a caller can do about an error that a server reported, added to its message. Both transports use it."""

from __future__ import annotations

from he_engine.errors import DamagedDataError, HesearchError, LimitExceeded, TamperedDataError

#: The first brings back everything, if a backup has it.
DAMAGED = (
    "The server's operator may bring it back whole (`hesearch fsck DATA --repair --from BACKUP`); if not, "
    "`hesearch repair` goes on without the rows that are lost"
)
_SMALLER = {
    "Answer": "search with fewer queries at a time",
    "CommitManifest": "compact the collection",
    "WriteSegment": "send fewer rows at a time",
}  #: by the method that met a limit


def advised(method: str, error: HesearchError) -> HesearchError:
    """The error to raise for one that the server gave to a call of `method`."""
    if isinstance(error, TamperedDataError):
        return DamagedDataError(f"{error}. {DAMAGED}")
    if isinstance(error, LimitExceeded):
        ways = [way for way in (_SMALLER.get(method), "ask the server's operator") if way]
        return LimitExceeded(f"{error}; {', or '.join(ways)}")
    return error
