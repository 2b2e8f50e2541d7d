// encode: nearest of 16 centres per block. pack: codes into the layout that scan_lists reads.

#include <vector>

#include "kernels.hpp"

namespace nestvec {
namespace {

constexpr size_t kCentres = 16;

// Plain loops over the 16 centres, compiled once per instruction set by the functions below.
// Squared distances are never negative, so their bits order like integers: that minimum vectorises.
NESTVEC_INLINE void encode_rows(const float* residuals, size_t n, const float* transposed, size_t blocks, size_t width,
                                uint8_t* codes) {
    for (size_t r = 0; r < n; ++r)
        for (size_t m = 0; m < blocks; ++m) {
            const float* x = residuals + (r * blocks + m) * width;
            const float* centres = transposed + m * width * kCentres;
            float distance[kCentres] = {};
            for (size_t t = 0; t < width; ++t)
                for (size_t c = 0; c < kCentres; ++c) {
                    const float difference = x[t] - centres[t * kCentres + c];
                    distance[c] += difference * difference;
                }
            int32_t bits[kCentres];
            std::memcpy(bits, distance, sizeof bits);
            int32_t best = bits[0];
            for (size_t c = 1; c < kCentres; ++c) best = bits[c] < best ? bits[c] : best;
            uint32_t equal = 0;
            for (size_t c = 0; c < kCentres; ++c) equal |= uint32_t(bits[c] == best) << c;
            codes[r * blocks + m] = uint8_t(__builtin_ctz(equal));
        }
}

#ifdef NESTVEC_X86
NESTVEC_AVX2 void encode_avx2(const float* x, size_t n, const float* t, size_t blocks, size_t width, uint8_t* codes) {
    encode_rows(x, n, t, blocks, width, codes);
}

NESTVEC_AVX512 void encode_avx512(const float* x, size_t n, const float* t, size_t blocks, size_t width,
                                  uint8_t* codes) {
    encode_rows(x, n, t, blocks, width, codes);
}
#endif

}  // namespace

void encode(const float* residuals, size_t n, const float* codebook, size_t blocks, size_t width, uint8_t* codes,
            Isa isa) {
    std::vector<float> transposed(blocks * width * kCentres);
    for (size_t m = 0; m < blocks; ++m)
        for (size_t c = 0; c < kCentres; ++c)
            for (size_t t = 0; t < width; ++t)
                transposed[(m * width + t) * kCentres + c] = codebook[(m * kCentres + c) * width + t];
#ifdef NESTVEC_X86
    if (isa == Isa::avx512) return encode_avx512(residuals, n, transposed.data(), blocks, width, codes);
    if (isa == Isa::avx2) return encode_avx2(residuals, n, transposed.data(), blocks, width, codes);
#endif
    (void)isa;
    encode_rows(residuals, n, transposed.data(), blocks, width, codes);
}

bool pack(const uint8_t* codes, size_t n, size_t subquantisers, uint8_t* blocks) {
    const size_t pairs = (subquantisers + 1) / 2;
    uint8_t seen = 0;
    for (size_t i = 0; i < n; ++i) {
        const uint8_t* from = codes + i * subquantisers;
        uint8_t* to = blocks + (i / kBlock) * pairs * kBlock + i % kBlock;
        for (size_t m = 0; m < subquantisers; ++m) seen |= from[m];
        for (size_t p = 0; p < pairs; ++p) {
            const uint8_t high = 2 * p + 1 < subquantisers ? from[2 * p + 1] : 0;  // the padding of an odd M
            to[p * kBlock] = uint8_t((from[2 * p] & 15) | (high << 4));
        }
    }
    return seen <= 15;
}

}  // namespace nestvec
