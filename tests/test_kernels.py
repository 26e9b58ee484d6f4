"""The C++ kernels against their oracle in Python integers, on every instruction set that this machine can run.

Small rings come from the real primes: ψ^(N/N') is a primitive 2N'-th root, so the vectors are short but the
residues, and with them every overflow, are those of the real rings.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from he_engine.kernels import _answer, _client
from he_engine.kernels.naive import TILE, NaiveKernel, centred_binomial, ternary
from he_engine.params import RINGS, Profile, Ring

U32 = NDArray[np.uint32]
TARGETS = _answer.targets()
LARGEST_ROW = 2**31 - 65  # the error adds up to 21
CHECKS = 3

#: (primes, log N, stride, planes): every stride class, every remainder of planes mod 4, and many planes.
CASES = [
    (1, 4, 1, 1), (2, 4, 1, 4), (1, 5, 2, 3), (2, 5, 1, 2), (1, 5, 1, 33), (2, 5, 2, 33), (1, 6, 4, 5), (2, 6, 2, 6),
    (2, 7, 8, 3), (1, 7, 4, 4), (1, 8, 16, 2), (2, 8, 8, 1), (1, 9, 32, 1),
]  # fmt: skip
FILLS = ["random", "edges", "largest"]


def ring(primes: int, log_n: int | None = None) -> Ring:
    """The real ring with that many primes, or its copy of degree 2^log_n."""
    big = RINGS[Profile.COMPACT if primes == 1 else Profile.EXACT]
    if log_n is None:
        return big
    power = big.degree >> log_n
    roots = tuple(pow(psi, power, q) for q, psi in zip(big.primes, big.roots, strict=True))
    return Ring(log_n=log_n, primes=big.primes, roots=roots)


class Inputs:
    """Random arguments for every method. Fill `edges` draws from 0, 1, q−1 alone, `largest` is q−1 everywhere."""

    def __init__(self, ring: Ring, stride: int, planes: int, fill: str, blocks: int = 5, queries: int = 3) -> None:
        self.ring, self.stride, self.planes, self.fill = ring, stride, planes, fill
        self.rng = np.random.default_rng([ring.log_n, stride, planes, FILLS.index(fill)])
        n, p, rows = ring.degree, len(ring.primes), ring.degree // stride
        self.stack_shape = (p, n // TILE, planes, TILE)
        self.polys = self.residues(blocks, (n,))
        self.folded = self.residues(blocks, (rows,))
        self.hints = self.residues(blocks, (n,))
        self.secret, self.mask = self.residues(0, (n,)), self.residues(0, (n,))
        self.blocks = self.residues(blocks, self.stack_shape[1:])
        self.queries = self.residues(queries, self.stack_shape[1:])
        self.index_public, self.query_public = self.queries[0].copy(), self.queries[-1].copy()
        self.fingerprint = self.residues(CHECKS, self.stack_shape[1:])
        self.weights = np.stack([self.residues(CHECKS, (rows,)) for _ in range(blocks)])
        self.noise = self.words(blocks, planes, n)
        self.secret_words = self.words(blocks, n // 4)
        self.weight_words = self.words(blocks, CHECKS, p, rows)
        self.query_words = self.words(n // 4 + planes * n)
        self.rows = self.integers(LARGEST_ROW, blocks, rows, planes * stride).astype(np.int32)
        self.query = self.integers(2**40 - 1, planes * stride)

    def residues(self, count: int, tail: tuple[int, ...]) -> U32:
        """(count, P, *tail), or (P, *tail) where count is 0."""
        shape = (count, *tail) if count else tail
        planes = []
        for q in self.ring.primes:
            if self.fill == "random":
                planes.append(self.rng.integers(0, q, shape, np.uint32))
            else:
                edges = [0, 1, q - 1] if self.fill == "edges" else [q - 1]
                planes.append(self.rng.choice(np.array(edges, np.uint32), shape))
        return np.ascontiguousarray(np.stack(planes, axis=1 if count else 0))

    def words(self, *shape: int) -> NDArray[np.uint64]:
        if self.fill == "random":
            return self.rng.integers(0, 2**64, shape, np.uint64)
        edges = [0, 2**64 - 1, 2**21 - 1, (2**21 - 1) << 21, 2**63] if self.fill == "edges" else [2**64 - 1]
        return self.rng.choice(np.array(edges, np.uint64), shape)

    def integers(self, limit: int, *shape: int) -> NDArray[np.int64]:
        if self.fill == "random":
            return self.rng.integers(-limit, limit + 1, shape)
        edges = [-limit, -1, 0, 1, limit] if self.fill == "edges" else [limit]
        return self.rng.choice(np.array(edges, np.int64), shape)


def kernels(inputs: Inputs, target: str) -> tuple[Any, Any]:
    """(client, answer) on one instruction set; "naive" is the oracle for both."""
    ring, stride, planes = inputs.ring, inputs.stride, inputs.planes
    if target == "naive":
        naive = NaiveKernel(ring.log_n, ring.primes, ring.roots, stride, planes)
        return naive, naive
    return (
        _client.ClientKernel(ring.log_n, ring.primes, ring.roots, stride, planes, target),
        _answer.AnswerKernel(ring.log_n, ring.primes, stride, planes, target),
    )


def results(inputs: Inputs, client: Any, answer: Any) -> dict[str, Any]:
    """What every method makes of the inputs."""
    x, n, p = inputs, inputs.ring.degree, len(inputs.ring.primes)
    count, rows = x.blocks.shape[0], n // x.stride
    out: dict[str, Any] = {}
    for name, polys in ("forward", x.polys), ("inverse", x.polys), ("inverse_decimated", x.folded):
        out[name] = polys.copy()
        getattr(client, name)(out[name])
    out["fold"] = client.fold(x.polys)
    out["expand_secrets"] = client.expand_secrets(x.secret_words)
    out["expand_weights"] = client.expand_weights(x.weight_words)

    blocks, hint = np.zeros_like(x.blocks), np.zeros((count, p, n), np.uint32)
    fingerprint = x.fingerprint.copy()
    client.encrypt_blocks(
        x.rows, x.noise, x.polys, x.index_public, x.query_public, x.weights, blocks, hint, fingerprint
    )
    out |= {"blocks": blocks, "hint": hint, "fingerprint": fingerprint}
    ciphertext = np.zeros(x.stack_shape, np.uint32)
    secret, mask = np.zeros((p, n), np.uint32), np.zeros((p, n), np.uint32)
    client.encrypt_query(x.query, x.query_words, x.index_public, x.query_public, ciphertext, secret, mask)
    out |= {"ciphertext": ciphertext, "secret": secret, "mask": mask}

    for some in 1, x.queries.shape[0]:
        answers = np.zeros((some, count, p, rows), np.uint32)
        answer.answer(x.blocks, x.queries[:some], answers)
        out[f"answer {some}"] = answers
    out["weighted_sum"] = client.weighted_sum(x.weights, x.folded)
    out["weighted_sum one"] = client.weighted_sum(
        x.fingerprint.reshape(1, CHECKS, p, -1), x.index_public.reshape(1, p, -1)
    )
    out["weighted_sum odd"] = client.weighted_sum(x.weights[..., :13].copy(), x.folded[..., :13].copy())
    out["recover"] = client.recover(x.folded, x.hints, x.polys, x.secret, x.mask)
    out["canonical"] = answer.first_noncanonical(x.polys)
    return out


@lru_cache(maxsize=1)
def expected(case: tuple[int, int, int, int], fill: str) -> tuple[Inputs, dict[str, Any]]:
    primes, log_n, stride, planes = case
    inputs = Inputs(ring(primes, log_n), stride, planes, fill, blocks=5 if log_n < 7 else 2)
    return inputs, results(inputs, *kernels(inputs, "naive"))


def assert_same(got: dict[str, Any], want: dict[str, Any]) -> None:
    for name, value in want.items():
        np.testing.assert_array_equal(got[name], value, err_msg=name)
        if isinstance(value, np.ndarray):
            assert got[name].dtype == value.dtype, name


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_method_agrees_with_the_oracle(case: tuple[int, int, int, int], fill: str, target: str) -> None:
    inputs, want = expected(case, fill)
    assert_same(results(inputs, *kernels(inputs, target)), want)


@pytest.mark.parametrize("blocks", [0, 1, 2, 3, 4, 7, 8, 9])
@pytest.mark.parametrize("target", TARGETS)
def test_any_number_of_blocks(target: str, blocks: int) -> None:
    inputs = Inputs(ring(2, 5), 2, 3, "largest", blocks=max(blocks, 1), queries=2)
    shape = (2, blocks, 2, inputs.ring.degree // 2)
    got, want = np.zeros(shape, np.uint32), np.zeros(shape, np.uint32)
    kernels(inputs, target)[1].answer(inputs.blocks[:blocks], inputs.queries, got)
    kernels(inputs, "naive")[1].answer(inputs.blocks[:blocks], inputs.queries, want)
    np.testing.assert_array_equal(got, want)


#: (primes, log N, stride, planes): every stride class, planes that fill no carry, and runs of more than one unit
#: (64 lines), the last of them short.
SHARED = [(1, 4, 1, 33), (2, 5, 2, 5), (1, 6, 4, 33), (2, 7, 8, 3), (1, 8, 16, 7), (2, 9, 32, 33), (1, 5, 1, 131)]


@lru_cache(maxsize=1)
def expected_answers(case: tuple[int, int, int, int], fill: str) -> tuple[Inputs, U32]:
    primes, log_n, stride, planes = case
    x = Inputs(ring(primes, log_n), stride, planes, fill, blocks=7 if log_n < 7 else 3, queries=5)
    out = np.zeros((5, x.blocks.shape[0], primes, x.ring.degree // stride), np.uint32)
    kernels(x, "naive")[1].answer(x.blocks, x.queries, out)
    return x, out


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("case", SHARED, ids=str)
def test_queries_that_share_a_pass(case: tuple[int, int, int, int], fill: str) -> None:
    x, want = expected_answers(case, fill)
    for target in TARGETS:
        answer = kernels(x, target)[1]
        for queries in 1, 2, 3, 4, 5, 8, 33:
            which = np.arange(queries) % 5
            for blocks in {1, 2, x.blocks.shape[0]}:
                got = np.full((queries, blocks, *want.shape[2:]), 7, np.uint32)
                answer.answer(x.blocks[:blocks], x.queries[which], got)
                np.testing.assert_array_equal(got, want[which, :blocks], err_msg=f"{target} {queries} {blocks}")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("primes", "stride", "planes", "queries"), [(2, 32, 32, 67), (1, 16, 32, 9), (2, 4, 33, 6)])
def test_sharing_a_pass_changes_nothing(primes: int, stride: int, planes: int, queries: int, target: str) -> None:
    """More queries than are packed at a time, and rings of several spans."""
    x = Inputs(ring(primes, 9 if queries > 64 else None), stride, planes, "random", blocks=6, queries=queries)
    answer = kernels(x, target)[1]
    shape = (queries, 6, primes, x.ring.degree // stride)
    got, want = np.zeros(shape, np.uint32), np.zeros(shape, np.uint32)
    answer.answer(x.blocks, x.queries, got)
    for query in range(queries):
        answer.answer(x.blocks, x.queries[query : query + 1], want[query : query + 1])
    np.testing.assert_array_equal(got, want)


# ---- full size --------------------------------------------------------------------------------------------------
FULL = [(1, 16, 5), (1, 1, 2), (2, 32, 6), (2, 4, 3), (2, 256, 1)]


@lru_cache(maxsize=1)
def portable(primes: int, stride: int, planes: int, fill: str) -> tuple[Inputs, dict[str, Any]]:
    inputs = Inputs(ring(primes), stride, planes, fill, blocks=3, queries=2)
    return inputs, results(inputs, *kernels(inputs, "portable"))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize(("primes", "stride", "planes"), FULL)
def test_instruction_sets_agree_at_full_size(primes: int, stride: int, planes: int, fill: str, target: str) -> None:
    inputs, want = portable(primes, stride, planes, fill)
    assert_same(results(inputs, *kernels(inputs, target)), want)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize(("primes", "stride", "planes"), FULL)
def test_transforms_invert(primes: int, stride: int, planes: int, fill: str, target: str) -> None:
    inputs = Inputs(ring(primes), stride, planes, fill)
    client, _ = kernels(inputs, target)
    there = inputs.polys.copy()
    client.forward(there)
    assert not np.array_equal(there, inputs.polys)
    back = there.copy()
    client.inverse(back)
    np.testing.assert_array_equal(back, inputs.polys)
    folded = client.fold(there)
    client.inverse_decimated(folded)
    np.testing.assert_array_equal(folded, inputs.polys[:, :, ::stride])


@pytest.mark.parametrize("primes", [1, 2])
def test_full_size_transform_evaluates(primes: int) -> None:
    """A monomial X^e has the value ψ^(e·(2·brv(j) + 1)) in slot j: one line of the oracle at the real size."""
    full = ring(primes)
    client = _client.ClientKernel(full.log_n, full.primes, full.roots, 1, 1)
    for exponent in 1, 3, full.degree - 1:
        poly = np.zeros((1, primes, full.degree), np.uint32)
        poly[..., exponent] = 1
        client.forward(poly)
        for p, (q, psi) in enumerate(zip(full.primes, full.roots, strict=True)):
            for slot in 0, 1, 2, 5, full.degree // 2, full.degree - 1:
                reversed_slot = int(format(slot, f"0{full.log_n}b")[::-1], 2)
                assert poly[0, p, slot] == pow(psi, exponent * (2 * reversed_slot + 1), q)


# ---- the scheme through the kernels ------------------------------------------------------------------------------
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("primes", "stride", "planes"), [(1, 16, 4), (2, 32, 2), (2, 2, 5)])
def test_answers_recover_and_verify(primes: int, stride: int, planes: int, target: str) -> None:
    x = Inputs(ring(primes), stride, planes, "random", blocks=3)
    client, answer = kernels(x, target)
    n, rows = x.ring.degree, x.ring.degree // stride
    vectors = x.rng.integers(-100, 101, (3, rows, planes * stride))
    query = x.rng.integers(-50, 51, planes * stride)
    secrets = client.expand_secrets(x.secret_words)
    blocks, hint = np.zeros_like(x.blocks), np.zeros_like(x.hints)
    fingerprint = np.zeros((CHECKS, *x.stack_shape), np.uint32)
    public = x.index_public, x.query_public
    client.encrypt_blocks(vectors.astype(np.int32), x.noise, secrets, *public, x.weights, blocks, hint, fingerprint)
    ciphertext = np.zeros(x.stack_shape, np.uint32)
    secret, mask = np.zeros((primes, n), np.uint32), np.zeros((primes, n), np.uint32)
    client.encrypt_query(query, x.query_words, *public, ciphertext, secret, mask)
    answers = np.zeros((1, 3, primes, rows), np.uint32)
    answer.answer(blocks, ciphertext[None], answers)

    # Σ e·(y + e') + v·e' over I·N products, each factor far below its bound: 12 standard deviations
    noise = 12 * np.sqrt(10.5 * planes * n) * (50 + 100 + 12)
    scores = client.recover(answers[0], hint, secrets, secret, mask)
    assert np.max(np.abs(scores - vectors @ query)) < noise
    other = client.recover(answers[0], hint, secrets[::-1].copy(), secret, mask)
    assert np.max(np.abs(other - vectors @ query)) > 2**28

    given = client.weighted_sum(x.weights, answers[0])
    due = client.weighted_sum(fingerprint.reshape(1, CHECKS, primes, -1), ciphertext.reshape(1, primes, -1))
    np.testing.assert_array_equal(given, due)
    answers[0, 1, 0, 3] ^= 1
    assert not np.array_equal(client.weighted_sum(x.weights, answers[0]), due)


# ---- samplers -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("target", TARGETS)
def test_ternary_digits(target: str) -> None:
    """All 81 ladders, each from the middle and both ends of its interval of words."""
    x = Inputs(ring(1), 16, 1, "random")
    client, _ = kernels(x, target)
    words = [((2 * k + 1) << 63) // 81 for k in range(81)]
    words += [-(-(k << 64) // 81) for k in range(81)] + [(((k + 1) << 64) - 1) // 81 for k in range(81)]
    words += [0] * (x.ring.degree // 4 - len(words))
    polys = client.expand_secrets(np.array([words], np.uint64))
    client.inverse(polys)
    want = np.array(ternary(words), np.int64)
    np.testing.assert_array_equal(polys[0, 0], want % x.ring.primes[0])
    assert len({tuple(d) for d in want[: 4 * 81].reshape(-1, 4)}) == 81


def errors_of(client: Any, x: Inputs, noise: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The errors that `encrypt_blocks` adds: encrypt zeros under the secret 0."""
    count = noise.shape[0]
    blocks = np.zeros((count, *x.stack_shape), np.uint32)
    zeros = np.zeros((count, *x.polys.shape[1:]), np.uint32)
    rows = np.zeros((count, *x.rows.shape[1:]), np.int32)
    weights = np.zeros((count, 0, *x.weights.shape[2:]), np.uint32)
    none = np.zeros((0, *x.stack_shape), np.uint32)
    client.encrypt_blocks(rows, noise, zeros, x.index_public, x.query_public, weights, blocks, zeros.copy(), none)
    planes = np.ascontiguousarray(np.moveaxis(blocks, 3, 1)).reshape(count * x.planes, len(x.ring.primes), -1)
    client.inverse(planes)
    lifted = planes[:, 0].astype(np.int64)
    q = x.ring.primes[0]
    return np.where(lifted > q // 2, lifted - q, lifted).reshape(count, x.planes, -1)


@pytest.mark.parametrize("target", TARGETS)
def test_errors_count_bits(target: str) -> None:
    """Every pair of populations (0..21, 0..21), every single bit of the word, and the unused bits set or not."""
    x = Inputs(ring(1), 16, 1, "random")
    client, _ = kernels(x, target)
    words = [((1 << a) - 1) | ((1 << b) - 1) << 21 for a in range(22) for b in range(22)]
    words += [1 << bit for bit in range(64)] + [w | ((1 << 22) - 1) << 42 for w in words]
    words += [0] * (x.ring.degree - len(words))
    got = errors_of(client, x, np.array(words, np.uint64).reshape(1, 1, -1))
    np.testing.assert_array_equal(got.reshape(-1), centred_binomial(words))


@pytest.mark.parametrize("target", TARGETS)
def test_distributions(target: str) -> None:
    x = Inputs(ring(1), 16, 8, "random")
    client, _ = kernels(x, target)
    polys = client.expand_secrets(x.secret_words)
    client.inverse(polys)
    share = [np.mean(polys == value) for value in (0, 1, x.ring.primes[0] - 1)]
    assert share == pytest.approx([1 / 3] * 3, abs=5 * np.sqrt(2 / 9 / polys.size))
    errors = errors_of(client, x, x.noise)
    assert np.max(np.abs(errors)) <= 21
    assert np.mean(errors) == pytest.approx(0, abs=5 * np.sqrt(10.5 / errors.size))
    assert np.var(errors) == pytest.approx(10.5, rel=5 * np.sqrt(2 / errors.size))


# ---- canonical residues -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("length", [1, 16, 255, 256, 1000])
def test_first_noncanonical(target: str, length: int) -> None:
    x = Inputs(ring(2, 6), 2, 3, "random")
    _, answer = kernels(x, target)
    words = np.empty((3, 2, length), np.uint32)
    words[:] = np.array(x.ring.primes, np.uint32)[:, None] - np.uint32(1)
    assert answer.first_noncanonical(words) == -1
    assert answer.first_noncanonical(words[:0]) == -1
    for index in {0, length - 1, length, 3 * length // 2, 6 * length - 1, 5 * length}:
        bad = words.copy()
        q = x.ring.primes[index // length % 2]
        for value in q, 2**31, 2**32 - 1:
            bad.reshape(-1)[index] = value
            bad.reshape(-1)[-1] = max(bad.reshape(-1)[-1], value)
            assert answer.first_noncanonical(bad) == index


# ---- the public edge ----------------------------------------------------------------------------------------------
def calls(inputs: Inputs) -> dict[str, tuple[Callable[..., Any], list[Any], set[int]]]:
    """Every method: bound, valid arguments, and which of them it writes to."""
    x, n, p = inputs, inputs.ring.degree, len(inputs.ring.primes)
    client, answer = kernels(inputs, "")
    count, rows = x.blocks.shape[0], n // x.stride
    out = np.full((3, count, p, rows), 7, np.uint32)
    public = [x.index_public, x.query_public]
    block = [x.rows, x.noise, x.polys, *public, x.weights, x.blocks, x.hints, x.fingerprint]
    query = [x.query, x.query_words, *public, x.queries[1].copy(), x.secret, x.mask]
    return {
        "answer": (answer.answer, [x.blocks, x.queries, out], {2}),
        "first_noncanonical": (answer.first_noncanonical, [x.polys], set()),
        "forward": (client.forward, [x.polys], {0}),
        "inverse": (client.inverse, [x.polys], {0}),
        "inverse_decimated": (client.inverse_decimated, [x.folded], {0}),
        "fold": (client.fold, [x.polys], set()),
        "expand_secrets": (client.expand_secrets, [x.secret_words], set()),
        "expand_weights": (client.expand_weights, [x.weight_words], set()),
        "encrypt_blocks": (client.encrypt_blocks, block, {6, 7, 8}),
        "encrypt_query": (client.encrypt_query, query, {4, 5, 6}),
        "weighted_sum": (client.weighted_sum, [x.weights, x.folded], set()),
        "recover": (client.recover, [x.folded, x.hints, x.polys, x.secret, x.mask], set()),
    }


EDGE = Inputs(ring(2, 6), 4, 3, "random")


def wrong_versions(array: NDArray[Any], writable: bool) -> dict[str, Any]:
    """What must be refused in place of `array`; same values where that is possible."""
    raw = bytearray(array.nbytes + 1)
    unaligned = np.frombuffer(raw, array.dtype, offset=1).reshape(array.shape)
    wrong: dict[str, Any] = {
        "float": array.astype(np.float64),
        "narrower": array.astype(np.uint16),
        "other sign": array.view(np.dtype(array.dtype.str.translate(str.maketrans("ui", "iu")))),
        "byte-swapped": array.astype(array.dtype.newbyteorder()),
        "more axes": array[None],
        "fewer axes": array[0],
        "longer": np.concatenate([array, array], axis=-1),
        "strided": np.repeat(array, 2, axis=-1)[..., ::2],
        "reversed": array[..., ::-1],
        "fortran": np.asfortranarray(array) if array.ndim > 1 else array[::-1],
        "unaligned": unaligned,
        "list": array.tolist(),
        "bytes": array.tobytes(),
        "none": None,
    }
    if writable:
        wrong["read-only"] = array.copy()
        wrong["read-only"].flags.writeable = False
    return wrong


@pytest.mark.parametrize("name", calls(EDGE))
def test_wrong_arrays_are_refused_and_change_nothing(name: str) -> None:
    method, arguments, written = calls(EDGE)[name]
    before = [argument.copy() for argument in arguments]
    for position, argument in enumerate(arguments):
        for what, wrong in wrong_versions(argument, position in written).items():
            if what == "longer" and name in ("first_noncanonical",):
                continue  # any length will do
            with pytest.raises((ValueError, TypeError)) as caught:
                method(*arguments[:position], wrong, *arguments[position + 1 :])
            if wrong is not None:
                assert re.match(r"\w+: got .*, expected ", str(caught.value)), (what, str(caught.value))
    for argument, old in zip(arguments, before, strict=True):
        np.testing.assert_array_equal(argument, old)


@pytest.mark.parametrize("name", ["answer", "encrypt_blocks", "weighted_sum", "recover"])
def test_block_counts_must_agree(name: str) -> None:
    method, arguments, _ = calls(EDGE)[name]
    for position, argument in enumerate(arguments):
        if argument.shape[0] in (len(EDGE.blocks), len(EDGE.queries), CHECKS):
            with pytest.raises(ValueError, match=r"got shape .*, expected "):
                method(*arguments[:position], argument[1:], *arguments[position + 1 :])


def test_read_only_and_mapped_inputs(tmp_path: Path) -> None:
    x = Inputs(ring(2, 6), 4, 3, "random")
    want = np.zeros((3, 5, 2, 16), np.uint32)
    kernels(x, "")[1].answer(x.blocks, x.queries, want)
    x.blocks.tofile(tmp_path / "blocks")
    mapped = np.memmap(tmp_path / "blocks", np.uint32, "r", shape=x.blocks.shape)
    buffer = np.frombuffer(x.queries.tobytes(), np.uint32).reshape(x.queries.shape)
    got = np.zeros_like(want)
    kernels(x, "")[1].answer(mapped, buffer, got)
    np.testing.assert_array_equal(got, want)
    assert kernels(x, "")[1].first_noncanonical(mapped.reshape(5, 2, -1)) == -1


def test_constructors_refuse() -> None:
    full = ring(2)
    good: dict[str, Any] = {"log_n": 12, "primes": full.primes, "stride": 32, "planes": 16, "target": ""}
    q, r = full.primes
    wrong: list[dict[str, Any]] = [
        {"log_n": 3}, {"log_n": 16}, {"log_n": -1}, {"stride": 0}, {"stride": 3}, {"stride": -2}, {"stride": 512},
        {"planes": 0}, {"planes": -1}, {"planes": 1 << 20}, {"primes": ()}, {"primes": (q, 2**31)},
        {"primes": (2**30, r)}, {"primes": (q, -r)}, {"primes": (q, r + 2**40)}, {"target": "sse9"},
        {"primes": (q, 2**31 - 2)},
    ]  # fmt: skip
    for change in wrong:
        with pytest.raises(ValueError, match=f"^{next(iter(change))}: got .*, expected "):
            _answer.AnswerKernel(**good | change)
        with pytest.raises(ValueError, match=f"^{next(iter(change))}: got .*, expected "):
            _client.ClientKernel(**good | {"roots": full.roots} | change)
    for roots in (full.roots[:1], (1, 1), (full.roots[0], 0), full.roots[::-1], (full.roots[0], -1), (q, r)):
        with pytest.raises(ValueError, match=r"^roots: got .*, expected "):
            _client.ClientKernel(**good | {"roots": roots})
    with pytest.raises(ValueError, match=r"^primes: got .*, expected "):  # a prime, but not 1 mod 2N
        _client.ClientKernel(**good | {"primes": (q, 2**31 - 1), "roots": full.roots})
    with pytest.raises(TypeError):
        _answer.AnswerKernel(**good | {"primes": (2**80,)})


def test_recover_needs_at_most_two_primes() -> None:
    small = ring(1, 4)
    client = _client.ClientKernel(4, small.primes * 3, small.roots * 3, 1, 1)
    x = np.zeros((1, 3, 16), np.uint32)
    with pytest.raises(ValueError, match=r"^primes: got 3, expected "):
        client.recover(x, x, x, x[0], x[0])


def test_targets() -> None:
    assert _client.targets() == TARGETS
    assert TARGETS[-1] == "portable"
    assert set(TARGETS) <= {"avx512", "avx2", "neon", "portable"}
    inputs = Inputs(ring(1, 4), 1, 1, "random")
    assert [kernel.target for kernel in kernels(inputs, "")] == [TARGETS[0]] * 2
    for target in TARGETS:
        assert [kernel.target for kernel in kernels(inputs, target)] == [target] * 2


def test_threads_share_kernels() -> None:
    """Eight threads start together on the same kernels and inputs, each with its own outputs."""
    x = Inputs(ring(1), 16, 4, "random")
    client, answer = kernels(x, "")
    want = results(x, client, answer)
    start = threading.Barrier(8)

    def work(_: int) -> dict[str, Any]:
        start.wait()
        return results(x, client, answer)

    with ThreadPoolExecutor(8) as pool:
        for got in pool.map(work, range(8)):
            assert_same(got, want)


# ---- what a server's module holds -----------------------------------------------------------------------------
def test_the_answer_module_cannot_decrypt() -> None:
    public = {name for name in dir(_answer.AnswerKernel) if not name.startswith("_")}
    assert public == {"answer", "first_noncanonical", "target"}
    assert {name for name in dir(_answer) if not name.startswith("_")} == {"AnswerKernel", "ReadFault", "targets"}
    binary = Path(str(_answer.__file__)).read_bytes()
    for word in b"encrypt", b"secret", b"keystream", b"inverse_", b"weighted_sum", b"ClientKernel":
        assert word not in binary, word


def test_the_answer_kernel_includes_no_secret_code() -> None:
    folder = Path(__file__).parent.parent / "he_engine" / "kernels"
    seen, left = set(), ["answer_kernel.cpp", "answer_module.cpp"]
    while left:
        name = left.pop()
        seen.add(name)
        included = re.findall(r'#include "(\w+\.hpp)"', (folder / name).read_text())
        left += [header for header in included if header not in seen]
    assert seen == {
        "answer_kernel.cpp", "answer_module.cpp", "answer_kernel.hpp", "batch.hpp", "binding.hpp", "dot.hpp", "few.hpp",
        "guard.hpp", "modular.hpp", "simd.hpp",
    }  # fmt: skip
