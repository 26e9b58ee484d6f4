"""Commands on the server's machine: decided by the policies of the folder's server, each decision one line."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from he_client.cli import main
from he_server.access import operators
from he_server.access.opening import open_access
from he_server.access.policy import Policies
from he_server.access.principals import Principal
from he_server.access.resources import Collection
from he_server.audit.log import OPERATORS
from he_server.config import ServerConfig
from he_server.operate.fsck import check
from he_server.service import Service
from he_server.storage.kek import new_kek_file, open_kek
from he_server.storage.store import Store
from tests.audit_fixture import entry
from tests.test_server_cli import Served

DENIED = 1  #: exit code of PermissionDenied


@pytest.fixture(autouse=True)
def no_login(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whoever runs the tests is whom this process runs as."""
    monkeypatch.setattr(operators, "_LOGIN", tmp_path / "none")


def me() -> str:
    return f"os:{pwd.getpwuid(os.geteuid()).pw_name}"


class Folder:
    """A data folder whose server has the ready roles, and people in them. It is sealed."""

    def __init__(self, root: Path, **groups: list[str]) -> None:
        self.root, self.data, self.policies = root, root / "data", root / "policies"
        assert main(["policy", "new", str(self.policies)]) == 0
        self.put(**groups)
        new_kek_file(root / "kek")
        new_kek_file(root / "kek.new")
        self.kek, self.new_kek = f"file:{root / 'kek'}", f"file:{root / 'kek.new'}"
        self.serve().close()

    def put(self, **groups: list[str]) -> None:
        (self.policies / "groups.toml").write_text("".join(f"{name} = {json.dumps(groups[name])}\n" for name in groups))

    def serve(self, **settings: Any) -> Service:
        chosen = {"policies": str(self.policies), "kek": self.kek, "operating_tenant": "ours"} | settings
        config = ServerConfig(data=self.data, insecure=True, threads=1, **chosen)
        return Service(config, access=open_access)

    def commands(self) -> dict[str, list[str]]:
        """Each command that asks, by its action: all that works on a stopped server."""
        data = str(self.data)
        return {
            "Backup": ["backup", data, str(self.root / "backup")],
            "Fsck": ["fsck", data, "--kek", self.kek],
            "RotateKeys": ["kek", "rotate", data, "--kek", self.new_kek, "--previous-kek", self.kek],
            "ReadAudit": ["audit", "show", data, "--kek", self.kek],
        }

    def said(self, capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
        """The decisions about operators, as an auditor reads them, up to the reading itself."""
        self.put(auditor=[f"ours/{me()}"])
        capsys.readouterr()
        assert main(["audit", "show", str(self.data), "--kek", self.kek, "--json"]) == 0
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        return [line for line in lines if line["log"] == "operators" and line["kind"] == "entry"][:-1]


def _files(folder: Path) -> dict[str, bytes]:
    """All but what the commands write about themselves."""
    paths = (path for path in folder.rglob("*") if path.is_file() and OPERATORS not in str(path))
    return {str(path): path.read_bytes() for path in paths}


def test_an_operator_may_and_each_time_one_line_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Folder(tmp_path, operator=[f"ours/{me()}"])
    commands = folder.commands()
    assert main(commands["Backup"]) == 0
    assert main(commands["Fsck"]) == 0
    assert main(["rekey", str(folder.data), "--kek", folder.kek]) == 0
    assert main(commands["ReadAudit"]) == DENIED, "who operates does not audit"
    lines = folder.said(capsys)
    assert [(line["action"], line["allowed"], line["policies"]) for line in lines] == [
        ("Backup", True, ["operator"]),
        ("Fsck", True, ["operator"]),
        ("RotateKeys", True, ["operator"]),
        ("ReadAudit", False, []),
    ]
    for line in lines:
        assert line["principal"] == {"name": me(), "tenant": "ours", "via": "os"} and line["resource"] == "Server"
    assert main(["audit", "verify", str(folder.data)]) == 0


def test_who_may_not_changes_nothing_and_the_log_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Folder(tmp_path, operator=["ours/os:another", f"other/{me()}"], searcher=[f"ours/{me()}"])
    before = _files(tmp_path)
    for action, command in folder.commands().items():
        assert main(command) == DENIED, action
        assert f"{action}: no policy lets ours/{me()} do this" in capsys.readouterr().err
    assert main(["rekey", str(folder.data), "--kek", folder.kek, "--folder-key"]) == DENIED
    assert main(["fsck", str(folder.data), "--kek", folder.kek, "--repair"]) == DENIED
    capsys.readouterr()
    assert _files(tmp_path) == before and not (tmp_path / "backup").exists()
    lines = folder.said(capsys)
    asked = [*folder.commands(), "RotateKeys", "Fsck"]
    assert [(line["action"], line["allowed"], line["policies"]) for line in lines] == [
        (one, False, []) for one in asked
    ]


def test_segments_of_a_folder_are_fetched_only_by_who_may_copy_it(tmp_path: Path) -> None:
    protected = Folder(tmp_path / "one")
    own = tmp_path / "own"
    Store(own).close()
    repairing = ["fsck", str(own), "--repair", "--from", str(protected.data)]
    assert main(repairing) == DENIED
    protected.put(operator=[f"ours/{me()}"])
    assert main(repairing) == 0


@pytest.mark.parametrize("action", ["Backup", "Fsck", "--from", "ReadAudit"])
def test_what_was_decided_for_one_folder_is_done_to_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], action: str
) -> None:
    """The path leads to another folder once the policies have been asked: a sealed one, with a log."""
    protected, given, here = Folder(tmp_path / "one"), tmp_path / "given", tmp_path / "here"
    for own in (here, tmp_path / "own"):
        Store(own).close()
    given.symlink_to(tmp_path / "own")
    read = operators._read

    def read_and_swap(data: Path) -> operators.Record | None:
        said = read(data)
        if data != here:
            given.unlink()
            given.symlink_to(protected.root / "none" if action == "--from" else protected.data)
        return said

    monkeypatch.setattr(operators, "_read", read_and_swap)
    command, exit_code = {
        "Backup": (["backup", str(given), str(tmp_path / "backup")], 0),
        "Fsck": (["fsck", str(given)], 0),
        "--from": (["fsck", str(here), "--repair", "--from", str(given)], 0),
        "ReadAudit": (["audit", "show", str(given), "--kek", protected.kek], 3),
    }[action]
    assert main(command) == exit_code, capsys.readouterr()
    assert given.readlink() != tmp_path / "own" and not (tmp_path / "backup/audit").exists()


