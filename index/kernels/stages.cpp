// The stages: int8 prefixes, stored prefixes, and the exact end.

#include <cmath>

#include "query.hpp"

namespace nestvec {

namespace {

constexpr float kWeightSteps = 8000.0f;  // 64 * 125: high parts stay within a signed byte

}  // namespace

// The query's weights for int8 rows, in two signed bytes each.
void Searcher::weigh(Query& query) const {
    Scratch& s = query.s;
    const size_t width = model_.rescore_dims, present = std::min(width, model_.dims);
    float* weights = sized(s.weights, width);
    for (size_t j = 0; j < present; ++j) weights[j] = query.vector[j] * model_.rescore_scale[j];
    std::fill(weights + present, weights + width, 0.0f);
    const float most = primitives_.peak(weights, width);
    query.factor8 = usable(most / kWeightSteps);
    primitives_.split(weights, width, query.factor8, sized(s.high, width), sized(s.low, width));
}

// The scores of the rows alive by their int8 prefixes, in s.row_scores; the sums so far are in s.sums.
void Searcher::int8_scores(Query& query, const Stage& stage, size_t from) const {
    Scratch& s = query.s;
    const size_t width = stage.dims - from, stride = model_.rescore_dims;
    const int8_t *high = s.high.data() + from, *low = s.low.data() + from;
    int32_t shift = 0;
    for (size_t j = 0; j < width; ++j) shift += 64 * high[j] + low[j];
    shift *= 128;
    const uint8_t** rows = sized(s.addresses, query.rows);
    for (size_t i = 0; i < query.rows; ++i) {
        const uint64_t key = s.keys[i];
        rows[i] = segments_[size_t(key >> 32)].rescore + size_t(uint32_t(key)) * stride + from;
    }
    uint32_t* sums = sized(s.sums, query.rows);
    if (from == 0) std::fill(sums, sums + query.rows, 0);
    primitives_.add_dots(rows, query.rows, high, low, width, sums);
    float* scores = sized(s.row_scores, query.rows);
    for (size_t i = 0; i < query.rows; ++i) {
        sums[i] -= uint32_t(shift);
        scores[i] = float(int32_t(sums[i])) * query.factor8;
        if (model_.l2)
            scores[i] = 2.0f * scores[i] + segments_[size_t(s.keys[i] >> 32)].rescore_bias[uint32_t(s.keys[i])];
    }
}

void Searcher::int8_stage(Query& query, const Stage& stage, size_t from) const {
    int8_scores(query, stage, from);
    Scratch& s = query.s;
    const float* scores = s.row_scores.data();
    uint32_t* sums = s.sums.data();
    const float margin = stage.margin * query.route.unit;  // NaN (no margin, no unit) cuts nothing
    query.rows = cut(scores, s.keys.data(), [this](uint64_t key) { return row_key(key); }, query.rows, query.k, std::max(stage.keep, query.k), margin, s.sorted, s.order,
                     [&](size_t to, size_t at) {
                         const Segment& segment = segments_[size_t(s.keys[at] >> 32)];
                         if (segment.row_at) NESTVEC_PREFETCH(segment.row_at + uint32_t(s.keys[at]));  // for stored stages
                         s.keys[to] = s.keys[at];
                         sums[to] = sums[at];
                     });
}

// Adds dims from..to-1 of the stored vectors to the running totals of the rows alive.
void Searcher::add_band(Query& query, size_t from, size_t to, bool norms) const {
    Scratch& s = query.s;
    int64_t* rows = sized(s.rows, query.rows);
    for (size_t i = 0; i < query.rows; ++i) rows[i] = int64_t(uint32_t(s.keys[i]));
    for (size_t start = 0, end = 0; start < query.rows; start = end) {
        const size_t number = size_t(s.keys[start] >> 32);
        while (end < query.rows && size_t(s.keys[end] >> 32) == number) ++end;
        const Segment& segment = segments_[number];
        band_scores(BandTask{s.query64.data() + from, segment.vectors, segment.half, model_.dims, rows + start,
                             end - start, from, to, model_.l2, s.totals.data() + start,
                             norms ? s.squares.data() + start : nullptr},
                    isa_);
    }
}

// The scores of the rows alive by their stored prefixes, in s.row_scores; the sums so far are in s.totals and s.squares.
void Searcher::stored_scores(Query& query, const Stage& stage, size_t from) const {
    Scratch& s = query.s;
    add_band(query, from, stage.dims, query.plan.cosine);
    float* scores = sized(s.row_scores, query.rows);
    for (size_t i = 0; i < query.rows; ++i) {
        const double square = query.plan.cosine ? s.squares[i] : 0.0;
        scores[i] = query.plan.cosine ? float(s.totals[i] / std::sqrt(square > 0.0 ? square : 1.0)) : float(s.totals[i]);
    }
}

void Searcher::stored_stage(Query& query, const Stage& stage, size_t from) const {
    stored_scores(query, stage, from);
    Scratch& s = query.s;
    const float* scores = s.row_scores.data();
    const float margin = stage.margin * query.route.unit;  // NaN (no margin, no unit) cuts nothing
    query.rows = cut(scores, s.keys.data(), [](uint64_t key) { return key; }, query.rows, query.k, std::max(stage.keep, query.k), margin, s.sorted, s.order,
                     [&](size_t to, size_t at) {
                         s.keys[to] = s.keys[at];
                         s.totals[to] = s.totals[at];
                         s.squares[to] = s.squares[at];
                     });
}

// Stored stages and the exact end go by rows, not by places, and start with empty sums.
void Searcher::start_stored(Query& query) const {
    Scratch& s = query.s;
    for (size_t i = 0; i < query.rows; ++i) {
        s.keys[i] = row_key(s.keys[i]);
        segments_[size_t(s.keys[i] >> 32)].fetch_stored(uint32_t(s.keys[i]), model_.dims);
    }
    double* query64 = sized(s.query64, model_.dims);
    std::copy(query.vector, query.vector + model_.dims, query64);
    std::fill_n(sized(s.totals, query.rows), query.rows, 0.0);
    std::fill_n(sized(s.squares, query.rows), query.rows, 0.0);
}

void Searcher::finish(Query& query, size_t from) const {
    Scratch& s = query.s;
    if (from < model_.dims) add_band(query, from, model_.dims, false);
    const size_t rows = query.rows, kept = std::min(query.k, rows), shown = std::min(kept + 1, rows);
    uint64_t *order = sized(s.order, padding(rows)), *other = sized(s.merged, padding(rows));
    const auto number = [&] {
        for (size_t i = 0; i < rows; ++i) order[i] = make_key(float(s.totals[i]), uint32_t(i));
    };
    number();
    const bool few = rows <= 4 * kept;  // to sort them all costs less than to find the best
    if (!few) std::nth_element(order, order + kept, order + rows);  // the one behind the kept is the next best
    uint64_t* best = merge_sort(order, few ? rows : shown, other);
    const auto seq = [&](uint64_t key) {
        const uint64_t row = s.keys[uint32_t(key)];
        return segments_[size_t(row >> 32)].seq(uint32_t(row));
    };
    const auto tied = [](uint64_t a, uint64_t b) { return (a ^ b) >> 32 == 0; };
    if (std::adjacent_find(best, best + shown, tied) != best + shown) {  // rare, and costs more
        const auto better = [&](uint64_t a, uint64_t b) { return tied(a, b) ? seq(a) < seq(b) : a < b; };
        number();
        best = order;
        std::partial_sort(best, best + kept, best + rows, better);
    }
    s.hits.clear();
    for (size_t i = 0; i < kept; ++i) s.hits.push_back(Hit{float(s.totals[uint32_t(best[i])]), seq(best[i])});
}

}  // namespace nestvec
