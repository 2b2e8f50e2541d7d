// scan_lists: sums of 4-bit codes by PSHUFB, estimates, threshold, shortlist, in one pass over the lists.
//
// A step is one vector load: one pair of sub-quantisers (AVX2) or two (AVX-512). Table entries are first added up in
// 8 bits for as long as their largest entries cannot overflow, then widened to 16 bits: exact for every table, and
// faster the smaller its entries are.

#include "shortlist.hpp"

namespace nestvec {
namespace {

constexpr size_t kGroup = 4;  // blocks per call of an estimator

struct Tables {
    enum Action : uint8_t { add = 0, flush = 1, split = 2 };
    size_t steps = 0;
    alignas(64) uint8_t actions[kMaxSubquantisers / 2];
    alignas(64) uint8_t wide[kMaxSubquantisers * 32];  // AVX-512 only: per step [T0 T0 T2 T2][T1 T1 T3 T3]
};

struct Group {
    const uint8_t* codes;
    size_t pairs, blocks;
    const uint8_t* lut;
    float offset, scale;
    const float* bias;
    float threshold;
};

// Writes the estimates of 32 * blocks postings, and per block a mask of those that reach the threshold.
using Estimator = void (*)(const Group&, const Tables&, float* estimates, uint32_t* masks);

int largest(const uint8_t* table) { return *std::max_element(table, table + 16); }

void plan_steps(const uint8_t* lut, size_t pairs, size_t pairs_per_step, Tables& tables) {
    tables.steps = (pairs + pairs_per_step - 1) / pairs_per_step;
    int sum[2] = {0, 0};
    size_t last = SIZE_MAX;
    for (size_t step = 0; step < tables.steps; ++step) {
        int top[2] = {0, 0};
        for (size_t h = 0; h < pairs_per_step && step * pairs_per_step + h < pairs; ++h) {
            const uint8_t* pair = lut + (step * pairs_per_step + h) * 32;
            top[h] = largest(pair) + largest(pair + 16);
        }
        tables.actions[step] = Tables::add;
        if (top[0] > 255 || top[1] > 255) {
            tables.actions[step] = Tables::split;
            continue;
        }
        if (sum[0] + top[0] > 255 || sum[1] + top[1] > 255) {
            tables.actions[last] = Tables::flush;
            sum[0] = sum[1] = 0;
        }
        sum[0] += top[0];
        sum[1] += top[1];
        last = step;
    }
}

void estimate_portable(const Group& g, const Tables&, float* estimates, uint32_t* masks) {
    for (size_t b = 0; b < g.blocks; ++b) {
        uint32_t sums[kBlock] = {};
        for (size_t p = 0; p < g.pairs; ++p) {
            const uint8_t* codes = g.codes + (b * g.pairs + p) * kBlock;
            const uint8_t* pair = g.lut + p * 32;
            for (size_t j = 0; j < kBlock; ++j) sums[j] += pair[codes[j] & 15] + pair[16 + (codes[j] >> 4)];
        }
        masks[b] = 0;
        for (size_t j = 0; j < kBlock; ++j) {
            float estimate = g.offset + g.scale * float(sums[j]);
            if (g.bias) estimate += g.bias[b * kBlock + j];
            estimates[b * kBlock + j] = estimate;
            masks[b] |= uint32_t(estimate >= g.threshold) << j;
        }
    }
}

#ifdef NESTVEC_X86

// ---- AVX2 -----------------------------------------------------------------------------------------------------

// A 16-bit lane holds two postings. `all` adds both (the odd one shifted by 8, wrapping), `odd` only the odd one.
#define NESTVEC_WIDEN256(v)                           \
    all[b] = _mm256_add_epi16(all[b], v);             \
    odd[b] = _mm256_add_epi16(odd[b], _mm256_srli_epi16(v, 8))

NESTVEC_AVX2 NESTVEC_INLINE uint32_t finish8(__m256i sums, const Group& g, size_t posting, float* estimates) {
    __m256 estimate = _mm256_mul_ps(_mm256_set1_ps(g.scale), _mm256_cvtepi32_ps(sums));
    estimate = _mm256_add_ps(_mm256_set1_ps(g.offset), estimate);
    if (g.bias) estimate = _mm256_add_ps(estimate, _mm256_loadu_ps(g.bias + posting));
    _mm256_storeu_ps(estimates + posting, estimate);
    return uint32_t(_mm256_movemask_ps(_mm256_cmp_ps(estimate, _mm256_set1_ps(g.threshold), _CMP_GE_OQ)));
}

NESTVEC_AVX2 NESTVEC_INLINE uint32_t finish_block256(__m256i all, __m256i odd, const Group& g, size_t b, float* out) {
    const __m256i even = _mm256_sub_epi16(all, _mm256_slli_epi16(odd, 8));
    const __m256i low = _mm256_unpacklo_epi16(even, odd);    // postings 0-7, 16-23
    const __m256i high = _mm256_unpackhi_epi16(even, odd);   // postings 8-15, 24-31
    uint32_t mask = finish8(_mm256_cvtepu16_epi32(_mm256_castsi256_si128(low)), g, b * kBlock, out);
    mask |= finish8(_mm256_cvtepu16_epi32(_mm256_castsi256_si128(high)), g, b * kBlock + 8, out) << 8;
    mask |= finish8(_mm256_cvtepu16_epi32(_mm256_extracti128_si256(low, 1)), g, b * kBlock + 16, out) << 16;
    mask |= finish8(_mm256_cvtepu16_epi32(_mm256_extracti128_si256(high, 1)), g, b * kBlock + 24, out) << 24;
    return mask;
}

template <int B>
NESTVEC_AVX2 void blocks_avx2(const Group& g, const Tables& tables, size_t first, float* estimates, uint32_t* masks) {
    const __m256i nibble = _mm256_set1_epi8(15);
    __m256i all[B], odd[B], sum[B];
    for (int b = 0; b < B; ++b) all[b] = odd[b] = sum[b] = _mm256_setzero_si256();
    const size_t stride = g.pairs * kBlock;
    const uint8_t* codes = g.codes + first * stride;
    for (size_t s = 0; s < tables.steps; ++s) {
        const __m256i t0 = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)(g.lut + s * 32)));
        const __m256i t1 = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)(g.lut + s * 32 + 16)));
        const uint8_t action = tables.actions[s];
        for (int b = 0; b < B; ++b) {
            const __m256i c = _mm256_loadu_si256((const __m256i*)(codes + b * stride + s * kBlock));
            const __m256i r0 = _mm256_shuffle_epi8(t0, _mm256_and_si256(c, nibble));
            const __m256i r1 = _mm256_shuffle_epi8(t1, _mm256_and_si256(_mm256_srli_epi16(c, 4), nibble));
            if (action == Tables::split) {
                NESTVEC_WIDEN256(r0);
                NESTVEC_WIDEN256(r1);
            } else {
                sum[b] = _mm256_add_epi8(sum[b], _mm256_add_epi8(r0, r1));
            }
        }
        if (action == Tables::flush)
            for (int b = 0; b < B; ++b) {
                NESTVEC_WIDEN256(sum[b]);
                sum[b] = _mm256_setzero_si256();
            }
    }
    for (int b = 0; b < B; ++b) {
        NESTVEC_WIDEN256(sum[b]);
        masks[first + b] = finish_block256(all[b], odd[b], g, first + b, estimates);
    }
}

