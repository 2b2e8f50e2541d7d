// The inner loops of a search, one set of functions per instruction set.
#pragma once

#include <cstring>

#include "kernels.hpp"

namespace nestvec {

constexpr size_t kTogether = 4;  // queries of a batch that read the centroids together
constexpr size_t kRowsAhead = 32;  // int8 rows fetched ahead
constexpr size_t kTile = 128;  // centroids scored together: their codes lie one after another

// How many nodes a tile of a family of so many has: families of up to 64 are packed more closely.
inline size_t tile_width(size_t siblings) { return siblings > 64 ? kTile : (siblings + 15) / 16 * 16; }

// How many numbers so many nodes take in whole tiles.
inline size_t in_tiles(size_t nodes) { return (nodes + kTile - 1) / kTile * kTile; }

struct Primitives {
    // out[q][l] = sum over g, t of codes[tile][g][l in tile][t] * queries[q][4g + t] of the first `nodes` centroids of
    // tiles of kTile, 1..kTogether queries of 4 * groups bytes each, one after another; out is [count, tiles * kTile],
    // anything beyond the nodes.
    void (*centroid_dots)(const uint8_t* codes, size_t nodes, size_t groups, const int8_t* queries, size_t count,
                          int32_t* out);

    // The same of one query and one tile of `width` nodes, 16, 32, 48 or 64; codes are [groups, width, 4]. Meanwhile as
    // many codes from `ahead` on are fetched: the next family lies anywhere.
    void (*family_dots)(const uint8_t* codes, size_t width, size_t groups, const int8_t* query, const uint8_t* ahead,
                        int32_t* out);

    // The deficits (saturating sums of table entries) of every posting of `blocks` blocks. While block b is summed, the
    // block at ahead[b] is fetched: hardware prefetchers stop at every page, and cannot guess the next list.
    void (*sum_blocks)(const uint8_t* codes, size_t blocks, size_t pairs, const uint8_t* table,
                     const uint8_t* const* ahead, uint8_t* out);

    // Positions and deficits of the postings of `blocks` blocks whose deficit is at most `limit`; how many.
    size_t (*within)(const uint8_t* codes, size_t blocks, size_t pairs, const uint8_t* table,
                     const uint8_t* const* ahead, uint8_t limit, uint32_t* positions, uint8_t* deficits);

    // How many of n deficits are at most `limit`.
    size_t (*count_within)(const uint8_t* deficits, size_t n, uint8_t limit);

    // Positions and values, ascending, of the deficits that are at most `limit`; how many. `out` may be `deficits`.
    size_t (*pick)(const uint8_t* deficits, size_t n, uint8_t limit, uint32_t* positions, uint8_t* out);

    // sums[i] += the sum of rows[i][j] * (64 * high[j] + low[j]) over n bytes, n a multiple of 64, modulo 2^32. Rows lie
    // anywhere: kRowsAhead of them are being fetched.
    void (*add_dots)(const uint8_t* const* rows, size_t count, const int8_t* high, const int8_t* low, size_t n,
                     uint32_t* sums);

    // Tables of one query: products [16] of each block, their greatest and least.
    void (*products)(const float* query, const float* transposed, size_t blocks, size_t width, float factor,
                     float* out, float* greatest, float* least);

    // entries[i] = min(255, rint((greatest[i / 16] - products[i]) * inverse)).
    void (*entries)(const float* products, const float* greatest, size_t blocks, float inverse, uint8_t* out);

    // The greatest |x[j]|.
    float (*peak)(const float* x, size_t n);

    // out[j] = rint(x[j] / step), which must fit; the sum of them.
    int32_t (*quantise)(const float* x, size_t n, float step, int8_t* out);

    // rint(x[j] / step) = 64 * high[j] + low[j], low in -32..31.
    void (*split)(const float* x, size_t n, float step, int8_t* high, int8_t* low);

    // out[l] = (dots[l] - shift) * scale, or twice that + bias[l]; the greatest.
    float (*list_scores)(const int32_t* dots, size_t n, int32_t shift, float scale, const float* bias, float* out);

    // The numbers l, ascending, with scores[l] >= least; how many.
    size_t (*at_least)(const float* scores, size_t n, float least, uint32_t* numbers);

