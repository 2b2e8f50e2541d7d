// The inner loops with AVX2.

#include "primitives.hpp"

#include <algorithm>
#include <cmath>

#include <limits>

#ifdef NESTVEC_X86

namespace nestvec {
namespace {

// The sums of 8 nodes whose codes lie `stride` bytes apart. 16-bit products: the bytes are unsigned and large, and
// pmaddubsw would saturate.
NESTVEC_AVX2 NESTVEC_INLINE void dots_of_8(const uint8_t* from, size_t stride, size_t groups, const int8_t* query,
                                           int32_t* out) {
    __m256i low = _mm256_setzero_si256(), high = low;
    for (size_t g = 0; g < groups; ++g, from += stride) {
        int32_t four;
        std::memcpy(&four, query + 4 * g, 4);
        const __m256i weights = _mm256_cvtepi8_epi16(_mm_set1_epi32(four));
        const __m256i a = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)from));
        const __m256i b = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)(from + 16)));
        low = _mm256_add_epi32(low, _mm256_madd_epi16(a, weights));
        high = _mm256_add_epi32(high, _mm256_madd_epi16(b, weights));
    }
    // hadd works inside 128-bit lanes: centroids 0 1 4 5 | 2 3 6 7.
    const __m256i sums = _mm256_permute4x64_epi64(_mm256_hadd_epi32(low, high), 0xD8);
    _mm256_storeu_si256((__m256i*)out, sums);
}

NESTVEC_AVX2 void centroid_dots(const uint8_t* codes, size_t nodes, size_t groups, const int8_t* queries, size_t count,
                                int32_t* out) {
    for (size_t q = 0; q < count; ++q, queries += 4 * groups, out += in_tiles(nodes))
        for (size_t at = 0; at < nodes; at += 8)
            dots_of_8(codes + (at / kTile * groups * kTile + at % kTile) * 4, 4 * kTile, groups, queries, out + at);
}

NESTVEC_AVX2 void family_dots(const uint8_t* codes, size_t width, size_t groups, const int8_t* query,
                              const uint8_t* ahead, int32_t* out) {
    (void)ahead;
    for (size_t at = 0; at < width; at += 8) dots_of_8(codes + 4 * at, 4 * width, groups, query, out + at);
}

// The 128 sums of one block, in four registers.
NESTVEC_AVX2 NESTVEC_INLINE void block(const uint8_t* codes, size_t pairs, const uint8_t* table,
                                       const uint8_t* ahead, __m256i* sums) {
    const __m256i nibble = _mm256_set1_epi8(15);
    for (int i = 0; i < 4; ++i) sums[i] = _mm256_setzero_si256();
    for (size_t p = 0; p < pairs; ++p, codes += kBlock, ahead += kBlock, table += 32) {
        NESTVEC_PREFETCH(ahead);
        NESTVEC_PREFETCH(ahead + kHalf);
        const __m256i even = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)table));
        const __m256i odd = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)(table + 16)));
        for (int i = 0; i < 4; ++i) {
            const __m256i line = _mm256_loadu_si256((const __m256i*)(codes + 32 * i));
            const __m256i low = _mm256_and_si256(line, nibble);
            const __m256i high = _mm256_and_si256(_mm256_srli_epi16(line, 4), nibble);
            sums[i] = _mm256_adds_epu8(sums[i], _mm256_shuffle_epi8(even, low));
            sums[i] = _mm256_adds_epu8(sums[i], _mm256_shuffle_epi8(odd, high));
        }
    }
}

NESTVEC_AVX2 void sum_blocks(const uint8_t* codes, size_t blocks, size_t pairs, const uint8_t* table, const uint8_t* const* ahead,
              uint8_t* out) {
    for (size_t b = 0; b < blocks; ++b, codes += pairs * kBlock, out += kBlock) {
        __m256i sums[4];
        block(codes, pairs, table, ahead[b], sums);
        for (int i = 0; i < 4; ++i) _mm256_storeu_si256((__m256i*)(out + 32 * i), sums[i]);
    }
}

