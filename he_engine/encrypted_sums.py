"""Sums of encrypted vectors, added by somebody who has no key and needs no homomorphic library: NumPy alone.

Each of n participants encrypts integers under the secret s that they share, a ring ciphertext for every 4,096 of them,
in the ring of `tenseal_format` (N = 4096, q < 2^60):

    c0_i = −a_i·s + m_i + e_i     with a_i expanded from a 64-byte seed          (CKKS, symmetric)
    τ_i  = k_i + ⟨ρ, c0_i⟩ mod q                                                 (the tag: k_i, ρ are secret)

and the sum is Σ c0_i, Σ τ_i and all seeds: (Σ c0_i) + (Σ a_i)·s = Σ m_i + Σ e_i. Who adds never expands a seed. Tags
add up as ciphertexts do, so participants check the sum before they decrypt it.

    header   "hesum" 0 0 1 ‖ digest of the parameters (32) ‖ history (32) ‖ round (4)
    update   header ‖ name ‖ τ (8) ‖ for each block: c0 (N residues) ‖ seed
    sum      header ‖ n (4) ‖ n names ‖ τ (8) ‖ for each block: c0 (N residues) ‖ n seeds
    name     length (1) ‖ a to z, 0 to 9, "-"                        integers are little-endian

The history is the digest of all sums that were taken before, in their order.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from he_engine.errors import DimensionError, FormatVersionError, InvalidInput, ParameterError, ResidueError
from he_engine.keys import length_prefixed
from he_engine.tenseal_format import DEGREE, MODULUS, POLY_BYTES, SEED_BYTES, check_residues, words

U64 = NDArray[np.uint64]

TENSOR_TYPE = "hesearch.encrypted"  #: what Flower calls these bytes on the wire
RUN_BYTES = 16
MAX_VALUES, MAX_PARTICIPANTS, MAX_ROUND = 1 << 24, 256, (1 << 32) - 1
#: Δ of an integer 1. In each part of a slot a sum is off by a standard deviation of √(N/2·(n·σ² + n²/12)): n
#: independent noises, and the rounding of n plaintexts, which is the same n times where all are equal. For n = 256 that
#: is 4,085, and half a unit, 2^17, is 32 of them: sums round to the exact integers.
SCALE = 2.0**18
#: |Σ| of a value. Two share a complex slot, and no coefficient exceeds the largest slot: √2·2^39·Δ = 2^57.5. SEAL
#: encodes up to 2^58, and q/2 = 2^59.
MAX_TOTAL = 1 << 39
MAX_LEVELS, MIN_LEVELS = 1 << 24, 1 << 10

_MAGIC = b"hesum\0\0\1"
_HEADER_BYTES = len(_MAGIC) + 32 + 32 + 4
START = bytes(32)  #: history before the first sum
_NAME = re.compile(r"[a-z0-9-]{1,64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SumParameters:
    """What all sides agree on. Overflow is impossible for who keeps to it: `participants` times `max_weight` times
    `levels` is at most 2^39."""

    values: int  #: L, numbers in a vector, 1 to 2^24
    participants: int  #: at most, 2 to 256
    max_weight: int  #: of one participant, ≥ 1: records, for example
    bound: float  #: |value| ≤ bound
    run: bytes  #: 16 bytes, never used before with the same key

    def __post_init__(self) -> None:
        """Raises ParameterError."""
        for name, least, most in (("values", 1, MAX_VALUES), ("participants", 2, MAX_PARTICIPANTS)):
            if type(got := getattr(self, name)) is not int or not least <= got <= most:
                raise ParameterError(f"{name}: got {got!r}, expected {least} to {most}")
        most = MAX_TOTAL // (self.participants * MIN_LEVELS)
        if type(self.max_weight) is not int or not 1 <= self.max_weight <= most:
            raise ParameterError(
                f"max_weight: got {self.max_weight!r}, expected 1 to {most} with {self.participants} participants"
            )
        if type(self.bound) is not float or not 2.0**-500 <= self.bound <= 2.0**500:
            raise ParameterError(f"bound: got {self.bound!r}, expected a float of 2^-500 to 2^500")
        if type(self.run) is not bytes or len(self.run) != RUN_BYTES:
            raise ParameterError(f"run: expected {RUN_BYTES} bytes")

    @property
    def levels(self) -> int:
        """The integer that stands for `bound`; a value is off by at most bound/(2·levels)."""
        return min(MAX_LEVELS, MAX_TOTAL // (self.participants * self.max_weight))

    @property
    def blocks(self) -> int:
        """Ciphertexts in an update: the values, and the weight before them."""
        return -(-(self.values + 1) // DEGREE)

    @property
    def digest(self) -> bytes:
        bound = struct.pack(">d", self.bound)
        fields = self.values, self.participants, self.max_weight, bound, self.run
        return hashlib.sha256(length_prefixed("hesearch encrypted sums 1", *fields)).digest()


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Update:
    """One participant's ciphertexts, every length and residue checked."""

    name: str
    tag: int
    polys: U64  #: c0, (blocks, N)
    seeds: tuple[bytes, ...]  #: one a block

    def to_bytes(self, parameters: SumParameters, round_: int, history: bytes = START) -> bytes:
        parts = [_header(parameters, round_, history), _packed(self.name), struct.pack("<Q", self.tag)]
        for poly, seed in zip(self.polys, self.seeds, strict=True):
            parts += poly.astype("<u8").tobytes(), seed
        return b"".join(parts)

    @classmethod
    def parse(cls, raw: bytes, parameters: SumParameters, round_: int, history: bytes = START) -> Update:
        """Raises FormatVersionError (another format; other parameters, history or round), ResidueError (lengths,
        residues, names)."""
        position = _after_header(raw, _header(parameters, round_, history), "update")
        names, position = _names(raw, position, 1, "update")
        tag, polys, seeds = _body(raw, position, parameters, 1, "update")
        return cls(names[0], tag, polys, tuple(seed for (seed,) in seeds))


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class EncryptedSum:
    """What was added up, every length and residue checked; its tag says whether it was added up rightly."""

    names: tuple[str, ...]
    tag: int
    polys: U64  #: Σ c0, (blocks, N)
    seeds: tuple[tuple[bytes, ...], ...]  #: for each block, one a participant, in the order of `names`

    @classmethod
    def of(cls, updates: Sequence[Update], parameters: SumParameters) -> EncryptedSum:
        """Raises InvalidInput for none, more than `participants`, or a name twice; DimensionError for other blocks."""
        if not 1 <= len(updates) <= parameters.participants:
            raise InvalidInput(f"updates: got {len(updates)}, expected 1 to {parameters.participants}")
        ordered = sorted(updates, key=lambda update: update.name)
        names = tuple(update.name for update in ordered)
        if len(set(names)) != len(names):
            raise InvalidInput("updates: got one participant twice, expected each once")
        shape = (parameters.blocks, DEGREE)
        if any(update.polys.shape != shape or len(update.seeds) != shape[0] for update in ordered):
            raise DimensionError(f"updates: one has other polynomials than {shape}")
        total = np.zeros(shape, np.uint64)
        for update in ordered:
            total = (total + update.polys) % np.uint64(MODULUS)  # both < q < 2^60
        tag = sum(update.tag for update in ordered) % MODULUS
        return cls(names, tag, total, tuple(zip(*(update.seeds for update in ordered), strict=True)))

    def to_bytes(self, parameters: SumParameters, round_: int, history: bytes = START) -> bytes:
        parts = [_header(parameters, round_, history), struct.pack("<I", len(self.names)), *map(_packed, self.names)]
        parts.append(struct.pack("<Q", self.tag))
        for poly, seeds in zip(self.polys, self.seeds, strict=True):
            parts += poly.astype("<u8").tobytes(), *seeds
        return b"".join(parts)

    @classmethod
    def parse(cls, raw: bytes, parameters: SumParameters, round_: int, history: bytes = START) -> EncryptedSum:
        """Raises as Update.parse."""
        position = _after_header(raw, _header(parameters, round_, history), "sum")
        count = int.from_bytes(raw[position : position + 4], "little")
        if not 1 <= count <= parameters.participants:
            raise ResidueError(f"sum: got {count} participants, expected 1 to {parameters.participants}")
        names, position = _names(raw, position + 4, count, "sum")
        if list(names) != sorted(set(names)):
            raise ResidueError("sum: expected each participant once, in order")
        return cls(names, *_body(raw, position, parameters, count, "sum"))


