"""Who may do what: Cedar policies, checked against the schema when they are loaded. What none permits is denied."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from he_server.access.policy_files import SourcePolicy, cedarpy, read_groups, read_policies, read_schema
from he_server.access.principals import Principal
from he_server.access.resources import Collection, Decision, Resource, Server, Tenant

KEPT_DECISIONS = 16384  #: bounds memory, to some 15 MB

COLLECTION_ACTIONS = (
    "CreateCollection", "DropCollection", "DescribeCollection", "WriteSegment", "ReadSegment", "DescribeSegment",
    "ReadManifest", "CommitManifest", "Search",
)  # fmt: skip
TENANT_ACTIONS = ("ListCollections",)
SERVER_ACTIONS = ("Backup", "Fsck", "RotateKeys", "ReadMetrics", "ReadAudit")
PARTS = ("index", "hint", "rows", "fingerprint", "payloads")  #: of a segment, of which ReadSegment reads one


class Policies:
    """Immutable and thread-safe; new policies are a new object, put into the old one's place."""

    def __init__(self, policies: tuple[SourcePolicy, ...], groups: Mapping[str, frozenset[str]]) -> None:
        self._schema = read_schema()
        self._set = cedarpy.PolicySet.from_str("\n".join(policy.text for policy in policies))
        self._groups = groups
        self._decided = lru_cache(KEPT_DECISIONS)(self._decide)
        self.sources = {policy.id: policy.where for policy in policies}  #: file and line of each

    @classmethod
    def load(cls, folder: Path) -> Policies:
        """All *.cedar files of a folder, and its groups.toml (see he_server.access.policy_files). READY_ROLES is one.

        Raises InvalidInput, which names file, line and policy: one that does not parse, that names what the schema
        does not have, that could fail when it is evaluated, or without an @id of its own.
        """
        return cls(read_policies(folder, read_schema()), read_groups(folder))

    def decide(self, principal: Principal, action: str, resource: Resource, part: str = "") -> Decision:
        """What the policies say. `part`: one of PARTS, for ReadSegment, and for nothing else.

        Denied, with `errors`, is also an action that does not exist or does not apply to such a resource.
        """
        return self._decided(principal, action, resource, part)

    def _decide(self, principal: Principal, action: str, resource: Resource, part: str) -> Decision:
        result = cedarpy.is_authorized(
            {
                "principal": _uid("Principal", str(principal)),
                "action": _uid("Action", action),
                "resource": _resource_uid(resource),
                "context": {"part": part} if action == "ReadSegment" or part else {},
            },
            self._set,
            self._entities(principal, resource),
            self._schema,
        )
        errors = tuple(result.diagnostics.errors)
        allowed = result.allowed and not errors  # Cedar passes over a policy that fails, and it may be one that forbids
        policies = tuple(sorted(result.diagnostics.id_annotations_by_reason.values()))
        return Decision(allowed, policies, not allowed and self._hidden(principal, action, resource), errors)

    def _hidden(self, principal: Principal, action: str, resource: Resource) -> bool:
        if not isinstance(resource, Collection) or action == "CreateCollection":
            return False
        return action == "DescribeCollection" or not self.decide(principal, "DescribeCollection", resource).allowed

    def _entities(self, principal: Principal, resource: Resource) -> list[dict[str, Any]]:
        groups = principal.groups | self._groups.get(str(principal), frozenset())
        caller = {
            "uid": _uid("Principal", str(principal)),
            "attrs": {
                "name": principal.name,
                "tenant": {"__entity": _uid("Tenant", principal.tenant)},
                "via": principal.via,
            },
            "parents": [_uid("Group", group) for group in sorted(groups)],
        }
        return [caller] if isinstance(resource, Tenant) else [caller, _entity(resource)]


def _uid(kind: str, name: str) -> dict[str, str]:
    return {"type": f"Hesearch::{kind}", "id": name}


def _resource_uid(resource: Resource) -> dict[str, str]:
    match resource:
        case Collection(tenant, name):
            return _uid("Collection", f"{tenant}/{name}")
        case Tenant(name):
            return _uid("Tenant", name)
        case Server():
            return _uid("Server", "server")


def _entity(resource: Collection | Server) -> dict[str, Any]:
    tenant = _uid("Tenant", resource.tenant)
    entity: dict[str, Any] = {"uid": _resource_uid(resource), "attrs": {}, "parents": [tenant]}
    if isinstance(resource, Collection):
        owner = _uid("Principal", f"{resource.tenant}/{resource.owner}")
        entity["attrs"] = {"name": resource.name, "tenant": {"__entity": tenant}, "owner": {"__entity": owner}}
        entity["tags"] = dict(resource.tags)
    return entity
