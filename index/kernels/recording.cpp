// Recorded searches, and what follows from them.

#include "recording.hpp"

#include <limits>

#include "query.hpp"

namespace nestvec {

namespace {

constexpr uint32_t kCounted = 1024;  // deficits that are counted; a greater one is rare

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
uint32_t nth_least(const std::vector<uint32_t>& deficits, size_t n, std::vector<uint32_t>& counts, std::vector<uint32_t>& copy) {
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

bool Searcher::record(const float* vector, size_t k, const Plan& plan, Scratch& s, Recording& recording) const {
    s.lists.clear();
    Route route;
    if (!this->route(vector, 1, k, plan, s, &route)) return false;
    Query query{vector, k, plan, s, route, s.lists.data()};
    query.recording = &recording;
    schedule(query);
    make_tables(query);
    scan(query);
    s.keys = s.candidates.keys();
    query.rows = s.keys.size();
    recording.unit = route.unit;
    recording.inverse = query.inverse;
    recording.codes.assign(1, 0);
    for (size_t i = 0; i < route.lists; ++i) {
        recording.lists.push_back(key_score(query.lists[i]));
        recording.codes.push_back(recording.codes.back() + postings_[uint32_t(query.lists[i])]);
    }
    recording.ends.assign(1, 0);
    recording.known.assign(1, 0);
    uint32_t end = 0, known = 0;
    for (uint32_t rank = 0; rank < route.lists; ++rank) {
        for (; end < recording.touched.size() && recording.touched[end].rank == rank; ++end)
            known = std::max(known, recording.touched[end].row + 1);
        recording.ends.push_back(end);
        recording.known.push_back(known);
    }
    for (const uint64_t key : s.keys) recording.names.push_back(row_key(key));
    record_stages(query);
    return true;
}

void Searcher::record_stages(Query& query) const {
    size_t int8_from = 0, stored_from = 0;
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

// The rows whose codes the plan keeps, in alive_: see Candidates.
void Replay::shortlist(const Recording& recording, size_t lists, size_t k, const Plan& plan) {
    const size_t n = recording.known[lists], keep = std::max(plan.keep, k);
    deficits_.assign(n, UINT32_MAX);
    for (size_t i = 0; i < recording.ends[lists]; ++i) {
        const Recording::Touched& one = recording.touched[i];
        deficits_[one.row] = std::min(deficits_[one.row], one.deficit);
    }
    uint32_t limit = UINT32_MAX;
    if (n >= k) limit = nth_least(deficits_, k, counts_, copy_) + deficits_in(plan.margin, recording.unit, recording.inverse);
    alive_.clear();
    for (size_t i = 0; i < n; ++i)
        if (deficits_[i] <= limit) alive_.push_back(i);
    if (alive_.size() <= keep) return;
    const auto better = [&](uint64_t a, uint64_t b) {
        return deficits_[a] != deficits_[b] ? deficits_[a] < deficits_[b] : recording.names[a] < recording.names[b];
    };
    std::nth_element(alive_.begin(), alive_.begin() + std::ptrdiff_t(keep - 1), alive_.end(), better);
    alive_.resize(keep);
}

int64_t Replay::run(const Recording& recording, size_t k, const Plan& plan, size_t wanted, int64_t* counts) {
    const size_t lists = visited(recording, k, plan), rows = recording.names.size();
    shortlist(recording, lists, k, plan);
    *counts++ = int64_t(lists);
    *counts++ = recording.codes[lists];
    *counts++ = int64_t(alive_.size());
    const float* recorded = recording.scores.data();
    for (const Stage& stage : plan.stages) {
        float* scores = sized(scores_, alive_.size());
        for (size_t i = 0; i < alive_.size(); ++i) scores[i] = recorded[alive_[i]];
        const auto name = [&](uint64_t row) { return recording.names[row]; };
        const size_t left = cut(scores, alive_.data(), name, alive_.size(), k, std::max(stage.keep, k),
                                stage.margin * recording.unit, sorted_, order_,
                                [&](size_t to, size_t from) { alive_[to] = alive_[from]; });
        alive_.resize(left);
        *counts++ = int64_t(left);
        recorded += rows;
    }
    *counts = int64_t(std::min(k, alive_.size()));
    return std::count_if(alive_.begin(), alive_.end(), [&](uint64_t row) { return recording.ranks[row] < wanted; });
}

}  // namespace nestvec
