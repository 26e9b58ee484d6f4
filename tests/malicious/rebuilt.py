"""Lies about blocks that are offered to a compaction, new fingerprints, a reseal or an export; about what was
acknowledged."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from he_engine.errors import Conflict, HesearchError, NotFound, RollbackError
from he_proto.v1 import hesearch_pb2 as pb
from tests.malicious.lies import lie
from tests.malicious.manifests import flipped, other_length
from tests.malicious.parts import DATA, KINDS, PART, Change, other_segment, part, twin_segment, zeroed
from tests.malicious.pieces import refusal
from tests.malicious.server import Call
from tests.malicious.world import PARAMETERS


def block_word(call: Call, raw: bytes) -> bytes:
    """One residue of a block, which stays canonical."""
    words = np.frombuffer(raw, "<u4").copy()
    words[int(call.rng.integers(len(words)))] ^= np.uint32(1)
    return words.tobytes()


def block_plus_modulus(call: Call, raw: bytes) -> bytes:
    """The same block modulo q."""
    words = np.frombuffer(raw, "<u4").astype(np.uint64).reshape(-1, len(PARAMETERS.ring.primes), PARAMETERS.ring.degree)
    block, row, slot = (int(call.rng.integers(n)) for n in words.shape)
    words[block, row, slot] += np.uint64(PARAMETERS.ring.primes[row])
    return words.astype("<u4").tobytes()


def block_plus_block(call: Call, raw: bytes) -> bytes:
    """Another segment's block added: a ciphertext of the sum of rows."""
    shape = (-1, len(PARAMETERS.ring.primes), PARAMETERS.ring.degree)
    primes = np.array(PARAMETERS.ring.primes, np.uint64).reshape(1, -1, 1)
    mine, other = (np.frombuffer(b, "<u4").astype(np.uint64).reshape(shape) for b in (raw, other_segment(call, raw)))
    return ((mine + other) % primes).astype("<u4").tobytes()


BLOCKS: dict[str, Change] = {
    "a residue changed": block_word,
    "a multiple of q added": block_plus_modulus,
    "another block added": block_plus_block,
    "another segment's": other_segment,
    "the twin collection's": twin_segment,
    "zeros": zeroed,
    "another length": other_length,
}
for scene in ("compact", "fingerprints", "reseal", "export"):
    for how, change in BLOCKS.items():
        lie(f"blocks offered to {scene}: {how}", scene, PART, DATA, part=pb.PART_KIND_INDEX)(part(change))
for scene in ("compact", "fingerprints"):
    for what, kind in KINDS.items():
        if what == "payloads" or scene == "fingerprints":
            lie(f"{what} offered to {scene}: bits flipped", scene, PART, DATA, part=kind)(part(flipped))


@lie("another segment described to an export", "export", "DescribeSegment", DATA)
def other_description(call: Call) -> list[Any]:
    found = call.honest()[0]
    at = int(call.rng.integers(len(found.parts)))
    kind = int(call.rng.integers(3))
    if kind == 0:
        found.blocks += 1
    elif kind == 1:
        found.parts[at].sha256 = flipped(call, found.parts[at].sha256)
    else:
        found.parts[at].length_bytes += 1
    return [found]


# ---- what was acknowledged -----------------------------------------------------------------------------------
@lie("a commit acknowledged and not made", "write", "CommitManifest", RollbackError, Conflict, NotFound)
def lost_commit(call: Call) -> list[Any]:
    request = call.request
    return [pb.CommitManifestResponse(context=request.context, version=request.expected_version + 1)]


@lie("a segment acknowledged and not stored", "write", "WriteSegment", HesearchError)
def lost_segment(call: Call) -> list[Any]:
    header = call.request.header
    return [pb.WriteSegmentResponse(context=header.context, segment_id=header.segment_id, existed=True)]


@lie("an error about a commit that was made", "write", "CommitManifest", HesearchError, harmless=True, hasty=True)
def made_in_spite(call: Call) -> Iterator[Any]:
    call.honest()
    raise refusal(call)
    yield


@lie("an error about a commit that was not made", "write", "CommitManifest", HesearchError, harmless=True, hasty=True)
def not_made(call: Call) -> Iterator[Any]:
    raise refusal(call)
    yield


@lie("another version in an acknowledgement", "write", "CommitManifest", harmless=True)
def other_version(call: Call) -> list[Any]:
    found = call.honest()[0]
    found.version = int(call.rng.integers(1 << 62))
    return [found]


@lie("another segment in an acknowledgement", "write", "WriteSegment", harmless=True)
def other_acknowledged(call: Call) -> list[Any]:
    found = call.honest()[0]
    found.segment_id, found.existed = call.rng.bytes(32), not found.existed
    return [found]
