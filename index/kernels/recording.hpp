// One generous search, recorded, so that the outcome of every stricter plan follows from it without another search:
// stricter plans visit the first of its lists, and their cuts keep some of its rows.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace nestvec {

struct Plan;

constexpr uint32_t kUntrue = UINT32_MAX;

struct Recording {
    float unit = 0, inverse = 0;   // score unit; table steps per score
    std::vector<float> lists;      // scores of the visited lists, best first
    std::vector<int64_t> codes;    // of the first i lists, i = 0..lists
    std::vector<uint32_t> ends;    // how many postings the first i lists handed on
    std::vector<uint32_t> known;   // rows that they found
    std::vector<uint32_t> rows;    // of those postings, in the order of the lists: the number of each one's row here
    std::vector<uint16_t> deficits;
    std::vector<uint64_t> names;   // segment << 32 | row, in the order in which rows were found
    std::vector<float> scores;     // [stages, rows]
    std::vector<uint32_t> ranks;   // of each row among the truth, best first; kUntrue: it is not in it
};

// What a stricter plan than the recorded one does.
class Replay {
   public:
    // Fills counts[4 + stages] as a search for k hits counts; how many of the rows that come to the last, exact step are
    // among the first `wanted` of the truth.
    int64_t run(const Recording& recording, size_t k, const Plan& plan, size_t wanted, int64_t* counts);

   private:
    size_t shortlist(const Recording& recording, size_t lists, size_t k, const Plan& plan);

    std::vector<uint16_t> deficits_, copy_;
    std::vector<uint32_t> counts_;
    std::vector<uint64_t> alive_, order_;
    std::vector<float> scores_, sorted_;
};

}  // namespace nestvec
