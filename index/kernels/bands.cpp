// band_scores: partial dot products or squared distances of a few rows, in float64.
//
// Every instruction set adds in the same order, so results are equal bit by bit: dimension lo + 16 i + j goes to lane j,
// and the 16 lanes are added pairwise at the end. A product of two float32 is exact in float64, so there (only there) a
// fused multiply-add changes nothing.

#include <algorithm>

#include "kernels.hpp"

namespace nestvec {
namespace {

constexpr size_t kPrefetchBytes = 4096;  // at most, per row: longer bands stream by themselves

NESTVEC_INLINE double widen(float x) { return double(x); }

NESTVEC_INLINE double widen(Half x) { return widened(x); }

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

// A few rows at once: their sums are independent, so one row's additions fill the gaps of another's, and the rows to
// come are fetched line by line between them. Fetching whole rows at a time fills the queue of misses and waits.
template <class T>
struct Rows {
    const T* const* at;
    const T* const* next;  // as many, to be fetched meanwhile
    double (*lanes)[kLanes];
    double (*norm_lanes)[kLanes];
};

// Fetches what follows the 16 dimensions from `i` on, where they begin a cache line.
template <size_t kRows, class T>
NESTVEC_INLINE void fetch(const Rows<T>& rows, size_t i) {
    const size_t byte = i * sizeof(T);
    if (byte % 64 == 0 && byte < kPrefetchBytes)
        for (size_t r = 0; r < kRows; ++r) NESTVEC_PREFETCH((const char*)rows.next[r] + byte);
}

template <bool L2, bool Norms, class T>
void add_portable(const double* query, const Rows<T>& rows, size_t n) {
    for (size_t i = 0; i < n; i += kLanes) fetch<1>(rows, i);
    add_rest<L2, Norms>(query, rows.at[0], 0, n, rows.lanes[0], rows.norm_lanes[0]);
}

#ifdef NESTVEC_X86

NESTVEC_AVX2 NESTVEC_INLINE __m256d load4(const float* x) { return _mm256_cvtps_pd(_mm_loadu_ps(x)); }
NESTVEC_AVX2 NESTVEC_INLINE __m256d load4(const Half* x) {
    return _mm256_cvtps_pd(_mm_cvtph_ps(_mm_loadl_epi64((const __m128i*)x)));
}

template <bool L2, bool Norms, size_t kRows, class T>
NESTVEC_AVX2 void add_avx2(const double* query, const Rows<T>& rows, size_t n) {
    __m256d sums[kRows][4], norms[kRows][4];
    for (size_t r = 0; r < kRows; ++r)
        for (int a = 0; a < 4; ++a) sums[r][a] = norms[r][a] = _mm256_setzero_pd();
    size_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
        fetch<kRows>(rows, i);
        for (int a = 0; a < 4; ++a) {
            const __m256d q = _mm256_loadu_pd(query + i + 4 * a);
            for (size_t r = 0; r < kRows; ++r) {
                const __m256d value = load4(rows.at[r] + i + 4 * a), difference = _mm256_sub_pd(q, value);
                sums[r][a] = L2 ? _mm256_add_pd(sums[r][a], _mm256_mul_pd(difference, difference))
                                : _mm256_fmadd_pd(q, value, sums[r][a]);
                if (Norms) norms[r][a] = _mm256_fmadd_pd(value, value, norms[r][a]);
            }
        }
    }
    for (size_t r = 0; r < kRows; ++r) {
        for (int a = 0; a < 4; ++a) {
            _mm256_storeu_pd(rows.lanes[r] + 4 * a, sums[r][a]);
            if (Norms) _mm256_storeu_pd(rows.norm_lanes[r] + 4 * a, norms[r][a]);
        }
        add_rest<L2, Norms>(query, rows.at[r], i, n, rows.lanes[r], rows.norm_lanes[r]);
    }
}

NESTVEC_AVX512 NESTVEC_INLINE __m512d load8(const float* x) { return _mm512_cvtps_pd(_mm256_loadu_ps(x)); }
NESTVEC_AVX512 NESTVEC_INLINE __m512d load8(const Half* x) {
    return _mm512_cvtps_pd(_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)x)));
}

