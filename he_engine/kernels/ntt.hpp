// The negacyclic number-theoretic transform and its inverse, vectorised in every stage.
//
// forward: coefficients -> slots in bit-reversed order, slot j = value at psi^(2*brv(j)+1), by the butterflies
// of Longa and Naehrig (CANS 2016): (x, y) -> (x + w*y, x - w*y), w = psi^brv(k). inverse runs them backwards.
//
// Ranges. 2q < 2^32 but 4q may not fit, so Harvey's lazy values in [0, 4q) are out of reach. Between stages
// forward keeps values in [0, 2q), inverse in [0, q). A value below 2q is brought below q by min(x, x - q),
// where an unsigned wrap makes the wrong one huge; Shoup's w*y comes out in [0, 2q) for any 32-bit y.
//
// Distances of at least two vectors are done two stages at a time (half the loads and stores). The rest,
// distances L (lanes), L/2, ..., 1, happen inside one pair of vectors: swap_blocks turns words t apart into
// words that face each other, and one zip at the end restores the order. Those stages have their own table, the
// tail.
#pragma once

#include "client_kernel.hpp"
#include "simd.hpp"

namespace he {

namespace {

// A multiplier in vector form. On x86 the odd lanes of the companion are wanted apart.
template <class V>
struct Multiplier {
  V value, shoup, odd_shoup;

