"""Federated learning with Flower: the aggregator's strategy, its participants, and the example as it is run."""

from __future__ import annotations

import builtins
import importlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from flwr.client import start_client
from flwr.common import Code, EvaluateIns, FitIns, FitRes, Parameters, Status
from flwr.server import Server, SimpleClientManager
from flwr.server.superlink.fleet.grpc_bidi.grpc_server import start_grpc_server

from examples.federated import in_process, processes, run, table
from examples.federated.hospital import PrivateHospital
from examples.federated.model import Model
from examples.federated.records import Records, load_records, split
from examples.federated.setting import Setting
from he_client import CollectionKey
from he_client.key_sharing import Identity
from he_client.protect.dp import PrivacyBudget
from he_client.protect.federated import SumParameters, UpdateCipher
from he_client.protect.federated.participant import Participant
from he_engine.encrypted_sums import TENSOR_TYPE
from he_engine.errors import (
    BudgetExceeded,
    FormatVersionError,
    InvalidInput,
    MissingExtra,
    TamperedDataError,
)
from he_server.federated import EncryptedAverage
from tests.tls_fixture import Authority

P = SumParameters(values=3, participants=4, max_weight=10, bound=1.0, run=bytes(16))
NAMES = ("north", "south", "west")
KEY = CollectionKey(bytes(range(32)))
IDENTITIES = {name: Identity(bytes([number]) * 32) for number, name in enumerate(NAMES)}
PEOPLE = {name: identity.public.signing for name, identity in IDENTITIES.items()}


class Adds:
    """A trainer whose change is the same in each round."""

    def __init__(self, change: float, weight: int = 1) -> None:
        self.model, self._change, self._weight = np.zeros(3), change, weight

    def train(self, round_: int) -> tuple[np.ndarray[Any, Any], int]:
        if round_ == 2 and self._change < 0:
            raise ValueError("this one drops out in round 2")
        return np.full(3, self._change), self._weight

    def apply(self, change: np.ndarray[Any, Any]) -> None:
        self.model = self.model + change


def participant(name: str, trainer: Adds, key: CollectionKey = KEY) -> Participant:
    return Participant(trainer, UpdateCipher(key, P, name, minimum=2), IDENTITIES[name])


def fitted(name: str, round_: int = 1) -> list[bytes]:
    ins = FitIns(Parameters([], TENSOR_TYPE), {"round": round_})
    return participant(name, Adds(0.5)).fit(ins).parameters.tensors


def strategy(minimum: int = 2) -> EncryptedAverage:
    return EncryptedAverage(P, PEOPLE, minimum)


# ---- the strategy ----------------------------------------------------------------------------------------------
def test_rounds_in_flowers_server() -> None:
    trainers = [Adds(0.5), Adds(0.25, weight=3), Adds(-0.25, weight=4)]
    clients = [participant(name, trainer) for name, trainer in zip(NAMES, trainers, strict=True)]
    aggregator = strategy()
    in_process.run(aggregator, clients, rounds=1)
    first = (0.5 + 3 * 0.25 - 4 * 0.25) / 8
    assert [trainer.model.tolist() for trainer in trainers] == [[pytest.approx(first, abs=1e-6)] * 3] * 3


def test_who_fails_in_a_round_is_left_out_and_goes_on() -> None:
    trainers = [Adds(0.5), Adds(0.25), Adds(-0.75)]
    clients = [participant(name, trainer) for name, trainer in zip(NAMES, trainers, strict=True)]
    in_process.run(strategy(), clients, rounds=3)
    expected = 0.0 + 0.375 + 0.0  # the third drops out in the second round, and takes its sum none the less
    assert [trainer.model.tolist() for trainer in trainers] == [[pytest.approx(expected, abs=1e-6)] * 3] * 3


def test_no_sum_of_too_few(caplog: pytest.LogCaptureFixture) -> None:
    trainers = [Adds(0.5), Adds(0.25), Adds(-0.3)]
    clients = [participant(name, trainer) for name, trainer in zip(NAMES, trainers, strict=True)]
    in_process.run(strategy(minimum=3), clients, rounds=3)
    assert "no sum: 2 updates, expected 3" in caplog.text
    assert np.allclose(trainers[0].model, 2 * 0.15, atol=1e-6)  # rounds 1 and 3


