"""`hesearch upsert` and `hesearch compact`, as somebody at a shell has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from he_client.cli import build_parser, main
from tests.conftest import unit_rows

DIM = 8


def _json(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_upsert_and_compact(tmp_path: Path, rng: np.random.Generator, capsys: pytest.CaptureFixture[str]) -> None:
    rows = unit_rows(rng, 6, DIM)
    (tmp_path / "pass").write_text("secret words\n")
    np.savez(tmp_path / "rows.npz", vectors=rows[:4], ids=np.arange(4), payloads=np.array(list("abcd")))
    np.savez(tmp_path / "more.npz", vectors=rows[4:], ids=np.array([3, 4]), payloads=np.array(["D", "e"]))
    np.save(tmp_path / "query.npy", rows[4])
    passphrase = ["--passphrase-file", str(tmp_path / "pass")]
    access = ["--key", str(tmp_path / "c.key"), *passphrase, "--server", f"{tmp_path}/data"]
    assert main(["keygen", str(tmp_path / "c.key"), *passphrase]) == 0
    assert main(["create", "c", "--dim", str(DIM), *access]) == 0
    capsys.readouterr()

    assert _json(capsys, "upsert", "c", str(tmp_path / "rows.npz"), *access) == {"upserted": 4, "count": 4}
    assert _json(capsys, "upsert", "c", str(tmp_path / "more.npz"), *access) == {"upserted": 2, "count": 5}
    done = _json(capsys, "compact", "c", *access)
    assert (done["segments_before"], done["segments_after"], done["rows"], done["dropped_rows"]) == (2, 1, 5, 1)
    ((best,),) = _json(capsys, "search", "c", str(tmp_path / "query.npy"), "-k", "1", *access)["hits"]
    assert (best["id"], best["payload"]) == (3, "D")

    assert main(["upsert", "c", str(tmp_path / "more.npz"), *access]) == 0
    assert capsys.readouterr().out == "upserted 2 rows; 5 in all\n"
    assert main(["compact", "c", *access]) == 0
    assert capsys.readouterr().out.startswith("2 segments became 1: 5 rows encrypted anew, 2 deleted rows dropped, ")
    assert main(["compact", "other", *access]) == 3


@pytest.mark.parametrize("command", ["upsert", "compact"])
def test_help_has_an_example(capsys: pytest.CaptureFixture[str], command: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        build_parser().parse_args([command, "--help"])
    assert stopped.value.code == 0
    assert f"hesearch {command} notes " in capsys.readouterr().out.split("example", 1)[1]
