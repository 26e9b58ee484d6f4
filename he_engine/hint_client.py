"""The client half of the hint engine: setup, query, verify, recover. Holds the collection key.

    b[k,i] = a[i]·s[k] + e[k,i] + v[k,i]       index block k, plane i; s[k] new for every block
    c[i]   = a'[i]·t   + e'[i]  + y[i]         query; t new for every query
    T[k]   = fold(Σ_i b[k,i]·c[i])             the server's answer (he_engine.hint_server)
    H[k]   = Σ_i b[k,i]·a'[i]                  the hint, computed here when the rows are encrypted, and rounded
    T[k] − fold(s[k]·z + t·H[k])               the scores, with z = Σ_i a[i]·(c[i] − a'[i]·t)

docs/scheme.md derives all of it. Two properties hold by construction: a pair (a, s) never encrypts twice,
because s comes from a seed that depends on fresh randomness *and* on the rows, inside `RowCipher.encrypt`, and no
argument takes a seed; a query secret encrypts once, because `query` derives, uses and seals it in one call.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from he_engine import verify
from he_engine.encoding import Encoding
from he_engine.engine import Advance, Buffer, EncryptedRows, nothing
from he_engine.errors import (
    DimensionError,
    ResidueError,
    SecretReuseError,
    TamperedAnswerError,
    TamperedDataError,
)
from he_engine.hint_rows import RowCipher
from he_engine.kernels._answer import AnswerKernel
from he_engine.kernels._client import ClientKernel
from he_engine.keys import RootKey, Secret, length_prefixed
from he_engine.params import TILE, Parameters
from he_engine.public import expand_public, keystream
from he_engine.secret_cache import SecretCache

U32 = NDArray[np.uint32]

SEED_BYTES = 32
STATE_BYTES = 32  #: the collection's public nonce, from which a and a' expand
EPOCH = 0
PIECE_BLOCKS = 64  #: blocks whose secrets are made at a time
CACHE_BYTES = 256 << 20  #: block secrets kept between queries
SUM_BYTES = 256 << 20  #: sums of fingerprints kept between queries, 3·(query bytes) for each set of segments


def generate_state() -> bytes:
    """A new collection's public nonce."""
    return os.urandom(STATE_BYTES)


class HintQuery(Secret):
    """One encrypted query: `ciphertext` may leave the process, the rest (t, z, the norm) is secret."""

    __slots__ = ("_mask", "_owner", "_secret", "ciphertext")

    def __init__(self, owner: HintClient, ciphertext: U32, secret: U32, mask: U32) -> None:
        self._owner = owner
        self.ciphertext: memoryview = ciphertext.data.cast("B").toreadonly()
        self._secret: U32 | None = secret
        self._mask: U32 | None = mask

    def _open(self, owner: HintClient) -> tuple[U32, U32]:
        """(t, z), each (P, N) in the NTT domain, for the client that encrypted it."""
        if owner is not self._owner:
            raise SecretReuseError("query: it was encrypted for another collection")
        if self._secret is None or self._mask is None:
            raise SecretReuseError("this query is closed: encrypt a new one")
        return self._secret, self._mask

    def close(self) -> None:
        """Overwrite t and z. Not while another thread is in `recover` with this query: its scores would be wrong."""
        for array in (self._secret, self._mask):
            if array is not None:
                array.fill(0)
        self._secret = self._mask = None


class HintSegment(Secret):
    """What recovery needs of one segment: H, the seed of its block secrets, and the fingerprint."""

    __slots__ = ("blocks", "fingerprint", "hint", "released", "rows", "seed")

    def __init__(self, rows: int, blocks: int, hint: U32, seed: bytes, fingerprint: verify.Fingerprint) -> None:
        self.rows = rows
        self.blocks = blocks
        self.hint = hint  # (K, P, N)
        self.seed = seed
        self.fingerprint = fingerprint
        self.released = False


