"""What is wrong: inputs that every parser refuses, and with which error.

Files and messages are those of tests/fuzz, changed by its mutators: what is kept is refused, and no more than a few of
one message of error. Parts of the engine are those of engine-compact.json with one word changed, or cut.
"""

from __future__ import annotations

import base64
import json
import re
import tempfile
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from he_engine.engine import EncryptedRows, IndexFile
from he_engine.errors import HesearchError
from he_engine.hint_client import HintClient
from he_engine.hint_server import HintServer
from he_engine.keys import RootKey
from he_engine.params import Parameters
from tests.fuzz.messages import METHODS, NUMBERS
from tests.fuzz.target import Target
from tests.fuzz.targets import TARGETS
from tests.vectors.valid import repeated, vectors

KINDS = (
    "requests", "segment-file", "sealed-file", "archive", "manifest", "row-table", "payload", "key-file",
    "reseal-journal", "catalogue-cell", "backup-list",
)  # fmt: skip
EACH, OF_ONE_MESSAGE, TRIES = 60, 5, 4000
MAX_BYTES, MAX_TOTAL_BYTES = 4000, 36000  #: in the file: of one, and of a kind


# ---- files and messages ----------------------------------------------------------------------------------
@contextmanager
def opened(kind: str) -> Iterator[Target]:
    """Its parser; the same samples each time."""
    with repeated(f"fuzz {kind}"):
        target = TARGETS[kind]()
    try:
        yield target
    finally:
        target.close()


def refusal(target: Target, data: bytes) -> HesearchError | None:
    """What the parser says of it; None: it takes it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            target.run(data)
        except HesearchError as error:
            return error
    return None


def files() -> dict[str, list[dict[str, Any]]]:
    """For each kind: first the samples, most of which are taken, then changed ones, which are not."""
    return {kind: list(_of(kind)) for kind in KINDS}


def _of(kind: str) -> Iterator[dict[str, Any]]:
    rng, seen, kept, total_bytes = Random(f"malformed {kind}"), Counter[str](), 0, 0
    with opened(kind) as target:
        for sample in target.samples:
            error = refusal(target, sample)  # there are requests of what exists already
            yield entry(kind, sample, error)
        for data in _key_files(target.samples[0]) if kind == "key-file" else ():
            error = refusal(target, data)
            assert error is not None
            yield entry(kind, data, error)
        for _ in range(TRIES):
            data = target.mutate(rng, rng.choice(target.samples), target.samples)
            if target.repair and rng.random() < 0.6:
                data = target.repair(data)
            if not data or len(packed(data)) > MAX_BYTES or (error := refusal(target, data)) is None:
                continue
            message = f"{type(error).__name__} {re.sub(r'[0-9]+', '0', str(error))[:60]}"
            seen[message] += 1
            if seen[message] <= OF_ONE_MESSAGE or (len(seen) < 4 and seen[message] <= EACH):
                kept, total_bytes = kept + 1, total_bytes + len(packed(data))
                yield entry(kind, data, error)
            if kept == EACH or total_bytes > MAX_TOTAL_BYTES:
                return


def _key_files(sample: bytes) -> Iterator[bytes]:
    """Each bound passed by one, and each member missing."""
    right = json.loads(sample)
    beyond = (
        ("iterations", 0),
        ("iterations", 17),
        ("lanes", 0),
        ("lanes", 17),
        ("memory_kib", 31),
        ("memory_kib", (1 << 18) + 1),
    )
    for name, value in (*beyond, ("name", "argon2i")):
        yield json.dumps({**right, "kdf": {**right["kdf"], name: value}}).encode()
    for name in right:
        yield json.dumps({member: value for member, value in right.items() if member != name}).encode()
    for name in ("salt", "nonce", "sealed"):
        yield json.dumps({**right, name: right[name][2:]}).encode()
    for name, value in (("version", 2), ("version", True), ("format", "hesearch"), ("x", 0)):
        yield json.dumps({**right, name: value}).encode()


def entry(kind: str, data: bytes, error: HesearchError | None) -> dict[str, Any]:
    """As the file has it: requests name their method, whose number may change."""
    name = type(error).__name__ if error else None
    if kind != "requests":
        return {"error": name, "bytes": packed(data)}
    return {"error": name, "method": METHODS[data[0] % len(METHODS)].name, "bytes": packed(data[1:])}


def input_of(given: dict[str, Any]) -> bytes:
    """The input of an entry."""
    method = bytes([NUMBERS[given["method"]]]) if "method" in given else b""
    return method + zlib.decompress(base64.b64decode(given["bytes"]))


def packed(data: bytes) -> str:
    """Files are mostly zeros."""
    return base64.b64encode(zlib.compress(data, 9)).decode()


# ---- parts of the engine ---------------------------------------------------------------------------------
class Engine:
    """The run of engine-compact.json with all bytes: each part handed to who looks at it, the others as they are."""

    def __init__(self, run: dict[str, Any], folder: Path) -> None:
        given = run["parameters"]
        p = Parameters.choose(given["profile"], given["dim"], given["stride"])
        root, collection, state = (bytes.fromhex(run[name]) for name in ("root_key", "collection_id", "engine_state"))
        self.client = HintClient(p, RootKey(root), collection, state, threads=1)
        self.server = HintServer(p)
        self.path, self.rows, self.seed = folder / "index", run["rows"], bytes.fromhex(run["seed"])
        salt = bytes.fromhex(run["fingerprint_salt"])
        self.parts = {name: base64.b64decode(run[name])
                      for name in ("index", "hint", "fingerprint", "query_ciphertext", "answer")}  # fmt: skip
        self.parts["fingerprint"] = salt + self.parts["fingerprint"]
        self.blocks = p.blocks_for(self.rows)
        with repeated(run["name"]):
            *rows, vector = vectors(self.rows, p.dim) / run["denominator"]
            self.client.setup(np.array(rows))
            self.query = self.client.query(vector)
        assert bytes(self.query.ciphertext) == self.parts["query_ciphertext"]

    def encrypted(self, **changed: bytes) -> EncryptedRows:
        parts = {**self.parts, **changed}
        return EncryptedRows(self.rows, self.blocks, parts["index"], parts["hint"], self.seed, parts["fingerprint"])

    def take(self, part: str, data: bytes) -> None:
        """Raises what the part's reader raises."""
        readers: dict[str, Callable[[], object]] = {
            "index": lambda: self._check(data),
            "hint": lambda: self.client.load(self.encrypted(hint=data)),
            "fingerprint": lambda: self.client.load(self.encrypted(fingerprint=data)),
            "query_ciphertext": lambda: self.server.check_queries([data]),
            "answer": lambda: self.client.recover(self.query, [self.client.load(self.encrypted())], [data]),
        }
        readers[part]()

    def _check(self, data: bytes) -> None:
        self.path.write_bytes(data)
        self.server.check_index(IndexFile(self.path, 0, len(data), self.blocks))


