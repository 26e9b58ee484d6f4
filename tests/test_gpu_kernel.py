"""answer.cu against the oracle: compiled as C++, its threads emulated on the CPU; and compiled for GPUs where nvcc is.

There was no GPU to run it on when this was written; where there is one, the last test does.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from he_engine.errors import MissingExtra
from he_engine.gpu_device import KERNELS, CupyDevice, Device, Work, source
from he_engine.gpu_kernel import GpuKernel, passes
from he_engine.kernels._answer import AnswerKernel
from he_engine.kernels.naive import NaiveKernel
from tests.gpu_fixture import EmulatedDevice, EmulatedMemory, emulation
from tests.test_kernels import CASES, FILLS, SHARED, Inputs, ring

U32 = NDArray[np.uint32]
QUERIES = [1, 3, 4, 5, 17, 34]  #: every kernel, full and not, and several passes


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> EmulatedDevice:
    return EmulatedDevice(emulation(tmp_path_factory.getbasetemp()))


def answers(x: Inputs, device: Device, blocks: U32, queries: U32, first_block: int = 0) -> U32:
    """By the kernels, of the blocks from the first on; the memory behind them is not theirs to read."""
    kernel = GpuKernel(x.ring.log_n, x.ring.primes, x.stride, x.planes, device)
    count = len(blocks) - first_block
    out = np.full((len(queries), count, len(x.ring.primes), x.ring.degree // x.stride), 7, np.uint32)
    memory, queue = device.allocate(blocks.nbytes), device.queue()
    queue.upload(memory, 0, blocks)
    queue.wait()
    kernel.answer(memory, first_block, count, list(queries), out)
    return out


@lru_cache(maxsize=1)
def expected(case: tuple[int, int, int, int], fill: str) -> tuple[Inputs, U32]:
    """For five queries and a few blocks, by the oracle."""
    primes, log_n, stride, planes = case
    x = Inputs(ring(primes, log_n), stride, planes, fill, blocks=7 if log_n < 7 else 3, queries=5)
    out = np.zeros((5, len(x.blocks), primes, x.ring.degree // stride), np.uint32)
    NaiveKernel(log_n, x.ring.primes, x.ring.roots, stride, planes).answer(x.blocks, x.queries, out)
    return x, out


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("case", sorted({*CASES, *SHARED, (1, 8, 16, 40), (2, 8, 16, 32)}), ids=str)
def test_the_kernels_agree_with_the_oracle(case: tuple[int, int, int, int], fill: str, device: EmulatedDevice) -> None:
    """Blocks repeat, so that there are more of them than one thread block takes."""
    x, want = expected(case, fill)
    for queries in QUERIES:
        which = np.arange(queries) % 5
        for blocks in (1, 19 if queries in (1, 17) else 3):
            rows = np.arange(blocks) % len(x.blocks)
            got = answers(x, device, x.blocks[rows], x.queries[which])
            np.testing.assert_array_equal(got, want[which][:, rows], err_msg=f"{queries} queries, {blocks} blocks")


@pytest.mark.parametrize(("primes", "stride", "planes"), [(1, 16, 5), (2, 32, 6), (2, 256, 1), (2, 4, 3), (1, 64, 20)])
def test_the_kernels_agree_with_the_cpu_at_full_size(
    primes: int, stride: int, planes: int, device: EmulatedDevice
) -> None:
    x = Inputs(ring(primes), stride, planes, "random", blocks=3, queries=2)
    want = np.zeros((2, 2, primes, x.ring.degree // stride), np.uint32)
    AnswerKernel(x.ring.log_n, x.ring.primes, stride, planes).answer(x.blocks[1:], x.queries, want)
    np.testing.assert_array_equal(answers(x, device, x.blocks, x.queries, first_block=1), want)
    np.testing.assert_array_equal(answers(x, device, x.blocks, x.queries[:1], first_block=1), want[:1])


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("queries", [1, 4, 16])
def test_no_order_of_threads_changes_anything(queries: int, backwards: bool, device: EmulatedDevice) -> None:
    """Rows of three chunks, the last one short, which threads load for each other."""
    x = Inputs(ring(1, 9), 32, 33, "random", blocks=40, queries=queries)
    want = np.zeros((queries, 40, 1, 16), np.uint32)
    AnswerKernel(9, x.ring.primes, 32, 33).answer(x.blocks, x.queries, want)
    device.backwards = backwards
    try:
        np.testing.assert_array_equal(answers(x, device, x.blocks, x.queries), want)
    finally:
        device.backwards = False


@pytest.mark.parametrize(("queries", "blocks", "share"), [(1, 64, 1 / 32), (4, 64, 1 / 8), (16, 64, 1 / 2)])
def test_the_index_is_read_once_a_pass(queries: int, blocks: int, share: float, device: EmulatedDevice) -> None:
    """share: bytes of queries read from memory beyond shared memory and registers, for each byte of the index, where
    rows have 512 words, and every warp or thread block goes over 32 blocks: docs/gpu.md."""
    x = Inputs(ring(1, 9), 16, 32, "random", blocks=blocks, queries=queries)
    kernel = GpuKernel(9, x.ring.primes, 16, 32, device)
    index, query, out = (device.allocate(n) for n in (x.blocks.nbytes, x.queries.nbytes, 4 * queries * blocks * 32))
    primes = device.allocate(4)
    for memory, words in ((index, x.blocks), (query, x.queries), (primes, np.array(x.ring.primes, np.uint32))):
        device.queue().upload(memory, 0, words)
    name = f"answer_{queries}"
    across, _, _ = kernel.grid(name, blocks, queries)
    work = Work(index.address, query.address, out.address, primes.address, blocks, queries, 32, 32, 32, 16)
    queue = device.queue()
    queue.launch(name, (across, 2, 1), work)
    queue.wait()
    assert isinstance(index, EmulatedMemory) and isinstance(query, EmulatedMemory) and isinstance(out, EmulatedMemory)
    assert index.used_bytes == x.blocks.nbytes
    assert query.used_bytes == share * x.blocks.nbytes
    assert out.used_bytes == out.length_bytes


def test_what_lies_behind_an_array_is_not_read(device: EmulatedDevice) -> None:
    """That the emulation sees it at all: an index that is announced one block too short."""
    x = Inputs(ring(1, 8), 16, 4, "random", blocks=3, queries=1)
    kernel = GpuKernel(8, x.ring.primes, 16, 4, device)
    index = device.allocate(x.blocks[:2].nbytes)
    with pytest.raises(RuntimeError, match="faults"):
        kernel.answer(index, 0, 3, list(x.queries), np.zeros((1, 3, 1, 16), np.uint32))


@pytest.mark.parametrize("stride", [1, 8, 16, 256])
def test_every_query_is_in_one_pass(stride: int) -> None:
    for queries in range(1, 65):
        cut = list(passes(stride, queries))
        assert [number for _, first, count in cut for number in range(first, first + count)] == list(range(queries))
        assert len(cut) == -(-queries // 16)
        assert {kernel for kernel, _, _ in cut} <= ({"answer_narrow"} if stride < 16 else set(KERNELS[:3]))


# ---- for GPUs ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_it_compiles_for_gpus_without_spilled_registers(architecture: str, tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc here")
    (tmp_path / "answer.cu").write_text(source())
    command = [nvcc, "-cubin", f"-arch={architecture}", "-std=c++17", "-Xptxas", "-v", "-Werror", "all-warnings"]
    built = subprocess.run([*command, "answer.cu"], cwd=tmp_path, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    assert "warning" not in built.stderr
    spilled = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", built.stderr)
    assert spilled == [("0", "0", "0")] * len(KERNELS), built.stderr
    assert set(re.findall(r"entry function '(\w+)'", built.stderr)) == set(KERNELS)


@pytest.mark.parametrize("case", [(1, 9, 32, 33), (2, 8, 16, 7), (2, 7, 8, 3)], ids=str)
def test_on_a_gpu(case: tuple[int, int, int, int]) -> None:
    try:
        gpu = CupyDevice()
    except MissingExtra as error:
        pytest.skip(f"no GPU here: {error}")
    for fill in FILLS:
        x, want = expected(case, fill)
        for queries in QUERIES:
            which = np.arange(queries) % 5
            np.testing.assert_array_equal(answers(x, gpu, x.blocks, x.queries[which]), want[which])
