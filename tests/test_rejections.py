"""Rejected answers are counted for each fingerprint; one that has rejected too many verifies no more."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from he_client import Client, Collection, CollectionKey, TamperedAnswerError, rejections
from he_client.parts import part_of
from he_client.rejections import Rejections
from he_proto.v1 import hesearch_pb2 as pb
from tests.conftest import unit_rows
from tests.lying_fixture import lying_client

DIM, STRIDE = 16, 128


def entry(digest: bytes, length: int = 10) -> pb.SegmentEntry:
    return pb.SegmentEntry(parts=[pb.Part(kind=pb.PART_KIND_FINGERPRINT, length_bytes=length, sha256=digest)])


def test_counts_last_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rejections, "MAX", 3)
    one, two, none = entry(b"1" * 32), entry(b"2" * 32), entry(b"3" * 32, length=0)
    for _ in range(2):
        Rejections(tmp_path).add([one, two, none])
    counted = Rejections(tmp_path)
    counted.require([one, two])
    counted.add([one, none])
    assert [counted.worn(e) for e in (one, two, none)] == [True, False, False]
    with pytest.raises(TamperedAnswerError, match="compact"):
        counted.require([two, one])
    assert not Rejections(None).worn(one)
    memory = Rejections(None)
    for _ in range(3):
        memory.add([one])
    assert memory.worn(one)


def fingerprints(collection: Collection) -> set[bytes]:
    parts = (part_of(e, pb.PART_KIND_FINGERPRINT) for e in collection._state.manifest.message.segments)
    return {part.sha256 for part in parts if part}


def filled(client: Client, rows: np.ndarray) -> Collection:
    made = client.create_collection("c", dim=DIM, stride=STRIDE, key=CollectionKey.generate(), profile="exact")
    made.insert(range(len(rows)), rows, progress=False)
    return made


def test_a_worn_fingerprint_verifies_nothing_until_compaction(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rejections, "MAX", 2)
    rows = unit_rows(rng, 40, DIM)
    with lying_client() as (client, transport):
        collection = filled(client, rows)
        honest = collection.search(rows[3], k=5)
        before = fingerprints(collection)

        def lie(pieces: list[pb.AnswerResponse]) -> list[pb.AnswerResponse]:
            pieces[0].residues = bytes([pieces[0].residues[0] ^ 1]) + pieces[0].residues[1:]
            return pieces

        transport.lies["Answer"] = lie
        for _ in range(2):
            with pytest.raises(TamperedAnswerError):
                collection.search(rows[3], k=5)
        transport.lies.clear()
        with pytest.raises(TamperedAnswerError, match="verifies no more"):
            collection.search(rows[3], k=5)
        report = collection.compact(progress=False)
        assert (report.rewritten, report.rows) == (1, 40)
        assert not before & fingerprints(collection)
        assert collection.search(rows[3], k=5) == honest
        assert collection.compact(progress=False).rewritten == 0
