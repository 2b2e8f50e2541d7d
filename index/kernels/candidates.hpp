// The rows that the codes found, each once with its least deficit, and the running cut through them.
#pragma once

#include <algorithm>

#include "kernels.hpp"

namespace nestvec {

constexpr uint32_t kMaxOffset = 16128;  // what a list may lie behind the best one, in table steps
constexpr size_t kDeficits = kMaxOffset + 256;

// The least deficit that at least `target` candidates are at or below, kept up to date as candidates come.
class RunningCut {
   public:
    void start(size_t target) {
        target_ = target;
        known_ = false;
    }

    bool known() const { return known_; }
    uint32_t at() const { return at_; }

    // Call after `counts[deficit]` went up; `total` candidates there are.
    void added(const std::vector<uint32_t>& counts, uint32_t deficit, size_t total) {
        if (!known_) {
            if (total < target_) return;
            known_ = true;
            at_ = 0;
            for (below_ = counts[0]; below_ < target_;) below_ += counts[++at_];
            return;
        }
        if (deficit > at_) return;
        ++below_;
        while (below_ - counts[at_] >= target_) below_ -= counts[at_--];
    }

    // Call after `counts[deficit]` went down, before the same candidate is added lower.
    void removed(uint32_t deficit) {
        if (known_ && deficit <= at_) --below_;
    }

   private:
    size_t target_ = 1, below_ = 0;  // candidates at or below at_
    uint32_t at_ = 0;
    bool known_ = false;
};

class Candidates {
   public:
    // `margin`: deficits kept beyond the k-th least; `keep`: rows kept at most.
    void start(size_t k, size_t keep, uint32_t margin) {
        if (counts_.empty()) counts_.assign(kDeficits, 0);
        for (const uint32_t deficit : deficits_) counts_[deficit] = 0;
        keys_.clear();
        deficits_.clear();
        kth_.start(k);
        last_.start(keep);
        margin_ = margin;
        if (slots_.empty()) slots_.resize(1024);
        if (++epoch_ == 0) {
            std::fill(slots_.begin(), slots_.end(), Slot{});
            epoch_ = 1;
        }
    }

    bool enough() const { return kth_.known(); }
    uint32_t margin() const { return margin_; }

    // A deficit above this cannot be among the kept any more.
    uint32_t limit() const {
        const uint32_t kth = kth_.known() ? kth_.at() + margin_ : UINT32_MAX;
        return last_.known() ? std::min(kth, last_.at()) : kth;
    }

    // The number of the key, in the order in which they came.
    NESTVEC_INLINE uint32_t add(uint64_t key, uint32_t deficit) {
        if (2 * (keys_.size() + 1) > slots_.size()) grow();
        Slot* slot = find(key);
        if (slot->epoch == epoch_) {
            uint32_t& held = deficits_[slot->place];
            if (held <= deficit) return slot->place;
            --counts_[held];
            kth_.removed(held);
            last_.removed(held);
            held = deficit;
        } else {
            *slot = Slot{key, epoch_, uint32_t(keys_.size())};
            keys_.push_back(key);
            deficits_.push_back(deficit);
        }
        ++counts_[deficit];
        kth_.added(counts_, deficit, keys_.size());
        last_.added(counts_, deficit, keys_.size());
        return slot->place;
    }

    const std::vector<uint64_t>& keys() const { return keys_; }
    uint32_t deficit(uint32_t number) const { return deficits_[number]; }

    // The kept: within the limit, and the best `keep` of them by (deficit, name of the key). Order is free.
    template <class Name>
    void cut(size_t keep, const Name& name, std::vector<uint64_t>& kept, std::vector<uint64_t>& order) {
        const uint32_t limit = this->limit();
        kept.clear();
        order.clear();
        for (size_t i = 0; i < keys_.size(); ++i)
            if (deficits_[i] <= limit) order.push_back(i);
        if (order.size() > keep) {
            const auto worse = [&](uint64_t a, uint64_t b) {
                return deficits_[a] != deficits_[b] ? deficits_[a] < deficits_[b] : name(keys_[a]) < name(keys_[b]);
            };
            std::nth_element(order.begin(), order.begin() + (keep - 1), order.end(), worse);
            order.resize(keep);
        }
        for (const uint64_t i : order) kept.push_back(keys_[i]);
    }

   private:
    struct Slot {
        uint64_t key = 0;
        uint32_t epoch = 0, place = 0;
    };

    Slot* find(uint64_t key) {
        const size_t mask = slots_.size() - 1;
        size_t at = size_t((key * 0x9E3779B97F4A7C15u) >> 32) & mask;
        while (slots_[at].epoch == epoch_ && slots_[at].key != key) at = (at + 1) & mask;
        return &slots_[at];
    }

    void grow() {
        slots_.assign(2 * slots_.size(), Slot{});
        for (size_t i = 0; i < keys_.size(); ++i) *find(keys_[i]) = Slot{keys_[i], epoch_, uint32_t(i)};
    }

    std::vector<uint64_t> keys_;      // segment << 32 | place
    std::vector<uint32_t> deficits_;  // beside keys_
    std::vector<uint32_t> counts_;    // candidates by deficit
    std::vector<Slot> slots_;
    RunningCut kth_, last_;
    uint32_t epoch_ = 0, margin_ = 0;
};

}  // namespace nestvec
