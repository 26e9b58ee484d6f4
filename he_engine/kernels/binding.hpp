// The public edge that both extension modules share: which instruction sets run here, which rings are allowed,
// and arrays whose type, shape and layout are checked before any arithmetic. Past it, kernels trust.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <initializer_list>
#include <stdexcept>
#include <string>
#include <vector>

#include "modular.hpp"

namespace he {

namespace nb = nanobind;

// ---- instruction sets ---------------------------------------------------------------------------------------
template <class Ops>
struct Target {
  std::string name;
  const Ops* ops;
};

inline bool can_run(const std::string& name) {
#if defined(__x86_64__)
  if (name == "avx512")
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2");
  if (name == "avx2") return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2");
#endif
  return name == "neon" || name == "portable";  // only offered where they were built
}

// all: what was built, best first.
template <class Ops>
std::vector<Target<Ops>> runnable(std::initializer_list<Target<Ops>> all) {
  std::vector<Target<Ops>> out;
  for (const auto& target : all)
    if (can_run(target.name)) out.push_back(target);
  return out;
}

template <class Ops>
Target<Ops> choose(const std::vector<Target<Ops>>& targets, const std::string& name) {
  if (name.empty()) return targets.front();
  std::string names;
  for (const auto& target : targets) {
    if (target.name == name) return target;
    names += (names.empty() ? "" : ", ") + target.name;
  }
  throw std::invalid_argument("target: got '" + name + "', expected one of " + names);
}

template <class Ops>
std::vector<std::string> names(const std::vector<Target<Ops>>& targets) {
  std::vector<std::string> out;
  for (const auto& target : targets) out.push_back(target.name);
  return out;
}

// ---- rings --------------------------------------------------------------------------------------------------
constexpr int64_t kMaxPlanes = 1 << 16;  // with stride <= 2^11 it bounds the sums of dot.hpp

inline void require(bool good, const char* field, int64_t got, const std::string& expected) {
  if (!good)
    throw std::invalid_argument(std::string(field) + ": got " + std::to_string(got) + ", expected " + expected);
}

inline std::vector<uint32_t> checked_primes(int64_t log_n, const std::vector<int64_t>& primes, int64_t stride,
                                            int64_t planes) {
  require(log_n >= 4 && log_n <= 15, "log_n", log_n, "4 to 15");
  const int64_t limit = (int64_t{1} << log_n) / static_cast<int64_t>(kTile);
  require(stride >= 1 && stride <= limit && (stride & (stride - 1)) == 0, "stride", stride,
          "a power of two from 1 to " + std::to_string(limit));
  require(planes >= 1 && planes <= kMaxPlanes, "planes", planes, "1 to " + std::to_string(kMaxPlanes));
  require(!primes.empty(), "primes", 0, "at least one prime");
  for (const int64_t q : primes)
    require(q > int64_t{1} << 30 && q < int64_t{1} << 31 && q % 2 == 1, "primes", q,
            "an odd prime between 2^30 and 2^31");
  return {primes.begin(), primes.end()};
}

// ---- arrays -------------------------------------------------------------------------------------------------
// One expected dimension: a number, or (size < 0) a letter that the array itself decides.
struct Dim {
  const char* letter;
  int64_t size = -1;
  Dim(const char* name) : letter(name) {}
  Dim(size_t value) : letter(nullptr), size(static_cast<int64_t>(value)) {}
};

inline std::string shape_text(const std::vector<std::string>& sizes) {
  std::string out = "(";
  for (size_t i = 0; i < sizes.size(); ++i) out += (i ? ", " : "") + sizes[i];
  return out + (sizes.size() == 1 ? ",)" : ")");
}

template <class T>
constexpr const char* dtype_name() {
  if constexpr (std::is_same_v<T, uint8_t>) return "uint8";
  if constexpr (std::is_same_v<T, uint32_t>) return "uint32";
  if constexpr (std::is_same_v<T, uint64_t>) return "uint64";
  if constexpr (std::is_same_v<T, int32_t>) return "int32";
  if constexpr (std::is_same_v<T, int64_t>) return "int64";
}

// A C-contiguous array of exactly T and exactly this shape, kept alive. Const T: may be read-only.
// Raises TypeError for what is no array, or a read-only one to write to, and ValueError for everything else.
template <class T>
class Array {
  using Value = std::remove_const_t<T>;
  using Handle = std::conditional_t<std::is_const_v<T>, nb::ndarray<nb::ro>, nb::ndarray<>>;

 public:
  Array(nb::handle object, const char* name, std::initializer_list<Dim> expected) {
    if (!nb::try_cast<Handle>(object, array_, false))
      throw nb::type_error((std::string(name) + ": got " + nb::type_name(object.type()).c_str() +
                            ", expected a " + (std::is_const_v<T> ? "" : "writable ") + dtype_name<Value>() +
                            " array")
                               .c_str());
    const auto fail = [&](const std::string& what) {
      throw std::invalid_argument(std::string(name) + ": " + what);
    };
    if (array_.dtype() != nb::dtype<Value>() || array_.device_type() != nb::device::cpu::value)
      fail(std::string("got another element type, expected ") + dtype_name<Value>());
    std::vector<std::string> got, want;
    bool same = array_.ndim() == expected.size();
    for (size_t i = 0; i < array_.ndim(); ++i) got.push_back(std::to_string(array_.shape(i)));
    size_t axis = 0;
    for (const Dim& dim : expected) {
      want.push_back(dim.size < 0 ? dim.letter : std::to_string(dim.size));
      same = same && (dim.size < 0 || dim.size == static_cast<int64_t>(array_.shape(axis)));
      ++axis;
    }
    if (!same) fail("got shape " + shape_text(got) + ", expected " + shape_text(want));
    int64_t step = 1;
    bool contiguous = true;
    for (size_t i = array_.ndim(); i-- > 0; step *= static_cast<int64_t>(array_.shape(i)))
      contiguous = contiguous && (array_.shape(i) == 1 || array_.stride(i) == step);
    if (!contiguous && array_.size() != 0) fail("got a strided array, expected C order without gaps");
    if (reinterpret_cast<uintptr_t>(array_.data()) % alignof(Value) != 0)
      fail("got an unaligned array, expected one at a multiple of its element size");
  }

  T* data() const { return static_cast<T*>(array_.data()); }
  size_t shape(size_t axis) const { return array_.shape(axis); }

 private:
  Handle array_;
};

}  // namespace he
