"""A server cannot decrypt: it loads no code that could, and its kernel has none."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

SERVE = """
import sys, tempfile
from pathlib import Path
from tests.server_fixture import FakeClient, naive_answers, residues, running

with tempfile.TemporaryDirectory() as folder, running(Path(folder), over_grpc=True) as endpoint:
    client = FakeClient(endpoint).create()
    segment = client.segment(2)
    client.write(segment)
    client.commit(1, [segment])
    queries = residues(client.rng, 1)
    assert (client.answer(2, queries)[segment.id] == naive_answers(segment.blocks, queries)).all()
print("\\n".join(sys.modules))
"""
#: Modules, with all below them, that hold clients' keys or use them. (he_engine.keys and sealing serve the server's own
#: keys, those of the disk; they decrypt nothing without a key that it never gets.)
FORBIDDEN = (
    "he_client",
    "he_engine.hint_client",
    "he_engine.hint_rows",
    "he_engine.public",
    "he_engine.verify",
    "he_engine.encoding",
    "he_engine.kernels._client",
    "he_engine.tenseal_client",
    "tenseal",
)
NEEDED = {"he_server.service", "he_server.rpc.grpc_server", "he_engine.hint_server", "he_engine.kernels._answer"}
#: What code that encrypts or recovers is called.
TELLTALE = re.compile(
    rb"encrypt|decrypt|(?<!un)recover|inverse|secret|ternary|binomial|noise|fingerprint", re.IGNORECASE
)


def _is(module: str, root: str) -> bool:
    return module == root or module.startswith(root + ".")


def test_a_serving_process_loads_nothing_that_decrypts() -> None:
    """A collection created, filled, committed and answered over gRPC; then: what is loaded?"""
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(
        [sys.executable, "-c", SERVE], capture_output=True, text=True, check=False, cwd=root, timeout=120
    )
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert loaded >= NEEDED
    assert [module for module in loaded if any(_is(module, root) for root in FORBIDDEN)] == []


def test_every_forbidden_module_exists() -> None:
    """Otherwise the test above would pass for a misspelt one."""
    for name in FORBIDDEN:
        assert importlib.util.find_spec(name) is not None, name


# ---- the kernels ---------------------------------------------------------------------------------------------
def _library(name: str) -> Path:
    spec = importlib.util.find_spec(f"he_engine.kernels.{name}")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin)


def _symbols(path: Path) -> set[bytes]:
    with path.open("rb") as file:
        tables = [s for s in ELFFile(file).iter_sections() if isinstance(s, SymbolTableSection)]
        return {symbol.name.encode() for table in tables for symbol in table.iter_symbols()}


def _strings(path: Path) -> set[bytes]:
    """Of at least four printable characters, wherever they are in the file."""
    return set(re.findall(rb"[\x20-\x7e]{4,}", path.read_bytes()))


def _telltales(path: Path) -> set[bytes]:
    return {name for name in _symbols(path) | _strings(path) if TELLTALE.search(name)}


def test_the_servers_kernel_cannot_decrypt() -> None:
    assert _telltales(_library("_answer")) == set()


@pytest.mark.parametrize("word", [b"encrypt_blocks", b"encrypt_query", b"recover", b"secret", b"inverse"])
def test_the_check_finds_them_where_they_are(word: bytes) -> None:
    assert any(word in name for name in _telltales(_library("_client")))
