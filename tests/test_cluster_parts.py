"""What a cluster is made of, without Ray: who has which segment, what counts once, where a segment is read."""

from __future__ import annotations

import contextlib
import pickle
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from he_client import CollectionKey
from he_engine.errors import Conflict, TamperedDataError, Unavailable
from he_proto import wire
from he_proto.v1 import hesearch_pb2 as pb
from he_server.cluster import shard as shard_module
from he_server.cluster.coverage import Coverage
from he_server.cluster.messages import Asked, Batch
from he_server.cluster.placement import SPARE, placed
from he_server.cluster.shard import Shard, ShardSettings
from he_server.cluster.waits import Waits
from he_server.storage.kek import KeyProvider
from he_server.storage.places import Place
from he_server.storage.rekey import rotate
from he_server.storage.store import Store
from tests.cluster.answers import filled, queries_of, residues
from tests.cluster_fixture import serving
from tests.s3_fixture import ENVIRONMENT
from tests.server_fixture import PARAMETERS
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
    assert moved / total < 0.1  # 0.08: sizes differ a thousandfold here


def test_equal_segments_spread_evenly_and_stay(rng: np.random.Generator) -> None:
    """What docs/cluster.md says of SPARE."""
    fullest, moved = [], []
    for _ in range(20):
        *segments, new = (Sized((b"c" * 16, rng.bytes(32)), 64 << 20) for _ in range(301))
        parts, later = placed(segments, 16), placed([*segments, new], 16)
        fullest.append(max(map(len, parts)) * 16 / 300)
        moved.append(sum(one not in later[number] for number, part in enumerate(parts) for one in part))
    assert np.mean(fullest) < 1.1
    assert np.mean(moved) < 2


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


def test_a_place_is_made_once_and_anew_for_another_file(tmp_path: Path) -> None:
    made(tmp_path, KEK, [[b"i"], [b"j"]])
    with _open(tmp_path, KEK) as store:
        with store.places(RECORD, 2) as first, store.places(RECORD, 2) as second:
            assert all(one is other for one, other in zip(first.segments, second.segments, strict=True))
        assert rotate(store, 0.0) == 2
        with store.places(RECORD, 2) as third:
            for before, after in zip(first.segments, third.segments, strict=True):
                assert before.key == after.key
                assert before.secret != after.secret


def test_a_collection_that_is_made_again_is_another(tmp_path: Path) -> None:
    """Also where its id, version and segments are the same: who searches the old one shares no pass with the new."""
    made(tmp_path, None, [[b"i"]])
    editions = set()
    with _open(tmp_path, None) as store:
        for _ in range(3):
            with store.snapshot(RECORD, 2) as snapshot:
                editions.add(snapshot.edition)
            store.drop(RECORD)
            store.create(RECORD, b"sealed", 10)
            store.commit(RECORD, 1, b"sealed 2", [uploaded(store, [b"i"])])
    assert len(editions) == 3


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


# ---- a shard, as an actor would be ---------------------------------------------------------------------------
@pytest.fixture
def asked(tmp_path: Path) -> Iterator[tuple[Asked, NDArray[np.uint8], bytes]]:
    """Five segments of a collection, three queries, and what one process answers, in the order of segments."""
    with serving(tmp_path, None) as (address, service):
        filled(address, CollectionKey.generate(), "compact")
        (record,) = service.store.collections()
        parameters = wire.parameters_from_wire(pb.Parameters.FromString(record.parameters))
        expected = residues(service)
        with service.store.places(record, record.version) as snapshot:
            places = tuple(snapshot.segments)
            message = queries_of(parameters, 3)
            yield (
                Asked(b"name", parameters, places),
                np.frombuffer(b"".join(message), np.uint8).reshape(3, -1),
                b"".join(expected[place.key[1], query] for place in places for query in range(3)),
            )


@pytest.fixture
def shard(monkeypatch: pytest.MonkeyPatch) -> Shard:
    """Every piece is a batch."""
    monkeypatch.setattr(shard_module, "TAKE_BYTES", 1)
    return Shard(ShardSettings("", 1, "", 1 << 30))


def _all(shard: Shard, call_id: bytes, batch: Batch) -> list[Batch]:
    batches = [batch]
    while not batches[-1].done:
        batches.append(shard.take(call_id))
    return batches


def test_a_shard_gives_every_answer_once(shard: Shard, asked: tuple[Asked, NDArray[np.uint8], bytes]) -> None:
    what, queries, expected = asked
    batches = _all(shard, b"call", shard.open(b"call", what.name, {}, queries, what))
    assert sum(bool(batch.headers) for batch in batches) > 5
    found: dict[tuple[int, int], bytes] = {}
    for batch in batches:
        assert batch.error is None
        for segment, query, first, _ in batch.headers:
            assert first == 0 and (segment, query) not in found
            found[segment, query] = batch.answers.tobytes()
    assert b"".join(found[segment, query] for segment in range(len(what.places)) for query in range(3)) == expected
    assert len(shard._calls) == 0
    assert shard.take(b"call").unknown


