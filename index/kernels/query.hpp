// One query under way, shared by the files that move it along.
#pragma once

#include "search.hpp"

namespace nestvec {

// What the list before found, its places not looked at yet; positions and deficits are in the scratch.
struct Pending {
    const uint32_t* places;
    size_t found;
    uint32_t offset;
    size_t segment;
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
    int64_t codes = 0;      // summed
    float factor8 = 0;      // of int8 sums
    Pending pending{};
};

template <class T>
T* sized(std::vector<T>& buffer, size_t n) {
    if (buffer.size() < n) buffer.resize(n);
    return buffer.data();
}

}  // namespace nestvec
