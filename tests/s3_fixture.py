"""An S3-compatible server for tests: moto, in a process of its own on loopback, with what it stores in its memory."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator

import pytest

_NUMBERS = itertools.count()
_READY = re.compile(rb"Running on (http://127\.0\.0\.1:\d+)")
ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}  #: of who uses it


class S3Server:
    """A context manager. Raises FileNotFoundError where moto is not installed."""

    def __init__(self) -> None:
        self.address = ""
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> S3Server:
        try:
            import moto.server  # noqa: F401
        except ImportError:
            raise FileNotFoundError("moto is not installed: pip install '.[dev]'") from None
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
        self._process = process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        assert process.stderr is not None
        for line in process.stderr:
            if found := _READY.search(line):
                self.address = found[1].decode()
                break
        else:
            raise RuntimeError("moto did not start")
        threading.Thread(target=process.stderr.read, daemon=True).start()  # what it logs must not fill the pipe
        return self

    def __exit__(self, *_: object) -> None:
        process, self._process = self._process, None
        assert process is not None
        process.kill()
        process.wait()

    def new_bucket(self) -> str:
        """The URL of an empty one, with a prefix."""
        name = f"bucket-{next(_NUMBERS)}"
        urllib.request.urlopen(urllib.request.Request(f"{self.address}/{name}", method="PUT")).close()
        return f"s3://{name}/some/prefix?endpoint={self.address}"


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """One for all tests of a run."""
    server = S3Server()
    try:
        server.__enter__()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    try:
        yield server
    finally:
        server.__exit__()


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The same, found by what this process opens."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    return s3_server
