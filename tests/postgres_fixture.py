"""A real PostgreSQL for tests: a server of their own on a Unix socket in a temporary folder, one database a test."""

from __future__ import annotations

import contextlib
import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

_USERS = ("postgres", "nobody")  #: it refuses to run as root
_NUMBERS = itertools.count()


def _programs() -> Path | None:
    """The folder of initdb, which Debian keeps out of PATH."""
    found = [Path(path).parent for path in [shutil.which("initdb")] if path]
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return found[0] if found else None


class PostgresServer:
    """A context manager that makes it, starts it and removes it. Raises FileNotFoundError where none is installed."""

    def __init__(self, **settings: str) -> None:
        programs = _programs()
        if programs is None:
            raise FileNotFoundError("PostgreSQL is not installed (Debian: apt install postgresql)")
        self._programs = programs
        self._settings = {"listen_addresses": "", **settings}
        self._user = next((u for u in _USERS if _exists(u)), None) if os.geteuid() == 0 else None
        self.root = Path()

    def __enter__(self) -> PostgresServer:
        self.root = Path(tempfile.mkdtemp(prefix="hesearch-pg-"))  # a short path: a socket's has 107 bytes at most
        if self._user is not None:
            shutil.chown(self.root, self._user)
        self._settings["unix_socket_directories"] = str(self.root)
        self.run("initdb", "--auth=trust", "--username=hesearch", "--encoding=UTF8", "--data-checksums", "-D", "data")
        with (self.root / "data" / "postgresql.conf").open("a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in self._settings.items())
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop("immediate")
        shutil.rmtree(self.root)

    def run(self, program: str, *arguments: str) -> None:
        command = [str(self._programs / program), *arguments]
        if self._user is not None:  # not by subprocess, which would fork: gRPC's threads may leave a child stuck
            command = ["setpriv", f"--reuid={self._user}", "--regid=nogroup", "--clear-groups", *command]
        done = subprocess.run(command, cwd=self.root, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{program}: {done.stdout}{done.stderr}")

    def start(self) -> None:
        self.run("pg_ctl", "start", "--wait", "--silent", "-D", "data", "-l", "log")

    def stop(self, mode: str) -> None:
        """mode: fast, or immediate: as if it had crashed."""
        self.run("pg_ctl", "stop", "--wait", "--silent", "-D", "data", "-m", mode)

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """It has crashed, and is started again at the end."""
        self.stop("immediate")
        try:
            yield
        finally:
            self.start()

    def url(self, database: str) -> str:
        return f"postgresql://hesearch@/{database}?host={self.root}"

    def new_database(self) -> str:
        """The URL of an empty one."""
        name = f"test_{next(_NUMBERS)}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as db:
            db.execute(f"CREATE DATABASE {name}".encode())
        return self.url(name)


def _exists(user: str) -> bool:
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """One for all tests of a run, which do not stop it."""
    try:
        server = PostgresServer()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    with server:
        yield server
