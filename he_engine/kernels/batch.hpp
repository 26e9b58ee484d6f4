// The sums of dot.hpp for several queries: in every run a matrix product, blocks times queries.
//
// A few runs of all queries are centred and packed, and stay in the second-level cache while all blocks pass. G
// blocks at a time are centred and packed into the first-level cache, and meet H queries at a time there: each
// vector that is loaded serves G or H products. Nothing is reduced mod q inside a unit of kUnitLines lines:
//
//   centred      |b|, |c| <= (q-1)/2 <= 2^30 - 1, so |b*c| <= 2^60 - 2^31 + 1
//   accumulator  2^63 + eight products (four steps of two) + what a carry left, below 2^32: from 2^34 - 8 to
//                2^64 - 2^34 + 2^32 + 8, so it never wraps
//   carry        every fourth step: high += acc >> 32, and of acc the low word stays, plus 2^63 again
//   high         has 2^31 too much from every carry, and starts at carries * (2q - 2^31): together 2q * 2^32 a
//                carry, a multiple of q. A carry adds less than 2^32 and there are at most 64 (256 steps of 4
//                lanes), so high < 64 * 2^33 = 2^39
//   gathered     at most 8 lanes are one score: high < 2^42, low < 2^35
#pragma once

#include <type_traits>

#include "modular.hpp"
#include "simd.hpp"

namespace he {
namespace {

// As many accumulators as leave registers for what they are fed with. Four blocks with AVX-512 thrash the first-level
// cache: their units lie a multiple of 4 KiB apart, and two queries took 1.9 times as long (dimension 1024).
#if defined(HE_TARGET_AVX512)
constexpr int kTileBlocks = 2, kTileQueries = 4;
#elif defined(HE_TARGET_NEON)
constexpr int kTileBlocks = 4, kTileQueries = 4;
#elif defined(HE_TARGET_AVX2)
constexpr int kTileBlocks = 4, kTileQueries = 2;
#else
constexpr int kTileBlocks = 2, kTileQueries = 2;
#endif
constexpr size_t kSteps = 4;       // from carry to carry
constexpr size_t kUnitLines = 64;  // of a run that are packed together
constexpr size_t kUnitWords = kUnitLines * kTile;
constexpr size_t kQueryWords = 64 * kUnitWords;  // packed at a time: 256 KiB
constexpr size_t kMaxSpan = 32;                  // units packed at a time
constexpr size_t kAhead = 2;                     // units from fetching blocks to packing them

// How a run is cut in strands: lanes of its lines whose products end in the same vector of sums.
//
// A step multiplies two vectors and adds the products of words that are V::apart apart. If the stride is
// larger, they belong to one score. If not, two lines are packed together, the first words of such pairs in one
// strand and the second in another, and what a step adds are products of two lines.
template <class V>
struct Strands {
  int shift;     // log2(stride)
  bool split;    // two lines a step
  size_t reach;  // words of a line
  size_t count;  // in a run
  int lanes_shift;
  size_t lanes;  // 64-bit lanes of a vector of sums that are one score

