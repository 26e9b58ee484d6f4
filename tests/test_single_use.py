"""No pair (a, s), query secret or AEAD nonce serves twice: tests/single_use.py says in which ways it is tried."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from he_engine.hint_client import HintClient
from he_engine.keys import RootKey
from he_engine.public import keystream
from he_engine.sealing import seal
from tests.single_use import COLLECTION, KINDS, PARAMETERS, STATE, message

ENCRYPTIONS = 20_000
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    """In a process of its own: forks from one that runs gRPC's threads would hang."""
    ran = subprocess.run(
        [sys.executable, "-m", "tests.single_use", "--encryptions", str(ENCRYPTIONS)],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert ran.stdout, ran.stderr
    return dict(json.loads(ran.stdout))


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_repeats(measured: dict[str, Any], kind: str) -> None:
    assert measured["repeated"][kind] == 0
    assert measured["used"][kind] >= ENCRYPTIONS // 4


def test_every_way_was_tried(measured: dict[str, Any]) -> None:
    counts = dict(measured["encryptions"])
    assert counts.pop("all") == sum(counts.values()) >= ENCRYPTIONS
    assert counts.keys() == {"threads", "forks", "spawns", "restarts", "snapshots"}
    assert min(counts.values()) >= ENCRYPTIONS // 5


@pytest.mark.parametrize("control", ["same randomness, same messages", "same randomness, no hedge"])
def test_repeats_would_be_noticed(measured: dict[str, Any], control: str) -> None:
    """With both the randomness and the message repeated, or the message ignored: each worker repeats the first."""
    found, workers = measured["controls"][control], measured["workers of each way"]
    for kind in KINDS:
        assert found["repeated"][kind] == found["used"][kind] * (workers - 1) // workers > 0


def test_a_million_were_tried() -> None:
    found = json.loads((ROOT / "docs" / "figures" / "single_use.json").read_text())
    assert found["encryptions"]["all"] >= 1_000_000
    assert not any(found["repeated"].values())


def test_what_repeats_entirely_gives_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same randomness and the same message: identical ciphertexts, which tell only that, and no two under one s."""

    def made(number: int) -> list[bytes]:
        stream = iter(keystream(bytes(32), 1 << 12).tobytes())
        monkeypatch.setattr(os, "urandom", lambda size: bytes(next(stream) for _ in range(size)))
        key = RootKey(bytes(range(32)))
        client = HintClient(PARAMETERS, key, COLLECTION, STATE, threads=1)
        vector = message(number)
        rows = client.setup(vector[None])
        query = client.query(vector)
        sealed = seal(key, "x", b"", vector.tobytes())
        return [rows.seed, bytes(rows.index), bytes(query.ciphertext), sealed[:32], sealed[32:]]

    first, again, other = made(7), made(7), made(8)
    assert first == again
    assert not any(one == two for one, two in zip(first, other, strict=True))
