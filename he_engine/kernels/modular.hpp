// Arithmetic modulo one prime q, 2^30 < q < 2^31, without branches on the values.
//
// Everything that a kernel source includes lives in an anonymous namespace: the kernels are compiled once per
// instruction set, and internal linkage keeps the linker from serving one set's copy to another.
#pragma once

#include <cstddef>
#include <cstdint>

namespace he {

// q and what the reductions need of it. Public.
struct Modulus {
  uint32_t q;
  uint64_t barrett;           // floor((2^64 - 1) / q)
  uint32_t shift32;           // 2^32 mod q
  uint32_t shift32_shoup;     // floor(shift32 * 2^32 / q)
  uint32_t negative_inverse;  // -q^-1 mod 2^32
};

// One ring and one layout of the stacks: N, g, I, P and the P moduli.
struct Layout {
  size_t degree;
  size_t stride;
  size_t planes;
  size_t primes;
  const Modulus* moduli;
};

constexpr size_t kTile = 16;  // coefficients stored side by side: one cache line

namespace {

// x mod q for any x. With b = floor((2^64-1)/q) we have 2^64 - b*q <= q, so x/q - x*b/2^64 <= x/2^64 < 1 and
// the truncated quotient is at most one short: the rest is below 2q < 2^32, and one masked subtraction ends it.
inline uint32_t reduce(uint64_t x, const Modulus& m) {
  const auto quotient = static_cast<uint64_t>((static_cast<unsigned __int128>(x) * m.barrett) >> 64);
  const auto rest = static_cast<uint32_t>(x - quotient * m.q) - m.q;  // in [-q, q): fits an int32
  return rest + (m.q & static_cast<uint32_t>(static_cast<int32_t>(rest) >> 31));
}

// (high * 2^32 + low) mod q; the caller keeps high below 2^63.
inline uint32_t reduce_wide(uint64_t low, uint64_t high, const Modulus& m) {
  const uint64_t top = reduce(high + (low >> 32), m);
  return reduce(top << 32 | (low & 0xffffffffu), m);
}

// a - b mod q for residues.
inline uint32_t subtract(uint32_t a, uint32_t b, const Modulus& m) {
  const uint32_t rest = a - b;
  return rest + (m.q & static_cast<uint32_t>(static_cast<int32_t>(rest) >> 31));
}

// a + b mod q for residues.
inline uint32_t add(uint32_t a, uint32_t b, const Modulus& m) { return subtract(a, m.q - b, m); }

// floor(w * 2^32 / q): the companion that makes multiplication by w cheap.
inline uint32_t shoup(uint32_t w, const Modulus& m) {
  return static_cast<uint32_t>((static_cast<uint64_t>(w) << 32) / m.q);
}

inline Modulus make_modulus(uint32_t q) {
  Modulus m{};
  m.q = q;
  m.barrett = ~uint64_t{0} / q;
  m.shift32 = static_cast<uint32_t>((uint64_t{1} << 32) % q);
  m.shift32_shoup = shoup(m.shift32, m);
  uint32_t inverse = q;  // correct to 3 bits for odd q; each Newton step doubles that
  for (int step = 0; step < 4; ++step) inverse *= 2 - q * inverse;
  m.negative_inverse = 0u - inverse;
  return m;
}

}  // namespace
}  // namespace he