NESTVEC_AVX2 void estimate_avx2(const Group& g, const Tables& tables, float* estimates, uint32_t* masks) {
    size_t b = 0;
    for (; b + 2 <= g.blocks; b += 2) blocks_avx2<2>(g, tables, b, estimates, masks);
    if (b < g.blocks) blocks_avx2<1>(g, tables, b, estimates, masks);
}

// ---- AVX-512: the same, two pairs per step -----------------------------------------------------------------------

#define NESTVEC_WIDEN512(v)                           \
    all[b] = _mm512_add_epi16(all[b], v);             \
    odd[b] = _mm512_add_epi16(odd[b], _mm512_srli_epi16(v, 8))

NESTVEC_AVX512 NESTVEC_INLINE uint32_t finish16(__m256i sums, const Group& g, size_t posting, float* estimates) {
    __m512 estimate = _mm512_mul_ps(_mm512_set1_ps(g.scale), _mm512_cvtepi32_ps(_mm512_cvtepu16_epi32(sums)));
    estimate = _mm512_add_ps(_mm512_set1_ps(g.offset), estimate);
    if (g.bias) estimate = _mm512_add_ps(estimate, _mm512_loadu_ps(g.bias + posting));
    _mm512_storeu_ps(estimates + posting, estimate);
    return _mm512_cmp_ps_mask(estimate, _mm512_set1_ps(g.threshold), _CMP_GE_OQ);
}

