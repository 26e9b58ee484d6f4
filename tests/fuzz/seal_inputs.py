"""Ciphertexts of the engine `tenseal`, nearly right: as clients send them, and in SEAL's own format, which nobody can.

All randomness comes from one random.Random, so a seed repeats a run.
"""

from __future__ import annotations

import struct
import zlib
from random import Random

import numpy as np

from he_engine.tenseal_format import CIPHERTEXT_BYTES, DEGREE, INDEX_SCALE, MODULUS, POLY_BYTES, SEED_BYTES
from he_engine.tenseal_ring import SealRing
from tests.fuzz.mutate import EDGES, mutate_bytes

_RESIDUES = (0, 1, MODULUS >> 1, MODULUS - 1, MODULUS, MODULUS + 1, 2**60, 2 * MODULUS, 2**63, 2**64 - 1)
_LENGTHS = (0, 1, 8, 64, POLY_BYTES - 8, POLY_BYTES, CIPHERTEXT_BYTES - 8, CIPHERTEXT_BYTES - 1)
_SCALES = (0.0, -0.0, 1.0, -1.0, 5e-324, 1e308, float("inf"), float("-inf"), float("nan"), 2.0**29, 2.0**59, 2.0**61)


def polynomials(rng: Random, count: int) -> bytes:
    """Canonical residues."""
    return np.random.default_rng(rng.getrandbits(64)).integers(0, MODULUS, count * DEGREE, "<u8").tobytes()


def fresh(rng: Random) -> bytes:
    """A ciphertext as clients send it: uniform, as a server cannot tell it from others."""
    return polynomials(rng, 1) + rng.randbytes(SEED_BYTES)


# ---- residues ------------------------------------------------------------------------------------------------
def changed(rng: Random, data: bytes, other: bytes) -> bytes:
    """Residues (and a seed): one to four changes."""
    for _ in range(1 << rng.randrange(3)):
        data = _change(rng, data, other)
    return data


