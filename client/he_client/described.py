"""Collections as a server describes them. Nothing of that is authenticated: it is compared with what was asked for, and
what no honest server says is a TamperedDataError."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from he_client.transport import Remote
from he_engine.errors import InvalidInput, TamperedDataError
from he_proto import wire
from he_proto.v1 import hesearch_pb2 as pb


def describe_collection(remote: Remote, name: str) -> pb.Collection:
    """Raises InvalidInput for a name that none has, NotFound, FormatVersionError, TamperedDataError, Unavailable."""
    request = pb.DescribeCollectionRequest(format_version=wire.FORMAT_VERSION, collection=wire.check_name(name))
    found: pb.Collection = remote.call("DescribeCollection", request)
    with _of_the_server():
        wire.check_context(found.context, collection=name)
    return found


def list_collections(remote: Remote) -> list[pb.Collection]:
    """Raises FormatVersionError, TamperedDataError, Unavailable."""
    request = pb.ListCollectionsRequest(format_version=wire.FORMAT_VERSION)
    found = remote.call("ListCollections", request).collections
    with _of_the_server():
        for one in found:
            wire.check_context(one.context)
    return list(found)


def described_parameters(found: pb.Collection) -> wire.PublicParameters:
    """Raises FormatVersionError, TamperedDataError."""
    with _of_the_server():
        return wire.parameters_from_wire(found.parameters)


@contextlib.contextmanager
def _of_the_server() -> Iterator[None]:
    """What is wrong is not the caller's input."""
    try:
        yield
    except InvalidInput as error:
        raise TamperedDataError(f"description by the server: {error}") from None
