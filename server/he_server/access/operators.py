"""Who may operate a data folder on its own machine: users of the operating system, by the policies of its server.

A server writes into its data folder by which policies it decides. A command of the operator's on that folder asks them,
as the principal `TENANT/os:USER`, and writes the decision down in a log beside the server's, which has its own chain:
the server may be appending to the other. A folder that no server has configured asks nothing.

Who can read the files needs no command of ours to copy them, so this binds only those who run commands as somebody
else (sudo). docs/access.md says more.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pwd
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from he_engine.errors import DamagedDataError, InvalidInput, TamperedDataError
from he_server.access.access import Access, Caller
from he_server.access.principals import Principal
from he_server.access.resources import Server
from he_server.access.settled_path import settled
from he_server.audit.keys import open_keys
from he_server.audit.log import OPERATORS, AuditLog
from he_server.config import ServerConfig
from he_server.storage import files

RECORD = "operators.json"  #: in the data folder
_MAX_BYTES = 1 << 14
_LOGIN = Path("/proc/self/loginuid")
_NO_LOGIN = 0xFFFFFFFF


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """How a folder's server was configured when it last started."""

    policies: str  #: absolute path of their folder; empty: everybody who can run a command may
    tenant: str  #: that operates it
    audit: bool  #: whether decisions are written down

    def __post_init__(self) -> None:
        """Raises InvalidInput for a tenant that is none."""
        self.principal("0")

    def principal(self, user: str) -> Principal:
        return Principal(f"os:{user}", self.tenant, frozenset(), "os")


def record(config: ServerConfig) -> None:
    """Writes it into the data folder, which this process has open. Raises InvalidInput, and as storage does."""
    policies = str(Path(config.policies).absolute()) if config.policies else ""
    now = Record(policies=policies, tenant=config.operating_tenant, audit=not config.no_audit)
    with contextlib.suppress(TamperedDataError):
        if _read(config.data) == now:
            return
    with files.NewFile(config.data / "incoming") as file:  # what a crash leaves there is removed
        file.append((json.dumps(asdict(now), indent=1) + "\n").encode())
        file.sync()
        file.publish(config.data / RECORD)
    with files.storage_errors("syncing"):
        files.sync_folder(config.data)


def require(folder: Path, action: str) -> Path:
    """Decides whether the user who runs this process may do this with the folder, and writes it down. The path to do it
    with: what was decided for that one must not be done by the path that was given, which may lead elsewhere by then.

    Raises PermissionDenied; NotFound, InvalidInput (others can lead the path elsewhere); InvalidInput, NotFound,
    MissingExtra where the policies cannot be loaded; ReadOnlyError, Unavailable, LimitExceeded where it cannot be
    written down; TamperedDataError (the folder's record, or the log of its operators), DamagedDataError.
    """
    data = settled(folder, _login())
    if (said := _read(data)) is None:
        return data
    policies = None
    if said.policies:
        from he_server.access.policy import Policies  # its package is of the extra `server`

        policies = Policies.load(Path(said.policies))
    caller = Caller(said.principal(_user()))
    with contextlib.ExitStack() as opened:
        audit = opened.enter_context(_log(data)) if said.audit else None
        Access(policies=policies, audit=audit).require(caller, action, Server(said.tenant))
    return data


def _read(data: Path) -> Record | None:
    """Raises TamperedDataError, Unavailable."""
    path = data / RECORD
    if not path.exists():
        return None
    with files.storage_errors("reading who may operate the folder"), path.open("rb") as file:
        raw = file.read(_MAX_BYTES)
    try:
        said = Record(**json.loads(raw))
        if type(said.policies) is not str or type(said.audit) is not bool:
            raise TypeError
    except (ValueError, TypeError, RecursionError, InvalidInput):
        raise TamperedDataError(f"data folder: {RECORD} is damaged; a server's next start writes it anew") from None
    return said


@contextlib.contextmanager
def _log(data: Path) -> Iterator[AuditLog]:
    """One command at a time; each waits for those before it."""
    folder = data / OPERATORS
    with _as_owner(data):
        with files.storage_errors("opening the operators' audit log"):
            files.make_folder(folder, 0o700)
            lock = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with AuditLog(folder, *open_keys(folder)) as log:
                yield log
        except (DamagedDataError, TamperedDataError) as error:
            raise type(error)(f"{error} (the operators' log, {OPERATORS}: it may be moved aside)") from None
        finally:
            os.close(lock)


@contextlib.contextmanager
def _as_owner(data: Path) -> Iterator[None]:
    """Root becomes the folder's owner: what it writes stays theirs, and no link of theirs leads it anywhere that they
    could not write themselves."""
    user, group, groups = os.geteuid(), os.getegid(), os.getgroups()
    with files.storage_errors("opening the operators' audit log"):
        owner = data.stat()
    other = user == 0 != owner.st_uid
    try:
        if other:
            with files.storage_errors("opening the operators' audit log"):
                os.setgroups([])
                os.setegid(owner.st_gid)
                os.seteuid(owner.st_uid)
        yield
    finally:
        if other:
            os.seteuid(user)
            os.setegid(group)
            os.setgroups(groups)


def _user() -> str:
    """Who logged in, which sudo and su keep; without a login, whom this process runs as. A number where the name has
    other characters than names may have."""
    login = _login()
    user = os.geteuid() if login is None else login
    with contextlib.suppress(KeyError, InvalidInput):
        name = pwd.getpwuid(user).pw_name
        Principal(f"os:{name}", "local", frozenset(), "os")
        return name
    return str(user)


def _login() -> int | None:
    with contextlib.suppress(OSError, ValueError):
        login = int(_LOGIN.read_text())
        return None if login == _NO_LOGIN else login
    return None