def check_name(name: str) -> str:
    """name itself. Raises InvalidInput."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidInput('name: expected 1 to 64 of a to z, 0 to 9 and "-"')
    return name


def check_round(round_: int) -> int:
    """round_ itself. Raises InvalidInput."""
    if type(round_) is not int or not 1 <= round_ <= MAX_ROUND:
        raise InvalidInput(f"round: got {round_!r}, expected 1 to {MAX_ROUND}")
    return round_


def after(history: bytes, total: bytes) -> bytes:
    """The history after a sum, which is bytes here."""
    return hashlib.sha256(history + total).digest()


def _header(parameters: SumParameters, round_: int, history: bytes) -> bytes:
    return _MAGIC + parameters.digest + history + struct.pack("<I", check_round(round_))


def _after_header(raw: bytes, expected: bytes, field: str) -> int:
    got = raw[:_HEADER_BYTES]
    if got[: len(_MAGIC)] != _MAGIC or len(got) != _HEADER_BYTES:
        raise FormatVersionError(f"{field}: not of this format, version 1")
    if got[:-36] != expected[:-36]:
        raise FormatVersionError(f"{field}: made with other parameters, or in another run")
    if got[-4:] != expected[-4:]:
        rounds = [int.from_bytes(header[-4:], "little") for header in (got, expected)]
        raise FormatVersionError(f"{field}: of round {rounds[0]}, expected {rounds[1]}")
    if got != expected:
        raise FormatVersionError(f"{field}: of somebody who has taken other sums before")
    return _HEADER_BYTES


def _packed(name: str) -> bytes:
    return bytes([len(check_name(name))]) + name.encode()


def _names(raw: bytes, position: int, count: int, field: str) -> tuple[tuple[str, ...], int]:
    """(names, where they end)."""
    names = []
    for _ in range(count):
        length = int.from_bytes(raw[position : position + 1], "little")
        name = raw[position + 1 : position + 1 + length].decode("latin-1")
        if len(name) != length or not _NAME.fullmatch(name):
            raise ResidueError(f"{field}: a participant's name is cut or has other characters than a name has")
        names.append(name)
        position += 1 + length
    return tuple(names), position


def _body(
    raw: bytes, position: int, parameters: SumParameters, count: int, field: str
) -> tuple[int, U64, tuple[tuple[bytes, ...], ...]]:
    """(tag, polynomials, seeds of each block)."""
    block = POLY_BYTES + count * SEED_BYTES
    words(raw[position:], 8 + parameters.blocks * block, field)
    tag = int.from_bytes(raw[position : position + 8], "little")
    body = np.frombuffer(raw, np.uint8, offset=position + 8).reshape(parameters.blocks, block)
    polys = np.ascontiguousarray(body[:, :POLY_BYTES]).view("<u8")
    check_residues(polys.reshape(-1), field)
    if tag >= MODULUS:
        raise ResidueError(f"{field}: the tag is not canonical (expected < q)")
    parts = body[:, POLY_BYTES:].reshape(parameters.blocks, count, SEED_BYTES)
    return tag, polys, tuple(tuple(seed.tobytes() for seed in seeds) for seeds in parts)
