// The inner loops in plain C++, and the choice between the instruction sets. Integer sums are exact, so their order is
// free; float sums keep the reference's order in every lane.

#include "primitives.hpp"

#include <algorithm>
#include <cmath>

#include <limits>

namespace nestvec {
namespace {

void centroid_dots(const uint8_t* codes, size_t nodes, size_t groups, const int8_t* queries, size_t count, int32_t* out) {
    const size_t width = in_tiles(nodes);
    std::fill(out, out + count * width, 0);
    for (size_t at = 0; at < nodes; at += kTile)
        for (size_t g = 0; g < groups; ++g, codes += 4 * kTile)
            for (size_t q = 0; q < count; ++q) {
                const int8_t* four = queries + (q * groups + g) * 4;
                int32_t* sums = out + q * width + at;
                for (size_t l = 0; l < kTile; ++l)
                    for (size_t t = 0; t < 4; ++t) sums[l] += int32_t(codes[4 * l + t]) * four[t];
            }
}

void family_dots(const uint8_t* codes, size_t width, size_t groups, const int8_t* query, const uint8_t* ahead,
                 int32_t* out) {
    (void)ahead;
    std::fill(out, out + width, 0);
    for (size_t g = 0; g < groups; ++g, query += 4, codes += 4 * width)
        for (size_t l = 0; l < width; ++l)
            for (size_t t = 0; t < 4; ++t) out[l] += int32_t(codes[4 * l + t]) * query[t];
}

void sum_blocks(const uint8_t* codes, size_t blocks, size_t pairs, const uint8_t* table, const uint8_t* const* ahead,
              uint8_t* out) {
    (void)ahead;
    for (size_t b = 0; b < blocks; ++b, out += kBlock) {
        uint32_t sums[kBlock] = {};
        for (size_t p = 0; p < pairs; ++p, codes += kBlock)
            for (size_t j = 0; j < kBlock; ++j)
                sums[j] += uint32_t(table[32 * p + (codes[j] & 15)]) + table[32 * p + 16 + (codes[j] >> 4)];
        for (size_t j = 0; j < kBlock; ++j) out[j] = uint8_t(std::min<uint32_t>(sums[j], 255));
    }
}

size_t within(const uint8_t* codes, size_t blocks, size_t pairs, const uint8_t* table, const uint8_t* const* ahead,
              uint8_t limit,
                       uint32_t* positions, uint8_t* deficits) {
    size_t found = 0;
    for (size_t b = 0; b < blocks; ++b) {
        uint8_t sums[kBlock];
        sum_blocks(codes + b * pairs * kBlock, 1, pairs, table, ahead, sums);
        for (size_t j = 0; j < kBlock; ++j)
            if (sums[j] <= limit) {
                positions[found] = uint32_t(b * kBlock + j);
                deficits[found++] = sums[j];
            }
    }
    return found;
}

size_t count_within(const uint8_t* deficits, size_t n, uint8_t limit) {
    size_t found = 0;
    for (size_t j = 0; j < n; ++j) found += deficits[j] <= limit;
    return found;
}

size_t pick(const uint8_t* deficits, size_t n, uint8_t limit, uint32_t* positions, uint8_t* out) {
    size_t found = 0;
    for (size_t j = 0; j < n; ++j)
        if (deficits[j] <= limit) {
            positions[found] = uint32_t(j);
            out[found++] = deficits[j];
        }
    return found;
}

uint32_t row_dot(const uint8_t* row, const int8_t* high, const int8_t* low, size_t n) {
    uint32_t sum = 0;
    for (size_t j = 0; j < n; ++j) sum += uint32_t(int32_t(row[j]) * (64 * high[j] + low[j]));
    return sum;
}

void add_dots(const uint8_t* const* rows, size_t count, const int8_t* high, const int8_t* low, size_t n,
              uint32_t* sums) {
    for (size_t i = 0; i < count; ++i) {
        fetch_ahead(rows, i, count, n);
        sums[i] += row_dot(rows[i], high, low, n);
    }
}

void products(const float* q, const float* t, size_t blocks, size_t width, float f, float* o, float* g,
                       float* l) {
    products_loop(q, t, blocks, width, f, o, g, l);
}

void entries(const float* products, const float* greatest, size_t blocks, float inverse, uint8_t* out) {
    for (size_t i = 0; i < blocks * kCentres; ++i)
        out[i] = uint8_t(std::min(255.0f, std::nearbyintf((greatest[i / kCentres] - products[i]) * inverse)));
}


float peak(const float* x, size_t n) {
    float most = 0.0f;
    for (size_t j = 0; j < n; ++j) most = std::max(most, std::fabs(x[j]));
    return most;
}

int32_t quantise(const float* x, size_t n, float step, int8_t* out) {
    int32_t sum = 0;
    for (size_t j = 0; j < n; ++j) sum += out[j] = int8_t(std::nearbyintf(x[j] / step));
    return sum;
}

void split(const float* x, size_t n, float step, int8_t* high, int8_t* low) {
    for (size_t j = 0; j < n; ++j) {
        const int32_t whole = int32_t(std::nearbyintf(x[j] / step)), upper = (whole + 32) >> 6;
        high[j] = int8_t(upper);
        low[j] = int8_t(whole - 64 * upper);
    }
}

float list_scores(const int32_t* dots, size_t n, int32_t shift, float scale, const float* bias, float* out) {
    float best = -std::numeric_limits<float>::infinity();
    for (size_t l = 0; l < n; ++l) {
        const float score = float(dots[l] - shift) * scale;
        out[l] = bias ? 2.0f * score + bias[l] : score;
        best = std::max(best, out[l]);
    }
    return best;
}

size_t at_least(const float* scores, size_t n, float least, uint32_t* numbers) {
    size_t found = 0;
    for (size_t l = 0; l < n; ++l)
        if (scores[l] >= least) numbers[found++] = uint32_t(l);
    return found;
}

void squares(const float* a, const float* b, size_t n, double* lanes) {
    for (size_t i = 0; i < n; ++i) {
        const double difference = double(a[i]) - double(b[i]);
        lanes[i % kLanes] += difference * difference;
    }
}

void add_exps(const float* x, size_t n, float most, double* lanes) { add_exps_of(x, n, most, lanes); }

void sort_keys(uint64_t* keys, size_t n) { std::sort(keys, keys + n); }

constexpr Primitives kAll{centroid_dots, family_dots, sum_blocks, within, count_within, pick, add_dots, products, entries, peak, quantise, split, list_scores, at_least, squares, add_exps, sort_keys};

}  // namespace

const Primitives& portable() { return kAll; }

const Primitives& primitives(Isa isa) {
#ifdef NESTVEC_X86
    if (isa == Isa::avx512) return avx512();
    if (isa == Isa::avx2) return avx2();
#endif
    (void)isa;
    return kAll;
}

}  // namespace nestvec
