// The inner loops of a search, one set of functions per instruction set.
#pragma once

#include "kernels.hpp"

namespace nestvec {

constexpr size_t kTogether = 4;  // queries of a batch that read the centroids together
constexpr size_t kRowsAhead = 32;  // int8 rows fetched ahead
constexpr size_t kTile = 128;  // centroids scored together: their codes lie one after another

// How many numbers so many nodes take in whole tiles.
inline size_t in_tiles(size_t nodes) { return (nodes + kTile - 1) / kTile * kTile; }

struct Primitives {
    // out[q][l] = sum over g, t of codes[tile][g][l in tile][t] * queries[q][4g + t] of the first `nodes` centroids of
    // tiles of kTile, 1..kTogether queries of 4 * groups bytes each, one after another; out is [count, tiles * kTile],
    // anything beyond the nodes.
    void (*centroid_dots)(const uint8_t* codes, size_t nodes, size_t groups, const int8_t* queries, size_t count,
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
};

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
