// The best `keep` rows seen so far, in bounded memory, each row once.
#pragma once

#include <algorithm>
#include <limits>

#include "kernels.hpp"

namespace nestvec {

class Shortlist {
   public:
    // `total` is the most postings that can ever be pushed: a huge keep costs no more than that.
    Shortlist(size_t keep, size_t total)
        : keep_(std::min(keep, total)), capacity_(std::min(std::max(2 * keep_, keep_ + 256), std::max<size_t>(total, 1))) {
        keys_.resize(capacity_);
    }

    // An estimate below this cannot be among the best `keep` any more; one equal to it can, by its row.
    float threshold() const { return threshold_; }

    void push(float estimate, uint32_t row) {
        if (size_ == capacity_) compact();
        keys_[size_++] = make_key(estimate, row);
    }

    std::vector<uint64_t> finish() {
        compact();
        keys_.resize(size_);
        std::sort(keys_.begin(), keys_.end());
        return std::move(keys_);
    }

   private:
    // Twins go first: cutting before would let a row that is here twice push out one that belongs.
    void compact() {
        remove_twins();
        if (size_ < keep_ || keep_ == 0) return;
        const auto last = keys_.begin() + (keep_ - 1);
        std::nth_element(keys_.begin(), last, keys_.begin() + size_);
        size_ = keep_;
        threshold_ = key_estimate(*last);
    }

    void remove_twins() {
        if (table_.empty()) {
            size_t slots = 64;
            while (slots < 2 * capacity_) slots *= 2;
            table_.resize(slots);
        }
        std::fill(table_.begin(), table_.end(), 0);
        const size_t mask = table_.size() - 1;
        size_t unique = 0;
        for (size_t i = 0; i < size_; ++i) {
            const uint64_t key = keys_[i];
            size_t slot = (key_row(key) * size_t(0x9E3779B1u) >> 7) & mask;
            while (table_[slot] != 0 && key_row(keys_[table_[slot] - 1]) != key_row(key)) slot = (slot + 1) & mask;
            if (table_[slot] != 0) {
                uint64_t& other = keys_[table_[slot] - 1];
                other = std::min(other, key);
            } else {
                keys_[unique++] = key;
                table_[slot] = uint32_t(unique);
            }
        }
        size_ = unique;
    }

    size_t keep_, capacity_, size_ = 0;
    float threshold_ = -std::numeric_limits<float>::infinity();
    std::vector<uint64_t> keys_;
    std::vector<uint32_t> table_;  // 1 + position in keys_, 0 = free
};

}  // namespace nestvec
