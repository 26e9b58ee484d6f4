"""Rejected answers are counted for each fingerprint; one that has rejected too many verifies no more."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from he_client import TamperedAnswerError, rejections
from he_client.pins import Pins
from he_client.rejections import Rejections
from he_engine.errors import HesearchError
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


def test_a_count_is_on_the_disk_with_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the folder in its own; also where the file was made by another process, which may not have synced yet."""
    fsync, synced = os.fsync, list[str]()

    def recorded(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", recorded)
    counted = Rejections(tmp_path / "above" / "state")
    assert synced == [tmp_path.name, "above"]
    for _ in range(2):
        synced.clear()
        counted.add([entry(b"1" * 32)])
        assert synced == [(b"1" * 32).hex() + ".rejected", "state"]


def test_a_state_folder_that_is_gone_is_no_segment_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NotFound would have a search ask the server again. That an answer was wrong is said all the same."""
    monkeypatch.setattr(rejections, "MAX", 1)
    counted, pins = Rejections(tmp_path / "state"), Pins("server", tmp_path / "state")
    shutil.rmtree(tmp_path / "state")
    with pytest.raises(TamperedAnswerError, match=r"could not be counted.*No such file"):
        counted.add([entry(b"1" * 32), entry(b"2" * 32)])
    assert counted.worn(entry(b"1" * 32)) and counted.worn(entry(b"2" * 32)), "in memory it was"
    with pytest.raises(HesearchError, match="No such file") as caught:
        pins.forget("notes")
    assert type(caught.value) is HesearchError
