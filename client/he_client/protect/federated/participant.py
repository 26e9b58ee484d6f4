"""A participant of federated learning, as a client of Flower: trains, encrypts, signs; checks, decrypts, applies.

    client = Participant(trainer, UpdateCipher(key, parameters, "north"), identity)
    flwr.client.start_client(server_address="…:8443", client=client, root_certificates=ca)

`fit` of a round answers with an encrypted update, `evaluate` takes the encrypted sum. No metric leaves: Flower's loss
is always 0 and its number of examples 1.
"""

from __future__ import annotations

import logging
import os
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from he_client.key_sharing import Identity
from he_client.protect.federated.cipher import UpdateCipher
from he_engine.encrypted_sums import TENSOR_TYPE
from he_engine.errors import HesearchError, InvalidInput, MissingExtra

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")  # read when it is imported
try:
    from flwr.client import Client
    from flwr.common import Code, EvaluateIns, EvaluateRes, FitIns, FitRes, Parameters, Status
except ImportError as error:
    raise MissingExtra(f"{error.name} is not installed: pip install '.[federated]'") from error

_LOG = logging.getLogger("hesearch.federated")


class Trainer(Protocol):
    """What is trained: a vector of L numbers, and how. Every participant starts from the same."""

    def train(self, round_: int) -> tuple[NDArray[np.float64], int]:
        """(change of the model (L,), its weight). The model itself stays as it is."""

    def apply(self, change: NDArray[np.float64]) -> None:
        """Add the average change (L,) to the model."""


class Participant(Client):
    """What goes wrong in a round is logged here, and told as a failure without a reason; it takes part in the next.

    One object is one run, from its first round on. A process that ended in the middle of a run must not begin it again:
    it would take sums of rounds that it has seen, and be sent other ones of the same (docs/federated.md, "Dropouts").
    """

    def __init__(self, trainer: Trainer, cipher: UpdateCipher, identity: Identity) -> None:
        """identity: signs updates; the aggregator knows `identity.public.signing`."""
        self._trainer, self._cipher, self._signing = trainer, cipher, identity.signing_key()

    def fit(self, ins: FitIns) -> FitRes:
        """A change of the model, encrypted, and a signature."""
        try:
            return FitRes(Status(Code.OK, ""), Parameters(self._update(ins), TENSOR_TYPE), 1, {})
        except Exception as error:  # Flower's client ends at any that leaves this
            _log("no update", error)
            return FitRes(Status(Code.FIT_NOT_IMPLEMENTED, ""), Parameters([], TENSOR_TYPE), 1, {})

    def evaluate(self, ins: EvaluateIns) -> EvaluateRes:
        """Takes a sum into the model, or leaves it as it is."""
        try:
            self._take(ins)
        except Exception as error:
            _log("a sum is refused", error)
            return EvaluateRes(Status(Code.EVALUATE_NOT_IMPLEMENTED, ""), 0.0, 1, {})
        return EvaluateRes(Status(Code.OK, ""), 0.0, 1, {})

    def _update(self, ins: FitIns) -> list[bytes]:
        round_ = _round(ins.config)
        change, weight = self._trainer.train(round_)
        update = self._cipher.encrypt(round_, change, weight)
        return [update, self._signing.sign(update)]

    def _take(self, ins: EvaluateIns) -> None:
        tensors = ins.parameters.tensors
        if len(tensors) != 1:
            raise InvalidInput(f"sum: got {len(tensors)} tensors, expected 1")
        self._trainer.apply(self._cipher.decrypt(_round(ins.config), tensors[0]).values)


def _log(what: str, error: Exception) -> None:
    """Ours say what was wrong and carry no values; of others, the class."""
    _LOG.error("%s: %s", what, error if isinstance(error, HesearchError) else type(error).__name__)


def _round(config: dict[str, bool | bytes | float | int | str]) -> int:
    if type(round_ := config.get("round")) is not int:
        raise InvalidInput("round: missing from what the aggregator sent")
    return round_
