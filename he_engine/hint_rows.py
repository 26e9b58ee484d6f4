"""Encoded rows ↔ the blocks of one segment of the hint engine. Holds the collection key.

    b[k,i] = a[i]·s[k] + e[k,i] + v[k,i]         s and e derive from the segment's seed

So whoever has the key and the seed computes b° = a·s + e again, the encryption of zero rows that was used, and
b − b° = v exactly. b° never leaves `decrypt`, and nothing is encrypted under an old seed: `encrypt` draws a new one,
and no argument takes a seed (docs/scheme.md, 5.6).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from he_engine import verify
from he_engine.engine import Advance, EncryptedRows
from he_engine.errors import TamperedDataError
from he_engine.kernels._client import ClientKernel
from he_engine.keys import RootKey, Secret
from he_engine.params import TILE, Parameters
from he_engine.public import keystream

I32 = NDArray[np.int32]
U32 = NDArray[np.uint32]

GROUP_BLOCKS = 4  #: blocks a kernel call encrypts: bounds the keystream in memory


class RowCipher(Secret):
    """Of one collection. Thread-safe. `collection_id`: what every derivation is bound to."""

    def __init__(
        self,
        parameters: Parameters,
        key: RootKey,
        collection_id: bytes,
        kernel: ClientKernel,
        index_public: U32,
        query_public: U32,
        threads: int,
    ) -> None:
        ring = parameters.ring
        self._p = parameters
        self._key = key
        self._id = collection_id
        self._kernel = kernel
        self._public = index_public, query_public
        self._threads = threads
        self._stack = (len(ring.primes), ring.degree // TILE, parameters.planes, TILE)
        self._poly = (len(ring.primes), ring.degree)

    def encrypt(self, encoded: I32, rows: int, advance: Advance) -> EncryptedRows:
        """encoded (K, B, I·g), overwritten with zeros; the first `rows` rows of it count for `advance`."""
        p, blocks = self._p, len(encoded)
        seed = self._key.hedged_seed("rows", self._id, p.digest, encoded.data.cast("B"))
        salt = self._key.hedged_seed("fingerprint", self._id, seed)
        index = np.empty((blocks, *self._stack), np.uint32)
        hint = np.empty((blocks, p.hint_bytes_per_block), np.uint8)
        noise_key = self._noise_key(seed)

        def encrypt(groups: Sequence[slice]) -> U32:
            total = np.zeros((verify.CHECKS, *self._stack), np.uint32)
            for group in groups:
                count = group.stop - group.start
                full = np.empty((count, *self._poly), np.uint32)
                noise = self._noise(noise_key, group.start, count)
                secrets = self.block_secrets(seed, group.start, count)
                weights = verify.weights(self._key, self._kernel, p, self._id, seed, salt, group.start, count)
                self._kernel.encrypt_blocks(
                    encoded[group], noise, secrets, *self._public, weights, index[group], full, total
                )
                hint[group] = self._kernel.pack_hint(full, p.hint_drop_bits)
                noise.fill(0)
                secrets.fill(0)
                advance(min(rows, group.stop * p.rows_per_block) - group.start * p.rows_per_block)
            return total

        with ThreadPoolExecutor(self._threads) as pool:
            parts = list(pool.map(encrypt, self._shares(blocks)))
        encoded.fill(0)
        total = verify.add(parts, p)
        return EncryptedRows(
            rows=rows,
            blocks=blocks,
            index=index.data.cast("B"),
            hint=hint.data.cast("B"),
            seed=seed,
            fingerprint=salt + total.tobytes(),
        )

    def decrypt(self, seed: bytes, blocks: U32) -> I32:
        """blocks (K, P, N/16, I, 16), canonical → (K, B, I·g), exactly what `encrypt` was given.

        Raises TamperedDataError where a coordinate is outside (−q_0/2, q_0/2), or has other residues modulo q_1:
        the blocks are of another seed, or were altered. (|v| < 2^29.6 for every layout, by the scales.)
        """
        p = self._p
        out = np.empty((len(blocks), p.rows_per_block, p.planes * p.stride), np.int32)
        noise_key = self._noise_key(seed)

        def decrypt(groups: Sequence[slice]) -> None:
            for group in groups:
                zeros = self._zeros(seed, noise_key, group.start, group.stop - group.start)
                coefficients = self._coefficients(blocks[group], zeros)
                planes = coefficients.reshape(-1, p.planes, p.rows_per_block, p.stride)
                out[group] = planes.transpose(0, 2, 1, 3).reshape(out[group].shape)
                zeros.fill(0)
                coefficients.fill(0)

        with ThreadPoolExecutor(self._threads) as pool:
            list(pool.map(decrypt, self._shares(len(blocks))))
        return out

    def fingerprint_again(self, seed: bytes, before: bytes, blocks: U32) -> bytes:
        """salt ‖ F of blocks (K, stack) that are stored, with weights of a fresh salt; nothing is decrypted.

        `before`: the salt of the fingerprint that this one replaces. It enters the new one, so that they differ
        whatever the generator does.
        """
        p = self._p
        salt = self._key.hedged_seed("fingerprint again", self._id, seed, before)

        def weigh(groups: Sequence[slice]) -> U32:
            total = np.zeros((verify.CHECKS, *self._stack), np.uint32)
            for group in groups:
                count = group.stop - group.start
                weights = verify.weights(self._key, self._kernel, p, self._id, seed, salt, group.start, count)
                total = verify.add([total, verify.sums_of(blocks[group], weights, p)], p)
            return total

        with ThreadPoolExecutor(self._threads) as pool:
            parts = list(pool.map(weigh, self._shares(len(blocks))))
        return salt + verify.add(parts, p).tobytes()

    def _zeros(self, seed: bytes, noise_key: bytes, first: int, count: int) -> U32:
        """b° = a·s + e of blocks first … first + count − 1. Secret: it must not leave the process."""
        p = self._p
        noise, secrets = self._noise(noise_key, first, count), self.block_secrets(seed, first, count)
        rows = np.zeros((count, p.rows_per_block, p.planes * p.stride), np.int32)
        no_weights = np.empty((count, 0, self._poly[0], p.rows_per_block), np.uint32)
        hint, no_sums = np.empty((count, *self._poly), np.uint32), np.empty((0, *self._stack), np.uint32)
        out = np.empty((count, *self._stack), np.uint32)
        self._kernel.encrypt_blocks(rows, noise, secrets, *self._public, no_weights, out, hint, no_sums)
        for array in (noise, secrets, hint):
            array.fill(0)
        return out

    def _coefficients(self, blocks: U32, zeros: U32) -> I32:
        """b − b° as signed integers, (count·I, N). Raises TamperedDataError as `decrypt`."""
        primes = np.array(self._p.ring.primes, np.uint32)
        difference = blocks - zeros  # modulo 2^32: where it wrapped, adding q brings it back below q
        np.minimum(difference, difference + primes[:, None, None, None], out=difference)
        polys = np.moveaxis(difference, 3, 1).copy().reshape(-1, *self._poly)
        difference.fill(0)
        self._kernel.inverse(polys)
        first = polys[:, 0]
        lifted: I32 = (first - np.where(first > primes[0] // 2, primes[0], np.uint32(0))).view(np.int32)
        for p in range(1, len(primes)):
            residues = lifted.view(np.uint32) + np.where(lifted < 0, primes[p], np.uint32(0))
            if not np.array_equal(residues, polys[:, p]):
                raise TamperedDataError("index: it does not decrypt to rows of this collection")
        polys.fill(0)
        return lifted

    def _shares(self, blocks: int) -> Iterator[list[slice]]:
        """The groups of blocks that each thread takes."""
        groups = [slice(i, min(i + GROUP_BLOCKS, blocks)) for i in range(0, blocks, GROUP_BLOCKS)]
        return (groups[t :: self._threads] for t in range(self._threads))

    def _noise_key(self, seed: bytes) -> bytes:
        return self._key.derive("row noise", self._id, seed)

    def _noise(self, key: bytes, first: int, count: int) -> NDArray[np.uint64]:
        planes, n = self._p.planes, self._p.ring.degree
        return keystream(key, count * planes * n, first * planes * n).reshape(count, planes, n)

    def block_secrets(self, seed: bytes, first: int, count: int) -> U32:
        """s[k] of blocks first … first + count − 1: (count, P, N)."""
        words = self._p.ring.degree // 4
        stream = keystream(self._key.derive("block secrets", self._id, seed), count * words, first * words)
        secrets = self._kernel.expand_secrets(stream.reshape(count, words))
        stream.fill(0)
        return secrets