class HintClient(Secret):
    """ClientEngine of one collection. Thread-safe for queries; `threads` serve encryption."""

    def __init__(
        self,
        parameters: Parameters,
        key: RootKey,
        collection_id: bytes,
        engine_state: bytes,
        *,
        threads: int | None = None,
        target: str = "",
    ) -> None:
        if len(engine_state) != STATE_BYTES:
            raise DimensionError(f"engine state: got {len(engine_state)} bytes, expected {STATE_BYTES}")
        ring = parameters.ring
        shape = (ring.log_n, ring.primes)
        layout = (parameters.stride, parameters.planes)
        self.parameters = parameters
        self._key = key
        self._id = length_prefixed(collection_id, engine_state, EPOCH)  # what every derivation is bound to
        self._kernel = ClientKernel(*shape, ring.roots, *layout, target)
        self._checker = AnswerKernel(*shape, *layout, target)
        self._encoding = Encoding(parameters)
        self._index_public = expand_public(engine_state, EPOCH, "index", ring, parameters.planes)
        self._query_public = expand_public(engine_state, EPOCH, "query", ring, parameters.planes)
        self._cipher = RowCipher(
            parameters, key, self._id, self._kernel, self._index_public, self._query_public,
            threads or os.cpu_count() or 1,
        )  # fmt: skip
        self._counter = itertools.count()
        self._secrets = SecretCache(CACHE_BYTES)
        self._sums = SecretCache(SUM_BYTES)  # by name: the salts of the segments that are summed
        self._sum_names: dict[bytes, bytes] = {}  # salt of a segment → the one sum that it is in
        self._sums_lock = threading.Lock()
        self._closed = False
        self._stack = (len(ring.primes), ring.degree // TILE, parameters.planes, TILE)
        self._poly = (len(ring.primes), ring.degree)

    @property
    def rows_per_block(self) -> int:
        """B."""
        return self.parameters.rows_per_block

    @property
    def index_bytes_per_block(self) -> int:
        """4·P·I·N."""
        return 4 * self.parameters.block_words

    @property
    def query_bytes(self) -> int:
        """4·P·I·N."""
        return 4 * self.parameters.block_words

    @property
    def answer_bytes_per_block(self) -> int:
        """4·P·B."""
        return 4 * len(self.parameters.ring.primes) * self.parameters.rows_per_block

    # ---- setup -----------------------------------------------------------------------------------------
    def setup(self, rows: NDArray[np.float64], advance: Advance = nothing) -> EncryptedRows:
        """Encrypt rows (n, d), each of norm ≤ 1. Raises DimensionError or NormError; then nothing is used up."""
        return self._cipher.encrypt(self._encoding.rows(rows), len(rows), advance)

    def setup_encoded(self, rows: NDArray[Any], advance: Advance = nothing) -> EncryptedRows:
        """Encrypt rows (n, d) int32 as `decrypt` gave them, under a fresh seed. Raises DimensionError or NormError."""
        return self._cipher.encrypt(self._encoding.encoded(rows), len(rows), advance)

    def decrypt(self, segment: HintSegment, index: Buffer) -> NDArray[np.int32]:
        """The rows of a segment, (n, d), exactly as they were encoded; about as fast as encrypting them.

        index: the bytes of its index part, whose digest the caller has checked. Raises TamperedDataError for a wrong
        length or residue, and for rows that no admitted vectors have: the index belongs to another seed or key.
        """
        blocks = self._blocks(segment, index)
        return self._encoding.decoded(self._cipher.decrypt(segment.seed, blocks), segment.rows)

    def fingerprint_again(self, segment: HintSegment, index: Buffer) -> bytes:
        """A new fingerprint of a stored segment, with a fresh salt and so fresh weights: what answers are verified with
        from then on. It decrypts nothing and encrypts nothing.

        index: the bytes of its index part, whose digest the caller has checked: whatever they are, this fingerprint
        vouches for them, and a ciphertext that was altered is one, too. Raises TamperedDataError for a wrong length or
        a residue that is not canonical.
        """
        return self._cipher.fingerprint_again(segment.seed, segment.fingerprint.salt, self._blocks(segment, index))

    def _blocks(self, segment: HintSegment, index: Buffer) -> U32:
        """(K, stack). Raises TamperedDataError."""
        expected = segment.blocks * self.index_bytes_per_block
        if memoryview(index).nbytes != expected:
            raise TamperedDataError(f"index: got {memoryview(index).nbytes} bytes, expected {expected}")
        blocks = np.frombuffer(index, "<u4").reshape(segment.blocks, *self._stack)
        if self._checker.first_noncanonical(blocks.reshape(segment.blocks, self._poly[0], -1)) >= 0:
            raise TamperedDataError("index: a residue is not canonical")
        return blocks

    def _block_secrets(self, seed: bytes, first: int, count: int) -> U32:
        return self._cipher.block_secrets(seed, first, count)

    def load(self, encrypted: EncryptedRows) -> HintSegment:
        """Unpacks the hint: in memory it takes 4·P·N bytes a block.

        Raises ResidueError where the hint or the fingerprint has the wrong length or a value that is not canonical.
        """
        if len(encrypted.seed) != SEED_BYTES:
            raise ResidueError(f"seed: got {len(encrypted.seed)} bytes, expected {SEED_BYTES}")
        if encrypted.blocks != self.parameters.blocks_for(encrypted.rows):
            raise ResidueError(f"rows: {encrypted.rows} do not fill {encrypted.blocks} blocks")
        expected = encrypted.blocks * self.parameters.hint_bytes_per_block
        if len(encrypted.hint) != expected:
            raise ResidueError(f"hint: got {len(encrypted.hint)} bytes, expected {expected}")
        packed = np.frombuffer(encrypted.hint, np.uint8).reshape(encrypted.blocks, self.parameters.hint_bytes_per_block)
        try:
            hint = self._kernel.unpack_hint(packed, self.parameters.hint_drop_bits)
        except ValueError as error:
            raise ResidueError(f"hint: {error}") from None
        fingerprint = verify.Fingerprint.parse(encrypted.fingerprint, self._stack)
        self._require_canonical(fingerprint.sums.reshape(verify.CHECKS, self._poly[0], -1), "fingerprint")
        return HintSegment(encrypted.rows, encrypted.blocks, hint, encrypted.seed, fingerprint)

    def _require_canonical(self, words: U32, field: str) -> None:
        position = self._checker.first_noncanonical(words)
        if position >= 0:
            raise ResidueError(f"{field}: residue {position} is not canonical (expected < q_j)")

    def row_squares(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """See ClientEngine."""
        return self._encoding.row_squares(rows)

    def query_square(self, vector: NDArray[np.float64]) -> float:
        """See ClientEngine."""
        return self._encoding.query_square(vector)

    # ---- query -----------------------------------------------------------------------------------------
    def query(self, vector: NDArray[np.float64]) -> HintQuery:
        """Encrypt vector (d,), of norm ≤ 1. Raises DimensionError or NormError."""
        encoded = self._encoding.query(vector)
        content = encoded.data.cast("B")
        seed = self._key.hedged_seed("query", self._id, self.parameters.digest, content, next(self._counter))
        planes, n = self.parameters.planes, self.parameters.ring.degree
        stream = keystream(self._key.derive("query secret", self._id, seed), n // 4 + planes * n)
        ciphertext = np.empty(self._stack, np.uint32)
        secret, mask = np.empty(self._poly, np.uint32), np.empty(self._poly, np.uint32)
        self._kernel.encrypt_query(encoded, stream, self._index_public, self._query_public, ciphertext, secret, mask)
        stream.fill(0)
        encoded.fill(0)
        return HintQuery(self, ciphertext, secret, mask)

    # ---- verify and recover ----------------------------------------------------------------------------
    def recover(
        self, query: HintQuery, segments: Sequence[HintSegment], answers: Sequence[Buffer]
    ) -> list[NDArray[np.float64]]:
        """Inner products, one (rows,) array a segment.

        Every residue of every answer is checked first: TamperedAnswerError, also for a wrong length or a residue
        ≥ q_j, and nothing is decrypted. Raises SecretReuseError for a closed query, one of another collection, or a
        segment named twice (equal weights would cancel).
        """
        query._open(self)
        if len({s.fingerprint.salt for s in segments}) != len(segments):
            raise SecretReuseError("segments: one is named twice")
        parsed = [self._parse(s, a) for s, a in zip(segments, answers, strict=True)]
        try:
            self._verify(query, segments, parsed)
            return [self._recover_one(query, s, a) for s, a in zip(segments, parsed, strict=True)]
        finally:  # what another thread has overwritten meanwhile may have been put back here
            for segment in segments:
                if segment.released or self._closed:
                    self.release(segment)

    def _parse(self, segment: HintSegment, answer: Buffer) -> U32:
        expected = segment.blocks * self.answer_bytes_per_block
        if len(answer) != expected:
            raise TamperedAnswerError(f"answer: got {len(answer)} bytes, expected {expected}")
        words = np.frombuffer(answer, "<u4")
        parsed = words.reshape(segment.blocks, self._poly[0], self.parameters.rows_per_block)
        position = self._checker.first_noncanonical(parsed)
        if position >= 0:
            raise TamperedAnswerError(f"answer: residue {position} is not canonical (expected < q_j)")
        return parsed

    def _verify(self, query: HintQuery, segments: Sequence[HintSegment], answers: Sequence[U32]) -> None:
        if not segments:
            return
        ciphertext = np.frombuffer(query.ciphertext, np.uint32).reshape(1, self._poly[0], -1)
        sums = [
            verify.right_side(self._key, self._kernel, self.parameters, self._id, s.seed, s.fingerprint, a)
            for s, a in zip(segments, answers, strict=True)
        ]
        with self._total_fingerprint(segments) as total:
            left = verify.left_side(self._kernel, total, ciphertext)
        if verify.equal(left, verify.add(sums, self.parameters)):
            return
        wrong = [
            number
            for number, (s, right) in enumerate(zip(segments, sums, strict=True))
            if not verify.equal(verify.left_side(self._kernel, s.fingerprint.sums, ciphertext), right)
        ]
        raise TamperedAnswerError(
            f"answer: {len(wrong)} of {len(segments)} segments fail verification (numbers {wrong[:8]}); "
            "the server did not compute what was asked, or its index is damaged; nothing was decrypted"
        )

    @contextmanager
    def _total_fingerprint(self, segments: Sequence[HintSegment]) -> Iterator[U32]:
        """Σ F of these segments, kept for the next query until one of them is released or summed with others.

        Not overwritten before the `with` block ends, whatever other threads release meanwhile.
        """
        if len(segments) == 1:
            yield segments[0].fingerprint.sums
            return
        salts = [s.fingerprint.salt for s in segments]
        name = b"".join(salts)
        terms = [s.fingerprint.sums for s in segments]
        with ExitStack() as borrowed:
            with self._sums_lock:
                for salt in salts:
                    self._forget_sum(salt, unless=name)
                    self._sum_names[salt] = name
                total = borrowed.enter_context(self._sums.borrow(name, 0, partial(verify.add, terms, self.parameters)))
            yield total

    def _forget_sum(self, salt: bytes, *, unless: bytes = b"") -> None:
        """Overwrite the sum that this segment is in, if that is another."""
        if (name := self._sum_names.get(salt, unless)) != unless:
            self._sums.forget(name)
            del self._sum_names[salt]

    def _recover_one(self, query: HintQuery, segment: HintSegment, answer: U32) -> NDArray[np.float64]:
        secret, mask = query._open(self)
        scores = []
        for first, count in self._pieces(segment):
            part = slice(first, first + count)
            with self._secrets.borrow(
                segment.seed, first, partial(self._block_secrets, segment.seed, first, count)
            ) as s:
                decoded = self._kernel.recover(answer[part], segment.hint[part], s, secret, mask)
            scores.append(self._encoding.scores(decoded))
        return np.concatenate(scores)[: segment.rows]

    @staticmethod
    def _pieces(segment: HintSegment) -> Iterator[tuple[int, int]]:
        """(first block, blocks): bounds what is in memory where secrets are not cached."""
        for first in range(0, segment.blocks, PIECE_BLOCKS):
            yield first, min(PIECE_BLOCKS, segment.blocks - first)

    def release(self, segment: HintSegment) -> None:
        """Overwrite its cached block secrets, and the sum that its fingerprint is in."""
        segment.released = True
        self._secrets.forget(segment.seed)
        with self._sums_lock:
            self._forget_sum(segment.fingerprint.salt)

    def close(self) -> None:
        """Overwrite cached block secrets and sums of fingerprints, or let those in use be overwritten after it."""
        self._closed = True
        self._secrets.close()
        with self._sums_lock:
            self._sums.close()
            self._sum_names.clear()