    // lanes[j % kLanes] += (a[j] - b[j])^2 in float64, j ascending.
    void (*squares)(const float* a, const float* b, size_t n, double* lanes);

    // lanes[j % kLanes] += e^(x[j] - most) in float64, j ascending; most >= x[j].
    void (*add_exps)(const float* x, size_t n, float most, double* lanes);

    // Sorts keys that all differ, ascending.
    void (*sort_keys)(uint64_t* keys, size_t n);
};

constexpr size_t kCounted = 128;  // keys that are sorted by counting, for each, how many are smaller: no branch to guess

// e^x of x <= 0 to 2 units in the last place, by steps that any instruction set rounds alike and the compiler takes
// several at a time: Cephes' expf, the power of two by the bits of a sum. Below -87 that of -87, compared as bits, the fewer
// of which lie nearer to 0: a comparison of floats may trap, so compilers do not take several at a time.
NESTVEC_INLINE float exp_below(float x) {
    constexpr float kWhole = 12582912.0f, kLeast = -87.0f;  // 1.5 * 2^23: adding it rounds to an integer, in the low bits
    uint32_t bits, most;
    std::memcpy(&bits, &x, 4);
    std::memcpy(&most, &kLeast, 4);
    bits = bits < most ? bits : most;
    std::memcpy(&x, &bits, 4);
    const float shifted = x * 1.44269504f + kWhole, n = shifted - kWhole;
    const float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
    float sum = 1.9875691500e-4f;
    sum = sum * r + 1.3981999507e-3f;
    sum = sum * r + 8.3334519073e-3f;
    sum = sum * r + 4.1665795894e-2f;
    sum = sum * r + 1.6666665459e-1f;
    sum = sum * r + 5.0000001201e-1f;
    std::memcpy(&bits, &shifted, 4);
    bits = (bits << 23) + 0x3f800000u;
    float power;
    std::memcpy(&power, &bits, 4);
    return ((sum * (r * r) + r) + 1.0f) * power;
}

// What add_exps does, compiled once for each instruction set.
NESTVEC_INLINE void add_exps_of(const float* x, size_t n, float most, double* lanes) {
    size_t j = 0;
    for (; j + kLanes <= n; j += kLanes)
        for (size_t i = 0; i < kLanes; ++i) lanes[i] += double(exp_below(x[j + i] - most));
    for (size_t i = 0; j + i < n; ++i) lanes[i] += double(exp_below(x[j + i] - most));
}

const Primitives& portable();
const Primitives& primitives(Isa isa);

const Primitives& avx2();
const Primitives& avx512();

// Lanes are the 16 centres; the compiler vectorises the inner loops for the instruction set that the caller names.
NESTVEC_INLINE void products_loop(const float* query, const float* transposed, size_t blocks, size_t width,
                                  float factor, float* out, float* greatest, float* least) {
    for (size_t m = 0; m < blocks; ++m, out += kCentres) {
        float sums[kCentres] = {};
        for (size_t j = 0; j < width; ++j, transposed += kCentres)
            for (size_t c = 0; c < kCentres; ++c) sums[c] += query[m * width + j] * transposed[c];
        float most = sums[0] * factor, fewest = most;
        for (size_t c = 0; c < kCentres; ++c) {
            out[c] = sums[c] * factor;
            most = out[c] > most ? out[c] : most;
            fewest = out[c] < fewest ? out[c] : fewest;
        }
        greatest[m] = most;
        least[m] = fewest;
    }
}

// Fetches n bytes of the row to be added kRowsAhead after row i; with row 0, of all before it too.
NESTVEC_INLINE void fetch_ahead(const uint8_t* const* rows, size_t i, size_t count, size_t n) {
    const size_t end = i + kRowsAhead < count ? i + kRowsAhead + 1 : count;
    for (size_t next = i == 0 ? 0 : i + kRowsAhead; next < end; ++next)
        for (size_t byte = 0; byte < n; byte += 64) NESTVEC_PREFETCH(rows[next] + byte);
}

// Adds `by` to each of `count` numbers, which a call on the rest of an array counted from its own start; `count`.
inline size_t shifted(uint32_t* numbers, size_t count, size_t by) {
    for (size_t i = 0; i < count; ++i) numbers[i] += uint32_t(by);
    return count;
}

}  // namespace nestvec
