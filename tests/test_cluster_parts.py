"""What a cluster is made of, without Ray: who has which segment, what counts once, where a segment is read."""

from __future__ import annotations

import contextlib
import pickle
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from he_engine.errors import Conflict, TamperedDataError
from he_server.cluster.coverage import Coverage
from he_server.cluster.placement import SPARE, placed
from he_server.cluster.waits import Waits
from he_server.storage.kek import KeyProvider
from he_server.storage.places import Place
from he_server.storage.store import Store
from tests.store_fixture import KEK, RECORD, made, path_of, sha256, uploaded


@dataclass(frozen=True)
class Sized:
    key: tuple[bytes, bytes]
    index_bytes: int
    blocks: int = 1


def _segments(rng: np.random.Generator, count: int) -> list[Sized]:
    return [Sized((b"c" * 16, rng.bytes(32)), int(size)) for size in rng.integers(1, 1000, count)]


def test_every_segment_has_one_shard_and_no_shard_too_much(rng: np.random.Generator) -> None:
    for _ in range(50):
        shards, segments = int(rng.integers(1, 12)), _segments(rng, int(rng.integers(1, 200)))
        parts = placed(segments, shards)
        assert len(parts) == shards
        assert Counter(one.key for part in parts for one in part) == Counter(one.key for one in segments)
        share = sum(one.index_bytes for one in segments) / shards
        for part in parts:
            load = sum(one.index_bytes for one in part)
            assert load <= max(SPARE * share, share + max(one.index_bytes for one in segments))
        shuffled = [segments[i] for i in rng.permutation(len(segments))]
        assert placed(shuffled, shards) == parts  # front ends list them in any order


def test_a_new_segment_moves_few_others(rng: np.random.Generator) -> None:
    moved = total = 0
    for _ in range(20):
        segments = _segments(rng, 100)
        before = {one.key: number for number, part in enumerate(placed(segments, 8)) for one in part}
        after = {
            one.key: number for number, part in enumerate(placed([*segments, *_segments(rng, 1)], 8)) for one in part
        }
        moved += sum(before[key] != after[key] for key in before)
        total += len(before)
    assert moved / total < 0.05


def test_what_comes_twice_is_taken_once(rng: np.random.Generator) -> None:
    """Pieces cut in two ways, in any order: every block once, from whichever came first."""
    blocks = [70, 1, 33]
    for _ in range(30):
        coverage = Coverage(blocks, 2)
        pieces = []
        for size in (7, 10):
            for segment, count in enumerate(blocks):
                for query in range(2):
                    pieces += [(segment, query, f, min(size, count - f)) for f in range(0, count, size)]
        seen: Counter[tuple[int, int, int]] = Counter()
        for number in rng.permutation(len(pieces)):
            segment, query, first, count = pieces[number]
            for start, length in coverage.take(segment, query, first, count):
                assert first <= start < start + length <= first + count
                seen.update((segment, query, block) for block in range(start, start + length))
        assert coverage.complete
        assert set(seen.values()) == {1}
        assert len(seen) == 2 * sum(blocks)


def test_coverage_is_complete_with_the_last_block() -> None:
    coverage = Coverage([3], 1)
    assert list(coverage.take(0, 0, 0, 2)) == [(0, 2)]
    assert not coverage.complete
    assert list(coverage.take(0, 0, 0, 3)) == [(2, 1)]
    assert coverage.complete
    assert list(coverage.take(0, 0, 0, 3)) == []
    assert Coverage([], 4).complete


def test_what_is_late_follows_what_is_usual() -> None:
    waits = Waits()
    start = waits.late_s
    for _ in range(16):
        waits.add(0.2)
    assert waits.late_s == start  # too few to tell
    for _ in range(16):
        waits.add(0.2)
    assert waits.late_s == pytest.approx(0.4)
    for _ in range(256):
        waits.add(0.001)
    assert 0.001 < waits.late_s < 0.2


@pytest.mark.parametrize("kek", [None, KEK], ids=["unsealed", "sealed"])
def test_a_place_is_enough_to_read_a_segment(tmp_path: Path, kek: KeyProvider | None) -> None:
    contents = [[b"i" * (3 << 20), b"h" * 5000], [b"j" * 100]]
    ids = made(tmp_path, kek, contents)
    with _open(tmp_path, kek) as store, store.places(RECORD, 2) as snapshot:
        assert [place.key[1] for place in snapshot.segments] == ids
        for place, (index, *_) in zip(snapshot.segments, contents, strict=True):
            told: Place = pickle.loads(pickle.dumps(place))  # as it gets to a shard
            with told.opened(None) as (description, source):
                part = description.parts[0]
                out = bytearray(part.length_bytes)
                source.read_into(part.offset_bytes, memoryview(out))
            assert sha256(out) == sha256(index)
            assert place.index_bytes == len(index)


@pytest.mark.parametrize("kek", [None, KEK], ids=["unsealed", "sealed"])
def test_a_place_that_is_damaged_or_another_segments(tmp_path: Path, kek: KeyProvider | None) -> None:
    first, second = made(tmp_path, kek, [[b"i" * 9000], [b"j" * 9000]])
    with _open(tmp_path, kek) as store:
        with store.places(RECORD, 2) as snapshot:
            place, other = snapshot.segments
        path = path_of(tmp_path, first)
        right = path.read_bytes()
        path.write_bytes(path_of(tmp_path, second).read_bytes())
        with (
            pytest.raises(TamperedDataError, match=r"another segment's|does not match"),
            place.opened(None) as (_, source),
        ):
            source.read(0, 4096)
        path.write_bytes(right[:9000] + bytes([right[9000] ^ 1]) + right[9001:])
        with pytest.raises(TamperedDataError), place.opened(None) as (description, source):
            source.read(description.parts[0].offset_bytes, 9000)
        store.place_damaged(place)
        with pytest.raises(TamperedDataError, match="sending it again repairs it"):
            store.places(RECORD, 2)
        assert not store.has(place.key)
        assert store.has(other.key)
        assert uploaded(store, [b"i" * 9000]) == first
        with store.places(RECORD, 2) as snapshot:
            assert len(snapshot.segments) == 2


def test_a_place_says_no_key(tmp_path: Path) -> None:
    made(tmp_path, KEK, [[b"i"]])
    with _open(tmp_path, KEK) as store, store.places(RECORD, 2) as snapshot:
        (place,) = snapshot.segments
        assert len(place.secret) == 32
        assert repr(place.secret) not in repr(place)
        assert place.secret.hex() not in repr(place)


def test_a_version_that_is_no_more(tmp_path: Path) -> None:
    made(tmp_path, None, [[b"i"]])
    with _open(tmp_path, None) as store, pytest.raises(Conflict):
        store.places(RECORD, 1)


def _open(root: Path, kek: KeyProvider | None) -> contextlib.closing[Store]:
    return contextlib.closing(Store(root, kek=kek))
