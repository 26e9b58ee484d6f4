// The sums of dot.hpp for a few queries, where all slots of a line are one score (stride >= 16).
//
// A run of G blocks is read from memory once, for the first H queries; for the next ones it is in the first-level
// cache. Nothing is centred or packed, as batch.hpp does: that pays only for more queries.
//
//   accumulator  one vector a block and query: a step adds four products (of two vectors, even and odd words) to
//                each 64-bit lane, as dot.hpp bounds them, and then carries
//   gathered     the lanes of a vector of sums are one score, which has planes*g products, four a carry of a
//                lane: high <= (planes*g/4 + lanes) * 2^32 < 2^58, as in dot.hpp
#pragma once

#include "dot.hpp"

namespace he {
namespace {

// Measured with AVX2 (Zen 3, 400 MB of blocks): two queries take 1.2 to 1.4 times as long as one, by batch.hpp 2.0 to 2.2
// times; four take 0.75 to 1.0 of their time there, and six up to 1.2. Four blocks at a time were no faster.
constexpr int kFewBlocks = 2, kFewTogether = 2;
constexpr size_t kFewQueries = 4;

// One run of `lines` lines, G blocks times H queries. out[h] receives the scores of query h, `pitch` words
// apart. `ahead`: the blocks come from memory.
template <class V, int G, int H>
[[gnu::noinline]] void few_run(const uint32_t* blocks, size_t block_words, const uint32_t* const (&queries)[H],
                               size_t lines, bool ahead, const Modulus& m, uint32_t* const (&out)[H],
                               size_t pitch) {
  V acc[G][H], high[G][H];
  for (int b = 0; b < G; ++b)
    for (int h = 0; h < H; ++h) acc[b][h] = high[b][h] = V::zero();
  const auto multiply = [&](size_t word) {
    if (ahead && word % kTile == 0)
      for (int b = 0; b < G; ++b) prefetch(blocks + b * block_words, word + kPrefetch);
    V c[H], odd_c[H];
    for (int h = 0; h < H; ++h) {
      c[h] = V::load(queries[h] + word);
      odd_c[h] = odd(c[h]);
    }
    for (int b = 0; b < G; ++b) {
      const V x = V::load(blocks + b * block_words + word);
      for (int h = 0; h < H; ++h) {
        const Wide<V> product = mul(x, c[h], odd_c[h]);
        acc[b][h] = add64(acc[b][h], add64(product.first, product.second));
      }
    }
  };
  const auto carry = [&] {
    for (int b = 0; b < G; ++b)
      for (int h = 0; h < H; ++h) {
        high[b][h] = add64(high[b][h], high64(acc[b][h]));
        acc[b][h] = low64(acc[b][h]);
      }
  };
  const size_t words = lines * kTile;
  for (size_t word = 0; word < words; word += 2 * V::lanes) {
    multiply(word);
    if (word + V::lanes < words) multiply(word + V::lanes);
    carry();
  }
  for (int b = 0; b < G; ++b)
    for (int h = 0; h < H; ++h) out[h][b * pitch] = reduce_wide(sum64(acc[b][h]), sum64(high[b][h]), m);
}

// blocks (K, stack) x Q queries (stack) -> out (Q, K, P, N/stride).
inline void few(const Layout& layout, const uint32_t* blocks, size_t block_count, const uint32_t* const* queries,
                size_t query_count, uint32_t* out) {
  const size_t rows = layout.degree / layout.stride, lines = layout.stride / kTile * layout.planes;
  const size_t block_words = layout.primes * layout.degree * layout.planes, score_words = layout.primes * rows;

  const auto group = [&](auto size, size_t k) {
    constexpr int G = decltype(size)::value;
    for (size_t run = 0; run < layout.primes * rows; ++run) {
      const size_t offset = run * lines * kTile;
      const uint32_t* from = blocks + k * block_words + offset;
      const auto some = [&](auto together, size_t a) {
        constexpr int H = decltype(together)::value;
        const uint32_t* inputs[H];
        uint32_t* outputs[H];
        for (int h = 0; h < H; ++h) {
          inputs[h] = queries[a + h] + offset;
          outputs[h] = out + ((a + h) * block_count + k) * score_words + run;
        }
        few_run<Vector, G, H>(from, block_words, inputs, lines, a == 0, layout.moduli[run / rows], outputs,
                              score_words);
      };
      size_t a = 0;
      for (; a + kFewTogether <= query_count; a += kFewTogether)
        some(std::integral_constant<int, kFewTogether>{}, a);
      for (; a < query_count; ++a) some(std::integral_constant<int, 1>{}, a);
    }
  };
  size_t k = 0;
  for (; k + kFewBlocks <= block_count; k += kFewBlocks) group(std::integral_constant<int, kFewBlocks>{}, k);
  for (; k < block_count; ++k) group(std::integral_constant<int, 1>{}, k);
}

}  // namespace
}  // namespace he
