"""The flow: catalogue → vectors → server → encrypted collection → questions → comparison.

What leaves this process: the encrypted index, encrypted queries, sealed payloads. The key is made here, lives
in memory only, and goes with the process.
"""

from __future__ import annotations

import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import numpy as np
from numpy.typing import NDArray

from he_client.client import Client
from he_client.collection import Collection
from he_client.demo import report
from he_client.demo.ask import Data, ask, ask_sample, compare, first_search
from he_client.demo.catalogue import load_catalogue
from he_client.demo.encoders import Encoder, load_encoder
from he_client.demo.plaintext import PlaintextSearch
from he_client.demo.record import RECALL_K, DemoRecord, InsertRecord
from he_client.demo.server_process import ServerProcess
from he_client.keys import CollectionKey
from he_client.progress import progress_bar

F32 = NDArray[np.float32]

EMBED_CHUNK = 4096  #: titles between two moves of the bar
NAME = "diagnoses"


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """As on the command line."""

    questions: tuple[str, ...]
    shown: int  #: hits printed for each question
    rows: int | None  #: None: the whole catalogue
    profile: str
    encoder: str
    threads: int


def run_demo(options: DemoOptions) -> DemoRecord:
    """Run it, print it, return what was measured.

    Raises MissingExtra (nothing was started), InvalidInput for a question without words or more rows than the
    catalogue has, Unavailable when the server does not start. The server and its folder are gone afterwards.
    """
    started = time.perf_counter()
    with _ends_on_sigterm(), tempfile.TemporaryDirectory(prefix="hesearch-demo-") as folder:
        data = _prepare(options)
        plaintext = PlaintextSearch(data.vectors, options.threads)
        start = time.perf_counter()
        report.step(
            3, "Start the server",
            "A separate process on this machine. It is given a folder and a port; no key, no text, no model, and "
            "it cannot decrypt. (--insecure: no TLS on this local connection. What follows does not rest on TLS.)",
        )  # fmt: skip
        with ServerProcess(Path(folder), options.threads) as server:
            server_start_s = time.perf_counter() - start
            report.command(server.command)
            report.done(f"process {server.pid}, on {server.address}, {report.seconds(server_start_s)}")
            with Client(server.address, insecure=True, threads=options.threads) as client:
                insert, collection = _encrypt(client, data, options)
                info = client.describe(NAME)
                report.step(
                    6, "Ask",
                    "A question is embedded here and encrypted under a secret of its own, so the same question "
                    "asked twice looks different. The server multiplies ciphertexts; what comes back is "
                    "checked for tampering, and decrypted here.",
                )  # fmt: skip
                first_search_s = first_search(collection, data)
                report.done(f"first search, which warms both sides up: {report.seconds(first_search_s)}")
                asked = [ask(collection, vector, options.shown) for vector in data.questions]
                queries = []
                for one, text, vector in zip(asked, options.questions, data.questions, strict=True):
                    queries.append(compare(one, data, plaintext, text, vector, options.shown))
                    report.question(len(queries), queries[-1], min(RECALL_K, len(data.catalogue)))
                sample = ask_sample(collection, data, plaintext)
    record = DemoRecord(
        rows=len(data.catalogue),
        dim=data.encoder.dim,
        encoder=data.encoder.name,
        profile=options.profile,
        stride=info.stride,
        threads=options.threads,
        catalogue_s=data.catalogue_s,
        embed_s=data.embed_s,
        server_start_s=server_start_s,
        first_search_s=first_search_s,
        total_s=time.perf_counter() - started,
        insert=insert,
        queries=queries,
        sample=sample,
    )
    report.table(record)
    report.closing(record)
    return record


def _prepare(options: DemoOptions) -> Data:
    """Steps 1 and 2: what happens before anything is sent."""
    report.say("hesearch demo: search real diagnoses on a server that can read none of them")
    start = time.perf_counter()
    report.step(1, "Load the data", "ICD-10-CM, the catalogue of diagnoses; take it for your patients' notes.")
    encoder = load_encoder(options.encoder)
    questions = encoder.embed(options.questions)
    catalogue = load_catalogue()
    if options.rows is not None:
        catalogue = catalogue.subset(options.rows)
    catalogue_s = time.perf_counter() - start
    report.done(f"{len(catalogue):,} titles, {report.seconds(catalogue_s)}")

    start = time.perf_counter()
    report.step(
        2, "Turn texts into vectors, here",
        f"{encoder.name} makes {encoder.dim} numbers of each title, close numbers for close meanings. Such vectors "
        "give their text away, sometimes word for word, so they must not leave this process unencrypted.",
    )  # fmt: skip
    vectors = _embed(encoder, catalogue.titles)
    embed_s = time.perf_counter() - start
    report.done(f"{len(vectors):,} vectors, {report.seconds(embed_s)}")
    return Data(catalogue, encoder, vectors, questions, catalogue_s, embed_s)


def _embed(encoder: Encoder, texts: Sequence[str]) -> F32:
    parts = []
    with progress_bar(None, len(texts), "embed", "rows") as advance:
        for start in range(0, len(texts), EMBED_CHUNK):
            parts.append(encoder.embed(texts[start : start + EMBED_CHUNK]))
            advance(len(parts[-1]))
    return np.concatenate(parts)


def _encrypt(client: Client, data: Data, options: DemoOptions) -> tuple[InsertRecord, Collection]:
    """Steps 4 and 5. Row r gets the id r and the payload "code title"."""
    report.step(
        4, "Make a key",
        "Random, in this process's memory only. Without it the index is noise, for the server and for anyone "
        "who steals its disk. (CollectionKey.save keeps a key in a file, under a passphrase.)",
    )  # fmt: skip
    key = CollectionKey.generate()
    collection = client.create_collection(NAME, dim=data.encoder.dim, key=key, metric="cosine", profile=options.profile)
    report.done(f"an empty collection, profile {options.profile}")
    report.step(5, "Encrypt here, upload", "Vectors, ids and titles are encrypted before they are sent.")
    titles = [f"{c} {t}" for c, t in zip(data.catalogue.codes, data.catalogue.titles, strict=True)]
    start = time.perf_counter()
    collection.insert(range(len(titles)), data.vectors, payloads=titles)
    insert_s = time.perf_counter() - start
    info = client.describe(NAME)
    report.done(
        f"{len(titles):,} rows in {report.seconds(insert_s)}, {report.size(info.stored_bytes)} on the server, "
        f"of which index {report.size(info.index_bytes)} ({info.index_bytes / data.vectors.size:.1f} bytes a number)"
    )
    insert = InsertRecord(
        insert_s=insert_s,
        rows_per_s=len(titles) / insert_s,
        index_bytes=info.index_bytes,
        stored_bytes=info.stored_bytes,
        plaintext_index_bytes=data.vectors.nbytes,
    )
    return insert, collection


@contextmanager
def _ends_on_sigterm() -> Iterator[None]:
    """SIGTERM and SIGHUP leave through the context managers too, so that no server and no folder stays behind."""

    def leave(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