def _backed_up(own: Path, changed: Path, capsys: pytest.CaptureFixture[str]) -> bool:
    """Otherwise it was refused for this folder, and nothing was copied."""
    exit_code, target = main(["backup", str(own), f"{own}-backup"]), Path(f"{own}-backup")
    assert exit_code in (0, 2) and target.exists() is not bool(exit_code)
    assert (f"can change {changed}," in capsys.readouterr().err) is bool(exit_code)
    shutil.rmtree(target, ignore_errors=True)
    return not exit_code


@pytest.mark.parametrize("place", ["above", "above/own"])
def test_a_path_that_others_can_change_is_not_decided(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    own, changed = tmp_path / "above/own", tmp_path / place
    Store(own).close()
    for mode, settled in {0o777: False, 0o1777: changed != own, 0o755: True, 0o775: True}.items():
        changed.chmod(mode)  # the group of the last is this process's
        assert _backed_up(own, changed, capsys) is settled, oct(mode)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives folders away")
def test_whose_folders_lead_to_a_data_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Root's commands take those of a service that nobody is logged in as."""
    own, login = tmp_path / "above/own", tmp_path / "loginuid"
    Store(own).close()
    os.chown(own, 1234, 1234)
    assert _backed_up(own, own, capsys)
    own.parent.chmod(0o770)
    os.chown(own.parent, 0, 4321)
    assert not _backed_up(own, own.parent, capsys)
    os.chown(own.parent, 4321, 0)
    assert not _backed_up(own, own.parent, capsys)
    os.chown(own.parent, 1234, 0)
    assert _backed_up(own, own, capsys)
    monkeypatch.setattr(operators, "_LOGIN", login)
    login.write_text("1234")
    assert not _backed_up(own, own, capsys), "who logged in as its owner, and became root"
    login.write_text("0")
    own.parent.chmod(0o777)
    assert _backed_up(own, own, capsys), "root, who logged in as such, may read all of it anyway"


def test_an_operator_searches_nothing(tmp_path: Path) -> None:
    folder = Folder(tmp_path, operator=[f"ours/{me()}"])
    policies = Policies.load(folder.policies)
    operator = Principal(me(), "ours", frozenset(), "os")
    for action in ("Search", "ReadManifest", "DescribeCollection", "DropCollection"):
        assert not policies.decide(operator, action, Collection("ours", "notes", "ada")).allowed
    asked = ["policy", "explain", str(folder.policies), "--tenant", "ours", "--principal", me(), "--via", "os"]
    assert main([*asked, "--action", "Search", "--collection", "notes"]) == 1
    assert main([*asked, "--action", "Backup"]) == 0


def test_the_server_and_commands_write_at_the_same_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither chain is broken, and heads of both prove both."""
    folder = Folder(tmp_path, operator=[f"ours/{me()}"])
    service = folder.serve()
    audit = service.access.audit
    assert audit is not None
    codes: list[int] = []

    def operate(number: int) -> None:
        for _ in range(5):
            codes.append(main(["backup", str(folder.data), str(tmp_path / f"backup{number}")]))

    def serve() -> None:
        for number in range(200):
            audit.append(entry(number))

    threads = [threading.Thread(target=operate, args=(number,)) for number in range(3)]
    threads.append(threading.Thread(target=serve))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == [0] * 15
    service.close()
    capsys.readouterr()
    assert main(["audit", "head", str(folder.data)]) == 0
    (tmp_path / "heads").write_text(capsys.readouterr().out)
    verifying = ["audit", "verify", str(folder.data), "--head", str(tmp_path / "heads"), "--json"]
    assert main(verifying) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["unchanged"] and found["operators"]["proven"] == 15 and found["server"]["proven"] == 200
    assert [line["action"] for line in folder.said(capsys)] == ["Backup"] * 15

    shutil.rmtree(folder.data / OPERATORS)
    assert main(verifying) == 6, "a log that is gone"
    folder.put(operator=[f"ours/{me()}"])
    assert main(folder.commands()["Fsck"]) == 0
    assert main(verifying) == 6, "and one that was begun anew"


def test_processes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The server, a client of its, and commands beside it, each a process of its own."""
    folder = Folder(tmp_path, operator=[f"ours/{me()}"], owner=["local/loopback"])
    serving = ["--data", str(folder.data), "--listen", "127.0.0.1:0", "--insecure", "--threads", "1"]
    served = Served(*serving, "--kek", folder.kek, "--policies", str(folder.policies), "--operating-tenant", "ours")
    try:
        address = served.line().split()[-1]
        listing = ["info", "notes", "--server", address, "--insecure"]
        wanted = {("backup", str(folder.data), str(tmp_path / f"backup{number}")): 0 for number in range(3)}
        wanted |= {("audit", "show", str(folder.data), "--kek", folder.kek): DENIED, tuple(listing): 3}
        processes = {
            command: subprocess.Popen([sys.executable, "-m", "he_client.cli", *command], stderr=subprocess.PIPE)
            for command in wanted
        }
        said = {command: process.communicate(timeout=120)[1] for command, process in processes.items()}
        assert {command: process.returncode for command, process in processes.items()} == wanted, said
        assert served.end(signal.SIGTERM)[0] == 0
    finally:
        served.process.kill()
        served.process.communicate()
    assert main(["audit", "verify", str(folder.data)]) == 0
    assert sorted((line["action"], line["allowed"]) for line in folder.said(capsys)) == [
        *[("Backup", True)] * 3,
        ("ReadAudit", False),
    ]


def test_a_changed_line_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Folder(tmp_path, operator=[f"ours/{me()}"])
    for _ in range(2):
        assert main(folder.commands()["Backup"]) == 0
    log = folder.data / OPERATORS / "log"
    log.write_bytes(log.read_bytes().replace(me().encode(), me()[:-1].encode() + b"9", 1))
    capsys.readouterr()
    assert main(["audit", "verify", str(folder.data)]) == 6
    assert "operators: changed: line 1" in capsys.readouterr().out
    assert main(folder.commands()["Fsck"]) == 9
    assert "operators' audit log: line 1" in capsys.readouterr().out


def test_a_backup_has_the_log_and_asks_nobody(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Folder(tmp_path, operator=[f"ours/{me()}"])
    for _ in range(2):
        assert main(folder.commands()["Backup"]) == 0
    folder.put()
    backup, restored = str(tmp_path / "backup"), str(tmp_path / "restored")
    assert main(["fsck", backup, "--kek", folder.kek]) == 0
    assert main(["restore", backup, restored]) == 0
    capsys.readouterr()
    assert main(["audit", "show", restored, "--kek", folder.kek, "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["action"] for line in lines if line["log"] == "operators" and line["kind"] == "entry"] == [
        "Backup"
    ] * 2


def test_no_backup_has_the_key_of_the_log_and_a_server_makes_it_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also one that an earlier version left in the target goes. After the restored server's start the log goes on."""
    folder = Folder(tmp_path, operator=[f"ours/{me()}"])
    assert check(folder.data, open_kek(folder.kek)).clean, "a key without a log, as nobody has operated it yet"
    assert main(folder.commands()["Fsck"]) == 0
    key, backup = (folder.data / OPERATORS / "keys").read_bytes(), tmp_path / "backup"
    assert main(folder.commands()["Backup"]) == 0
    (backup / OPERATORS / "keys").write_bytes(key)
    assert main(folder.commands()["Backup"]) == 0
    files = [path for path in backup.rglob("*") if path.is_file()]
    assert len(files) > 5 and not [path for path in files if key[1:] in path.read_bytes()]
    head = tmp_path / "head"
    head.write_bytes((backup / OPERATORS / "head").read_bytes())
    folder.data = tmp_path / "restored"
    assert main(["restore", str(backup), str(folder.data)]) == 0
    folder.serve().close()
    assert main(folder.commands()["Fsck"]) == 0
    assert (folder.data / OPERATORS / "keys").read_bytes() == key
    assert main(["audit", "verify", str(folder.data), "--head", str(head)]) == 0
    assert [line["action"] for line in folder.said(capsys)] == ["Fsck", "Backup", "Backup", "Fsck"]


def test_the_last_start_of_the_server_says_who_decides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Folder(tmp_path)
    backing_up = folder.commands()["Backup"]
    assert main(backing_up) == DENIED
    folder.serve(policies="").close()
    assert main(backing_up) == 0, "without policies everybody who can run it may, and it is written down"
    folder.serve(policies="", no_audit=True).close()
    assert main(backing_up) == 0
    folder.serve().close()
    lines = folder.said(capsys)
    assert [(line["allowed"], line["policies"]) for line in lines] == [(False, []), (True, [])]
    shutil.rmtree(folder.policies)
    assert main(backing_up) == 2, "policies that cannot be read permit nothing"
    (folder.data / operators.RECORD).write_text("{}")
    assert main(backing_up) == 6


def test_a_folder_that_no_server_has_configured_asks_nobody(tmp_path: Path) -> None:
    Store(tmp_path / "data").close()
    assert main(["backup", str(tmp_path / "data"), str(tmp_path / "backup")]) == 0
    assert not (tmp_path / "data" / OPERATORS).exists()


def test_what_cannot_be_written_down_is_not_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Folder(tmp_path, operator=[f"ours/{me()}"])
    shutil.rmtree(folder.data / OPERATORS)
    (folder.data / OPERATORS).write_text("no folder")
    assert main(folder.commands()["Backup"]) == 8
    assert "operators' audit log" in capsys.readouterr().err and not (tmp_path / "backup").exists()


def test_who_logged_in_stays_who_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As sudo and su leave it; a name of other characters, and an unknown user, are numbers."""
    login = tmp_path / "loginuid"
    monkeypatch.setattr(operators, "_LOGIN", login)
    login.write_text("0")
    assert operators._user() == pwd.getpwuid(0).pw_name
    login.write_text("4294967295")
    assert f"os:{operators._user()}" == me()
    login.write_text("3999999999")
    assert operators._user() == "3999999999"
    odd = pwd.struct_passwd(("DOMAIN\\ada", "", 7, 7, "", "", ""))
    monkeypatch.setattr(operators.pwd, "getpwuid", lambda _: odd)
    login.write_text("7")
    assert operators._user() == "7"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes somebody else")
def test_root_writes_as_the_folders_owner(tmp_path: Path) -> None:
    """Nor does a link of the owner's lead root to a file that is not theirs."""
    folder = Folder(tmp_path, operator=[f"ours/{me()}"])
    for path in (folder.data, *folder.data.rglob("*")):
        os.chown(path, 65534, 65534)
    for path in (tmp_path, *tmp_path.parents[:3]):
        path.chmod(path.stat().st_mode | 0o11)
    assert main(folder.commands()["Backup"]) == 0
    written = list((folder.data / OPERATORS).rglob("*"))
    assert written and {path.stat().st_uid for path in written} == {65534} and os.geteuid() == 0
    treasure = tmp_path / "treasure"
    treasure.write_text("root's")
    os.chown(treasure, 0, 4321)
    treasure.chmod(0o660)
    for name in ("log", "head"):
        (folder.data / OPERATORS / name).unlink()
    (folder.data / OPERATORS / "log").symlink_to(treasure)
    groups = os.getgroups()
    os.setgroups([4321])  # such as disk or docker, which root's login has
    try:
        assert main(folder.commands()["Backup"]) != 0
        assert os.getgroups() == [4321]
    finally:
        os.setgroups(groups)
    assert treasure.read_text() == "root's"
