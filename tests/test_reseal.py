"""Reseal: everything lives on under the new key, nothing under the old one, wherever it was interrupted."""

from __future__ import annotations

import base64
import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from he_client import (
    Client,
    Collection,
    CollectionKey,
    Conflict,
    DuplicateIdError,
    FormatVersionError,
    InvalidInput,
    NotFound,
    TamperedDataError,
    WrongKeyError,
)
from he_client.upkeep.reseal_journal import Resealed, open_journal
from he_proto.v1 import hesearch_pb2 as pb
from tests.conftest import unit_rows
from tests.lying_fixture import lying_client
from tests.sdk_fixture import grpc_address

DIM = 8
ROWS = unit_rows(np.random.default_rng(3), 60, DIM)
QUERIES = unit_rows(np.random.default_rng(4), 2, DIM)


@pytest.fixture
def keys() -> tuple[CollectionKey, CollectionKey]:
    return CollectionKey.generate(), CollectionKey.generate()


def fill(client: Client, key: CollectionKey, **options: Any) -> Collection:
    """Three segments; rows deleted in the first; payloads of two kinds in the second."""
    made = client.create_collection("c", dim=DIM, key=key, **options)
    for part in range(3):
        ids = list(range(20 * part, 20 * part + 20))
        payloads = [None if i % 3 == 0 else f"text {i}" if i % 3 == 1 else bytes([i]) for i in ids]
        made.insert(ids, ROWS[ids], payloads=payloads if part == 1 else None)
    made.delete([0, 7, 19])
    return made


def everything(collection: Collection) -> list[list[Any]]:
    return collection.search(QUERIES, k=100)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"metric": "l2", "norm_bound": 1.5},
        {"metric": "ip", "norm_bound": 2.0},
    ],
)
def test_under_the_new_key_every_answer_is_the_same(
    options: dict[str, Any], keys: tuple[CollectionKey, CollectionKey], tmp_path: Path
) -> None:
    old, new = keys
    with Client(":memory:") as client:
        collection = fill(client, old, **options)
        before, version = everything(collection), collection.version
        stored = client.describe("c").stored_bytes
        report = collection.reseal(new, journal=tmp_path / "j")
        assert (report.version, report.segments, report.rows, report.made, report.reused) == (version + 1, 3, 57, 3, 0)
        assert not (tmp_path / "j").exists()
        again = client.open_collection("c", key=new)
        assert everything(again) == before
        assert client.describe("c").stored_bytes < stored  # the deleted rows are gone
        again.insert([0, "new"], ROWS[:2])  # an id that was deleted, and one more
        again.delete([1])
        assert again.count() == 58
        with pytest.raises(InvalidInput, match="closed"):
            collection.count()


def test_compact_profile_keeps_the_encoded_rows(keys: tuple[CollectionKey, CollectionKey], tmp_path: Path) -> None:
    with Client(":memory:") as client:
        collection = fill(client, keys[0], profile="compact")
        rows = [collection._store.rows(s, np.arange(s.entry.rows)).encoded for s in collection._state.current[1]]
        collection.reseal(keys[1], journal=tmp_path / "j")
        again = client.open_collection("c", key=keys[1])
        resealed = [again._store.rows(s, np.arange(s.entry.rows)).encoded for s in again._state.current[1]]
        np.testing.assert_array_equal(np.concatenate(resealed), np.concatenate(rows)[np.r_[1:7, 8:19, 20:60]])


def test_tenseal_gets_a_new_secret_key(keys: tuple[CollectionKey, CollectionKey], tmp_path: Path) -> None:
    old, new = keys
    with Client(":memory:") as client:
        collection = client.create_collection("c", dim=2, key=old, engine="tenseal")
        collection.insert(range(20), unit_rows(np.random.default_rng(1), 20, 2), payloads=[str(i) for i in range(20)])
        state = collection._state.manifest.message.engine_state
        query = unit_rows(np.random.default_rng(2), 1, 2)[0]
        before = collection.search(query, k=20)
        collection.reseal(new, journal=tmp_path / "j")
        again = client.open_collection("c", key=new)
        after = again.search(query, k=20)
        assert {h.id: h.payload for h in after} == {h.id: h.payload for h in before}
        assert [h.score for h in after] == pytest.approx([h.score for h in before], abs=1e-4)
        assert again._state.manifest.message.engine_state != state


