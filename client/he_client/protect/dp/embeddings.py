"""Embeddings, each released with noise of its own: clip, then the Gaussian mechanism.

**Unit and model.** Neighbouring data differ in all rows of one person, replaced by any others; how many rows there are
is public. Each row appears in the output by itself, so nobody else's data hide it: the guarantee is that of local
differential privacy, and two rows clipped to norm C may be 2·C apart. Calibrating to C would be a different, weaker
promise (a row against a row of zeros).
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from he_client.protect.dp.budget import PrivacyBudget
from he_client.protect.dp.checks import F64, require_count, require_rows, require_size
from he_engine.errors import DimensionError, InvalidInput

F32 = NDArray[np.float32]
ROUNDING = 1 + 2.0**-30  #: a norm that is clipped in float64 is at most so many times the bound (d < 2^20)


def release_embeddings(
    vectors: ArrayLike,
    *,
    epsilon: float,
    delta: float,
    budget: PrivacyBudget,
    clip_norm: float = 1.0,
    rows_per_person: int = 1,
    projection: F64 | None = None,
    what: str = "embeddings",
) -> F32:
    """The rows, clipped to norm C and with noise of standard deviation σ in every coordinate, float32.

        σ = 2·C·√m / μ(ε, δ)

    vectors: (n, d), of norm below 2^100. clip_norm: C > 0; longer rows are scaled down to it. rows_per_person: m, the
    most rows of one person among these; the (ε, δ) is that person's. projection: (d, k), public (public_projection);
    rows are multiplied by it before they are clipped, and so must queries be. what: for the budget's file.

    Paid for before noise is drawn; the same rows again cost again. Raises DimensionError, NormError, InvalidInput,
    MissingExtra before anything is spent; BudgetExceeded and others as PrivacyBudget.spend.
    """
    rows = require_rows(vectors, "vectors")
    require_count("rows_per_person", rows_per_person)
    require_size("clip_norm", clip_norm)
    sensitivity = 2 * clip_norm * math.sqrt(rows_per_person) * ROUNDING
    require_size("2·clip_norm·√rows_per_person", sensitivity)
    if projection is not None:
        matrix = require_rows(projection, "projection")
        if len(matrix) != rows.shape[1]:
            raise DimensionError(f"projection: got shape {matrix.shape}, expected {rows.shape[1]} rows")
        with np.errstate(over="ignore", invalid="ignore"):
            rows = require_rows(rows @ matrix, "vectors, projected")
    rows = rows * _clipping(rows, clip_norm)[:, None]
    mechanism = budget.spend(epsilon=epsilon, delta=delta, what=what)
    return mechanism.release(rows, sensitivity=sensitivity).astype(np.float32)


def public_projection(dim: int, to: int, *, label: str = "hesearch") -> F64:
    """(dim, to) random signs over √to: inner products stay, on average, and spread by 1/√to [Achlioptas 2003].

    It depends on its arguments alone (SHAKE-256), never on data, so it costs no privacy and protects nothing: whoever
    makes it again gets the same. Raises InvalidInput unless 1 ≤ to ≤ dim ≤ 65536.
    """
    require_count("dim", dim)
    require_count("to", to)
    if not to <= dim <= 1 << 16:
        raise InvalidInput(f"projection: got {dim} to {to} dimensions, expected 1 ≤ to ≤ dim ≤ 65536")
    count = dim * to
    stream = hashlib.shake_256(f"hesearch projection {dim} {to} {label}".encode()).digest(-(-count // 8))
    signs = np.unpackbits(np.frombuffer(stream, np.uint8), count=count).reshape(dim, to)
    return np.asarray((1.0 - 2.0 * signs) / math.sqrt(to))


def _clipping(rows: F64, bound: float) -> F64:
    """(n,): what each row is multiplied with. Above 2^-200: a subnormal factor, rounded, could exceed the bound."""
    norms = np.linalg.norm(rows, axis=1)
    return np.asarray(np.minimum(1.0, bound / np.maximum(norms, bound)))
