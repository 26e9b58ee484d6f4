"""The arithmetic behind each collection: one engine for each set of parameters, made when first needed."""

from __future__ import annotations

import threading
from collections.abc import Callable

from he_engine.engine import IndexFile, ServerEngine
from he_engine.errors import LimitExceeded
from he_engine.params import Parameters
from he_proto.wire import PublicParameters, TensealParameters
from he_server.config import ServerConfig

MAX_TENSEAL_ENGINES = 8  #: each has worker processes

EngineMaker = Callable[[PublicParameters], ServerEngine]


def engine_maker(config: ServerConfig) -> EngineMaker:
    """Engines as the configuration wants them."""

    def make(parameters: PublicParameters) -> ServerEngine:
        if isinstance(parameters, Parameters):
            from he_engine.hint_server import HintServer

            return HintServer(parameters, config.target)
        from he_engine.tenseal_server import TensealServer

        return TensealServer(parameters.dim, config.threads)

    return make


class Engines:
    """Thread-safe."""

    def __init__(self, make: EngineMaker) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._engines: dict[bytes, ServerEngine] = {}
        self._tenseal = 0

    def find(self, parameter_digest: bytes) -> ServerEngine | None:
        """The engine, if it has been made."""
        with self._lock:
            return self._engines.get(parameter_digest)

    def get(self, parameters: PublicParameters) -> ServerEngine:
        """Raises MissingExtra; LimitExceeded for the ninth dimension of TenSEAL collections."""
        with self._lock:
            engine = self._engines.get(parameters.digest)
            if engine is None:
                if isinstance(parameters, TensealParameters):
                    if self._tenseal == MAX_TENSEAL_ENGINES:
                        raise LimitExceeded(
                            f"dim: got {parameters.dim}, but this server has TenSEAL collections of "
                            f"{MAX_TENSEAL_ENGINES} other dimensions, and no more at a time"
                        )
                    self._tenseal += 1
                engine = self._engines[parameters.digest] = self._make(parameters)
            return engine

    def forget(self, index: IndexFile) -> None:
        """The file has gone."""
        with self._lock:
            engines = list(self._engines.values())
        for engine in engines:
            engine.forget(index)

    def close(self) -> None:
        with self._lock:
            engines = list(self._engines.values())
            self._engines.clear()
        for engine in engines:
            engine.close()