def test_the_old_key_fails_and_says_why(keys: tuple[CollectionKey, CollectionKey], tmp_path: Path) -> None:
    old, new = keys
    with Client(":memory:") as client:
        fill(client, old)
        open_before = client.open_collection("c", key=old)
        client.reseal_collection("c", key=old, new_key=new, journal=tmp_path / "j")
        for action in (
            lambda: client.open_collection("c", key=old),
            lambda: open_before.search(QUERIES[0]),
            lambda: open_before.insert(["x"], ROWS[:1]),
            lambda: open_before.delete([1]),
        ):
            with pytest.raises(WrongKeyError, match="resealed"):
                action()
        assert client.open_collection("c", key=new).count() == 57


def test_nothing_of_the_old_ciphertexts_stays_on_the_server(
    keys: tuple[CollectionKey, CollectionKey], tmp_path: Path
) -> None:
    old, new = keys
    with Client(tmp_path / "data") as client:
        fill(client, old)
        before = segment_files(tmp_path / "data")
        client.reseal_collection("c", key=old, new_key=new, journal=tmp_path / "j")
        after = segment_files(tmp_path / "data")
        assert len(before) == len(after) == 3
        assert not before & after


def segment_files(folder: Path) -> set[bytes]:
    return {c for p in folder.rglob("*") if p.is_file() and (c := p.read_bytes())[:8] == b"HESEARCH"}


# ---- interruptions -------------------------------------------------------------------------------------------
class Stop(Exception):
    """Stands for the end of the client's process."""


def stopping_at(number: int) -> Callable[[], None]:
    left = number

    def count() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Stop

    return count


def reseal_stopped_at(
    stop: int, methods: tuple[str, ...], after: bool, keys: tuple[CollectionKey, CollectionKey], journal: Path
) -> bool:
    """Whether it ended in spite of that; a second one always does, and everything is there then."""
    old, new = keys
    step = stopping_at(stop)
    with lying_client() as (client, transport):
        before = everything(fill(client, old))

        def lost(response: Any) -> Any:
            step()
            return response

        if after:
            transport.lies = dict.fromkeys(methods, lost)
        else:
            transport.before = dict.fromkeys(methods, step)
        ended = False
        with contextlib.suppress(Stop):
            client.reseal_collection("c", key=old, new_key=new, journal=journal)
            ended = True
        transport.before, transport.lies = {}, {}
        report = client.reseal_collection("c", key=old, new_key=new, journal=journal)
        assert not journal.exists()
        assert (report.segments, report.rows) == (3, 57)
        assert everything(client.open_collection("c", key=new)) == before
        with pytest.raises(WrongKeyError):
            client.open_collection("c", key=old)
        return ended


@pytest.mark.parametrize(
    ("methods", "after", "least"),
    [
        (("ReadSegmentPart", "WriteSegment", "CommitManifest"), False, 7),
        (("WriteSegment", "CommitManifest"), True, 4),
    ],
)
def test_stopped_before_or_after_any_call_it_goes_on(
    methods: tuple[str, ...], after: bool, least: int, keys: tuple[CollectionKey, CollectionKey], tmp_path: Path
) -> None:
    stop = 0
    while not reseal_stopped_at(stop, methods, after, keys, tmp_path / str(stop)):
        stop += 1
    assert stop >= least  # three segments read and written, one commit


def test_what_is_stored_is_not_made_again(keys: tuple[CollectionKey, CollectionKey], tmp_path: Path) -> None:
    old, new = keys
    with lying_client() as (client, transport):
        fill(client, old)
        transport.before["CommitManifest"] = stopping_at(0)
        with pytest.raises(Stop):
            client.reseal_collection("c", key=old, new_key=new, journal=tmp_path / "j")
        transport.before.clear()
        opened = client.open_collection("c", key=old)
        assert opened.count() == 57  # still the old key's, and searchable
        opened.delete([1, 21, 25])  # after the copies were made
        opened.insert(["late"], ROWS[:1])
        report = client.reseal_collection("c", key=old, new_key=new, journal=tmp_path / "j")
        assert (report.made, report.reused, report.rows) == (1, 3, 55)
        again = client.open_collection("c", key=new)
        assert {h.id for h in again.search(QUERIES[0], k=100)} == {*range(60), "late"} - {0, 7, 19, 1, 21, 25}
        found = {h.id: h.payload for h in again.search(QUERIES[0], k=100)}
        assert (found[22], found[23], found[24]) == ("text 22", bytes([23]), None)


