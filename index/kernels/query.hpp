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

// The number at place `kth`, from 0, of n numbers in descending order; changes their order. As nth_element, but without
// a branch on each comparison, which would be guessed wrongly half the time; it is left the orders that pivots do not halve.
inline float kth_greatest(float* x, size_t n, size_t kth) {
    for (int rounds = 32; n > 16 && rounds > 0; --rounds) {
        const float a = x[0], b = x[n / 2], c = x[n - 1], pivot = std::max(std::min(a, b), std::min(std::max(a, b), c));
        const auto first = [&](size_t from, const auto& goes) {  // those that `goes` picks, to the front
            size_t to = from;
            for (size_t i = from; i < n; ++i) {
                const float value = x[i];
                x[i] = x[to];
                x[to] = value;
                to += size_t(goes(value));
            }
            return to;
        };
        const size_t greater = first(0, [=](float value) { return value > pivot; });
        if (kth < greater) {
            n = greater;
            continue;
        }
        const size_t equal = first(greater, [=](float value) { return value == pivot; });
        if (kth < equal) return pivot;
        x += equal, n -= equal, kth -= equal;
    }
    std::nth_element(x, x + kth, x + n, std::greater<float>());
    return x[kth];
}

// Two ascending runs that follow each other, n keys in all, into one at `out`: from both ends at once, two chains of
// comparisons that do not wait for each other, and no branch on any of them.
inline void merge_runs(const uint64_t* x, size_t left, size_t n, uint64_t* out) {
    const uint64_t *a = x, *b = x + left, *c = b - 1, *d = x + n - 1;
    const size_t steps = std::min(left, n - left);
    for (size_t i = 0; i < steps; ++i) {
        const uint64_t low = *a, next = *b, below = *c, high = *d;
        const uint64_t second = next < low, first = high < below;
        out[i] = low ^ ((low ^ next) & (0 - second));
        out[n - 1 - i] = high ^ ((below ^ high) & (0 - first));
        a += 1 - second, b += second;
        c -= first, d -= 1 - first;
    }
    for (size_t i = steps; i < n - steps; ++i) out[i] = a <= c && (b > d || *a < *b) ? *a++ : *b++;
}

// n keys in ascending order: where they are then, in `x` or in `other`. Both have room for padding(n).
inline size_t padding(size_t n) { return (n + 3) / 4 * 4; }

inline uint64_t* merge_sort(uint64_t* x, size_t n, uint64_t* other) {
    std::fill(x + n, x + padding(n), UINT64_MAX);
    for (uint64_t* four = x; four < x + n; four += 4) {
        const auto order = [four](size_t i, size_t j) {
            const uint64_t changed = (four[i] ^ four[j]) & (0 - uint64_t(four[j] < four[i]));
            four[i] ^= changed, four[j] ^= changed;
        };
        order(0, 1), order(2, 3), order(0, 2), order(1, 3), order(1, 2);
    }
    for (size_t width = 4; width < n; width *= 2, std::swap(x, other))
        for (size_t at = 0; at < n; at += 2 * width)
            merge_runs(x + at, std::min(width, n - at), std::min(2 * width, n - at), other + at);
    return x;
}

// Keeps the best `keep` of the scored keys, and of those what is within `margin` of the k-th best: `move(to, from)` is
// called for each of them, to the front. Equal scores go by `name(key)`. Returns how many.
template <class Name, class Move>
size_t cut(const float* scores, const uint64_t* keys, const Name& name, size_t n, size_t k, size_t keep, float margin,
           std::vector<float>& sorted, std::vector<uint64_t>& ordered, const Move& move) {
    if (n == 0) return 0;
    float* copy = sized(sorted, n);
    std::copy(scores, scores + n, copy);
    const float least = kth_greatest(copy, n, std::min(k, n) - 1) - margin;
    uint64_t* order = sized(ordered, n);
    size_t within = 0;
    for (size_t i = 0; i < n; ++i) {
        order[within] = i;
        within += size_t(!(scores[i] < least));
    }
    if (within > keep) {
        const auto better = [&](uint64_t a, uint64_t b) {
            return scores[a] != scores[b] ? scores[a] > scores[b] : name(keys[a]) < name(keys[b]);
        };
        std::nth_element(order, order + (keep - 1), order + within, better);
        const uint64_t last = order[keep - 1];
        within = 0;
        for (size_t i = 0; i < n; ++i) {  // ascending, so that moving to the front overwrites nothing
            order[within] = i;
            within += size_t(!(scores[i] < least) && !better(last, i));
        }
    }
    for (size_t i = 0; i < within; ++i) move(i, size_t(order[i]));
    return within;
}

}  // namespace nestvec
