// A segment less the postings of rows that its mask keeps out: many searches behind one narrow filter then read no others.
#pragma once

#include <atomic>
#include <memory>
#include <vector>

#include "pages.hpp"
#include "search.hpp"
#include "threads.hpp"

namespace nestvec {

class Narrowed {
   public:
    // `whole` has a mask, and outlives this.
    Narrowed(const Segment& whole, size_t lists, size_t threads)
        : whole_(whole), offsets_(lists + 1), counts_(lists), allowed_(lists) {
        each_list(threads, [&](size_t list) { find(list); });
        for (size_t list = 0; list < lists; ++list) {
            counts_[list] = int32_t(allowed_[list].size());
            offsets_[list + 1] = offsets_[list] + int64_t((allowed_[list].size() + kBlock - 1) / kBlock * kBlock);
        }
        codes_ = std::make_unique<Pages>(size_t(offsets_[lists]) * whole.pairs + 1);
        places_.resize(size_t(offsets_[lists]));
        each_list(threads, [&](size_t list) { copy(list); });
        allowed_.clear();
    }

    Segment segment() const {
        Segment made = whole_;
        made.codes = codes_->data();
        made.offsets = offsets_.data();
        made.counts = counts_.data();
        made.places = places_.data();
        made.allowed = nullptr;
        return made;
    }

   private:
    template <class Work>
    void each_list(size_t threads, const Work& work) const {
        std::atomic<size_t> next{0};
        in_threads(threads, [&](size_t) {
            for (size_t list; (list = next.fetch_add(1)) < counts_.size();) work(list);
        });
    }

    void find(size_t list) {
        const uint32_t* places = whole_.places + whole_.offsets[list];
        for (uint32_t i = 0; i < uint32_t(whole_.counts[list]); ++i)
            if (whole_.allowed[whole_.row(places[i])]) allowed_[list].push_back(i);
    }

    void copy(size_t list) {
        const std::vector<uint32_t>& allowed = allowed_[list];
        const size_t from = size_t(whole_.offsets[list]), to = size_t(offsets_[list]), pairs = whole_.pairs;
        for (size_t i = 0; i < allowed.size(); ++i) places_[to + i] = whole_.places[from + allowed[i]];
        const auto column = [&](size_t posting) { return posting / kBlock * kBlock * pairs + posting % kBlock; };
        for (size_t p = 0; p < pairs; ++p) {
            const uint8_t* old = whole_.codes + from * pairs + p * kBlock;
            uint8_t* made = codes_->data() + to * pairs + p * kBlock;
            for (size_t i = 0; i < allowed.size(); ++i) made[column(i)] = old[column(allowed[i])];
        }
    }

    Segment whole_;
    std::vector<int64_t> offsets_;
    std::vector<int32_t> counts_;
    std::vector<uint32_t> places_;
    std::unique_ptr<Pages> codes_;
    std::vector<std::vector<uint32_t>> allowed_;  // of each list: postings that stay
};

}  // namespace nestvec
