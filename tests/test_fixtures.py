"""Files that earlier versions wrote, opened by this one: the same rows, scores and payloads, for ever.

tests/fixtures/make.py made them, each folder with the code of its time; none is ever made again.
"""

from __future__ import annotations

import importlib.util
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from he_client import Client, CollectionKey
from he_server.operate import fsck
from tests.fixtures.make import (
    COLLECTIONS,
    PASSPHRASE,
    QUERIES,
    ROOT,
    ROWS,
    SEALED,
    VECTORS,
    live_rows,
    payload,
    plain,
    row_id,
    served,
)

FIXTURES = Path(__file__).parent / "fixtures"
VERSIONS = sorted(path.parent.name for path in FIXTURES.glob("*/expected.json"))
SINCE_2 = [version for version in VERSIONS if version != "v1"]  #: with sealed folders and archives
#: Of a score, absolute: `exact` repeats bit for bit; ten times the standard deviation of the others at these strides.
TOLERANCE = {"exact": 0.0, "compact": 1e-2, "tenseal": 1e-3}


@pytest.fixture(scope="module", params=VERSIONS)
def unpacked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A copy of the files, and what is in them."""
    folder = tmp_path_factory.mktemp(request.param)
    with tarfile.open(FIXTURES / request.param / "files.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    expected: dict[str, Any] = json.loads((FIXTURES / request.param / "expected.json").read_text())
    return folder, expected


def test_there_are_fixtures() -> None:
    assert {"v1", "v2"} <= set(VERSIONS)


def test_key_file(unpacked: tuple[Path, dict[str, Any]]) -> None:
    key = CollectionKey.load(unpacked[0] / "notes.key", PASSPHRASE)
    assert key.derive("x") == CollectionKey(ROOT).derive("x")


@pytest.mark.parametrize("folder", ["data", "crashed"])
def test_fsck_finds_no_damage(unpacked: tuple[Path, dict[str, Any]], folder: str) -> None:
    """Before anything of this version has opened it."""
    assert fsck.check(unpacked[0] / folder).problems == []


@pytest.mark.parametrize("name", COLLECTIONS)
@pytest.mark.parametrize("folder", ["data", "crashed"])
def test_data_folder(unpacked: tuple[Path, dict[str, Any]], folder: str, name: str) -> None:
    """Also as a server that was killed left it."""
    _require(name)
    root, expected = unpacked
    with Client(root / folder) as client:
        _check(client, name, expected[name])


@pytest.mark.parametrize("kind", SEALED)
@pytest.mark.parametrize("unpacked", SINCE_2, indirect=True)
def test_sealed_folder(unpacked: tuple[Path, dict[str, Any]], kind: str) -> None:
    root, expected = unpacked
    with served(root / f"sealed-{kind}", f"{kind}:{root / kind}") as client:
        assert [info.name for info in client.list_collections()] == sorted(SEALED[kind])
        for name in SEALED[kind]:
            _check(client, name, expected[name])


@pytest.mark.parametrize("name", COLLECTIONS)
@pytest.mark.parametrize("unpacked", SINCE_2, indirect=True)
def test_archive(unpacked: tuple[Path, dict[str, Any]], name: str) -> None:
    _require(name)
    root, expected = unpacked
    with Client(":memory:") as client:
        client.import_collection(root / f"{name}.archive")
        _check(client, name, expected[name])


def _require(name: str) -> None:
    if name.startswith("tenseal") and importlib.util.find_spec("tenseal") is None:
        pytest.skip("needs tenseal")


def _check(client: Client, name: str, expected: dict[str, Any]) -> None:
    collection = client.open_collection(name, key=CollectionKey(ROOT))
    assert (collection.version, collection.count()) == (expected["version"], expected["count"])
    results = collection.search(QUERIES, k=ROWS)
    assert len(results) == len(QUERIES)
    tolerance = TOLERANCE[name.partition("-")[0]]
    for hits, wanted in zip(results, expected["hits"], strict=True):
        if not tolerance:
            assert [hit.id for hit in hits] == [row for row, _, _ in wanted]
        scores = {row: score for row, score, _ in wanted}
        assert {hit.id: plain(hit.payload) for hit in hits} == {row: value for row, _, value in wanted}
        assert all(abs(hit.score - scores[hit.id]) <= tolerance for hit in hits)


def test_cache_folder(unpacked: tuple[Path, dict[str, Any]]) -> None:
    """Nothing of what the cache has is fetched again: the parts are taken from the server's files meanwhile."""
    root, expected = unpacked
    before = {path: path.stat().st_mtime_ns for path in (root / "cache").iterdir()}
    assert before
    with Client(root / "data", cache=root / "cache") as client:
        for name in ("exact-l2-text", "compact-cosine-int"):
            _check(client, name, expected[name])
    assert {path: path.stat().st_mtime_ns for path in (root / "cache").iterdir()} == before


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", COLLECTIONS)
def test_expected_is_the_plaintext_search(version: str, name: str) -> None:
    """What the fixtures expect is right, not only what was once found."""
    expected = json.loads((FIXTURES / version / "expected.json").read_text())[name]
    live, metric = live_rows(name), COLLECTIONS[name]["metric"]
    rows = VECTORS[live]
    for query, wanted in zip(QUERIES, expected["hits"], strict=True):
        scores = rows @ query
        if metric == "cosine":
            scores /= np.linalg.norm(rows, axis=1) * np.linalg.norm(query)
        elif metric == "l2":
            scores = np.linalg.norm(rows - query, axis=1)
        assert {row: value for row, _, value in wanted} == {row_id(name, row): plain(payload(row)) for row in live}
        found = {row: score for row, score, _ in wanted}
        assert np.allclose([found[row_id(name, row)] for row in live], scores, atol=0.05)
