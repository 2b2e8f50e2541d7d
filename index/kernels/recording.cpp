// Recorded searches, and what follows from them.

#include "recording.hpp"

#include <limits>

#include "query.hpp"

namespace nestvec {

namespace {

constexpr uint32_t kCounted = 1024;  // deficits that are counted; a greater one is rare
constexpr uint16_t kUnmet = UINT16_MAX;
static_assert(kDeficits <= kUnmet, "a deficit fits 16 bits");

// How many lists the plan visits: see Searcher::choose_lists.
size_t visited(const Recording& recording, size_t k, const Plan& plan) {
    const std::vector<float>& lists = recording.lists;
    const size_t most = std::min(plan.probes, lists.size());
    const float least = std::isinf(plan.probe_margin) ? -std::numeric_limits<float>::infinity()
                                                      : lists[0] - plan.probe_margin * recording.unit;
    size_t count = 0;
    while (count < most && lists[count] >= least) ++count;
    while (count < most && recording.codes[count] < kPostingsPerHit * int64_t(k)) ++count;
    return count;
}

// The n-th least of the deficits, 1 <= n <= size.
uint32_t nth_least(const std::vector<uint16_t>& deficits, size_t n, std::vector<uint32_t>& counts, std::vector<uint16_t>& copy) {
    counts.assign(kCounted, 0);
    for (const uint32_t deficit : deficits) ++counts[std::min(deficit, kCounted - 1)];
    size_t below = 0;
    for (uint32_t deficit = 0; deficit + 1 < kCounted; ++deficit)
        if ((below += counts[deficit]) >= n) return deficit;
    copy = deficits;
    std::nth_element(copy.begin(), copy.begin() + std::ptrdiff_t(n - 1), copy.end());
    return copy[n - 1];
}

}  // namespace

void Searcher::record(const float* vector, size_t k, const Plan& plan, const Route& route, const uint64_t* lists,
                      Scratch& s, Recording& recording) const {
    Query query{vector, k, plan, s, route, lists};
    query.recording = &recording;
    s.recorded_rows.clear();
    s.recorded_deficits.clear();
    schedule(query);
    make_tables(query);
    scan(query);
    recording.rows = s.recorded_rows;  // a copy takes no more than its size
    recording.deficits = s.recorded_deficits;
    s.keys.assign(s.candidates.keys(), s.candidates.keys() + s.candidates.size());
    query.rows = s.keys.size();
    recording.unit = route.unit;
    recording.inverse = query.inverse;
    recording.codes.assign(1, 0);
    for (size_t i = 0; i < route.lists; ++i) {
        recording.lists.push_back(key_score(query.lists[i]));
        recording.codes.push_back(recording.codes.back() + postings_[uint32_t(query.lists[i])]);
    }
    recording.ends.resize(route.lists + 1, uint32_t(recording.rows.size()));
    recording.known.assign(1, 0);
    for (uint32_t list = 0, known = 0, i = 0; list < route.lists; ++list) {
        for (; i < recording.ends[list + 1]; ++i) known = std::max(known, recording.rows[i] + 1);
        recording.known.push_back(known);
    }
    recording.names.resize(s.keys.size());
    for (size_t i = 0; i < s.keys.size(); ++i) {
        const uint64_t coming = s.keys[std::min(i + kRowsAhead, s.keys.size() - 1)];
        if (const uint32_t* row_at = segments_[size_t(coming >> 32)].row_at) NESTVEC_PREFETCH(row_at + uint32_t(coming));
        recording.names[i] = row_key(s.keys[i]);
    }
    record_stages(query);
}

void Searcher::record_stages(Query& query) const {
    size_t int8_from = 0, stored_from = 0;
    query.recording->scores.reserve(query.plan.stages.size() * query.rows);
    for (const Stage& stage : query.plan.stages) {
        if (stage.int8) {
            if (int8_from == 0) weigh(query);
            int8_scores(query, stage, int8_from);
            int8_from = stage.dims;
        } else {
            if (stored_from == 0) start_stored(query);
            stored_scores(query, stage, stored_from);
            stored_from = stage.dims;
        }
        const float* scores = query.s.row_scores.data();
        query.recording->scores.insert(query.recording->scores.end(), scores, scores + query.rows);
    }
}

// The rows whose codes the plan keeps, the first of alive_, and how many: see Candidates.
size_t Replay::shortlist(const Recording& recording, size_t lists, size_t k, const Plan& plan) {
    const size_t n = recording.known[lists], keep = std::max(plan.keep, k);
    deficits_.assign(n, kUnmet);
    for (size_t i = 0; i < recording.ends[lists]; ++i) {
        uint16_t& held = deficits_[recording.rows[i]];
        held = std::min(held, recording.deficits[i]);
    }
    uint32_t limit = UINT32_MAX;
    if (n >= k) limit = nth_least(deficits_, k, counts_, copy_) + deficits_in(plan.margin, recording.unit, recording.inverse);
    uint64_t* alive = sized(alive_, n);
    size_t left = 0;
    for (size_t i = 0; i < n; ++i) {
        alive[left] = i;
        left += deficits_[i] <= limit;
    }
    if (left <= keep) return left;
    const auto better = [&](uint64_t a, uint64_t b) {
        return deficits_[a] != deficits_[b] ? deficits_[a] < deficits_[b] : recording.names[a] < recording.names[b];
    };
    std::nth_element(alive, alive + keep - 1, alive + left, better);
    return keep;
}

int64_t Replay::run(const Recording& recording, size_t k, const Plan& plan, size_t wanted, int64_t* counts) {
    const size_t lists = visited(recording, k, plan), rows = recording.names.size();
    size_t left = shortlist(recording, lists, k, plan);
    uint64_t* alive = alive_.data();
    *counts++ = int64_t(lists);
    *counts++ = recording.codes[lists];
    *counts++ = int64_t(left);
    const float* recorded = recording.scores.data();
    for (const Stage& stage : plan.stages) {
        float* scores = sized(scores_, left);
        for (size_t i = 0; i < left; ++i) scores[i] = recorded[alive[i]];
        const auto name = [&](uint64_t row) { return recording.names[row]; };
        left = cut(scores, alive, name, left, k, std::max(stage.keep, k), stage.margin * recording.unit, sorted_, order_,
                   [&](size_t to, size_t from) { alive[to] = alive[from]; });
        *counts++ = int64_t(left);
        recorded += rows;
    }
    *counts = int64_t(std::min(k, left));
    return std::count_if(alive, alive + left, [&](uint64_t row) { return recording.ranks[row] < wanted; });
}

}  // namespace nestvec
