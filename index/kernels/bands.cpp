// band_scores: partial dot products or squared distances of a few rows, in float64.
//
// Every instruction set adds in the same order, so results are equal bit by bit: dimension lo + 16 i + j goes to lane j,
// and the 16 lanes are added pairwise at the end. A product of two float32 is exact in float64, so there (only there) a
// fused multiply-add changes nothing.

#include <algorithm>

#include "kernels.hpp"

namespace nestvec {
namespace {

constexpr size_t kAhead = 2;              // rows prefetched ahead
constexpr size_t kPrefetchBytes = 4096;   // at most, per row: longer bands stream by themselves

NESTVEC_INLINE double widen(float x) { return double(x); }

NESTVEC_INLINE double widen(Half x) {
    const uint32_t sign = uint32_t(x.bits & 0x8000u) << 16, exponent = (x.bits >> 10) & 31, fraction = x.bits & 0x3FFu;
    if (exponent == 0) return (sign ? -1.0 : 1.0) * double(fraction) * 0x1p-24;  // zero and subnormal
    const uint32_t bits = sign | (exponent == 31 ? 0x7F800000u : (exponent + 112) << 23) | fraction << 13;
    float value;
    std::memcpy(&value, &bits, 4);
    return double(value);
}

// Adds the dimensions from `i` on, one at a time; the vector kernels leave at most 15 to it.
template <bool L2, bool Norms, class T>
NESTVEC_INLINE void add_rest(const double* query, const T* x, size_t i, size_t n, double* lanes, double* norm_lanes) {
    for (; i < n; ++i) {
        const double value = widen(x[i]);
        const double difference = query[i] - value;
        lanes[i % kLanes] += L2 ? difference * difference : query[i] * value;
        if (Norms) norm_lanes[i % kLanes] += value * value;
    }
}

template <bool L2, bool Norms, class T>
void add_portable(const double* query, const T* x, size_t n, double* lanes, double* norm_lanes) {
    add_rest<L2, Norms>(query, x, 0, n, lanes, norm_lanes);
}

#ifdef NESTVEC_X86

NESTVEC_AVX2 NESTVEC_INLINE __m256d load4(const float* x) { return _mm256_cvtps_pd(_mm_loadu_ps(x)); }
NESTVEC_AVX2 NESTVEC_INLINE __m256d load4(const Half* x) {
    return _mm256_cvtps_pd(_mm_cvtph_ps(_mm_loadl_epi64((const __m128i*)x)));
}

template <bool L2, bool Norms, class T>
NESTVEC_AVX2 void add_avx2(const double* query, const T* x, size_t n, double* lanes, double* norm_lanes) {
    __m256d acc[4], norm[4];
    for (int a = 0; a < 4; ++a) acc[a] = norm[a] = _mm256_setzero_pd();
    size_t i = 0;
    for (; i + kLanes <= n; i += kLanes)
        for (int a = 0; a < 4; ++a) {
            const __m256d value = load4(x + i + 4 * a), q = _mm256_loadu_pd(query + i + 4 * a);
            const __m256d difference = _mm256_sub_pd(q, value);
            acc[a] = L2 ? _mm256_add_pd(acc[a], _mm256_mul_pd(difference, difference))
                        : _mm256_fmadd_pd(q, value, acc[a]);
            if (Norms) norm[a] = _mm256_fmadd_pd(value, value, norm[a]);
        }
    for (int a = 0; a < 4; ++a) _mm256_storeu_pd(lanes + 4 * a, acc[a]);
    if (Norms)
        for (int a = 0; a < 4; ++a) _mm256_storeu_pd(norm_lanes + 4 * a, norm[a]);
    add_rest<L2, Norms>(query, x, i, n, lanes, norm_lanes);
}

NESTVEC_AVX512 NESTVEC_INLINE __m512d load8(const float* x) { return _mm512_cvtps_pd(_mm256_loadu_ps(x)); }
NESTVEC_AVX512 NESTVEC_INLINE __m512d load8(const Half* x) {
    return _mm512_cvtps_pd(_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)x)));
}

template <bool L2, bool Norms, class T>
NESTVEC_AVX512 void add_avx512(const double* query, const T* x, size_t n, double* lanes, double* norm_lanes) {
    __m512d acc[2], norm[2];
    for (int a = 0; a < 2; ++a) acc[a] = norm[a] = _mm512_setzero_pd();
    size_t i = 0;
    for (; i + kLanes <= n; i += kLanes)
        for (int a = 0; a < 2; ++a) {
            const __m512d value = load8(x + i + 8 * a), q = _mm512_loadu_pd(query + i + 8 * a);
            const __m512d difference = _mm512_sub_pd(q, value);
            acc[a] = L2 ? _mm512_add_pd(acc[a], _mm512_mul_pd(difference, difference))
                        : _mm512_fmadd_pd(q, value, acc[a]);
            if (Norms) norm[a] = _mm512_fmadd_pd(value, value, norm[a]);
        }
    for (int a = 0; a < 2; ++a) _mm512_storeu_pd(lanes + 8 * a, acc[a]);
    if (Norms)
        for (int a = 0; a < 2; ++a) _mm512_storeu_pd(norm_lanes + 8 * a, norm[a]);
    add_rest<L2, Norms>(query, x, i, n, lanes, norm_lanes);
}

#endif

template <class T>
using Adder = void (*)(const double* query, const T* x, size_t n, double* lanes, double* norm_lanes);

template <bool L2, bool Norms, class T>
Adder<T> adder_of(Isa isa) {
#ifdef NESTVEC_X86
    if (isa == Isa::avx512) return add_avx512<L2, Norms, T>;
    if (isa == Isa::avx2) return add_avx2<L2, Norms, T>;
#endif
    (void)isa;
    return add_portable<L2, Norms, T>;
}

template <class T>
Adder<T> choose(bool l2, bool norms, Isa isa) {
    if (l2) return norms ? adder_of<true, true, T>(isa) : adder_of<true, false, T>(isa);
    return norms ? adder_of<false, true, T>(isa) : adder_of<false, false, T>(isa);
}

template <class T>
void score_rows(const BandTask& task, Isa isa) {
    const T* vectors = static_cast<const T*>(task.vectors);
    const size_t width = task.hi - task.lo;
    const Adder<T> add = choose<T>(task.l2, task.norms != nullptr, isa);
    const size_t bytes = std::min(width * sizeof(T), kPrefetchBytes);
    for (size_t r = 0; r < task.n_rows; ++r) {
        if (r + kAhead < task.n_rows) {
            const char* next = (const char*)(vectors + size_t(task.rows[r + kAhead]) * task.dims + task.lo);
            for (size_t byte = 0; byte < bytes; byte += 64) NESTVEC_PREFETCH(next + byte);
        }
        double lanes[kLanes] = {}, norm_lanes[kLanes] = {};
        add(task.query, vectors + size_t(task.rows[r]) * task.dims + task.lo, width, lanes, norm_lanes);
        const double sum = add_pairwise(lanes);
        task.scores[r] += task.l2 ? -sum : sum;
        if (task.norms) task.norms[r] += add_pairwise(norm_lanes);
    }
}

}  // namespace

double add_pairwise(double* lanes) {
    for (size_t half = kLanes / 2; half > 0; half /= 2)
        for (size_t j = 0; j < half; ++j) lanes[j] += lanes[j + half];
    return lanes[0];
}

void band_scores(const BandTask& task, Isa isa) {
    if (task.half)
        score_rows<Half>(task, isa);
    else
        score_rows<float>(task, isa);
}

}  // namespace nestvec
