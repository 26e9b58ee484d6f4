// CUDA's threads on the CPU, as far as answer.cu uses them: each is a fiber of one thread, and runs until it waits.
//
// A fiber waits at __syncthreads for its thread block and at a shuffle for its warp. Until then nobody else of its
// thread block runs, so a barrier that is missing shows: who should have waited goes ahead of all others (`backwards`
// lets the last thread go first). What the emulation looks at beside: that reads and writes lie within the arrays that
// were announced, at multiples of their size; that warps shuffle with all lanes; that all wait at the same barriers.
// It shows nothing about speed, and nothing about memory that threads of different thread blocks share.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <vector>

#define __device__
#define __global__
#define __forceinline__ inline
#define __shared__ static
#define __launch_bounds__(...)

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};

namespace emulation {

// Bytes that kernels may read or write, and how many they did.
struct Range {
  const char* begin;
  uint64_t bytes;
  uint64_t used;
};

enum Waiting { kNot, kBlock, kWarp, kDone };

struct Fiber {
  ucontext_t context;  // to begin; after that jumps, which ask the system for nothing
  jmp_buf where;
  bool begun;
  std::vector<char> stack = std::vector<char>(64 << 10);
  Waiting waiting = kNot;
  uint64_t posted[2];  // by the number of the shuffle, even or odd: a lane is at most one ahead of another
  unsigned shuffles = 0;
};

constexpr unsigned kWarpSize = 32;
inline std::vector<Range> ranges;
inline std::vector<Fiber> fibers(1024);
inline jmp_buf scheduler;
inline unsigned current = 0;  // its fiber
inline uint64_t faults = 0;
inline std::function<void()> body;

template <class T>
bool allowed(const T* at) {
  const char* byte = reinterpret_cast<const char*>(at);
  for (Range& range : ranges)
    if (byte >= range.begin && byte + sizeof(T) <= range.begin + range.bytes && (byte - range.begin) % sizeof(T) == 0) {
      range.used += sizeof(T);
      return true;
    }
  ++faults;
  return false;
}

inline void wait(Waiting what) {
  Fiber& fiber = fibers[current];
  fiber.waiting = what;
  if (!_setjmp(fiber.where)) _longjmp(scheduler, 1);
}

// Lets the current fiber run until it waits.
inline void resume() {
  Fiber& fiber = fibers[current];
  if (_setjmp(scheduler)) return;
  if (fiber.begun) _longjmp(fiber.where, 1);
  fiber.begun = true;
  setcontext(&fiber.context);
}

inline void run() {
  body();
  wait(kDone);
}

// Lets fibers [first, last) go on if all that are not done wait for `what`; true if there were any.
inline bool release(unsigned first, unsigned last, Waiting what) {
  unsigned waiting = 0, done = 0;
  for (unsigned i = first; i < last; ++i) {
    waiting += fibers[i].waiting == what;
    done += fibers[i].waiting == kDone;
  }
  if (!waiting || waiting + done != last - first) return false;
  if (what == kWarp && done) ++faults;  // a lane whose value is missing
  for (unsigned i = first; i < last; ++i)
    if (fibers[i].waiting == what) fibers[i].waiting = kNot;
  return true;
}

}  // namespace emulation

inline dim3 gridDim, blockDim, blockIdx;
// The one thread that runs; axis x alone.
struct ThreadIndex {
  struct X {
    operator unsigned() const { return emulation::current; }
  } x;
};
inline ThreadIndex threadIdx;

inline void __syncthreads() { emulation::wait(emulation::kBlock); }

inline uint64_t __shfl_xor_sync(unsigned mask, uint64_t value, int offset) {
  using namespace emulation;
  if (mask != 0xffffffffu || offset >= static_cast<int>(kWarpSize)) ++faults;
  const unsigned number = fibers[current].shuffles++ % 2;
  fibers[current].posted[number] = value;
  wait(kWarp);
  return fibers[current ^ static_cast<unsigned>(offset)].posted[number];
}

template <class T>
T __ldg(const T* at) {
  return emulation::allowed(at) ? *at : T{};
}
template <class T>
T __ldcs(const T* at) {
  return __ldg(at);
}
template <class T>
void __stcs(T* at, T value) {
  if (emulation::allowed(at)) *at = value;
}

namespace emulation {

// One thread block, from its first instruction until all its threads are done. A deadlock is a fault.
inline void run_block(unsigned threads, bool backwards) {
  for (unsigned i = 0; i < threads; ++i) {
    Fiber& fiber = fibers[i];
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data();
    fiber.context.uc_stack.ss_size = fiber.stack.size();
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, run, 0);
    fiber.waiting = kNot;
    fiber.begun = false;
    fiber.shuffles = 0;
  }
  for (;;) {
    bool going = false;
    for (unsigned i = 0; i < threads; ++i) {
      current = backwards ? threads - 1 - i : i;
      if (fibers[current].waiting != kNot) continue;
      going = true;
      resume();
    }
    for (unsigned first = 0; first < threads; first += kWarpSize) going |= release(first, first + kWarpSize, kWarp);
    going |= release(0, threads, kBlock);
    if (going) continue;
    for (unsigned i = 0; i < threads; ++i)
      if (fibers[i].waiting != kDone) ++faults;
    return;
  }
}

inline void launch(dim3 grid, unsigned threads, bool backwards) {
  gridDim = grid;
  blockDim = {threads, 1, 1};
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) {
        blockIdx = {x, y, z};
        run_block(threads, backwards);
      }
}

}  // namespace emulation
