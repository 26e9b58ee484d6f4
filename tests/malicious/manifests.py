"""Lies about histories, collections and their manifests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from he_client.transport import Transport
from he_engine.errors import (
    Conflict,
    FormatVersionError,
    HesearchError,
    RollbackError,
    TamperedAnswerError,
    TamperedDataError,
    Unavailable,
    WrongKeyError,
)
from he_proto.v1 import hesearch_pb2 as pb
from tests.malicious.lies import lie
from tests.malicious.pieces import refusal
from tests.malicious.server import Call, Tell, copy_of, silent
from tests.malicious.world import NOTES, TWIN

DATA = TamperedDataError
PART = "ReadSegmentPart"


# ---- histories -----------------------------------------------------------------------------------------------
def routed(server: str) -> Tell:
    """All of it by an honest server of another state."""

    def tell(call: Call) -> list[Any]:
        other: Transport = getattr(call.world, server)
        return call.ask(other)

    return tell


for state, what in (("old", "an older state"), ("fork", "a forked history")):
    everything = {"everything": True}
    lie(f"{what}, to a reader that looks for news", "refresh", "", RollbackError, **everything)(routed(state))
    lie(f"{what}, to a client that comes again", "open pinned", "", RollbackError, **everything)(routed(state))
    lie(f"the manifest of {what}", "refresh", "ReadManifest", RollbackError)(routed(state))
    lie(f"the manifest of {what}, at the opening", "open pinned", "ReadManifest", RollbackError)(routed(state))
    lie(f"the answers of {what}", "search", "Answer", Conflict, TamperedAnswerError, harmless=True)(routed(state))


@lie("a forked history shown to one of two clients", "two clients", "", RollbackError, lasting=True)
def forked_for_one(call: Call) -> list[Any]:
    return call.ask(call.world.fork)


@lie("an older manifest under the newest version's number", "refresh", "ReadManifest", WrongKeyError)
def renumbered(call: Call) -> list[Any]:
    old, new = call.ask(call.world.old)[0], call.honest()[0]
    old.version = new.version
    if call.rng.random() < 0.5:
        del old.live_segments[:]
        old.live_segments.extend(new.live_segments)
    return [old]


# ---- collections and their descriptions ----------------------------------------------------------------------
def renamed(request: Any, to: str) -> Any:
    """The request, about another collection."""
    changed = copy_of(request)
    if isinstance(changed, pb.DescribeCollectionRequest):
        changed.collection = to
    elif isinstance(changed, pb.AnswerRequest):
        if changed.HasField("header"):
            changed.header.context.collection = to
    else:
        changed.context.collection = to
    return changed


@lie("collections swapped", "open", "", WrongKeyError, everything=True)
def swapped_collections(call: Call) -> list[Any]:
    """The twin, which has the same key and the same parameters, under the name that was asked for."""
    found = call.ask(call.world.main, [renamed(request, TWIN) for request in call.requests])
    for response in found:
        if response.HasField("context"):
            response.context.collection = NOTES
    return found


def describing(change: Callable[[Call, pb.Collection], None]) -> Tell:
    def tell(call: Call) -> list[Any]:
        found = call.honest()[0]
        change(call, found)
        return [found]

    return tell


@lie("another parameter digest in a description", "open", "DescribeCollection", FormatVersionError, DATA)
@describing
def described_digest(call: Call, found: pb.Collection) -> None:
    found.context.parameter_digest = [b"", bytes(32), call.rng.bytes(32), bytes(31)][int(call.rng.integers(4))]


@lie("parameters swapped in a description", "open", "DescribeCollection", harmless=True)
@describing
def described_parameters(call: Call, found: pb.Collection) -> None:
    """Clients take them from the sealed manifest."""
    found.parameters.profile = ["compact", "precise", "none", ""][int(call.rng.integers(4))]
    found.parameters.dim, found.parameters.stride = (int(n) for n in call.rng.integers(0, 1 << 20, 2))
    engines = (pb.ENGINE_UNSPECIFIED, pb.ENGINE_HINT, pb.ENGINE_TENSEAL)
    found.parameters.engine = engines[int(call.rng.integers(3))]


@lie("other counts in a description", "open", "DescribeCollection", harmless=True)
@describing
def described_counts(call: Call, found: pb.Collection) -> None:
    for field in ("version", "segments", "blocks", "stored_bytes", "index_bytes"):
        setattr(found, field, int(call.rng.integers(1 << 62)))
    found.collection_id = call.rng.bytes(int(call.rng.integers(40)))


@lie("a description of another collection", "open", "DescribeCollection", FormatVersionError, DATA)
@describing
def described_other(call: Call, found: pb.Collection) -> None:
    found.context.collection = [TWIN, "", "../notes", "Notes"][int(call.rng.integers(4))]


@lie("a description of another format", "open", "DescribeCollection", FormatVersionError)
@describing
def described_format(call: Call, found: pb.Collection) -> None:
    found.context.format_version = int(call.rng.choice([0, 2, (1 << 32) - 1]))


# ---- manifests -----------------------------------------------------------------------------------------------
def altering(change: Callable[[Call, pb.ReadManifestResponse], None]) -> Tell:
    def tell(call: Call) -> list[Any]:
        found = call.honest()[0]
        change(call, found)
        return [found]

    return tell


def flipped(call: Call, raw: bytes) -> bytes:
    """One to eight bits of it, at most."""
    changed = bytearray(raw)
    for at in call.rng.choice(8 * len(raw), min(int(call.rng.integers(1, 9)), 8 * len(raw)), replace=False):
        changed[at // 8] ^= 1 << (at % 8)
    return bytes(changed)


def other_length(call: Call, raw: bytes) -> bytes:
    """Less of it, or more."""
    if call.rng.random() < 0.5:
        return raw[: int(call.rng.integers(len(raw)))]
    return raw + call.rng.bytes(int(call.rng.integers(1, 100)))


@lie("bits of a manifest flipped", "open", "ReadManifest", WrongKeyError)
@altering
def manifest_bits(call: Call, found: pb.ReadManifestResponse) -> None:
    found.sealed_manifest = flipped(call, found.sealed_manifest)


@lie("a manifest of another length", "open", "ReadManifest", WrongKeyError)
@altering
def manifest_length(call: Call, found: pb.ReadManifestResponse) -> None:
    found.sealed_manifest = other_length(call, found.sealed_manifest)


@lie("another version with a manifest", "open", "ReadManifest", WrongKeyError)
@altering
def manifest_version(call: Call, found: pb.ReadManifestResponse) -> None:
    others = [0, 1, found.version - 1, found.version + 1, found.version + 256, (1 << 64) - 1]
    found.version = others[int(call.rng.integers(len(others)))]


@lie("another collection's id with a manifest", "open", "ReadManifest", WrongKeyError)
@altering
def manifest_id(call: Call, found: pb.ReadManifestResponse) -> None:
    found.collection_id = [b"", bytes(16), flipped(call, found.collection_id)][int(call.rng.integers(3))]


@lie("other live segments with a manifest", "open", "ReadManifest", DATA)
@altering
def manifest_segments(call: Call, found: pb.ReadManifestResponse) -> None:
    ids = list(found.live_segments)
    at = int(call.rng.integers(len(ids)))
    kinds = [[*ids[:at], *ids[at + 1 :]], [*ids, ids[at]], [*ids, bytes(32)], [*ids[:at], b"x", *ids[at + 1 :]], []]
    del found.live_segments[:]
    found.live_segments.extend(kinds[int(call.rng.integers(len(kinds)))])


@lie("live segments in another order", "open", "ReadManifest", harmless=True)
@altering
def manifest_order(call: Call, found: pb.ReadManifestResponse) -> None:
    ids = [found.live_segments[i] for i in call.rng.permutation(len(found.live_segments))]
    del found.live_segments[:]
    found.live_segments.extend(ids)


@lie("the manifest of the twin collection", "open", "ReadManifest", WrongKeyError)
def manifest_of_twin(call: Call) -> list[Any]:
    found = call.ask(call.world.main, [renamed(call.request, TWIN)])[0]
    if call.rng.random() < 0.5:
        found.collection_id = call.honest()[0].collection_id
    return [found]


@lie("an error in place of a manifest", "refresh", "ReadManifest", HesearchError, harmless=True, hasty=True)
def manifest_error(call: Call) -> Iterator[Any]:
    raise refusal(call)
    yield


@lie("no manifest and no end", "refresh", "ReadManifest", Unavailable, hasty=True, everything=True)
def manifest_never(call: Call) -> Iterator[Any]:
    yield from silent(call)
