// The twiddle tables of one ring: made once, public, never written again.
#pragma once

#include <memory>
#include <vector>

#include "client_kernel.hpp"

namespace he {

inline uint32_t power(uint32_t base, uint64_t exponent, const Modulus& m) {
  uint64_t result = 1, square = reduce(base, m);
  for (; exponent != 0; exponent >>= 1, square = reduce(square * square, m))
    if (exponent & 1) result = reduce(result * square, m);
  return static_cast<uint32_t>(result);
}

inline Factor factor(uint32_t value, const Modulus& m) { return {value, shoup(value, m)}; }

// [k] = root^brv(k), k < size.
inline std::vector<Factor> powers(uint32_t root, size_t size, const Modulus& m) {
  std::vector<Factor> out(size);
  uint32_t value = 1;
  for (size_t e = 0; e < size; ++e, value = reduce(static_cast<uint64_t>(value) * root, m)) {
    size_t reversed = 0;
    for (size_t bit = 1, e_rest = e; bit < size; bit <<= 1, e_rest >>= 1)
      reversed = reversed << 1 | (e_rest & 1);
    out[reversed] = factor(value, m);
  }
  return out;
}

// At distance t < L, lane l of pair i of vectors works on group i*(L/t) + l/t of the stage's size/(2t) groups.
inline std::vector<uint32_t> tail(const std::vector<Factor>& factors, size_t lanes, bool inverse) {
  std::vector<uint32_t> out;
  for (size_t pair = 0; pair < factors.size() / (2 * lanes); ++pair) {
    for (size_t step = 1; step < lanes; step *= 2) {
      const size_t distance = inverse ? step : lanes / 2 / step;
      const Factor* stage = &factors[factors.size() / (2 * distance) + pair * lanes / distance];
      for (size_t l = 0; l < lanes; ++l) out.push_back(stage[l / distance].value);
      for (size_t l = 0; l < lanes; ++l) out.push_back(stage[l / distance].shoup);
    }
  }
  return out;
}

class Tables {
 public:
  Tables(size_t degree, size_t stride, size_t planes, const std::vector<uint32_t>& primes,
         const std::vector<uint32_t>& roots, const ClientOps& ops) {
    for (const uint32_t q : primes) moduli_.push_back(make_modulus(q));
    for (size_t p = 0; p < primes.size(); ++p) {
      const Modulus& m = moduli_[p];
      const uint32_t inverse_root = power(roots[p], m.q - 2, m);
      const Factor scale = factor(power(static_cast<uint32_t>(degree), m.q - 2, m), m);
      forward_.push_back(make(roots[p], degree, false, scale, m, ops));
      inverse_.push_back(make(inverse_root, degree, true, scale, m, ops));
      decimated_.push_back(make(power(inverse_root, stride, m), degree / stride, true, scale, m, ops));
    }
    ring_ = {{degree, stride, planes, primes.size(), moduli_.data()},
             forward_.data(),
             inverse_.data(),
             decimated_.data()};
  }
  Tables(const Tables&) = delete;  // the views point into it

  const Ring& ring() const { return ring_; }

 private:
  Twiddles make(uint32_t root, size_t size, bool inverse, Factor scale, const Modulus& m,
                const ClientOps& ops) {
    const bool narrow = size < 2 * static_cast<size_t>(ops.lanes);
    factors_.push_back(powers(root, size, m));
    tails_.push_back(
        tail(factors_.back(), static_cast<size_t>(narrow ? ops.narrow_lanes : ops.lanes), inverse));
    return {static_cast<uint32_t>(size), narrow, factors_.back().data(), tails_.back().data(), scale};
  }

  std::vector<Modulus> moduli_;
  std::vector<std::vector<Factor>> factors_;  // growing moves the inner vectors, whose data stays where it is
  std::vector<std::vector<uint32_t>> tails_;
  std::vector<Twiddles> forward_, inverse_, decimated_;
  Ring ring_{};
};

}  // namespace he
