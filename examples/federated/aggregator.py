"""The aggregator as a process: `python -m examples.federated.aggregator`. It imports nothing that could decrypt.

It gets a port, a certificate, and what everybody knows: the setting and the hospitals' public keys. When training is
over it leaves result.json (rounds, bytes, and the modules it has loaded), says so in a line and waits for the end of
its input, so that somebody may look into its memory first.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Any

from examples.federated.setting import Setting
from he_server.federated import EncryptedAverage


class Counting(EncryptedAverage):
    """The strategy, and how many bytes came and went."""

    came = went = 0

    def aggregate_fit(self, server_round: int, results: Any, failures: Any) -> Any:
        self.came += sum(len(tensor) for _, result in results for tensor in result.parameters.tensors)
        return super().aggregate_fit(server_round, results, failures)

    def configure_evaluate(self, server_round: int, parameters: Any, client_manager: Any) -> Any:
        sent = super().configure_evaluate(server_round, parameters, client_manager)
        self.went += sum(len(tensor) for _, instruction in sent for tensor in instruction.parameters.tensors)
        return sent


def main() -> int:
    parser = argparse.ArgumentParser(description="The aggregator of a federation, as a process of its own.")
    parser.add_argument("--common", type=Path, required=True, help="setting.json, participants.json, ca.pem")
    parser.add_argument("--own", type=Path, required=True, help="server.pem, server.key")
    parser.add_argument("--values", type=int, required=True, help="numbers in an update")
    parser.add_argument("--listen", required=True, metavar="HOST:PORT")
    arguments = parser.parse_args()
    from flwr.server import ServerConfig, start_server

    logging.getLogger("flwr").setLevel(logging.ERROR)
    setting = Setting.load(arguments.common / "setting.json")
    people = json.loads((arguments.common / "participants.json").read_text())
    keys = {name: bytes.fromhex(one["signs"]) for name, one in people.items()}
    strategy = Counting(setting.parameters(arguments.values), keys, setting.minimum)
    files = arguments.common / "ca.pem", arguments.own / "server.pem", arguments.own / "server.key"
    ca, certificate, key = (file.read_bytes() for file in files)
    history = start_server(
        server_address=arguments.listen,
        strategy=strategy,
        config=ServerConfig(num_rounds=setting.rounds, round_timeout=120),
        certificates=(ca, certificate, key),
    )
    taken = [count for _, count in history.metrics_distributed_fit.get("taken", [])]
    result = {"taken": taken, "bytes_in": strategy.came, "bytes_out": strategy.went, "modules": [*sys.modules]}
    (arguments.own / "result.json").write_text(json.dumps(result))
    print("done", flush=True)
    sys.stdin.read()
    return 0


if __name__ == "__main__":
    sys.exit(main())
