// The rows that the codes found, each once with its least deficit, and the running cut through them.
#pragma once

#include <algorithm>

#include "kernels.hpp"

namespace nestvec {

constexpr uint32_t kMaxOffset = 16128;  // what a list may lie behind the best one, in table steps
constexpr size_t kDeficits = kMaxOffset + 256;

// The least deficit that at least `target` candidates are at or below, brought up to date after each list.
class RunningCut {
   public:
    void start(size_t target) {
        target_ = target;
        below_ = at_ = 0;
        known_ = false;
    }

    bool known() const { return known_; }
    uint32_t at() const { return at_; }

    // No branches: every other guess at them would be wrong.
    void added(uint32_t deficit) { below_ += size_t(deficit <= at_); }
    void removed(uint32_t deficit) { below_ -= size_t(deficit <= at_); }

    // `counts`: candidates by deficit; `total` of them.
    void settle(const std::vector<uint32_t>& counts, size_t total) {
        if (known_) {
            while (below_ - counts[at_] >= target_) below_ -= counts[at_--];
        } else if (total >= target_) {
            known_ = true;
            for (below_ = counts[0]; below_ < target_;) below_ += counts[++at_];
        }
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
        for (size_t i = 0; i < count_; ++i) counts_[deficits_[i]] = 0;
        kth_.start(k);
        last_.start(keep);
        margin_ = margin;
        make_slots(std::max<size_t>(512, 2 * count_));
        count_ = 0;
    }

    bool enough() const { return kth_.known(); }
    uint32_t margin() const { return margin_; }

    // A deficit above this cannot be among the kept any more.
    uint32_t limit() const {
        const uint32_t kth = kth_.known() ? kth_.at() + margin_ : UINT32_MAX;
        return last_.known() ? std::min(kth, last_.at()) : kth;
    }

    // The number of the key, in the order in which they came. `settle` comes after the last of a list.
    NESTVEC_INLINE uint32_t add(uint64_t key, uint32_t deficit) {
        if (2 * count_ > mask_) grow();
        Slot* slot = find(key);
        if (slot->epoch == epoch_) {
            uint32_t& held = deficits_[slot->place];
            if (held <= deficit) return slot->place;
            --counts_[held];
            kth_.removed(held);
            last_.removed(held);
            held = deficit;
        } else {
            *slot = Slot{epoch_, uint32_t(count_)};
            keys_[count_] = key;
            deficits_[count_++] = deficit;
        }
        ++counts_[deficit];
        kth_.added(deficit);
        last_.added(deficit);
        return slot->place;
    }

    void settle() {
        kth_.settle(counts_, count_);
        last_.settle(counts_, count_);
    }

    size_t size() const { return count_; }
    const uint64_t* keys() const { return keys_.data(); }

    // Fetches what `add` will look at: of many candidates it is seldom in a cache.
    void expect(uint64_t key) const { NESTVEC_PREFETCH(&slots_[home(key)]); }

    uint32_t deficit(uint32_t number) const { return deficits_[number]; }

    // The kept: within the limit, and the best `keep` of them by (deficit, name of the key). Order is free.
    template <class Name>
    void cut(size_t keep, const Name& name, std::vector<uint64_t>& kept, std::vector<uint64_t>& order) {
        const uint32_t limit = this->limit();
        if (order.size() < count_) order.resize(count_);
        size_t within = 0;
        for (size_t i = 0; i < count_; ++i) {
            order[within] = i;
            within += size_t(deficits_[i] <= limit);
        }
        if (within > keep) {
            const auto worse = [&](uint64_t a, uint64_t b) {
                return deficits_[a] != deficits_[b] ? deficits_[a] < deficits_[b] : name(keys_[a]) < name(keys_[b]);
            };
            std::nth_element(order.data(), order.data() + (keep - 1), order.data() + within, worse);
            within = keep;
        }
        kept.resize(within);
        for (size_t i = 0; i < within; ++i) kept[i] = keys_[order[i]];
    }

   private:
    struct Slot {
        uint32_t epoch = 0, place = 0;  // of a search before: free
    };

    size_t home(uint64_t key) const { return size_t((key * 0x9E3779B97F4A7C15u) >> 32) & mask_; }

    Slot* find(uint64_t key) {
        size_t at = home(key);
        while (slots_[at].epoch == epoch_ && keys_[slots_[at].place] != key) at = (at + 1) & mask_;
        return &slots_[at];
    }

    // No more slots than this search needs, whatever those before it did: they are hit at random, and should stay in
    // the first-level cache.
    void make_slots(size_t least) {
        size_t size = 1;
        while (size < least) size *= 2;
        if (slots_.size() < size) {
            deficits_.resize(size / 2 + 1);
            keys_.resize(size / 2 + 1);
            slots_.resize(size);
        }
        mask_ = size - 1;
        if (++epoch_ == 0) {
            std::fill(slots_.begin(), slots_.end(), Slot{});
            epoch_ = 1;
        }
    }

    void grow() {
        make_slots(2 * (mask_ + 1));
        for (size_t i = 0; i < count_; ++i) *find(keys_[i]) = Slot{epoch_, uint32_t(i)};
    }

    size_t count_ = 0, mask_ = 0;     // candidates; slots in use, less one
    std::vector<uint64_t> keys_;      // segment << 32 | place
    std::vector<uint32_t> deficits_;  // beside keys_
    std::vector<uint32_t> counts_;    // candidates by deficit
    std::vector<Slot> slots_;
    RunningCut kth_, last_;
    uint32_t epoch_ = 0, margin_ = 0;
};

}  // namespace nestvec
