"""`benchmarks.overhead`: the figures that it promises, and peers that are refused when they are wrong."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import overhead, peers
from benchmarks.machine import describe
from benchmarks.overhead import main, make_data
from tests.conftest import unit_rows

ROWS, DIM = 2000, 32
SMALL = ["--rows", str(ROWS), "--dim", str(DIM), "--rounds", "2"]
PLAIN = {"server", "read", "numpy", "faiss", "faiss_all", "hnsw", "ivf"}


def run(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    path = tmp_path / "out.json"
    assert main([*SMALL, *arguments, "--json", str(path)]) == 0
    figures: dict[str, Any] = json.loads(path.read_text())
    return figures


def test_every_documented_figure_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = run(tmp_path, "--profile", "exact", "--threads", "2", "--target", "portable", "--approximate")
    assert overhead.__doc__ is not None
    for key in figures:
        documented = re.sub("^ratio_(tenseal|openfhe)_packed", "ratio_{tenseal,openfhe}_packed", key)
        assert documented.removeprefix("ratio_server_vs_") in overhead.__doc__
    assert figures["machine"] == describe()
    assert figures["arguments"]["target"] == "portable" and figures["arguments"]["rows"] == ROWS
    assert set(figures["times_s"]) == PLAIN
    for times in figures["times_s"].values():
        assert 0 < times["min"] <= times["median"] <= times["max"]
    numbers = {key for key, value in figures.items() if isinstance(value, int | float) and not isinstance(value, bool)}
    assert numbers >= {
        "read_bandwidth_gb_s", "server_gb_s", "ratio_server_vs_plain_read", "ratio_server_vs_faiss",
        "ratio_server_vs_faiss_all", "ratio_server_vs_best_plaintext", "ratio_server_vs_hnsw", "ratio_server_vs_ivf",
        "ratio_tenseal_vs_hint", "ratio_tenseal_packed_vs_hint", "ratio_tenseal_packed_one_row_a_slot_vs_hint",
        "recall_at_10", "score_error_std", "score_error_max", "expected_score_error_std", "query_bytes",
        "answer_bytes_per_row", "index_bytes_per_row", "index_bytes_per_coordinate", "hint_bytes_per_row",
        "client_cache_bytes_per_row", "encrypt_rows_per_s", "client_query_s", "client_recover_s",
    }  # fmt: skip
    assert all(figures[key] > 0 for key in numbers)
    server, read = figures["times_s"]["server"]["median"], figures["times_s"]["read"]["median"]
    assert figures["ratio_server_vs_plain_read"] == pytest.approx(read / server)
    assert figures["read_bandwidth_gb_s"] == pytest.approx(figures["index_bytes_per_row"] * ROWS / read / 1e9)
    assert figures["integer_identical"] is True
    for name, parameter in {"hnsw": "efSearch", "ivf": "nprobe"}.items():
        tuned = figures["approximate"][name]
        assert tuned["parameter"] == parameter and tuned["value"].bit_count() == 1
        assert tuned["tuning_recall_at_10"] >= 0.95 and tuned["recall_at_10"] >= 0.9
        assert tuned["bytes"] > 4 * ROWS * DIM and tuned["build_s"] > 0
    tenseal = figures["tenseal"]
    assert tenseal["packed"]["rows"] == 4096 and tenseal["per_row"]["rows"] == 20
    assert tenseal["packed_one_row_a_slot_s_per_row"] == 2 * tenseal["packed_s_per_row"]
    assert figures["ratio_tenseal_packed_vs_hint"] == pytest.approx(tenseal["packed_s_per_row"] * ROWS / server)
    assert "ratio_server_vs_faiss_all" in capsys.readouterr().out


def test_a_peer_that_is_not_asked_for_has_null(tmp_path: Path) -> None:
    figures = run(tmp_path, "--profile", "compact", "--peers", "numpy")
    assert set(figures["times_s"]) == {"server", "read", "numpy"}
    assert figures["approximate"] == {"hnsw": None, "ivf": None}
    for key in ("ratio_server_vs_faiss", "ratio_server_vs_hnsw", "tenseal", "ratio_tenseal_vs_hint", "openfhe"):
        assert figures[key] is None
    assert figures["ratio_server_vs_best_plaintext"] is not None and figures["integer_identical"] is None


@pytest.mark.parametrize("name", ["numpy", "faiss", "faiss_all"])
def test_a_wrong_peer_is_refused_before_timing(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The row nearest to a test query is altered in what the peer searches, and there alone."""
    data, queries = make_data(ROWS, DIM)
    nearest = int(np.argmax(data @ queries[0]))
    build = peers.EXACT[name]

    def build_altered(rows: peers.F32, threads: int) -> peers.Peer:
        altered = rows.copy()
        altered[nearest] *= -1
        return build(altered, threads)

    monkeypatch.setitem(peers.EXACT, name, build_altered)
    monkeypatch.setattr(overhead, "alternate", lambda *_: pytest.fail("a wrong peer was timed"))
    with pytest.raises(AssertionError, match=f"{name}: got"):
        main([*SMALL, "--profile", "compact", "--peers", name])


def test_scores_of_other_rows_and_missed_rows_are_refused(rng: np.random.Generator) -> None:
    data = unit_rows(rng, 300, DIM)
    queries, rows = data[:5], data.astype(np.float32)
    truth = peers.find_truth(data, queries)
    right = peers.numpy_product(rows, 1)
    assert peers.check("numpy", right, rows, queries, truth) == 1.0

    shifted = peers.Peer(right.answer, lambda found: (right.best(found)[0], right.best(found)[1] - 1))
    with pytest.raises(AssertionError, match="not the inner product with its row"):
        peers.check("shifted", shifted, rows, queries, truth)

    def five_twice(found: Any) -> tuple[peers.F32, peers.I64]:
        scores, numbers = right.best(found)
        return np.repeat(scores[:5], 2), np.repeat(numbers[:5], 2)

    repeated = peers.Peer(right.answer, five_twice)
    with pytest.raises(AssertionError, match=r"recall@10 0\.5000"):
        peers.check("repeated", repeated, rows, queries, truth)


def test_truth_is_the_ten_best_whatever_the_pieces(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    data, queries = unit_rows(rng, 100, 8), unit_rows(rng, 3, 8)
    monkeypatch.setattr(peers, "PIECE_ROWS", 7)
    truth = peers.find_truth(data, queries)
    order = np.argsort(-(queries @ data.T), axis=1)[:, :10]
    assert np.array_equal(truth.rows, order)
    assert np.allclose(truth.scores, np.take_along_axis(queries @ data.T, order, 1))


def test_a_library_that_is_missing_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        import openfhe  # noqa: F401
    except ImportError:
        figures = run(tmp_path, "--profile", "compact", "--peers", "openfhe")
        assert figures["openfhe"] is None and figures["ratio_openfhe_packed_vs_hint"] is None
        assert capsys.readouterr().err.count("pip install openfhe") == 1
    else:
        figures = run(tmp_path, "--profile", "compact", "--peers", "openfhe")
        assert figures["openfhe"]["packed"]["rows"] == 2048 and figures["ratio_openfhe_packed_vs_hint"] > 0
