// The vector operations that the kernels are written in, for each instruction set.
//
// A vector holds `lanes` words of 32 bits; the operations that end in 64 see the same bits as lanes/2 words of
// 64 bits. A product of two vectors is `Wide`: two vectors of 64-bit words. Which lanes go to `first` and which
// to `second` differs between instruction sets (even and odd on x86, low and high half on NEON); `slot` says.
//
// mul_add_pairs is the cheapest sum of signed products: it adds two of them, of words `apart` words apart, to
// each 64-bit word. low_words takes the low halves of 64-bit words from its first argument, the high ones from
// the other.
//
// HE_TARGET_{AVX512,AVX2,NEON,PORTABLE} selects what `Vector` is; `Narrow` is never longer than 8 lanes.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(HE_TARGET_AVX512) || defined(HE_TARGET_AVX2)
#include <immintrin.h>
#elif defined(HE_TARGET_NEON)
#include <arm_neon.h>
#endif

#define HE_INLINE [[gnu::always_inline]] inline

namespace he {
namespace {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "64-bit lanes are pairs of words, low word first");

template <class V>
struct Wide {
  V first, second;
};

// A hint: words[offset] will be read soon. It may lie past the end: that is never an access.
HE_INLINE void prefetch(const uint32_t* words, size_t offset) {
  __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(words) + 4 * offset), 0, 3);
}

// ---- AVX2 ---------------------------------------------------------------------------------------------------
#if defined(HE_TARGET_AVX512) || defined(HE_TARGET_AVX2)
struct U32x8 {
  static constexpr int lanes = 8;
  static constexpr int apart = 1;
  __m256i raw;