def test_accepted() -> None:
    assert strategy().accept(fitted("north"), 1).name == "north"


def test_updates_that_are_not_signed_by_who_they_are_from() -> None:
    update, signature = fitted("north")
    _, other = fitted("south")
    changed = update[:-1] + bytes([update[-1] ^ 1])
    for tensors in ([update, other], [update, b""], [update, signature[:-1]], [changed, signature]):
        with pytest.raises(TamperedDataError, match="not signed by north"):
            strategy().accept(tensors, 1)


@pytest.mark.parametrize("tensors", [[], [b""], [b"", b"", b""]])
def test_updates_of_another_form(tensors: list[bytes]) -> None:
    with pytest.raises(InvalidInput, match="expected 2"):
        strategy().accept(tensors, 1)


def test_strangers_and_old_updates() -> None:
    only = EncryptedAverage(P, {name: PEOPLE[name] for name in NAMES[:2]}, 2)
    with pytest.raises(InvalidInput, match="nobody who takes part"):
        only.accept(fitted("west"), 1)
    with pytest.raises(FormatVersionError, match="round 1, expected 2"):
        only.accept(fitted("north", 1), 2)


def test_bad_updates_stop_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    aggregator = strategy()
    sent = [fitted("north"), fitted("north"), [b"x" * 100, b""], fitted("south"), [fitted("west")[0], b""]]
    results: list[Any] = [
        (None, FitRes(Status(Code.OK, ""), Parameters(tensors, TENSOR_TYPE), 1, {})) for tensors in sent
    ]
    total, metrics = aggregator.aggregate_fit(1, results, [])
    assert metrics == {"taken": 2, "refused": 3, "failed": 0}
    assert total is not None
    trainer = Adds(0.0)
    participant("west", trainer).evaluate(EvaluateIns(total, {"round": 1}))
    assert np.allclose(trainer.model, 0.5)
    assert caplog.text.count("an update is refused") == 3


@pytest.mark.parametrize("people", [{}, {"north": PEOPLE["north"]}, {f"h{n}": bytes(32) for n in range(5)}])
def test_participants_and_minimum(people: dict[str, bytes]) -> None:
    with pytest.raises(InvalidInput, match="participants: got"):
        EncryptedAverage(P, people, 2)


def test_a_key_that_is_none() -> None:
    with pytest.raises(InvalidInput, match="Ed25519"):
        EncryptedAverage(P, {"north": b"", "south": b"x"}, 2)


def test_who_missed_a_sum_is_refused_and_the_others_go_on() -> None:
    class Misses(Participant):
        def evaluate(self, ins: EvaluateIns) -> Any:
            if ins.config["round"] == 2:
                raise OSError("the line is down")
            return super().evaluate(ins)

    trainers = [Adds(0.5), Adds(0.25), Adds(0.75)]
    clients = [participant(name, trainer) for name, trainer in zip(NAMES[:2], trainers, strict=False)]
    last = Misses(trainers[2], UpdateCipher(KEY, P, NAMES[2], minimum=2), IDENTITIES[NAMES[2]])
    in_process.run(strategy(), [*clients, last], rounds=4)
    assert [round(trainer.model[0], 5) for trainer in trainers] == [0.5 + 0.5 + 0.375 + 0.375] * 2 + [0.5]


