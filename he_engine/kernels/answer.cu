// The server's arithmetic for GPUs: out[query, k, p, r] = sum over j in [r*g, r*g + g) and planes i of
// b[k, p, j, i] * c[query, p, j, i] mod q_p. Compiled by NVRTC or nvcc, without headers. It was compiled, and its
// source was run by an emulation of CUDA's threads on the CPU (tests/cuda_emulation.hpp); it has not been run on a GPU.
//
// A stack is [prime][tile][plane][16 coefficients]. Where g >= 16, the words of one row, its g/16 tiles, are
// consecutive: row r of prime p is the g*I words from (p*B + r)*g*I on. So a stack is a matrix of P*B rows, and an
// answer is a dot product of two such rows. A warp computes one row of several index blocks at a time; its lanes take
// 16 bytes each, next to one another. Nothing is reduced mod q inside a row:
//
//   products     b*c <= (q-1)^2 <= (2^31-2)^2 = 2^62 - 2^33 + 4
//   accumulator  four of them <= 2^64 - 2^35 + 16, and a carry-in below 2^32 still fits 64 bits
//   carry        after every four: high += acc >> 32, acc &= 2^32 - 1
//   total        32 lanes: acc <= 32 * 2^32, and high <= 2^32 * g*I/4 < 2^57, as I <= 2^16 and g <= 2^11
//   reduction    (high mod q) * 2^32 + acc < 2^63 + 2^37
typedef unsigned int u32;
typedef unsigned long long u64;

constexpr int kLanes = 32;
constexpr int kWarps = 8;            // of a thread block
constexpr int kSteps = 4;            // vectors of 4 words that each lane takes in a row
constexpr int kChunk = kSteps * kLanes;  // vectors of a row whose query words are kept at hand: 512 words
constexpr u32 kAll = 0xffffffffu;

// What all kernels are given. Words are residues below their q, and stacks begin at multiples of 16 bytes.
struct Work {
  const u32* index;    // (blocks, stack)
  const u32* queries;  // (count, stack)
  u32* out;            // (count, blocks, P, B)
  const u32* primes;   // q_p
  int blocks, count;
  int rows;     // P*B
  int scores;   // B
  int planes, stride;
};

// The sum of products high * 2^32 + acc, with acc < 2^32 between two additions.
struct Sum {
  u64 acc = 0, high = 0;

  __device__ __forceinline__ void carry() {
    high += acc >> 32;
    acc = static_cast<u32>(acc);
  }
  __device__ __forceinline__ void add(const uint4& b, const uint4& c) {
    acc += static_cast<u64>(b.x) * c.x;
    acc += static_cast<u64>(b.y) * c.y;
    acc += static_cast<u64>(b.z) * c.z;
    acc += static_cast<u64>(b.w) * c.w;
    carry();
  }
  __device__ __forceinline__ u32 residue(u32 q) const { return static_cast<u32>((((high % q) << 32) + acc) % q); }
};

__device__ __forceinline__ u64 exchanged(u64 value, int offset) { return __shfl_xor_sync(kAll, value, offset); }

// Adds up `kCount` sums (a power of two, at most 32) over the lanes of a warp. While there are several, a lane gives
// half of them to the lane `offset` away and keeps the others, so kCount sums cost little more than one. Returns the
// sum whose number is the highest log2(kCount) bits of the lane's.
template <int kCount>
__device__ __forceinline__ Sum over_lanes(Sum (&sums)[kCount], int lane, int offset) {
  if constexpr (kCount > 1) {
    Sum kept[kCount / 2];
    const bool upper = lane & offset;
#pragma unroll
    for (int i = 0; i < kCount / 2; ++i) {
      const Sum lower = sums[i], higher = sums[i + kCount / 2];
      const Sum sent = upper ? lower : higher, own = upper ? higher : lower;
      kept[i].acc = own.acc + exchanged(sent.acc, offset);
      kept[i].high = own.high + exchanged(sent.high, offset);
    }
    return over_lanes(kept, lane, offset / 2);
  } else {
    Sum total = sums[0];
    for (; offset > 0; offset /= 2) {
      total.acc += exchanged(total.acc, offset);
      total.high += exchanged(total.high, offset);
    }
    return total;
  }
}

