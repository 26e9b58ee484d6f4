"""What a call is about, whether it is allowed, and what a caller is told who may not."""

from __future__ import annotations

from dataclasses import dataclass

from he_engine.errors import HesearchError, NotFound, PermissionDenied
from he_server.access.principals import Principal


@dataclass(frozen=True, slots=True)
class Collection:
    """`owner`: the name of the principal (of the same tenant) who made it. Names have no "/" in them."""

    tenant: str
    name: str
    owner: str
    tags: frozenset[tuple[str, str]] = frozenset()

    def __str__(self) -> str:
        return f"Collection/{self.tenant}/{self.name}"


@dataclass(frozen=True, slots=True)
class Tenant:
    """Whose collections are listed."""

    name: str

    def __str__(self) -> str:
        return f"Tenant/{self.name}"


@dataclass(frozen=True, slots=True)
class Server:
    """This server and its data folder, operated by a tenant."""

    tenant: str

    def __str__(self) -> str:
        return "Server"


Resource = Collection | Tenant | Server


@dataclass(frozen=True, slots=True)
class Decision:
    """`policies`: ids of those that permit, or of those that forbid; none where it is denied for lack of any.

    `hidden`: denied, and the principal may not describe the collection either, so it must not learn that there is one.
    `errors`: why Cedar could not evaluate, for the operator; denied then.
    """

    allowed: bool
    policies: tuple[str, ...] = ()
    hidden: bool = False
    errors: tuple[str, ...] = ()


def refusal(principal: Principal, action: str, resource: Resource, decision: Decision) -> HesearchError:
    """The error to raise for a decision that denies: NotFound, in the words in which the catalogue says it of a
    collection that is none, where it is hidden; PermissionDenied otherwise."""
    if decision.hidden and isinstance(resource, Collection):
        return NotFound(f"collection: there is no {resource.name!r}")
    what = f" of collection {resource.name!r}" if isinstance(resource, Collection) else ""
    return PermissionDenied(f"{action}{what}: no policy lets {principal} do this; ask for a role")
