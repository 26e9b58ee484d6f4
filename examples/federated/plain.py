"""Flower's FedAvg in the clear, to compare with: the same hospitals, weights as float32."""

from __future__ import annotations

from flwr.client import Client
from flwr.common import (
    Code,
    EvaluateIns,
    EvaluateRes,
    FitIns,
    FitRes,
    Parameters,
    Status,
    ndarrays_to_parameters,
    parameters_to_ndarrays,
)
from flwr.server import Server
from flwr.server.strategy import FedAvg

from examples.federated.hospital import Hospital
from examples.federated.model import F64


class PlainHospital(Client):
    """Takes the average model, trains, and sends its own model as it is."""

    def __init__(self, hospital: Hospital) -> None:
        self._hospital, self._round = hospital, 0

    def fit(self, ins: FitIns) -> FitRes:
        (weights,) = parameters_to_ndarrays(ins.parameters)
        self._hospital.weights = weights.astype(float)
        self._round += 1
        change, records = self._hospital.train(self._round)
        trained = (self._hospital.weights + change).astype("float32")
        return FitRes(Status(Code.OK, ""), ndarrays_to_parameters([trained]), records, {})

    def evaluate(self, ins: EvaluateIns) -> EvaluateRes:
        raise NotImplementedError


class Average(FedAvg):
    """Flower's own."""

    @staticmethod
    def weights(server: Server) -> F64:
        (found,) = parameters_to_ndarrays(server.parameters)
        return found.astype(float)


def average(first: F64, hospitals: int) -> Average:
    """All hospitals in each round, from the model `first`."""
    parameters: Parameters = ndarrays_to_parameters([first.astype("float32")])
    return Average(
        fraction_fit=1.0,
        fraction_evaluate=0.0,
        min_fit_clients=hospitals,
        min_evaluate_clients=hospitals,
        min_available_clients=hospitals,
        initial_parameters=parameters,
        accept_failures=False,
    )
