// Encryption: b = a*s + e + v for the rows of an index, c = a'*t + e' + y for a query (docs/scheme.md).
#pragma once

#include "client_kernel.hpp"
#include "dot.hpp"
#include "ntt.hpp"
#include "sampling.hpp"

namespace he {
namespace {

// w -> its companion floor(w*2^32/q), without a division: r = w*2^32 mod q is w*2^32 - q*companion, hence
// companion = -r * q^-1 mod 2^32, and it is below 2^32.
HE_INLINE Vector companion(Vector w, const Modulus& m, Vector q) {
  const auto shift = Multiplier<Vector>::broadcast({m.shift32, m.shift32_shoup});
  return mul_low(multiply_canonical(w, shift, q), Vector::broadcast(m.negative_inverse));
}

inline void companions(const uint32_t* values, size_t count, const Modulus& m, uint32_t* out) {
  const Vector q = Vector::broadcast(m.q);
  for (size_t j = 0; j < count; j += Vector::lanes) store(out + j, companion(Vector::load(values + j), m, q));
}

// keystream (N/4) -> (P, N): one ternary polynomial in the NTT domain.
inline void expand_secret(const Ring& ring, const uint64_t* keystream, uint32_t* out, int32_t* digits) {
  const Layout& l = ring.layout;
  ternary(keystream, l.degree / 4, digits);
  for (size_t p = 0; p < l.primes; ++p) {
    residues(digits, l.degree, l.moduli[p], out + p * l.degree);
    forward_ntt(out + p * l.degree, ring.forward[p], l.moduli[p].q);
  }
}

// One plane of one prime into its tiles: out = a*secret + message, all canonical.
inline void mask_plane(const Layout& l, const Modulus& m, const uint32_t* public_plane, const uint32_t* secret,
                       const uint32_t* secret_companions, const uint32_t* message, uint32_t* out) {
  const Vector q = Vector::broadcast(m.q);
  for (size_t j = 0; j < l.degree; j += kTile) {
    for (size_t u = j; u < j + kTile; u += Vector::lanes) {
      const auto s = Multiplier<Vector>::of(Vector::load(secret + u), Vector::load(secret_companions + u));
      const Vector product = multiply_canonical(Vector::load(public_plane + (u - j)), s, q);
      store(out + (u - j), canonical(add(product, Vector::load(message + u)), q));
    }
    public_plane += l.planes * kTile;
    out += l.planes * kTile;
  }
}

// fingerprint += block * w, one tile of every plane; weights: w for the 16 slots of the tile.
inline void fingerprint_tile(const Layout& l, const Modulus& m, const uint32_t* block, const uint32_t* weights,
                             uint32_t* fingerprint) {
  const Vector q = Vector::broadcast(m.q);
  for (size_t u = 0; u < kTile; u += Vector::lanes) {
    const Vector weight = Vector::load(weights + u);
    const auto w = Multiplier<Vector>::of(weight, companion(weight, m, q));
    for (size_t at = u; at < l.planes * kTile; at += kTile) {
      const Vector product = multiply_canonical(Vector::load(block + at), w, q);
      store(fingerprint + at, canonical(add(product, Vector::load(fingerprint + at)), q));
    }
  }
}

inline void encrypt_block(const Ring& ring, const Encryption& arrays, size_t k, uint32_t* scratch) {
  const Layout& l = ring.layout;
  const size_t n = l.degree, g = l.stride, rows = ring.rows(), stack = l.primes * l.planes * n;
  const int shift = __builtin_ctzll(g);  // g is a power of two
  auto* message = reinterpret_cast<int32_t*>(scratch);
  uint32_t* slots = scratch + n;
  uint32_t* secret_companions = scratch + 2 * n;  // (P, N)
  const uint32_t* secret = arrays.secrets + k * l.primes * n;
  uint32_t* block = arrays.blocks + k * stack;

  for (size_t p = 0; p < l.primes; ++p) companions(secret + p * n, n, l.moduli[p], secret_companions + p * n);

  for (size_t i = 0; i < l.planes; ++i) {
    centred_binomial(arrays.noise + (k * l.planes + i) * n, n, message);
    const int32_t* row = arrays.rows + k * rows * l.planes * g + i * g;
    for (size_t r = 0; r < rows; ++r, row += l.planes * g)
      for (size_t u = 0; u < g; ++u) message[r * g + u] += row[u];  // |v| < 2^31 - 64, |e| <= 21: no overflow
    for (size_t p = 0; p < l.primes; ++p) {
      const Modulus& m = l.moduli[p];
      const size_t plane = p * l.planes * n + i * kTile;
      residues(message, n, m, slots);
      forward_ntt(slots, ring.forward[p], m.q);
      mask_plane(l, m, arrays.index_public + plane, secret + p * n, secret_companions + p * n, slots,
                 block + plane);
    }
  }
  dot(l, 1, block, 1, arrays.query_public, arrays.hint + k * l.primes * n);

  for (size_t p = 0; p < l.primes; ++p) {
    for (size_t j = 0; j < n; j += kTile) {
      const size_t tile = (p * n + j) * l.planes;
      for (size_t c = 0; c < arrays.checks; ++c) {
        const uint32_t* w = arrays.weights + ((k * arrays.checks + c) * l.primes + p) * rows;
        uint32_t spread[kTile];
        for (size_t slot = 0; slot < kTile; ++slot) spread[slot] = w[(j + slot) >> shift];
        fingerprint_tile(l, l.moduli[p], block + tile, spread, arrays.fingerprint + c * stack + tile);
      }
    }
  }
}

inline void encrypt_blocks(const Ring& ring, const Encryption& arrays, uint32_t* scratch) {
  for (size_t k = 0; k < arrays.count; ++k) encrypt_block(ring, arrays, k, scratch);
}

inline void encrypt_query(const Ring& ring, const QueryEncryption& arrays, uint32_t* scratch) {
  const Layout& l = ring.layout;
  const size_t n = l.degree, g = l.stride;
  auto* errors = reinterpret_cast<int32_t*>(scratch);
  uint32_t* slots = scratch + n;
  uint32_t* secret_companions = scratch + 2 * n;       // (P, N)
  uint32_t* inner = secret_companions + l.primes * n;  // stack: NTT(e' + y)

  expand_secret(ring, arrays.keystream, arrays.secret, errors);
  for (size_t p = 0; p < l.primes; ++p)
    companions(arrays.secret + p * n, n, l.moduli[p], secret_companions + p * n);

  for (size_t i = 0; i < l.planes; ++i) {
    const int64_t* y = arrays.query + i * g;
    centred_binomial(arrays.keystream + n / 4 + i * n, n, errors);
    for (size_t p = 0; p < l.primes; ++p) {
      const Modulus& m = l.moduli[p];
      const size_t plane = p * l.planes * n + i * kTile;
      residues(errors, n, m, slots);
      slots[0] = add(slots[0], residue64(y[0], m), m);
      for (size_t u = 1; u < g; ++u) slots[n - u] = subtract(slots[n - u], residue64(y[u], m), m);
      forward_ntt(slots, ring.forward[p], m.q);
      for (size_t j = 0; j < n; j += kTile)
        for (size_t slot = 0; slot < kTile; ++slot) inner[plane + j * l.planes + slot] = slots[j + slot];
      mask_plane(l, m, arrays.query_public + plane, arrays.secret + p * n, secret_companions + p * n, slots,
                 arrays.ciphertext + plane);
    }
  }
  dot(l, 1, arrays.index_public, 1, inner, arrays.mask);
}

}  // namespace
}  // namespace he