def test_segments_that_the_server_gave_up_are_made_again(
    keys: tuple[CollectionKey, CollectionKey], tmp_path: Path
) -> None:
    old, new = keys
    with lying_client() as (client, transport):
        before = everything(fill(client, old))
        store = transport.honest._service._store  # type: ignore[attr-defined]
        clock, days = store.leftovers._clock_s, [0]
        store.leftovers._clock_s = lambda: clock() + days[0] * 24 * 3600.0

        def two_days_pass() -> None:
            days[0] += 2
            store.leftovers.collect()

        def once() -> None:
            transport.before.clear()
            two_days_pass()

        transport.before["CommitManifest"] = stopping_at(0)
        with pytest.raises(Stop):
            client.reseal_collection("c", key=old, new_key=new, journal=tmp_path / "j")
        two_days_pass()
        transport.before["CommitManifest"] = once  # and again, right before the switch
        report = client.reseal_collection("c", key=old, new_key=new, journal=tmp_path / "j")
        assert (report.made, report.reused) == (6, 0)
        assert everything(client.open_collection("c", key=new)) == before


def test_a_lost_reply_to_the_switch_is_found_out_after_others_went_on(
    keys: tuple[CollectionKey, CollectionKey], tmp_path: Path
) -> None:
    old, new = keys
    with lying_client() as (client, transport):
        fill(client, old)

        def switch_and_go_on() -> None:
            transport.before.clear()
            transport.honest.call("CommitManifest", transport.requests[-1], timeout_s=60.0)
            client.open_collection("c", key=new).delete([1])

        transport.before["CommitManifest"] = switch_and_go_on
        report = client.reseal_collection("c", key=old, new_key=new, journal=tmp_path / "j")
        assert (report.version, report.rows) == (7, 56)
        assert not (tmp_path / "j").exists()


_CHILD = textwrap.dedent(
    """
    import os, signal, sys
    from he_client import Client, CollectionKey
    address, old, new, journal, stop = sys.argv[1:]
    with Client(address, insecure=True, threads=1) as client:
        transport, left = client._remote.transport, [int(stop)]
        honest = transport.call
        def call(method, request, *, timeout_s):
            response = honest(method, request, timeout_s=timeout_s)
            left[0] -= method in ("WriteSegment", "CommitManifest")
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            return response
        transport.call = call
        client.reseal_collection("c", key=CollectionKey(bytes.fromhex(old)), new_key=CollectionKey(bytes.fromhex(new)),
                                 journal=journal)
    """
)


def test_killed_processes_one_after_the_other_reach_the_end(tmp_path: Path) -> None:
    """Each is killed by the system right after a write was acknowledged, before it can note that."""
    raw = os.urandom(32), os.urandom(32)
    old, new = (CollectionKey(r) for r in raw)
    journal = tmp_path / "j"
    with grpc_address(tmp_path / "data") as address, Client(address, insecure=True) as client:
        before = everything(fill(client, old))
        arguments = [address, raw[0].hex(), raw[1].hex(), str(journal)]
        for stop in (2, 5):  # the second segment; resumed: one probe, two segments, one touch … then the commit
            child = subprocess.run([sys.executable, "-c", _CHILD, *arguments, str(stop)], check=False, timeout=120)
            assert child.returncode in (-signal.SIGKILL, 0)
        client.reseal_collection("c", key=old, new_key=new, journal=journal)
        assert everything(client.open_collection("c", key=new)) == before
        assert not journal.exists()


# ---- other writers -------------------------------------------------------------------------------------------
def test_a_concurrent_writer_loses_nothing(keys: tuple[CollectionKey, CollectionKey], tmp_path: Path) -> None:
    """Inserts, deletes and a compaction between the copies and the switch, in every round until the sixth."""
    old, new = keys
    with lying_client() as (client, transport):
        fill(client, old)
        writer = client.open_collection("c", key=old)
        expected = {*range(60)} - {0, 7, 19}
        rounds = 0

        def write() -> None:
            nonlocal rounds
            del transport.before["CommitManifest"]
            rounds += 1
            if rounds == 3:
                writer.compact()
            else:
                writer.insert([100 + rounds, 200 + rounds], unit_rows(np.random.default_rng(rounds), 2, DIM))
                writer.delete([rounds, 100 + rounds])
                expected.add(200 + rounds)
                expected.discard(rounds)
            if rounds < 6:
                transport.before["CommitManifest"] = write

        transport.before["CommitManifest"] = write
        report = client.reseal_collection("c", key=old, new_key=new, journal=tmp_path / "j")
        assert rounds == 6
        again = client.open_collection("c", key=new)
        assert report.rows == again.count() == len(expected)
        assert {h.id for h in again.search(QUERIES[0], k=200)} == expected
        with pytest.raises(WrongKeyError):
            writer.insert(["too late"], ROWS[:1])


