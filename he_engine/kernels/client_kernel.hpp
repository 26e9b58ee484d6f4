// What one instruction set offers a client. The binding picks one table; every function trusts its arguments.
#pragma once

#include "modular.hpp"

namespace he {

// w and floor(w * 2^32 / q).
struct Factor {
  uint32_t value, shoup;
};

// One prime, one size, one direction. Public.
struct Twiddles {
  uint32_t size;
  bool narrow;            // made for Narrow, as size < 2 * Vector::lanes
  const Factor* factors;  // [k] = psi^brv(k), or psi^-brv(k) for the inverse
  const uint32_t* tail;   // per pair of vectors, per stage: L words of w, L words of its companion
  Factor scale;           // inverse only: 1/N
};

struct Ring {
  Layout layout;
  const Twiddles* forward;    // for each prime, size N
  const Twiddles* inverse;    // size N, scaled by 1/N
  const Twiddles* decimated;  // size B = N/g, scaled by 1/N too

  size_t rows() const { return layout.degree / layout.stride; }
};

// Arrays of `encrypt_blocks` for `count` blocks; shapes as in naive.py.
struct Encryption {
  size_t count, checks;
  const int32_t* rows;
  const uint64_t* noise;
  const uint32_t *secrets, *index_public, *query_public, *weights;
  uint32_t *blocks, *hint, *fingerprint;
};

struct QueryEncryption {
  const int64_t* query;
  const uint64_t* keystream;
  const uint32_t *index_public, *query_public;
  uint32_t *ciphertext, *secret, *mask;
};

struct Recovery {
  size_t count;
  const uint32_t *answers, *hints, *secrets, *secret, *mask;
  int64_t* scores;
};

// How hints are stored; hint.hpp. Public.
struct HintFormat {
  size_t drop_bits;  // kappa
  size_t width;      // L = bits(q) - kappa
  uint64_t limit;    // M = ceil(q / 2^kappa): stored values are below it
};

// `scratch` is secret: the caller allocates what the *_scratch function says, in words, and erases it.
struct ClientOps {
  int lanes, narrow_lanes;  // the tables of Twiddles depend on these
  void (*transform)(const Twiddles* tables, bool inverse, const Layout& layout, size_t count, uint32_t* polys);
  void (*fold)(const Layout& layout, size_t count, const uint32_t* polys, uint32_t* out);
  void (*expand_secrets)(const Ring& ring, size_t count, const uint64_t* keystream, uint32_t* out,
                         uint32_t* scratch);
  void (*expand_weights)(const Ring& ring, size_t count, const uint64_t* keystream, uint32_t* out);
  void (*encrypt_blocks)(const Ring& ring, const Encryption& arrays, uint32_t* scratch);
  void (*encrypt_query)(const Ring& ring, const QueryEncryption& arrays, uint32_t* scratch);
  void (*weighted_sum)(const Layout& layout, size_t count, size_t checks, size_t length,
                       const uint32_t* weights, const uint32_t* values, uint32_t* out);
  void (*recover)(const Ring& ring, const Recovery& arrays, uint32_t* scratch);
  void (*pack_hint)(const Ring& ring, const HintFormat& format, size_t count, const uint32_t* hints,
                    uint8_t* packed, uint32_t* scratch);
  ptrdiff_t (*unpack_hint)(const Ring& ring, const HintFormat& format, size_t count, const uint8_t* packed,
                           uint32_t* hints, uint32_t* scratch);
};

inline size_t expand_scratch(const Layout& l) { return l.degree; }
inline size_t blocks_scratch(const Layout& l) { return (2 + 2 * l.primes) * l.degree; }
inline size_t query_scratch(const Layout& l) { return (2 + 2 * l.primes + l.primes * l.planes) * l.degree; }
inline size_t recover_scratch(const Layout& l) { return 2 * l.degree / l.stride; }
inline size_t hint_scratch(const Layout& l) { return 4 * l.degree + 4; }

extern const ClientOps client_avx512, client_avx2, client_neon, client_portable;

}  // namespace he