NESTVEC_AVX2 size_t within(const uint8_t* codes, size_t blocks, size_t pairs, const uint8_t* table, const uint8_t* const* ahead,
              uint8_t limit,
                                uint32_t* positions, uint8_t* deficits) {
    size_t found = 0;
    const __m256i most = _mm256_set1_epi8(char(limit));
    for (size_t b = 0; b < blocks; ++b, codes += pairs * kBlock) {
        __m256i sums[4];
        block(codes, pairs, table, ahead[b], sums);
        for (int i = 0; i < 4; ++i) {
            uint32_t mask = uint32_t(_mm256_movemask_epi8(_mm256_cmpeq_epi8(_mm256_min_epu8(sums[i], most), sums[i])));
            if (mask == 0) continue;
            alignas(32) uint8_t bytes[32];
            _mm256_store_si256((__m256i*)bytes, sums[i]);
            for (; mask; mask &= mask - 1) {
                const uint32_t j = uint32_t(__builtin_ctz(mask));
                positions[found] = uint32_t(b * kBlock + 32 * size_t(i)) + j;
                deficits[found++] = bytes[j];
            }
        }
    }
    return found;
}

NESTVEC_AVX2 NESTVEC_INLINE uint32_t mask_within(const uint8_t* deficits, uint8_t limit) {
    const __m256i values = _mm256_loadu_si256((const __m256i*)deficits), most = _mm256_set1_epi8(char(limit));
    return uint32_t(_mm256_movemask_epi8(_mm256_cmpeq_epi8(_mm256_min_epu8(values, most), values)));
}

NESTVEC_AVX2 size_t count_within(const uint8_t* deficits, size_t n, uint8_t limit) {
    size_t found = 0, j = 0;
    for (; j + 32 <= n; j += 32) found += size_t(__builtin_popcount(mask_within(deficits + j, limit)));
    return found + portable().count_within(deficits + j, n - j, limit);
}

NESTVEC_AVX2 size_t pick(const uint8_t* deficits, size_t n, uint8_t limit, uint32_t* positions, uint8_t* out) {
    size_t found = 0, j = 0;
    for (; j + 32 <= n; j += 32)
        for (uint32_t mask = mask_within(deficits + j, limit); mask; mask &= mask - 1) {
            positions[found] = uint32_t(j) + uint32_t(__builtin_ctz(mask));
            out[found] = deficits[positions[found]];
            ++found;
        }
    const size_t rest = portable().pick(deficits + j, n - j, limit, positions + found, out + found);
    return found + shifted(positions + found, rest, j);
}

NESTVEC_AVX2 NESTVEC_INLINE uint32_t row_dot(const uint8_t* row, const int8_t* high, const int8_t* low, size_t n) {
    __m256i sums = _mm256_setzero_si256();
    for (size_t j = 0; j < n; j += 16) {
        const __m256i x = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)(row + j)));
        const __m256i h = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)(high + j)));
        const __m256i l = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)(low + j)));
        sums = _mm256_add_epi32(sums, _mm256_madd_epi16(x, _mm256_add_epi16(_mm256_slli_epi16(h, 6), l)));
    }
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
    four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4E));
    return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xB1)));
}

NESTVEC_AVX2 void add_dots(const uint8_t* const* rows, size_t count, const int8_t* high, const int8_t* low, size_t n,
                           uint32_t* sums) {
    for (size_t i = 0; i < count; ++i) {
        fetch_ahead(rows, i, count, n);
        sums[i] += row_dot(rows[i], high, low, n);
    }
}

NESTVEC_AVX2 void products(const float* q, const float* t, size_t blocks, size_t width, float f, float* o, float* g,
                                float* l) {
    products_loop(q, t, blocks, width, f, o, g, l);
}

