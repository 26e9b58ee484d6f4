"""Answers of `compact` and `precise` are counted for each block; over the budget, the client warns."""

from __future__ import annotations

import json
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from he_client import Client, Collection, CollectionKey, HesearchError, ScoreReleaseWarning
from he_client.cli import main
from he_client.released import Released, budget, index_digest
from he_engine.params import Parameters
from he_proto.v1 import hesearch_pb2 as pb
from tests.conftest import unit_rows

DIM, STRIDE = 16, 128  #: 16 rows a block, under `compact`
KEY = CollectionKey.generate()


@pytest.fixture
def rows(rng: np.random.Generator) -> np.ndarray:
    """Two blocks: the first 16 rows look one way, the others the opposite way."""
    rows = 0.1 * unit_rows(rng, 32, DIM)
    rows[:16, 0] += 1
    rows[16:, 0] -= 1
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@contextmanager
def opened(folder: Path, rows: np.ndarray, profile: str = "compact", state: Path | None = None) -> Iterator[Collection]:
    """A collection in `folder`, made if it is not there."""
    with Client(folder, state=state) as client:
        if client.list_collections():
            yield client.open_collection("c", key=KEY)
        else:
            made = client.create_collection("c", dim=DIM, stride=STRIDE, key=KEY, profile=profile)
            made.insert(range(len(rows)), rows, progress=False)
            yield made


def warned(collection: Collection, queries: np.ndarray, k: int = 3) -> list[warnings.WarningMessage]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        collection.search(queries, k=k)
    return caught


@pytest.mark.parametrize("profile", ["compact", "precise"])
def test_the_answer_after_the_budget_warns_and_only_that(tmp_path: Path, rows: np.ndarray, profile: str) -> None:
    with opened(tmp_path / "data", rows, profile) as collection:
        for _ in range(3):
            assert not warned(collection, rows[:5])
        assert not warned(collection, rows[0])
        assert collection.last_search is not None
        assert collection.last_search.released_answers == DIM
        (warning,) = warned(collection, rows[0])
        assert warning.category is ScoreReleaseWarning and warning.filename == __file__
        assert f"more than {DIM} answers" in str(warning.message)
        assert not warned(collection, rows[0]), "once"
        assert collection.last_search.released_answers == DIM + 2


def test_scores_that_may_be_shown_are_not_counted(tmp_path: Path, rows: np.ndarray) -> None:
    with opened(tmp_path / "data", rows, "exact", tmp_path / "state") as collection:
        assert not warned(collection, np.tile(rows, (2, 1)))
        assert collection.last_search is not None and collection.last_search.released_answers == 0
    assert not list((tmp_path / "state").glob("*.released"))
    assert [budget(Parameters.choose(p, 64)) for p in ("exact", "compact", "precise")] == [None, 64, 64]


def test_only_blocks_whose_scores_are_returned_count(tmp_path: Path, rows: np.ndarray) -> None:
    """Sixteen answers of the first block and sixteen of the second are under the budget; what k cuts off is not
    released. One query whose hits are of both counts for both, and a query counts once however many hits it has."""
    with opened(tmp_path / "data", rows) as collection:
        assert not warned(collection, rows, k=16)
        (entry,) = collection._state.manifest.message.segments
        assert entry.blocks == 2
        assert collection._released.most(entry) == DIM
        assert collection._released._counts[index_digest(entry)] == {0: DIM, 1: DIM}
        assert warned(collection, rows[0], k=17)
        assert collection._released._counts[index_digest(entry)] == {0: DIM + 1, 1: DIM + 1}


def test_counts_last_in_a_folder_until_rows_are_encrypted_anew(tmp_path: Path, rows: np.ndarray) -> None:
    data, state = tmp_path / "data", tmp_path / "state"
    with opened(data, rows, state=state) as collection:
        assert not warned(collection, rows[:DIM])
    with opened(data, rows, state=state) as collection:
        assert not warned(collection, rows[20]), "another block"
        assert warned(collection, rows[0])
        assert not warned(collection, rows[0])
    with opened(data, rows, state=state) as collection:
        with pytest.warns(ScoreReleaseWarning):  # k=32: the first block is in it
            before = collection.search(rows[20], k=32)
        report = collection.compact(progress=False)
        assert (report.rewritten, report.rows) == (1, 32)
        assert not warned(collection, rows[:DIM])
        assert collection.last_search is not None and collection.last_search.released_answers == DIM
        assert warned(collection, rows[0]), "the budget of the new block, once more"
        assert [hit.id for hit in collection.search(rows[20], k=1)] == [before[0].id]
        assert collection.compact(progress=False).rewritten == 1
        assert collection.compact(progress=False).rewritten == 0
        other = CollectionKey.generate()
        assert not warned(collection, rows[:DIM])
        collection.reseal(other, journal=tmp_path / "journal", progress=False)
    with Client(data, state=state) as client:
        assert not warned(client.open_collection("c", key=other), rows[:DIM])


