"""The benchmarks of whole servers, tiny: documented keys, checks that can fail, a report of what was measured."""

from __future__ import annotations

import json
import re
from argparse import Namespace
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import grpc
import numpy as np
import pytest

from benchmarks import at_rest, concurrency, overhead, report, scaling, service, wire
from benchmarks.servers import ANSWER, Asker, Encrypted, drop_page_cache, resident_pages
from he_client import Client, CollectionKey
from he_engine.params import RINGS, Parameters
from he_proto.v1 import hesearch_pb2 as pb
from tests.conftest import unit_rows
from tests.sdk_fixture import grpc_address

DIM = 16
ROWS = 3000  # 24 blocks of `compact`
QUERIES = 5
LOADERS = 2  # so that one has several callers


def small(**more: Any) -> Namespace:
    return Namespace(rows=2000, dim=DIM, profile="compact", threads=1, rounds=2, json=None, **more)


@pytest.fixture(scope="module")
def measured() -> dict[str, dict[str, Any]]:
    """By name of the file, as `make bench` would write it."""
    return {
        "service_compact": service.measure(small()),
        "concurrency_compact": concurrency.measure(small(), (1, 2)),
        "at_rest": at_rest.measure(Namespace(megabytes=64, threads=1, rounds=1, folder=None, json=None)),
        "wire": wire.measure(Namespace(megabytes=2, threads=1, rounds=2, json=None)),
    }


