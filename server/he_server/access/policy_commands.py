"""What an operator does with policies before a server reads them: `hesearch policy new`, `check` and `explain`."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from he_engine.errors import AlreadyExists, InvalidInput
from he_server.access.principals import Principal
from he_server.access.resources import Collection, Decision, Resource, Server, Tenant
from he_server.operate.parsers import command, report, verbs_of

if TYPE_CHECKING:
    from he_server.access.policy import Policies

# he_server.access.policy is imported where a command runs: its Cedar package is of the extra `server`.


def add_policy_parsers(subparsers: Any) -> None:
    """Adds `policy` to what argparse's add_subparsers() returned. `run` gives the exit code, and raises as `load`."""
    text = "who may do what: make policies, check them, ask them"
    verbs = verbs_of(subparsers, "policy", text, "check /etc/hesearch/policies")
    new = command(verbs, "policy new", _new, "make a folder with the ready roles", "/etc/hesearch/policies")
    new.add_argument("folder", type=Path, help="must not exist yet")
    check = command(
        verbs, "policy check", _check, "check every policy of a folder, as a server does before it takes them",
        "/etc/hesearch/policies",
    )  # fmt: skip
    check.add_argument("folder", type=Path)
    _add_explain(verbs)


def _add_explain(verbs: Any) -> None:
    parser = command(
        verbs, "policy explain", _explain, "what a folder's policies say of one call, and which of them decide",
        "/etc/hesearch/policies --tenant acme --principal ada --group searcher \\\n"
        "    --action Search --collection notes --tag stage=test\n\nexit codes: 0 allowed, 1 denied",
    )  # fmt: skip
    parser.add_argument("folder", type=Path)
    parser.add_argument("--principal", required=True, metavar="NAME")
    parser.add_argument("--tenant", required=True, help="the principal's")
    parser.add_argument("--group", action="append", default=[], help="one that it is in; repeat it for more")
    parser.add_argument("--via", choices=("certificate", "token", "loopback", "os"), default="certificate")
    parser.add_argument("--action", required=True, metavar="ACTION", help="Search, ReadSegment, …")
    parser.add_argument("--collection", metavar="NAME", help="NAME, or TENANT/NAME of another tenant's")
    parser.add_argument("--owner", metavar="NAME", help="who made the collection; default: somebody else")
    parser.add_argument("--tag", action="append", default=[], metavar="K=V", help="of the collection; repeat it")
    parser.add_argument("--part", default="", help="of a segment, for ReadSegment: index, hint, …; default: each")
    parser.add_argument("--operating-tenant", metavar="TENANT", help="whose server it is; default: the principal's")


def _new(arguments: argparse.Namespace) -> int:
    from he_server.access.policy_files import READY_ROLES

    folder: Path = arguments.folder
    if folder.exists():
        raise AlreadyExists(f"folder {folder}: exists; nothing was changed")
    shutil.copytree(READY_ROLES, folder)
    names = sorted(path.name for path in folder.glob("*.cedar"))
    report(arguments, {"folder": str(folder), "files": names}, f"wrote {', '.join(names)} into {folder}")
    return 0


def _check(arguments: argparse.Namespace) -> int:
    from he_server.access.policy import Policies

    sources = Policies.load(arguments.folder).sources
    lines = [f"{policy_id}  {where}" for policy_id, where in sources.items()]
    report(arguments, {"policies": sources}, "\n".join([*lines, f"{len(sources)} policies, all valid"]))
    return 0


def _explain(arguments: argparse.Namespace) -> int:
    from he_server.access.policy import PARTS, Policies

    policies = Policies.load(arguments.folder)
    principal = Principal(arguments.principal, arguments.tenant, frozenset(arguments.group), arguments.via)
    resource = _resource(arguments)
    if arguments.part and (arguments.action != "ReadSegment" or arguments.part not in PARTS):
        raise InvalidInput(f"part: got {arguments.part!r}, expected one of {', '.join(PARTS)}, with ReadSegment")
    parts = (arguments.part,) if arguments.part or arguments.action != "ReadSegment" else PARTS
    decisions = [(part, policies.decide(principal, arguments.action, resource, part)) for part in parts]
    fields = [_fields(policies, part, decision) for part, decision in decisions]
    text = "\n".join(_text(arguments.action, field) for field in fields)
    report(arguments, {"action": arguments.action, "decisions": fields}, text)
    return 0 if all(decision.allowed for _, decision in decisions) else 1


def _resource(arguments: argparse.Namespace) -> Resource:
    from he_server.access import policy

    action = arguments.action
    if action in policy.COLLECTION_ACTIONS:
        if not arguments.collection:
            raise InvalidInput(f"collection: got none, expected --collection, which {action} is about")
        tenant, _, name = arguments.collection.rpartition("/")
        tags = {}
        for tag in arguments.tag:
            key, equals, value = tag.partition("=")
            if not equals:
                raise InvalidInput(f"tag: got {tag!r}, expected KEY=VALUE")
            tags[key] = value
        return Collection(tenant or arguments.tenant, name, arguments.owner or "", frozenset(tags.items()))
    if action in policy.SERVER_ACTIONS:
        return Server(arguments.operating_tenant or arguments.tenant)
    if action in policy.TENANT_ACTIONS:
        return Tenant(arguments.tenant)
    known = ", ".join(dict.fromkeys((*policy.COLLECTION_ACTIONS, *policy.TENANT_ACTIONS, *policy.SERVER_ACTIONS)))
    raise InvalidInput(f"action: got {action!r}, expected one of {known}")


def _fields(policies: Policies, part: str, decision: Decision) -> dict[str, Any]:
    return {
        **({"part": part} if part else {}),
        "allowed": decision.allowed,
        "policies": {policy_id: policies.sources[policy_id] for policy_id in decision.policies},
        "hidden": decision.hidden,
        "errors": list(decision.errors),
    }


def _text(action: str, fields: dict[str, Any]) -> str:
    what = action + (f" of {fields['part']}" if "part" in fields else "")
    because = ", ".join(f"{policy_id} ({where})" for policy_id, where in fields["policies"].items())
    lines = [f"{what}: {'allowed' if fields['allowed'] else 'denied'} by {because or 'default: no policy permits it'}"]
    if fields["hidden"]:
        lines.append("  the caller is told that there is no such collection")
    return "\n".join(lines + [f"  Cedar could not evaluate: {error}" for error in fields["errors"]])
