"""SEAL's objects to and from residues. TenSEAL's binding of SEAL saves and loads by path only: hence files in memory.

SEAL's format (version 4): a 16-byte header (magic, header size, version, compression, total size), then the body:

    ciphertext   parms_id (32) ‖ NTT form? (1) ‖ size ‖ N ‖ primes ‖ scale ‖ correction factor (8 each) ‖ array
                 [‖ generator: header ‖ type (1) ‖ seed (64), when the array holds c0 alone]
    plaintext    parms_id (32) ‖ coefficients (8) ‖ scale (8) ‖ array            (a secret key is one, too)
    array        header ‖ words (8) ‖ uint64 residues

Holds no key; both sides use it.
"""

from __future__ import annotations

import functools
import os
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from he_engine.engine import Buffer
from he_engine.errors import MissingExtra, ParameterError
from he_engine.tenseal_format import (
    ANSWER_BYTES,
    CIPHERTEXT_BYTES,
    DEGREE,
    INSTALL,
    MODULUS,
    POLY_BYTES,
    SEED_BYTES,
    check_residues,
    words,
)

_HEADER_BYTES = 16
_BLAKE2XB = b"\x01"  #: type of SEAL's default generator


@functools.cache
def sealapi() -> Any:
    """The module tenseal.sealapi. Raises MissingExtra where TenSEAL is not installed."""
    try:
        import tenseal.sealapi
    except ImportError as error:
        raise MissingExtra(INSTALL) from error
    return tenseal.sealapi


@contextmanager
def memory_file() -> Iterator[tuple[int, str]]:
    """(descriptor, path) of a new empty file that goes away afterwards.

    In memory on Linux. Elsewhere a temporary file that only this user can read: there, and only there, the secret
    key passes through the temporary folder whenever a client is made.
    """
    if hasattr(os, "memfd_create") and Path("/proc/self/fd").exists():
        descriptor = os.memfd_create("seal")
        try:
            yield descriptor, f"/proc/self/fd/{descriptor}"
        finally:
            os.close(descriptor)
    else:
        with tempfile.NamedTemporaryFile(prefix="seal-") as file:
            yield file.fileno(), file.name


def _raw_blocks(frame: bytes) -> bytes | None:
    """The content of a Zstandard frame (RFC 8878) all of whose blocks are stored raw; None for any other."""
    flags = frame[4]
    if flags & 0b111:  # a checksum or a dictionary
        return None
    single_segment, field = flags >> 5 & 1, flags >> 6
    position = 5 + (1 - single_segment) + (1 << field if field else single_segment)
    parts = []
    last = 0
    while not last:
        header = int.from_bytes(frame[position : position + 3], "little")
        last, kind, size = header & 1, header >> 1 & 3, header >> 3
        if kind:
            return None
        parts.append(frame[position + 3 : position + 3 + size])
        position += 3 + size
    return b"".join(parts)


class SealRing:
    """SEAL's context of one CKKS ring, and its objects to and from residues.

    The defaults are the engine's ring. Other rings without a security level are for tests.
    """

    def __init__(self, degree: int = DEGREE, primes: tuple[int, ...] = (MODULUS,), *, insecure: bool = False) -> None:
        api = sealapi()
        parameters = api.EncryptionParameters(api.SCHEME_TYPE.CKKS)
        parameters.set_poly_modulus_degree(degree)
        parameters.set_coeff_modulus([api.Modulus(q) for q in primes])
        level = api.SEC_LEVEL_TYPE.NONE if insecure else api.SEC_LEVEL_TYPE.TC192
        self.context = api.SEALContext(parameters, True, level)
        if not self.context.parameters_set():
            raise ParameterError(f"SEAL refuses the ring: {self.context.parameters_error_name()}")
        self.degree = degree
        self._primes = len(self.context.first_context_data().parms().coeff_modulus())
        with memory_file() as (descriptor, path):
            api.Modulus(primes[0]).save(path)
            self._magic = os.pread(descriptor, 5, 0)  # of this SEAL: magic, header size, version

    def _framed(self, body: bytes) -> bytes:
        """The body behind a header that says: not compressed."""
        return self._magic + bytes(3) + struct.pack("<Q", _HEADER_BYTES + len(body)) + body

    def _load(self, target: Any, body: bytes) -> Any:
        with memory_file() as (_, path):
            Path(path).write_bytes(self._framed(body))
            target.load(self.context, path)
        return target

    def _array(self, residues: Buffer) -> bytes:
        return self._framed(struct.pack("<Q", len(residues) // 8) + residues)

    def load_ciphertext(self, residues: Buffer, size: int, scale: float, seed: bytes = b"") -> Any:
        """A ciphertext of `size` polynomials in NTT form, first level, from all its residues or c0 and a seed."""
        level = self.context.first_parms_id()
        prefix = struct.pack("<4Q?QQQdQ", *level, True, size, self.degree, self._primes, scale, 1)
        generator = self._framed(_BLAKE2XB + seed) if seed else b""
        return self._load(sealapi().Ciphertext(), prefix + self._array(residues) + generator)

    def load_secret_key(self, residues: Buffer) -> Any:
        """A secret key from its residues in NTT form, modulo every prime of the ring."""
        prefix = struct.pack("<4QQd", *self.context.key_parms_id(), len(residues) // 8, 1.0)
        return self._load(sealapi().SecretKey(), prefix + self._array(residues))

    @staticmethod
    def saved(source: Any) -> bytes | None:
        """The body of the file in which SEAL saves an object; None where it is really compressed.

        SEAL saves with Zstandard, which stores what it cannot shrink, such as residues, unchanged.
        """
        with memory_file() as (descriptor, path):
            source.save(path)
            file = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
        return file[_HEADER_BYTES:] if file[5] == 0 else _raw_blocks(file[_HEADER_BYTES:])

    def residues(self, source: Any, count: int) -> bytes:
        """The `count` residues of a plaintext or of a ciphertext without seed, little-endian uint64."""
        body = self.saved(source)
        if body is not None:
            return body[-8 * count :]
        array = source.dyn_array()
        return np.array([array[i] for i in range(count)], "<u8").tobytes()

    # ---- the engine's forms --------------------------------------------------------------------------------
    def load_fresh(self, ciphertext: Buffer, scale: float) -> Any:
        """c0 ‖ seed → SEAL. Raises ResidueError for a wrong length or residue."""
        check_residues(words(ciphertext, CIPHERTEXT_BYTES, "ciphertext")[:DEGREE], "ciphertext")
        view = memoryview(ciphertext).cast("B")
        return self.load_ciphertext(view[:POLY_BYTES], 2, scale, bytes(view[POLY_BYTES:]))

    def save_fresh(self, serializable: Any) -> bytes | None:
        """SEAL's seeded ciphertext → c0 ‖ seed; None as in `saved`: encrypt again."""
        body = self.saved(serializable)
        if body is None:
            return None
        tail = SEED_BYTES + 1 + _HEADER_BYTES
        return body[-tail - POLY_BYTES : -tail] + body[-SEED_BYTES:]

    def load_answer(self, answer: Buffer, scale: float) -> Any:
        """c0 ‖ c1 ‖ c2 → SEAL. Raises ResidueError for a wrong length or residue."""
        check_residues(words(answer, ANSWER_BYTES, "answer"), "answer")
        return self.load_ciphertext(answer, 3, scale)

    def save_answer(self, ciphertext: Any) -> bytes:
        return self.residues(ciphertext, ANSWER_BYTES // 8)