__device__ __forceinline__ void answer(const Work& work, const Sum& sum, int query, int block, int row) {
  __stcs(work.out + (static_cast<u64>(query) * work.blocks + block) * work.rows + row,
         sum.residue(__ldg(work.primes + row / work.scores)));
}

// Stores kBlocks * kQueries sums of one row, block by block; those of blocks and queries that are not there fall away.
template <int kBlocks, int kQueries>
__device__ __forceinline__ void store(const Work& work, Sum (&sums)[kBlocks * kQueries], int row, int block,
                                      int lane) {
  constexpr int kShare = kLanes / (kBlocks * kQueries);  // lanes that end with the same sum
  const Sum total = over_lanes(sums, lane, kLanes / 2);
  const int number = lane / kShare;
  const int query = number % kQueries;
  block += number / kQueries;
  if (lane % kShare == 0 && block < work.blocks && query < work.count)
    answer(work, total, query, block, row);
}

// g >= 16. Where a row of a stack begins, in vectors; and a block that may not be there, replaced by the last one,
// so that its words can be read and its answers be dropped.
__device__ __forceinline__ int row_vectors(const Work& work) { return work.stride / 4 * work.planes; }
__device__ __forceinline__ const uint4* row_of(const Work& work, const u32* stacks, int stack, int row) {
  return reinterpret_cast<const uint4*>(stacks) +
         (static_cast<u64>(stack) * work.rows + row) * static_cast<u64>(row_vectors(work));
}
__device__ __forceinline__ int present(const Work& work, int block) {
  return block < work.blocks ? block : work.blocks - 1;
}
__device__ __forceinline__ uint4 zero() { return uint4{0, 0, 0, 0}; }

// One query. A warp has one row and goes over index blocks, kBlocks at a time, with the query's words of a chunk of the
// row in registers. A row of one chunk (512 words) is loaded once; of a longer one, each chunk once in kBlocks blocks.
// Grid: (rows / kWarps, any number of groups of blocks).
template <int kBlocks>
__device__ __forceinline__ void one_query(const Work& work) {
  const int lane = threadIdx.x % kLanes, row = blockIdx.x * kWarps + threadIdx.x / kLanes;
  if (row >= work.rows) return;
  const int vectors = row_vectors(work), step = gridDim.y * kBlocks, first = blockIdx.y * kBlocks;
  const uint4* query = row_of(work, work.queries, 0, row);
  uint4 c[kSteps];
  for (int block = first; block < work.blocks; block += step) {
    Sum sums[kBlocks];
    for (int chunk = 0; chunk < vectors; chunk += kChunk) {
      if (block == first || vectors > kChunk)
#pragma unroll
        for (int s = 0; s < kSteps; ++s) {
          const int v = chunk + s * kLanes + lane;
          c[s] = v < vectors ? __ldg(query + v) : zero();
        }
#pragma unroll
      for (int m = 0; m < kBlocks; ++m) {
        const uint4* words = row_of(work, work.index, present(work, block + m), row);
#pragma unroll
        for (int s = 0; s < kSteps; ++s) {
          const int v = chunk + s * kLanes + lane;
          sums[m].add(v < vectors ? __ldcs(words + v) : zero(), c[s]);
        }
      }
    }
    store<kBlocks, 1>(work, sums, row, block, lane);
  }
}

