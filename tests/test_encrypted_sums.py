"""Encrypted sums: exactly the plain ones, added without a key, refused when anything of them was changed."""

from __future__ import annotations

import math
import pickle
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from he_client import CollectionKey
from he_client.protect.federated import Average, EncryptedSum, SumParameters, Update, UpdateCipher
from he_engine.encrypted_sums import MAX_TOTAL, MIN_LEVELS, SCALE, START, after
from he_engine.errors import (
    DimensionError,
    FormatVersionError,
    InvalidInput,
    NormError,
    ParameterError,
    ResidueError,
    SecretReuseError,
    TamperedAnswerError,
)
from he_engine.params import NOISE_VARIANCE
from he_engine.tenseal_format import DEGREE, MODULUS, POLY_BYTES, SLOTS
from he_engine.tenseal_ring import sealapi
from tests.test_keyless import FORBIDDEN

RUN = bytes(range(16))
KEY = CollectionKey(bytes(range(32)))


def parameters(values: int = 5, **changed: Any) -> SumParameters:
    return SumParameters(
        **{"values": values, "participants": 4, "max_weight": 1000, "bound": 2.0, "run": RUN} | changed
    )


P = parameters()


def ciphers(p: SumParameters, count: int, minimum: int = 2) -> list[UpdateCipher]:
    return [UpdateCipher(KEY, p, f"h{number:03}", minimum) for number in range(count)]


def add(updates: Sequence[bytes], p: SumParameters, round_: int = 1, history: bytes = START) -> bytes:
    """What an aggregator does."""
    parsed = [Update.parse(raw, p, round_, history) for raw in updates]
    return EncryptedSum.of(parsed, p).to_bytes(p, round_, history)


def naive(values: Sequence[np.ndarray[Any, Any]], weights: Sequence[int], p: SumParameters) -> list[float]:
    """The weighted average of rounded values, in Python's integers."""
    levels = [[round(float(x) / p.bound * p.levels) for x in row] for row in values]
    sums = [sum(w * row[j] for w, row in zip(weights, levels, strict=True)) for j in range(p.values)]
    return [total / sum(weights) * (p.bound / p.levels) for total in sums]


def averaged(p: SumParameters, values: Sequence[np.ndarray[Any, Any]], weights: Sequence[int]) -> Average:
    people = ciphers(p, len(values))
    updates = [one.encrypt(1, x, w) for one, x, w in zip(people, values, weights, strict=True)]
    return people[0].decrypt(1, add(updates, p))


# ---- the sums ------------------------------------------------------------------------------------------------
ONE = st.tuples(
    st.lists(st.sampled_from([-2.0, -1e-9, 0.0, 1e-7, 2.0]) | st.floats(-2, 2), min_size=5, max_size=5),
    st.sampled_from([1, 1000]) | st.integers(1, 1000),
)


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(ONE, min_size=2, max_size=4))
@example([([2.0] * 5, 1000)] * 4)
@example([([-2.0] * 5, 1000)] * 4)
def test_an_encrypted_sum_is_the_plain_one(people: list[tuple[list[float], int]]) -> None:
    values, weights = [np.array(x) for x, _ in people], [w for _, w in people]
    found = averaged(P, values, weights)
    assert found.weight == sum(weights)
    assert found.names == tuple(f"h{number:03}" for number in range(len(people)))
    assert found.values.tolist() == pytest.approx(naive(values, weights, P), rel=1e-15, abs=0)
    exact = np.average(values, axis=0, weights=weights)
    assert np.abs(found.values - exact).max() <= P.bound / P.levels / 2 * (1 + 1e-6)


def test_zeros_have_no_sign() -> None:
    """It would be the noise's."""
    assert not np.signbit(averaged(P, [np.zeros(5)] * 3, [1, 2, 3]).values).any()


def test_who_was_told_another_bound_has_another_key() -> None:
    """Its updates do not pass for ours, whatever header somebody puts before them."""
    theirs = SumParameters(
        values=P.values, participants=P.participants, max_weight=P.max_weight, bound=P.bound / 1000, run=P.run
    )
    ours = Update.parse(ciphers(P, 1)[0].encrypt(1, np.zeros(5), 1), P, 1)
    other = ciphers(theirs, 2)[1]
    raw = other.encrypt(1, np.full(5, theirs.bound), 1)
    pasted = P.digest.join(raw.split(theirs.digest, 1))
    total = EncryptedSum.of([ours, Update.parse(pasted, P, 1)], P).to_bytes(P, 1)
    with pytest.raises(TamperedAnswerError, match="not decrypted"):
        ciphers(P, 1)[0].decrypt(1, total)