# ---- a participant -----------------------------------------------------------------------------------------------
def test_a_participant_refuses_and_keeps_its_model(caplog: pytest.LogCaptureFixture) -> None:
    trainer = Adds(0.5)
    one = participant("north", trainer)
    nothing = one.fit(FitIns(Parameters([], TENSOR_TYPE), {}))
    assert (nothing.status.code, nothing.status.message) == (Code.FIT_NOT_IMPLEMENTED, "")
    assert (nothing.parameters.tensors, nothing.metrics) == ([], {})
    other = participant("south", Adds(0.5), CollectionKey.generate())
    ins = FitIns(Parameters([], TENSOR_TYPE), {"round": 1})
    results: list[Any] = [(None, each.fit(ins)) for each in (one, other)]
    total, _ = strategy().aggregate_fit(1, results, [])
    assert total is not None
    for sent in (Parameters([], TENSOR_TYPE), total):
        told = one.evaluate(EvaluateIns(sent, {"round": 1}))
        assert (told.status.code, told.status.message) == (Code.EVALUATE_NOT_IMPLEMENTED, "")
    assert (trainer.model == 0).all()
    assert [reason in caplog.text for reason in ("round: missing", "expected 1", "not decrypted")] == [True] * 3


class _Forges(EncryptedAverage):
    """Alters the sum of the first round."""

    def aggregate_fit(self, server_round: int, results: Any, failures: Any) -> Any:
        total, metrics = super().aggregate_fit(server_round, results, failures)
        if server_round == 1:
            assert total is not None
            raw = bytearray(total.tensors[0])
            raw[-1] ^= 1
            self._sum = Parameters([bytes(raw)], TENSOR_TYPE)
        return total, metrics


def test_a_forged_sum_ends_no_process_of_flowers() -> None:
    """Through Flower's own client, which an exception would end."""
    address = f"127.0.0.1:{processes.free_port()}"
    manager = SimpleClientManager()
    listening = start_grpc_server(manager, address)
    trainers = [Adds(0.5), Adds(0.25), Adds(-0.75)]  # the third fails in the second round, too
    threads = [
        threading.Thread(
            target=start_client,
            kwargs={"server_address": address, "client": participant(name, trainer), "insecure": True},
        )
        for name, trainer in zip(NAMES, trainers, strict=True)
    ]
    for thread in threads:
        thread.start()
    server = Server(client_manager=manager, strategy=_Forges(P, PEOPLE, 2, wait_s=60))
    try:
        server.fit(3, timeout=60)
        server.disconnect_all_clients(timeout=60)
    finally:
        listening.stop(0).wait()
    for thread in threads:
        thread.join(60)
    expected = 0.0 + 0.375 + 0.0
    assert [trainer.model.tolist() for trainer in trainers] == [[pytest.approx(expected, abs=1e-6)] * 3] * 3


def test_nothing_else_is_said() -> None:
    """Flower has fields for numbers of examples and metrics: they say nothing of the records."""
    result = participant("north", Adds(0.5, weight=7)).fit(FitIns(Parameters([], TENSOR_TYPE), {"round": 1}))
    assert (result.num_examples, result.metrics) == (1, {})


@pytest.mark.parametrize("module", ["he_server.federated", "he_client.protect.federated.participant"])
def test_without_flower(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *rest: Any) -> Any:
        if name.split(".")[0] == "flwr":
            raise ModuleNotFoundError("No module named 'flwr'", name="flwr")
        return real(name, *rest)

    monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(MissingExtra, match=r"pip install '\.\[federated\]'"):
        importlib.import_module(module)


@pytest.mark.parametrize(
    "module", ["he_server.federated", "he_client.protect.federated.participant", "examples.federated.in_process"]
)
def test_telemetry_is_off(module: str) -> None:
    """Flower's own default would be on."""
    code = f"import {module}; from flwr.supercore import telemetry; print(telemetry.FLWR_TELEMETRY_ENABLED)"
    usual = {name: value for name, value in os.environ.items() if name != "FLWR_TELEMETRY_ENABLED"}
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=usual)
    assert told.stdout == "0\n"


