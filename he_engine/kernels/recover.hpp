// Verification and recovery: sums of products, the score positions of T - s*z - t*H, and their lift by CRT.
#pragma once

#include "client_kernel.hpp"
#include "dot.hpp"
#include "ntt.hpp"

namespace he {
namespace {

// polys (K, P, N) -> (K, P, B): the sum of g adjacent slots, g * q < 2^46 at most.
inline void fold(const Layout& l, size_t count, const uint32_t* polys, uint32_t* out) {
  const size_t rows = l.degree / l.stride;
  for (size_t poly = 0; poly < count * l.primes; ++poly) {
    const Modulus& m = l.moduli[poly % l.primes];
    for (size_t r = 0; r < rows; ++r, polys += l.stride) {
      uint64_t sum = 0;
      for (size_t j = 0; j < l.stride; ++j) sum += polys[j];
      *out++ = reduce(sum, m);
    }
  }
}

// weights (K, m, P, L), values (K, P, L) -> (m, P). A carry after every fourth vector, as in dot.hpp.
inline void weighted_sum(const Layout& l, size_t count, size_t checks, size_t length, const uint32_t* weights,
                         const uint32_t* values, uint32_t* out) {
  const size_t whole = length / kTile * kTile;
  for (size_t c = 0; c < checks; ++c) {
    for (size_t p = 0; p < l.primes; ++p) {
      TileSum<Vector> sum;
      sum.clear();
      uint64_t low = 0, high = 0;
      for (size_t k = 0; k < count; ++k) {
        const uint32_t* const w[1] = {weights + ((k * checks + c) * l.primes + p) * length};
        const uint32_t* x = values + (k * l.primes + p) * length;
        size_t j = 0;
        TileSum<Vector> part[1];
        part[0].clear();
        for (; j + 4 * kTile <= whole; j += 4 * kTile) {
          for (size_t next = 0; next < 4; ++next) multiply_line(part, w, x, j + next * kTile);
          part[0].carry();
        }
        for (; j < whole; j += kTile) multiply_line(part, w, x, j);
        part[0].carry();
        for (int u = 0; u < TileSum<Vector>::kVectors; ++u) {
          sum.acc[u] = {add64(sum.acc[u].first, part[0].acc[u].first),
                        add64(sum.acc[u].second, part[0].acc[u].second)};
          sum.high[u] = {add64(sum.high[u].first, part[0].high[u].first),
                         add64(sum.high[u].second, part[0].high[u].second)};
        }
        for (; j < length; ++j) {
          const uint64_t product = static_cast<uint64_t>(w[0][j]) * x[j];
          low += product & 0xffffffffu;
          high += product >> 32;
        }
      }
      out[c * l.primes + p] = add(sum.total(l.moduli[p]), reduce_wide(low, high, l.moduli[p]), l.moduli[p]);
    }
  }
}

// The score positions of s*z + t*H in the folded domain. Two products sum to < 2^63: carry after each tile.
inline void fold_products(const Layout& l, const Modulus& m, const uint32_t* s, const uint32_t* z,
                          const uint32_t* t, const uint32_t* h, uint32_t* out) {
  const size_t tiles = l.stride > kTile ? l.stride / kTile : 1;
  for (size_t j = 0; j < l.degree;) {
    TileSum<Vector> sum[1];
    sum[0].clear();
    for (size_t tile = 0; tile < tiles; ++tile, j += kTile) {
      const uint32_t *const left[1] = {s + j}, *const right[1] = {h + j};
      multiply_line(sum, left, z + j, 0);
      multiply_line(sum, right, t + j, 0);
      sum[0].carry();
    }
    if (l.stride >= kTile) {
      *out++ = sum[0].total(m);
    } else {
      sum[0].scores(m, l.stride, out);
      out += kTile / l.stride;
    }
  }
}

// Residues of one or two primes -> the integer in [-q/2, q/2): x = v0 + q0*((v1 - v0)/q0 mod q1) < q < 2^62.
inline int64_t lift(const Layout& l, uint32_t inverse, uint32_t v0, uint32_t v1) {
  const Modulus& m0 = l.moduli[0];
  uint64_t value = v0, modulus = m0.q;
  if (l.primes == 2) {
    const Modulus& m1 = l.moduli[1];
    const uint32_t difference = subtract(v1, reduce(v0, m1), m1);
    value += m0.q * static_cast<uint64_t>(reduce(static_cast<uint64_t>(difference) * inverse, m1));
    modulus *= m1.q;
  }
  const auto above = static_cast<int64_t>((modulus - 1) / 2 - value) >> 63;  // all ones if value > (q-1)/2
  return static_cast<int64_t>(value - (modulus & static_cast<uint64_t>(above)));
}

inline uint32_t inverse_mod(uint32_t value, const Modulus& m) {  // public: value^(q-2)
  uint64_t result = 1, base = reduce(value, m);
  for (uint32_t e = m.q - 2; e != 0; e >>= 1, base = reduce(base * base, m))
    if (e & 1) result = reduce(result * base, m);
  return static_cast<uint32_t>(result);
}

// T - s*z - t*H at the score positions. The product is folded before it is reduced; scratch: (P, B).
inline void recover(const Ring& ring, const Recovery& arrays, uint32_t* scratch) {
  const Layout& l = ring.layout;
  const size_t n = l.degree, rows = ring.rows();
  const uint32_t inverse = l.primes == 2 ? inverse_mod(l.moduli[0].q, l.moduli[1]) : 0;
  int64_t* scores = arrays.scores;
  for (size_t k = 0; k < arrays.count; ++k) {
    for (size_t p = 0; p < l.primes; ++p) {
      const Modulus& m = l.moduli[p];
      const size_t poly = (k * l.primes + p) * n;
      const uint32_t* answer = arrays.answers + (k * l.primes + p) * rows;
      uint32_t* folded = scratch + p * rows;
      fold_products(l, m, arrays.secrets + poly, arrays.mask + p * n, arrays.secret + p * n,
                    arrays.hints + poly, folded);
      for (size_t r = 0; r < rows; ++r) folded[r] = subtract(answer[r], folded[r], m);
      inverse_ntt(folded, ring.decimated[p], m.q);
    }
    const uint32_t* second = scratch + (l.primes == 2 ? rows : 0);
    for (size_t r = 0; r < rows; ++r) *scores++ = lift(l, inverse, scratch[r], second[r]);
  }
}

}  // namespace
}  // namespace he
