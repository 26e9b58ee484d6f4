// The two kinds of memory that a client's call makes: secret scratch, erased, and results, handed to NumPy.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <new>
#include <vector>

namespace he {

namespace nb = nanobind;

// Cache-line aligned words that held secrets, errors or messages: erased before they are freed.
class Scratch {
 public:
  explicit Scratch(size_t words) : bytes_((words * sizeof(uint32_t) + 63) / 64 * 64) {
    data_ = static_cast<uint32_t*>(std::aligned_alloc(64, bytes_ == 0 ? 64 : bytes_));
    if (data_ == nullptr) throw std::bad_alloc();
  }
  ~Scratch() {
    std::memset(data_, 0, bytes_);
    asm volatile("" : : "r"(data_) : "memory");  // the memory is read, for all the compiler knows
    std::free(data_);
  }
  Scratch(const Scratch&) = delete;

  uint32_t* data() const { return data_; }

 private:
  size_t bytes_;
  uint32_t* data_;
};

// A new NumPy array, still uninitialised.
template <class T>
class Fresh {
 public:
  Fresh(std::initializer_list<size_t> shape) : shape_(shape) {
    size_t count = 1;
    for (const size_t n : shape) count *= n;
    data_.reset(new T[count]);
  }
  T* data() const { return data_.get(); }
  nb::object release() {
    T* raw = data_.get();
    nb::capsule owner(raw, [](void* p) noexcept { delete[] static_cast<T*>(p); });
    data_.release();
    return nb::cast(nb::ndarray<nb::numpy, T>(raw, shape_.size(), shape_.data(), owner));
  }

 private:
  std::vector<size_t> shape_;
  std::unique_ptr<T[]> data_;
};

}  // namespace he
