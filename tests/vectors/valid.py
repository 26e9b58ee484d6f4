"""What is right: primitives, a small ring with every number in it, and whole runs of the engine at real parameters.

The engine draws its randomness itself and takes none from outside. `repeated` puts a generator that repeats in the
place of the system's while vectors are made; the bytes drawn are in the vectors, since seeds depend on them.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from he_engine import sealing
from he_engine.engine import EncryptedRows, IndexFile
from he_engine.hint_client import HintClient
from he_engine.hint_server import HintServer
from he_engine.keys import RootKey
from he_engine.params import RINGS, Parameters, Profile
from he_engine.public import expand_public
from tests.vectors import reference
from tests.vectors.reference import Scheme

ROOT = hashlib.sha256(b"hesearch test vectors").digest()
COLLECTION, STATE = b"test vectors, 16", hashlib.sha256(b"hesearch test vectors, nonce").digest()
DENOMINATOR = 128  #: of the coordinates of vectors: no rounding before Δ


@contextlib.contextmanager
def repeated(name: str) -> Iterator[list[bytes]]:
    """Random bytes from a name; what was drawn. For test vectors, and for nothing else."""
    drawn: list[bytes] = []

    def urandom(size: int) -> bytes:
        drawn.append(hashlib.shake_256(f"hesearch test vectors {name} {len(drawn)}".encode()).digest(size))
        return drawn[-1]

    with patch.object(os, "urandom", urandom), patch.object(secrets, "token_bytes", urandom):
        yield drawn


def text(raw: Any) -> str:
    return base64.b64encode(bytes(raw)).decode()


def sha256(raw: Any) -> str:
    return hashlib.sha256(bytes(raw)).hexdigest()


# ---- primitives ------------------------------------------------------------------------------------------
def primitives() -> dict[str, Any]:
    key = RootKey(ROOT)
    words = [0, 1, 2**64 - 1, 2**63, 2**21 - 1, 0x123456789ABCDEF0]
    context = (b"collection", 7)
    with repeated("seal") as drawn:
        sealed = sealing.seal(key, "row table", b"associated", b"a sealed text")
        salt, records = sealing.seal_records(key, "payloads", b"associated", [b"first", None, b""])
        seed = key.hedged_seed("rows", b"context", b"content", 3)
    publics = []
    for profile, plane in ((Profile.COMPACT, 0), (Profile.EXACT, 1)):
        ring = RINGS[profile]
        stack = expand_public(STATE, 0, "index", ring, plane + 1)
        for number, q in enumerate(ring.primes):
            slots = stack[number, :, plane].reshape(-1)
            publics.append(
                {"role": "index", "log_n": ring.log_n, "q": q, "plane": plane, "first": slots[:4].tolist(),
                 "sha256": sha256(slots.tobytes())}
            )  # fmt: skip
    return {
        "root_key": ROOT.hex(),
        "nonce": STATE.hex(),
        "length_prefixed": {"fields": ["a", "", 7], "bytes": reference.lp("a", "", 7).hex()},
        "derive": {
            "label": "seal", "context": [context[0].hex(), context[1]], "key": key.derive("seal", *context).hex(),
        },
        "hedged_seed": {
            "label": "rows", "content": [b"context".hex(), b"content".hex(), 3], "random": drawn[2].hex(),
            "seed": seed.hex(),
        },
        "keystream": {"key": ROOT.hex(), "offset_words": 4, "words": reference.keystream(ROOT, 4, 4)},
        "seal": {
            "purpose": "row table", "aad": b"associated".hex(), "plaintext": b"a sealed text".hex(),
            "random": drawn[0].hex(), "sealed": sealed.hex(),
        },
        "seal_records": {
            "purpose": "payloads", "aad": b"associated".hex(), "plaintexts": [b"first".hex(), None, ""],
            "random": drawn[1].hex(), "salt": salt.hex(), "sealed": [record.hex() for record in records],
        },
        "samplers": {
            "words": words, "ternary": reference.ternary(words), "centred_binomial": reference.centred_binomial(words),
            "weight": {"q": RINGS[Profile.COMPACT].primes[0],
                       "residues": [w * RINGS[Profile.COMPACT].primes[0] >> 64 for w in words]},
        },
        "public_polynomials": publics,
    }  # fmt: skip


# ---- a small ring ----------------------------------------------------------------------------------------
def small(profile: Profile) -> dict[str, Any]:
    """N = 32, g = 2, I = 2, two blocks, with the primes of the profile: no security at all, every number shown."""
    ring, log_n, kappa = RINGS[profile], 5, 7
    roots = tuple(pow(psi, ring.degree >> log_n, q) for q, psi in zip(ring.primes, ring.roots, strict=True))
    scheme = Scheme(log_n, ring.primes, roots, 2, 2, kappa)
    rng, blocks = Random(f"small {profile.value}"), 2
    rows = [[[rng.randrange(-9, 10) * 1000 for _ in range(4)] for _ in range(scheme.rows)] for _ in range(blocks)]
    vector = [rng.randrange(-9, 10) * 4000 for _ in range(4)]
    keys = {name: reference.kdf(ROOT, f"small {name}") for name in ("secrets", "noise", "query", "weights")}
    return {
        "insecure": "a ring of degree 32 hides nothing",
        "log_n": log_n, "primes": ring.primes, "roots": roots, "stride": 2, "planes": 2, "drop_bits": kappa,
        "nonce": STATE.hex(), "keys": {name: key.hex() for name, key in keys.items()}, "rows": rows, "query": vector,
        **numbers(scheme, STATE, keys, rows, vector),
    }  # fmt: skip


def numbers(
    scheme: Scheme, nonce: bytes, keys: dict[str, bytes], rows: list[list[list[int]]], vector: list[int]
) -> dict[str, Any]:
    """Every number of one run, as the reference computes it. keys: of the four keystreams."""
    n, planes, blocks = scheme.n, scheme.planes, len(rows)
    a, a_query = scheme.public(nonce, "index"), scheme.public(nonce, "query")
    secret_words, noise = (
        reference.keystream(keys[name], blocks * length)
        for name, length in (("secrets", n // 4), ("noise", planes * n))
    )
    block_secrets = [reference.ternary(secret_words[k * n // 4 : (k + 1) * n // 4]) for k in range(blocks)]
    errors = [
        [reference.centred_binomial(noise[(k * planes + i) * n : (k * planes + i + 1) * n]) for i in range(planes)]
        for k in range(blocks)
    ]
    index = [scheme.encrypt(a, s, e, scheme.row_planes(v)) for s, e, v in zip(block_secrets, errors, rows, strict=True)]
    stream = reference.keystream(keys["query"], n // 4 + planes * n)
    t, rest = reference.ternary(stream[: n // 4]), stream[n // 4 :]
    query_errors = [reference.centred_binomial(rest[i * n : (i + 1) * n]) for i in range(planes)]
    query = scheme.encrypt(a_query, t, query_errors, scheme.query_planes(vector))
    weights = scheme.weights(keys["weights"], blocks)
    hints = [scheme.stored_hint(block, a_query) for block in index]
    answers = [scheme.answer(block, query) for block in index]
    fingerprint = scheme.fingerprint(index, weights)
    assert scheme.verifies(fingerprint, query, weights, answers)
    decoded = [
        scheme.recover(answer, hint, s, t, a, a_query, query)
        for answer, hint, s in zip(answers, hints, block_secrets, strict=True)
    ]
    return {
        "index_public": a, "query_public": a_query, "secrets": block_secrets, "errors": errors, "index": index,
        "stored_hints": hints, "query_secret": t, "query_errors": query_errors, "query_ciphertext": query,
        "weights": weights, "fingerprint": fingerprint, "answers": answers, "decoded": decoded,
    }  # fmt: skip


# ---- the engine ------------------------------------------------------------------------------------------
#: file → profile, dimension, stride, rows; whether all bytes are given, or their digests
RUNS = {
    "engine-compact": [("compact", 130, 128, 20, True)],
    "engine-exact": [("exact", 5, 256, 7, True)],
    "engine-digests": [("compact", 512, None, 130, False), ("exact", 512, None, 130, False),
                       ("precise", 384, None, 129, False)],
}  # fmt: skip


def vectors(count: int, dim: int) -> NDArray[np.int64]:
    """Numerators of `count` rows and of the query after them: (r + 1)·(j + 3)² mod 11 − 5. Norms are below 1."""
    r, j = np.ogrid[: count + 1, :dim]
    numerators: NDArray[np.int64] = (r + 1) * (j + 3) ** 2 % 11 - 5
    return numerators


def run(profile: str, dim: int, stride: int | None, count: int, whole: bool) -> dict[str, Any]:
    """One segment and one query through the public interface."""
    name = f"{profile} {dim}"
    p = Parameters.choose(profile, dim, stride)
    rows = vectors(count, dim)
    vector, rows = rows[-1], rows[:-1]
    client, server = HintClient(p, RootKey(ROOT), COLLECTION, STATE, threads=1), HintServer(p)
    with repeated(name) as drawn, tempfile.TemporaryDirectory() as folder:
        encrypted = client.setup(rows / DENOMINATOR)
        query = client.query(vector / DENOMINATOR)
        answer = answered(server, Path(folder) / "index", encrypted, bytes(query.ciphertext))
        (scores,) = client.recover(query, [client.load(encrypted)], [answer])
    give = text if whole else sha256
    parts = {
        "seed": encrypted.seed.hex(), "fingerprint_salt": encrypted.fingerprint[:32].hex(),
        "index": give(encrypted.index), "hint": give(encrypted.hint), "fingerprint": give(encrypted.fingerprint[32:]),
        "query_ciphertext": give(query.ciphertext), "answer": give(answer),
    }  # fmt: skip
    return {
        "name": name, "parameters": parameters(p), "root_key": ROOT.hex(), "collection_id": COLLECTION.hex(),
        "engine_state": STATE.hex(), "denominator": DENOMINATOR, "rows": count,
        "random": dict(zip(("rows", "fingerprint", "query"), (r.hex() for r in drawn), strict=True)),
        "bytes": "base64" if whole else "SHA-256", **parts, "scores": scores.tolist(),
    }  # fmt: skip


def answered(server: HintServer, path: Path, encrypted: EncryptedRows, query: bytes) -> bytes:
    """What a server makes of an index in a file."""
    path.write_bytes(encrypted.index)
    index = IndexFile(path, 0, len(encrypted.index), encrypted.blocks)
    server.check_index(index)
    server.check_queries([query])
    return server.answer(index, 0, encrypted.blocks, [query])[0]


def parameters(p: Parameters) -> dict[str, Any]:
    return {
        "profile": p.profile.value, "dim": p.dim, "stride": p.stride, "log_n": p.ring.log_n, "primes": p.ring.primes,
        "roots": p.ring.roots, "planes": p.planes, "rows_per_block": p.rows_per_block, "index_scale": p.index_scale,
        "query_scale": p.query_scale, "quantiser": p.quantiser, "hint_drop_bits": p.hint_drop_bits,
        "digest": p.digest.hex(),
    }  # fmt: skip
