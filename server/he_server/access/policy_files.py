"""A folder of Cedar policies read and checked, one policy at a time, so that every complaint has a file and a line.

    *.cedar        policies, each with an @id that no other one has
    groups.toml    writer = ["acme/ada", …]: members besides those whose certificate or token says so; may be missing.
                   operator = ["local/os:root"]: a user of the server's machine

Both are read once, when the server starts or is told to read them again.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from he_engine.errors import InvalidInput, MissingExtra
from he_server.access.principals import Principal

try:
    import cedarpy as cedarpy
except ModuleNotFoundError as error:  # pragma: no cover
    raise MissingExtra(f"{error.name} is not installed: pip install '.[server]'") from error

PACKAGED = Path(__file__).with_name("policies")
READY_ROLES = PACKAGED / "roles"  #: policies of the groups owner, writer, searcher, operator and auditor
OWN_TENANT = PACKAGED / "own-tenant.cedar"  #: loaded before every folder

#: Of one policy. Cedar parses by recursion: 2,000 brackets in each other, or 32 KiB of `1+1+…`, end the process.
MAX_POLICY_CHARACTERS, MAX_DEPTH = 8192, 32

_STRING_COMMENT_OR_END = re.compile(r'"(?:[^"\\]|\\.)*"|//[^\n]*|;', re.DOTALL)
_BLANK = re.compile(r"(?:\s|//[^\n]*)*")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)


@dataclass(frozen=True, slots=True)
class SourcePolicy:
    """One policy as it was written."""

    id: str
    where: str  #: "writer.cedar:2"
    text: str


@cache
def read_schema() -> cedarpy.Schema:
    """The one that is shipped."""
    return cedarpy.Schema.from_str((PACKAGED / "hesearch.cedarschema").read_text(encoding="utf-8"))


def read_policies(folder: Path, schema: cedarpy.Schema) -> tuple[SourcePolicy, ...]:
    """Those of a folder, in the order of its files, after the one that is always loaded. Raises InvalidInput."""
    files = sorted(path for path in _listed(folder) if path.suffix == ".cedar")
    if not files:
        raise InvalidInput("policies: the folder has no *.cedar file; `hesearch policy new` makes one with ready roles")
    found: dict[str, SourcePolicy] = {}
    for path in (OWN_TENANT, *files):
        for policy in _policies(path, schema):
            if policy.id in found:
                raise InvalidInput(f"{policy.where}: @id {policy.id!r} is taken by {found[policy.id].where}")
            found[policy.id] = policy
    return tuple(found.values())


def read_groups(folder: Path) -> Mapping[str, frozenset[str]]:
    """From "tenant/name" to the groups that groups.toml gives it; empty without that file. Raises InvalidInput."""
    path = folder / "groups.toml"
    if not path.exists():
        return {}
    try:
        table = tomllib.loads(_text(path))
    except (ValueError, RecursionError) as error:  # no TOML, or a number of thousands of digits
        raise InvalidInput(f"groups.toml: {error}") from None
    groups: dict[str, set[str]] = {}
    for group, members in table.items():
        if not isinstance(members, list):
            raise InvalidInput(f"groups.toml: {group}: got {type(members).__name__}, expected a list of tenant/name")
        for member in members:
            tenant, _, name = str(member).partition("/")
            try:
                via = "os" if name.startswith("os:") else "token"
                principal = Principal(name, tenant, frozenset({group}), via)
            except InvalidInput:
                raise InvalidInput(f"groups.toml: {group}: got {member!r}, expected tenant/name") from None
            groups.setdefault(str(principal), set()).add(group)
    return {member: frozenset(names) for member, names in groups.items()}


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise InvalidInput(f"policies: {folder} cannot be read: {error.strerror}") from None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InvalidInput(f"{path.name}: it cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InvalidInput(f"{path.name}: got bytes that are no UTF-8, expected text") from None


def _policies(path: Path, schema: cedarpy.Schema) -> Iterator[SourcePolicy]:
    for line, text in _split(_text(path)):
        where = f"{path.name}:{line}"
        _require_bounded(where, text)
        policy_id = _id_of(where, text)
        result = cedarpy.validate_policies(text, schema)
        if not result.validation_passed:
            reasons = "; ".join(error.error.removeprefix("for policy `policy0`, ") for error in result.errors)
            raise InvalidInput(f"{where}: policy {policy_id!r}: {reasons}")
        yield SourcePolicy(policy_id, where, text)


def _split(text: str) -> Iterator[tuple[int, str]]:
    """Each policy with the number of its first line. A ; outside strings and comments ends one, and is nothing else in
    Cedar; what follows the last one is a policy, too, if only a broken one."""
    ends = [match.end() for match in _STRING_COMMENT_OR_END.finditer(text) if match[0] == ";"]
    for start, end in zip([0, *ends], [*ends, len(text)], strict=True):
        blank = _BLANK.match(text, start, end)
        first = blank.end() if blank else start
        if first < end:
            yield text.count("\n", 0, first) + 1, text[first:end]


def _require_bounded(where: str, text: str) -> None:
    if len(text) > MAX_POLICY_CHARACTERS:
        raise InvalidInput(f"{where}: got a policy of {len(text)} characters, expected at most {MAX_POLICY_CHARACTERS}")
    depth = 0
    for bracket in re.findall(r"[](){}[]", _STRING_COMMENT_OR_END.sub("", text)):
        depth += 1 if bracket in "([{" else -1
        if depth > MAX_DEPTH:
            raise InvalidInput(f"{where}: got brackets nested more than {MAX_DEPTH} deep")


def _id_of(where: str, text: str) -> str:
    try:
        parsed = json.loads(cedarpy.policies_to_json_str(text))
    except ValueError as error:
        raise InvalidInput(f"{where}: it is no Cedar policy: {error}") from None
    if parsed["templates"]:
        raise InvalidInput(f"{where}: got a template (?principal or ?resource), expected a policy that names them")
    (policy,) = parsed["staticPolicies"].values()
    policy_id = policy.get("annotations", {}).get("id") or ""
    if not _ID.fullmatch(policy_id):
        raise InvalidInput(
            f"{where}: got @id {policy_id!r}, expected 1 to 64 of [A-Za-z0-9._-], first a letter or digit"
        )
    return str(policy_id)