  explicit Strands(size_t g) : shift(__builtin_ctzll(g)), split(g <= V::apart) {
    reach = g < V::lanes ? V::lanes : g < kTile ? g : kTile;
    count = kTile / reach * (split ? 2 : 1);
    lanes = split ? g : (g < V::lanes ? g : V::lanes) / 2;
    lanes_shift = __builtin_ctzll(lanes);
  }
  // That `lines` lines take, with zeros up to a whole number of carries.
  size_t steps(size_t lines) const {
    const size_t some = split ? (lines + 1) / 2 : lines * (reach / V::lanes);
    return (some + kSteps - 1) / kSteps * kSteps;
  }
  // Where sum i of a tile has the score that starts at `lane`, once the lanes are gathered.
  size_t place(size_t i, size_t lane) const {
    return (i >> lanes_shift) * (V::lanes / 2) + lane + (i & (lanes - 1));
  }
  // The score, in its run, that a lane belongs to.
  size_t score(size_t strand, size_t lane) const {
    const size_t first = (split ? strand / 2 : strand) * reach;
    return (first + V::slot(split ? strand % 2 : 0, lane)) >> shift;
  }
};

// One strand of the lines, centred. kOdd: each vector is followed by its odd words.
template <class V, bool kOdd>
inline void pack(const uint32_t* lines, size_t count, const Strands<V>& strands, size_t strand,
                 const Modulus& m, uint32_t* out, size_t pitch) {
  const V q = V::broadcast(m.q), half = V::broadcast(m.q / 2);
  size_t left = strands.steps(count);
  const auto put = [&](V x) {
    const V centred = sub(x, bit_and(sign(sub(half, x)), q));  // x - q if x > q/2
    store(out, centred);
    if constexpr (kOdd) store(out + V::lanes, odd(centred));
    out += pitch;
    --left;
  };
  const uint32_t* words = lines + (strands.split ? strand / 2 : strand) * strands.reach;
  if (strands.split) {
    for (size_t line = 0; line < count; line += 2) {
      V a = V::load(words + line * kTile);
      V b = line + 1 < count ? V::load(words + (line + 1) * kTile) : V::zero();
      swap_blocks<V::apart>(a, b);
      put(strand % 2 == 0 ? a : b);
    }
  } else {
    for (size_t line = 0; line < count; ++line)
      for (size_t v = 0; v < strands.reach; v += V::lanes) put(V::load(words + line * kTile + v));
  }
  while (left > 0) put(V::zero());
}

// (high * 2^32 + low) mod q in every 64-bit lane, for high < 2^42 and low < 2^35, in Montgomery's way: with
// m = -x/q mod 2^32, x + m*q is a multiple of 2^32, and (x + m*q) / 2^32 < x / 2^32 + q is x / 2^32 mod q.
template <class V>
struct Reducer {
  V q, negative_inverse, shift96;

  explicit Reducer(const Modulus& m)
      : q(V::broadcast64(m.q)), negative_inverse(V::broadcast64(m.negative_inverse)) {
    const uint64_t shift64 = reduce(uint64_t{m.shift32} * m.shift32, m);
    shift96 = V::broadcast64(reduce(shift64 * m.shift32, m));
  }
  HE_INLINE V divide(V x) const { return high64(add64(x, mul_even(mul_even(x, negative_inverse), q))); }
  HE_INLINE V operator()(V high, V low) const {
    const V once = add64(divide(low), high);       // < q + 8 + 2^42
    const V twice = divide(once);                  // < q + 2^11: one word
    const V x = divide(mul_even(twice, shift96));  // of (q + 2^11) * q: below 2q, and no sum wraps
    return min(x, sub(x, q));
  }
};

// The sums of G blocks and H queries: high * 2^32 + low in each 64-bit lane.
template <class V, int G, int H>
struct Tile {
  static constexpr int kSums = G * H;
  static constexpr int kPadded = kSums < V::lanes / 2 ? V::lanes / 2 : kSums;
  static constexpr size_t kWords = V::lanes / 2;
  V low[kPadded], high[kPadded];

  // blocks [step][G][2], queries [step][H], as pack() leaves them. From `ahead` on, if it is not null, and the
  // same words of the next G - 1 stacks, memory will be read soon.
  inline void multiply(const uint32_t* blocks, const uint32_t* queries, size_t steps, const Modulus& m,
                       const uint32_t* ahead, size_t stack_words) {
    const V bias = V::broadcast64(uint64_t{1} << 63);
    const V start = V::broadcast64(steps / kSteps * (2 * uint64_t{m.q} - (uint64_t{1} << 31)));
    V acc[G][H];
    for (int b = 0; b < G; ++b)
      for (int h = 0; h < H; ++h) {
        acc[b][h] = bias;
        high[b * H + h] = start;
      }
    for (size_t step = 0; step < steps; step += kSteps) {
#pragma GCC unroll 1  // four copies were 1.5 times slower with 8 lanes
      for (size_t next = 0; next < kSteps; ++next) {
        if (ahead != nullptr)
          for (int b = 0; b < G; ++b) prefetch(ahead, b * stack_words + (step + next) * V::lanes);
        for (int h = 0; h < H; ++h) {
          const V c = V::load(queries), odd_c = odd(c);
          queries += V::lanes;
          for (int b = 0; b < G; ++b)
            acc[b][h] = mul_add_pairs(acc[b][h], c, odd_c, V::load(blocks + 2 * b * V::lanes),
                                      V::load(blocks + (2 * b + 1) * V::lanes));
        }
        blocks += 2 * G * V::lanes;
      }
      for (int b = 0; b < G; ++b)
        for (int h = 0; h < H; ++h) {
          high[b * H + h] = add64(high[b * H + h], high64(acc[b][h]));
          acc[b][h] = low_words(acc[b][h], bias);
        }
    }
    for (int b = 0; b < G; ++b)
      for (int h = 0; h < H; ++h) low[b * H + h] = low64(acc[b][h]);
    for (int i = kSums; i < kPadded; ++i) low[i] = high[i] = V::zero();
  }