@pytest.mark.parametrize("values", [1, DEGREE - 1, DEGREE, 2 * DEGREE + 7])
def test_lengths_around_a_ciphertext(values: int) -> None:
    p = parameters(values)
    rng = np.random.default_rng(values)
    rows = [rng.uniform(-2, 2, values) for _ in range(3)]
    assert averaged(p, rows, [1, 999, 1000]).values.tolist() == pytest.approx(naive(rows, [1, 999, 1000], p), rel=1e-15)


@pytest.mark.parametrize("sign", [1, -1])
def test_as_many_participants_and_as_much_weight_as_there_may_be(sign: int) -> None:
    """Every value at the bound, every weight the largest: the sum fills all of 2^39, and nothing wraps."""
    most = MAX_TOTAL // (256 * MIN_LEVELS)
    p = parameters(DEGREE - 1, participants=256, max_weight=most)
    assert p.levels * 256 * most == MAX_TOTAL
    found = averaged(p, [np.full(p.values, sign * 2.0)] * 256, [most] * 256)
    assert (found.values == sign * 2.0).all()
    assert found.weight == 256 * most


def test_noise_is_what_the_theory_says() -> None:
    """√(N/2·(n·σ² + n²/12)) in each part of a slot, for equal plaintexts; at n = 256 half a unit is 32 of that."""
    people = ciphers(P, 4)
    zeros = [one.encrypt(1, np.zeros(5), 1) for one in people]
    total = EncryptedSum.parse(add(zeros, P), P, 1)
    noise = people[0]._decrypt(total.polys[0], total.seeds[0])
    noise[0] -= 4  # the weights

    def deviation(n: int) -> float:
        return math.sqrt(DEGREE / 2 * (n * NOISE_VARIANCE + n * n / 12)) / SCALE

    assert np.std(noise) == pytest.approx(deviation(4), rel=0.1)
    assert 0.5 / deviation(256) > 32


def test_more_rounds() -> None:
    people = ciphers(P, 3)
    history = START
    for round_ in (1, 2, 5):
        raw = add([one.encrypt(round_, np.full(5, round_ / 8), 7) for one in people], P, round_, history)
        history = after(history, raw)
        assert all((one.decrypt(round_, raw).values == round_ / 8).all() for one in people)
        with pytest.raises(InvalidInput, match="expected one after"):
            people[0].decrypt(round_, raw)
        with pytest.raises(InvalidInput, match="expected one after"):
            people[0].encrypt(round_, np.zeros(5), 1)


def test_who_drops_out_is_not_in_the_sum() -> None:
    people = ciphers(P, 3)
    updates = [one.encrypt(1, np.full(5, float(number)), 1) for number, one in enumerate(people)]
    found = people[2].decrypt(1, add(updates[:2], P))
    assert found.names == ("h000", "h001")
    assert (found.values == 0.5).all()


# ---- what is refused before it is encrypted --------------------------------------------------------------------
@pytest.mark.parametrize("value", [2.0000001, -3.0, math.inf, math.nan])
def test_a_value_over_the_bound(value: float) -> None:
    with pytest.raises(NormError, match="clip"):
        ciphers(P, 1)[0].encrypt(1, [0, 0, value, 0, 0], 1)


@pytest.mark.parametrize("weight", [0, -1, 1001, 1.0, True, None])
def test_a_weight_out_of_range(weight: Any) -> None:
    with pytest.raises(InvalidInput, match="weight: got"):
        ciphers(P, 1)[0].encrypt(1, np.zeros(5), weight)


@pytest.mark.parametrize("shape", [(4,), (6,), (5, 1), ()])
def test_another_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(DimensionError, match="expected \\(5,\\)"):
        ciphers(P, 1)[0].encrypt(1, np.zeros(shape), 1)


@pytest.mark.parametrize("round_", [0, -1, 1 << 32, 1.0, True, "1"])
def test_no_round(round_: Any) -> None:
    with pytest.raises(InvalidInput, match="round: got"):
        ciphers(P, 1)[0].encrypt(round_, np.zeros(5), 1)