def test_a_new_fingerprint_does_not_begin_a_new_budget(tmp_path: Path, rows: np.ndarray) -> None:
    """The ciphertexts and their secrets are the same ones."""
    for state in (None, tmp_path / "state"):
        with opened(tmp_path / f"data {state is None}", rows, state=state) as collection:
            assert not warned(collection, rows[:DIM])
            before = collection._state.manifest.message.segments[0].segment_id
            assert collection.reseal_fingerprints(everything=True, progress=False).rebuilt == 1
            assert before != collection._state.manifest.message.segments[0].segment_id
            assert warned(collection, rows[0])
            assert collection.compact(progress=False).rewritten == 1


def test_as_an_error_it_is_a_limit(tmp_path: Path, rows: np.ndarray) -> None:
    with opened(tmp_path / "data", rows) as collection, warnings.catch_warnings():
        warnings.simplefilter("error", ScoreReleaseWarning)
        collection.search(rows[:DIM], k=3)
        for _ in range(2):
            with pytest.raises(ScoreReleaseWarning):
                collection.search(rows[0], k=3)
        collection.search(rows[20], k=3)
        collection.compact(progress=False)
        collection.search(rows[0], k=3)


def test_the_command_line_says_it_on_stderr(
    tmp_path: Path, rows: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    with opened(tmp_path / "data", rows):
        pass
    KEY.save(tmp_path / "c.key", passphrase="secret words")
    (tmp_path / "pass").write_text("secret words\n")
    np.save(tmp_path / "queries.npy", rows[:DIM])
    command = ["search", "c", str(tmp_path / "queries.npy"), "--json", "--server", str(tmp_path / "data")]
    command += ["--key", str(tmp_path / "c.key"), "--passphrase-file", str(tmp_path / "pass")]
    assert main(command) == 0
    assert capsys.readouterr().err == ""
    assert main(command) == 0
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert line.startswith("hesearch: collection 'c': more than 16 answers of a block were released")
    scores = [hit["score"] for hits in json.loads(printed.out)["hits"] for hit in hits]
    assert len(scores) == 160
    assert not any(f"{score:.3f}" in line or str(score) in line for score in scores)


def test_nothing_but_counts_is_kept(tmp_path: Path, rows: np.ndarray) -> None:
    """Neither what was asked nor what was found: a number for each block, for the owner's eyes alone."""
    with opened(tmp_path / "data", rows, state=tmp_path / "state") as collection:
        collection.search(rows[[0, 1, 20]], k=3)
        (entry,) = collection._state.manifest.message.segments
    (kept,) = (tmp_path / "state").glob("*.released")
    assert kept.name == f"{index_digest(entry).hex()}.released"
    assert kept.stat().st_mode & 0o777 == 0o600
    assert np.frombuffer(kept.read_bytes(), "<u4").tolist() == [2, 1]


def test_threads_and_objects_share_a_folder(tmp_path: Path) -> None:
    segment = pb.SegmentEntry(blocks=3, parts=[pb.Part(kind=pb.PART_KIND_INDEX, sha256=b"s" * 32)])

    def count(released: Released) -> None:
        for _ in range(200):
            released.add({(b"s" * 32, 2): 1, (b"s" * 32, 0): 2})

    shared = Released(tmp_path)
    threads = [threading.Thread(target=count, args=(r,)) for r in (shared, shared, Released(tmp_path))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert np.fromfile(tmp_path / f"{index_digest(segment).hex()}.released", "<u4").tolist() == [1200, 0, 600]
    assert Released(tmp_path).most(segment) == 1200
    assert Released(tmp_path).add({}) == 0
    assert Released(None).most(segment) == 0


def test_files_that_were_cut_count_from_zero_and_full_ones_stay(tmp_path: Path) -> None:
    segment = pb.SegmentEntry(blocks=2, parts=[pb.Part(kind=pb.PART_KIND_INDEX, sha256=b"s" * 32)])
    path = tmp_path / f"{index_digest(segment).hex()}.released"
    path.write_bytes(b"\x05\0\0\0\x01")
    assert Released(tmp_path).most(segment) == 5
    assert Released(tmp_path).add({(index_digest(segment), 1): 1}) == 2
    path.write_bytes(b"\xff" * 8)
    assert Released(tmp_path).add({(index_digest(segment), 0): 1}) == (1 << 32) - 1


def test_a_folder_that_is_gone_is_an_error(tmp_path: Path) -> None:
    released = Released(tmp_path / "state")
    (tmp_path / "state").rmdir()
    with pytest.raises(HesearchError, match=r"released answers .*No such file") as raised:
        released.add({(b"s" * 32, 0): 1})
    assert type(raised.value) is HesearchError, "not NotFound: a search takes that for a segment that has gone"