  // Adds `lanes` adjacent lanes of every vector: sum i is then in vector i / lanes, its first score in lane
  // i % lanes, the next one `lanes` further, and so on.
  template <int kBlock = 2, int kLeft = kPadded>
  HE_INLINE static void gather(V (&sums)[kPadded], size_t lanes) {
    if constexpr (kBlock < V::lanes) {
      if (lanes < kBlock) return;
      for (int i = 0; i < kLeft / 2; ++i) {
        swap_blocks<kBlock>(sums[2 * i], sums[2 * i + 1]);
        sums[i] = add64(sums[2 * i], sums[2 * i + 1]);
      }
      gather<2 * kBlock, kLeft / 2>(sums, lanes);
    }
  }

  // The scores, at Strands::place.
  inline void residues(size_t lanes, const Reducer<V>& reducer, uint64_t (&out)[kPadded * kWords]) {
    gather(low, lanes);
    gather(high, lanes);
    for (size_t v = 0; v * lanes < kSums; ++v) store(out + v * kWords, reducer(high[v], low[v]));
  }
};

// Lines [line, line + lines) of a run, one strand of them; `offset` is where they start in a stack.
struct Unit {
  const Modulus* m;
  size_t run, line, lines, strand, offset;
};

struct BatchScratch {
  alignas(64) uint32_t queries[kQueryWords];
  alignas(64) uint32_t blocks[2 * kTileBlocks * kUnitWords];
  Unit units[kMaxSpan + kAhead];
};

// blocks (K, stack) x Q queries (stack) -> out (Q, K, P, N/stride).
//
// As many units as fit are packed for all queries: a span. Over it every block is read once, in order.
template <class V>
class Batch {
 public:
  Batch(const Layout& layout, const uint32_t* blocks, size_t block_count, const uint32_t* const* queries,
        size_t query_count, uint32_t* out, BatchScratch& scratch)
      : layout_(layout),
        strands_(layout.stride),
        blocks_(blocks),
        block_count_(block_count),
        queries_(queries),
        query_count_(query_count),
        out_(out),
        scratch_(scratch) {
    const size_t g = layout.stride, rows = layout.degree / g;
    width_ = g < kTile ? kTile / g : 1;
    runs_ = rows / width_;
    lines_ = (g > kTile ? g / kTile : 1) * layout.planes;
    pieces_ = (lines_ + kUnitLines - 1) / kUnitLines;
    stack_words_ = layout.primes * layout.degree * layout.planes;
    score_words_ = layout.primes * rows;
    pitch_ = strands_.steps(lines_ < kUnitLines ? lines_ : kUnitLines) * V::lanes;
  }

  void answer() {
    const size_t units = layout_.primes * runs_ * pieces_ * strands_.count, most = kQueryWords / pitch_;
    for (first_ = 0; first_ < query_count_; first_ += most) {
      count_ = query_count_ - first_ < most ? query_count_ - first_ : most;
      const size_t fit = most / count_ < kMaxSpan ? most / count_ : kMaxSpan;
      for (size_t start = 0; start < units; start += fit) {
        span_ = units - start < fit ? units - start : fit;
        for (size_t i = 0; i < span_ + kAhead; ++i)
          scratch_.units[i] = unit(start + i < units ? start + i : units - 1);
        pack_queries();
        size_t k = 0;
        for (; k + kTileBlocks <= block_count_; k += kTileBlocks) multiply_blocks<kTileBlocks>(k);
        for (; k < block_count_; ++k) multiply_blocks<1>(k);
      }
    }
  }

 private:
  Unit unit(size_t index) const {
    const size_t strand = index % strands_.count, piece = index / strands_.count % pieces_;
    const size_t run = index / strands_.count / pieces_, line = piece * kUnitLines;
    const size_t lines = lines_ - line < kUnitLines ? lines_ - line : kUnitLines;
    return {&layout_.moduli[run / runs_], run, line, lines, strand, (run * lines_ + line) * kTile};
  }

