"""The aggregator of federated learning, as a strategy of Flower: adds up encrypted updates. It holds no key.

    strategy = EncryptedAverage(parameters, {"north": its Ed25519 public key, …}, minimum=3)
    flwr.server.start_server(server_address="127.0.0.1:8443", strategy=strategy, certificates=(ca, certificate, key),
                             config=flwr.server.ServerConfig(num_rounds=20, round_timeout=600))

A round is two exchanges: `fit` brings an update from each participant, signed by it; `evaluate` hands their sum to all
connected ones, who decrypt it. No model, metric or number of records passes here. What a participant says of itself
(connection, number of examples) is not believed: its signature says who it is.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from he_engine.encrypted_sums import START, TENSOR_TYPE, EncryptedSum, SumParameters, Update, after, check_name
from he_engine.errors import HesearchError, InvalidInput, MissingExtra, TamperedDataError

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")  # read when it is imported
try:
    from flwr.common import EvaluateIns, EvaluateRes, FitIns, FitRes, Parameters
    from flwr.server.client_manager import ClientManager
    from flwr.server.client_proxy import ClientProxy
    from flwr.server.strategy import Strategy
except ImportError as error:
    raise MissingExtra(f"{error.name} is not installed: pip install '.[federated]'") from error

_LOG = logging.getLogger("hesearch.federated")


class EncryptedAverage(Strategy):
    """Sums of encrypted updates, round by round. Raises InvalidInput."""

    def __init__(
        self, parameters: SumParameters, participants: Mapping[str, bytes], minimum: int, wait_s: float = 600.0
    ) -> None:
        """participants: name → Ed25519 public key, 32 bytes. minimum: of updates for a sum; participants may ask for
        more. wait_s: until all are connected, before the first round; then for none."""
        if not 2 <= minimum <= len(participants) <= parameters.participants:
            raise InvalidInput(
                f"participants: got {len(participants)}, expected from {minimum}, the minimum, which is 2 or more, "
                f"to {parameters.participants}"
            )
        self._parameters, self._minimum, self._wait_s = parameters, minimum, wait_s
        self._keys = {check_name(name): _public_key(raw) for name, raw in participants.items()}
        self._sum: Parameters | None = None
        self._history = START

    # ---- Flower's half -------------------------------------------------------------------------------------------
    def initialize_parameters(self, client_manager: ClientManager) -> Parameters:
        """None: participants make the first model themselves."""
        client_manager.wait_for(len(self._keys), int(self._wait_s))
        return Parameters([], TENSOR_TYPE)

    def configure_fit(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[tuple[ClientProxy, FitIns]]:
        del parameters
        self._sum = None
        everybody = list(client_manager.all().values())
        if len(everybody) < self._minimum:
            return []
        return [(proxy, FitIns(Parameters([], TENSOR_TYPE), {"round": server_round})) for proxy in everybody]

    def aggregate_fit(
        self,
        server_round: int,
        results: list[tuple[ClientProxy, FitRes]],
        failures: list[tuple[ClientProxy, FitRes] | BaseException],
    ) -> tuple[Parameters | None, dict[str, Any]]:
        """The sum of the updates that are in order, if they are enough. Others are logged, and left out."""
        taken: dict[str, Update] = {}
        for _, result in results:
            try:
                update = self.accept(result.parameters.tensors, server_round)
                if update.name in taken:
                    raise InvalidInput(f"update: a second one from {update.name}")
                taken[update.name] = update
            except HesearchError as error:
                _LOG.warning("round %d: an update is refused: %s", server_round, error)
        metrics = {"taken": len(taken), "refused": len(results) - len(taken), "failed": len(failures)}
        if len(taken) < self._minimum:
            _LOG.warning("round %d: no sum: %d updates, expected %d", server_round, len(taken), self._minimum)
            return None, metrics
        total = EncryptedSum.of(list(taken.values()), self._parameters)
        self._sum = Parameters([total.to_bytes(self._parameters, server_round, self._history)], TENSOR_TYPE)
        return self._sum, metrics

    def configure_evaluate(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[tuple[ClientProxy, EvaluateIns]]:
        del parameters
        if (total := self._sum) is None:
            return []
        return [(proxy, EvaluateIns(total, {"round": server_round})) for proxy in client_manager.all().values()]

    def aggregate_evaluate(
        self,
        server_round: int,
        results: list[tuple[ClientProxy, EvaluateRes]],
        failures: list[tuple[ClientProxy, EvaluateRes] | BaseException],
    ) -> tuple[float | None, dict[str, Any]]:
        if failures:
            _LOG.warning("round %d: %d participants did not take the sum", server_round, len(failures))
        if results and self._sum is not None:  # who did not take it is out of step, and refused from now on
            self._history = after(self._history, self._sum.tensors[0])
        return None, {"received": len(results), "failed": len(failures)}

    def evaluate(self, server_round: int, parameters: Parameters) -> None:
        """Nothing: who cannot decrypt a model cannot evaluate it."""

    # ---- ours ----------------------------------------------------------------------------------------------------
    def accept(self, tensors: list[bytes], round_: int) -> Update:
        """An update and the signature of the participant that it names.

        Raises FormatVersionError, ResidueError; InvalidInput (not two tensors, or a stranger's); TamperedDataError (the
        signature).
        """
        if len(tensors) != 2:
            raise InvalidInput(f"update: got {len(tensors)} tensors, expected 2: the update and its signature")
        update = Update.parse(tensors[0], self._parameters, round_, self._history)
        if (key := self._keys.get(update.name)) is None:
            raise InvalidInput("update: from nobody who takes part")
        try:
            key.verify(tensors[1], tensors[0])
        except InvalidSignature:
            raise TamperedDataError(f"update: not signed by {update.name}") from None
        return update


def _public_key(raw: bytes) -> Ed25519PublicKey:
    try:
        return Ed25519PublicKey.from_public_bytes(raw)
    except ValueError:
        raise InvalidInput("participants: a public key is not one of Ed25519") from None