def test_a_thread_that_inserts_meanwhile_is_told_or_kept(
    keys: tuple[CollectionKey, CollectionKey], tmp_path: Path
) -> None:
    old, new = keys
    with (
        grpc_address(tmp_path / "data") as address,
        Client(address, insecure=True) as one,
        Client(address, insecure=True) as two,
    ):
        fill(one, old)
        writer = two.open_collection("c", key=old)
        acknowledged: list[int] = []
        failures: list[Exception] = []
        enough = threading.Event()

        def insert() -> None:
            for number in range(1000, 2000):
                try:
                    writer.insert([number], ROWS[:1])
                    acknowledged.append(number)
                except WrongKeyError:
                    return
                except Exception as error:
                    failures.append(error)
                    return
                finally:
                    if len(acknowledged) == 8:
                        enough.set()
                if len(acknowledged) > 8 and enough.wait(0.2):
                    enough.clear()

        thread = threading.Thread(target=insert)
        thread.start()
        enough.wait(60)
        one.reseal_collection("c", key=old, new_key=new, journal=tmp_path / "j")
        thread.join(60)
        assert not failures and not thread.is_alive()
        again = one.open_collection("c", key=new)
        assert again.count() == 57 + len(acknowledged)
        with pytest.raises(DuplicateIdError):
            again.insert(acknowledged[-1:], ROWS[:1])