@pytest.mark.parametrize(
    "changed",
    [
        {"values": 0}, {"values": (1 << 24) + 1}, {"values": 5.0}, {"participants": 1}, {"participants": 257},
        {"max_weight": 0}, {"max_weight": (1 << 29) + 1}, {"max_weight": 1.5}, {"bound": 0.0}, {"bound": math.inf},
        {"bound": math.nan}, {"bound": 1}, {"run": bytes(15)}, {"run": "0" * 16},
    ],
)  # fmt: skip
def test_parameters_that_cannot_be(changed: dict[str, Any]) -> None:
    with pytest.raises(ParameterError, match=next(iter(changed))):
        parameters(**changed)


@pytest.mark.parametrize("name", ["", "North", "a b", "ä", "x" * 65, "a/b", "a\n"])
def test_bad_names(name: str) -> None:
    with pytest.raises(InvalidInput, match="name"):
        UpdateCipher(KEY, P, name)


@pytest.mark.parametrize("minimum", [1, 0, 5, 2.0])
def test_a_sum_of_one_is_never_wanted(minimum: Any) -> None:
    with pytest.raises(InvalidInput, match="minimum"):
        UpdateCipher(KEY, P, "north", minimum)


# ---- what an aggregator refuses --------------------------------------------------------------------------------
UPDATE = ciphers(P, 1)[0].encrypt(1, np.ones(5), 3)
NAME_AT = 76  #: after the header


@pytest.mark.parametrize(
    "other", [{"values": 6}, {"participants": 3}, {"max_weight": 999}, {"bound": 1.0}, {"run": bytes(16)}]
)
def test_updates_of_other_parameters(other: dict[str, Any]) -> None:
    with pytest.raises(FormatVersionError, match="other parameters"):
        Update.parse(UPDATE, parameters(**other), 1)


def test_updates_of_another_round() -> None:
    with pytest.raises(FormatVersionError, match="of round 1, expected 2"):
        Update.parse(UPDATE, P, 2)


@pytest.mark.parametrize("length", [0, 7, 75, 76, 77, 80, 81, 88, 89, 1000, len(UPDATE) - 1, len(UPDATE) + 1])
def test_updates_that_are_cut_or_too_long(length: int) -> None:
    raw = (UPDATE + b"\0")[:length]
    with pytest.raises((FormatVersionError, ResidueError)):
        Update.parse(raw, P, 1)


def test_residues_and_tags_that_are_not_canonical() -> None:
    first = NAME_AT + 1 + 4
    for position in (first, first + 8, first + 8 + POLY_BYTES - 8):
        raw = bytearray(UPDATE)
        raw[position : position + 8] = MODULUS.to_bytes(8, "little")
        with pytest.raises(ResidueError, match="canonical"):
            Update.parse(bytes(raw), P, 1)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.binary(max_size=300), st.booleans())
def test_garbage(raw: bytes, headed: bool) -> None:
    for kind in (Update, EncryptedSum):
        with pytest.raises((FormatVersionError, ResidueError)):
            kind.parse(UPDATE[:NAME_AT] * headed + raw, P, 1)


def test_sums_that_cannot_be() -> None:
    update = Update.parse(UPDATE, P, 1)
    with pytest.raises(InvalidInput, match="twice"):
        EncryptedSum.of([update, update], P)
    with pytest.raises(InvalidInput, match="got 0"):
        EncryptedSum.of([], P)
    with pytest.raises(InvalidInput, match="got 5"):
        EncryptedSum.of([update] * 5, P)
    with pytest.raises(DimensionError):
        EncryptedSum.of([update], parameters(DEGREE))


# ---- what participants refuse ----------------------------------------------------------------------------------
def two_updates() -> tuple[list[UpdateCipher], list[bytes]]:
    people = ciphers(P, 3)
    return people, [one.encrypt(1, np.full(5, 0.5), 10) for one in people]


def refused(cipher: UpdateCipher, total: EncryptedSum, round_: int = 1, history: bytes = START) -> None:
    with pytest.raises(TamperedAnswerError, match="not decrypted"):
        cipher.decrypt(round_, total.to_bytes(P, round_, history))


