// What one instruction set offers a server. The binding picks one table; every function trusts its arguments.
#pragma once

#include "modular.hpp"

namespace he {

// Working memory of one call with several queries.
struct AnswerScratch {
  alignas(64) unsigned char bytes[320 << 10];
};

struct AnswerOps {
  // blocks (K, stack) x Q queries (stack) -> out (Q, K, P, N/g). The scratch may be null if Q is 1.
  void (*answer)(const Layout& layout, const uint32_t* blocks, size_t block_count, const uint32_t* const* queries,
                 size_t query_count, uint32_t* out, AnswerScratch* scratch);
  // words (K, P, M): the flat index of the first residue >= q_p, or -1.
  ptrdiff_t (*first_noncanonical)(const Layout& layout, const uint32_t* words, size_t count, size_t length);
};

extern const AnswerOps answer_avx512, answer_avx2, answer_neon, answer_portable;

}  // namespace he