def test_a_shard_remembers_what_it_was_asked(
    shard: Shard, asked: tuple[Asked, NDArray[np.uint8], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its name; what was asked the longest ago is forgotten first, and has to be said again."""
    monkeypatch.setattr(shard_module, "_TOLD", 1)
    what, queries, expected = asked
    assert shard.open(b"first", what.name, {}, queries).untold
    assert shard.take(b"first").unknown
    for call_id, said in ((b"first", what), (b"second", None)):
        batches = _all(shard, call_id, shard.open(call_id, what.name, {}, queries, said))
        assert sum(batch.answers.nbytes for batch in batches) == len(expected)
    other = Asked(b"other", what.parameters, what.places[:1])
    _all(shard, b"third", shard.open(b"third", other.name, {}, queries, other))
    assert shard.open(b"fourth", what.name, {}, queries).untold


def test_who_can_stand_in_for_a_shard(shard: Shard, asked: tuple[Asked, NDArray[np.uint8], bytes]) -> None:
    """Who has in memory what the other was searched for last, or could not have all of it."""
    what, queries, _ = asked
    assert shard.lately() == {}
    later = replace(what, name=b"later", places=what.places[1:])
    for one in (what, later):
        _all(shard, one.name, shard.open(one.name, one.name, {}, queries, one))
    lately = shard.lately()
    assert lately == {place.key: place.index_bytes for place in later.places}
    small = sum(lately.values()) - 1
    assert Shard(ShardSettings("", 1, "", small)).stands_in(lately)
    other = Shard(ShardSettings("", 1, "", 2 * small))
    assert not other.stands_in(lately)
    other.load(what.places[2:], {})
    assert not other.stands_in(lately)
    other.load(what.places[1:2], {})
    assert other.stands_in(lately)


def test_a_shard_takes_so_many_calls_at_a_time(
    shard: Shard, asked: tuple[Asked, NDArray[np.uint8], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that it has no room for holds nothing, and another can be opened as soon as one has ended."""
    monkeypatch.setattr(shard_module, "_OPEN", 1)
    what, queries, expected = asked
    first = shard.open(b"first", what.name, {}, queries, what)
    assert shard.open(b"second", what.name, {}, queries).full
    assert list(shard._calls) == [b"first"]
    assert sum(batch.answers.nbytes for batch in _all(shard, b"first", first)) == len(expected)
    shard.open(b"slow", what.name, {}, queries)
    assert shard.open(b"third", what.name, {}, queries).full
    monkeypatch.setattr(shard_module, "_SLOW_S", 0.0)
    again = _all(shard, b"third", shard.open(b"third", what.name, {}, queries))
    assert sum(batch.answers.nbytes for batch in again) == len(expected)
    assert shard.take(b"slow").unknown  # it had taken nothing for the longest time


def test_a_call_that_was_left_is_forgotten(shard: Shard, asked: tuple[Asked, NDArray[np.uint8], bytes]) -> None:
    what, queries, _ = asked
    batch = shard.open(b"call", what.name, {}, queries, what)
    assert not batch.done
    shard._drop(b"call")
    assert shard.take(b"call").unknown
    assert not any(scan for scan in shard._scans._scans)
    shard._drop(b"late")  # it overtakes what it leaves
    assert shard.open(b"late", what.name, {}, queries, what).unknown
    assert not shard._calls


def test_a_shard_says_what_is_damaged(shard: Shard, asked: tuple[Asked, NDArray[np.uint8], bytes]) -> None:
    what, queries, _ = asked
    path = Path(what.places[2].path)
    path.write_bytes(path.read_bytes()[:-1])
    batch = _all(shard, b"call", shard.open(b"call", what.name, {}, queries, what))[-1]
    assert isinstance(batch.error, TamperedDataError)
    assert batch.damaged == (2,)


class Refusing(BaseHTTPRequestHandler):
    """An object storage whose credentials have expired."""

    def do_HEAD(self) -> None:
        self.send_response(403)
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


def test_a_shard_counts_what_its_storage_refuses(
    asked: tuple[Asked, NDArray[np.uint8], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"s3://bucket/prefix?endpoint=http://127.0.0.1:{server.server_address[1]}"
        shard = Shard(ShardSettings(url, 1, "", 1 << 30))
        shard.load([replace(place, path="") for place in asked[0].places], {})
        assert shard.object_failures == len(asked[0].places)
        assert shard.held_bytes == 0
        server.shutdown()


def test_more_than_fits_is_answered(asked: tuple[Asked, NDArray[np.uint8], bytes]) -> None:
    what, queries, expected = asked
    small = Shard(ShardSettings("", 1, "", 2 * what.places[0].index_bytes))
    batches = _all(small, b"call", small.open(b"call", what.name, {}, queries, what))
    assert sum(batch.answers.nbytes for batch in batches) == len(expected)
    assert small._indexes.held_bytes <= 2 * what.places[0].index_bytes


def test_one_node_takes_no_segment_from_the_others(tmp_path: Path) -> None:
    made(tmp_path, None, [[b"i" * 9000]])
    with _open(tmp_path, None) as store, store.places(RECORD, 2) as snapshot:
        (place,) = snapshot.segments
        with pytest.raises(Unavailable, match="sound here"):
            store.place_damaged(place)
        assert store.has(place.key)


def test_keys_travel_beside_the_places(tmp_path: Path) -> None:
    made(tmp_path, KEK, [[b"i"]])
    with _open(tmp_path, KEK) as store, store.places(RECORD, 2) as snapshot:
        (place,) = snapshot.segments
        bare = replace(place, secret=b"")
        assert place.secret not in pickle.dumps(Asked(b"name", PARAMETERS, (bare,)))
        with pytest.raises(TamperedDataError, match="its data key is not there"), bare.opened(None):
            pass
        with bare.with_key({place.record.generation: place.secret}).opened(None) as (description, _):
            assert description.segment_id == place.key[1]
