"""Who may do what: every ready role, tenants kept apart, default deny, and policies that are refused when loaded."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from he_client.cli import main
from he_engine.errors import InvalidInput, NotFound, PermissionDenied
from he_server.access.policy import COLLECTION_ACTIONS, PARTS, SERVER_ACTIONS, TENANT_ACTIONS, Policies
from he_server.access.policy_files import READY_ROLES
from he_server.access.principals import Principal
from he_server.access.quota_table import read_quotas
from he_server.access.resources import Collection, Decision, Resource, Server, Tenant, refusal
from he_server.storage.store import Store

ACTIONS = {*COLLECTION_ACTIONS, *TENANT_ACTIONS, *SERVER_ACTIONS}
READS = {"DescribeCollection", "ListCollections"}
ALLOWED = {  # ReadSegment/PART: of that part
    "owner": {*COLLECTION_ACTIONS, "ListCollections", *(f"ReadSegment/{part}" for part in PARTS)} - {"ReadSegment"},
    "writer": READS
    | {"WriteSegment", "DescribeSegment", "ReadManifest", "CommitManifest", *(f"ReadSegment/{part}" for part in PARTS)},
    "searcher": READS
    | {"ReadManifest", "Search", *(f"ReadSegment/{part}" for part in ("hint", "rows", "fingerprint", "payloads"))},
    "operator": {"Backup", "Fsck", "RotateKeys", "ReadMetrics"},
    "auditor": READS | {"ReadAudit"},
    "nobody": set(),
}
READY = Policies.load(READY_ROLES)


def _principal(*groups: str, tenant: str = "acme", name: str = "ada", via: str = "token") -> Principal:
    return Principal(name, tenant, frozenset(groups), via)


def _calls(tenant: str) -> list[tuple[str, Resource, str]]:
    """Every action on every resource of a tenant that it applies to, and every part of a segment."""
    notes = Collection(tenant, "notes", "grace")
    calls: list[tuple[str, Resource, str]] = [
        (action, notes, "") for action in COLLECTION_ACTIONS if action != "ReadSegment"
    ]
    calls += [("ReadSegment", notes, part) for part in PARTS]
    calls += [(action, Tenant(tenant), "") for action in TENANT_ACTIONS]
    return calls + [(action, Server(tenant), "") for action in SERVER_ACTIONS]


def _written(folder: Path, text: str, name: str = "mine.cedar") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")
    return folder


# ---- ready roles -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("role", ALLOWED)
def test_a_role_may_do_what_the_table_says_in_its_own_tenant(role: str) -> None:
    for action, resource, part in _calls("acme"):
        decision = READY.decide(_principal(role), action, resource, part)
        expected = f"{action}/{part}".rstrip("/") in ALLOWED[role]
        assert (decision.allowed, decision.errors) == (expected, ()), (action, resource, part)
        assert {policy.partition("-")[0] for policy in decision.policies} == ({role} if expected else set())


@pytest.mark.parametrize("role", ALLOWED)
def test_a_role_may_do_nothing_in_another_tenant_and_sees_no_collection_there(role: str) -> None:
    for action, resource, part in _calls("other"):
        decision = READY.decide(_principal(role), action, resource, part)
        hidden = isinstance(resource, Collection) and action != "CreateCollection"
        assert decision == Decision(False, ("own-tenant",), hidden), (action, resource, part)


def test_no_folder_can_permit_what_is_in_another_tenant(tmp_path: Path) -> None:
    policies = Policies.load(_written(tmp_path, '@id("all") permit (principal, action, resource);'))
    assert all(policies.decide(_principal(), *call).policies == ("all",) for call in _calls("acme"))
    assert not any(policies.decide(_principal(), *call).allowed for call in _calls("other"))


def test_roles_add_up() -> None:
    both = _principal("writer", "searcher")
    notes = Collection("acme", "notes", "grace")
    assert READY.decide(both, "Search", notes).policies == ("searcher",)
    assert READY.decide(both, "ReadSegment", notes, "index").policies == ("writer",)
    assert READY.decide(both, "ReadManifest", notes).policies == ("searcher", "writer")


# ---- default deny ----------------------------------------------------------------------------------------
_GROUPS = st.frozensets(st.sampled_from([*ALLOWED, "Owner", "owners", "owner.x", "Hesearch", "admin"]))
_TENANTS = st.sampled_from(["acme", "Acme", "acme-2", "other"])


@settings(max_examples=300, deadline=None, derandomize=True)
@given(groups=_GROUPS, own=_TENANTS, other=_TENANTS, data=st.data())
def test_whatever_no_role_grants_is_denied(groups: frozenset[str], own: str, other: str, data: st.DataObject) -> None:
    action, resource, part = data.draw(st.sampled_from(_calls(other)))
    decision = READY.decide(Principal("ada", own, groups, "certificate"), action, resource, part)
    granted = any(f"{action}/{part}".rstrip("/") in ALLOWED.get(group, set()) for group in groups)
    assert decision.allowed is (own == other and granted)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(action=st.one_of(st.text(max_size=40), st.sampled_from(sorted(ACTIONS))), part=st.text(max_size=12))
def test_what_does_not_exist_is_denied(action: str, part: str) -> None:
    """No action of that name, no part of that name, or a part of what has none."""
    for resource in (Collection("acme", "notes", "ada"), Tenant("acme"), Server("acme")):
        decision = READY.decide(_principal("searcher", "operator"), action, resource, part)
        if action not in ACTIONS or (part and (action != "ReadSegment" or part not in PARTS)):
            assert not decision.allowed


def test_the_names_of_actions_are_those_of_the_schema(tmp_path: Path) -> None:
    policies = Policies.load(_written(tmp_path, '@id("all") permit (principal, action, resource);'))
    kinds: tuple[tuple[Resource, tuple[str, ...]], ...] = (
        (Collection("acme", "notes", "ada"), COLLECTION_ACTIONS),
        (Tenant("acme"), TENANT_ACTIONS),
        (Server("acme"), SERVER_ACTIONS),
    )
    for (resource, applying), action in product(kinds, sorted(ACTIONS)):
        decision = policies.decide(_principal(), action, resource, "hint" if action == "ReadSegment" else "")
        assert decision.allowed is (action in applying), (action, resource)
        assert bool(decision.errors) is not decision.allowed


# ---- what a caller is told -------------------------------------------------------------------------------
def test_a_hidden_collection_is_denied_in_the_words_for_one_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(NotFound) as none:
        store = Store(tmp_path)
        try:
            store.find("notes")
        finally:
            store.close()
    notes, ada = Collection("other", "notes", "grace"), _principal("owner")
    error = refusal(ada, "Search", notes, READY.decide(ada, "Search", notes))
    assert (type(error), str(error)) == (NotFound, str(none.value))


def test_who_may_describe_a_collection_is_told_that_permission_lacks() -> None:
    notes = Collection("acme", "notes", "grace")
    for group, expected in (("auditor", PermissionDenied), ("operator", NotFound)):
        ada = _principal(group)
        decision = READY.decide(ada, "Search", notes)
        assert decision == Decision(False, (), hidden=expected is NotFound)
        assert type(refusal(ada, "Search", notes, decision)) is expected
    create = READY.decide(_principal(), "CreateCollection", notes)
    assert type(refusal(_principal(), "CreateCollection", notes, create)) is PermissionDenied


# ---- own policies ----------------------------------------------------------------------------------------
def test_owner_tags_via_and_names(tmp_path: Path) -> None:
    policies = Policies.load(
        _written(
            tmp_path,
            """
            @id("own") permit (principal, action, resource is Hesearch::Collection)
              when { resource.owner == principal };
            @id("test-stage") permit (principal, action == Hesearch::Action::"Search", resource)
              when { resource.hasTag("stage") && resource.getTag("stage") == "test" };
            @id("no-tokens") forbid (principal, action == Hesearch::Action::"DropCollection", resource)
              unless { principal.via == "certificate" };
            @id("grace") permit (principal == Hesearch::Principal::"acme/grace",
              action == Hesearch::Action::"ReadManifest", resource) when { resource.name like "hr-*" };
            @id("one") permit (principal, action == Hesearch::Action::"Search",
              resource == Hesearch::Collection::"acme/one");
            """,
        )
    )
    tagged = Collection("acme", "notes", "bob", frozenset({("stage", "test"), ("x", "y")}))
    other_tag = Collection("acme", "notes", "bob", frozenset({("stage", "live")}))
    assert policies.decide(_principal(), "WriteSegment", Collection("acme", "notes", "ada")).policies == ("own",)
    assert not policies.decide(_principal(), "WriteSegment", tagged).allowed
    assert policies.decide(_principal(), "Search", tagged).policies == ("test-stage",)
    assert not policies.decide(_principal(), "Search", other_tag).allowed
    own = Collection("acme", "notes", "ada")
    assert policies.decide(_principal(), "DropCollection", own).policies == ("no-tokens",)
    assert policies.decide(_principal(via="certificate"), "DropCollection", own).allowed
    for name, collection, expected in (("grace", "hr-1", True), ("grace", "notes", False), ("ada", "hr-1", False)):
        decision = policies.decide(_principal(name=name), "ReadManifest", Collection("acme", collection, "bob"))
        assert decision.allowed is expected
    one = Collection("acme", "one", "bob")
    assert policies.decide(_principal(), "Search", one) == Decision(True, ("one",)), "not hidden, though not described"


def test_a_policy_that_fails_denies(tmp_path: Path) -> None:
    """Cedar passes over it, as if it were not there; one that forbids must not be lost like that."""
    text = """
    @id("all") permit (principal, action, resource);
    @id("fails") forbid (principal, action == Hesearch::Action::"Search", resource)
      when { 9223372036854775807 + 1 == 2 };
    """
    policies = Policies.load(_written(tmp_path, text))
    decision = policies.decide(_principal(), "Search", Collection("acme", "notes", "ada"))
    assert not decision.allowed and "overflow" in decision.errors[0]
    assert policies.decide(_principal(), "ReadManifest", Collection("acme", "notes", "ada")).allowed


def test_groups_toml_adds_members(tmp_path: Path) -> None:
    folder = _written(tmp_path, (READY_ROLES / "searcher.cedar").read_text())
    _written(folder, 'searcher = ["acme/ada", "other/bob"]\nunused = []\n', "groups.toml")
    policies, notes = Policies.load(folder), Collection("acme", "notes", "grace")
    assert policies.decide(_principal(), "Search", notes).allowed
    assert not policies.decide(_principal(name="bob"), "Search", notes).allowed
    assert not policies.decide(_principal(name="bob", tenant="other"), "Search", notes).allowed


def test_threads_decide_the_same() -> None:
    policies = Policies.load(READY_ROLES)
    calls = [(role, call) for role in ALLOWED for tenant in ("acme", "other") for call in _calls(tenant)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda one: policies.decide(_principal(one[0]), *one[1]), calls * 4))
    assert found == [READY.decide(_principal(role), *call) for role, call in calls] * 4


# ---- refused when loaded -----------------------------------------------------------------------------------
_FINE = '@id("fine") permit (principal, action == Hesearch::Action::"Search", resource);\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('@id("typo")\npermit (principal, action, resource)\nwhen { resource.onwer == principal };',
         r"mine.cedar:2: policy 'typo': attribute `onwer` .* not found"),
        ('@id("typo") permit (principal, action == Hesearch::Action::"Serch", resource);', "policy 'typo'.*Serch"),
        ('@id("typo") permit (principal in Hesearch::Grp::"owner", action, resource);', "policy 'typo'.*Hesearch::Grp"),
        ('@id("typo") permit (principal, action, resource) when { principal.name == 3 };', "policy 'typo'"),
        ('@id("tag") permit (principal, action == Hesearch::Action::"Search", resource)\n'
         'when { resource.getTag("a") == "b" };', "mine.cedar:2: policy 'tag': unable to guarantee safety"),
        ("permit (principal, action, resource);", r"mine.cedar:2: got @id '', expected"),
        ('@id("a b") permit (principal, action, resource);', r"mine.cedar:2: got @id 'a b', expected"),
        ('@id("fine") permit (principal, action, resource);', r"mine.cedar:2: @id 'fine' is taken by mine.cedar:1"),
        ('@id("own-tenant") permit (principal, action, resource);', "is taken by own-tenant.cedar:2"),
        ('@id("t") permit (principal == ?principal, action, resource);', "mine.cedar:2: got a template"),
        ('// "a; comment"\n\n@id("x") permit (principal, actoin, resource);', "mine.cedar:4: it is no Cedar policy"),
        ('@id("x") permit (principal, action, resource)', "mine.cedar:2: it is no Cedar policy"),
        ('@id("x") permit (principal, action, resource) when { "a };', "mine.cedar:2: it is no Cedar policy"),
        (";", "mine.cedar:2: it is no Cedar policy"),
    ],
)  # fmt: skip
def test_a_bad_policy_is_refused_by_file_line_and_name(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        Policies.load(_written(tmp_path, _FINE + text))


def test_semicolons_in_strings_and_comments_end_no_policy(tmp_path: Path) -> None:
    text = '// one; two\n@id("a") permit (principal, action, resource) when\n{ principal.name == "\\";//" /*;*/ };'
    with pytest.raises(InvalidInput, match=r"mine.cedar:2: it is no Cedar policy"):  # Cedar has no /* comments */
        Policies.load(_written(tmp_path, text))
    text = text.replace("/*;*/", "// ;").replace(" };", "\n};") + "\n// the end; really"
    assert Policies.load(_written(tmp_path, text)).sources == {"own-tenant": "own-tenant.cedar:2", "a": "mine.cedar:2"}


@pytest.mark.parametrize(
    "groups", ["searcher = ['ada']", "searcher = 'acme/ada'", "'a b' = ['acme/ada']", "searcher = [3]", "searcher = ["]
)
def test_bad_groups_are_refused(tmp_path: Path, groups: str) -> None:
    _written(tmp_path, groups, "groups.toml")
    with pytest.raises(InvalidInput, match=r"groups.toml: "):
        Policies.load(_written(tmp_path, _FINE))


def test_a_folder_without_policies_or_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"has no \*.cedar file"):
        Policies.load(tmp_path)
    with pytest.raises(InvalidInput, match="cannot be read"):
        Policies.load(tmp_path / "none")
    (tmp_path / "x.cedar").write_bytes(b"\xff")
    with pytest.raises(InvalidInput, match=r"x.cedar: got bytes that are no UTF-8"):
        Policies.load(tmp_path)


def test_the_policies_of_the_docs_load(tmp_path: Path) -> None:
    text = (Path(__file__).parents[1] / "docs" / "access.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    (cedar,) = (body for _, body in blocks if body.startswith("@id"))
    (groups,) = (body for kind, body in blocks if kind == "toml" and body.startswith("searcher"))
    (quotas,) = (body for kind, body in blocks if kind == "toml" and body.startswith("[principal]"))
    _written(tmp_path, groups, "groups.toml")
    policies = Policies.load(_written(tmp_path, cedar))
    assert policies.decide(_principal("maker"), "Search", Collection("acme", "notes", "ada")).allowed
    (operating,) = (body for kind, body in blocks if kind == "toml" and body.startswith("operator"))
    for path in READY_ROLES.glob("*.cedar"):
        _written(tmp_path / "roles", path.read_text(), path.name)
    policies = Policies.load(_written(tmp_path / "roles", operating, "groups.toml"))
    for name, via, action in (("os:ada", "os", "Backup"), ("prometheus", "certificate", "ReadMetrics")):
        assert policies.decide(_principal(tenant="local", name=name, via=via), action, Server("local")).allowed
    _written(tmp_path, quotas, "quotas.toml")
    assert read_quotas(tmp_path / "quotas.toml").shares(_principal())[0].quota.queries_per_collection == 200


@pytest.mark.parametrize("nested", ["[" * 2000, "(" * 2000 + "true" + ")" * 2000, "1 + " * 20_000 + "1 == 1"])
def test_what_would_end_the_process_is_refused(tmp_path: Path, nested: str) -> None:
    """Cedar's parser recurses: it would take the server with it."""
    text = f'@id("deep") permit (principal, action, resource) when {{ {nested} }};'
    with pytest.raises(InvalidInput, match=r"mine.cedar:1: got (brackets nested|a policy of)"):
        Policies.load(_written(tmp_path, text))


