// The server's arithmetic, compiled once for each instruction set. No secret reaches it.
#include "answer_kernel.hpp"

#include <new>

#include "batch.hpp"
#include "dot.hpp"
#include "few.hpp"

namespace he {
namespace {

static_assert(sizeof(BatchScratch) <= sizeof(AnswerScratch) && alignof(BatchScratch) <= alignof(AnswerScratch));

void answer(const Layout& layout, const uint32_t* blocks, size_t block_count, const uint32_t* const* queries,
            size_t query_count, uint32_t* out, AnswerScratch* scratch) {
  if (query_count == 1)
    dot(layout, layout.stride, blocks, block_count, queries[0], out);
  else if (query_count <= kFewQueries && layout.stride >= kTile)
    few(layout, blocks, block_count, queries, query_count, out);
  else
    Batch<Vector>(layout, blocks, block_count, queries, query_count, out, *new (scratch) BatchScratch).answer();
}

// The first index of a word >= q, or `length`. A chunk is tested as a whole, and searched only if it fails.
size_t first_at_least(uint32_t q, const uint32_t* words, size_t length) {
  constexpr size_t chunk = 16 * Vector::lanes;
  const Vector top = Vector::broadcast(q - 1);
  size_t start = 0;
  for (; start + chunk <= length; start += chunk) {
    Vector excess = Vector::zero();
    for (size_t j = start; j < start + chunk; j += Vector::lanes) {
      if (j % kTile == 0) prefetch(words, j + kPrefetch);
      const Vector word = Vector::load(words + j);
      excess = bit_or(excess, bit_xor(word, min(word, top)));
    }
    if (!is_zero(excess)) break;
  }
  while (start < length && words[start] < q) ++start;
  return start;
}

ptrdiff_t first_noncanonical(const Layout& layout, const uint32_t* words, size_t count, size_t length) {
  for (size_t row = 0; row < count * layout.primes; ++row) {
    const uint32_t q = layout.moduli[row % layout.primes].q;
    const size_t found = first_at_least(q, words + row * length, length);
    if (found < length) return static_cast<ptrdiff_t>(row * length + found);
  }
  return -1;
}

}  // namespace

#define HE_JOIN(a, b) a##b
#define HE_NAME(a, b) HE_JOIN(a, b)
const AnswerOps HE_NAME(answer_, HE_TARGET) = {answer, first_noncanonical};

}  // namespace he
