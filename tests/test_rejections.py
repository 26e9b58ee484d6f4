"""Rejected answers are counted for each fingerprint; one that has rejected too many verifies no more."""

from __future__ import annotations

from pathlib import Path

import pytest

from he_client import TamperedAnswerError, rejections
from he_client.rejections import Rejections
from he_proto.v1 import hesearch_pb2 as pb


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
    with pytest.raises(TamperedAnswerError, match="reseal --fingerprint"):
        counted.require([two, one])
    assert not Rejections(None).worn(one)
    memory = Rejections(None)
    for _ in range(3):
        memory.add([one])
    assert memory.worn(one)