# ---- what is trained ---------------------------------------------------------------------------------------------
def test_gradient_and_its_clipping() -> None:
    """Against differences of the loss; and each record's clipped by itself."""
    rng = np.random.default_rng(1)
    model = Model(dim=4, classes=3, rank=2)
    vectors = rng.normal(size=(6, 4)).astype(np.float32)
    records = Records(vectors, np.array([0, 1, 2, 0, 1, 2]))
    weights = rng.normal(size=model.size)

    def loss(w: np.ndarray[Any, Any]) -> float:
        logits = model._forward(w, vectors.astype(float))[2]
        return float(np.sum(np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(6), records.labels]))

    steps = np.eye(model.size) * 1e-6
    differences = [(loss(weights + step) - loss(weights - step)) / 2e-6 for step in steps]
    assert np.allclose(model.gradient(weights, records), differences, atol=1e-5)

    last = model.size - (4 + 1) * 3  # the classifier's begin there
    each = [model.gradient(weights, records[np.array([row])])[last:] for row in range(6)]
    norms = [float(np.linalg.norm(one)) for one in each]
    clip = float(np.median(norms))
    expected = sum(one * min(1, clip / norm) for one, norm in zip(each, norms, strict=True))
    assert min(norms) < clip < max(norms)
    assert np.allclose(model.clipped_gradient(weights, records, clip), expected)


def test_training_that_grows_without_bound_says_so() -> None:
    rng = np.random.default_rng(3)
    records = Records(np.ones((64, 8), np.float32), rng.integers(0, 3, 64))
    model = Model(dim=8, classes=3, rank=2, learning_rate=1e6)
    with pytest.raises(FloatingPointError):
        model.train(model.initial(0), records, 50, rng)


def test_replacing_a_record_moves_the_gradient_by_less_than_the_sensitivity() -> None:
    """Noise is for that much, and no less: with two classes, and weights that tell neither, a record of the other class
    has the opposite gradient, as long as may be."""
    rng = np.random.default_rng(2)
    model = Model(dim=8, classes=2, rank=2)
    worst = 0.0
    for scale in (0.0, 0.1, 1.0, 5.0):
        for _ in range(20):
            vectors = rng.normal(size=(5, 8)).astype(np.float32)
            labels, weights = rng.integers(0, 2, 5), scale * rng.normal(size=model.size)
            changed = labels.copy()
            changed[2] = 1 - labels[2]
            pair = [
                model.clipped_gradient(weights, Records(vectors, each), PrivateHospital.CLIP)
                for each in (labels, changed)
            ]
            worst = max(worst, float(np.linalg.norm(pair[0] - pair[1])))
    assert 1.99 * PrivateHospital.CLIP < worst <= PrivateHospital.SENSITIVITY


def test_private_training_shows_what_the_mechanism_released_and_nothing_else() -> None:
    released: list[tuple[np.ndarray[Any, Any], float]] = []

    class Recorder:
        def release(self, values: np.ndarray[Any, Any], *, sensitivity: float) -> np.ndarray[Any, Any]:
            released.append((values, sensitivity))
            return np.full(values.shape, 3.0)

    rng = np.random.default_rng(4)
    model = Model(dim=8, classes=3, rank=2)
    records = Records(rng.normal(size=(10, 8)).astype(np.float32), rng.integers(0, 3, 10))
    hospital = PrivateHospital(Setting(), model, records, 0, Recorder())
    change, weight = hospital.train(1)
    ((values, sensitivity),) = released
    assert np.array_equal(values, model.clipped_gradient(hospital.weights, records, PrivateHospital.CLIP))
    assert sensitivity >= 2 * PrivateHospital.CLIP
    moved = np.zeros(model.size)
    moved[-values.size :] = -PrivateHospital.LEARNING_RATE * 3.0 / 10
    assert np.allclose(change, np.clip(moved, -Setting().bound, Setting().bound))
    assert weight == 10


def test_records_are_finite() -> None:
    with pytest.raises(ValueError, match="not finite"):
        Records(np.array([[1.0, np.nan]], np.float32), np.array([0]))


def test_private_training_is_paid_for_once(tmp_path: Path) -> None:
    setting = Setting(records=300, hospitals=2, rounds=2)
    records, classes = load_records(300)
    federation = run.Federation(setting, *split(records, 2, setting.alpha, setting.seed), classes)
    federation.private(8.0, tmp_path)
    for number in range(2):
        report = PrivacyBudget.open(tmp_path / f"0-{number}.budget").report()
        assert (report.epsilon, report.delta) == (8.0, run.DELTA)
        assert report.spent_share == pytest.approx(1)
    with pytest.raises(BudgetExceeded):
        federation.private(8.0, tmp_path)