NESTVEC_AVX2 void entries(const float* products, const float* greatest, size_t blocks, float inverse,
                               uint8_t* out) {
    const __m256 most = _mm256_set1_ps(255.0f), factor = _mm256_set1_ps(inverse);
    for (size_t m = 0; m < blocks; ++m) {
        const __m256 top = _mm256_set1_ps(greatest[m]);
        __m256i whole[2];
        for (int i = 0; i < 2; ++i) {
            const __m256 gap = _mm256_sub_ps(top, _mm256_loadu_ps(products + m * kCentres + 8 * i));
            whole[i] = _mm256_cvtps_epi32(_mm256_min_ps(_mm256_mul_ps(gap, factor), most));
        }
        const __m256i words = _mm256_permute4x64_epi64(_mm256_packus_epi32(whole[0], whole[1]), 0xD8);
        const __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
        _mm_storeu_si128((__m128i*)(out + m * kCentres), bytes);
    }
}

NESTVEC_AVX2 float peak(const float* x, size_t n) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    __m256 most = _mm256_setzero_ps();
    size_t j = 0;
    for (; j + 8 <= n; j += 8) most = _mm256_max_ps(most, _mm256_andnot_ps(sign, _mm256_loadu_ps(x + j)));
    float lanes[8];
    _mm256_storeu_ps(lanes, most);
    return std::max(*std::max_element(lanes, lanes + 8), portable().peak(x + j, n - j));
}

NESTVEC_AVX2 NESTVEC_INLINE __m256i whole(const float* x, __m256 step) {
    return _mm256_cvtps_epi32(_mm256_div_ps(_mm256_loadu_ps(x), step));
}

// The low bytes of eight 32-bit numbers.
NESTVEC_AVX2 NESTVEC_INLINE void store_bytes(__m256i numbers, int8_t* out) {
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(numbers), _mm256_extracti128_si256(numbers, 1));
    _mm_storel_epi64((__m128i*)out, _mm_packs_epi16(words, words));
}

NESTVEC_AVX2 int32_t quantise(const float* x, size_t n, float step, int8_t* out) {
    const __m256 divisor = _mm256_set1_ps(step);
    __m256i sums = _mm256_setzero_si256();
    size_t j = 0;
    for (; j + 8 <= n; j += 8) {
        const __m256i numbers = whole(x + j, divisor);
        sums = _mm256_add_epi32(sums, numbers);
        store_bytes(numbers, out + j);
    }
    int32_t lanes[8], sum = 0;
    _mm256_storeu_si256((__m256i*)lanes, sums);
    for (const int32_t lane : lanes) sum += lane;
    return sum + portable().quantise(x + j, n - j, step, out + j);
}

NESTVEC_AVX2 void split(const float* x, size_t n, float step, int8_t* high, int8_t* low) {
    const __m256 divisor = _mm256_set1_ps(step);
    size_t j = 0;
    for (; j + 8 <= n; j += 8) {
        const __m256i numbers = whole(x + j, divisor);
        const __m256i upper = _mm256_srai_epi32(_mm256_add_epi32(numbers, _mm256_set1_epi32(32)), 6);
        store_bytes(upper, high + j);
        store_bytes(_mm256_sub_epi32(numbers, _mm256_slli_epi32(upper, 6)), low + j);
    }
    portable().split(x + j, n - j, step, high + j, low + j);
}

