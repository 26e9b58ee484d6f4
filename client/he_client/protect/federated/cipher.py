"""The participants' half of encrypted sums: encrypt an update; check, decrypt and average a sum. Holds the secrets.

Everything derives from the key that the participants share, for one run (see he_engine.encrypted_sums for letters):

    s      uniform ternary, by HKDF and AES-CTR              federated secret ‖ p
    ρ      blocks·N residues mod q, the same for all         federated weights ‖ p ‖ round ‖ history
    k_i    a residue mod q, used once                        federated mask ‖ p ‖ round ‖ history ‖ name ‖ seeds

p is the digest of the parameters, the run among them: who was told another bound has another key.

`history` is the digest of all sums so far, so participants who were sent different ones do not understand each other
any more. A sum that is not Σ of what the named participants sent passes with probability below 2^-59, at each try:
for any other c0, τ would have to hit Σ k_i + ⟨ρ, c0⟩, and nothing of ρ was seen but under masks k_i, each used once.
The k_i depend on the seeds, so other seeds have other masks.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from he_client.keys import CollectionKey
from he_engine.encrypted_sums import (
    SCALE,
    START,
    EncryptedSum,
    SumParameters,
    Update,
    after,
    check_name,
    check_round,
)
from he_engine.errors import (
    DimensionError,
    InvalidInput,
    NormError,
    SecretReuseError,
    TamperedAnswerError,
)
from he_engine.keys import RootKey, Secret
from he_engine.public import keystream
from he_engine.tenseal_format import DEGREE, MODULUS, POLY_BYTES, SLOTS
from he_engine.tenseal_ring import SealRing, sealapi

F64 = NDArray[np.float64]
U64 = NDArray[np.uint64]

#: Participants in a sum that is decrypted, at least: a "sum" of one is somebody's update, and of two, for each of them,
#: the other's.
MINIMUM, USUAL_MINIMUM = 2, 3
_NEAR = 0.25  #: of a unit, from the nearest integer: 16 standard deviations for 256 participants


@dataclass(frozen=True, slots=True)
class Average:
    """Σ w_i·x_i / Σ w_i."""

    values: F64  #: (L,)
    weight: int  #: Σ w_i
    names: tuple[str, ...]  #: of those who are in it


class UpdateCipher(Secret):
    """One participant of one run. Not thread-safe."""

    def __init__(self, key: CollectionKey, parameters: SumParameters, name: str, minimum: int | None = None) -> None:
        """key: shared by the participants, best made for this alone. minimum: of participants in a sum, 2 or more;
        usually 3, where there are as many. All but one of those in a sum can tell what the last one sent.

        Raises InvalidInput, MissingExtra.
        """
        if minimum is None:
            minimum = min(USUAL_MINIMUM, parameters.participants)
        if type(minimum) is not int or not MINIMUM <= minimum <= parameters.participants:
            raise InvalidInput(f"minimum: got {minimum!r}, expected {MINIMUM} to {parameters.participants}")
        self._parameters, self._name, self._minimum = parameters, check_name(name), minimum
        self._ring = SealRing()
        api, context = sealapi(), self._ring.context
        self._encoder, self._evaluator = api.CKKSEncoder(context), api.Evaluator(context)
        secret = self._ring.load_secret_key(self._secret_key(key))
        self._keyed: tuple[Any, Any, RootKey] | None = (
            api.Encryptor(context, secret),
            api.Decryptor(context, secret),
            RootKey(key.derive("federated run", parameters.digest)),
        )
        self._history, self._round = START, 0

    def _secret_key(self, key: CollectionKey) -> bytes:
        """SEAL's form of s. Its slots are s(ζ^(3^j)), ζ = e^(iπ/N), and encoding those at scale 1 gives s again."""
        stream = keystream(key.derive("federated secret", self._parameters.digest), DEGREE).view(np.uint8)
        s = stream[stream < 255][:DEGREE].astype(np.int64) % 3 - 1  # 32,768 bytes, of which 1 in 256 is left out
        twisted = s * np.exp(1j * np.pi * np.arange(DEGREE) / DEGREE)
        odd_powers = np.fft.ifft(twisted, norm="forward")  # s(ζ^(2m+1))
        places = np.array([(pow(3, j, 2 * DEGREE) - 1) // 2 for j in range(SLOTS)])
        plaintext = sealapi().Plaintext()
        self._encoder.encode(odd_powers[places].tolist(), 1.0, plaintext)
        return self._ring.residues(plaintext, DEGREE)

    def _key(self) -> tuple[Any, Any, RootKey]:
        """(encryptor, decryptor, root of this run's tags)."""
        if self._keyed is None:
            raise SecretReuseError("this cipher is closed")
        return self._keyed

    # ---- encryption ------------------------------------------------------------------------------------------
    def encrypt(self, round_: int, values: ArrayLike, weight: int) -> bytes:
        """The update of this participant for a round: weight and weight·values, under fresh randomness.

        values: (L,), each of absolute value ≤ bound. weight: 1 to max_weight. round_: above that of every sum that was
        decrypted. Raises DimensionError, NormError (a value over the bound or not finite), InvalidInput.
        """
        p = self._parameters
        x = np.asarray(values, np.float64)
        if x.shape != (p.values,):
            raise DimensionError(f"values: got shape {x.shape}, expected ({p.values},)")
        if not (np.abs(x) <= p.bound).all():  # NaN compares false
            raise NormError(f"values: one is not finite or exceeds the bound {p.bound}: clip them first")
        if type(weight) is not int or not 1 <= weight <= p.max_weight:
            raise InvalidInput(f"weight: got {weight!r}, expected 1 to {p.max_weight}")
        self._check_newer(round_)
        numbers = np.zeros(p.blocks * DEGREE)
        numbers[0] = weight
        numbers[1 : 1 + p.values] = weight * np.rint(x / p.bound * p.levels)  # integers below 2^53: exact
        blocks = [self._encrypt(block) for block in numbers.reshape(p.blocks, DEGREE)]
        polys = np.stack([np.frombuffer(block, "<u8", DEGREE) for block in blocks])
        seeds = tuple(block[POLY_BYTES:] for block in blocks)
        tag = (self._weigh(round_, polys) + self._mask(round_, self._name, seeds)) % MODULUS
        return Update(self._name, tag, polys, seeds).to_bytes(p, round_, self._history)

    def _encrypt(self, numbers: F64) -> bytes:
        """c0 ‖ seed of 4,096 integers, two a slot."""
        encryptor, _, _ = self._key()
        plaintext = sealapi().Plaintext()
        self._encoder.encode((numbers[:SLOTS] + 1j * numbers[SLOTS:]).tolist(), SCALE, plaintext)
        while True:  # once: that SEAL's file turns out compressible has no noticeable probability
            ciphertext = self._ring.save_fresh(encryptor.encrypt_symmetric(plaintext))
            if ciphertext is not None:
                return ciphertext

    # ---- decryption ------------------------------------------------------------------------------------------
    def decrypt(self, round_: int, raw: bytes) -> Average:
        """The average of a sum, exactly that of the rounded values. Nothing is decrypted before its tag is checked.

        Raises FormatVersionError, ResidueError; InvalidInput (a round that is over, or fewer participants than the
        minimum); TamperedAnswerError: not the sum of what the participants that it names have sent in this round. After
        an error, everything is as before.
        """
        p = self._parameters
        self._check_newer(round_)
        found = EncryptedSum.parse(raw, p, round_, self._history)
        if len(found.names) < self._minimum:
            raise InvalidInput(f"sum: of {len(found.names)} participants, expected {self._minimum} or more")
        by_name = zip(*found.seeds, strict=True)
        masks = sum(self._mask(round_, name, seeds) for name, seeds in zip(found.names, by_name, strict=True))
        if (self._weigh(round_, found.polys) + masks) % MODULUS != found.tag:
            raise TamperedAnswerError("sum: not that of the updates of the participants that it names; not decrypted")
        blocks = zip(found.polys, found.seeds, strict=True)
        exact = np.concatenate([self._decrypt(poly, seeds) for poly, seeds in blocks])
        numbers = np.rint(exact) + 0.0  # −0.0, which would tell the sign of the noise, becomes 0.0
        weight, values, rest = numbers[0], numbers[1 : 1 + p.values], numbers[1 + p.values :]
        possible = (
            (np.abs(exact - numbers) < _NEAR).all()
            and len(found.names) <= weight <= len(found.names) * p.max_weight
            and (np.abs(values) <= weight * p.levels).all()
            and not rest.any()
        )
        if not possible:  # with a right tag: a participant encrypted something else than `encrypt` does
            raise TamperedAnswerError("sum: no sum of updates within the bounds; a participant does not keep to them")
        self._history = after(self._history, raw)
        self._round = round_
        return Average(values / weight * (p.bound / p.levels), int(weight), found.names)

    def _decrypt(self, poly: U64, seeds: Sequence[bytes]) -> F64:
        """4,096 numbers, with noise."""
        _, decryptor, _ = self._key()
        total = self._ring.load_fresh(poly.tobytes() + seeds[0], SCALE)
        for seed in seeds[1:]:  # adds a_i alone
            self._evaluator.add_inplace(total, self._ring.load_fresh(bytes(POLY_BYTES) + seed, SCALE))
        plaintext = sealapi().Plaintext()
        decryptor.decrypt(total, plaintext)
        slots = np.array(self._encoder.decode_complex(plaintext), np.complex128)
        return np.concatenate([slots.real, slots.imag])

    # ---- tags ------------------------------------------------------------------------------------------------
    def _weigh(self, round_: int, polys: U64) -> int:
        """⟨ρ, c0⟩ mod q."""
        _, _, root = self._key()
        weights = keystream(root.derive("federated weights", round_, self._history), polys.size) % np.uint64(MODULUS)
        total: int = sum(map(operator.mul, weights.tolist(), polys.reshape(-1).tolist()))  # exact: Python's integers
        return total % MODULUS

    def _mask(self, round_: int, name: str, seeds: Sequence[bytes]) -> int:
        """k_i."""
        _, _, root = self._key()
        bound = root.derive("federated mask", round_, self._history, name.encode(), b"".join(seeds))
        return int.from_bytes(bound, "little") % MODULUS

    def _check_newer(self, round_: int) -> None:
        if check_round(round_) <= self._round:
            raise InvalidInput(f"round: got {round_}, expected one after {self._round}")

    def close(self) -> None:
        """Drop the keys; SEAL overwrites its own."""
        if self._keyed is not None:
            self._keyed[2].close()
        self._keyed = None
