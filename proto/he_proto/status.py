"""Errors across the wire: a HesearchError of the server is raised as the same class, with the same message.

The status code says the class roughly, for any gRPC client and proxy; a trailing metadata entry names it
exactly. What is not an error of ours becomes INTERNAL with a fixed text: no path, no byte of data leaks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import grpc

from he_engine import errors
from he_engine.errors import HesearchError

ERROR_METADATA = "hesearch-error"  #: trailing metadata: the name of the error class
_INTERNAL = "internal error: the server's log has the details"
_MAX_MESSAGE = 1000  #: characters

#: The errors that cross the wire. What is not here becomes INTERNAL with a fixed text, so that nothing leaks.
_STATUS: dict[type[HesearchError], grpc.StatusCode] = {
    errors.InvalidInput: grpc.StatusCode.INVALID_ARGUMENT,
    errors.ParameterError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.DimensionError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.ResidueError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    errors.Conflict: grpc.StatusCode.ABORTED,
    errors.FormatVersionError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.LimitExceeded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.TamperedDataError: grpc.StatusCode.DATA_LOSS,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
    errors.Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
    errors.QuotaExceeded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.ReadOnlyError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.MissingExtra: grpc.StatusCode.UNIMPLEMENTED,
}
_BY_NAME = {cls.__name__: cls for cls in _STATUS}
#: For answers without the metadata: gRPC itself, or a proxy, refused the call.
_BY_CODE: dict[grpc.StatusCode, type[HesearchError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: errors.InvalidInput,
    grpc.StatusCode.NOT_FOUND: errors.NotFound,
    grpc.StatusCode.UNAUTHENTICATED: errors.Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: errors.PermissionDenied,
    grpc.StatusCode.ALREADY_EXISTS: errors.AlreadyExists,
    grpc.StatusCode.ABORTED: errors.Conflict,
    grpc.StatusCode.FAILED_PRECONDITION: errors.FormatVersionError,
    grpc.StatusCode.UNIMPLEMENTED: errors.FormatVersionError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.Overloaded,  # too many calls at this moment, not one too large
    grpc.StatusCode.DATA_LOSS: errors.TamperedDataError,
    grpc.StatusCode.UNAVAILABLE: errors.Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.Unavailable,
    grpc.StatusCode.CANCELLED: errors.Unavailable,
}


@dataclass(frozen=True, slots=True)
class WireError:
    """What a client is told of an error."""

    code: grpc.StatusCode
    message: str
    name: str  #: for the metadata entry; empty where the class does not cross the wire


def status_of(error: BaseException) -> WireError:
    """How an error crosses the wire: with its own message if it is one of ours, with none of it otherwise."""
    for cls in type(error).__mro__:
        if cls in _STATUS:
            return WireError(_STATUS[cls], _printable(str(error)), cls.__name__)
    return WireError(grpc.StatusCode.INTERNAL, _INTERNAL, "")


def error_from_status(code: grpc.StatusCode, message: str, name: str = "") -> HesearchError:
    """The error to raise for what a server answered: the class it names, else the one nearest to the code."""
    cls = _BY_NAME.get(name)
    if cls is None or _STATUS[cls] is not code:
        cls = _BY_CODE.get(code)
    if cls is None:
        return HesearchError(f"the server failed ({code.name}): {_printable(message)}")
    return cls(_printable(message) or f"the server answered {code.name}")


def error_from_rpc(error: Any) -> HesearchError:
    """The error to raise for a grpc.RpcError that a stub raised."""
    metadata = dict(error.trailing_metadata() or ())
    name = metadata.get(ERROR_METADATA, "")
    return error_from_status(error.code(), error.details() or "", name if isinstance(name, str) else "")


def _printable(message: str) -> str:
    """Without control characters (a terminal shows these messages) and not longer than headers may be."""
    return "".join(c if c.isprintable() else "?" for c in message[:_MAX_MESSAGE])