NESTVEC_AVX2 float list_scores(const int32_t* dots, size_t n, int32_t shift, float scale, const float* bias,
                               float* out) {
    const __m256 factor = _mm256_set1_ps(scale), two = _mm256_set1_ps(2.0f);
    __m256 best = _mm256_set1_ps(-std::numeric_limits<float>::infinity());
    size_t l = 0;
    for (; l + 8 <= n; l += 8) {
        const __m256i sums = _mm256_sub_epi32(_mm256_loadu_si256((const __m256i*)(dots + l)), _mm256_set1_epi32(shift));
        __m256 score = _mm256_mul_ps(_mm256_cvtepi32_ps(sums), factor);
        if (bias) score = _mm256_add_ps(_mm256_mul_ps(two, score), _mm256_loadu_ps(bias + l));
        _mm256_storeu_ps(out + l, score);
        best = _mm256_max_ps(best, score);
    }
    float lanes[8];
    _mm256_storeu_ps(lanes, best);
    const float rest = portable().list_scores(dots + l, n - l, shift, scale, bias ? bias + l : nullptr, out + l);
    return std::max(*std::max_element(lanes, lanes + 8), rest);
}

NESTVEC_AVX2 size_t at_least(const float* scores, size_t n, float least, uint32_t* numbers) {
    size_t found = 0, l = 0;
    for (; l + 8 <= n; l += 8) {
        const __m256 enough = _mm256_cmp_ps(_mm256_loadu_ps(scores + l), _mm256_set1_ps(least), _CMP_GE_OQ);
        for (uint32_t mask = uint32_t(_mm256_movemask_ps(enough)); mask; mask &= mask - 1)
            numbers[found++] = uint32_t(l) + uint32_t(__builtin_ctz(mask));
    }
    const size_t rest = portable().at_least(scores + l, n - l, least, numbers + found);
    return found + shifted(numbers + found, rest, l);
}

NESTVEC_AVX2 void squares(const float* a, const float* b, size_t n, double* lanes) {
    __m256d sums[4];
    for (int i = 0; i < 4; ++i) sums[i] = _mm256_loadu_pd(lanes + 4 * i);
    size_t j = 0;
    for (; j + kLanes <= n; j += kLanes)
        for (int i = 0; i < 4; ++i) {
            const __m256d gap = _mm256_sub_pd(_mm256_cvtps_pd(_mm_loadu_ps(a + j + 4 * i)),
                                              _mm256_cvtps_pd(_mm_loadu_ps(b + j + 4 * i)));
            sums[i] = _mm256_add_pd(sums[i], _mm256_mul_pd(gap, gap));
        }
    for (int i = 0; i < 4; ++i) _mm256_storeu_pd(lanes + 4 * i, sums[i]);
    portable().squares(a + j, b + j, n - j, lanes);
}

NESTVEC_AVX2 void add_exps(const float* x, size_t n, float most, double* lanes) { add_exps_of(x, n, most, lanes); }

NESTVEC_AVX2 void sort_keys(uint64_t* keys, size_t n) {
    if (n > kCounted) return std::sort(keys, keys + n);
    constexpr uint64_t kSign = uint64_t(1) << 63;  // comparisons are of signed numbers
    uint64_t copy[kCounted], ranks[4];
    for (size_t i = 0; i < n; ++i) copy[i] = keys[i] ^ kSign;
    std::fill(copy + n, copy + (n + 3) / 4 * 4, ~kSign);
    for (size_t i = 0; i < n; i += 4) {
        const __m256i mine = _mm256_loadu_si256((const __m256i*)(copy + i));
        __m256i smaller = _mm256_setzero_si256();
        for (size_t j = 0; j < n; ++j)
            smaller = _mm256_sub_epi64(smaller, _mm256_cmpgt_epi64(mine, _mm256_set1_epi64x(int64_t(copy[j]))));
        _mm256_storeu_si256((__m256i*)ranks, smaller);
        for (size_t j = 0; j < 4 && i + j < n; ++j) keys[ranks[j]] = copy[i + j] ^ kSign;
    }
}

constexpr Primitives kAll{centroid_dots, family_dots, sum_blocks, within, count_within, pick, add_dots, products, entries, peak, quantise, split, list_scores, at_least, squares, add_exps, sort_keys};

}  // namespace

const Primitives& avx2() { return kAll; }

}  // namespace nestvec

#endif