def flipped(rng: Random, data: bytes) -> bytes:
    """One bit."""
    out, bit = bytearray(data), rng.randrange(8 * len(data))
    out[bit // 8] ^= 1 << bit % 8
    return bytes(out)


def _change(rng: Random, data: bytes, other: bytes) -> bytes:
    out = bytearray(data)
    size = len(out)
    word = 8 * rng.randrange(max(1, size // 8))
    kind = rng.randrange(8)
    if kind == 0 and size:
        out[rng.randrange(size)] ^= 1 << rng.randrange(8)
    elif kind == 1 and size:  # a bit that decides whether a residue is below q
        out[min(word + 7, size - 1)] ^= 1 << rng.randrange(8)
    elif kind == 2:
        out[word : word + 8] = rng.choice(_RESIDUES).to_bytes(8, "little")
    elif kind == 3:
        run = 8 << rng.randrange(13)
        out[word : word + run] = (rng.choice(_RESIDUES).to_bytes(8, "little") * (run // 8))[: max(0, size - word)]
    elif kind == 4 and size >= SEED_BYTES:
        out[-SEED_BYTES:] = rng.choice((bytes(SEED_BYTES), b"\xff" * SEED_BYTES, rng.randbytes(SEED_BYTES)))
    elif kind == 5 and rng.random() < 0.3:
        del out[rng.choice((*_LENGTHS, rng.randrange(size + 1))) :]
    elif kind == 6 and rng.random() < 0.3:
        out += rng.randbytes(1 << rng.randrange(12))
    else:
        out[word : word + 4096] = other[word : word + 4096]
    return bytes(out)


# ---- SEAL's own format ---------------------------------------------------------------------------------------
_HEADER = "<HBBBBHQ"
_NONE, _ZLIB, _ZSTD = 0, 1, 2


class SealFile:
    """A file of SEAL's that holds one seeded ciphertext, field by field (he_engine.tenseal_ring describes it)."""

    def __init__(self, ciphertext: bytes) -> None:
        ring = SealRing()
        self._magic, self._parms_id = ring._magic, ring.context.first_parms_id()
        self._residues, self._seed = ciphertext[:POLY_BYTES], ciphertext[POLY_BYTES:]

    @property
    def version(self) -> str:
        """Of this SEAL."""
        return f"{self._magic[3]}.{self._magic[4]}"

    def valid(self) -> bytes:
        return self._file(self._body({}), _NONE)

    def cut_inside(self, compression: int = _ZSTD) -> bytes:
        """Its array says that it is compressed, as the whole is, and the whole says that it is 1,000 bytes shorter."""
        file = self._file(self._body({"array_mode": compression}), compression)
        return file[:8] + struct.pack("<Q", len(file) - 1000) + file[16:]

    def changed(self, rng: Random) -> bytes:
        """Fields at their edges, another compression, or one that expands; then, one time in three, bytes changed."""
        changes = {rng.choice(_FIELDS): None for _ in range(rng.choice((0, 1, 1, 2, 4)))}
        mode = rng.choice((_NONE, _NONE, _NONE, _ZLIB, _ZSTD, rng.randrange(256)))
        body = self._body({name: _value(rng, name) for name in changes})
        if rng.random() < 0.2:
            body = changed(rng, body, body[::-1])
        file = self._file(body, mode, rng if rng.random() < 0.25 else None)
        if rng.random() < 0.02:
            file = self._bomb(rng, body)
        return mutate_bytes(rng, file, [file]) if rng.random() < 0.33 else file

    def _framed(self, body: bytes, mode: int = _NONE, size: int | None = None) -> bytes:
        size = 16 + len(body) if size is None else size
        return self._magic + bytes([mode]) + bytes(2) + struct.pack("<Q", size) + body

    def _body(self, values: dict[str, int | float]) -> bytes:
        def number(name: str, right: int) -> int:
            return int(values.get(name, right))

        prefix = struct.pack("<4Q", *(self._parms_id if "parms_id" not in values else (number("parms_id", 0),) * 4))
        prefix += struct.pack("<BQQQ", number("ntt", 1) % 256, *(number(n, r) for n, r in _COUNTS))
        prefix += struct.pack("<dQ", values.get("scale", INDEX_SCALE), number("correction", 1))
        array = struct.pack("<Q", number("words", len(self._residues) // 8)) + self._residues
        array = self._framed(array, number("array_mode", _NONE) % 256, values.get("array_size"))  # type: ignore[arg-type]
        seed = bytes([number("generator", 1) % 256]) + self._seed
        seed = self._framed(seed, number("seed_mode", _NONE) % 256, values.get("seed_size"))  # type: ignore[arg-type]
        return prefix + array + seed

    def _file(self, body: bytes, mode: int, rng: Random | None = None) -> bytes:
        """rng: the header then says another size."""
        packed = zlib.compress(body, 1) if mode == _ZLIB else zstd_stored(body) if mode == _ZSTD else body
        return self._framed(packed, mode, None if rng is None else rng.choice(EDGES) % 2**64)

    def expanding(self, zeros: int, *, body: bytes | None = None) -> bytes:
        """The body and so many zeros, compressed to 4 bytes for 128 KiB of them."""
        return self._framed(zstd_stored(self._body({}) if body is None else body, zeros), _ZSTD)

    def _bomb(self, rng: Random, body: bytes) -> bytes:
        """Some kilobytes that expand to up to 1 GiB."""
        size = 1 << rng.randrange(20, 31)
        if rng.random() < 0.2:
            return self._framed(zlib.compress(body + bytes(min(size, 1 << 26)), 1), _ZLIB)
        return self.expanding(size, body=body)


_COUNTS = (("size", 2), ("degree", DEGREE), ("primes", 1))
_FIELDS = ("parms_id", "ntt", "size", "degree", "primes", "scale", "correction", "words", "array_mode", "array_size",
           "generator", "seed_mode", "seed_size")  # fmt: skip


def _value(rng: Random, name: str) -> int | float:
    if name == "scale":
        return rng.choice(_SCALES)
    if name in ("size", "primes", "degree") and rng.random() < 0.5:
        return rng.choice((0, 1, 2, 3, 5, 16, 17, 64, 2048, 4096, 8192, 1 << 17))
    return rng.choice(EDGES) % 2**64


def zstd_stored(content: bytes, zeros: int = 0) -> bytes:
    """A Zstandard frame (RFC 8878) of raw blocks, then of blocks that are one byte repeated, 4 bytes for 128 KiB."""
    largest = 1 << 17
    blocks = [
        (0, content[at : at + largest], len(content[at : at + largest])) for at in range(0, len(content), largest)
    ]
    blocks += [(1, b"\0", min(largest, zeros - at)) for at in range(0, zeros, largest)]
    frame = bytearray(b"\x28\xb5\x2f\xfd\x00\x38")  # no size, a window of 128 KiB
    for number, (kind, data, size) in enumerate(blocks):
        last = number == len(blocks) - 1
        frame += (last | kind << 1 | size << 3).to_bytes(3, "little") + data
    return bytes(frame)
