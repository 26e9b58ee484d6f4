"""Quotas: each bound by itself, a principal's beside its tenant's, and counts that no restart or crash lowers."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from he_engine.errors import HesearchError, InvalidInput, QuotaExceeded, Unavailable
from he_server.access import quotas as quotas_module
from he_server.access.principals import Principal
from he_server.access.quota_counts import EVER, Counts, Use
from he_server.access.quota_table import Quota, QuotaTable, read_quotas
from he_server.access.quotas import Quotas

ADA = Principal("ada", "acme", frozenset(), "token")
BOB = Principal("bob", "acme", frozenset(), "certificate")
EVE = Principal("ada", "other", frozenset(), "token")
UNBOUNDED = Quota()
NOTES, MAIL = b"\x01" * 16, b"\x02" * 16
NOON = 20_000 * 86400 + 43200.0


class Clock:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def _table(principal: Quota, tenant: Quota = UNBOUNDED) -> QuotaTable:
    return QuotaTable(principal=principal, tenant=tenant)


# ---- calls a second --------------------------------------------------------------------------------------
def test_calls_come_at_the_rate_and_a_second_of_them_at_once(tmp_path: Path, clock: Clock) -> None:
    quotas = Quotas(_table(Quota(calls_per_s=5)), tmp_path / "q", clock)
    for _ in range(5):
        quotas.call(ADA)
    with pytest.raises(QuotaExceeded, match=r"calls_per_s of principal acme/ada: 5 are allowed; free again in 0.2 s"):
        quotas.call(ADA)
    quotas.call(BOB)
    clock.now += 0.21
    quotas.call(ADA)
    with pytest.raises(QuotaExceeded):
        quotas.call(ADA)
    clock.now += 3600
    assert sum(_admitted(quotas, ADA) for _ in range(20)) == 5
    clock.now -= 7200
    assert not _admitted(quotas, ADA), "a clock that is set back gives nothing"
    clock.now += 1
    assert _admitted(quotas, ADA), "and costs nothing"
    quotas.close()


def _admitted(quotas: Quotas, principal: Principal) -> bool:
    try:
        quotas.call(principal)
    except QuotaExceeded:
        return False
    return True


def test_a_tenant_shares_its_rate_and_refusals_cost_nothing(tmp_path: Path, clock: Clock) -> None:
    quotas = Quotas(_table(Quota(calls_per_s=2), Quota(calls_per_s=3)), tmp_path / "q", clock)
    assert [_admitted(quotas, ADA) for _ in range(4)] == [True, True, False, False]
    assert [_admitted(quotas, BOB) for _ in range(2)] == [True, False], "one of three was left, not less"
    with pytest.raises(QuotaExceeded, match="of tenant acme"):
        quotas.call(BOB)
    assert _admitted(quotas, EVE), "another tenant's principal of the same name"
    quotas.close()


def test_a_slow_rate_admits_one(tmp_path: Path, clock: Clock) -> None:
    quotas = Quotas(_table(Quota(calls_per_s=0.1)), tmp_path / "q", clock)
    assert [_admitted(quotas, ADA) for _ in range(2)] == [True, False]
    clock.now += 10.5
    assert _admitted(quotas, ADA)
    quotas.close()


def test_buckets_are_bounded(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quotas_module, "_BUCKETS", 10)
    quotas = Quotas(_table(Quota(calls_per_s=1)), tmp_path / "q", clock)
    for i in range(100):
        quotas.call(Principal(f"p{i}", "acme", frozenset(), "token"))
    assert len(quotas._buckets) == 10
    assert not _admitted(quotas, Principal("p99", "acme", frozenset(), "token"))
    quotas.close()


# ---- days and collections --------------------------------------------------------------------------------
def test_queries_of_a_day(tmp_path: Path, clock: Clock) -> None:
    quotas = Quotas(_table(Quota(queries_per_day=10), Quota(queries_per_day=15)), tmp_path / "q", clock)
    quotas.queries(ADA, NOTES, 4)
    quotas.queries(ADA, MAIL, 5)
    with pytest.raises(QuotaExceeded) as error:
        quotas.queries(ADA, NOTES, 2)
    assert str(error.value) == (
        "queries_per_day of principal acme/ada: 10 are allowed, 9 are used, got 2 more; free again at 2024-10-05T00:00Z"
    )
    quotas.queries(ADA, NOTES, 1)
    with pytest.raises(QuotaExceeded, match="of tenant acme: 15 are allowed, 10 are used"):
        quotas.queries(BOB, NOTES, 6)
    quotas.queries(BOB, NOTES, 5)
    with pytest.raises(QuotaExceeded, match="more than the whole quota"):
        quotas.queries(EVE, NOTES, 11)
    quotas.queries(EVE, NOTES, 10)
    clock.now += 43200
    quotas.queries(ADA, NOTES, 10)
    quotas.close()


def test_queries_of_a_collection_never_free(tmp_path: Path, clock: Clock) -> None:
    quotas = Quotas(_table(Quota(queries_per_collection=10)), tmp_path / "q", clock)
    quotas.queries(ADA, NOTES, 10)
    clock.now += 400 * 86400
    with pytest.raises(QuotaExceeded, match=r"queries_per_collection of principal acme/ada: .* it never frees"):
        quotas.queries(ADA, NOTES, 1)
    quotas.queries(ADA, MAIL, 10)
    quotas.queries(BOB, NOTES, 10)
    quotas.close()


def test_bytes_of_a_day_and_collections(tmp_path: Path, clock: Clock) -> None:
    quotas = Quotas(_table(Quota(bytes_per_day=1000, collections=2), Quota(collections=3)), tmp_path / "q", clock)
    quotas.transfer(ADA, 1000)
    with pytest.raises(QuotaExceeded, match="bytes_per_day of principal acme/ada"):
        quotas.transfer(ADA, 1)
    quotas.create(ADA, 1, 2)
    with pytest.raises(QuotaExceeded, match="collections of principal acme/ada: 2 are allowed, and there are 2"):
        quotas.create(ADA, 2, 2)
    with pytest.raises(QuotaExceeded, match="collections of tenant acme: 3 are allowed, and there are 3"):
        quotas.create(ADA, 1, 3)
    quotas.close()


def test_what_no_table_bounds_is_not_bounded(tmp_path: Path, clock: Clock) -> None:
    quotas = Quotas(QuotaTable(), tmp_path / "q", clock)
    for _ in range(100):
        quotas.call(ADA)
        quotas.queries(ADA, NOTES, 10**12)
        quotas.transfer(ADA, 10**15)
        quotas.create(ADA, 10**6, 10**6)
    quotas.close()


def test_threads_take_no_more_than_there_is(tmp_path: Path, clock: Clock) -> None:
    quotas = Quotas(_table(Quota(queries_per_day=500)), tmp_path / "q", clock)

    def one(_: int) -> bool:
        try:
            quotas.queries(ADA, NOTES, 1)
        except QuotaExceeded:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(one, range(800))) == 500
    quotas.close()


# ---- restarts and crashes ----------------------------------------------------------------------------------
def test_a_stop_keeps_counts_and_a_crash_at_most_adds_a_hundredth(tmp_path: Path, clock: Clock) -> None:
    table = _table(Quota(queries_per_day=1000, queries_per_collection=1000))
    quotas = Quotas(table, tmp_path / "q", clock)
    for _ in range(333):
        quotas.queries(ADA, NOTES, 1)
    for name in ("q", "q-wal"):  # as the disk is when the power fails
        shutil.copy(tmp_path / name, tmp_path / f"crashed{name[1:]}")
    quotas.close()
    stopped = Quotas(table, tmp_path / "q", clock)
    stopped.queries(ADA, NOTES, 667)
    with pytest.raises(QuotaExceeded):
        stopped.queries(ADA, NOTES, 1)
    stopped.close()
    crashed = Counts(tmp_path / "crashed")
    assert 333 <= crashed.used("queries_per_day of principal acme/ada", 20_000) <= 343
    assert 333 <= crashed.used(f"queries_per_collection of principal acme/ada {NOTES.hex()}", EVER) <= 343
    crashed.add([Use("k", EVER, 995, 1000)])
    assert crashed._database.one("SELECT mark FROM counts WHERE key = 'k'") == (1000,), "no mark is over its limit"
    crashed.close()


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    limit=st.integers(1, 5000),
    steps=st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 400), st.booleans()), max_size=40),
)
def test_no_crash_lowers_a_count(tmp_path_factory: pytest.TempPathFactory, limit: int, steps: list[tuple]) -> None:  # type: ignore[type-arg]
    """A crash is an object that is dropped without `close`; two counts in memory, so that they go out and come back."""
    path = tmp_path_factory.mktemp("counts") / "q"
    counts, used = Counts(path, kept=2), dict.fromkeys("abc", 0)
    crashes = 0
    for key, amount, crash in steps:
        if counts.used(key, EVER) + amount <= limit:
            counts.add([Use(key, EVER, amount, limit)])
            used[key] += amount
        assert len(counts._counts) <= 3
        if crash:
            counts._database.close()
            counts, crashes = Counts(path, kept=2), crashes + 1
        for one in used:
            assert used[one] <= counts.used(one, EVER) <= min(limit, used[one] + crashes * (limit // 100))
    counts.close()
    counts = Counts(path)
    assert all(counts.used(one, EVER) >= used[one] for one in used)
    counts.close()


def test_writes_are_few(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    quotas = Quotas(_table(Quota(queries_per_day=100_000)), tmp_path / "q", clock)
    written = []
    write = Counts._write
    monkeypatch.setattr(Counts, "_write", lambda self, rows: (written.extend(rows), write(self, rows))[1])
    for _ in range(10_000):
        quotas.queries(ADA, NOTES, 1)
    assert len(written) == 10
    quotas.close()


def test_yesterdays_counts_leave_the_file(tmp_path: Path, clock: Clock) -> None:
    quotas = Quotas(_table(Quota(queries_per_day=10, queries_per_collection=100)), tmp_path / "q", clock)
    quotas.queries(ADA, NOTES, 10)
    quotas.queries(BOB, NOTES, 10)
    clock.now += 86400
    quotas.queries(BOB, NOTES, 1)
    rows = {row[0] for row in quotas._counts._database.all("SELECT key FROM counts")}
    assert rows == {
        "queries_per_day of principal acme/bob",
        f"queries_per_collection of principal acme/bob {NOTES.hex()}",
        f"queries_per_collection of principal acme/ada {NOTES.hex()}",
    }
    quotas.close()


def test_a_file_that_cannot_be_used_refuses(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "damaged").write_bytes(b"x" * 5000)
    with pytest.raises(Unavailable, match="quotas: the file of what was used could not be opened") as error:
        Quotas(QuotaTable(), tmp_path / "damaged", clock)
    assert str(tmp_path) not in str(error.value)
    quotas = Quotas(_table(Quota(queries_per_day=10)), tmp_path / "q", clock)
    quotas._counts._database.failed = True  # as after a sync that failed
    with pytest.raises(Unavailable, match="could not be written"):
        quotas.queries(ADA, NOTES, 1)
    assert quotas._counts.used("queries_per_day of principal acme/ada", 20_000) == 0
    quotas._counts._database.failed = False
    quotas.queries(ADA, NOTES, 10)
    quotas.close()


# ---- quotas.toml -------------------------------------------------------------------------------------------
def _read(tmp_path: Path, text: str) -> QuotaTable:
    (tmp_path / "quotas.toml").write_text(text, encoding="utf-8")
    return read_quotas(tmp_path / "quotas.toml")


def test_tables_and_who_has_one_of_their_own(tmp_path: Path) -> None:
    table = _read(
        tmp_path,
        """
        [principal]
        calls_per_s = 0.5
        queries_per_day = 10
        [tenant]
        bytes_per_day = 1_000
        [principals."acme/ada"]
        queries_per_day = 20
        [tenants.other]
        collections = 3
        """,
    )
    ada, acme = table.shares(ADA)
    assert ada.quota == Quota(calls_per_s=0.5, queries_per_day=20)
    assert (ada.party, acme.party) == ("principal acme/ada", "tenant acme")
    assert acme.quota == Quota(bytes_per_day=1000)
    eve, other = table.shares(EVE)
    assert eve.quota == Quota(calls_per_s=0.5, queries_per_day=10)
    assert other.quota == Quota(bytes_per_day=1000, collections=3)
    assert _read(tmp_path, "") == QuotaTable()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[principal]\nqueries_per_dya = 3", "quotas: principal: got the key 'queries_per_dya', expected one of "),
        ("[principle]", "quotas: got the key 'principle'"),
        ("[principal]\nqueries_per_day = -1", "queries_per_day: got -1"),
        ("[principal]\nqueries_per_day = 1.5", "queries_per_day: got 1.5"),
        ("[tenant]\nbytes_per_day = true", "bytes_per_day: got True"),
        ("[tenant]\ncalls_per_s = inf", "calls_per_s: got inf"),
        ("[tenant]\ncalls_per_s = nan", "calls_per_s: got nan"),
        ("[tenant]\ncalls_per_s = 0", "calls_per_s: got 0"),
        ("[tenant]\nbytes_per_day = 9223372036854775808", "bytes_per_day: got 9223372036854775808"),
        ("[principals.ada]\n", "principals: got 'ada', expected"),
        ('[tenants."a/b"]\n', "tenants: got 'a/b', expected"),
        ("principals = 3", "principals: got 3, expected tables"),
        ("tenant = 3", "tenant: got 3, expected a table"),
        ("[", "quotas.toml cannot be read as TOML"),
    ],
)
def test_bad_tables_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InvalidInput) as error:
        _read(tmp_path, text)
    assert message in str(error.value) and str(tmp_path) not in str(error.value)


def test_a_missing_file_is_refused_without_its_path(tmp_path: Path) -> None:
    with pytest.raises(HesearchError) as error:
        read_quotas(tmp_path / "none.toml")
    assert str(tmp_path) not in str(error.value)
