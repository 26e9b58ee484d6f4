"""Bytes that a server holds, receives or loses → maps of features for an attacker, one row of each for a text.

Every map takes what there is of a text where the layout (docs/format.md, docs/scheme.md 3.1) puts it: for `hint`, the d
coefficients of its row or query, modulo each prime, after the inverse transform, which needs no key; for `tenseal`,
the row's or query's place in each of the d ciphertexts.

    coefficients   the residues by the Chinese remainder theorem, centred and over q: in [−1/2, 1/2)
    residues       those of each prime, likewise
    phases         cosine and sine of 2π·coefficient/q: what a sum modulo q does not break
    difference     coefficients, less those at the same place in the first block, or in the first query, modulo q: what
                   shows when a secret is used twice
    words          the words as they lie in the file, not transformed, at the row's places
    bytes          how often each of the 256 bytes is in those words
    floats         their first 4·d bytes as float32, sign and logarithm
    opened         `tenseal`: the first polynomial decoded as if there were no mask
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.inversion.matching import View
from he_engine import tenseal_format as seal
from he_engine.kernels._client import ClientKernel
from he_engine.params import Parameters

F64 = NDArray[np.float64]
U32 = NDArray[np.uint32]
U64 = NDArray[np.uint64]

AS_VECTORS = frozenset({"coefficients", "difference", "floats", "opened"})  #: could be vectors as they are


# ---- the hint engine -----------------------------------------------------------------------------------------
def hint_rows(index: bytes, p: Parameters, rows: int) -> View:
    """An index, or as many bytes that hide one."""
    words = np.frombuffer(index, "<u4").reshape(-1, len(p.ring.primes), p.ring.degree // 16, p.planes, 16)
    raw = _planes(words, p)
    residues = _inverse(raw, p)
    blocks = len(words)

    def of_rows(stack: U32) -> U32:  # (K, I, P, N) → (K·B, d, P)
        cut = stack.reshape(blocks, p.planes, len(p.ring.primes), p.rows_per_block, p.stride)
        return cut.transpose(0, 3, 1, 4, 2).reshape(-1, p.planes * p.stride, len(p.ring.primes))[:rows, : p.dim]

    coefficients, words_of_rows = of_rows(residues), of_rows(raw)
    first = np.resize(coefficients[: p.rows_per_block], coefficients.shape)  # at the same place in block 0
    return _view(coefficients, words_of_rows, first, p)


def hint_query(ciphertext: bytes, p: Parameters) -> tuple[U32, U32]:
    """(coefficients, words) of one query, (d, P) each: y[i·g + u] is at X^(−u) = −X^(N − u) of plane i."""
    primes, n = len(p.ring.primes), p.ring.degree
    raw = _planes(np.frombuffer(ciphertext, "<u4").reshape(1, primes, n // 16, p.planes, 16), p)[0]
    polys = _inverse(raw, p)
    turned = polys[:, :, [0, *range(n - 1, n - p.stride, -1)]]  # (I, P, g)
    turned[:, :, 1:] = np.where(turned[:, :, 1:] > 0, _primes(p)[:, None] - turned[:, :, 1:], 0)
    coefficients, words = (s.transpose(0, 2, 1).reshape(-1, primes) for s in (turned, raw[:, :, : p.stride]))
    return coefficients[: p.dim].copy(), words[: p.dim].copy()


def hint_queries(queries: list[tuple[U32, U32]], p: Parameters) -> View:
    """Of what `hint_query` made of each."""
    coefficients, words = (np.stack(one) for one in zip(*queries, strict=True))
    return _view(coefficients, words, np.broadcast_to(coefficients[:1], coefficients.shape), p)


def hint_answers(answers: list[bytes], p: Parameters, rows: int) -> View:
    """What the server computed for each row: its scores for these queries, encrypted."""
    primes = len(p.ring.primes)
    stack = np.stack([np.frombuffer(one, "<u4").reshape(-1, primes, p.rows_per_block) for one in answers])
    residues = stack.transpose(1, 3, 0, 2).reshape(-1, len(answers), primes)[:rows]
    lifted = _lift(residues, p)
    return View({"coefficients": lifted, "phases": _phases(lifted), "bytes": _histogram(residues)})


def hint_hints(hint: bytes, p: Parameters, rows: int) -> View:
    """The stored hint, N values of L bits a block: the g of a row, as bits and as numbers."""
    blocks = p.blocks_for(rows)
    bits = np.unpackbits(np.frombuffer(hint, np.uint8).reshape(blocks, -1), axis=1, bitorder="little")
    bits = bits.reshape(blocks * p.rows_per_block, p.stride, -1)[:rows]
    numbers = bits @ np.exp2(-1.0 - np.arange(bits.shape[2])[::-1]) - 0.5
    return View(
        {"coefficients": numbers, "bits": bits.reshape(rows, -1).astype(np.float64), "phases": _phases(numbers)}
    )


def _planes(words: U32, p: Parameters) -> U32:
    """(K, P, N/16, I, 16) → (K, I, P, N), every word below its prime."""
    planes = words.transpose(0, 3, 1, 2, 4).reshape(len(words), p.planes, len(p.ring.primes), p.ring.degree)
    return planes % _primes(p)[:, None]


def _inverse(planes: U32, p: Parameters) -> U32:
    polys = np.ascontiguousarray(planes).reshape(-1, len(p.ring.primes), p.ring.degree)
    ClientKernel(p.ring.log_n, p.ring.primes, p.ring.roots, p.stride, p.planes).inverse(polys)
    return polys.reshape(planes.shape)


def _primes(p: Parameters) -> U32:
    return np.array(p.ring.primes, np.uint32)


def _view(coefficients: U32, words: U32, first: U32, p: Parameters) -> View:
    """All maps of coefficients and words (n, d, P); first: where a secret would be used again."""
    lifted = _lift(coefficients, p)
    wide = _primes(p).astype(np.int64)
    less = ((coefficients.astype(np.int64) - first) % wide).astype(np.uint32)
    return View(
        {
            "coefficients": lifted,
            "residues": _centred(coefficients, p).reshape(len(lifted), -1),
            "phases": _phases(lifted),
            "difference": _lift(less, p),
            "words": _centred(words, p).reshape(len(lifted), -1),
            "bytes": _histogram(words),
            "floats": _floats(words[:, :, 0]),
        },
        AS_VECTORS,
    )


def _lift(residues: U32, p: Parameters) -> F64:
    """(…, P) → (…): the number modulo q, centred, over q. Products of a residue and an inverse are under 2^62."""
    value = residues[..., 0].astype(np.int64)
    if len(p.ring.primes) == 2:
        q0, q1 = p.ring.primes
        value = value + q0 * ((residues[..., 1].astype(np.int64) - value) % q1 * pow(q0, -1, q1) % q1)
    q = p.ring.modulus
    return np.where(value > q // 2, value - q, value) / float(q)


def _centred(residues: U32, p: Parameters) -> F64:
    share: F64 = residues / _primes(p).astype(np.float64)
    return share - (share > 0.5)


def _phases(share: F64) -> F64:
    return np.concatenate([np.cos(2 * np.pi * share), np.sin(2 * np.pi * share)], axis=1)


def _histogram(words: NDArray[Any]) -> F64:
    raw = np.ascontiguousarray(words).reshape(len(words), -1).view(np.uint8)
    rows = np.arange(len(raw))[:, None] * 256
    counts: F64 = np.bincount((rows + raw).reshape(-1), minlength=256 * len(raw)).reshape(-1, 256).astype(np.float64)
    return counts


def _floats(words: NDArray[Any]) -> F64:
    with np.errstate(invalid="ignore"):  # bytes that are no number
        values = np.ascontiguousarray(words).view("<f4").astype(np.float64)
    values[~np.isfinite(values)] = 0
    return np.asarray(np.sign(values) * np.log1p(np.abs(values)), np.float64)


# ---- TenSEAL -------------------------------------------------------------------------------------------------
def tenseal_rows(index: bytes, dim: int, rows: int) -> View:
    """Row r of a block is in slot r mod N/2 of each of the d ciphertexts, one half in the real parts."""
    words = np.frombuffer(index, "<u8").reshape(-1, dim, seal.CIPHERTEXT_BYTES // 8)[:, :, : seal.DEGREE]
    placed = words.transpose(0, 2, 1).reshape(-1, dim)[:rows]
    share = _seal_share(placed)
    return View(
        {
            "opened": _opened(index, dim)[:rows],
            "words": share,
            "phases": _phases(share),
            "bytes": _histogram(placed),
            "floats": _floats(np.ascontiguousarray(placed).view("<u4")[:, :dim]),
        },
        AS_VECTORS,
    )


def _opened(index: bytes, dim: int) -> F64:
    """(blocks·N, d): each c0 + c1·s for the secret key s = 0, which is c0, decoded."""
    from he_engine.tenseal_ring import SealRing, sealapi

    ring = SealRing()
    decryptor = sealapi().Decryptor(ring.context, ring.load_secret_key(bytes(seal.POLY_BYTES)))
    encoder, plaintext = sealapi().CKKSEncoder(ring.context), sealapi().Plaintext()
    view = memoryview(index)
    columns = []
    for start in range(0, len(index), seal.CIPHERTEXT_BYTES):
        decryptor.decrypt(ring.load_fresh(view[start : start + seal.CIPHERTEXT_BYTES], seal.INDEX_SCALE), plaintext)
        slots = np.array(encoder.decode_complex(plaintext), np.complex128)
        columns.append(np.concatenate([slots.real, slots.imag]))
    return np.stack(columns).reshape(-1, dim, seal.ROWS_PER_BLOCK).transpose(0, 2, 1).reshape(-1, dim)


def tenseal_query(ciphertext: bytes, dim: int) -> tuple[U64, U64, U64]:
    """(constants, first words, seeds): one number in every slot is a constant polynomial, which is the mean of the
    words modulo q, whatever the transform."""
    words = np.frombuffer(ciphertext, "<u8").reshape(dim, -1)
    c0 = words[:, : seal.DEGREE]
    high, low = (c0 >> np.uint64(32)).sum(1), (c0 & np.uint64(0xFFFFFFFF)).sum(1)  # each below 2^44
    sums = [(int(h) << 32) + int(w) for h, w in zip(high, low, strict=True)]
    constants = [one * pow(seal.DEGREE, -1, seal.MODULUS) % seal.MODULUS for one in sums]
    return np.array(constants, np.uint64), c0[:, 0].copy(), words[:, seal.DEGREE :].copy()


def tenseal_queries(queries: list[tuple[U64, U64, U64]]) -> View:
    """Of what `tenseal_query` made of each."""
    constants, firsts, seeds = (np.stack(one) for one in zip(*queries, strict=True))
    opened = _seal_share(constants)
    return View(
        {
            "opened": opened,
            "phases": _phases(opened),
            "words": _seal_share(firsts),
            "bytes": _histogram(seeds),
            "floats": _floats(firsts.view("<u4")[:, : firsts.shape[1]]),
        },
        AS_VECTORS,
    )


def tenseal_answers(answers: list[bytes], rows: int) -> View:
    """What the server computed: the words of the first polynomial in each row's place."""
    stack = np.stack([np.frombuffer(one, "<u8").reshape(-1, 3, seal.DEGREE)[:, 0] for one in answers])
    placed = stack.transpose(1, 2, 0).reshape(-1, len(answers))[:rows]
    share = _seal_share(placed)
    return View({"words": share, "phases": _phases(share), "bytes": _histogram(placed)})


def _seal_share(words: U64) -> F64:
    signed = words.astype(np.int64)
    return np.where(signed > seal.MODULUS // 2, signed - seal.MODULUS, signed) / float(seal.MODULUS)


# ---- a stolen disk -------------------------------------------------------------------------------------------
PAGE_BYTES, CHUNK_BYTES, TAG_BYTES = 4096, 1 << 20, 16


def sealed_stream(file: bytes) -> bytes:
    """The ciphertext of a sealed segment file in the place of what it hides: no header page, no tags."""
    starts = range(PAGE_BYTES, len(file), CHUNK_BYTES + TAG_BYTES)
    return b"".join(file[start : min(start + CHUNK_BYTES, len(file) - TAG_BYTES)] for start in starts)
