// The inner loops with AVX-512.

#include "primitives.hpp"

#include <algorithm>
#include <cmath>

#include <limits>

#ifdef NESTVEC_X86

namespace nestvec {
namespace {

// kCount queries times 64 centroids: as many sums as stay in registers.
template <size_t kCount>
NESTVEC_AVX512 NESTVEC_INLINE void dots_together(const uint8_t* codes, size_t nodes, size_t groups,
                                                 const int8_t* queries, int32_t* out) {
    for (size_t at = 0; at < nodes; at += 64) {
        const uint8_t* from = codes + (at / kTile * groups * kTile + at % kTile) * 4;
        __m512i sums[kCount][4];
        for (auto& row : sums)
            for (__m512i& sum : row) sum = _mm512_setzero_si512();
        for (size_t g = 0; g < groups; ++g, from += 4 * kTile) {
            __m512i lines[4];
            for (size_t i = 0; i < 4; ++i) lines[i] = _mm512_loadu_si512(from + 64 * i);
            for (size_t q = 0; q < kCount; ++q) {
                int32_t four;
                std::memcpy(&four, queries + (q * groups + g) * 4, 4);
                const __m512i weights = _mm512_set1_epi32(four);
                for (size_t i = 0; i < 4; ++i) sums[q][i] = _mm512_dpbusd_epi32(sums[q][i], lines[i], weights);
            }
        }
        for (size_t q = 0; q < kCount; ++q)
            for (size_t i = 0; i < 4; ++i) _mm512_storeu_si512(out + q * in_tiles(nodes) + at + 16 * i, sums[q][i]);
    }
}

NESTVEC_AVX512 void dots_one(const uint8_t* codes, size_t nodes, size_t groups, const int8_t* query, int32_t* out) {
    for (; nodes > kTile / 2; nodes -= std::min(nodes, kTile), out += kTile) {
        __m512i sums[8];
        for (__m512i& sum : sums) sum = _mm512_setzero_si512();
        for (size_t g = 0; g < groups; ++g, codes += 4 * kTile) {
            int32_t four;
            std::memcpy(&four, query + 4 * g, 4);
            const __m512i weights = _mm512_set1_epi32(four);
            for (size_t i = 0; i < 8; ++i)
                sums[i] = _mm512_dpbusd_epi32(sums[i], _mm512_loadu_si512(codes + 64 * i), weights);
        }
        for (size_t i = 0; i < 8; ++i) _mm512_storeu_si512(out + 16 * i, sums[i]);
    }
    if (nodes) dots_together<1>(codes, nodes, groups, query, out);  // of half a tile: a tree's smaller families
}

NESTVEC_AVX512 void dots_four(const uint8_t* codes, size_t nodes, size_t groups, const int8_t* queries, int32_t* out) {
    dots_together<kTogether>(codes, nodes, groups, queries, out);
}

NESTVEC_AVX512 void centroid_dots(const uint8_t* codes, size_t nodes, size_t groups, const int8_t* queries,
                                  size_t count, int32_t* out) {
    if (count == kTogether) return dots_four(codes, nodes, groups, queries, out);
    for (size_t q = 0; q < count; ++q)
        dots_one(codes, nodes, groups, queries + 4 * q * groups, out + q * in_tiles(nodes));
}

template <size_t kLines>
NESTVEC_AVX512 NESTVEC_INLINE void add_group(const uint8_t* codes, const int8_t* query, const uint8_t* ahead, __m512i* sums) {
    int32_t four;
    std::memcpy(&four, query, 4);
    const __m512i weights = _mm512_set1_epi32(four);
    for (size_t i = 0; i < kLines; ++i) {
        NESTVEC_PREFETCH(ahead + 64 * i);
        sums[i] = _mm512_dpbusd_epi32(sums[i], _mm512_loadu_si512(codes + 64 * i), weights);
    }
}

// A few groups at a time, each with sums of its own, so that none waits for the last.
template <size_t kLines>
NESTVEC_AVX512 NESTVEC_INLINE void dots_family(const uint8_t* codes, size_t groups, const int8_t* query,
                                               const uint8_t* ahead, int32_t* out) {
    constexpr size_t kStep = kLines == 1 ? 8 : kLines == 2 ? 4 : 2;
    __m512i sums[kStep][kLines];
    for (auto& row : sums)
        for (__m512i& sum : row) sum = _mm512_setzero_si512();
    size_t g = 0;
    for (; g + kStep <= groups; g += kStep, codes += 64 * kStep * kLines, ahead += 64 * kStep * kLines)
        for (size_t i = 0; i < kStep; ++i)
            add_group<kLines>(codes + 64 * kLines * i, query + 4 * (g + i), ahead + 64 * kLines * i, sums[i]);
    for (; g < groups; ++g, codes += 64 * kLines, ahead += 64 * kLines) add_group<kLines>(codes, query + 4 * g, ahead, sums[0]);
    for (size_t i = 1; i < kStep; ++i)
        for (size_t l = 0; l < kLines; ++l) sums[0][l] = _mm512_add_epi32(sums[0][l], sums[i][l]);
    for (size_t l = 0; l < kLines; ++l) _mm512_storeu_si512(out + 16 * l, sums[0][l]);
}

NESTVEC_AVX512 void family_dots(const uint8_t* codes, size_t width, size_t groups, const int8_t* query,
                                const uint8_t* ahead, int32_t* out) {
    switch (width / 16) {
        case 1: return dots_family<1>(codes, groups, query, ahead, out);
        case 2: return dots_family<2>(codes, groups, query, ahead, out);
        case 3: return dots_family<3>(codes, groups, query, ahead, out);
        default: return dots_family<4>(codes, groups, query, ahead, out);
    }
}

NESTVEC_AVX512 NESTVEC_INLINE void block(const uint8_t* codes, size_t pairs, const uint8_t* table,
                                         const uint8_t* ahead, __m512i& first, __m512i& second) {
    const __m512i nibble = _mm512_set1_epi8(15);
    first = second = _mm512_setzero_si512();
    for (size_t p = 0; p < pairs; ++p, codes += kBlock, ahead += kBlock, table += 32) {
        NESTVEC_PREFETCH(ahead);
        NESTVEC_PREFETCH(ahead + kHalf);
        const __m512i even = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)table));
        const __m512i odd = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)(table + 16)));
        const __m512i a = _mm512_loadu_si512(codes), b = _mm512_loadu_si512(codes + kHalf);
        first = _mm512_adds_epu8(first, _mm512_shuffle_epi8(even, _mm512_and_si512(a, nibble)));
        second = _mm512_adds_epu8(second, _mm512_shuffle_epi8(even, _mm512_and_si512(b, nibble)));
        first = _mm512_adds_epu8(
            first, _mm512_shuffle_epi8(odd, _mm512_and_si512(_mm512_srli_epi16(a, 4), nibble)));
        second = _mm512_adds_epu8(
            second, _mm512_shuffle_epi8(odd, _mm512_and_si512(_mm512_srli_epi16(b, 4), nibble)));
    }
}