# ---- commands ----------------------------------------------------------------------------------------------
def _ran(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str]:
    code = main(["policy", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out + captured.err


def test_new_check_and_explain(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "policies"
    assert _ran(capsys, "new", folder)[0] == 0
    assert _ran(capsys, "new", folder)[0] == 4, "never overwritten"
    code, out = _ran(capsys, "check", folder, "--json")
    assert code == 0 and json.loads(out)["policies"] == READY.sources
    ada = ("explain", folder, "--tenant", "acme", "--principal", "ada", "--group", "searcher")
    code, out = _ran(capsys, *ada, "--action", "Search", "--collection", "notes")
    assert (code, out) == (0, "Search: allowed by searcher (searcher.cedar:2)\n")
    code, out = _ran(capsys, *ada, "--action", "Search", "--collection", "other/notes", "--json")
    denied = {"allowed": False, "policies": {"own-tenant": "own-tenant.cedar:2"}, "hidden": True, "errors": []}
    assert (code, json.loads(out)) == (1, {"action": "Search", "decisions": [denied]})
    code, out = _ran(capsys, *ada, "--action", "ReadSegment", "--collection", "notes")
    assert code == 1 and out.count("denied by default") == 1 and out.count("allowed by searcher-parts") == 4
    assert _ran(capsys, *ada, "--action", "Backup")[0] == 1
    assert _ran(capsys, *ada, "--action", "Backup", "--group", "operator")[0] == 0
    assert _ran(capsys, *ada, "--action", "Backup", "--group", "operator", "--operating-tenant", "other")[0] == 1
    assert _ran(capsys, *ada, "--action", "ListCollections")[0] == 0
    tagged = '@id("t") forbid (principal, action, resource is Hesearch::Collection) when { resource.hasTag("no") };'
    _written(folder, tagged, "tagged.cedar")
    code, out = _ran(capsys, *ada, "--action", "Search", "--collection", "notes", "--tag", "no=")
    assert (code, out.splitlines()[0]) == (1, "Search: denied by t (tagged.cedar:1)")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--action", "Serch"), "action: got 'Serch'"),
        (("--action", "Search"), "collection: got none"),
        (("--action", "Search", "--collection", "notes", "--tag", "x"), "tag: got 'x'"),
        (("--action", "ReadSegment", "--collection", "notes", "--part", "x"), "part: got 'x'"),
        (("--action", "ListCollections", "--group", "a b"), "group: "),
    ],
)
def test_bad_questions(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str) -> None:
    code, out = _ran(capsys, "explain", READY_ROLES, "--tenant", "acme", "--principal", "ada", *arguments)
    assert code == 2 and message in out


def test_check_refuses_a_bad_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out = _ran(capsys, "check", _written(tmp_path, "permit (principal, action, resource);"))
    assert code == 2 and "mine.cedar:1: got @id ''" in out
