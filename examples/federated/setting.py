"""What the hospitals and the aggregator agree on before they start. Nothing in it is secret."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from he_engine.encrypted_sums import SumParameters


@dataclass(frozen=True, kw_only=True)
class Setting:
    seed: int = 0  #: of records' split, first model and minibatches; of no key
    records: int | None = None  #: so many of all; None: all
    hospitals: int = 5
    alpha: float = 0.5  #: of the Dirichlet distribution
    rounds: int = 30
    epochs: int = 1  #: over a hospital's records, each round
    learning_rate: float = 1.0  #: of minibatches
    bound: float = 8.0  #: of a coordinate's change in a round
    run: str = field(default_factory=lambda: os.urandom(16).hex())
    retries: int = 20  #: of a hospital that does not reach the aggregator yet

    @property
    def names(self) -> list[str]:
        return [f"hospital-{number}" for number in range(self.hospitals)]

    @property
    def minimum(self) -> int:
        """Hospitals in a sum that is decrypted: all but one, and three where there are as many."""
        return max(min(3, self.hospitals), self.hospitals - 1)

    def parameters(self, values: int) -> SumParameters:
        return SumParameters(
            values=values,
            participants=self.hospitals,
            max_weight=20_000,
            bound=self.bound,
            run=bytes.fromhex(self.run),
        )

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Setting:
        return cls(**json.loads(path.read_text()))