NESTVEC_AVX512 void sum_blocks(const uint8_t* codes, size_t blocks, size_t pairs, const uint8_t* table, const uint8_t* const* ahead,
              uint8_t* out) {
    for (size_t b = 0; b < blocks; ++b, codes += pairs * kBlock, out += kBlock) {
        __m512i first, second;
        block(codes, pairs, table, ahead[b], first, second);
        _mm512_storeu_si512(out, first);
        _mm512_storeu_si512(out + kHalf, second);
    }
}

NESTVEC_AVX512 NESTVEC_INLINE size_t emit(__m512i sums, uint64_t mask, uint32_t start, uint32_t* positions,
                                          uint8_t* deficits, size_t found) {
    if (mask == 0) return found;
    alignas(64) uint8_t bytes[kHalf];
    _mm512_store_si512(bytes, sums);
    for (; mask; mask &= mask - 1) {
        const uint32_t j = uint32_t(__builtin_ctzll(mask));
        positions[found] = start + j;
        deficits[found++] = bytes[j];
    }
    return found;
}

NESTVEC_AVX512 size_t within(const uint8_t* codes, size_t blocks, size_t pairs, const uint8_t* table, const uint8_t* const* ahead,
              uint8_t limit, uint32_t* positions, uint8_t* deficits) {
    size_t found = 0;
    const __m512i most = _mm512_set1_epi8(char(limit));
    for (size_t b = 0; b < blocks; ++b, codes += pairs * kBlock) {
        __m512i first, second;
        block(codes, pairs, table, ahead[b], first, second);
        const uint64_t one = _mm512_cmple_epu8_mask(first, most), two = _mm512_cmple_epu8_mask(second, most);
        if ((one | two) == 0) continue;
        found = emit(first, one, uint32_t(b * kBlock), positions, deficits, found);
        found = emit(second, two, uint32_t(b * kBlock + kHalf), positions, deficits, found);
    }
    return found;
}

NESTVEC_AVX512 NESTVEC_INLINE uint64_t mask_within(const uint8_t* deficits, uint8_t limit) {
    return _mm512_cmple_epu8_mask(_mm512_loadu_si512(deficits), _mm512_set1_epi8(char(limit)));
}

NESTVEC_AVX512 size_t count_within(const uint8_t* deficits, size_t n, uint8_t limit) {
    size_t found = 0, j = 0;
    for (; j + 64 <= n; j += 64) found += size_t(__builtin_popcountll(mask_within(deficits + j, limit)));
    return found + portable().count_within(deficits + j, n - j, limit);
}

