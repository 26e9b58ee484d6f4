// The client's arithmetic, compiled once for each instruction set.
#include "client_kernel.hpp"

#include "encrypt.hpp"
#include "hint.hpp"
#include "recover.hpp"

namespace he {
namespace {

// polys (K, P, size): one table for each prime.
void transform(const Twiddles* tables, bool inverse, const Layout& l, size_t count, uint32_t* polys) {
  for (size_t poly = 0; poly < count * l.primes; ++poly) {
    const size_t p = poly % l.primes;
    uint32_t* values = polys + poly * tables[p].size;
    inverse ? inverse_ntt(values, tables[p], l.moduli[p].q) : forward_ntt(values, tables[p], l.moduli[p].q);
  }
}

void expand_secrets(const Ring& ring, size_t count, const uint64_t* keystream, uint32_t* out,
                    uint32_t* scratch) {
  const size_t n = ring.layout.degree;
  for (size_t k = 0; k < count; ++k)
    expand_secret(ring, keystream + k * n / 4, out + k * ring.layout.primes * n,
                  reinterpret_cast<int32_t*>(scratch));
}

// keystream (count, P, B) -> floor(w * q_p / 2^64). With w = high * 2^32 + low that is the high word of
// high * q + floor(low * q / 2^32) < 2^32 * q < 2^63. Short vectors would gain nothing over the scalar product.
void expand_weights(const Ring& ring, size_t count, const uint64_t* keystream, uint32_t* out) {
  constexpr size_t lanes = Vector::lanes;
  const size_t rows = ring.rows(), whole = lanes < 8 ? 0 : rows / lanes * lanes;
  for (size_t row = 0; row < count * ring.layout.primes; ++row, keystream += rows, out += rows) {
    const uint32_t q = ring.layout.moduli[row % ring.layout.primes].q;
    const Vector all_q = Vector::broadcast(q);
    size_t r = 0;
    for (; r < whole; r += lanes) {
      Vector low = Vector::load(keystream + r), high = Vector::load(keystream + r + lanes / 2);
      unzip(low, high);
      const Wide<Vector> below = mul(low, all_q, all_q), above = mul(high, all_q, all_q);
      store(out + r, high_words({add64(above.first, high64(below.first)),
                                 add64(above.second, high64(below.second))}));
    }
    for (; r < rows; ++r) out[r] = static_cast<uint32_t>(static_cast<unsigned __int128>(keystream[r]) * q >> 64);
  }
}

}  // namespace

#define HE_JOIN(a, b) a##b
#define HE_NAME(a, b) HE_JOIN(a, b)
const ClientOps HE_NAME(client_, HE_TARGET) = {
    Vector::lanes,  Narrow::lanes,  transform,     fold,         expand_secrets,
    expand_weights, encrypt_blocks, encrypt_query, weighted_sum, recover,
    pack_hint,      unpack_hint,
};

}  // namespace he