def test_writers_that_never_stop_end_it_with_conflict(
    keys: tuple[CollectionKey, CollectionKey], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("he_client.upkeep.reseal.MAX_ROUNDS", 3)
    old, new = keys
    with lying_client() as (client, transport):
        fill(client, old)
        writer = client.open_collection("c", key=old)
        left = [*range(1, 6)]

        def write() -> None:
            del transport.before["CommitManifest"]
            writer.delete([left.pop()])
            transport.before["CommitManifest"] = write

        transport.before["CommitManifest"] = write
        with pytest.raises(Conflict, match="goes on where it stopped"):
            client.reseal_collection("c", key=old, new_key=new, journal=tmp_path / "j")
        transport.before.clear()
        report = client.reseal_collection("c", key=old, new_key=new, journal=tmp_path / "j")
        assert (report.made, report.reused, report.rows) == (0, 3, 54)


def test_a_second_reseal_under_another_key_loses(keys: tuple[CollectionKey, CollectionKey], tmp_path: Path) -> None:
    old, new = keys
    other = CollectionKey.generate()
    with lying_client() as (client, transport):
        fill(client, old)

        def first() -> None:
            transport.before.clear()
            client.reseal_collection("c", key=old, new_key=other, journal=tmp_path / "other")

        transport.before["CommitManifest"] = first
        with pytest.raises(WrongKeyError):
            client.reseal_collection("c", key=old, new_key=new, journal=tmp_path / "j")
        assert client.open_collection("c", key=other).count() == 57


def test_a_dropped_collection_ends_it(keys: tuple[CollectionKey, CollectionKey], tmp_path: Path) -> None:
    with lying_client() as (client, transport):
        fill(client, keys[0])

        def drop() -> None:
            transport.before.clear()
            client.drop_collection("c")

        transport.before["CommitManifest"] = drop
        with pytest.raises(NotFound):
            client.reseal_collection("c", key=keys[0], new_key=keys[1], journal=tmp_path / "j")


# ---- the journal ---------------------------------------------------------------------------------------------
ID = bytes(range(16))


def written(path: Path, old: CollectionKey, new: CollectionKey) -> bytes:
    with open_journal(path, ID, old, new, b"state") as journal:
        for number in range(3):
            entry = pb.SegmentEntry(segment_id=bytes([number]) * 32, rows=5, blocks=1)
            journal.add(Resealed(bytes([9 - number]) * 32, (1, number + 2), entry))
    return path.read_bytes()


def test_a_journal_says_what_was_written(keys: tuple[CollectionKey, CollectionKey], tmp_path: Path) -> None:
    written(tmp_path / "j", *keys)
    with open_journal(tmp_path / "j", ID, *keys, b"other state") as journal:
        assert journal.engine_state == b"state"
        assert [(r.source_id[0], r.dropped, r.entry.segment_id[0]) for r in journal.done.values()] == [
            (9, (1, 2), 0), (8, (1, 3), 1), (7, (1, 4), 2)
        ]  # fmt: skip
        with pytest.raises(Conflict), open_journal(tmp_path / "j", ID, *keys, b""):
            pass
    content = (tmp_path / "j").read_bytes()
    assert b"state" not in b"".join(base64.b64decode(line) for line in content.split(b"\n")[1:])


def test_a_torn_last_line_does_not_count_and_any_other_damage_is_an_error(
    keys: tuple[CollectionKey, CollectionKey], tmp_path: Path
) -> None:
    content = written(tmp_path / "j", *keys)
    ends = [i + 1 for i, byte in enumerate(content) if byte == ord("\n")]
    path = tmp_path / "k"

    def lines_after(damaged: bytes) -> int:
        path.write_bytes(damaged)
        with open_journal(path, ID, *keys, b"") as journal:
            return len(journal.done)

    for end in sorted({*range(ends[1], len(content), 23), *ends[1:], *(e - 1 for e in ends[2:])}):
        whole = sum(e <= end for e in ends)
        assert lines_after(content[:end]) == whole - 2
        assert path.read_bytes() == content[: ends[whole - 1]]
    assert lines_after(content[:-9] + bytes(200)) == 2  # the length on the disk before the bytes
    for end in range(0, ends[1], 5):
        with pytest.raises((FormatVersionError, TamperedDataError)):
            lines_after(content[:end])
    rng = np.random.default_rng(8)
    for place in {*rng.integers(0, len(content), 300).tolist()}:
        altered = bytearray(content)
        altered[place] ^= 1 << int(rng.integers(8))
        with contextlib.suppress(FormatVersionError, TamperedDataError):
            assert lines_after(bytes(altered)) == 2 and place == len(content) - 1  # the last line's end
    swapped = b"\n".join([*(lines := content.split(b"\n"))[:2], lines[3], lines[2], *lines[4:]])
    with pytest.raises(TamperedDataError):
        lines_after(swapped)
    with pytest.raises(TamperedDataError):
        lines_after(content[: ends[2]] + content[ends[3] :])  # a line is missing


def test_a_torn_journal_is_written_on_from_its_last_whole_line(
    keys: tuple[CollectionKey, CollectionKey], tmp_path: Path
) -> None:
    path = tmp_path / "j"
    path.write_bytes(written(path, *keys)[:-5])
    with open_journal(path, ID, *keys, b"") as journal:
        journal.add(Resealed(b"s" * 32, (), pb.SegmentEntry(segment_id=b"n" * 32)))
    with open_journal(path, ID, *keys, b"") as journal:
        assert [r.source_id[0] for r in journal.done.values()] == [9, 8, ord("s")]


def test_a_journal_is_of_one_collection_and_two_keys(keys: tuple[CollectionKey, CollectionKey], tmp_path: Path) -> None:
    old, new = keys
    other = CollectionKey.generate()
    path = tmp_path / "j"
    content = written(path, old, new)

    def opened(*arguments: Any) -> None:
        with open_journal(path, *arguments, b""):
            pass

    with pytest.raises(InvalidInput, match="another collection"):
        opened(bytes(16), old, new)
    for pair in ((other, new), (old, other), (new, old)):
        with pytest.raises(WrongKeyError):
            opened(ID, *pair)
    with pytest.raises(InvalidInput, match="expected a new one"):
        opened(ID, old, old)
    assert path.read_bytes() == content
    path.write_text("not a journal\n")
    with pytest.raises(FormatVersionError):
        opened(ID, old, new)
    assert path.read_text() == "not a journal\n"
    with pytest.raises(NotFound), open_journal(tmp_path / "none" / "j", ID, old, new, b""):
        pass


def test_a_journal_from_before_a_compaction_is_used_for_what_is_left(
    keys: tuple[CollectionKey, CollectionKey], tmp_path: Path
) -> None:
    old, new = keys
    with lying_client() as (client, transport):
        fill(client, old)
        transport.before["CommitManifest"] = stopping_at(0)
        with pytest.raises(Stop):
            client.reseal_collection("c", key=old, new_key=new, journal=tmp_path / "j")
        transport.before.clear()
        opened = client.open_collection("c", key=old)
        opened.compact()
        before = everything(opened)
        report = client.reseal_collection("c", key=old, new_key=new, journal=tmp_path / "j")
        assert (report.made, report.reused, report.segments) == (1, 0, 1)
        assert everything(client.open_collection("c", key=new)) == before
