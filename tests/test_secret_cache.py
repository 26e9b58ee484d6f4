"""Cached secrets: bounded, shared, and overwritten once evicted and unused."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from he_engine.secret_cache import SecretCache


def _make(value: int) -> np.ndarray:
    return np.full(25, value, np.uint32)  # 100 bytes


def test_the_least_recently_used_goes_and_is_overwritten() -> None:
    cache, made = SecretCache(250), {}
    for value in (1, 2, 1, 3):
        with cache.borrow(value, lambda v=value: made.setdefault(v, _make(v))) as array:
            assert (array == value).all()
    assert (made[1] == 1).all() and not made[2].any() and (made[3] == 3).all()
    with cache.borrow(1, lambda: _make(9)) as array:
        assert array is made[1]


def test_what_is_in_use_survives_eviction_and_closing() -> None:
    cache, mine = SecretCache(150), _make(1)
    with cache.borrow(1, lambda: mine):
        with cache.borrow(2, lambda: _make(2)):
            assert (mine == 1).all()
        cache.close()
        assert (mine == 1).all()
    assert not mine.any()


def test_what_does_not_fit_is_used_once() -> None:
    cache, mine = SecretCache(50), _make(1)
    with cache.borrow(1, lambda: mine) as array:
        assert (array == 1).all()
    assert not mine.any()


def test_threads_never_see_wiped_secrets() -> None:
    """Constant eviction from all sides: a reader that saw zeros would have decrypted with them."""
    cache = SecretCache(250)

    def read(seed: int) -> bool:
        rng = np.random.default_rng(seed)
        for value in rng.integers(1, 6, 2000).tolist():
            with cache.borrow(value, lambda v=value: _make(v)) as array:
                if not (array == value).all():
                    return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, range(4)))