NESTVEC_AVX512 NESTVEC_INLINE uint32_t finish_block512(__m512i all, __m512i odd, const Group& g, size_t b, float* out) {
    const __m512i even = _mm512_sub_epi16(all, _mm512_slli_epi16(odd, 8));
    const __m256i e = _mm256_add_epi16(_mm512_castsi512_si256(even), _mm512_extracti64x4_epi64(even, 1));
    const __m256i o = _mm256_add_epi16(_mm512_castsi512_si256(odd), _mm512_extracti64x4_epi64(odd, 1));
    const __m256i low = _mm256_unpacklo_epi16(e, o), high = _mm256_unpackhi_epi16(e, o);
    const uint32_t first = finish16(_mm256_permute2x128_si256(low, high, 0x20), g, b * kBlock, out);
    return first | finish16(_mm256_permute2x128_si256(low, high, 0x31), g, b * kBlock + 16, out) << 16;
}

template <int B>
NESTVEC_AVX512 void blocks_avx512(const Group& g, const Tables& tables, size_t first, float* estimates,
                                  uint32_t* masks) {
    const __m512i nibble = _mm512_set1_epi8(15);
    __m512i all[B], odd[B], sum[B];
    for (int b = 0; b < B; ++b) all[b] = odd[b] = sum[b] = _mm512_setzero_si512();
    const size_t stride = g.pairs * kBlock;
    const uint8_t* codes = g.codes + first * stride;
    for (size_t s = 0; s < tables.steps; ++s) {
        const __m512i t0 = _mm512_load_si512(tables.wide + s * 128);
        const __m512i t1 = _mm512_load_si512(tables.wide + s * 128 + 64);
        const uint8_t action = tables.actions[s];
        const __mmask64 lanes = 2 * s + 1 < g.pairs ? ~__mmask64(0) : __mmask64(0xFFFFFFFFu);
        for (int b = 0; b < B; ++b) {
            const __m512i c = _mm512_maskz_loadu_epi8(lanes, codes + b * stride + s * 2 * kBlock);
            const __m512i r0 = _mm512_shuffle_epi8(t0, _mm512_and_si512(c, nibble));
            const __m512i r1 = _mm512_shuffle_epi8(t1, _mm512_and_si512(_mm512_srli_epi16(c, 4), nibble));
            if (action == Tables::split) {
                NESTVEC_WIDEN512(r0);
                NESTVEC_WIDEN512(r1);
            } else {
                sum[b] = _mm512_add_epi8(sum[b], _mm512_add_epi8(r0, r1));
            }
        }
        if (action == Tables::flush)
            for (int b = 0; b < B; ++b) {
                NESTVEC_WIDEN512(sum[b]);
                sum[b] = _mm512_setzero_si512();
            }
    }
    for (int b = 0; b < B; ++b) {
        NESTVEC_WIDEN512(sum[b]);
        masks[first + b] = finish_block512(all[b], odd[b], g, first + b, estimates);
    }
}

NESTVEC_AVX512 void estimate_avx512(const Group& g, const Tables& tables, float* estimates, uint32_t* masks) {
    if (g.blocks == kGroup) return blocks_avx512<kGroup>(g, tables, 0, estimates, masks);
    for (size_t b = 0; b < g.blocks; ++b) blocks_avx512<1>(g, tables, b, estimates, masks);
}