  static constexpr int slot(int half, int word) { return 2 * word + half; }
  HE_INLINE static U32x8 load(const void* p) { return {_mm256_loadu_si256(static_cast<const __m256i*>(p))}; }
  HE_INLINE static U32x8 zero() { return {_mm256_setzero_si256()}; }
  HE_INLINE static U32x8 broadcast(uint32_t x) { return {_mm256_set1_epi32(static_cast<int>(x))}; }
  HE_INLINE static U32x8 broadcast64(uint64_t x) { return {_mm256_set1_epi64x(static_cast<long long>(x))}; }
};
HE_INLINE void store(void* p, U32x8 a) { _mm256_storeu_si256(static_cast<__m256i*>(p), a.raw); }
HE_INLINE U32x8 add(U32x8 a, U32x8 b) { return {_mm256_add_epi32(a.raw, b.raw)}; }
HE_INLINE U32x8 sub(U32x8 a, U32x8 b) { return {_mm256_sub_epi32(a.raw, b.raw)}; }
HE_INLINE U32x8 min(U32x8 a, U32x8 b) { return {_mm256_min_epu32(a.raw, b.raw)}; }
HE_INLINE U32x8 bit_and(U32x8 a, U32x8 b) { return {_mm256_and_si256(a.raw, b.raw)}; }
HE_INLINE U32x8 bit_or(U32x8 a, U32x8 b) { return {_mm256_or_si256(a.raw, b.raw)}; }
HE_INLINE U32x8 bit_xor(U32x8 a, U32x8 b) { return {_mm256_xor_si256(a.raw, b.raw)}; }
HE_INLINE U32x8 mul_low(U32x8 a, U32x8 b) { return {_mm256_mullo_epi32(a.raw, b.raw)}; }
HE_INLINE U32x8 sign(U32x8 a) { return {_mm256_srai_epi32(a.raw, 31)}; }
HE_INLINE bool is_zero(U32x8 a) { return _mm256_testz_si256(a.raw, a.raw) != 0; }
HE_INLINE U32x8 add64(U32x8 a, U32x8 b) { return {_mm256_add_epi64(a.raw, b.raw)}; }
HE_INLINE U32x8 high64(U32x8 a) { return {_mm256_srli_epi64(a.raw, 32)}; }
HE_INLINE U32x8 low64(U32x8 a) { return {_mm256_and_si256(a.raw, _mm256_set1_epi64x(0xffffffff))}; }
HE_INLINE U32x8 odd(U32x8 a) { return high64(a); }
HE_INLINE U32x8 mul_even(U32x8 a, U32x8 b) { return {_mm256_mul_epu32(a.raw, b.raw)}; }
HE_INLINE Wide<U32x8> mul(U32x8 a, U32x8 b, U32x8 odd_b) {
  return {{_mm256_mul_epu32(a.raw, b.raw)}, {_mm256_mul_epu32(odd(a).raw, odd_b.raw)}};
}
HE_INLINE Wide<U32x8> mul_add(Wide<U32x8> sum, U32x8 a, U32x8 b, U32x8 odd_b) {
  const Wide<U32x8> product = mul(a, b, odd_b);
  return {add64(sum.first, product.first), add64(sum.second, product.second)};
}
HE_INLINE U32x8 mul_add_pairs(U32x8 sum, U32x8 a, U32x8 odd_a, U32x8 b, U32x8 odd_b) {
  return add64(add64(sum, {_mm256_mul_epi32(a.raw, b.raw)}), {_mm256_mul_epi32(odd_a.raw, odd_b.raw)});
}
HE_INLINE U32x8 low_words(U32x8 a, U32x8 b) { return {_mm256_blend_epi32(a.raw, b.raw, 0xaa)}; }
HE_INLINE U32x8 high_words(Wide<U32x8> a) {
  return {_mm256_blend_epi32(_mm256_shuffle_epi32(a.first.raw, 0xf5), a.second.raw, 0xaa)};
}
HE_INLINE uint64_t sum64(U32x8 a) {
  const __m128i pair = _mm_add_epi64(_mm256_castsi256_si128(a.raw), _mm256_extracti128_si256(a.raw, 1));
  return static_cast<uint64_t>(_mm_cvtsi128_si64(_mm_add_epi64(pair, _mm_unpackhi_epi64(pair, pair))));
}
HE_INLINE U32x8 popcount64(U32x8 a) {  // the table is a register, not memory: no secret-dependent address
  const __m256i nibble = _mm256_set1_epi8(0x0f);
  const __m256i table = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4,  //
                                         0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4);
  const __m256i low = _mm256_shuffle_epi8(table, _mm256_and_si256(a.raw, nibble));
  const __m256i high = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(a.raw, 4), nibble));
  return {_mm256_sad_epu8(_mm256_add_epi8(low, high), _mm256_setzero_si256())};
}
template <int kOdd>
HE_INLINE U32x8 every_second(U32x8 a, U32x8 b) {
  const __m256 mixed =
      _mm256_shuffle_ps(_mm256_castsi256_ps(a.raw), _mm256_castsi256_ps(b.raw), kOdd ? 0xdd : 0x88);
  return {_mm256_permute4x64_epi64(_mm256_castps_si256(mixed), 0xd8)};
}
HE_INLINE void zip(U32x8& a, U32x8& b) {
  const __m256i low = _mm256_unpacklo_epi32(a.raw, b.raw), high = _mm256_unpackhi_epi32(a.raw, b.raw);
  a.raw = _mm256_permute2x128_si256(low, high, 0x20);
  b.raw = _mm256_permute2x128_si256(low, high, 0x31);
}
template <int kBlock>
HE_INLINE void swap_blocks(U32x8& a, U32x8& b) {
  const __m256i x = a.raw, y = b.raw;
  if constexpr (kBlock == 4) {
    a.raw = _mm256_permute2x128_si256(x, y, 0x20);
    b.raw = _mm256_permute2x128_si256(x, y, 0x31);
  } else if constexpr (kBlock == 2) {
    a.raw = _mm256_unpacklo_epi64(x, y);
    b.raw = _mm256_unpackhi_epi64(x, y);
  } else {
    a.raw = _mm256_blend_epi32(x, _mm256_shuffle_epi32(y, 0xa0), 0xaa);
    b.raw = _mm256_blend_epi32(_mm256_shuffle_epi32(x, 0xf5), y, 0xaa);
  }
}
#endif

