"""Every derivation is bound to the collection, its nonce and the epoch; and what `Encoding` admits and bounds.

With the operating system's generator stuck and one key, two collections that differ in nothing else must share no
secret: a snapshot that is restored twice, or one key for many collections, then repeats nothing.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from he_engine import hint_client, verify
from he_engine.encoding import Encoding
from he_engine.errors import NormError, TamperedAnswerError
from he_engine.hint_client import HintClient
from he_engine.keys import RootKey
from he_engine.params import Parameters
from he_engine.sealing import seal, unseal
from tests.conftest import unit_rows
from tests.engine_fixture import Both

ROOT, ID, STATE = bytes(range(32)), bytes(16), bytes(32)
PARAMETERS = Parameters.choose("compact", 16, 128)
DIFFERENCES: dict[str, dict[str, Any]] = {
    "collection id": {"collection_id": bytes(15) + b"\x01"},
    "engine state": {"engine_state": bytes(31) + b"\x01"},
    "epoch": {"epoch": 1},
}


def made(
    monkeypatch: pytest.MonkeyPatch, *, collection_id: bytes = ID, engine_state: bytes = STATE, epoch: int = 0
) -> Any:
    monkeypatch.setattr(hint_client, "EPOCH", epoch)
    return HintClient(PARAMETERS, RootKey(ROOT), collection_id, engine_state, threads=1)


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "urandom", lambda n: b"\x5a" * n)


class Derivations:
    """What was derived, by label; seeds are replaced by one constant, so that they hide no missing binding."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: dict[str, bytes] = {}
        derive, hedged_seed = RootKey.derive, RootKey.hedged_seed

        def spied_derive(key: RootKey, label: str, *context: Any, **options: Any) -> bytes:
            found = derive(key, label, *context, **options)
            if label != "hedge":  # the key of the seeds' PRF: the binding is in its content
                self.seen[label] = found
            return found

        def spied_seed(key: RootKey, label: str, *content: Any) -> bytes:
            self.seen[f"seed of {label}"] = hedged_seed(key, label, *content)
            return b"\x77" * 32

        monkeypatch.setattr(RootKey, "derive", spied_derive)
        monkeypatch.setattr(RootKey, "hedged_seed", spied_seed)

    def of(self, client: HintClient, rows: np.ndarray) -> dict[str, bytes]:
        self.seen.clear()
        encrypted = client.setup(rows)
        client.fingerprint_again(client.load(encrypted), encrypted.index)
        client.query(rows[0])
        return dict(self.seen)


LABELS = {
    "row noise", "block secrets", "fingerprint weights", "query secret", "seed of rows", "seed of fingerprint",
    "seed of fingerprint again", "seed of query",
}  # fmt: skip


@pytest.mark.usefixtures("stuck")
@pytest.mark.parametrize("difference", DIFFERENCES)
def test_every_derivation_is_bound(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, difference: str) -> None:
    rows = unit_rows(rng, 20, 16)
    derivations = Derivations(monkeypatch)
    one = derivations.of(made(monkeypatch), rows)
    again = derivations.of(made(monkeypatch), rows)
    other = derivations.of(made(monkeypatch, **DIFFERENCES[difference]), rows)
    assert one.keys() == other.keys() == LABELS, "a new derivation belongs in this list"
    assert one == again, "nothing else differs"
    for label in LABELS:
        assert one[label] != other[label], f"{label} does not depend on the {difference}"
    assert len(set(one.values())) == len(LABELS), "labels keep derivations apart"


@pytest.mark.usefixtures("stuck")
@pytest.mark.parametrize("difference", DIFFERENCES)
def test_nothing_repeats_in_another_collection(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, difference: str
) -> None:
    """End to end: seeds, indexes, hints, fingerprints, queries; and secrets and weights from equal seeds and salts."""
    rows = unit_rows(rng, 40, 16)
    clients = [made(monkeypatch), made(monkeypatch, **DIFFERENCES[difference])]
    one, other = (client.setup(rows) for client in clients)
    assert one.seed != other.seed
    assert one.fingerprint[:32] != other.fingerprint[:32]
    queries = [client.query(rows[0]) for client in clients]
    seed, salt = bytes(32), bytes(32)
    drawn = [
        (
            client._block_secrets(seed, 0, 2),
            verify.weights(client._key, client._kernel, PARAMETERS, client._id, seed, salt, 0, 2),
            query._open(client)[0],
            *(np.frombuffer(b, "<u4") for b in (e.index, e.hint, e.fingerprint, query.ciphertext)),
        )
        for client, e, query in zip(clients, (one, other), queries, strict=True)
    ]
    for mine, theirs in zip(*drawn, strict=True):
        assert (mine == theirs).mean() < 0.01


@pytest.mark.parametrize("difference", DIFFERENCES)
def test_public_polynomials_belong_to_the_nonce(monkeypatch: pytest.MonkeyPatch, difference: str) -> None:
    """a and a' differ, and are others for another nonce or epoch: what expands from them must not line up."""
    one, other = made(monkeypatch), made(monkeypatch, **DIFFERENCES[difference])
    stacks = [one._index_public, one._query_public]
    if difference != "collection id":
        stacks += [other._index_public, other._query_public]
    for a, b in itertools.combinations(stacks, 2):
        assert (a == b).mean() < 0.01


