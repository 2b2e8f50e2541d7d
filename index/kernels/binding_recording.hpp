// The Python side of recorded searches: of one batch, with the truth that replays are counted against.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

#include "binding_holders.hpp"
#include "recording.hpp"
#include "threads.hpp"

namespace nestvec {

// Sets the ranks of a recording's rows: `names` are segment << 32 | row, best first.
inline void rank_rows(Recording& recording, const std::vector<uint64_t>& names) {
    std::vector<std::pair<uint64_t, uint32_t>> sorted;
    std::array<bool, 4096> met{};  // most rows are not among the truth: few are looked for
    const auto slot = [](uint64_t name) { return size_t((name * 0x9E3779B97F4A7C15u) >> 52); };
    for (size_t i = 0; i < names.size(); ++i) {
        sorted.emplace_back(names[i], uint32_t(i));
        met[slot(names[i])] = true;
    }
    std::sort(sorted.begin(), sorted.end());
    recording.ranks.reserve(recording.names.size());
    for (const uint64_t name : recording.names) {
        uint32_t rank = kUntrue;
        if (met[slot(name)]) {
            const auto found = std::lower_bound(sorted.begin(), sorted.end(), std::make_pair(name, uint32_t(0)));
            if (found != sorted.end() && found->first == name) rank = found->second;
        }
        recording.ranks.push_back(rank);
    }
}

class RecordingHolder {
   public:
    RecordingHolder(size_t queries, size_t k, const Plan& plan) : recordings_(queries), k_(k), plan_(plan) {}

    Recording& operator[](size_t query) { return recordings_[query]; }

    py::tuple replay(const py::array& queries, py::ssize_t k, const std::vector<PlanHolder>& plans, const py::array& wanted,
                     py::ssize_t threads) const {
        check(queries, "queries", 'i', 8, "int64", {-1});
        const py::ssize_t total = queries.shape(0), many = py::ssize_t(plans.size());
        const int64_t* numbers = data<int64_t>(queries);
        if (std::any_of(numbers, numbers + total, [&](int64_t i) { return i < 0 || size_t(i) >= recordings_.size(); }))
            throw py::value_error("queries must be from 0 to " + std::to_string(recordings_.size() - 1));
        check(wanted, "wanted", 'i', 8, "int64", {total});
        PlanHolder::positive(threads, "threads");
        PlanHolder::positive(k, "k");
        const size_t stages = plans.empty() ? 0 : plans[0].plan.stages.size();
        for (const PlanHolder& one : plans) {
            check_stricter(size_t(k), one.plan);
            if (one.plan.stages.size() != stages) throw py::value_error("plans that are replayed together need as many stages each");
        }
        const py::ssize_t width = py::ssize_t(4 + stages);
        py::array_t<int64_t> counts({many, total, width}), found({many, total});
        int64_t *count = counts.mutable_data(), *hits = found.mutable_data();
        const int64_t* most = data<int64_t>(wanted);
        std::atomic<py::ssize_t> next{0};
        {
            const py::gil_scoped_release unlocked;
            in_threads(size_t(threads), [&](size_t) {
                Replay replay;  // a query's recording stays in the cache for all plans
                for (py::ssize_t i; (i = next.fetch_add(1)) < total;)
                    for (py::ssize_t p = 0, at = i; p < many; ++p, at += total)
                        hits[at] = replay.run(recordings_[size_t(numbers[i])], size_t(k), plans[size_t(p)].plan,
                                              size_t(std::max<int64_t>(most[i], 0)), count + at * width);
            });
        }
        return py::make_tuple(counts, found);
    }

    void extend(RecordingHolder& other) {
        if (&other == this) throw py::value_error("a recording cannot be extended by itself");
        check_stricter(other.k_, other.plan_);
        other.check_stricter(k_, plan_);
        std::move(other.recordings_.begin(), other.recordings_.end(), std::back_inserter(recordings_));
        other.recordings_.clear();
    }

   private:
    // A plan that might have touched what was not recorded is refused.
    void check_stricter(size_t k, const Plan& plan) const {
        bool fits = k <= k_ && plan.probes <= plan_.probes && plan.probe_margin <= plan_.probe_margin &&
                    std::max(plan.keep, k) <= std::max(plan_.keep, k_) && plan.margin <= plan_.margin &&
                    plan.cosine == plan_.cosine && plan.stages.size() <= plan_.stages.size();
        for (size_t i = 0; fits && i < plan.stages.size(); ++i)
            fits = plan.stages[i].dims == plan_.stages[i].dims && plan.stages[i].int8 == plan_.stages[i].int8;
        if (!fits)
            throw py::value_error(
                "a replay needs a plan at most as generous as the recorded one, with the same stages, and k at most " +
                std::to_string(k_) + ": record with a wider plan");
    }

    std::vector<Recording> recordings_;
    size_t k_;
    Plan plan_;
};

}  // namespace nestvec
