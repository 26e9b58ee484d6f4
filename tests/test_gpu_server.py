"""The engine for GPUs on an emulated one: the answers of the CPU's, memory that is bounded and freed, errors."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from he_engine.engine import IndexFile, ServerEngine
from he_engine.errors import InvalidInput, MissingExtra, ResidueError, TamperedDataError, Unavailable
from he_engine.gpu_device import CupyDevice, Memory
from he_engine.gpu_indexes import GpuIndexes
from he_engine.gpu_server import GpuServer
from he_engine.hint_server import HintServer
from he_proto.chunks import CHUNK_BYTES
from he_server.config import ServerConfig
from he_server.search import engines
from he_server.search.answering import UNIT_INDEX_BYTES, blocks_per_unit
from tests.conftest import unit_rows
from tests.engine_fixture import Both
from tests.gpu_fixture import EmulatedDevice, emulation
from tests.server_fixture import BLOCK_BYTES, PARAMETERS, FakeClient, naive_answers, residues, running


@pytest.fixture
def device(tmp_path_factory: pytest.TempPathFactory) -> EmulatedDevice:
    return EmulatedDevice(emulation(tmp_path_factory.getbasetemp()))


@dataclass
class Gpu:
    device: EmulatedDevice
    indexes: GpuIndexes
    server: GpuServer
    cpu: HintServer
    folder: Path

    def index(self, seed: int, blocks: int = 3) -> IndexFile:
        """Random residues, behind other bytes of the same file."""
        path = self.folder / str(seed)
        path.write_bytes(bytes(4096) + residues(np.random.default_rng(seed), blocks).tobytes())
        return IndexFile(path, 4096, blocks * BLOCK_BYTES, blocks)

    @property
    def on_gpu(self) -> int:
        """Launches until now."""
        return len(self.device.launches)


@pytest.fixture
def gpu(device: EmulatedDevice, tmp_path: Path) -> Iterator[Gpu]:
    """With room for ten blocks."""
    indexes, cpu = GpuIndexes(device, 10 * BLOCK_BYTES), HintServer(PARAMETERS)
    server = GpuServer(PARAMETERS, cpu, indexes)
    yield Gpu(device, indexes, server, HintServer(PARAMETERS), tmp_path)
    server.close()
    assert indexes.held_bytes == 0


QUERIES = [words.tobytes() for words in residues(np.random.default_rng(0), 6)]


@pytest.mark.parametrize(("profile", "dim", "stride"), [("compact", 384, None), ("exact", 100, 8), ("precise", 64, 32)])
def test_clients_recover_its_answers(
    tmp_path: Path, rng: np.random.Generator, device: EmulatedDevice, profile: str, dim: int, stride: int | None
) -> None:
    both = Both(tmp_path, profile, dim, stride)
    server: ServerEngine = GpuServer(both.parameters, HintServer(both.parameters), GpuIndexes(device))
    _, segment, index = both.setup(rows := unit_rows(rng, 300, dim))
    queries = [both.client.query(vector) for vector in rows[:5]]
    ciphertexts = [query.ciphertext for query in queries]
    server.check_queries(ciphertexts)
    server.warm(index)
    answers = server.answer(index, 0, index.blocks, ciphertexts)
    assert answers == both.server.answer(index, 0, index.blocks, ciphertexts)
    for number, (query, answer) in enumerate(zip(queries, answers, strict=True)):
        assert int(np.argmax(both.client.recover(query, [segment], [answer])[0])) == number
    server.close()


def test_ranges_of_blocks(gpu: Gpu) -> None:
    index = gpu.index(1, 5)
    for first, blocks in (0, 5), (0, 1), (4, 1), (1, 3), (2, 0):
        for queries in QUERIES[:1], QUERIES, []:
            want = gpu.cpu.answer(index, first, blocks, queries)
            assert gpu.server.answer(index, first, blocks, queries) == want
    for first, blocks in (-1, 2), (4, 2), (5, 1), (3, -1):
        with pytest.raises(InvalidInput, match=r"blocks: got .*, expected them within 5"):
            gpu.server.answer(index, first, blocks, QUERIES)


def test_what_was_unused_the_longest_makes_room(gpu: Gpu) -> None:
    one, two, three, four = (gpu.index(seed) for seed in range(4))
    reads = []
    copied = gpu.indexes._copied
    gpu.indexes._copied = lambda index: (reads.append(index), copied(index))[1]  # type: ignore[method-assign,func-returns-value]
    for index in one, two, three, one, four, one, three:
        assert gpu.server.answer(index, 0, 3, QUERIES) == gpu.cpu.answer(index, 0, 3, QUERIES)
        assert gpu.indexes.held_bytes <= gpu.indexes.limit_bytes
    assert reads == [one, two, three, four], "two made room for four"
    gpu.server.answer(two, 0, 3, QUERIES)
    assert reads[4:] == [two]


def test_what_has_no_room_is_answered_by_the_cpu(gpu: Gpu) -> None:
    large, small = gpu.index(1, 11), gpu.index(2, 4)
    gpu.server.warm(small)
    assert gpu.server.answer(large, 3, 8, QUERIES) == gpu.cpu.answer(large, 3, 8, QUERIES)
    assert gpu.on_gpu == 0 and gpu.indexes.held_bytes == small.length_bytes, "nothing was evicted for it"
    with gpu.indexes.using(gpu.server, small):
        other = gpu.index(3, 7)
        assert gpu.server.answer(other, 0, 7, QUERIES) == gpu.cpu.answer(other, 0, 7, QUERIES)
        assert gpu.on_gpu == 0, "the small one is in use"
    gpu.server.answer(other, 0, 7, QUERIES)
    assert gpu.on_gpu == 1


def test_warming_takes_nobodys_place(gpu: Gpu) -> None:
    for seed in range(5):
        gpu.server.warm(gpu.index(seed))
    assert gpu.indexes.held_bytes == 9 * BLOCK_BYTES


def test_a_full_device_is_no_error(gpu: Gpu) -> None:
    """Others may have taken what the limit promised."""
    index = gpu.index(1)
    gpu.device.memory_bytes = gpu.device.held[0] + 2 * BLOCK_BYTES  # not even for the index
    assert gpu.server.answer(index, 0, 3, QUERIES) == gpu.cpu.answer(index, 0, 3, QUERIES)
    assert gpu.indexes.held_bytes == 0
    gpu.device.memory_bytes = gpu.device.held[0] + 3 * BLOCK_BYTES  # for the index alone
    assert gpu.server.answer(index, 0, 3, QUERIES) == gpu.cpu.answer(index, 0, 3, QUERIES)
    assert gpu.on_gpu == 0


def test_forgotten_and_closed_indexes_are_freed(gpu: Gpu) -> None:
    one, two = gpu.index(1), gpu.index(2)
    before = gpu.device.held[0]
    gpu.server.warm(one)
    gpu.server.warm(two)
    assert gpu.device.held[0] == before + one.length_bytes + two.length_bytes
    with gpu.indexes.using(gpu.server, one) as memory:
        gpu.server.forget(one)
        assert memory is not None and gpu.indexes.held_bytes == 6 * BLOCK_BYTES, "it is in use"
    del memory
    assert gpu.device.held[0] == before + two.length_bytes and gpu.indexes.held_bytes == two.length_bytes
    gpu.server.close()
    assert gpu.device.held[0] == before and gpu.indexes.held_bytes == 0


def test_files_that_are_short_or_gone(gpu: Gpu) -> None:
    index = gpu.index(1)
    with pytest.raises(ResidueError, match="index: got"):
        gpu.server.answer(replace(index, length_bytes=index.length_bytes - 4), 0, 3, QUERIES)
    with pytest.raises(ResidueError, match="query: got 3 bytes"):
        gpu.server.answer(index, 0, 3, [b"123"])
    index.path.write_bytes(index.path.read_bytes()[:-1])
    with pytest.raises(TamperedDataError, match="index: its file has"):
        gpu.server.answer(index, 0, 3, QUERIES)
    index.path.unlink()
    with pytest.raises(FileNotFoundError):
        gpu.server.warm(index)
    assert gpu.indexes.held_bytes == 0


def test_what_the_device_reports_is_unavailable(gpu: Gpu) -> None:
    index = gpu.index(1)
    gpu.server.warm(index)
    gpu.device.library.emulation_forget(_address(gpu, index))
    with pytest.raises(Unavailable, match=r"device gpu: emulation: .* faults"):
        gpu.server.answer(index, 0, 3, QUERIES)


def _address(gpu: Gpu, index: IndexFile) -> int:
    with gpu.indexes.using(gpu.server, index) as memory:
        assert memory is not None
        return memory.address


def test_threads_share_one_upload_and_evict_each_other(gpu: Gpu) -> None:
    indexes = [gpu.index(seed, 4) for seed in range(3)]  # two fit
    want = [gpu.cpu.answer(index, 0, 4, QUERIES) for index in indexes]
    start = threading.Barrier(6)

    def work(number: int) -> None:
        start.wait()
        for turn in range(12):
            which = (turn * (number + 1)) % 3
            assert gpu.server.answer(indexes[which], 0, 4, QUERIES) == want[which]
            if turn % 5 == number % 5:
                gpu.server.forget(indexes[which])

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    assert gpu.on_gpu
    assert gpu.indexes.held_bytes <= gpu.indexes.limit_bytes


def test_whoever_waits_for_an_upload_gets_it(gpu: Gpu) -> None:
    index, copies = gpu.index(1), []
    copied, waiting = gpu.indexes._copied, threading.Event()

    def slow(index: IndexFile) -> Memory:
        copies.append(index)
        assert waiting.wait(10)
        return copied(index)

    gpu.indexes._copied = slow  # type: ignore[method-assign]
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(gpu.server.answer, index, 0, 3, QUERIES) for _ in range(4)]
        waiting.set()
        assert all(call.result() == gpu.cpu.answer(index, 0, 3, QUERIES) for call in calls)
    assert copies == [index]


# ---- in a server ---------------------------------------------------------------------------------------------------
def test_a_server_answers_with_it(tmp_path: Path, device: EmulatedDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "CupyDevice", lambda: device)
    with running(tmp_path, over_grpc=True, device="gpu", cluster="") as endpoint:
        client = FakeClient(endpoint).create()
        segments = [client.segment(blocks) for blocks in (2, 3)]
        for segment in segments:
            client.write(segment)
        client.commit(1, segments)
        queries = residues(client.rng, 3)
        answers = client.answer(2, queries)
        for segment in segments:
            assert (answers[segment.id] == naive_answers(segment.blocks, queries)).all()
    assert device.launches


def test_a_front_end_of_a_cluster_needs_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> EmulatedDevice:
        raise MissingExtra("none")

    monkeypatch.setattr(engines, "CupyDevice", missing)
    config = ServerConfig(data=tmp_path, device="gpu", cluster="auto")
    assert isinstance(engines.engine_maker(config)(PARAMETERS), HintServer)
    with pytest.raises(MissingExtra):
        engines.engine_maker(replace(config, cluster=""))


def test_units_are_large(device: EmulatedDevice) -> None:
    server = GpuServer(PARAMETERS, HintServer(PARAMETERS), GpuIndexes(device))
    cpu = HintServer(PARAMETERS)
    assert blocks_per_unit(cpu, 1 << 40, 2) * BLOCK_BYTES <= UNIT_INDEX_BYTES
    assert blocks_per_unit(server, 1 << 40, 2) == CHUNK_BYTES // server.answer_bytes_per_block
    wide = replace(PARAMETERS, dim=512, stride=16)
    server = GpuServer(wide, HintServer(wide), GpuIndexes(device))
    assert blocks_per_unit(server, 1 << 40, 2) * server.index_bytes_per_block == server.unit_index_bytes


def test_what_is_missing_is_named() -> None:
    """Here, where there is no GPU: CuPy, or a device."""
    try:
        CupyDevice()
    except MissingExtra as error:
        assert "device gpu: " in str(error)
        assert "pip install '.[gpu]'" in str(error) or "no GPU that CUDA can use here" in str(error)
    else:
        pytest.skip("a GPU is here")


def test_serve_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        CupyDevice()
    except MissingExtra:
        from he_server.cli import main

        assert main(["--data", str(tmp_path / "data"), "--listen", "127.0.0.1:0", "--insecure", "--device", "gpu"]) == 1
        assert "hesearch serve: device gpu: " in capsys.readouterr().err
    else:
        pytest.skip("a GPU is here")