# ---- the example ---------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of the example as its README says to try it."""
    path = tmp_path_factory.mktemp("federated") / "figures.json"
    command = [sys.executable, "-m", "examples.federated.run", "--small", "--json", str(path)]
    ran = subprocess.run(command, cwd=processes.ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert ran.returncode == 0, ran.stderr
    found: dict[str, Any] = json.loads(path.read_text())
    assert table.markdown(found) in ran.stdout
    return found


def test_encrypted_is_as_accurate_as_in_the_clear(figures: dict[str, Any]) -> None:
    """Within half a point, by a model that has learnt something."""
    assert max(abs(one) for one in figures["encrypted_less_plain"]) <= 0.005
    ways = figures["ways"]
    assert ways["plain"]["accuracy"] > ways["local"]["accuracy"] > 1 / figures["classes"]
    assert ways["encrypted"]["bytes_up"] > 2 * ways["plain"]["bytes_up"]


def test_the_readme_has_the_table_of_the_committed_figures(figures: dict[str, Any]) -> None:
    committed = json.loads((processes.ROOT / "docs/figures/federated.json").read_text())
    text = run.README.read_text()
    assert table.inserted(text, committed) == text
    assert table.inserted(text, figures) != text
    with pytest.raises(ValueError, match="markers"):
        table.inserted("", figures)
    assert max(abs(one) for one in committed["encrypted_less_plain"]) <= 0.005
    assert committed["processes"]["aggregator_can_decrypt"] == []


def counted(pid: int, patterns: dict[str, bytes]) -> dict[str, int]:
    """How often each is in the writable memory of another process."""
    found = dict.fromkeys(patterns, 0)
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, access, *_ = line.split()
            if access.startswith("rw"):
                first, last = (int(end, 16) for end in span.split("-"))
                memory.seek(first)
                try:
                    piece = memory.read(last - first)
                except OSError:  # a device's pages
                    continue
                for name, pattern in patterns.items():
                    found[name] += piece.count(pattern)
    return found


def test_separate_processes_over_tls() -> None:
    """They end by themselves, with one model; and of the secrets nothing is in the aggregator's memory."""
    setting = Setting(records=400, hospitals=2, rounds=2)
    model, key = Model(dim=256, classes=22), CollectionKey.generate()
    parameters = setting.parameters(model.size)
    secret = UpdateCipher(key, parameters, "x")._secret_key(key)
    patterns = {
        "root key": bytes(key.reveal()),
        "secret of the run": secret[len(secret) // 2 :][:32],
        "key of the tags": key.derive("federated run", parameters.digest),
        "digest": parameters.digest,  # what it must have: the search finds things
    }
    seen: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        found = processes.run(
            setting, model.size, Path(folder), key, look=lambda pid: seen.update(counted(pid, patterns))
        )
    assert found["aggregator"]["taken"] == [2, 2]
    assert seen.pop("digest") > 0
    assert seen == {"root key": 0, "secret of the run": 0, "key of the tags": 0}
    loaded = found["aggregator"]["modules"]
    assert [name for name in loaded if name.split(".")[0] in ("tenseal", "he_client")] == []
    first, second = (one["weights"] for one in found["hospitals"])
    assert first == second
    assert np.abs(np.array(first) - model.initial(setting.seed)).max() > 0.01


def test_the_aggregator_must_have_a_certificate_that_the_hospital_trusts(tmp_path: Path) -> None:
    ours, theirs = Authority(tmp_path, "ours"), Authority(tmp_path, "theirs")
    pair = ours.issue("aggregator")
    address = f"127.0.0.1:{processes.free_port()}"
    files = ours.ca.read_bytes(), pair.cert.read_bytes(), pair.key.read_bytes()
    server = start_grpc_server(SimpleClientManager(), address, certificates=files)
    try:
        with pytest.raises(grpc.RpcError, match="UNAVAILABLE"):
            start_client(
                server_address=address,
                client=participant("north", Adds(0.5)),
                root_certificates=theirs.ca.read_bytes(),
                max_retries=0,
            )
    finally:
        server.stop(0).wait()