  // f(H, a): queries a to a + H - 1 of this pass.
  template <class F>
  HE_INLINE void each_group(const F& f) const {
    size_t a = 0;
    for (; a + kTileQueries <= count_; a += kTileQueries) f(std::integral_constant<int, kTileQueries>{}, a);
    if constexpr (kTileQueries > 2)
      for (; a + 2 <= count_; a += 2) f(std::integral_constant<int, 2>{}, a);
    for (; a < count_; ++a) f(std::integral_constant<int, 1>{}, a);
  }
  uint32_t* packed(size_t index, size_t a) const { return scratch_.queries + (index * count_ + a) * pitch_; }

  void pack_queries() const {
    each_group([&](auto h, size_t a) {
      for (int i = 0; i < h; ++i) {
        const size_t number = first_ + a + i;
        const uint32_t* following = queries_[number + 1 < query_count_ ? number + 1 : number];
        for (size_t index = 0; index < span_; ++index) {
          const Unit& u = scratch_.units[index];
          const uint32_t* lines = queries_[number] + u.offset;
          for (size_t line = 0; line < u.lines; ++line) prefetch(following, u.offset + line * kTile);
          pack<V, false>(lines, u.lines, strands_, u.strand, *u.m, packed(index, a) + i * V::lanes,
                         h * V::lanes);
        }
      }
    });
  }

  // Where the block that takes the place of block k will be read kAhead units from now: in this unit's span,
  // with the next blocks, or in the next span.
  const uint32_t* ahead(size_t k, size_t blocks, size_t index) const {
    index += kAhead;
    if (index >= span_) {
      k += blocks;
      if (k >= block_count_)
        k = 0;
      else
        index = index - span_ < span_ ? index - span_ : 0;
    }
    const Unit& u = scratch_.units[index];
    return blocks_ + k * stack_words_ + u.offset + u.strand * strands_.steps(u.lines) * V::lanes;
  }

  template <int G>
  void multiply_blocks(size_t k) const {
    for (size_t index = 0; index < span_; ++index) {
      const Unit& u = scratch_.units[index];
      for (int b = 0; b < G; ++b)
        pack<V, true>(blocks_ + (k + b) * stack_words_ + u.offset, u.lines, strands_, u.strand, *u.m,
                      scratch_.blocks + 2 * b * V::lanes, 2 * G * V::lanes);
      const uint32_t* later = ahead(k, G, index);
      const Reducer<V> reducer(*u.m);
      each_group([&](auto h, size_t a) {
        multiply_tile<G, h>(u, packed(index, a), a == 0 ? later : nullptr, reducer,
                            out_ + ((first_ + a) * block_count_ + k) * score_words_ + u.run * width_);
      });
    }
  }

  // Inlined, GCC runs out of registers.
  template <int G, int H>
  [[gnu::noinline]] void multiply_tile(const Unit& u, const uint32_t* queries, const uint32_t* later,
                                       const Reducer<V>& reducer, uint32_t* out) const {
    Tile<V, G, H> sums;
    uint64_t scores[sums.kPadded * sums.kWords];
    sums.multiply(scratch_.blocks, queries, strands_.steps(u.lines), *u.m, later, stack_words_);
    sums.residues(strands_.lanes, reducer, scores);
    for (size_t lane = 0; lane < sums.kWords; lane += strands_.lanes) {
      uint32_t* to = out + strands_.score(u.strand, lane);
      for (size_t i = 0; i < G * H; ++i) {
        uint32_t& score = to[(i % H * block_count_ + i / H) * score_words_];
        const auto value = static_cast<uint32_t>(scores[strands_.place(i, lane)]);
        score = u.line == 0 ? value : add(score, value, *u.m);
      }
    }
  }

  const Layout& layout_;
  const Strands<V> strands_;
  const uint32_t* blocks_;
  size_t block_count_;
  const uint32_t* const* queries_;
  size_t query_count_;
  uint32_t* out_;
  BatchScratch& scratch_;
  size_t width_, runs_, lines_, pieces_, stack_words_, score_words_;
  size_t pitch_;          // words of one query in a packed unit
  size_t first_, count_;  // queries of this pass
  size_t span_;           // units of this span
};

}  // namespace
}  // namespace he
