// Stored hints: the coefficients of H in [0, q), rounded to multiples of 2^kappa and bit-packed.
//
// M = ceil(q / 2^kappa) multiples of 2^kappa lie in [0, q), and v < M takes L = bits(q) - kappa bits. A
// coefficient h is stored as v = (h + 2^(kappa-1)) >> kappa, or as 0 where that is M. Modulo q, v * 2^kappa
// is then within 2^(kappa-1) of h: for v < M it was rounded; for M, q < M * 2^kappa <= h + 2^(kappa-1) (q is
// odd), so that 0 = q mod q is above h by q - h < 2^(kappa-1). kappa = 0 stores h itself. v takes bits j*L ..
// j*L + L - 1 of its block, low bits first: N*L is a multiple of 8, as N >= 16. docs/scheme.md, 2.4.
//
// Nothing here is secret: H is a function of ciphertexts and public polynomials.
#pragma once

#include <cstring>

#include "client_kernel.hpp"
#include "ntt.hpp"
#include "recover.hpp"
#include "simd.hpp"

namespace he {
namespace {

// (K, P, N) NTT domain -> (K, N*L/8). scratch: `hint_scratch` words.
inline void pack_hint(const Ring& ring, const HintFormat& f, size_t count, const uint32_t* hints,
                      uint8_t* packed, uint32_t* scratch) {
  const Layout& l = ring.layout;
  const size_t n = l.degree;
  auto* values = reinterpret_cast<uint64_t*>(scratch);
  uint32_t* first = scratch + 2 * n;  // the coefficients mod q_0, then those mod q_1
  const uint64_t q0 = l.moduli[0].q, half = (uint64_t{1} << f.drop_bits) >> 1;
  const Modulus& m1 = l.moduli[l.primes - 1];
  const uint32_t inverse = l.primes == 2 ? inverse_mod(l.moduli[0].q, m1) : 0;
  const Vector q1 = Vector::broadcast(m1.q);
  const auto factor = Multiplier<Vector>::broadcast({inverse, shoup(inverse, m1)});
  for (size_t k = 0; k < count; ++k, hints += l.primes * n, packed += n * f.width / 8) {
    std::memcpy(first, hints, l.primes * n * sizeof(uint32_t));
    for (size_t p = 0; p < l.primes; ++p) inverse_ntt(first + p * n, ring.inverse[p], l.moduli[p].q);
    uint32_t* second = first + n;
    if (l.primes == 2) {  // v1 becomes (v1 - v0)/q0 mod q1; v0 < 2^31 < 2*q1
      for (size_t j = 0; j < n; j += Vector::lanes) {
        const Vector v0 = canonical(Vector::load(first + j), q1);
        const Vector difference = sub(add(Vector::load(second + j), q1), v0);  // in (0, 2*q1)
        store(second + j, multiply_canonical(difference, factor, q1));
      }
      for (size_t j = 0; j < n; ++j) values[j] = first[j] + q0 * second[j];  // below q < 2^62
    } else {
      for (size_t j = 0; j < n; ++j) values[j] = first[j];
    }
    for (size_t j = 0; j < n; ++j) {
      const uint64_t v = (values[j] + half) >> f.drop_bits;
      values[j] = v == f.limit ? 0 : v;
    }
    uint64_t word = 0;
    size_t filled = 0;
    uint8_t* out = packed;
    for (size_t j = 0; j < n; ++j) {
      word |= values[j] << filled;
      filled += f.width;
      if (filled >= 64) {
        std::memcpy(out, &word, 8);
        out += 8;
        filled -= 64;
        word = values[j] >> (f.width - filled);  // what did not fit; width <= 62
      }
    }
    std::memcpy(out, &word, filled / 8);
  }
}

// 64-bit values 2^32*high + low -> the values mod q; low < 2^32 < 4q.
HE_INLINE Vector residues(Vector low, Vector high, const Multiplier<Vector>& shift32, Vector q) {
  low = canonical(canonical(low, add(q, q)), q);
  return canonical(add(low, multiply_canonical(high, shift32, q)), q);
}

// (K, N*L/8) -> (K, P, N) NTT domain. Returns the first number K*N of a value that is not below M, or -1; the
// output is then void. scratch: `hint_scratch` words.
inline ptrdiff_t unpack_hint(const Ring& ring, const HintFormat& f, size_t count, const uint8_t* packed,
                             uint32_t* hints, uint32_t* scratch) {
  const Layout& l = ring.layout;
  const size_t n = l.degree, bytes = n * f.width / 8;
  auto* values = reinterpret_cast<uint64_t*>(scratch);
  auto* copy = reinterpret_cast<uint8_t*>(scratch + 2 * n);  // of a block, with room to read past it
  const uint64_t mask = (uint64_t{1} << f.width) - 1;
  std::memset(copy + bytes, 0, 16);
  for (size_t k = 0; k < count; ++k, packed += bytes) {
    std::memcpy(copy, packed, bytes);
    uint64_t largest = 0;
    const auto read = [&](auto get) {
      for (size_t j = 0; j < n; ++j) {
        const uint64_t v = get(copy + j * f.width / 8, j * f.width % 8) & mask;
        largest = v > largest ? v : largest;
        values[j] = v << f.drop_bits;
      }
    };
    if (f.width <= 57) {
      read([](const uint8_t* at, size_t shift) {
        uint64_t word;
        std::memcpy(&word, at, 8);
        return word >> shift;
      });
    } else {
      read([](const uint8_t* at, size_t shift) {
        uint64_t word;
        std::memcpy(&word, at, 8);
        return word >> shift | uint64_t{at[8]} << 1 << (63 - shift);
      });
    }
    if (largest >= f.limit)
      for (size_t j = 0; j < n; ++j)
        if (values[j] >> f.drop_bits >= f.limit) return static_cast<ptrdiff_t>(k * n + j);
    for (size_t p = 0; p < l.primes; ++p, hints += n) {
      const Modulus& m = l.moduli[p];
      const Vector q = Vector::broadcast(m.q);
      const auto shift32 = Multiplier<Vector>::broadcast({m.shift32, m.shift32_shoup});
      for (size_t j = 0; j < n; j += Vector::lanes) {
        Vector low = Vector::load(values + j), high = Vector::load(values + j + Vector::lanes / 2);
        unzip(low, high);
        store(hints + j, residues(low, high, shift32, q));
      }
      forward_ntt(hints, ring.forward[p], m.q);
    }
  }
  return -1;
}

}  // namespace
}  // namespace he