// ---- AVX-512 (F, BW, DQ, VL) --------------------------------------------------------------------------------
#if defined(HE_TARGET_AVX512)
struct U32x16 {
  static constexpr int lanes = 16;
  static constexpr int apart = 1;
  __m512i raw;

  static constexpr int slot(int half, int word) { return 2 * word + half; }
  HE_INLINE static U32x16 load(const void* p) { return {_mm512_loadu_si512(p)}; }
  HE_INLINE static U32x16 zero() { return {_mm512_setzero_si512()}; }
  HE_INLINE static U32x16 broadcast(uint32_t x) { return {_mm512_set1_epi32(static_cast<int>(x))}; }
  HE_INLINE static U32x16 broadcast64(uint64_t x) { return {_mm512_set1_epi64(static_cast<long long>(x))}; }
};
HE_INLINE void store(void* p, U32x16 a) { _mm512_storeu_si512(p, a.raw); }
HE_INLINE U32x16 add(U32x16 a, U32x16 b) { return {_mm512_add_epi32(a.raw, b.raw)}; }
HE_INLINE U32x16 sub(U32x16 a, U32x16 b) { return {_mm512_sub_epi32(a.raw, b.raw)}; }
HE_INLINE U32x16 min(U32x16 a, U32x16 b) { return {_mm512_min_epu32(a.raw, b.raw)}; }
HE_INLINE U32x16 bit_and(U32x16 a, U32x16 b) { return {_mm512_and_si512(a.raw, b.raw)}; }
HE_INLINE U32x16 bit_or(U32x16 a, U32x16 b) { return {_mm512_or_si512(a.raw, b.raw)}; }
HE_INLINE U32x16 bit_xor(U32x16 a, U32x16 b) { return {_mm512_xor_si512(a.raw, b.raw)}; }
HE_INLINE U32x16 mul_low(U32x16 a, U32x16 b) { return {_mm512_mullo_epi32(a.raw, b.raw)}; }
HE_INLINE U32x16 sign(U32x16 a) { return {_mm512_srai_epi32(a.raw, 31)}; }
HE_INLINE bool is_zero(U32x16 a) { return _mm512_test_epi32_mask(a.raw, a.raw) == 0; }
HE_INLINE U32x16 add64(U32x16 a, U32x16 b) { return {_mm512_add_epi64(a.raw, b.raw)}; }
HE_INLINE U32x16 high64(U32x16 a) { return {_mm512_srli_epi64(a.raw, 32)}; }
HE_INLINE U32x16 low64(U32x16 a) { return {_mm512_and_si512(a.raw, _mm512_set1_epi64(0xffffffff))}; }
HE_INLINE U32x16 odd(U32x16 a) { return high64(a); }
HE_INLINE U32x16 mul_even(U32x16 a, U32x16 b) { return {_mm512_mul_epu32(a.raw, b.raw)}; }
HE_INLINE Wide<U32x16> mul(U32x16 a, U32x16 b, U32x16 odd_b) {
  return {{_mm512_mul_epu32(a.raw, b.raw)}, {_mm512_mul_epu32(odd(a).raw, odd_b.raw)}};
}
HE_INLINE Wide<U32x16> mul_add(Wide<U32x16> sum, U32x16 a, U32x16 b, U32x16 odd_b) {
  const Wide<U32x16> product = mul(a, b, odd_b);
  return {add64(sum.first, product.first), add64(sum.second, product.second)};
}
HE_INLINE U32x16 mul_add_pairs(U32x16 sum, U32x16 a, U32x16 odd_a, U32x16 b, U32x16 odd_b) {
  return add64(add64(sum, {_mm512_mul_epi32(a.raw, b.raw)}), {_mm512_mul_epi32(odd_a.raw, odd_b.raw)});
}
HE_INLINE U32x16 low_words(U32x16 a, U32x16 b) { return {_mm512_mask_blend_epi32(0xaaaa, a.raw, b.raw)}; }
HE_INLINE U32x16 high_words(Wide<U32x16> a) {
  return {_mm512_mask_shuffle_epi32(a.second.raw, 0x5555, a.first.raw, static_cast<_MM_PERM_ENUM>(0xf5))};
}
HE_INLINE uint64_t sum64(U32x16 a) { return static_cast<uint64_t>(_mm512_reduce_add_epi64(a.raw)); }
HE_INLINE U32x16 popcount64(U32x16 a) {
  const __m512i nibble = _mm512_set1_epi8(0x0f);
  const __m512i table = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
  const __m512i low = _mm512_shuffle_epi8(table, _mm512_and_si512(a.raw, nibble));
  const __m512i high = _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16(a.raw, 4), nibble));
  return {_mm512_sad_epu8(_mm512_add_epi8(low, high), _mm512_setzero_si512())};
}
template <int kOdd>
HE_INLINE U32x16 every_second(U32x16 a, U32x16 b) {
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i index = kOdd ? _mm512_add_epi32(even, _mm512_set1_epi32(1)) : even;
  return {_mm512_permutex2var_epi32(a.raw, index, b.raw)};
}
HE_INLINE void zip(U32x16& a, U32x16& b) {
  const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const __m512i high = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  const __m512i x = a.raw, y = b.raw;
  a.raw = _mm512_permutex2var_epi32(x, low, y);
  b.raw = _mm512_permutex2var_epi32(x, high, y);
}
template <int kBlock>
HE_INLINE void swap_blocks(U32x16& a, U32x16& b) {
  const __m512i x = a.raw, y = b.raw;
  if constexpr (kBlock == 8) {
    a.raw = _mm512_shuffle_i64x2(x, y, 0x44);
    b.raw = _mm512_shuffle_i64x2(x, y, 0xee);
  } else if constexpr (kBlock == 4) {
    a.raw = _mm512_mask_permutex_epi64(x, 0xcc, y, 0x4e);
    b.raw = _mm512_mask_permutex_epi64(y, 0x33, x, 0x4e);
  } else if constexpr (kBlock == 2) {
    a.raw = _mm512_unpacklo_epi64(x, y);
    b.raw = _mm512_unpackhi_epi64(x, y);
  } else {
    a.raw = _mm512_mask_shuffle_epi32(x, 0xaaaa, y, static_cast<_MM_PERM_ENUM>(0xa0));
    b.raw = _mm512_mask_shuffle_epi32(y, 0x5555, x, static_cast<_MM_PERM_ENUM>(0xf5));
  }
}
#endif

