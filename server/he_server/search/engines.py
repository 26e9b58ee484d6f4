"""The arithmetic behind each collection: one engine for each set of parameters, for as long as it is in demand."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from he_engine.engine import EngineKind, IndexFile, ServerEngine
from he_engine.errors import Unavailable
from he_engine.gpu_device import CupyDevice
from he_engine.gpu_indexes import GpuIndexes
from he_engine.gpu_server import GpuServer
from he_engine.hint_server import HintServer
from he_engine.mapping import Mappings
from he_engine.params import Parameters
from he_proto.wire import PublicParameters, engine_kind
from he_server.config import ServerConfig

#: Kept at a time. Each of TenSEAL's has worker processes.
MAX_ENGINES = {EngineKind.HINT: 32, EngineKind.TENSEAL: 8}

EngineMaker = Callable[[PublicParameters], ServerEngine]


def engine_maker(config: ServerConfig) -> EngineMaker:
    """Engines as the configuration wants them, for a process that computes answers; a front end of a cluster does not,
    and needs no GPU. Raises MissingExtra where there should be one and is none."""
    mappings = Mappings()
    on_gpu = GpuIndexes(CupyDevice()) if config.device == "gpu" and not config.cluster else None

    def make(parameters: PublicParameters) -> ServerEngine:
        if isinstance(parameters, Parameters):
            cpu = HintServer(parameters, config.target, mappings)
            return GpuServer(parameters, cpu, on_gpu) if on_gpu else cpu
        from he_engine.tenseal_server import TensealServer

        return TensealServer(parameters.dim, config.threads)

    return make


@dataclass(slots=True)
class _Kept:
    engine: ServerEngine
    kind: EngineKind
    users: int = 0


class Engines:
    """Thread-safe. `make` makes an engine that is the caller's own, and raises MissingExtra."""

    def __init__(self, make: EngineMaker) -> None:
        self.make = make
        self._lock = threading.Lock()
        self._kept: dict[bytes, _Kept] = {}  # by parameter digest, the latest used last

    @contextlib.contextmanager
    def using(self, parameters: PublicParameters) -> Iterator[ServerEngine]:
        """The engine, which is not closed before the block ends. It may take the place of one that nobody uses.

        Raises MissingExtra; Unavailable if as many as there may be are in use.
        """
        kept, replaced = self._take(parameters)
        try:
            if replaced:
                replaced.close()
            yield kept.engine
        finally:
            with self._lock:
                kept.users -= 1

    def _take(self, parameters: PublicParameters) -> tuple[_Kept, ServerEngine | None]:
        """The engine, with one user more; and the one that makes room for it, to be closed."""
        with self._lock:
            kept, replaced = self._kept.pop(parameters.digest, None), None
            if kept is None:
                kind = engine_kind(parameters)
                others = [(digest, other) for digest, other in self._kept.items() if other.kind is kind]
                idle = next((digest for digest, other in others if not other.users), None)
                full = len(others) >= MAX_ENGINES[kind]
                if full and idle is None:
                    raise Unavailable(f"engines: {len(others)} of other parameters are in use, and no more can be now")
                kept = _Kept(self.make(parameters), kind)
                if full and idle is not None:
                    replaced = self._kept.pop(idle).engine
            kept.users += 1
            self._kept[parameters.digest] = kept
            return kept, replaced

    def forget(self, parameter_digest: bytes, index: IndexFile) -> None:
        """It has gone."""
        with self._lock:
            kept = self._kept.get(parameter_digest)
        if kept:
            kept.engine.forget(index)

    def close(self) -> None:
        with self._lock:
            engines = [kept.engine for kept in self._kept.values()]
            self._kept.clear()
        for engine in engines:
            engine.close()
