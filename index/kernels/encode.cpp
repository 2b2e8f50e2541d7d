// encode: nearest of 16 centres per block. encode_aware: the same, then coordinate descent on the score-aware cost.
// pack: codes into the blocks of postings that a search reads.
//
// As many rows at a time as a register has lanes, one to a lane: every step is the same for all of them and needs
// nothing from a neighbour, so each row sees the reference's order of operations whatever the register's width.

#include <algorithm>
#include <limits>
#include <vector>

#include "kernels.hpp"

namespace nestvec {
namespace {

constexpr int kRounds = 8;  // of coordinate descent, as in reference_encode.py
constexpr float kWorst = std::numeric_limits<float>::infinity();  // what every finite cost beats

template <size_t kLanes>
struct Register {
    typedef float Floats __attribute__((vector_size(kLanes * sizeof(float))));
    typedef int32_t Ints __attribute__((vector_size(kLanes * sizeof(int32_t))));
};

// Lanes lie in plain vectors, whose alignment is the same for every instruction set.
template <class Lanes, class T>
NESTVEC_INLINE void load(Lanes& lanes, const T* from) {
    static_assert(sizeof(T) == sizeof lanes[0], "one number to a lane");
    std::memcpy(&lanes, from, sizeof lanes);
}

template <class Lanes, class T>
NESTVEC_INLINE void store(const Lanes& lanes, T* to) {
    static_assert(sizeof(T) == sizeof lanes[0], "one number to a lane");
    std::memcpy(to, &lanes, sizeof lanes);
}

struct EncodeTask {
    const float* residuals;   // [n, blocks * width]
    const float* directions;  // the same, or null: plain nearest centres
    size_t n;
    const float* codebook;  // [blocks, 16, width]
    size_t blocks, width;
    float weight;
    uint8_t* codes;  // [n, blocks]
};

// For one tile of rows, all [.., lane]: the tables hold, for each block and centre, what choosing that centre costs and
// what it adds to the product with the row's direction; the codes so far, and the product that each block's code gives.
template <size_t kLanes>
struct Tile {
    std::vector<float> residuals, directions;  // [blocks * width]
    std::vector<float> distances, products;    // [blocks * centres]
    std::vector<int32_t> codes;                // [blocks]
    std::vector<float> held;                   // [blocks]