// ---- NEON ---------------------------------------------------------------------------------------------------
#if defined(HE_TARGET_NEON)
struct U32x4 {
  static constexpr int lanes = 4;
  static constexpr int apart = 2;
  uint32x4_t raw;

  static constexpr int slot(int half, int word) { return 2 * half + word; }
  HE_INLINE static U32x4 load(const void* p) {
    U32x4 a;
    __builtin_memcpy(&a.raw, p, sizeof a.raw);  // of words of any size: vld1q_u32 would assume uint32_t
    return a;
  }
  HE_INLINE static U32x4 zero() { return {vdupq_n_u32(0)}; }
  HE_INLINE static U32x4 broadcast(uint32_t x) { return {vdupq_n_u32(x)}; }
  HE_INLINE static U32x4 broadcast64(uint64_t x) { return {vreinterpretq_u32_u64(vdupq_n_u64(x))}; }
  HE_INLINE uint64x2_t as64() const { return vreinterpretq_u64_u32(raw); }
};
HE_INLINE U32x4 from64(uint64x2_t a) { return {vreinterpretq_u32_u64(a)}; }
HE_INLINE void store(void* p, U32x4 a) { __builtin_memcpy(p, &a.raw, sizeof a.raw); }
HE_INLINE U32x4 add(U32x4 a, U32x4 b) { return {vaddq_u32(a.raw, b.raw)}; }
HE_INLINE U32x4 sub(U32x4 a, U32x4 b) { return {vsubq_u32(a.raw, b.raw)}; }
HE_INLINE U32x4 min(U32x4 a, U32x4 b) { return {vminq_u32(a.raw, b.raw)}; }
HE_INLINE U32x4 bit_and(U32x4 a, U32x4 b) { return {vandq_u32(a.raw, b.raw)}; }
HE_INLINE U32x4 bit_or(U32x4 a, U32x4 b) { return {vorrq_u32(a.raw, b.raw)}; }
HE_INLINE U32x4 bit_xor(U32x4 a, U32x4 b) { return {veorq_u32(a.raw, b.raw)}; }
HE_INLINE U32x4 mul_low(U32x4 a, U32x4 b) { return {vmulq_u32(a.raw, b.raw)}; }
HE_INLINE U32x4 sign(U32x4 a) { return {vreinterpretq_u32_s32(vshrq_n_s32(vreinterpretq_s32_u32(a.raw), 31))}; }
HE_INLINE bool is_zero(U32x4 a) { return vmaxvq_u32(a.raw) == 0; }
HE_INLINE U32x4 add64(U32x4 a, U32x4 b) { return from64(vaddq_u64(a.as64(), b.as64())); }
HE_INLINE U32x4 high64(U32x4 a) { return from64(vshrq_n_u64(a.as64(), 32)); }
HE_INLINE U32x4 low64(U32x4 a) { return from64(vandq_u64(a.as64(), vdupq_n_u64(0xffffffff))); }
HE_INLINE U32x4 odd(U32x4 a) { return a; }  // the high half is multiplied in place
HE_INLINE U32x4 mul_even(U32x4 a, U32x4 b) {
  return from64(vmull_u32(vmovn_u64(a.as64()), vmovn_u64(b.as64())));
}
HE_INLINE Wide<U32x4> mul(U32x4 a, U32x4 b, U32x4) {
  return {from64(vmull_u32(vget_low_u32(a.raw), vget_low_u32(b.raw))), from64(vmull_high_u32(a.raw, b.raw))};
}
HE_INLINE Wide<U32x4> mul_add(Wide<U32x4> sum, U32x4 a, U32x4 b, U32x4) {
  return {from64(vmlal_u32(sum.first.as64(), vget_low_u32(a.raw), vget_low_u32(b.raw))),
          from64(vmlal_high_u32(sum.second.as64(), a.raw, b.raw))};
}
HE_INLINE U32x4 mul_add_pairs(U32x4 sum, U32x4 a, U32x4, U32x4 b, U32x4) {
  const int32x4_t x = vreinterpretq_s32_u32(a.raw), y = vreinterpretq_s32_u32(b.raw);
  const int64x2_t low = vmlal_s32(vreinterpretq_s64_u32(sum.raw), vget_low_s32(x), vget_low_s32(y));
  return {vreinterpretq_u32_s64(vmlal_high_s32(low, x, y))};
}
HE_INLINE U32x4 low_words(U32x4 a, U32x4 b) { return {vtrn2q_u32(vrev64q_u32(a.raw), b.raw)}; }
HE_INLINE U32x4 high_words(Wide<U32x4> a) { return {vuzp2q_u32(a.first.raw, a.second.raw)}; }
HE_INLINE uint64_t sum64(U32x4 a) { return vaddvq_u64(a.as64()); }
HE_INLINE U32x4 popcount64(U32x4 a) {
  return from64(vpaddlq_u32(vpaddlq_u16(vpaddlq_u8(vcntq_u8(vreinterpretq_u8_u32(a.raw))))));
}
template <int kOdd>
HE_INLINE U32x4 every_second(U32x4 a, U32x4 b) {
  return {kOdd ? vuzp2q_u32(a.raw, b.raw) : vuzp1q_u32(a.raw, b.raw)};
}
HE_INLINE void zip(U32x4& a, U32x4& b) {
  const uint32x4_t x = a.raw, y = b.raw;
  a.raw = vzip1q_u32(x, y);
  b.raw = vzip2q_u32(x, y);
}
template <int kBlock>
HE_INLINE void swap_blocks(U32x4& a, U32x4& b) {
  const U32x4 x = a, y = b;
  if constexpr (kBlock == 2) {
    a = from64(vtrn1q_u64(x.as64(), y.as64()));
    b = from64(vtrn2q_u64(x.as64(), y.as64()));
  } else {
    a.raw = vtrn1q_u32(x.raw, y.raw);
    b.raw = vtrn2q_u32(x.raw, y.raw);
  }
}
#endif

