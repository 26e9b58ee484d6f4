"""Every call's question: may this principal do this here, has it quota left, and who will know of the answer?"""

from __future__ import annotations

import contextlib
import math
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from he_server.access.authentication import Authentication
from he_server.access.principals import LOOPBACK, Principal
from he_server.access.resources import Collection, Decision, Resource, refusal

if TYPE_CHECKING:
    from he_server.access.policy import Policies
    from he_server.access.quotas import Quotas
    from he_server.access.tokens import Tokens
    from he_server.audit.log import AuditLog

#: What changes nothing may begin while its line is written to the audit log, and waits for that before it answers.
_READS = frozenset(
    {"Search", "ReadSegment", "DescribeSegment", "ReadManifest", "DescribeCollection", "ListCollections"}
)


def _always() -> bool:
    return True


def _for_ever() -> float:
    return math.inf


@dataclass(slots=True, eq=False)
class Caller:
    """Who makes one call. The default: this process itself, which never cancels."""

    principal: Principal = LOOPBACK
    request_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    is_active: Callable[[], bool] = _always  #: False once the caller has gone or the deadline has passed
    remaining_s: Callable[[], float] = _for_ever  #: until the deadline
    unwritten: list[Future[int]] = field(default_factory=list)  #: lines of the audit log that are on their way

    def settle(self) -> None:
        """Waits until all that was decided for the call is in the audit log, on the disk; nothing may be answered
        before. Raises ReadOnlyError, Unavailable."""
        while self.unwritten:
            self.unwritten.pop().result()


class Access:
    """Of one server. Thread-safe; `policies` and the quotas' table may be replaced at any time.

    policies: None: every principal may do everything in its own tenant. quotas, audit: None: nothing is bounded,
    nothing is logged. tokens: None: none are taken.
    """

    def __init__(
        self,
        *,
        tokens: Tokens | None = None,
        policies: Policies | None = None,
        quotas: Quotas | None = None,
        audit: AuditLog | None = None,
    ) -> None:
        self.authentication = Authentication(tokens)
        self.tokens, self.policies, self.quotas, self.audit = tokens, policies, quotas, audit

    def require(
        self,
        caller: Caller,
        action: str,
        resource: Resource,
        *,
        part: str = "",
        request_bytes: int = 0,
        queries: int = 0,
    ) -> None:
        """Decides, and writes the decision down. Raises PermissionDenied, or NotFound where the caller must not learn
        that there is such a collection; ReadOnlyError, Unavailable where it cannot be written down."""
        decision = self._decision(caller, action, resource, part)
        self._log(caller, action, resource, decision, part=part, request_bytes=request_bytes, queries=queries)
        if not decision.allowed:
            raise refusal(caller.principal, action, resource, decision)

    def missing(self, caller: Caller, action: str, name: str) -> None:
        """Writes down that a collection was asked for that is not there. Raises as `require` where it cannot be."""
        self._log(caller, action, Collection(caller.principal.tenant, name, ""), Decision(False))

    def allows(self, caller: Caller, action: str, resource: Resource) -> bool:
        """For what is shown of a list; it is not written down."""
        return self._decision(caller, action, resource, "").allowed

    def _decision(self, caller: Caller, action: str, resource: Resource, part: str) -> Decision:
        if self.policies is not None:
            return self.policies.decide(caller.principal, action, resource, part)
        mine = getattr(resource, "tenant", getattr(resource, "name", "")) == caller.principal.tenant
        return Decision(mine, hidden=not mine)

    def _log(
        self,
        caller: Caller,
        action: str,
        resource: Resource,
        decision: Decision,
        *,
        part: str = "",
        request_bytes: int = 0,
        queries: int = 0,
    ) -> None:
        if self.audit is None:
            return
        from he_server.audit.entry import AuditEntry

        entry = AuditEntry(
            principal=caller.principal,
            action=action,
            resource=str(resource),
            part=part,
            allowed=decision.allowed,
            policies=decision.policies,
            request_bytes=request_bytes,
            queries=queries,
            request_id=caller.request_id,
        )
        caller.unwritten.append(self.audit.submit(entry))
        if action not in _READS or not decision.allowed:
            caller.settle()

    # ---- quotas ----------------------------------------------------------------------------------------
    def count_call(self, principal: Principal) -> None:
        """Raises QuotaExceeded."""
        if self.quotas is not None:
            self.quotas.call(principal)

    def count_queries(self, caller: Caller, collection_id: bytes, queries: int) -> None:
        """Raises QuotaExceeded, Unavailable."""
        if self.quotas is not None:
            self.quotas.queries(caller.principal, collection_id, queries)

    def count_bytes(self, caller: Caller, count_bytes: int) -> None:
        """Raises QuotaExceeded, Unavailable."""
        if self.quotas is not None:
            self.quotas.transfer(caller.principal, count_bytes)

    def count_collection(self, caller: Caller, own: int, in_tenant: int) -> None:
        """One more than there are. Raises QuotaExceeded."""
        if self.quotas is not None:
            self.quotas.create(caller.principal, own, in_tenant)

    # ----------------------------------------------------------------------------------------------------
    def close(self) -> None:
        with contextlib.ExitStack() as stack:
            for one in (self.quotas, self.audit):
                if one is not None:
                    stack.callback(one.close)
