// One query under way, shared by the files that move it along.
#pragma once

#include <algorithm>
#include <functional>

#include "recording.hpp"
#include "search.hpp"

namespace nestvec {

// What the list before found, its places not looked at yet; positions and deficits are in the scratch.
struct Pending {
    const uint32_t* places;
    size_t found;
    uint32_t offset;
    size_t segment, rank;
};

struct Searcher::Query {
    const float* vector;
    size_t k;
    const Plan& plan;
    Scratch& s;
    const Route& route;
    const uint64_t* lists;  // route.lists keys: score and number, best first
    float inverse = 0;      // table steps per score
    size_t rows = 0;        // alive, their keys in s.keys once the lists are scanned: segment and place, then row
    size_t block = 0;       // of the schedule, next to sum
    float factor8 = 0;      // of int8 sums
    Pending pending{};
    Recording* recording = nullptr;  // of all that the scan hands on, where somebody asked
};

template <class T>
T* sized(std::vector<T>& buffer, size_t n) {
    if (buffer.size() < n) buffer.resize(n);
    return buffer.data();
}

// Keeps the best `keep` of the scored keys, and of those what is within `margin` of the k-th best: `move(to, from)` is
// called for each of them, to the front. Equal scores go by `name(key)`. Returns how many.
template <class Name, class Move>
size_t cut(const float* scores, const uint64_t* keys, const Name& name, size_t n, size_t k, size_t keep, float margin,
           std::vector<float>& sorted, std::vector<uint64_t>& order, const Move& move) {
    if (n == 0) return 0;
    float* copy = sized(sorted, n);
    std::copy(scores, scores + n, copy);
    const size_t kth = std::min(k, n) - 1;
    std::nth_element(copy, copy + kth, copy + n, std::greater<float>());
    const float least = copy[kth] - margin;
    order.clear();
    for (size_t i = 0; i < n; ++i)
        if (!(scores[i] < least)) order.push_back(i);
    if (order.size() > keep) {
        const auto better = [&](uint64_t a, uint64_t b) {
            return scores[a] != scores[b] ? scores[a] > scores[b] : name(keys[a]) < name(keys[b]);
        };
        std::nth_element(order.begin(), order.begin() + (keep - 1), order.end(), better);
        order.resize(keep);
        std::sort(order.begin(), order.end());  // ascending, so that moving to the front overwrites nothing
    }
    for (size_t i = 0; i < order.size(); ++i) move(i, size_t(order[i]));
    return order.size();
}

}  // namespace nestvec
