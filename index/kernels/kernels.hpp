// What every kernel file shares: the instruction sets, plain views of the arrays, and the entry points.
// The meaning of each kernel is reference.py; everything here gives the same bits.
// Compile with -ffp-contract=off: a fused multiply-add would round differently from the reference.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#if (defined(__x86_64__) || defined(__i386__)) && defined(__GNUC__)
#define NESTVEC_X86 1
#include <immintrin.h>
#define NESTVEC_AVX2 __attribute__((target("avx2,fma,f16c")))
#define NESTVEC_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")))
#endif

#if defined(__GNUC__)
#define NESTVEC_INLINE inline __attribute__((always_inline))
#define NESTVEC_PREFETCH(address) __builtin_prefetch(address)
#else
#define NESTVEC_INLINE inline
#define NESTVEC_PREFETCH(address) (void)(address)
#endif

namespace nestvec {

enum class Isa : int { portable = 0, avx2 = 1, avx512 = 2 };

bool supported(Isa isa);  // by this processor, asked at run time

constexpr size_t kBlock = 32;               // postings per block
constexpr size_t kMaxSubquantisers = 256;   // 256 * 255 still fits the 16-bit sums
constexpr uint32_t kPadding = 0xFFFFFFFFu;  // the row of a padding posting

// ---- scan_lists -----------------------------------------------------------------------------------------------

struct ScanTask {
    const uint8_t* codes;  // [blocks, pairs, 32]
    size_t pairs;
    const int64_t* offsets;
    const int32_t* counts;
    const uint32_t* rows;
    const int32_t* lists;
    const float* list_bias;
    size_t n_lists;
    const uint8_t* lut;  // [2 * pairs, 16]
    float scale, base;
    const float* posting_bias;  // or null
    const uint8_t* allowed;     // or null
    size_t n_allowed;
    size_t keep;
};

struct ScanResult {
    std::vector<uint64_t> keys;  // best first; key_row and key_estimate take one apart
    int64_t scanned = 0;
    int64_t bad_row = -1;  // a row beyond `allowed`, else -1
};

ScanResult scan_lists(const ScanTask& task, Isa isa);

// One u64 per candidate whose ascending order is "estimate descending, row ascending".
inline uint64_t make_key(float estimate, uint32_t row) {
    estimate += 0.0f;  // -0 becomes +0, so that equal estimates have equal bits
    uint32_t bits;
    std::memcpy(&bits, &estimate, 4);
    const uint32_t ascending = (bits & 0x80000000u) ? ~bits : (bits | 0x80000000u);
    return (uint64_t(~ascending) << 32) | row;
}

inline uint32_t key_row(uint64_t key) { return uint32_t(key); }

inline float key_estimate(uint64_t key) {
    const uint32_t ascending = ~uint32_t(key >> 32);
    const uint32_t bits = (ascending & 0x80000000u) ? (ascending & 0x7FFFFFFFu) : ~ascending;
    float estimate;
    std::memcpy(&estimate, &bits, 4);
    return estimate;
}

// ---- band_scores ----------------------------------------------------------------------------------------------

struct Half {
    uint16_t bits;
};

struct BandTask {
    const float* query;
    const void* vectors;  // float or Half, [n, dims]
    bool half;
    size_t dims;
    const int64_t* rows;
    size_t n_rows;
    size_t lo, hi;
    bool l2;
    double* scores;
    double* norms;  // or null
};

void band_scores(const BandTask& task, Isa isa);

// ---- encode, pack ---------------------------------------------------------------------------------------------

void encode(const float* residuals, size_t n, const float* codebook, size_t blocks, size_t width, uint8_t* codes,
            Isa isa);

// Returns false where a code is above 15.
bool pack(const uint8_t* codes, size_t n, size_t subquantisers, uint8_t* blocks);

}  // namespace nestvec
