// Objects that hold the arrays of a segment and check them once.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>
#include <optional>
#include <vector>

#include "binding_holders.hpp"
#include "pages.hpp"

namespace nestvec {

inline void check_lists(const int64_t* offsets, const int32_t* counts, const uint32_t* rows, size_t lists, int64_t total,
                        size_t n) {
    for (size_t list = 0; list < lists; ++list) {
        const int64_t start = offsets[list], end = offsets[list + 1], count = counts[list];
        if (start < 0 || start % int64_t(kBlock) != 0 || count < 0 || end > total || start > end || count > end - start ||
            (count + int64_t(kBlock) - 1) / int64_t(kBlock) * int64_t(kBlock) > total - start)
            throw py::value_error("list " + std::to_string(list) + " is damaged: postings " + std::to_string(start) +
                                  " to " + std::to_string(end) + ", count " + std::to_string(count) + ", of " +
                                  std::to_string(total) + " stored (a list must start at a multiple of 128)");
        for (int64_t i = start; i < start + count; ++i)
            if (rows[i] >= n)
                throw py::index_error("row " + std::to_string(rows[i]) + " of list " + std::to_string(list) +
                                      " is not one of the " + std::to_string(n) + " rows");
    }
}

// The int8 rows of a segment, copied into memory with those of a list together: what a search reads of a few lists then
// shares pages. A row filed twice lies with the first of its lists.
struct GatheredHolder {
    size_t n, dims, total;
    std::unique_ptr<Pages> rescore, places, row_at;  // places of the postings, rows of the places: u32
    std::vector<float> bias;

    GatheredHolder(const py::array& offsets, const py::array& counts, const py::array& rows, const py::array& codes,
                   const std::optional<py::array>& biases) {
        check(codes, "rescore", 'u', 1, "uint8", {-1, -1});
        check(rows, "rows", 'u', 4, "uint32", {-1});
        check(counts, "counts", 'i', 4, "int32", {-1});
        check(offsets, "offsets", 'i', 8, "int64", {counts.shape(0) + 1});
        n = size_t(codes.shape(0));
        dims = size_t(codes.shape(1));
        total = size_t(rows.shape(0));
        if (biases) {
            check(*biases, "rescore_bias", 'f', 4, "float32", {codes.shape(0)});
            check_finite(*biases, "rescore_bias");
        }
        const auto *starts = data<int64_t>(offsets), *end = starts + counts.shape(0);
        const float* from = biases ? data<float>(*biases) : nullptr;
        check_lists(starts, data<int32_t>(counts), data<uint32_t>(rows), size_t(end - starts), int64_t(total), n);
        const py::gil_scoped_release unlocked;
        gather(starts, data<int32_t>(counts), data<uint32_t>(rows), size_t(end - starts), data<uint8_t>(codes), from);
    }

    static uint32_t* numbers(const Pages& pages) { return reinterpret_cast<uint32_t*>(pages.data()); }

   private:
    void gather(const int64_t* offsets, const int32_t* counts, const uint32_t* rows, size_t lists, const uint8_t* codes,
                const float* from) {
        constexpr uint32_t kNone = UINT32_MAX;
        std::vector<uint32_t> place_of(n, kNone);
        uint32_t next = 0;
        places = std::make_unique<Pages>(total * sizeof(uint32_t));
        row_at = std::make_unique<Pages>(n * sizeof(uint32_t));
        uint32_t *const filed = numbers(*places), *const order = numbers(*row_at);
        const auto place = [&](uint32_t row) {
            if (place_of[row] == kNone) order[place_of[row] = next++] = row;
            return place_of[row];
        };
        for (size_t list = 0; list < lists; ++list)
            for (int64_t i = offsets[list]; i < offsets[list] + counts[list]; ++i) filed[i] = place(rows[i]);
        rescore = std::make_unique<Pages>(n * dims);
        for (size_t row = 0; row < n; ++row)  // files are read in their order
            std::memcpy(rescore->data() + place(uint32_t(row)) * dims, codes + row * dims, dims);
        if (from == nullptr) return;
        bias.reserve(n + 1);  // an empty one has an address too: null means none
        bias.resize(n);
        for (size_t row = 0; row < n; ++row) bias[place_of[row]] = from[row];
    }
};

struct SegmentHolder {
    Segment segment{};
    std::vector<py::array> kept;
    std::shared_ptr<const GatheredHolder> gathered;
    std::optional<py::array> mask;
    size_t rescore_dims = 0, dims = 0, lists = 0;