def test_every_kind_of_changed_sum_is_refused() -> None:
    people, updates = two_updates()
    parsed = [Update.parse(raw, P, 1) for raw in updates]
    good = EncryptedSum.of(parsed, P)
    q = np.uint64(MODULUS)

    doubled = EncryptedSum(good.names, good.tag, good.polys * np.uint64(2) % q, good.seeds)
    shifted = good.polys.copy()
    shifted[0, 7] = (shifted[0, 7] + np.uint64(1)) % q
    one_twice = EncryptedSum.of([parsed[0], parsed[1]], P)
    renamed = EncryptedSum(("h000", "h002"), one_twice.tag, one_twice.polys, one_twice.seeds)
    swapped = EncryptedSum(good.names, good.tag, good.polys, (good.seeds[0][1:] + good.seeds[0][:1],))
    fewer = EncryptedSum(good.names[:2], good.tag, good.polys, (good.seeds[0][:2],))
    more = EncryptedSum(("h000", "h001", "h002"), one_twice.tag, one_twice.polys, good.seeds)
    tag = EncryptedSum(good.names, (good.tag + 1) % MODULUS, good.polys, good.seeds)
    for changed in (
        doubled,
        EncryptedSum(good.names, good.tag, shifted, good.seeds),
        renamed,
        swapped,
        fewer,
        more,
        tag,
    ):
        refused(people[0], changed)
    assert people[0].decrypt(1, good.to_bytes(P, 1)).weight == 30, "refusing changed nothing"


