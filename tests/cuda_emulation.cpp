// answer.cu as C++, for ctypes. One call at a time: the emulation is one thread with global state.
#include "cuda_emulation.hpp"

#include "../he_engine/kernels/answer.cu"

using Kernel = decltype(answer_1);

// From now on kernels may use these bytes; what was used of each is counted.
extern "C" void emulation_allow(const void* begin, uint64_t bytes) {
  emulation::ranges.push_back({static_cast<const char*>(begin), bytes, 0});
}

extern "C" uint64_t emulation_used(const void* begin) {
  for (const auto& range : emulation::ranges)
    if (range.begin == begin) return range.used;
  return 0;
}

extern "C" void emulation_forget(const void* begin) {
  auto& ranges = emulation::ranges;
  for (size_t i = ranges.size(); i-- > 0;)
    if (ranges[i].begin == begin) ranges.erase(ranges.begin() + static_cast<std::ptrdiff_t>(i));
}

// Runs one kernel, the threads of a thread block in this order or backwards. Returns the number of faults.
extern "C" uint64_t emulation_launch(const char* name, const unsigned* grid, unsigned threads, bool backwards,
                                     const u32* index, const u32* queries, u32* out, const u32* primes,
                                     const int* sizes) {
  Kernel* kernel = nullptr;
  const auto named = [&](const char* one, Kernel* which) { kernel = std::strcmp(name, one) ? kernel : which; };
  named("answer_1", answer_1);
  named("answer_4", answer_4);
  named("answer_16", answer_16);
  named("answer_narrow", answer_narrow);
  if (!kernel || threads % emulation::kWarpSize || threads > emulation::fibers.size()) return 1;
  emulation::faults = 0;
  emulation::body = [&] {
    kernel(index, queries, out, primes, sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5]);
  };
  emulation::launch({grid[0], grid[1], grid[2]}, threads, backwards);
  return emulation::faults;
}
