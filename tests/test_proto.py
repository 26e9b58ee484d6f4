"""The wire: generated code is current, identifiers are unambiguous, bad messages are refused, errors come back."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from he_engine.engine import EngineKind
from he_engine.errors import (
    FormatVersionError,
    HesearchError,
    InvalidInput,
    NotFound,
    Overloaded,
    ParameterError,
    Unavailable,
)
from he_engine.params import Parameters
from he_proto import wire
from he_proto.chunks import CHUNK_BYTES, answer_requests, chunks, joined
from he_proto.status import error_from_status, status_of
from he_proto.v1 import hesearch_pb2 as pb
from tests.server_fixture import PARAMETERS, all_errors

PROTO = Path(__file__).resolve().parent.parent / "proto"
GENERATED = ("he_proto/v1/hesearch_pb2.py", "he_proto/v1/hesearch_pb2.pyi", "he_proto/v1/hesearch_pb2_grpc.py")


def _without_tool_versions(source: str) -> str:
    """Another release of protoc may write its own number, and nothing else."""
    source = re.sub(r"\d+\.\d+\.\d+", "VERSION", source)
    return re.sub(r"Domain\.PUBLIC,\s+\d+,\s+\d+,\s+\d+,", "Domain.PUBLIC, VERSION,", source)


def test_generated_code_is_current(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", str(PROTO), "he_proto/v1/hesearch.proto"]
    options = [f"--{kind}_out={tmp_path}" for kind in ("python", "grpc_python", "pyi")]
    subprocess.run(command + options, check=True, cwd=PROTO)
    for name in GENERATED:
        fresh, committed = (tmp_path / name).read_text(), (PROTO / name).read_text()
        assert _without_tool_versions(fresh) == _without_tool_versions(committed), f"run `make proto`: {name} is old"


# ---- identifiers ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["a", "7", "notes", "a.b_c-d", "x" * 128])
def test_names(name: str) -> None:
    assert wire.check_name(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", "-a", "_a", "a/b", "a b", "a\n", "é", "x" * 129, "a\0"])
def test_bad_names(name: str) -> None:
    with pytest.raises(InvalidInput, match="collection: got"):
        wire.check_name(name)


def test_context_round_trip() -> None:
    context = wire.context("notes", bytes(32))
    assert wire.check_context(context, collection="notes", parameter_digest=bytes(32)) == "notes"


@pytest.mark.parametrize(
    ("context", "error"),
    [
        (pb.Context(), FormatVersionError),
        (pb.Context(format_version=2, collection="notes", parameter_digest=bytes(32)), FormatVersionError),
        (pb.Context(format_version=1, collection="", parameter_digest=bytes(32)), InvalidInput),
        (pb.Context(format_version=1, collection="notes", parameter_digest=bytes(31)), InvalidInput),
        (pb.Context(format_version=1, collection="other", parameter_digest=bytes(32)), FormatVersionError),
        (pb.Context(format_version=1, collection="notes", parameter_digest=b"\1" * 32), FormatVersionError),
    ],
)
def test_bad_contexts(context: pb.Context, error: type[HesearchError]) -> None:
    with pytest.raises(error):
        wire.check_context(context, collection="notes", parameter_digest=bytes(32))


def _parts(*lengths: int) -> list[pb.Part]:
    return [pb.Part(kind=i + 1, length_bytes=n, sha256=bytes([i]) * 32) for i, n in enumerate(lengths)]


def test_segment_id_vector() -> None:
    """For other implementations: SHA-256 over the fields, each after its length as uint32."""
    identity = wire.segment_id(bytes(range(16)), bytes(range(32)), 3, _parts(48, 5))
    assert identity.hex() == "dfd4e5ec74b63debb8c41515a83ca95ea8a1b0437b896759bc369ebb47acc0ec"


def test_segment_id_depends_on_everything() -> None:
    base = (bytes(16), bytes(32), 3, _parts(48, 5))
    others = [
        (b"\1" + bytes(15), bytes(32), 3, _parts(48, 5)),
        (bytes(16), b"\1" + bytes(31), 3, _parts(48, 5)),
        (bytes(16), bytes(32), 4, _parts(48, 5)),
        (bytes(16), bytes(32), 3, _parts(48, 6)),
        (bytes(16), bytes(32), 3, _parts(48)),
        (bytes(16), bytes(32), 3, _parts(48, 5)[::-1]),
        (bytes(16), bytes(32), 3, [pb.Part(kind=1, length_bytes=48, sha256=b"\7" * 32), _parts(48, 5)[1]]),
        (bytes(16), bytes(32), 3, [_parts(48)[0], pb.Part(kind=3, length_bytes=5, sha256=b"\1" * 32)]),
    ]
    assert len({wire.segment_id(*fields) for fields in (base, *others)}) == 1 + len(others)


@pytest.mark.parametrize(
    "kinds", [[], [2], [2, 1], [1, 1], [1, 3, 2], [1, 6], [0, 1], [1, 2, 2]], ids=lambda kinds: str(kinds)
)
def test_bad_part_lists(kinds: list[int]) -> None:
    with pytest.raises(InvalidInput, match="parts"):
        wire.check_parts([pb.Part(kind=kind, length_bytes=1, sha256=bytes(32)) for kind in kinds])


def test_endless_part_lists_are_not_read() -> None:
    part = pb.Part(kind=pb.PART_KIND_INDEX, length_bytes=1, sha256=bytes(32))
    parts = iter([part] * 1000)
    with pytest.raises(InvalidInput, match="parts"):
        wire.check_parts(parts)
    assert len(list(parts)) >= 990


def test_part_digest_length() -> None:
    wire.check_parts(_parts(1, 2, 3, 4, 5))
    with pytest.raises(InvalidInput, match=r"parts\.INDEX\.sha256: got 31 bytes"):
        wire.check_parts([pb.Part(kind=1, length_bytes=1, sha256=bytes(31))])


# ---- parameters ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("parameters", [PARAMETERS, Parameters.choose("exact", 100), wire.TensealParameters(dim=7)])
def test_parameters_round_trip(parameters: wire.PublicParameters) -> None:
    message = pb.Parameters.FromString(wire.parameters_to_wire(parameters).SerializeToString())
    assert wire.parameters_from_wire(message) == parameters
    assert wire.parameters_from_wire(message).digest == parameters.digest
    expected = EngineKind.TENSEAL if isinstance(parameters, wire.TensealParameters) else EngineKind.HINT
    assert wire.engine_kind(parameters) is expected


def test_digests_differ() -> None:
    every = [PARAMETERS, Parameters.choose("compact", 4, 4), *(wire.TensealParameters(dim=d) for d in (4, 5))]
    assert len({parameters.digest for parameters in every}) == 4


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (pb.Parameters(), FormatVersionError),
        (pb.Parameters(engine=9, profile="compact", dim=4, stride=2), FormatVersionError),
        (pb.Parameters(engine=pb.ENGINE_HINT, profile="compact", dim=4), ParameterError),
        (pb.Parameters(engine=pb.ENGINE_HINT, profile="", dim=4, stride=2), ParameterError),
        (pb.Parameters(engine=pb.ENGINE_HINT, profile="compact", dim=0, stride=2), ParameterError),
        (pb.Parameters(engine=pb.ENGINE_HINT, profile="compact", dim=1 << 31, stride=2), ParameterError),
        (pb.Parameters(engine=pb.ENGINE_HINT, profile="compact", dim=4, stride=3), ParameterError),
        (pb.Parameters(engine=pb.ENGINE_TENSEAL, dim=4, stride=2), ParameterError),
        (pb.Parameters(engine=pb.ENGINE_TENSEAL, dim=4, stride=1, profile="exact"), ParameterError),
        (pb.Parameters(engine=pb.ENGINE_TENSEAL, dim=0, stride=1), ParameterError),
        (pb.Parameters(engine=pb.ENGINE_TENSEAL, dim=16385, stride=1), ParameterError),
    ],
)
def test_bad_parameters(message: pb.Parameters, error: type[HesearchError]) -> None:
    with pytest.raises(error):
        wire.parameters_from_wire(message)


# ---- chunks --------------------------------------------------------------------------------------------------
@given(st.lists(st.binary(max_size=40), max_size=8), st.integers(1, 16))
def test_joined(buffers: list[bytes], size: int) -> None:
    pieces = list(joined(buffers, size))
    assert b"".join(pieces) == b"".join(buffers)
    assert all(len(piece) == size for piece in pieces[:-1])
    assert all(1 <= len(piece) <= size for piece in pieces)


@given(st.binary(max_size=100), st.integers(1, 16))
def test_chunks(buffer: bytes, size: int) -> None:
    assert list(chunks(bytearray(buffer), size)) == list(joined([buffer], size))


def test_requests_fit_a_message() -> None:
    header = pb.AnswerHeader(queries=1)
    first, *rest = answer_requests(header, [memoryview(bytes(CHUNK_BYTES + 1))])
    assert first.header == header
    assert [len(request.chunk) for request in rest] == [CHUNK_BYTES, 1]


# ---- errors --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("cls", [cls for cls in all_errors() if cls.__module__ == "he_engine.errors"])
def test_errors_cross_the_wire(cls: type[HesearchError]) -> None:
    """Each arrives as itself, as its nearest ancestor that crosses, or, where only a client raises it, veiled."""
    status = status_of(cls("field: got 1, expected 2"))
    received = error_from_status(status.code, status.message, status.name)
    if status.name:
        assert issubclass(cls, type(received))
        assert str(received) == "field: got 1, expected 2"
    else:
        assert status.code is grpc.StatusCode.INTERNAL
        assert type(received) is HesearchError
        assert "field" not in str(received)


@pytest.mark.parametrize("error", [ValueError("/var/lib/x"), KeyError("k"), OSError(5, "/etc")])
def test_other_errors_say_nothing(error: Exception) -> None:
    status = status_of(error)
    assert (status.code, status.name) == (grpc.StatusCode.INTERNAL, "")
    assert status.message == status_of(RuntimeError("x")).message


@pytest.mark.parametrize(
    ("code", "cls"),
    [
        (grpc.StatusCode.UNAVAILABLE, Unavailable),
        (grpc.StatusCode.DEADLINE_EXCEEDED, Unavailable),
        (grpc.StatusCode.CANCELLED, Unavailable),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, Overloaded),
        (grpc.StatusCode.UNIMPLEMENTED, FormatVersionError),
        (grpc.StatusCode.NOT_FOUND, NotFound),
        (grpc.StatusCode.INTERNAL, HesearchError),
        (grpc.StatusCode.UNKNOWN, HesearchError),
    ],
)
def test_errors_of_grpc_itself(code: grpc.StatusCode, cls: type[HesearchError]) -> None:
    assert type(error_from_status(code, "why")) is cls


def test_a_server_cannot_choose_the_class_freely() -> None:
    """Nor one that only a client may raise, nor one of another status, nor any Python class."""
    for name in ("WrongKeyError", "NotFound", "SystemExit", "InvalidInput"):
        received = error_from_status(grpc.StatusCode.UNAVAILABLE, "x", name)
        assert type(received) is Unavailable


def test_messages_cannot_drive_a_terminal() -> None:
    received = error_from_status(grpc.StatusCode.NOT_FOUND, "a\x1b[2J\nb" + "c" * 5000, "NotFound")
    assert str(received).startswith("a?[2J?b")
    assert len(str(received)) == 1000
