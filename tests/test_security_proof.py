"""Numbers and claims of docs/security-proof.md that can be computed."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import numpy as np

from benchmarks import bounds
from benchmarks.lattice import RINGS_BY_NAME, Problem, dual_bits, primal
from he_engine.hint_client import HintClient
from he_engine.keys import RootKey
from he_engine.params import Parameters
from tests.vectors import malformed, reference, valid
from tests.vectors.make import FOLDER
from tests.vectors.reference import Scheme, Stack

DOCUMENT = Path(__file__).parents[1] / "docs/security-proof.md"


def test_the_bounds_are_those_that_the_code_has() -> None:
    assert f"```text\n{bounds.render()}```" in DOCUMENT.read_text(), "run `python -m benchmarks.bounds`"


def test_the_printed_attacks_cost_what_is_printed() -> None:
    """Each line of `python -m benchmarks.lattice` at the place that it names; that it is the cheapest takes longer."""
    lines = re.findall(r"^(N = \d+) +(0\.\d+) +([\d.]+) \((\d+)\) +([\d.]+) \(([\d, ]+)\)", DOCUMENT.read_text(), re.M)
    assert len(lines) == 6
    for name, exponent, primal_bits, beta, dual, place in lines:
        problem, c = Problem.of(RINGS_BY_NAME[name]), float(exponent)
        assert primal(problem) == int(beta) and f"{c * int(beta):.1f}" == primal_bits
        assert f"{dual_bits(problem, c, *map(int, place.split(', '))):.1f}" == dual


def solved(scheme: Scheme, fingerprint: list[Stack], weights: list[list[list[list[int]]]]) -> list[Stack]:
    """The two blocks, from the first two of the three equations for each slot (Cramer's rule)."""
    first, second = weights
    blocks: list[Stack] = [[], []]
    for p, q in enumerate(scheme.primes):
        found: tuple[list[list[int]], list[list[int]]] = ([], [])
        for i in range(scheme.planes):
            slots: tuple[list[int], list[int]] = ([], [])
            for j in range(scheme.n):
                slot = j // scheme.stride
                a, b, c, d = first[0][p][slot], second[0][p][slot], first[1][p][slot], second[1][p][slot]
                x, y = fingerprint[0][p][i][j], fingerprint[1][p][i][j]
                inverse = pow(a * d - b * c, -1, q)
                slots[0].append((x * d - b * y) * inverse % q)
                slots[1].append((a * y - c * x) * inverse % q)
            for polys, values in zip(found, slots, strict=True):
                polys.append(values)
        for block, polys in zip(blocks, found, strict=True):
            block.append(polys)
    return blocks


def test_a_key_holder_needs_no_index_of_a_small_segment(tmp_path: Path) -> None:
    """6.4: two blocks and all their rows from the fingerprint, its salt, the seed and the key."""
    (run,) = json.loads((FOLDER / "engine-compact.json").read_text())["runs"]
    given = run["parameters"]
    p = Parameters.choose(given["profile"], given["dim"], given["stride"])
    scheme = Scheme(p.ring.log_n, p.ring.primes, p.ring.roots, p.stride, p.planes, p.hint_drop_bits)
    root, collection, nonce, seed, salt = (
        bytes.fromhex(run[name]) for name in ("root_key", "collection_id", "engine_state", "seed", "fingerprint_salt")
    )
    raw = base64.b64decode(run["fingerprint"])
    size = len(raw) // reference.CHECKS
    fingerprint = [scheme.stack(raw[c * size : (c + 1) * size]) for c in range(reference.CHECKS)]
    context = reference.lp(collection, nonce, 0)
    weights = scheme.weights(reference.kdf(root, "fingerprint weights", context, seed, salt), 2)

    index = b"".join(map(scheme.stack_bytes, solved(scheme, fingerprint, weights)))
    client = HintClient(p, RootKey(root), collection, nonce, threads=1)
    segment = client.load(malformed.Engine(run, tmp_path).encrypted(index=b""))
    scale = p.index_scale / run["denominator"]
    assert np.array_equal(client.decrypt(segment, index), np.rint(valid.vectors(run["rows"], p.dim)[:-1] * scale))
    assert index == base64.b64decode(run["index"])