def test_adding_a_plaintext_is_refused() -> None:
    """CKKS is malleable: who knows Δ moves every value by one level. The tag does not follow."""
    people, updates = two_updates()
    good = EncryptedSum.of([Update.parse(raw, P, 1) for raw in updates], P)
    ones = np.uint64(SCALE)  # 1 in every slot: a constant polynomial, so the same residue everywhere
    moved = (good.polys + ones) % np.uint64(MODULUS)
    refused(people[0], EncryptedSum(good.names, good.tag, moved, good.seeds))
    before, after = (np.rint(people[0]._decrypt(polys[0], good.seeds[0]))[:SLOTS] for polys in (good.polys, moved))
    assert (after == before + 1).all(), "without the tag, nobody would notice"


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_flipped_bits(data: st.DataObject) -> None:
    people, updates = two_updates()
    raw = bytearray(add(updates, P))
    bit = data.draw(st.integers(0, 8 * len(raw) - 1))
    raw[bit // 8] ^= 1 << bit % 8
    with pytest.raises((TamperedAnswerError, ResidueError, FormatVersionError)):
        people[0].decrypt(1, bytes(raw))


def test_a_sum_of_fewer_than_the_minimum() -> None:
    _, updates = two_updates()
    with pytest.raises(InvalidInput, match="of 1 participants, expected 2"):
        ciphers(P, 1)[0].decrypt(1, add(updates[:1], P))
    with pytest.raises(InvalidInput, match="of 2 participants, expected 3"):
        ciphers(P, 1, minimum=3)[0].decrypt(1, add(updates[:2], P))


def test_an_old_sum_under_a_new_rounds_number() -> None:
    people, updates = two_updates()
    old = add(updates, P)
    people[0].decrypt(1, old)
    refused(people[0], EncryptedSum.parse(old, P, 1), 2, after(START, old))


def test_who_was_shown_another_sum_is_out() -> None:
    """Two sums of one round, both right, of different participants: whoever got them cannot go on together."""
    people, updates = two_updates()
    shown = [add(updates, P), add(updates[:2], P)]
    histories = [after(START, raw) for raw in shown]
    for one, raw in zip(people, shown, strict=False):
        one.decrypt(1, raw)
    second = [one.encrypt(2, np.zeros(5), 1) for one in people[:2]]
    for history in histories:
        with pytest.raises(FormatVersionError, match="taken other sums"):
            add(second, P, 2, history)
    parsed = [Update.parse(raw, P, 2, history) for raw, history in zip(second, histories, strict=True)]
    for one, history in zip(people[:2], histories, strict=True):
        refused(one, EncryptedSum.of(parsed, P), 2, history)


def test_an_update_of_somebody_without_the_key() -> None:
    people, updates = two_updates()
    stranger = UpdateCipher(CollectionKey.generate(), P, "h001").encrypt(1, np.ones(5), 1)
    with pytest.raises(TamperedAnswerError):
        people[0].decrypt(1, add([updates[0], stranger], P))
    with pytest.raises(TamperedAnswerError):
        UpdateCipher(CollectionKey.generate(), P, "h009").decrypt(1, add(updates, P))


def test_a_participant_who_does_not_keep_to_the_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has the key, so the tag is right; only values that no average can have are noticed."""
    people = ciphers(P, 2)
    honest = people[0].encrypt(1, np.zeros(5), 1)
    monkeypatch.setattr(SumParameters, "levels", 1 << 30)
    lying = people[1].encrypt(1, np.full(5, 2.0), 1)
    monkeypatch.undo()
    with pytest.raises(TamperedAnswerError, match="bounds"):
        people[0].decrypt(1, add([honest, lying], P))


# ---- secrets ---------------------------------------------------------------------------------------------------
def test_the_secret_is_uniform_ternary_and_of_one_run() -> None:
    """Decoded from SEAL's form: coefficients −1, 0, 1, a third of them each; another run has another one."""
    cipher = ciphers(P, 1)[0]
    secret = cipher._secret_key(KEY)
    assert cipher._secret_key(KEY) == secret
    other = UpdateCipher(KEY, parameters(run=bytes(16)), "x")
    assert other._secret_key(KEY) != secret
    slots = np.array(slots_of_the_secret(cipher))
    powers = [pow(3, j, 2 * DEGREE) for j in range(SLOTS)]
    full = np.zeros(DEGREE, np.complex128)
    for slot, power in zip(slots, powers, strict=True):
        full[(power - 1) // 2], full[(2 * DEGREE - power - 1) // 2] = slot, np.conj(slot)
    s = np.fft.fft(full) / DEGREE * np.exp(-1j * np.pi * np.arange(DEGREE) / DEGREE)
    assert np.abs(s.imag).max() < 1e-6
    rounded = np.rint(s.real)
    assert np.abs(s.real - rounded).max() < 1e-6
    counts = [int(np.sum(rounded == value)) for value in (-1, 0, 1)]
    assert sum(counts) == DEGREE
    assert max(abs(count - DEGREE / 3) for count in counts) < 5 * math.sqrt(DEGREE * 2 / 9)


def slots_of_the_secret(cipher: UpdateCipher) -> list[complex]:
    """The ciphertext (0, 1) decrypts to s."""
    ones = np.ones(DEGREE, "<u8").tobytes()
    total = cipher._ring.load_ciphertext(bytes(POLY_BYTES) + ones, 2, 1.0)
    plaintext = sealapi().Plaintext()
    cipher._key()[1].decrypt(total, plaintext)
    return list(cipher._encoder.decode_complex(plaintext))


def test_equal_updates_are_encrypted_differently() -> None:
    cipher = ciphers(P, 1)[0]
    one, other = (Update.parse(cipher.encrypt(1, np.ones(5), 1), P, 1) for _ in range(2))
    assert one.tag != other.tag
    assert one.seeds != other.seeds
    assert np.mean(one.polys == other.polys) < 0.01


def test_a_cipher_is_a_secret() -> None:
    cipher = ciphers(P, 1)[0]
    assert repr(cipher) == "<UpdateCipher>"
    with pytest.raises(SecretReuseError):
        pickle.dumps(cipher)
    cipher.close()
    cipher.close()
    with pytest.raises(SecretReuseError):
        cipher.encrypt(1, np.ones(5), 1)


# ---- who adds has no key -----------------------------------------------------------------------------------------
ADDS = """
import sys
from pathlib import Path
from he_engine.encrypted_sums import EncryptedSum, SumParameters, Update
import he_server.federated
p = SumParameters(values=5, participants=4, max_weight=1000, bound=2.0, run=bytes(range(16)))
folder = Path(sys.argv[1])
updates = [Update.parse(path.read_bytes(), p, 1) for path in sorted(folder.glob("update*"))]
(folder / "sum").write_bytes(EncryptedSum.of(updates, p).to_bytes(p, 1))
print("\\n".join(sys.modules))
"""


def test_who_adds_loads_nothing_that_decrypts(tmp_path: Path) -> None:
    people, updates = two_updates()
    for number, raw in enumerate(updates):
        (tmp_path / f"update{number}").write_bytes(raw)
    done = subprocess.run(
        [sys.executable, "-c", ADDS, str(tmp_path)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    loaded = done.stdout.split()
    assert "he_server.federated" in loaded
    assert [name for name in loaded if any(name == bad or name.startswith(bad + ".") for bad in FORBIDDEN)] == []
    assert "he_engine.tenseal_ring" not in loaded
    assert people[0].decrypt(1, (tmp_path / "sum").read_bytes()).weight == 30


def test_the_format_is_pinned() -> None:
    """Sides of different releases understand each other, or the version changes."""
    assert UPDATE[:8] == b"hesum\0\0\1"
    assert len(UPDATE) == NAME_AT + 1 + 4 + 8 + POLY_BYTES + 64
    assert P.digest.hex() == "252388f7402d2a4a9a76bb5a7123add6829b10d9d8bc91ac33aab872b76d134c"
