"""The client's half of the engine that a collection names."""

from __future__ import annotations

from he_engine.engine import ClientEngine, EngineKind
from he_engine.errors import ParameterError
from he_engine.keys import RootKey
from he_engine.params import Parameters
from he_proto import wire


def choose_parameters(engine: str, profile: str | None, dim: int, stride: int | None) -> wire.PublicParameters:
    """Checked parameters of a new collection. Raises ParameterError."""
    if engine == EngineKind.HINT:
        return Parameters.choose(profile or "exact", dim, stride)
    if engine == EngineKind.TENSEAL:
        if profile is not None or stride is not None:
            raise ParameterError("profile and stride belong to the engine 'hint'; leave them out for 'tenseal'")
        return wire.TensealParameters(dim=dim)
    raise ParameterError(f"engine: got {engine!r}, expected 'hint' or 'tenseal'")


def generate_state(parameters: wire.PublicParameters) -> bytes:
    """What a new collection seals in its manifest for its engine: a public nonce, or SEAL's secret key."""
    if isinstance(parameters, Parameters):
        from he_engine import hint_client

        return hint_client.generate_state()
    from he_engine import tenseal_client

    return tenseal_client.generate_state()


def make_engine(
    parameters: wire.PublicParameters, key: RootKey, collection_id: bytes, state: bytes, *, threads: int | None
) -> ClientEngine:
    if isinstance(parameters, Parameters):
        from he_engine.hint_client import HintClient

        return HintClient(parameters, key, collection_id, state, threads=threads)
    from he_engine.tenseal_client import TensealClient

    return TensealClient(parameters.dim, state)