    explicit Tile(const EncodeTask& task)
        : residuals(task.blocks * task.width * kLanes),
          directions(task.directions ? residuals.size() : 0),
          distances(task.blocks * kCentres * kLanes),
          products(task.directions ? distances.size() : 0),
          codes(task.blocks * kLanes),
          held(task.directions ? codes.size() : 0) {}
};

// Rows [n, dims] to [dims, lanes]; lanes without a row keep what they hold.
template <size_t kLanes>
NESTVEC_INLINE void load_rows(const float* rows, size_t n, size_t dims, float* lanes) {
    for (size_t d = 0; d < dims; ++d)
        for (size_t r = 0; r < n; ++r) lanes[d * kLanes + r] = rows[r * dims + d];
}

// distances[c] = |x - centre c|^2 of one block, and codes its argmin, the lowest centre where several are.
template <size_t kLanes>
NESTVEC_INLINE void nearest(const float* x, const float* centres, size_t width, float* distances, int32_t* codes) {
    using Floats = typename Register<kLanes>::Floats;
    using Ints = typename Register<kLanes>::Ints;
    Floats best = Floats{} + kWorst;
    Ints chosen{};
    for (size_t c = 0; c < kCentres; ++c) {
        Floats sum{}, part;
        for (size_t t = 0; t < width; ++t) {
            load(part, x + t * kLanes);
            part -= centres[c * width + t];
            sum += part * part;
        }
        store(sum, distances + c * kLanes);
        const Ints better = sum < best;
        best = better ? sum : best;
        chosen = better ? Ints{} + int32_t(c) : chosen;
    }
    store(chosen, codes);
}

// products[c] = <x - centre c, direction> of one block.
template <size_t kLanes>
NESTVEC_INLINE void tabulate(const float* x, const float* direction, const float* centres, size_t width,
                             float* products) {
    using Floats = typename Register<kLanes>::Floats;
    for (size_t c = 0; c < kCentres; ++c) {
        Floats sum{}, part, along;
        for (size_t t = 0; t < width; ++t) {
            load(part, x + t * kLanes);
            load(along, direction + t * kLanes);
            sum += (part - centres[c * width + t]) * along;
        }
        store(sum, products + c * kLanes);
    }
}

// One block's best centre while the other blocks stay; `sum` is the product of all blocks. Marks the lanes that moved.
template <size_t kLanes, class Floats, class Ints>
NESTVEC_INLINE void descend(const float* distances, const float* products, float weight, Floats& sum, float* held,
                            int32_t* codes, Ints& moved) {
    Floats rest, best = Floats{} + kWorst, gained, distance, product;
    Ints chosen{}, before;
    load(gained, held);
    rest = sum - gained;
    load(gained, products);
    for (size_t c = 0; c < kCentres; ++c) {
        load(distance, distances + c * kLanes);
        load(product, products + c * kLanes);
        const Floats along = rest + product;
        const Floats cost = distance + weight * (along * along);
        const Ints better = cost < best;
        best = better ? cost : best;
        gained = better ? product : gained;
        chosen = better ? Ints{} + int32_t(c) : chosen;
    }
    load(before, codes);
    moved |= chosen ^ before;
    sum = rest + gained;
    store(chosen, codes);
    store(gained, held);
}

// Rounds over all blocks until no row changes; a row that has settled stays, however long others take.
template <size_t kLanes>
NESTVEC_INLINE void settle(const EncodeTask& task, Tile<kLanes>& tile) {
    using Floats = typename Register<kLanes>::Floats;
    using Ints = typename Register<kLanes>::Ints;
    constexpr size_t kTable = kCentres * kLanes;
    int32_t any = 1;
    for (int round = 0; any != 0 && round < kRounds; ++round) {
        Floats sum{}, part;  // from scratch each round, so that errors do not pile up
        Ints moved{};
        for (size_t m = 0; m < task.blocks; ++m) {
            load(part, &tile.held[m * kLanes]);
            sum += part;
        }
        for (size_t m = 0; m < task.blocks; ++m)
            descend<kLanes>(&tile.distances[m * kTable], &tile.products[m * kTable], task.weight, sum,
                            &tile.held[m * kLanes], &tile.codes[m * kLanes], moved);
        any = 0;
        for (size_t r = 0; r < kLanes; ++r) any |= moved[r];
    }
}

template <size_t kLanes>
NESTVEC_INLINE void encode_tile(const EncodeTask& task, Tile<kLanes>& tile, size_t first, size_t n) {
    constexpr size_t kTable = kCentres * kLanes;
    const size_t dims = task.blocks * task.width;
    load_rows<kLanes>(task.residuals + first * dims, n, dims, tile.residuals.data());
    if (task.directions) load_rows<kLanes>(task.directions + first * dims, n, dims, tile.directions.data());
    for (size_t m = 0; m < task.blocks; ++m) {
        const size_t band = m * task.width * kLanes;
        const float *centres = task.codebook + m * kCentres * task.width, *x = tile.residuals.data() + band;
        int32_t* codes = &tile.codes[m * kLanes];
        nearest<kLanes>(x, centres, task.width, &tile.distances[m * kTable], codes);
        if (!task.directions) continue;
        float* products = &tile.products[m * kTable];
        tabulate<kLanes>(x, tile.directions.data() + band, centres, task.width, products);
        for (size_t r = 0; r < kLanes; ++r) tile.held[m * kLanes + r] = products[size_t(codes[r]) * kLanes + r];
    }
    if (task.directions) settle(task, tile);
    for (size_t r = 0; r < n; ++r)
        for (size_t m = 0; m < task.blocks; ++m)
            task.codes[(first + r) * task.blocks + m] = uint8_t(tile.codes[m * kLanes + r]);
}

template <size_t kLanes>
NESTVEC_INLINE void encode_rows(const EncodeTask& task, Tile<kLanes>& tile) {
    for (size_t first = 0; first < task.n; first += kLanes)
        encode_tile(task, tile, first, std::min(kLanes, task.n - first));
}

#ifdef NESTVEC_X86
NESTVEC_AVX2 void encode_avx2(const EncodeTask& task, Tile<8>& tile) { encode_rows(task, tile); }
NESTVEC_AVX512 void encode_avx512(const EncodeTask& task, Tile<16>& tile) { encode_rows(task, tile); }
#endif

void run(const EncodeTask& task, Isa isa) {
#ifdef NESTVEC_X86
    if (isa == Isa::avx512) {
        Tile<16> tile(task);
        return encode_avx512(task, tile);
    }
    if (isa == Isa::avx2) {
        Tile<8> tile(task);
        return encode_avx2(task, tile);
    }
#endif
    (void)isa;
    Tile<4> tile(task);
    encode_rows(task, tile);
}

}  // namespace

void encode(const float* residuals, size_t n, const float* codebook, size_t blocks, size_t width, uint8_t* codes,
            Isa isa) {
    run({residuals, nullptr, n, codebook, blocks, width, 0.0f, codes}, isa);
}

void encode_aware(const float* residuals, const float* directions, size_t n, const float* codebook, size_t blocks,
                  size_t width, float eta, uint8_t* codes, Isa isa) {
    run({residuals, directions, n, codebook, blocks, width, eta - 1.0f, codes}, isa);
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