template <bool L2, bool Norms, size_t kRows, class T>
NESTVEC_AVX512 void add_avx512(const double* query, const Rows<T>& rows, size_t n) {
    __m512d sums[kRows][2], norms[kRows][2];
    for (size_t r = 0; r < kRows; ++r)
        for (int a = 0; a < 2; ++a) sums[r][a] = norms[r][a] = _mm512_setzero_pd();
    size_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
        fetch<kRows>(rows, i);
        for (int a = 0; a < 2; ++a) {
            const __m512d q = _mm512_loadu_pd(query + i + 8 * a);
            for (size_t r = 0; r < kRows; ++r) {
                const __m512d value = load8(rows.at[r] + i + 8 * a), difference = _mm512_sub_pd(q, value);
                sums[r][a] = L2 ? _mm512_add_pd(sums[r][a], _mm512_mul_pd(difference, difference))
                                : _mm512_fmadd_pd(q, value, sums[r][a]);
                if (Norms) norms[r][a] = _mm512_fmadd_pd(value, value, norms[r][a]);
            }
        }
    }
    for (size_t r = 0; r < kRows; ++r) {
        for (int a = 0; a < 2; ++a) {
            _mm512_storeu_pd(rows.lanes[r] + 8 * a, sums[r][a]);
            if (Norms) _mm512_storeu_pd(rows.norm_lanes[r] + 8 * a, norms[r][a]);
        }
        add_rest<L2, Norms>(query, rows.at[r], i, n, rows.lanes[r], rows.norm_lanes[r]);
    }
}

#endif

template <class T>
using Adder = void (*)(const double* query, const Rows<T>& rows, size_t n);

// How to add one row, and how to add `together` of them.
template <class T>
struct Adders {
    Adder<T> one, several;
    size_t together;
};

constexpr size_t kMostTogether = 4;

template <bool L2, bool Norms, class T>
Adders<T> adders_of(Isa isa) {
#ifdef NESTVEC_X86
    if (isa == Isa::avx512) return {add_avx512<L2, Norms, 1, T>, add_avx512<L2, Norms, 4, T>, 4};
    if (isa == Isa::avx2) return {add_avx2<L2, Norms, 1, T>, add_avx2<L2, Norms, 2, T>, 2};
#endif
    (void)isa;
    return {add_portable<L2, Norms, T>, add_portable<L2, Norms, T>, 1};
}

template <class T>
Adders<T> choose(bool l2, bool norms, Isa isa) {
    if (l2) return norms ? adders_of<true, true, T>(isa) : adders_of<true, false, T>(isa);
    return norms ? adders_of<false, true, T>(isa) : adders_of<false, false, T>(isa);
}

template <class T>
void score_rows(const BandTask& task, Isa isa) {
    const T* vectors = static_cast<const T*>(task.vectors);
    const size_t width = task.hi - task.lo, last = task.n_rows - 1;
    const Adders<T> adders = choose<T>(task.l2, task.norms != nullptr, isa);
    const T *at[kMostTogether], *next[kMostTogether];
    double lanes[kMostTogether][kLanes], norm_lanes[kMostTogether][kLanes];
    const auto row = [&](size_t r) { return vectors + size_t(task.rows[std::min(r, last)]) * task.dims + task.lo; };
    for (size_t start = 0, count; start < task.n_rows; start += count) {
        count = start + adders.together <= task.n_rows ? adders.together : 1;
        for (size_t r = 0; r < count; ++r) {
            at[r] = row(start + r);
            next[r] = row(start + count + r);
            std::fill_n(lanes[r], kLanes, 0.0);
            if (task.norms) std::fill_n(norm_lanes[r], kLanes, 0.0);
        }
        (count > 1 ? adders.several : adders.one)(task.query, Rows<T>{at, next, lanes, norm_lanes}, width);
        for (size_t r = 0; r < count; ++r) {
            const double sum = add_pairwise(lanes[r]);
            task.scores[start + r] += task.l2 ? -sum : sum;
            if (task.norms) task.norms[start + r] += add_pairwise(norm_lanes[r]);
        }
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