// ---- portable: GCC and Clang vector types, lowered to whatever the machine has ------------------------------
#if defined(HE_TARGET_PORTABLE)
struct U32x4 {
  static constexpr int lanes = 4;
  static constexpr int apart = 1;
  using Words = uint32_t __attribute__((vector_size(16)));
  using Longs = uint64_t __attribute__((vector_size(16)));
  Words raw;

  static constexpr int slot(int half, int word) { return 2 * word + half; }
  HE_INLINE static U32x4 load(const void* p) {
    U32x4 a;
    __builtin_memcpy(&a.raw, p, sizeof a.raw);
    return a;
  }
  HE_INLINE static U32x4 zero() { return {Words{0, 0, 0, 0}}; }
  HE_INLINE static U32x4 broadcast(uint32_t x) { return {Words{x, x, x, x}}; }
  HE_INLINE static U32x4 broadcast64(uint64_t x) { return from64(Longs{x, x}); }
  HE_INLINE static U32x4 from64(Longs a) { return {reinterpret_cast<Words>(a)}; }
  HE_INLINE Longs as64() const { return reinterpret_cast<Longs>(raw); }
};
HE_INLINE void store(void* p, U32x4 a) { __builtin_memcpy(p, &a.raw, sizeof a.raw); }
HE_INLINE U32x4 add(U32x4 a, U32x4 b) { return {a.raw + b.raw}; }
HE_INLINE U32x4 sub(U32x4 a, U32x4 b) { return {a.raw - b.raw}; }
HE_INLINE U32x4 bit_and(U32x4 a, U32x4 b) { return {a.raw & b.raw}; }
HE_INLINE U32x4 bit_or(U32x4 a, U32x4 b) { return {a.raw | b.raw}; }
HE_INLINE U32x4 bit_xor(U32x4 a, U32x4 b) { return {a.raw ^ b.raw}; }
HE_INLINE U32x4 min(U32x4 a, U32x4 b) {
  const auto less = reinterpret_cast<U32x4::Words>(a.raw < b.raw);  // all ones or all zeros, no branch
  return {(a.raw & less) | (b.raw & ~less)};
}
HE_INLINE U32x4 mul_low(U32x4 a, U32x4 b) { return {a.raw * b.raw}; }
HE_INLINE U32x4 sign(U32x4 a) { return {0u - (a.raw >> 31)}; }
HE_INLINE bool is_zero(U32x4 a) { return (a.raw[0] | a.raw[1] | a.raw[2] | a.raw[3]) == 0; }
HE_INLINE U32x4 add64(U32x4 a, U32x4 b) { return U32x4::from64(a.as64() + b.as64()); }
HE_INLINE U32x4 high64(U32x4 a) { return U32x4::from64(a.as64() >> 32); }
HE_INLINE U32x4 low64(U32x4 a) { return U32x4::from64(a.as64() & 0xffffffffu); }
HE_INLINE U32x4 odd(U32x4 a) { return high64(a); }
HE_INLINE U32x4 mul_even(U32x4 a, U32x4 b) {
  return U32x4::from64(U32x4::Longs{static_cast<uint64_t>(a.raw[0]) * b.raw[0],  //
                                    static_cast<uint64_t>(a.raw[2]) * b.raw[2]});
}
HE_INLINE Wide<U32x4> mul(U32x4 a, U32x4 b, U32x4 odd_b) { return {mul_even(a, b), mul_even(odd(a), odd_b)}; }
HE_INLINE Wide<U32x4> mul_add(Wide<U32x4> sum, U32x4 a, U32x4 b, U32x4 odd_b) {
  const Wide<U32x4> product = mul(a, b, odd_b);
  return {add64(sum.first, product.first), add64(sum.second, product.second)};
}
HE_INLINE U32x4 mul_add_pairs(U32x4 sum, U32x4 a, U32x4, U32x4 b, U32x4) {
  const auto product = [&](int lane) {
    return static_cast<uint64_t>(static_cast<int64_t>(static_cast<int32_t>(a.raw[lane])) *
                                 static_cast<int32_t>(b.raw[lane]));
  };
  return U32x4::from64(sum.as64() + U32x4::Longs{product(0) + product(1), product(2) + product(3)});
}
HE_INLINE U32x4 low_words(U32x4 a, U32x4 b) { return {U32x4::Words{a.raw[0], b.raw[1], a.raw[2], b.raw[3]}}; }
HE_INLINE U32x4 high_words(Wide<U32x4> a) {
  return {U32x4::Words{a.first.raw[1], a.second.raw[1], a.first.raw[3], a.second.raw[3]}};
}
HE_INLINE uint64_t sum64(U32x4 a) { return a.as64()[0] + a.as64()[1]; }
HE_INLINE U32x4 popcount64(U32x4 a) {
  U32x4::Longs x = a.as64();
  x -= x >> 1 & 0x5555555555555555u;
  x = (x & 0x3333333333333333u) + (x >> 2 & 0x3333333333333333u);
  x = (x + (x >> 4)) & 0x0f0f0f0f0f0f0f0fu;
  x += x >> 8;
  x += x >> 16;
  return U32x4::from64((x + (x >> 32)) & 0x7fu);
}
template <int kOdd>
HE_INLINE U32x4 every_second(U32x4 a, U32x4 b) {
  return {U32x4::Words{a.raw[kOdd], a.raw[2 + kOdd], b.raw[kOdd], b.raw[2 + kOdd]}};
}
HE_INLINE void zip(U32x4& a, U32x4& b) {
  const U32x4::Words x = a.raw, y = b.raw;
  a.raw = U32x4::Words{x[0], y[0], x[1], y[1]};
  b.raw = U32x4::Words{x[2], y[2], x[3], y[3]};
}
template <int kBlock>
HE_INLINE void swap_blocks(U32x4& a, U32x4& b) {
  const U32x4::Words x = a.raw, y = b.raw;
  if constexpr (kBlock == 2) {
    a.raw = U32x4::Words{x[0], x[1], y[0], y[1]};
    b.raw = U32x4::Words{x[2], x[3], y[2], y[3]};
  } else {
    a.raw = U32x4::Words{x[0], y[0], x[2], y[2]};
    b.raw = U32x4::Words{x[1], y[1], x[3], y[3]};
  }
}
#endif

#if defined(HE_TARGET_AVX512)
using Vector = U32x16;
using Narrow = U32x8;
#elif defined(HE_TARGET_AVX2)
using Vector = U32x8;
using Narrow = U32x8;
#else
using Vector = U32x4;
using Narrow = U32x4;
#endif

// ---- in terms of the above ----------------------------------------------------------------------------------
// Two vectors seen as 2*lanes words. Blocks of kBlock words: swap_blocks<kBlock>(a, b) makes
//     a = a0 b0 a2 b2 ...,   b = a1 b1 a3 b3 ...
// so that words kBlock apart come to face each other. zip interleaves word by word; unzip undoes it.
template <class V>
HE_INLINE void unzip(V& a, V& b) {
  const V even = every_second<0>(a, b), odd = every_second<1>(a, b);
  a = even;
  b = odd;
}

// The low words of the 64-bit lanes of a, then of b.
template <class V>
HE_INLINE V narrow(V a, V b) {
  return every_second<0>(a, b);
}

template <class V>
HE_INLINE Wide<V> mul(V a, V b) {
  return mul(a, b, odd(b));
}

}  // namespace
}  // namespace he