NESTVEC_AVX512 size_t pick(const uint8_t* deficits, size_t n, uint8_t limit, uint32_t* positions, uint8_t* out) {
    size_t found = 0, j = 0;
    for (; j + 64 <= n; j += 64)
        for (uint64_t mask = mask_within(deficits + j, limit); mask; mask &= mask - 1) {
            positions[found] = uint32_t(j) + uint32_t(__builtin_ctzll(mask));
            out[found] = deficits[positions[found]];
            ++found;
        }
    const size_t rest = portable().pick(deficits + j, n - j, limit, positions + found, out + found);
    return found + shifted(positions + found, rest, j);
}

NESTVEC_AVX512 NESTVEC_INLINE uint32_t row_dot(const uint8_t* row, const int8_t* high, const int8_t* low, size_t n) {
    __m512i coarse = _mm512_setzero_si512(), fine = coarse;
    for (size_t j = 0; j < n; j += 64) {
        const __m512i x = _mm512_loadu_si512(row + j);
        coarse = _mm512_dpbusd_epi32(coarse, x, _mm512_loadu_si512(high + j));
        fine = _mm512_dpbusd_epi32(fine, x, _mm512_loadu_si512(low + j));
    }
    const __m512i sums = _mm512_add_epi32(_mm512_slli_epi32(coarse, 6), fine);
    const __m256i eight = _mm256_add_epi32(_mm512_castsi512_si256(sums), _mm512_extracti64x4_epi64(sums, 1));
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4E));
    return uint32_t(_mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xB1))));
}

NESTVEC_AVX512 void add_dots(const uint8_t* const* rows, size_t count, const int8_t* high, const int8_t* low, size_t n,
                             uint32_t* sums) {
    for (size_t i = 0; i < count; ++i) {
        fetch_ahead(rows, i, count, n);
        sums[i] += row_dot(rows[i], high, low, n);
    }
}

NESTVEC_AVX512 void products(const float* query, const float* transposed, size_t blocks, size_t width,
                                    float factor, float* out, float* greatest, float* least) {
    const __m512 times = _mm512_set1_ps(factor);
    for (size_t m = 0; m < blocks; ++m, out += kCentres) {
        __m512 sums = _mm512_setzero_ps();
        for (size_t j = 0; j < width; ++j, transposed += kCentres)
            sums = _mm512_add_ps(sums, _mm512_mul_ps(_mm512_set1_ps(query[m * width + j]), _mm512_loadu_ps(transposed)));
        sums = _mm512_mul_ps(sums, times);
        _mm512_storeu_ps(out, sums);
        greatest[m] = _mm512_reduce_max_ps(sums);
        least[m] = _mm512_reduce_min_ps(sums);
    }
}

NESTVEC_AVX512 void entries(const float* products, const float* greatest, size_t blocks, float inverse,
                                   uint8_t* out) {
    const __m512 factor = _mm512_set1_ps(inverse), most = _mm512_set1_ps(255.0f);
    for (size_t m = 0; m < blocks; ++m) {
        const __m512 gap = _mm512_sub_ps(_mm512_set1_ps(greatest[m]), _mm512_loadu_ps(products + m * kCentres));
        const __m512i whole = _mm512_cvtps_epi32(_mm512_min_ps(_mm512_mul_ps(gap, factor), most));
        _mm_storeu_si128((__m128i*)(out + m * kCentres), _mm512_cvtusepi32_epi8(whole));
    }
}

NESTVEC_AVX512 float peak(const float* x, size_t n) {
    __m512 most = _mm512_setzero_ps();
    size_t j = 0;
    for (; j + 16 <= n; j += 16) most = _mm512_max_ps(most, _mm512_abs_ps(_mm512_loadu_ps(x + j)));
    return std::max(_mm512_reduce_max_ps(most), portable().peak(x + j, n - j));
}

NESTVEC_AVX512 int32_t quantise(const float* x, size_t n, float step, int8_t* out) {
    const __m512 divisor = _mm512_set1_ps(step);
    __m512i sums = _mm512_setzero_si512();
    size_t j = 0;
    for (; j + 16 <= n; j += 16) {
        const __m512i numbers = _mm512_cvtps_epi32(_mm512_div_ps(_mm512_loadu_ps(x + j), divisor));
        sums = _mm512_add_epi32(sums, numbers);
        _mm_storeu_si128((__m128i*)(out + j), _mm512_cvtepi32_epi8(numbers));
    }
    return _mm512_reduce_add_epi32(sums) + portable().quantise(x + j, n - j, step, out + j);
}

