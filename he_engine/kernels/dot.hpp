// The multiply-accumulate over stacks, for one query: for every block, fold(sum_i b_i * c_i) mod q_p.
//
// A stack is [prime][tile][plane][16 coefficients], so one tile of a block is I consecutive cache lines, and
// the g/16 tiles that share a score position (g >= 16) are consecutive too: a *run* of lines with one
// accumulator. One pass reads every block once, in order: memory bandwidth is the limit. Nothing is reduced
// mod q inside a run:
//
//   products     b*c <= (q-1)^2 <= (2^31-2)^2 = 2^62 - 2^33 + 4
//   accumulator  four of them <= 2^64 - 2^35 + 16, and a carry-in below 2^32 still fits a uint64
//   carry        every fourth line: high += acc >> 32, acc &= 2^32 - 1
//   fold         the slots of one score are added as (acc, high) pairs, and only that sum is reduced:
//                high <= (planes*g/4 + g) * 2^32 < 2^58, as planes <= 2^16 and g <= 2^11 (binding.hpp)
#pragma once

#include <type_traits>

#include "modular.hpp"
#include "simd.hpp"

namespace he {
namespace {

#if defined(__x86_64__)
constexpr int kGroup = 4;  // blocks that share each load of the query
#else
constexpr int kGroup = 2;
#endif
// Measured (Zen 5, one core, 200 MB of blocks) against a plain sum over the same memory: with vectors of 8
// lanes, four streams fetched 3 KiB ahead run at 1.0 of it, and two at 0.85; with 16 lanes four run at 0.87, 1
// KiB ahead at 0.75, and at 0.65 if left to the hardware. So this pass uses `Narrow`.
constexpr size_t kPrefetch = 768;  // words

// Sums of 64-bit products of one tile: the value of a slot is high * 2^32 + acc.
template <class V>
struct TileSum {
  static constexpr int kVectors = static_cast<int>(kTile) / V::lanes;
  Wide<V> acc[kVectors];
  Wide<V> high[kVectors];

  HE_INLINE void clear() {
    for (int u = 0; u < kVectors; ++u) {
      acc[u] = {V::zero(), V::zero()};
      high[u] = {V::zero(), V::zero()};
    }
  }
  HE_INLINE void carry() {
    for (int u = 0; u < kVectors; ++u) {
      high[u] = {add64(high[u].first, high64(acc[u].first)), add64(high[u].second, high64(acc[u].second))};
      acc[u] = {low64(acc[u].first), low64(acc[u].second)};
    }
  }
  // All 16 slots are one score.
  HE_INLINE uint32_t total(const Modulus& m) const {
    V low = V::zero(), top = V::zero();
    for (int u = 0; u < kVectors; ++u) {
      low = add64(low, add64(acc[u].first, acc[u].second));
      top = add64(top, add64(high[u].first, high[u].second));
    }
    return reduce_wide(sum64(low), sum64(top), m);
  }
  // 16/stride scores, stride < 16: only here does the order of the lanes matter.
  inline void scores(const Modulus& m, size_t stride, uint32_t* out) const {
    constexpr int words = V::lanes / 2;
    uint64_t lanes[2][words], low[kTile], top[kTile];
    for (int u = 0; u < kVectors; ++u) {
      const auto spread = [&](const Wide<V>& sums, uint64_t* slots) {
        store(lanes[0], sums.first);
        store(lanes[1], sums.second);
        for (int half = 0; half < 2; ++half)
          for (int w = 0; w < words; ++w) slots[u * V::lanes + V::slot(half, w)] = lanes[half][w];
      };
      spread(acc[u], low);
      spread(high[u], top);
    }
    for (size_t first = 0; first < kTile; first += stride) {
      uint64_t sum_low = 0, sum_top = 0;
      for (size_t j = first; j < first + stride; ++j) {
        sum_low += low[j];
        sum_top += top[j];
      }
      *out++ = reduce_wide(sum_low, sum_top, m);
    }
  }
};

// One line of the query times one line of each of G blocks.
template <class V, int G>
HE_INLINE void multiply_line(TileSum<V> (&sums)[G], const uint32_t* const (&blocks)[G], const uint32_t* query,
                             size_t offset) {
  for (int u = 0; u < TileSum<V>::kVectors; ++u) {
    const V c = V::load(query + offset + u * V::lanes);
    const V odd_c = odd(c);
    for (int b = 0; b < G; ++b)
      sums[b].acc[u] = mul_add(sums[b].acc[u], V::load(blocks[b] + offset + u * V::lanes), c, odd_c);
  }
}

// One run of `lines` lines, G blocks. out[b] receives the scores of block b. Inlined, GCC runs out of
// registers.
template <class V, int G>
[[gnu::noinline]] void dot_run(const uint32_t* const (&blocks)[G], const uint32_t* query, size_t lines,
                               size_t stride, const Modulus& m, uint32_t* const (&out)[G]) {
  TileSum<V> sums[G];
  for (int b = 0; b < G; ++b) sums[b].clear();
  size_t line = 0;
  for (; line + 4 <= lines; line += 4) {
    for (size_t next = 0; next < 4; ++next) {
      for (int b = 0; b < G; ++b) prefetch(blocks[b], (line + next) * kTile + kPrefetch);
      multiply_line(sums, blocks, query, (line + next) * kTile);
    }
    for (int b = 0; b < G; ++b) sums[b].carry();
  }
  for (; line < lines; ++line) multiply_line(sums, blocks, query, line * kTile);
  for (int b = 0; b < G; ++b) {
    sums[b].carry();
    if (stride >= kTile)
      *out[b] = sums[b].total(m);
    else
      sums[b].scores(m, stride, out[b]);
  }
}

// blocks (K, stack) x query (stack) -> out (K, P, N/stride).
inline void dot(const Layout& layout, size_t stride, const uint32_t* blocks, size_t block_count,
                const uint32_t* query, uint32_t* out) {
  const size_t tiles = stride > kTile ? stride / kTile : 1;  // tiles in a run
  const size_t width = stride < kTile ? kTile / stride : 1;  // scores in a run
  const size_t lines = tiles * layout.planes;
  const size_t rows = layout.degree / stride, runs = rows / width;
  const size_t block_words = layout.primes * layout.degree * layout.planes;
  const size_t score_words = layout.primes * rows;

  const auto group = [&](auto size, size_t k) {
    constexpr int G = decltype(size)::value;
    for (size_t run = 0; run < layout.primes * runs; ++run) {
      const size_t offset = run * lines * kTile;
      const uint32_t* inputs[G];
      uint32_t* outputs[G];
      for (int b = 0; b < G; ++b) {
        inputs[b] = blocks + (k + b) * block_words + offset;
        outputs[b] = out + (k + b) * score_words + run * width;
      }
      dot_run<Narrow, G>(inputs, query + offset, lines, stride, layout.moduli[run / runs], outputs);
    }
  };
  size_t k = 0;
  for (; k + kGroup <= block_count; k += kGroup) group(std::integral_constant<int, kGroup>{}, k);
  for (; k < block_count; ++k) group(std::integral_constant<int, 1>{}, k);
}

}  // namespace
}  // namespace he
