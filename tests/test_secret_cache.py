"""Cached secrets: bounded, shared, and overwritten once forgotten and unused."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from he_engine.secret_cache import SecretCache


def _make(value: int) -> np.ndarray:
    return np.full(25, value, np.uint32)  # 100 bytes


def test_what_fits_stays_and_the_rest_is_used_once() -> None:
    cache, made = SecretCache(250), {}
    for value in (1, 2, 3, 1):
        with cache.borrow(b"s", value, lambda v=value: made.setdefault(v, _make(v))) as array:
            assert (array == value).all()
    assert (made[1] == 1).all() and (made[2] == 2).all() and not made[3].any()
    cache.forget(b"s")
    assert not made[1].any() and not made[2].any()
    with cache.borrow(b"s", 4, lambda: made.setdefault(4, _make(4))):
        pass
    assert (made[4] == 4).all(), "forgetting made room"


def test_what_is_in_use_survives_forgetting() -> None:
    cache, mine = SecretCache(150), _make(1)
    with cache.borrow(b"s", 1, lambda: mine):
        cache.close()
        assert (mine == 1).all()
    assert not mine.any()


def test_threads_never_see_wiped_secrets() -> None:
    """Constant forgetting from all sides: a reader that saw zeros would have decrypted with them."""
    cache = SecretCache(250)

    def read(seed: int) -> bool:
        rng = np.random.default_rng(seed)
        for value in rng.integers(1, 6, 2000).tolist():
            with cache.borrow(bytes([value]), 0, lambda v=value: _make(v)) as array:
                if not (array == value).all():
                    return False
            if value == 3:
                cache.forget(bytes([int(rng.integers(1, 6))]))
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, range(4)))