NESTVEC_AVX512 void split(const float* x, size_t n, float step, int8_t* high, int8_t* low) {
    const __m512 divisor = _mm512_set1_ps(step);
    size_t j = 0;
    for (; j + 16 <= n; j += 16) {
        const __m512i numbers = _mm512_cvtps_epi32(_mm512_div_ps(_mm512_loadu_ps(x + j), divisor));
        const __m512i upper = _mm512_srai_epi32(_mm512_add_epi32(numbers, _mm512_set1_epi32(32)), 6);
        _mm_storeu_si128((__m128i*)(high + j), _mm512_cvtepi32_epi8(upper));
        _mm_storeu_si128((__m128i*)(low + j), _mm512_cvtepi32_epi8(_mm512_sub_epi32(numbers, _mm512_slli_epi32(upper, 6))));
    }
    portable().split(x + j, n - j, step, high + j, low + j);
}

NESTVEC_AVX512 float list_scores(const int32_t* dots, size_t n, int32_t shift, float scale, const float* bias,
                                 float* out) {
    const __m512 factor = _mm512_set1_ps(scale), two = _mm512_set1_ps(2.0f);
    __m512 best = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
    size_t l = 0;
    for (; l + 16 <= n; l += 16) {
        const __m512i sums = _mm512_sub_epi32(_mm512_loadu_si512(dots + l), _mm512_set1_epi32(shift));
        __m512 score = _mm512_mul_ps(_mm512_cvtepi32_ps(sums), factor);
        if (bias) score = _mm512_add_ps(_mm512_mul_ps(two, score), _mm512_loadu_ps(bias + l));
        _mm512_storeu_ps(out + l, score);
        best = _mm512_max_ps(best, score);
    }
    const float rest = portable().list_scores(dots + l, n - l, shift, scale, bias ? bias + l : nullptr, out + l);
    return std::max(_mm512_reduce_max_ps(best), rest);
}

NESTVEC_AVX512 size_t at_least(const float* scores, size_t n, float least, uint32_t* numbers) {
    size_t found = 0, l = 0;
    for (; l + 16 <= n; l += 16) {
        uint32_t mask = _mm512_cmp_ps_mask(_mm512_loadu_ps(scores + l), _mm512_set1_ps(least), _CMP_GE_OQ);
        for (; mask; mask &= mask - 1) numbers[found++] = uint32_t(l) + uint32_t(__builtin_ctz(mask));
    }
    const size_t rest = portable().at_least(scores + l, n - l, least, numbers + found);
    return found + shifted(numbers + found, rest, l);
}

NESTVEC_AVX512 void squares(const float* a, const float* b, size_t n, double* lanes) {
    __m512d low = _mm512_loadu_pd(lanes), high = _mm512_loadu_pd(lanes + 8);
    size_t j = 0;
    for (; j + kLanes <= n; j += kLanes) {
        const __m512d one = _mm512_sub_pd(_mm512_cvtps_pd(_mm256_loadu_ps(a + j)), _mm512_cvtps_pd(_mm256_loadu_ps(b + j)));
        const __m512d two =
            _mm512_sub_pd(_mm512_cvtps_pd(_mm256_loadu_ps(a + j + 8)), _mm512_cvtps_pd(_mm256_loadu_ps(b + j + 8)));
        low = _mm512_add_pd(low, _mm512_mul_pd(one, one));
        high = _mm512_add_pd(high, _mm512_mul_pd(two, two));
    }
    _mm512_storeu_pd(lanes, low);
    _mm512_storeu_pd(lanes + 8, high);
    portable().squares(a + j, b + j, n - j, lanes);
}

NESTVEC_AVX512 void add_exps(const float* x, size_t n, float most, double* lanes) { add_exps_of(x, n, most, lanes); }

NESTVEC_AVX512 void sort_keys(uint64_t* keys, size_t n) {
    if (n > kCounted) return std::sort(keys, keys + n);
    uint64_t copy[kCounted], ranks[8];
    std::copy(keys, keys + n, copy);
    std::fill(copy + n, copy + (n + 7) / 8 * 8, ~uint64_t(0));
    const __m512i one = _mm512_set1_epi64(1);
    for (size_t i = 0; i < n; i += 8) {
        const __m512i mine = _mm512_loadu_si512(copy + i);
        __m512i smaller = _mm512_setzero_si512();
        for (size_t j = 0; j < n; ++j) {
            const __mmask8 less = _mm512_cmplt_epu64_mask(_mm512_set1_epi64(int64_t(copy[j])), mine);
            smaller = _mm512_mask_add_epi64(smaller, less, smaller, one);
        }
        _mm512_storeu_si512(ranks, smaller);
        for (size_t j = 0; j < 8 && i + j < n; ++j) keys[ranks[j]] = copy[i + j];
    }
}

constexpr Primitives kAll{centroid_dots, family_dots, sum_blocks, within, count_within, pick, add_dots, products, entries, peak, quantise, split, list_scores, at_least, squares, add_exps, sort_keys};

}  // namespace

const Primitives& avx512() { return kAll; }

}  // namespace nestvec

#endif