@pytest.fixture(scope="module")
def folder(measured: dict[str, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("bench")
    for name, figures in measured.items():
        (where / f"{name}.json").write_text(json.dumps(figures))
    arguments = ["--rows", "600", "--dim", str(DIM), "--rounds", "1", "--peers", "numpy", "--profile", "compact"]
    overhead.main([*arguments, "--json", str(where / "overhead_compact.json")])
    (where / "scaling.json").write_text(json.dumps(growth(where)))
    return where


def growth(folder: Path) -> dict[str, Any]:
    """Two sizes, two strides; the cache small enough for both sizes to be past it."""
    residues, plain = scaling.Residues(folder / "index", 1 << 22), scaling.PlainRows(DIM, 4000)
    chosen = Parameters.choose("compact", DIM)
    points = scaling.measure(chosen, [2000, 4000], residues, plain, 1)
    strides = [scaling.measure(Parameters.choose("compact", DIM, g), [2000], residues, None, 1)[0] for g in (1, 2)]
    figures = {"arguments": {"max_gb": 0.1}, "cache_bytes": 1 << 16, "points": points, "strides": strides}
    return figures | {"flatness": scaling.flatness(points, 1 << 16)}


def documented(module: ModuleType) -> set[str]:
    assert module.__doc__ is not None
    return set(re.findall(r"`(\w+)`", module.__doc__.split("JSON keys (stable):")[1]))


@pytest.mark.parametrize(
    ("name", "module"),
    [("service_compact", service), ("concurrency_compact", concurrency), ("at_rest", at_rest), ("wire", wire)],
)
def test_every_key_is_documented(name: str, module: ModuleType, measured: dict[str, dict[str, Any]]) -> None:
    assert set(measured[name]) <= documented(module)


def test_a_service_is_measured(measured: dict[str, dict[str, Any]]) -> None:
    figures = measured["service_compact"]
    assert set(figures["query_s"]) == {"whole", "encrypt", "server", "recover"}
    assert set(figures["batch"]) == {"1", "8", "32"}
    assert figures["recall_at_10"] > 0.8
    assert figures["index_bytes"] == 2048 * 4 * DIM
    assert figures["stored_bytes_per_row"] * 2000 == pytest.approx(
        figures["index_bytes"] + figures["cold_client_bytes"]
    )
    assert 0 <= figures["cold_page_cache_share"] <= 1


def test_answers_are_compared(measured: dict[str, dict[str, Any]]) -> None:
    figures = measured["concurrency_compact"]
    assert figures["identical_answers"] == 2
    for way in ("batch", "concurrent"):
        assert list(figures[way]) == ["1", "2"]
        assert figures[way]["1"]["times_faster_than_alone"] == 1
        assert all(one["s_per_query"] > 0 < one["ratio_vs_faiss"] for one in figures[way].values())


def test_sealing_is_measured(measured: dict[str, dict[str, Any]]) -> None:
    figures = measured["at_rest"]
    assert figures["payload_bytes"] == figures["segment_bytes"] == 64 << 20
    assert figures["ratio_store"] == figures["store_s"]["sealed"] / figures["store_s"]["unsealed"]
    assert len(figures["ciphers"]) >= 2


def test_streams_are_measured(measured: dict[str, dict[str, Any]]) -> None:
    figures = measured["wire"]
    assert figures["payload_bytes"] == 2 << 20
    assert figures["ratio_upload_vs_plain"] == figures["part_upload_mb_s"] / figures["plain_upload_mb_s"]
    assert all(0 < share < 1e-3 for share in figures["framing_share"].values())


# ---- checks that can fail ------------------------------------------------------------------------------------
@contextmanager
def asked(folder: Path) -> Iterator[tuple[Encrypted, Asker, concurrency.Crowd, list[bytes]]]:
    """A server of ROWS rows, and a crowd of QUERIES callers."""
    rows = unit_rows(np.random.default_rng(1), ROWS, DIM)
    with ExitStack() as stack:
        address, key = stack.enter_context(grpc_address(folder)), CollectionKey.generate()
        client = stack.enter_context(Client(address, insecure=True))
        client.create_collection("c", dim=DIM, key=key, profile="compact").insert(range(ROWS), rows)
        encrypted = Encrypted(address, "c", key)
        ciphertexts = [encrypted.ciphertext(rows[n]) for n in range(QUERIES)]
        requests = [encrypted.messages([one]) for one in ciphertexts]
        together = stack.enter_context(concurrency.crowd(address, ANSWER, requests, LOADERS))
        yield encrypted, Asker(address, ANSWER), together, ciphertexts
        encrypted.close()


def test_different_answers_are_noticed(tmp_path: Path) -> None:
    with asked(tmp_path) as (encrypted, ask, together, ciphertexts):
        assert concurrency.check(encrypted, ask, together, ciphertexts) == QUERIES
        with pytest.raises(AssertionError, match="query 0 of 5: its answer differs"):  # beside others
            concurrency.check(encrypted, ask, together, ciphertexts[::-1])

        def altering(messages: concurrency.Messages) -> list[bytes]:
            """The last word of the second query's answer is another one."""
            pieces = [pb.AnswerResponse.FromString(response) for response in ask(messages)]
            for piece in pieces:
                if piece.query == 1:
                    piece.residues = piece.residues[:-4] + b"\0\0\0\0"
            return [piece.SerializeToString() for piece in pieces]

        with pytest.raises(AssertionError, match="query 1 of 5: its answer differs"):  # in one call
            concurrency.check(encrypted, altering, together, ciphertexts)
        responses = ask(encrypted.messages(ciphertexts[:2]))
        for wrong in (responses[:-1], [*responses, responses[0]]):
            with pytest.raises(AssertionError, match="each once"):
                encrypted.answers(wrong, 2)


def test_a_failing_caller_is_reported() -> None:
    nowhere = "127.0.0.1:1"
    with concurrency.crowd(nowhere, ANSWER, [[b""]]) as together, pytest.raises(RuntimeError, match="UNAVAILABLE"):
        together.ask(1, 1)


def test_an_upload_of_nothing_is_noticed(tmp_path: Path) -> None:
    with grpc_address(tmp_path) as address, grpc.insecure_channel(address) as channel:
        streams = wire.Streams(channel, 16)
        (header,) = streams.new_headers(1)
        streams.upload(header)
        with pytest.raises(AssertionError, match="nothing was uploaded"):
            streams.upload(header)


def test_the_page_cache_is_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "pages"
    path.write_bytes(bytes(10 * 4096 + 1))
    assert len(resident_pages(path)) == 11
    assert resident_pages(path).all()
    assert drop_page_cache(tmp_path) == resident_pages(path).mean()


# ---- growth --------------------------------------------------------------------------------------------------
def test_residues_are_canonical_whatever_the_layout(tmp_path: Path) -> None:
    scaling.Residues(tmp_path / "index", (1 << 25) + 4096)
    words = np.fromfile(tmp_path / "index", "<u4")
    assert len(words) == (1 << 23) + 1024
    assert words.max() < min(q for ring in RINGS.values() for q in ring.primes)


def test_every_stride_is_one_that_the_parameters_allow() -> None:
    assert scaling.strides("compact", 512) == [1, 2, 4, 8, 16, 32, 64, 128]
    assert scaling.strides("exact", 512)[-1] == 256


def test_flatness_counts_what_is_past_the_cache() -> None:
    def point(index_bytes: int, ours: float, faiss: float | None) -> dict[str, Any]:
        speed = {"server_ns_per_row": ours, "faiss_ns_per_row": faiss}
        return {"profile": "exact", "dim": 8, "index_bytes": index_bytes, **speed}

    points = [point(10, 1.0, 9.0), point(20, 50.0, 4.0), point(40, 40.0, None), point(80, 44.0, 5.0)]
    (one,) = scaling.flatness(points, 10)
    assert one == {"profile": "exact", "dim": 8, "points": 3, "server": 1.25, "faiss": 1.25}
    assert scaling.flatness(points, 40) == []


# ---- the report ----------------------------------------------------------------------------------------------
def test_a_report_has_what_was_measured_and_says_what_was_not(folder: Path) -> None:
    report.draw(folder)
    text = report.render(folder, "pictures")
    service_figures = json.loads((folder / "service_compact.json").read_text())
    assert "| `compact` | 2 |" in text
    assert f"| {service_figures['ratio_query_vs_plaintext']:.2f} |" in text
    assert "python -m benchmarks.concurrency --rows 2000 --dim 16 --profile compact --threads 1 --rounds 2" in text
    missing = re.findall(r"## ([\w ]+)\n\nNot measured in this run: (\S+) is missing", text)
    assert dict(missing) == {
        "Precision on real data": "icd_compact.json",
        "The layers around a search": "layers_compact.json",
        "The plan": "pareto.json",
        "Approximate plaintext indexes": "approximate.json",
        "A start from object storage": "cold_start.json",
        "A catalogue in PostgreSQL": "catalogue.json",
        "Instructions": "kernels.json",
    }
    for target in re.findall(r"\]\(pictures/(\S+)\)", text):
        assert (folder / target).read_text().startswith("<?xml")


def test_a_report_follows_its_figures(folder: Path) -> None:
    path = folder / "wire.json"
    before, figures = report.render(folder, "."), json.loads(path.read_text())
    path.write_text(json.dumps(figures | {"part_download_mb_s": 123_456.0}))
    assert "| download of a part | 123,456 |" in report.render(folder, ".")
    path.write_text(json.dumps({"payload_bytes": 1}))
    assert "the figure 'part_download_mb_s' is missing; delete the file" in report.render(folder, ".")
    path.write_text(json.dumps(figures))
    assert report.render(folder, ".") == before


@pytest.mark.parametrize(("share", "met"), [(0.8, "yes"), (0.79, "0 of 1")])
def test_goals_are_compared(share: float, met: str, tmp_path: Path) -> None:
    (tmp_path / "overhead_exact.json").write_text(json.dumps({"ratio_server_vs_plain_read": share}))
    lines = report.goals(report.Run(tmp_path))
    (line,) = (one for one in lines if "plain read rate, 100k" in one)
    assert line.endswith(f"| ≥ 0.80 | – | {share:.2f} | – | {met} |")