def changed(data: bytes, change: dict[str, int]) -> bytes:
    """With one u32 word replaced, then cut to a length or filled with zeros up to it."""
    out = bytearray(data)
    if "word" in change:
        out[4 * change["word"] : 4 * change["word"] + 4] = change["value"].to_bytes(4, "little")
    length = change.get("length_bytes", len(out))
    return bytes(out[:length].ljust(length, b"\0"))


def engine(run: dict[str, Any]) -> list[dict[str, Any]]:
    """Changes of the parts of one run, with the error of each."""
    rng, found = Random("malformed engine"), []
    primes = run["parameters"]["primes"]
    with tempfile.TemporaryDirectory() as folder:
        whole = Engine(run, Path(folder))
        for part, data in whole.parts.items():
            changes: list[dict[str, int]] = [
                {"length_bytes": length}
                for length in (0, 1, len(data) - 4, len(data) - 1, len(data) + 1, len(data) + 4)
            ]
            words = len(data) // 4
            first = 8 if part == "fingerprint" else 0  # behind its salt
            for word in (first, words - 1, rng.randrange(first, words)):
                changes += [
                    {"word": word, "value": value} for value in (min(primes), max(primes), 1 << 31, (1 << 32) - 1)
                ]
            if part == "answer":  # canonical and wrong
                for word in range(words):
                    value = int.from_bytes(data[4 * word : 4 * word + 4], "little")
                    changes.append({"word": word, "value": (value + rng.choice((1, min(primes) - 1))) % min(primes)})
            for change in changes:
                try:
                    whole.take(part, changed(data, change))
                except HesearchError as error:
                    found.append({"part": part, **change, "error": type(error).__name__})
    return found