// An odd last pair leaves the upper half of its step at zero, in the tables as in the masked load.
void widen_tables(const uint8_t* lut, size_t pairs, Tables& tables) {
    for (size_t s = 0; s < tables.steps; ++s)
        for (size_t side = 0; side < 2; ++side)
            for (size_t lane = 0; lane < 4; ++lane) {
                const size_t pair = 2 * s + lane / 2;
                uint8_t* to = tables.wide + s * 128 + side * 64 + lane * 16;
                if (pair < pairs)
                    std::memcpy(to, lut + pair * 32 + side * 16, 16);
                else
                    std::memset(to, 0, 16);
            }
}

#endif

Estimator prepare(const ScanTask& task, Isa isa, Tables& tables) {
#ifdef NESTVEC_X86
    if (isa == Isa::avx512) {
        plan_steps(task.lut, task.pairs, 2, tables);
        widen_tables(task.lut, task.pairs, tables);
        return estimate_avx512;
    }
    if (isa == Isa::avx2) {
        plan_steps(task.lut, task.pairs, 1, tables);
        return estimate_avx2;
    }
#endif
    (void)isa;
    return estimate_portable;
}

// Pushes the postings of one block that reached the threshold; false at a row beyond `allowed`.
bool push_block(const ScanTask& task, uint32_t mask, const float* estimates, const uint32_t* rows, Shortlist& best,
                ScanResult& result) {
    for (; mask != 0; mask &= mask - 1) {
        const int j = __builtin_ctz(mask);
        const uint32_t row = rows[j];
        if (row == kPadding || estimates[j] < best.threshold()) continue;
        if (task.allowed) {
            if (row >= task.n_allowed) {
                result.bad_row = row;
                return false;
            }
            if (!task.allowed[row]) continue;
        }
        best.push(estimates[j], row);
    }
    return true;
}

bool scan_list(const ScanTask& task, size_t i, Estimator estimate, const Tables& tables, Shortlist& best,
               ScanResult& result) {
    const size_t start = size_t(task.offsets[task.lists[i]]);
    const size_t count = size_t(task.counts[task.lists[i]]);
    const size_t blocks = (count + kBlock - 1) / kBlock;
    float estimates[kGroup * kBlock];
    uint32_t masks[kGroup];
    for (size_t b = 0; b < blocks; b += kGroup) {
        const size_t at = start + b * kBlock;
        const Group group{task.codes + at * task.pairs,
                          task.pairs,
                          std::min(kGroup, blocks - b),
                          task.lut,
                          task.list_bias[i] + task.base,
                          task.scale,
                          task.posting_bias ? task.posting_bias + at : nullptr,
                          best.threshold()};
        estimate(group, tables, estimates, masks);
        for (size_t g = 0; g < group.blocks; ++g) {
            const size_t left = count - (b + g) * kBlock;
            if (left < kBlock) masks[g] &= (uint32_t(1) << left) - 1;
            if (!push_block(task, masks[g], estimates + g * kBlock, task.rows + at + g * kBlock, best, result))
                return false;
        }
    }
    result.scanned += int64_t(count);
    return true;
}

}  // namespace

ScanResult scan_lists(const ScanTask& task, Isa isa) {
    ScanResult result;
    size_t total = 0;
    for (size_t i = 0; i < task.n_lists; ++i) total += size_t(task.counts[task.lists[i]]);
    if (task.keep == 0 || total == 0) return result;
    Tables tables;
    const Estimator estimate = prepare(task, isa, tables);
    Shortlist best(task.keep, total);
    for (size_t i = 0; i < task.n_lists; ++i) {
        if (i + 1 < task.n_lists) {  // the start of the next list: no hardware prefetcher can guess it
            const uint8_t* next = task.codes + size_t(task.offsets[task.lists[i + 1]]) * task.pairs;
            for (size_t line = 0; line < 8; ++line) NESTVEC_PREFETCH(next + 64 * line);
        }
        if (!scan_list(task, i, estimate, tables, best, result)) return result;
    }
    result.keys = best.finish();
    return result;
}

}  // namespace nestvec
