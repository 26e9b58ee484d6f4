"""Access as a server is configured, and what of it is read again on SIGHUP."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from he_server.access.access import Access
from he_server.access.authentication import open_tokens
from he_server.access.operators import record
from he_server.access.policy import Policies
from he_server.access.policy_files import READY_ROLES
from he_server.access.quota_table import read_quotas
from he_server.access.quotas import Quotas
from he_server.audit.log import open_audit_log
from he_server.config import ServerConfig
from he_server.storage.kek import open_kek


def open_access(config: ServerConfig) -> Access:
    """As a server is configured, whose data folder this process has open. With TLS, the ready roles are the policies
    where no folder is given; without, everybody on this machine may do everything.

    Raises InvalidInput, NotFound, MissingExtra, Unavailable, WrongKeyError, TamperedDataError, DamagedDataError.
    """
    tokens = None
    if config.token_issuer:
        tokens = open_tokens(
            jwks=config.token_jwks,
            issuer=config.token_issuer,
            ca=config.token_ca,
            audience=config.token_audience,
            tenant_claim=config.token_tenant_claim,
            groups_claim=config.token_groups_claim,
        )
    policies = load_policies(config)
    record(config)
    with contextlib.ExitStack() as opened:
        quotas = audit = None
        if config.quotas:
            quotas = Quotas(read_quotas(Path(config.quotas)), config.data / "quotas.sqlite")
            opened.callback(quotas.close)
        if not config.no_audit:
            kek, previous = (open_kek(spec) if spec else None for spec in (config.kek, config.previous_kek))
            audit = open_audit_log(config.data, kek, previous)
        opened.pop_all()
    return Access(tokens=tokens, policies=policies, quotas=quotas, audit=audit)


def load_policies(config: ServerConfig) -> Policies | None:
    """Raises InvalidInput, NotFound, MissingExtra."""
    if not (config.policies or config.tls_cert):
        return None
    return Policies.load(Path(config.policies) if config.policies else READY_ROLES)


def reloaders(access: Access, config: ServerConfig) -> dict[str, Callable[[], None]]:
    """What SIGHUP reads again, by name: each takes what its files say now, or raises a HesearchError and changes
    nothing."""

    def policies() -> None:
        access.policies = load_policies(config)

    def quotas() -> None:
        assert access.quotas is not None
        access.quotas.table = read_quotas(Path(config.quotas))

    sources: dict[str, Callable[[], None]] = {}
    if access.tokens is not None:
        sources["tokens"] = access.tokens.reload
    if access.policies is not None:
        sources["policies"] = policies
    if access.quotas is not None:
        sources["quotas"] = quotas
    return sources