  HE_INLINE static Multiplier broadcast(Factor f) {
    const V companion = V::broadcast(f.shoup);
    return {V::broadcast(f.value), companion, companion};
  }
  HE_INLINE static Multiplier of(V value, V companion) { return {value, companion, odd(companion)}; }
};

// w*x mod q in [0, 2q) for any 32-bit x and w < q: with h = floor(x*w'/2^32), w' = floor(w*2^32/q), the error
// x*w/q - h is below x/2^32 + 1 < 2. The low 32 bits of the difference are all of it.
template <class V>
HE_INLINE V multiply(V x, const Multiplier<V>& w, V q) {
  return sub(mul_low(x, w.value), mul_low(high_words(mul(x, w.shoup, w.odd_shoup)), q));
}

// [0, 2q) -> [0, q).
template <class V>
HE_INLINE V canonical(V x, V q) {
  return min(x, sub(x, q));
}

// Residues times residues, canonical.
template <class V>
HE_INLINE V multiply_canonical(V x, const Multiplier<V>& w, V q) {
  return canonical(multiply(x, w, q), q);
}

// [0, 2q), any -> [0, 2q), [0, 2q).
template <class V>
HE_INLINE void butterfly(V& x, V& y, const Multiplier<V>& w, V q) {
  const V sum = canonical(x, q), product = multiply_canonical(y, w, q);
  x = add(sum, product);
  y = sub(add(sum, q), product);
}

// [0, q), [0, q) -> [0, q), [0, q).
template <class V>
HE_INLINE void inverse_butterfly(V& x, V& y, const Multiplier<V>& w, V q) {
  const V difference = sub(add(x, q), y);
  x = canonical(add(x, y), q);
  y = multiply_canonical(difference, w, q);
}

template <class V, int kDistance>
HE_INLINE void tail_stages(V& x, V& y, const uint32_t*& tail, V q) {
  if constexpr (kDistance > 0) {
    swap_blocks<kDistance>(x, y);
    butterfly(x, y, Multiplier<V>::of(V::load(tail), V::load(tail + V::lanes)), q);
    tail += 2 * V::lanes;
    tail_stages<V, kDistance / 2>(x, y, tail, q);
  }
}

template <class V, int kDistance>
HE_INLINE void inverse_tail_stages(V& x, V& y, const uint32_t*& tail, V q) {
  if constexpr (kDistance < V::lanes) {
    inverse_butterfly(x, y, Multiplier<V>::of(V::load(tail), V::load(tail + V::lanes)), q);
    swap_blocks<kDistance>(x, y);
    tail += 2 * V::lanes;
    inverse_tail_stages<V, kDistance * 2>(x, y, tail, q);
  }
}

// In place; input in [0, q), output in [0, q).
template <class V>
inline void forward_with(uint32_t* poly, const Twiddles& table, uint32_t prime) {
  constexpr size_t L = V::lanes;
  const V q = V::broadcast(prime);
  const Factor* w = table.factors;
  size_t groups = 1, distance = table.size / 2;  // of the next stage

  const auto pairs_left = [&] { return distance >= 4 * L; };
  size_t long_stages = 0;
  for (size_t t = distance; t >= 2 * L; t /= 2) ++long_stages;
  if (long_stages % 2 == 1) {
    const auto first = Multiplier<V>::broadcast(w[1]);
    for (size_t j = 0; j < distance; j += L) {
      V x = V::load(poly + j), y = V::load(poly + j + distance);
      butterfly(x, y, first, q);
      store(poly + j, x);
      store(poly + j + distance, y);
    }
    groups *= 2;
    distance /= 2;
  }
  for (; pairs_left(); groups *= 4, distance /= 4) {
    const size_t half = distance / 2;
    for (size_t i = 0; i < groups; ++i) {
      const auto outer = Multiplier<V>::broadcast(w[groups + i]);
      const auto left = Multiplier<V>::broadcast(w[2 * (groups + i)]);
      const auto right = Multiplier<V>::broadcast(w[2 * (groups + i) + 1]);
      uint32_t* start = poly + 2 * distance * i;
      for (uint32_t* at = start; at < start + half; at += L) {
        V a = V::load(at), b = V::load(at + half), c = V::load(at + distance),
          d = V::load(at + distance + half);
        butterfly(a, c, outer, q);
        butterfly(b, d, outer, q);
        butterfly(a, b, left, q);
        butterfly(c, d, right, q);
        store(at, a);
        store(at + half, b);
        store(at + distance, c);
        store(at + distance + half, d);
      }
    }
  }
  const uint32_t* tail = table.tail;
  for (size_t i = 0; i < groups; ++i) {
    V x = V::load(poly + 2 * L * i), y = V::load(poly + 2 * L * i + L);
    butterfly(x, y, Multiplier<V>::broadcast(w[groups + i]), q);
    tail_stages<V, V::lanes / 2>(x, y, tail, q);
    x = canonical(x, q);
    y = canonical(y, q);
    zip(x, y);
    store(poly + 2 * L * i, x);
    store(poly + 2 * L * i + L, y);
  }
}

// In place; input in [0, q), output in [0, q). The transform is linear: it is scaled as it is loaded.
template <class V>
inline void inverse_with(uint32_t* poly, const Twiddles& table, uint32_t prime) {
  constexpr size_t L = V::lanes;
  const V q = V::broadcast(prime);
  const Factor* w = table.factors;
  const auto scale = Multiplier<V>::broadcast(table.scale);
  const uint32_t* tail = table.tail;
  size_t groups = table.size / (2 * L), distance = L;
  for (size_t i = 0; i < groups; ++i) {
    V x = V::load(poly + 2 * L * i), y = V::load(poly + 2 * L * i + L);
    x = multiply_canonical(x, scale, q);
    y = multiply_canonical(y, scale, q);
    unzip(x, y);
    inverse_tail_stages<V, 1>(x, y, tail, q);
    inverse_butterfly(x, y, Multiplier<V>::broadcast(w[groups + i]), q);
    store(poly + 2 * L * i, x);
    store(poly + 2 * L * i + L, y);
  }
  groups /= 2;
  distance *= 2;  // of the next stage
  for (; groups >= 2; groups /= 4, distance *= 4) {
    for (size_t i = 0; i < groups / 2; ++i) {
      const auto left = Multiplier<V>::broadcast(w[groups + 2 * i]);
      const auto right = Multiplier<V>::broadcast(w[groups + 2 * i + 1]);
      const auto outer = Multiplier<V>::broadcast(w[groups / 2 + i]);
      uint32_t* start = poly + 4 * distance * i;
      for (uint32_t* at = start; at < start + distance; at += L) {
        V a = V::load(at), b = V::load(at + distance), c = V::load(at + 2 * distance),
          d = V::load(at + 3 * distance);
        inverse_butterfly(a, b, left, q);
        inverse_butterfly(c, d, right, q);
        inverse_butterfly(a, c, outer, q);
        inverse_butterfly(b, d, outer, q);
        store(at, a);
        store(at + distance, b);
        store(at + 2 * distance, c);
        store(at + 3 * distance, d);
      }
    }
  }
  if (groups == 1) {
    const auto last = Multiplier<V>::broadcast(w[1]);
    for (size_t j = 0; j < distance; j += L) {
      V x = V::load(poly + j), y = V::load(poly + j + distance);
      inverse_butterfly(x, y, last, q);
      store(poly + j, x);
      store(poly + j + distance, y);
    }
  }
}

inline void forward_ntt(uint32_t* poly, const Twiddles& table, uint32_t q) {
  table.narrow ? forward_with<Narrow>(poly, table, q) : forward_with<Vector>(poly, table, q);
}

inline void inverse_ntt(uint32_t* poly, const Twiddles& table, uint32_t q) {
  table.narrow ? inverse_with<Narrow>(poly, table, q) : inverse_with<Vector>(poly, table, q);
}

}  // namespace
}  // namespace he
