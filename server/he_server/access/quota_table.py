"""quotas.toml: what each principal and each tenant may use.

    [principal]                  # each principal that has no table of its own
    calls_per_s = 50
    queries_per_day = 10_000
    [tenant]                     # each tenant, all its principals together
    bytes_per_day = 1_000_000_000_000
    [principals."acme/ada"]      # these fields instead of those of [principal]
    queries_per_day = 100_000
    [tenants.acme]
    collections = 100

What no table bounds is not bounded.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from he_engine.errors import InvalidInput
from he_server.access.principals import Principal


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """None: no bound. Days are those of UTC. Raises InvalidInput."""

    calls_per_s: float | None = None  #: on average; up to one second's worth at once, and at least one
    queries_per_day: int | None = None
    queries_per_collection: int | None = None  #: ever
    bytes_per_day: int | None = None  #: of queries, answers and segments, both ways
    collections: int | None = None  #: at any time

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            kinds = (int, float) if one.name == "calls_per_s" else (int,)
            if value is None or (isinstance(value, kinds) and not isinstance(value, bool) and _in_range(value)):
                continue
            raise InvalidInput(f"quotas: {one.name}: got {value!r}, expected a number from 0 to 2^63 - 1")
        if self.calls_per_s == 0:
            raise InvalidInput("quotas: calls_per_s: got 0, expected more; a policy denies calls altogether")


def _in_range(value: float) -> bool:
    return 0 <= value < 2**63  # neither infinities nor NaN are


@dataclass(frozen=True, slots=True)
class Share:
    """One party whose use is counted, and what it may use."""

    party: str  #: "principal acme/ada" or "tenant acme"
    quota: Quota


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaTable:
    principal: Quota = Quota()
    tenant: Quota = Quota()
    principals: Mapping[str, Quota] = field(default_factory=dict)  #: by "tenant/name"
    tenants: Mapping[str, Quota] = field(default_factory=dict)

    def shares(self, principal: Principal) -> tuple[Share, Share]:
        """The two that each use of a principal counts for: its own, and its tenant's."""
        return (
            Share(f"principal {principal}", self.principals.get(str(principal), self.principal)),
            Share(f"tenant {principal.tenant}", self.tenants.get(principal.tenant, self.tenant)),
        )


def read_quotas(path: Path) -> QuotaTable:
    """Raises InvalidInput: it cannot be read, is no TOML, or a key or value is wrong."""
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InvalidInput(f"quotas: {path.name} cannot be read as TOML: {reason}") from None
    _known(found, {one.name for one in fields(QuotaTable)}, "quotas")
    principal = _quota(found.get("principal", {}), Quota(), "principal")
    tenant = _quota(found.get("tenant", {}), Quota(), "tenant")
    return QuotaTable(
        principal=principal,
        tenant=tenant,
        principals=_quotas(found.get("principals", {}), principal, "principals"),
        tenants=_quotas(found.get("tenants", {}), tenant, "tenants"),
    )


def _quotas(tables: Any, default: Quota, where: str) -> dict[str, Quota]:
    if not isinstance(tables, dict):
        raise InvalidInput(f"quotas: {where}: got {tables!r}, expected tables")
    for name in tables:
        if ("/" in name) is not (where == "principals"):
            raise InvalidInput(f'quotas: {where}: got {name!r}, expected tenants.NAME or principals."TENANT/NAME"')
    return {name: _quota(table, default, f"{where}.{name}") for name, table in tables.items()}


def _quota(table: Any, default: Quota, where: str) -> Quota:
    if not isinstance(table, dict):
        raise InvalidInput(f"quotas: {where}: got {table!r}, expected a table")
    _known(table, {one.name for one in fields(Quota)}, f"quotas: {where}")
    return replace(default, **table)


def _known(table: Mapping[str, Any], names: set[str], where: str) -> None:
    for name in table:
        if name not in names:
            raise InvalidInput(f"{where}: got the key {name!r}, expected one of {', '.join(sorted(names))}")
