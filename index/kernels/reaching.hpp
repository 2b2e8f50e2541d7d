// Which rows reach a floor, for many queries at once. reference_reaching.py says what it means.
#pragma once

#include "kernels.hpp"

namespace nestvec {

struct ReachTask {
    const void* vectors;  // [n, dims] of float or Half
    bool half;
    size_t n, dims;
    const uint8_t* levels;   // [n]: 0 for a row that does not count, else from 1 on the floors that it must reach
    const float* queries;    // [count, dims], finite
    const float* floors;     // [depth, count], no NaN
    size_t count, depth;
    bool l2;
};

struct Reached {
    int64_t row;
    float score;
};

constexpr size_t kMostReachDims = 65536;  // whose sums of byte products fit 32 bits

// The rows of each query, ascending; the same for every number of threads. Needs AVX-512: elsewhere products of bytes are
// slower than BLAS.
std::vector<std::vector<Reached>> reaching(const ReachTask& task, size_t threads);

}  // namespace nestvec