// Up to kQueries queries. A thread block has one row: its warps work on kBlocks index blocks each, and share the
// queries' words of a chunk in shared memory. Index words are read once.
// Grid: (rows, any number of groups of kWarps * kBlocks blocks).
template <int kBlocks, int kQueries>
__device__ __forceinline__ void several_queries(const Work& work) {
  __shared__ uint4 c[kQueries][kChunk];
  const int lane = threadIdx.x % kLanes, row = blockIdx.x;
  const int vectors = row_vectors(work), group = kWarps * kBlocks, first = blockIdx.y * group;
  for (int base = first; base < work.blocks; base += gridDim.y * group) {
    const int block = base + static_cast<int>(threadIdx.x) / kLanes * kBlocks;
    Sum sums[kBlocks * kQueries];
    for (int chunk = 0; chunk < vectors; chunk += kChunk) {
      if (base == first || vectors > kChunk) {
        __syncthreads();  // nobody needs the chunk before
        for (int at = threadIdx.x; at < kQueries * kChunk; at += kWarps * kLanes) {
          const int query = at / kChunk, v = chunk + at % kChunk;
          const bool there = query < work.count && v < vectors;
          c[query][at % kChunk] = there ? __ldg(row_of(work, work.queries, query, row) + v) : zero();
        }
        __syncthreads();
      }
      if (block >= work.blocks) continue;
      uint4 b[kBlocks][kSteps];
#pragma unroll
      for (int m = 0; m < kBlocks; ++m)
#pragma unroll
        for (int s = 0; s < kSteps; ++s) {
          const int v = chunk + s * kLanes + lane;
          b[m][s] = v < vectors ? __ldcs(row_of(work, work.index, present(work, block + m), row) + v) : zero();
        }
#pragma unroll
      for (int s = 0; s < kSteps; ++s)
#pragma unroll
        for (int a = 0; a < kQueries; ++a) {
          const uint4 words = c[a][s * kLanes + lane];
#pragma unroll
          for (int m = 0; m < kBlocks; ++m) sums[m * kQueries + a].add(b[m][s], words);
        }
    }
    if (block < work.blocks) store<kBlocks, kQueries>(work, sums, row, block, lane);
  }
}

// At most 128 registers a thread where a multiprocessor is to hold two thread blocks, 255 where it holds one.
#define HE_WORK                                                                                                  \
  const u32 *index, const u32 *queries, u32 *out, const u32 *primes, int blocks, int count, int rows, int scores, \
      int planes, int stride
#define HE_GIVEN Work{index, queries, out, primes, blocks, count, rows, scores, planes, stride}
#define HE_KERNEL(per_multiprocessor) \
  extern "C" __global__ void __launch_bounds__(kWarps* kLanes, per_multiprocessor)

HE_KERNEL(2) answer_1(HE_WORK) { one_query<8>(HE_GIVEN); }
HE_KERNEL(2) answer_4(HE_WORK) { several_queries<2, 4>(HE_GIVEN); }
HE_KERNEL(1) answer_16(HE_WORK) { several_queries<2, 16>(HE_GIVEN); }

// g < 16: the rows of a tile take turns in its lines. A thread for each answer; neighbours share lines.
// Grid: (thread blocks for the rows, any number of groups of blocks, queries).
HE_KERNEL(2) answer_narrow(HE_WORK) {
  const Work work = HE_GIVEN;
  const int row = blockIdx.x * kWarps * kLanes + threadIdx.x, query = blockIdx.z;
  if (row >= work.rows) return;
  const u64 slot = static_cast<u64>(row % work.scores) * work.stride;
  const u64 prime_words = static_cast<u64>(work.scores) * work.stride * work.planes;
  const u64 stack_words = prime_words * (work.rows / work.scores);
  const u64 begin = row / work.scores * prime_words + slot / 16 * 16 * work.planes + slot % 16;
  const u32* c = work.queries + query * stack_words + begin;
  for (int block = blockIdx.y; block < work.blocks; block += gridDim.y) {
    const u32* b = work.index + block * stack_words + begin;
    Sum sum;
    for (int i = 0; i < work.planes; ++i)
      for (int u = 0; u < work.stride; ++u) {
        sum.acc += static_cast<u64>(__ldg(b + i * 16 + u)) * __ldg(c + i * 16 + u);
        sum.carry();
      }
    answer(work, sum, query, block, row);
  }
}
