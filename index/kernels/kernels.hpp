// What every kernel file shares: the instruction sets, and the entry points of the small kernels.
// The meaning of each is in the reference*.py beside; everything here gives the same bits.
// Compile with -ffp-contract=off: a fused multiply-add would round differently from the reference.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#if (defined(__x86_64__) || defined(__i386__)) && defined(__GNUC__)
#define NESTVEC_X86 1
#include <immintrin.h>
#define NESTVEC_AVX2 __attribute__((target("avx2,fma,f16c")))
#define NESTVEC_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c,bmi,bmi2,popcnt")))
#endif

#if defined(__GNUC__)
#define NESTVEC_INLINE inline __attribute__((always_inline))
#define NESTVEC_PREFETCH(address) __builtin_prefetch(address)
#else
#define NESTVEC_INLINE inline
#define NESTVEC_PREFETCH(address) (void)(address)
#endif

namespace nestvec {

// avx512 means F, BW, VL, DQ and VNNI: what servers have had since Ice Lake and Zen 4.
enum class Isa : int { portable = 0, avx2 = 1, avx512 = 2 };

bool supported(Isa isa);  // by this processor, asked at run time

constexpr size_t kBlock = 128;              // postings per block: two halves of 64, a cache line each
constexpr size_t kHalf = 64;
constexpr size_t kLanes = 16;               // partial sums of a float64 sum: dimension i goes to lane i % 16
constexpr size_t kCentres = 16;             // what four bits can name

// A step to divide by, which is never negative: 1 where it is 0, below the normal numbers, or infinite.
inline float usable(float step) { return std::isnormal(step) ? step : 1.0f; }

// One u64 per candidate whose ascending order is "score descending, number ascending".
inline uint64_t make_key(float score, uint32_t number) {
    score += 0.0f;  // -0 becomes +0, so that equal scores have equal bits
    uint32_t bits;
    std::memcpy(&bits, &score, 4);
    const uint32_t descending = bits ^ (~uint32_t(int32_t(bits) >> 31) & 0x7FFFFFFFu);  // no branch: signs come as they like
    return (uint64_t(descending) << 32) | number;
}

inline float key_score(uint64_t key) {
    const uint32_t descending = uint32_t(key >> 32);
    const uint32_t bits = descending ^ (~uint32_t(int32_t(descending) >> 31) & 0x7FFFFFFFu);
    float score;
    std::memcpy(&score, &bits, 4);
    return score;
}

// ---- band_scores ----------------------------------------------------------------------------------------------

struct Half {
    uint16_t bits;
};

inline double widened(Half x) {
    const uint32_t sign = uint32_t(x.bits & 0x8000u) << 16, exponent = (x.bits >> 10) & 31, fraction = x.bits & 0x3FFu;
    if (exponent == 0) return (sign ? -1.0 : 1.0) * double(fraction) * 0x1p-24;  // zero and subnormal
    const uint32_t bits = sign | (exponent == 31 ? 0x7F800000u : (exponent + 112) << 23) | fraction << 13;
    float value;
    std::memcpy(&value, &bits, 4);
    return double(value);
}

struct BandTask {
    const double* query;  // the band's own dims: element 0 is dimension lo
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

// The sum of kLanes partial sums; changes them.
double add_pairwise(double* lanes);

// ---- encode, pack ---------------------------------------------------------------------------------------------

void encode(const float* residuals, size_t n, const float* codebook, size_t blocks, size_t width, uint8_t* codes,
            Isa isa);

// `directions`: as residuals. eta: the weight of the parallel part of the error.
void encode_aware(const float* residuals, const float* directions, size_t n, const float* codebook, size_t blocks,
                  size_t width, float eta, uint8_t* codes, Isa isa);

// Returns false where a code is above 15.
bool pack(const uint8_t* codes, size_t n, size_t subquantisers, uint8_t* blocks);

}  // namespace nestvec