    SegmentHolder(py::array codes, py::array offsets, py::array counts, py::array rows, double bias_top, double bias_step,
                  std::optional<py::array> rescore, std::optional<py::array> rescore_bias, py::array vectors,
                  py::array seqs, std::optional<py::array> allowed,
                  std::shared_ptr<GatheredHolder> gathered_rows)
        : gathered(std::move(gathered_rows)) {
        check(codes, "codes", 'u', 1, "uint8", {-1, -1, py::ssize_t(kBlock)});
        const py::ssize_t total = codes.shape(0) * py::ssize_t(kBlock);
        check(counts, "counts", 'i', 4, "int32", {-1});
        check(offsets, "offsets", 'i', 8, "int64", {counts.shape(0) + 1});
        check(rows, "rows", 'u', 4, "uint32", {total});
        const bool half = is_dtype(vectors, 'f', 2);
        check(vectors, "vectors", 'f', half ? 2 : 4, "float32 or float16", {-1, -1});
        const py::ssize_t n = vectors.shape(0);
        check(seqs, "seqs", 'i', 8, "int64", {n});
        if (rescore) check(*rescore, "rescore", 'u', 1, "uint8", {n, -1});
        if (rescore_bias) check(*rescore_bias, "rescore_bias", 'f', 4, "float32", {n});
        if (rescore_bias) check_finite(*rescore_bias, "rescore_bias");
        segment.codes = data<uint8_t>(codes);
        segment.pairs = size_t(codes.shape(1));
        segment.offsets = data<int64_t>(offsets);
        segment.counts = data<int32_t>(counts);
        segment.places = data<uint32_t>(rows);
        segment.row_at = nullptr;
        segment.bias_top = finite(bias_top, "bias_top");
        segment.bias_step = positive(bias_step, "bias_step", true);
        segment.rescore = rescore ? data<uint8_t>(*rescore) : nullptr;
        segment.rescore_bias = rescore_bias ? data<float>(*rescore_bias) : nullptr;
        segment.vectors = vectors.data();
        segment.half = half;
        number(data<int64_t>(seqs), n);
        segment.n = size_t(n);
        rescore_dims = rescore ? size_t(rescore->shape(1)) : 0;
        dims = size_t(vectors.shape(1));
        lists = size_t(counts.shape(0));
        check_lists(segment.offsets, segment.counts, segment.places, lists, total, segment.n);
        kept = {codes, offsets, counts, rows, vectors, seqs};
        for (const auto& one : {rescore, rescore_bias})
            if (one) kept.push_back(*one);
        if (gathered) use_gathered(size_t(total), rescore || rescore_bias);
        allow(allowed);
    }

    // Sequence numbers without a gap need no look at memory.
    void number(const int64_t* seqs, py::ssize_t n) {
        segment.first_seq = n ? seqs[0] : 0;
        py::ssize_t i = 0;
        while (i < n && seqs[i] == segment.first_seq + i) ++i;
        segment.seqs = i < n ? seqs : nullptr;
    }

    // The same segment with another mask: what a deletion needs, with nothing checked twice.
    SegmentHolder with_allowed(std::optional<py::array> allowed) const {
        SegmentHolder copy = *this;
        copy.allow(allowed);
        return copy;
    }

   private:
    void use_gathered(size_t total, bool twice) {
        if (twice || gathered->n != segment.n || gathered->total != total)
            throw py::value_error("gathered int8 rows stand in place of rescore and rescore_bias, for the same " +
                                  std::to_string(segment.n) + " rows in " + std::to_string(total) + " postings; got " +
                                  std::to_string(gathered->n) + " in " + std::to_string(gathered->total));
        rescore_dims = gathered->dims;
        segment.places = GatheredHolder::numbers(*gathered->places);
        segment.row_at = GatheredHolder::numbers(*gathered->row_at);
        segment.rescore = gathered->rescore->data();
        segment.rescore_bias = gathered->bias.capacity() ? gathered->bias.data() : nullptr;
    }

    void allow(const std::optional<py::array>& allowed) {
        segment.allowed = nullptr;
        mask = allowed;
        if (!allowed) return;
        check(*allowed, "allowed", is_dtype(*allowed, 'b', 1) ? 'b' : 'u', 1, "uint8 or bool", {py::ssize_t(segment.n)});
        segment.allowed = data<uint8_t>(*allowed);
    }
};

}  // namespace nestvec
