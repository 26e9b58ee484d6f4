"""What strangers may send to the engine `tenseal`, nearly right: tests.fuzz.seal, for some seconds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

pytest.importorskip("tenseal")

from he_engine.tenseal_client import generate_state
from he_engine.tenseal_format import CIPHERTEXT_BYTES
from tests.fuzz import seal, seal_child, seal_inputs, seal_processes
from tests.fuzz.seal_child import MEMORY, REFUSED, TAKEN
from tests.fuzz.seal_inputs import SealFile
from tests.fuzz.seal_processes import ENDED, HUNG, Child, Server

INPUTS, SEED = 300, 2


@pytest.mark.parametrize("target", seal.TARGETS)
def test_a_short_campaign(target: str, tmp_path: Path) -> None:
    line = seal.TARGETS[target](INPUTS, SEED, tmp_path)
    assert not line["failures"], line
    assert line["runs"] == INPUTS
    assert line["counts"][TAKEN] and line["counts"][REFUSED] > INPUTS / 10
    if target == "ciphertexts":
        assert line["one_bit_flipped"][TAKEN] and line["counts"][TAKEN] > INPUTS / 10


@pytest.fixture
def child() -> Iterator[Child]:
    made = Child(generate_state())
    yield made
    made.close()


@pytest.mark.parametrize("compression", [1, 2])
def test_what_ends_seals_parser_ends_no_worker(child: Child, compression: int) -> None:
    """A file of its own makes SEAL abort. Sent as a query or block, whole or in part, it is residues or nothing."""
    rng = Random(SEED)
    file = SealFile(seal_inputs.fresh(rng)).cut_inside(compression)
    assert child.parse(seal_child.FILE, file) == f"{ENDED}: SIGABRT"
    server = Server(rng)
    for data in (file, file[:CIPHERTEXT_BYTES], file[:96] + server.query[96:]):
        for give in (server.as_query, server.as_block):
            assert {give(data, checked=checked) for checked in (True, False)} <= {TAKEN, REFUSED}
    server.close()


def test_frames_that_expand_are_read_as_far_as_is_asked(child: Child) -> None:
    """64 KiB that say a gigabyte of zeros behind a right body, and zeros alone."""
    file = SealFile(seal_inputs.fresh(Random(SEED)))
    assert child.parse(seal_child.FILE, file.expanding(1 << 30)) == TAKEN
    assert child.parse(seal_child.FILE, file.expanding(1 << 30, body=b"")) == REFUSED
    assert child.starts == 1


# ---- what it would notice --------------------------------------------------------------------------------------
def test_a_broken_parser_is_noticed(child: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    for what, expected in ((b"exit", f"{ENDED}: exit 3"), (b"spin", HUNG), (b"grow", MEMORY)):
        monkeypatch.setattr(seal_processes, "HUNG_S", 1.0 if what == b"spin" else 5.0)
        assert child.parse(seal_child.BROKEN, what) == expected


def test_a_wrong_server_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """One whose answers depend on what else is asked; and one whose worker is replaced."""
    server = Server(Random(SEED))
    answer = server._server.answer
    monkeypatch.setattr(server._server, "answer", lambda *asked: answer(*asked)[::-1])
    assert server.as_query(server.block, checked=True) == "another answer for the sound half"
    monkeypatch.undo()
    server._server._workers[0].stop()
    assert server.as_query(server.query, checked=True) == ENDED
    assert server.as_query(server.query, checked=True) == TAKEN
    server.close()
