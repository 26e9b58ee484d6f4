"""The test vectors: the engine and a second implementation agree with them, and all that is malformed is refused.

tests/vectors/README.md says what is in them; `python -m tests.vectors.make` makes them.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import he_engine.errors
from he_engine import sealing
from he_engine.kernels._answer import AnswerKernel
from he_engine.kernels._client import ClientKernel, targets
from he_engine.keys import RootKey, length_prefixed
from he_engine.params import Parameters
from he_engine.public import keystream
from tests.vectors import make, malformed, reference, valid
from tests.vectors.reference import Scheme, Stack

WHOLE = ("engine-compact", "engine-exact")
SMALL = ("compact", "exact")


@cache
def stored(name: str) -> Any:
    return json.loads((make.FOLDER / f"{name}.json").read_text())


def raw(run: dict[str, Any], part: str) -> bytes:
    return base64.b64decode(run[part])


def test_they_are_made_again() -> None:
    """Byte for byte: seeds, ciphertexts, hints, fingerprints, answers and scores are functions of what is drawn."""
    for name, content in make.made().items():
        assert stored(name.removesuffix(".json")) == content, name


# ---- the engine, through its public interface --------------------------------------------------------------
@pytest.mark.parametrize("name", WHOLE)
def test_another_process_answers_and_recovers(name: str, tmp_path: Path) -> None:
    (run,) = stored(name)["runs"]
    engine = malformed.Engine(run, tmp_path)
    answer = valid.answered(engine.server, tmp_path / "index", engine.encrypted(), raw(run, "query_ciphertext"))
    assert answer == raw(run, "answer")
    (scores,) = engine.client.recover(engine.query, [engine.client.load(engine.encrypted())], [raw(run, "answer")])
    assert scores.tolist() == run["scores"]


@pytest.mark.parametrize("name", [*WHOLE, "engine-digests"])
def test_scores_are_inner_products(name: str) -> None:
    """`exact`: of the quantised vectors, to the last bit. The others: within six standard deviations."""
    for run in stored(name)["runs"]:
        given = run["parameters"]
        p = Parameters.choose(given["profile"], given["dim"], given["stride"])
        *rows, vector = valid.vectors(run["rows"], p.dim) / run["denominator"]
        if p.quantiser:
            s = p.quantiser
            expected = (np.rint(np.array(rows) * s) @ np.rint(vector * s)) / float(s * s)
            assert run["scores"] == expected.tolist()
        else:
            assert np.abs(np.array(run["scores"]) - np.array(rows) @ vector).max() < 6 * p.score_error_std


# ---- a second implementation, in Python integers -----------------------------------------------------------
def scheme_of(given: dict[str, Any]) -> Scheme:
    return Scheme(given["log_n"], tuple(given["primes"]), tuple(given["roots"]), given["stride"], given["planes"],
                  given["hint_drop_bits"])  # fmt: skip


def encoded(run: dict[str, Any]) -> tuple[list[list[int]], list[int]]:
    """⌊scale·x⌉ as integers, half to even, with no floating point."""
    given = run["parameters"]
    *rows, vector = valid.vectors(run["rows"], given["dim"]).tolist()

    def integers(numerators: list[int], scale: int) -> list[int]:
        quantiser, factor = (given["quantiser"], scale) if given["quantiser"] else (scale, 1)
        return [factor * round(Fraction(quantiser * x, run["denominator"])) for x in numerators]

    return [integers(row, given["index_scale"]) for row in rows], integers(vector, given["query_scale"])


@pytest.mark.parametrize("name", WHOLE)
def test_the_reference_computes_every_byte(name: str) -> None:
    """From the key, the nonce and the bytes drawn to ciphertexts, fingerprint, answer and scores."""
    (run,) = stored(name)["runs"]
    given, scheme = run["parameters"], scheme_of(run["parameters"])
    root, nonce, digest = (bytes.fromhex(v) for v in (run["root_key"], run["engine_state"], given["digest"]))
    drawn = {use: bytes.fromhex(value) for use, value in run["random"].items()}
    context = reference.lp(bytes.fromhex(run["collection_id"]), nonce, 0)
    rows, vector = encoded(run)

    blank, size = [0] * (scheme.planes * scheme.stride), scheme.rows
    padded = [row + blank[len(row) :] for row in rows]
    padded += [blank] * (-len(rows) % size)
    content = b"".join(x.to_bytes(4, "little", signed=True) for row in padded for x in row)
    seed = reference.hedged_seed(root, "rows", drawn["rows"], context, digest, content)
    salt = reference.hedged_seed(root, "fingerprint", drawn["fingerprint"], context, seed)
    assert (seed.hex(), salt.hex()) == (run["seed"], run["fingerprint_salt"])
    content = b"".join(x.to_bytes(8, "little", signed=True) for x in vector + blank[len(vector) :])
    query_seed = reference.hedged_seed(root, "query", drawn["query"], context, digest, content, 0)
    keys = {
        "secrets": reference.kdf(root, "block secrets", context, seed),
        "noise": reference.kdf(root, "row noise", context, seed),
        "query": reference.kdf(root, "query secret", context, query_seed),
        "weights": reference.kdf(root, "fingerprint weights", context, seed, salt),
    }
    blocks = [padded[first : first + size] for first in range(0, len(padded), size)]
    got = valid.numbers(scheme, nonce, keys, blocks, vector)

    assert b"".join(map(scheme.stack_bytes, got["index"])) == raw(run, "index")
    assert b"".join(map(scheme.packed_hint, got["stored_hints"])) == raw(run, "hint")
    assert b"".join(map(scheme.stack_bytes, got["fingerprint"])) == raw(run, "fingerprint")
    assert scheme.stack_bytes(got["query_ciphertext"]) == raw(run, "query_ciphertext")
    words = [word for block in got["answers"] for slots in block for word in slots]
    assert words == reference.u32(raw(run, "answer"))
    decoded = [value for block in got["decoded"] for value in block][: len(rows)]
    step = given["index_scale"] * given["query_scale"]
    if given["quantiser"]:
        scores = [((value + step // 2) // step) / given["quantiser"] ** 2 for value in decoded]
    else:
        scores = [value / step for value in decoded]
    assert scores == run["scores"]


def test_the_reference_agrees_on_public_polynomials() -> None:
    given = stored("primitives")
    nonce = bytes.fromhex(given["nonce"])
    for one in given["public_polynomials"]:
        ring = Scheme(one["log_n"], (one["q"],), (0,), 1, one["plane"] + 1, 0)
        slots = ring.public(nonce, one["role"])[0][one["plane"]]
        assert slots[:4] == one["first"]
        assert valid.sha256(b"".join(slot.to_bytes(4, "little") for slot in slots)) == one["sha256"]


def test_the_reference_agrees_on_derivations() -> None:
    given = stored("primitives")
    root = bytes.fromhex(given["root_key"])
    key, context = RootKey(root), given["derive"]["context"]
    fields = given["length_prefixed"]["fields"]
    assert length_prefixed(*fields) == reference.lp(*fields) == bytes.fromhex(given["length_prefixed"]["bytes"])
    derive: list[Callable[..., bytes]] = [key.derive, lambda *rest: reference.kdf(root, *rest)]
    for function in derive:
        assert function("seal", bytes.fromhex(context[0]), context[1]).hex() == given["derive"]["key"]
    hedged = given["hedged_seed"]
    first, second, number = hedged["content"]
    content = bytes.fromhex(first), bytes.fromhex(second), number
    random = bytes.fromhex(hedged["random"])
    assert reference.hedged_seed(root, hedged["label"], random, *content).hex() == hedged["seed"]
    assert keystream(root, 4, given["keystream"]["offset_words"]).tolist() == given["keystream"]["words"]
    one = given["seal"]
    aad, plaintext, sealed = (bytes.fromhex(one[name]) for name in ("aad", "plaintext", "sealed"))
    salt = reference.hedged_seed(root, "seal", bytes.fromhex(one["random"]), one["purpose"].encode(), aad, plaintext)
    assert sealed[:32] == salt
    assert sealing.unseal(key, one["purpose"], aad, sealed) == plaintext
    column = given["seal_records"]
    for number, (text, sealed_text) in enumerate(zip(column["plaintexts"], column["sealed"], strict=True)):
        if text is not None:
            opened = sealing.unseal_record(
                key, column["purpose"], aad, bytes.fromhex(column["salt"]), number, bytes.fromhex(sealed_text)
            )
            assert opened.hex() == text


# ---- the small ring ----------------------------------------------------------------------------------------
class Kernels:
    """The C++ kernels on a ring of degree 32, and its stacks as they take them."""

    def __init__(self, given: dict[str, Any], target: str) -> None:
        self.scheme = Scheme(given["log_n"], tuple(given["primes"]), tuple(given["roots"]), given["stride"],
                             given["planes"], given["drop_bits"])  # fmt: skip
        s = self.scheme
        self.shape = (len(s.primes), s.n // reference.TILE, s.planes, reference.TILE)
        self.client = ClientKernel(s.log_n, s.primes, s.roots, s.stride, s.planes, target)
        self.server = AnswerKernel(s.log_n, s.primes, s.stride, s.planes, target)

    def array(self, stacks: list[Stack]) -> np.ndarray[Any, np.dtype[np.uint32]]:
        words = b"".join(map(self.scheme.stack_bytes, stacks))
        return np.frombuffer(words, "<u4").reshape(len(stacks), *self.shape).copy()


@pytest.mark.parametrize("target", targets())
@pytest.mark.parametrize("profile", SMALL)
def test_kernels_give_the_numbers_of_the_small_ring(profile: str, target: str) -> None:
    given = stored("small")[profile]
    kernels = Kernels(given, target)
    s, blocks = kernels.scheme, len(given["rows"])
    a, a_query = (kernels.array([given[name]])[0] for name in ("index_public", "query_public"))
    words = {name: keystream(bytes.fromhex(key), 4096) for name, key in given["keys"].items()}
    secrets = kernels.client.expand_secrets(words["secrets"][: blocks * s.n // 4].reshape(blocks, -1))
    noise = words["noise"][: blocks * s.planes * s.n].reshape(blocks, s.planes, s.n)
    per_block = (blocks, reference.CHECKS, len(s.primes), s.rows)
    weights = kernels.client.expand_weights(words["weights"][: int(np.prod(per_block))].reshape(per_block))
    assert weights.tolist() == given["weights"]

    index = np.zeros((blocks, *kernels.shape), np.uint32)
    hint = np.zeros((blocks, len(s.primes), s.n), np.uint32)
    fingerprint = np.zeros((reference.CHECKS, *kernels.shape), np.uint32)
    rows = np.array(given["rows"], np.int32)
    kernels.client.encrypt_blocks(rows, noise, secrets, a, a_query, weights, index, hint, fingerprint)
    assert np.array_equal(index, kernels.array(given["index"]))
    assert np.array_equal(fingerprint, kernels.array(given["fingerprint"]))
    packed = kernels.client.pack_hint(hint, s.drop_bits)
    assert packed.tobytes() == b"".join(map(s.packed_hint, given["stored_hints"]))

    query = np.zeros(kernels.shape, np.uint32)
    t, z = (np.zeros((len(s.primes), s.n), np.uint32) for _ in range(2))
    stream = words["query"][: s.n // 4 + s.planes * s.n]
    kernels.client.encrypt_query(np.array(given["query"], np.int64), stream, a, a_query, query, t, z)
    assert np.array_equal(query, kernels.array([given["query_ciphertext"]])[0])
    answers = np.zeros((1, blocks, len(s.primes), s.rows), np.uint32)
    kernels.server.answer(index, [query], answers)
    assert answers[0].tolist() == given["answers"]
    used = kernels.client.unpack_hint(packed, s.drop_bits)
    assert kernels.client.recover(answers[0], used, secrets, t, z).tolist() == given["decoded"]


@pytest.mark.parametrize("profile", SMALL)
def test_the_small_ring_decodes_to_inner_products(profile: str) -> None:
    given = stored("small")[profile]
    products = [[sum(x * y for x, y in zip(row, given["query"], strict=True)) for row in block]
                for block in given["rows"]]  # fmt: skip
    noise = np.array(given["decoded"]) - np.array(products)
    assert 0 < np.abs(noise).max() < 2**23 < np.abs(np.array(products)).max()


@pytest.mark.parametrize("profile", SMALL)
def test_a_changed_answer_does_not_verify(profile: str) -> None:
    given = stored("small")[profile]
    s = Kernels(given, "").scheme
    parts = given["fingerprint"], given["query_ciphertext"], given["weights"]
    assert s.verifies(*parts, given["answers"])
    for p, q in enumerate(s.primes):
        for slot in range(s.rows):
            wrong = json.loads(json.dumps(given["answers"]))
            wrong[1][p][slot] = (wrong[1][p][slot] + 1) % q
            assert not s.verifies(*parts, wrong)


# ---- what is malformed -------------------------------------------------------------------------------------
def test_there_are_enough() -> None:
    entries = [entry for some in stored("malformed").values() for entry in some if entry["error"]]
    assert len(entries) >= 500
    assert all(
        issubclass(getattr(he_engine.errors, entry["error"]), he_engine.errors.HesearchError) for entry in entries
    )


@pytest.mark.parametrize("kind", malformed.KINDS)
def test_what_is_malformed_is_refused(kind: str) -> None:
    """With the error that the vector names; what is right is taken."""
    with malformed.opened(kind) as target:
        for number, entry in enumerate(stored("malformed")[kind]):
            error = malformed.refusal(target, malformed.input_of(entry))
            assert (type(error).__name__ if error else None) == entry["error"], f"{kind} {number}: {error}"


def test_changed_parts_of_the_engine_are_refused(tmp_path: Path) -> None:
    (run,) = stored("engine-compact")["runs"]
    engine = malformed.Engine(run, tmp_path)
    for part, data in engine.parts.items():
        engine.take(part, data)
    for entry in stored("malformed")["engine"]:
        with pytest.raises(getattr(he_engine.errors, entry["error"])) as caught:
            engine.take(entry["part"], malformed.changed(engine.parts[entry["part"]], entry))
        assert type(caught.value).__name__ == entry["error"]