def test_an_equation_of_one_collection_does_not_hold_in_another(rng: np.random.Generator, tmp_path: Path) -> None:
    """A segment, its hint, seed and fingerprint, moved to a client of another collection under the same key."""
    both = Both(tmp_path, "compact", 16, 128)
    encrypted, segment, index = both.setup(unit_rows(rng, 20, 16))
    state = hint_client.generate_state()
    thief = HintClient(both.parameters, both.key, b"\x01" * 16, state, threads=1)
    query = thief.query(unit_rows(rng, 1, 16)[0])
    with pytest.raises(TamperedAnswerError):
        thief.recover(query, [thief.load(encrypted)], [both.answer(query, index)])
    mine = both.client.query(unit_rows(rng, 1, 16)[0])
    both.client.recover(mine, [segment], [both.answer(mine, index)])


def test_a_lie_passes_with_probability_under_2_to_the_minus_90() -> None:
    """(1/q + 2^-64)^m: too small to be measured, so the numbers themselves are tested."""
    for profile in ("exact", "compact", "precise"):
        q = min(Parameters.choose(profile, 16).ring.primes)
        assert (1 / q + 2**-64) ** verify.CHECKS < 2**-90


@pytest.mark.usefixtures("stuck")
def test_seeds_depend_on_where_their_content_is_cut() -> None:
    key = RootKey(ROOT)
    contents = [(b"ab", b"c"), (b"a", b"bc"), (b"abc",), (b"abc", b""), (b"ab", b"c", 0)]
    assert len({key.hedged_seed("x", *c) for c in contents} | {key.hedged_seed("y", b"abc")}) == 6


@pytest.mark.usefixtures("stuck")
def test_seals_of_other_content_share_no_key() -> None:
    """salt ‖ …: an equal salt would be an equal key and nonce."""
    key = RootKey(ROOT)
    sealed = [
        seal(key, p, a, t) for p, a, t in (("p", b"a", b"t"), ("q", b"a", b"t"), ("p", b"b", b"t"), ("p", b"a", b"u"))
    ]
    assert len({s[:32] for s in sealed}) == 4
    assert unseal(key, "p", b"a", sealed[0]) == b"t"


# ---- what the encoding admits --------------------------------------------------------------------------------
@pytest.mark.parametrize("profile", ["exact", "compact", "precise"])
def test_float32_rounding_is_scaled_away(rng: np.random.Generator, profile: str) -> None:
    """Norms up to 1 + 1e-6 encode as norm 1 does; rounded norms then keep their bound, on which correctness rests."""
    p = Parameters.choose(profile, 64)
    encoding = Encoding(p)
    scale = (p.quantiser or p.index_scale, p.quantiser or p.query_scale)
    rows = unit_rows(rng, 500, 64).astype(np.float32)
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float64)
    rows[:10] = unit_rows(rng, 10, 64) * (1 + 9.99e-7)
    rows[10:20] *= 0.5  # these keep their length
    rows[20] = 0
    norms = np.linalg.norm(rows, axis=1)
    long = norms > 1
    assert long[:10].all() and long[10:].any() and not long.all()
    unit = rows / np.where(long, norms, 1)[:, None]
    assert np.array_equal(encoding.rows(rows), encoding.rows(unit))
    slack = np.sqrt(64) / 2
    assert (np.sqrt(encoding.row_squares(rows)) * scale[0] <= scale[0] + slack).all()
    for row, same in zip(rows[:30], unit[:30], strict=True):
        assert np.array_equal(encoding.query(row), encoding.query(same))
        assert np.sqrt(encoding.query_square(row)) * scale[1] <= scale[1] + slack
    if profile == "precise":
        short = encoding.rows(unit[:1] * (1 - 5e-7))
        assert not np.array_equal(short, encoding.rows(unit[:1])), "short rows keep their length"


@pytest.mark.parametrize("profile", ["exact", "compact", "precise"])
@pytest.mark.parametrize("length", [1 + 2e-6, 1.1, np.inf, np.nan])
def test_longer_vectors_are_refused(rng: np.random.Generator, profile: str, length: float) -> None:
    encoding = Encoding(Parameters.choose(profile, 64))
    rows = unit_rows(rng, 300, 64)
    rows[270] *= length
    with pytest.raises(NormError, match="vector 270"):
        encoding.rows(rows)
    with pytest.raises(NormError, match="vector 270"):
        encoding.row_squares(rows)
    for refuse in (encoding.query, encoding.query_square):
        with pytest.raises(NormError):
            refuse(rows[270])


def test_the_bound_on_rounded_norms_is_checked(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """It follows from the first bound; a stricter one shows that it is there."""
    encoding = Encoding(Parameters.choose("precise", 64))
    row = unit_rows(rng, 1, 64)
    encoding.rows(row)
    monkeypatch.setattr(encoding, "_slack", -1.0)
    with pytest.raises(NormError):
        encoding.rows(row)


@pytest.mark.parametrize("profile", ["exact", "compact", "precise"])
def test_scores_outside_the_bound_are_refused(profile: str) -> None:
    p = Parameters.choose(profile, 64)
    encoding = Encoding(p)
    step = p.index_scale * p.query_scale if profile == "exact" else 1
    largest = encoding._largest
    assert encoding.scores(np.array([[largest * step, -largest * step]])).tolist() == pytest.approx([1, -1], rel=0.2)
    for sign in (1, -1):
        with pytest.raises(TamperedAnswerError, match="outside the bound"):
            encoding.scores(np.array([[0, sign * (largest + 1) * step]]))
    if profile == "exact":  # to the nearest multiple, whatever the sign
        near = np.array([[3 * step + step // 2 - 1, 3 * step - step // 2 + 1, -3 * step + step // 2 - 1]])
        assert np.array_equal(encoding.scores(near) * p.quantiser**2, [3, 3, -3])
