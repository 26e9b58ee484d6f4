// Secrets and errors from a keystream, and small signed integers as residues: no branch and no address depends
// on a value.
#pragma once

#include "modular.hpp"
#include "simd.hpp"

namespace he {
namespace {

constexpr int kEta = 21;  // error = popcount(bits 0..20) - popcount(bits 21..41)

// count errors, count a multiple of 16. With the upper field complemented, one population count does both:
// popcount(a) - popcount(b) = popcount(a) + popcount(not b) - 21.
inline void centred_binomial(const uint64_t* keystream, size_t count, int32_t* out) {
  constexpr uint64_t field = (uint64_t{1} << kEta) - 1;
  const Vector flip = Vector::broadcast64(field << kEta);
  const Vector used = Vector::broadcast64(field << kEta | field);
  const Vector centre = Vector::broadcast(kEta);
  const auto errors = [&](const uint64_t* words) {
    return popcount64(bit_and(bit_xor(Vector::load(words), flip), used));
  };
  for (size_t j = 0; j < count; j += Vector::lanes) {
    const Vector low = errors(keystream + j), high = errors(keystream + j + Vector::lanes / 2);
    store(out + j, sub(narrow(low, high), centre));
  }
}

// Four coefficients in {-1, 0, 1} from each word w: the carry out of 3w, less one, then w <- 3w mod 2^64.
inline void ternary(const uint64_t* keystream, size_t words, int32_t* out) {
  for (size_t j = 0; j < words; ++j) {
    uint64_t word = keystream[j];
    for (int digit = 0; digit < 4; ++digit) {
      const auto product = static_cast<unsigned __int128>(word) * 3;
      *out++ = static_cast<int32_t>(product >> 64) - 1;
      word = static_cast<uint64_t>(product);
    }
  }
}

// Any int32 values -> residues, count a multiple of 16. A negative value gets 2q: -2^31 + 2q > 0 as q > 2^30,
// and then every value is below 2q, as 2^31 < 2q.
inline void residues(const int32_t* values, size_t count, const Modulus& m, uint32_t* out) {
  const Vector q = Vector::broadcast(m.q), twice = Vector::broadcast(2 * m.q);
  for (size_t j = 0; j < count; j += Vector::lanes) {
    const Vector value = Vector::load(values + j);
    const Vector lifted = add(value, bit_and(sign(value), twice));
    store(out + j, min(lifted, sub(lifted, q)));
  }
}

// Any int64 -> residue: offset by 2^63 to be non-negative, and the offset taken off again mod q.
inline uint32_t residue64(int64_t value, const Modulus& m) {
  constexpr uint64_t offset = uint64_t{1} << 63;
  return subtract(reduce(static_cast<uint64_t>(value) + offset, m), reduce(offset, m), m);
}

}  // namespace
}  // namespace he
