// Route and scan: which lists a query visits, and which rows their codes hand on.

#include "query.hpp"

#include <chrono>
#include <cmath>
#include <limits>

namespace nestvec {

namespace {

constexpr float kDeficitAtMiddle = 160.0f;  // where the middle of all tables together lies on the scale of 255
constexpr size_t kBlocksAhead = 2;          // of codes, fetched while another is summed
constexpr float kWidest = 32;               // margins: beyond so many all lists are looked at
constexpr size_t kExpected = 12;            // candidates of a recording, likewise

using Clock = std::chrono::steady_clock;

class Stopwatch {
   public:
    explicit Stopwatch(double* micros) : micros_(micros) {
        if (micros_) started_ = Clock::now();
    }
    void lap() {
        if (!micros_) return;
        const auto now = Clock::now();
        *micros_++ = std::chrono::duration<double, std::micro>(now - started_).count();
        started_ = now;
    }

   private:
    double* micros_;
    Clock::time_point started_;
};

}  // namespace

Searcher::Searcher(const Model& model, std::vector<Segment> segments, Isa isa)
    : model_(model), segments_(std::move(segments)), isa_(isa), primitives_(primitives(isa)) {
    bias_top_ = segments_.empty() ? 0.0f : segments_[0].bias_top;
    bias_step_ = 0.0f;
    for (const Segment& segment : segments_) {
        bias_top_ = std::max(bias_top_, segment.bias_top);
        bias_step_ = std::max(bias_step_, segment.bias_step);
    }
    postings_.assign(model_.partitions, 0);
    for (const Segment& segment : segments_)
        for (size_t list = 0; list < model_.partitions; ++list) postings_[list] += segment.counts[list];
}

// ---- route ------------------------------------------------------------------------------------------------------

// The score unit of a query; false where it is not finite.
bool Searcher::measure(const float* vector, Route& route) const {
    double lanes[kLanes] = {};
    primitives_.squares(vector, model_.centre, model_.dims, lanes);
    route.unit = float(std::sqrt(add_pairwise(lanes)) * model_.spread);
    return std::isfinite(route.unit);
}

bool Searcher::route(const float* vectors, size_t count, size_t k, const Plan& plan, Scratch& s, Route* routes) const {
    if (model_.router) {
        for (size_t q = 0; q < count; ++q, vectors += model_.dims) {
            if (!measure(vectors, routes[q])) return false;
            choose_lists(tree_scores(vectors, k, plan, s), plan.probe_margin, k, plan, s, routes[q]);
            rescore_lists(vectors, s, routes[q]);
        }
        return true;
    }
    const size_t covered = model_.covered(), padded = 4 * model_.groups, width = model_.tiles * kTile;
    int8_t* query8 = sized(s.query8, count * padded);
    float scales[kTogether];
    int32_t shifts[kTogether];
    for (size_t q = 0; q < count; ++q, query8 += padded) {
        const float* vector = vectors + q * model_.dims;
        if (!measure(vector, routes[q])) return false;
        const float most = primitives_.peak(vector, covered), step = usable(most / 127.0f);
        shifts[q] = 128 * primitives_.quantise(vector, covered, step, query8);
        scales[q] = model_.centroid_scale * step;
        std::fill(query8 + covered, query8 + padded, int8_t(0));
    }
    int32_t* dots = sized(s.dots, count * width);
    primitives_.centroid_dots(model_.centroid_codes, model_.partitions, model_.groups, s.query8.data(), count, dots);
    float* scores = sized(s.scores, width);
    for (size_t q = 0; q < count; ++q) {
        const float best = primitives_.list_scores(dots + q * width, model_.partitions, shifts[q], scales[q],
                                                   model_.l2 ? model_.centroid_bias : nullptr, scores);
        const Scored all{scores, nullptr, model_.partitions, best};
        choose_lists(all, plan.probe_margin * routes[q].unit, k, plan, s, routes[q]);
    }
    return true;
}

// Appends to s.lists the keys of all lists with a score of at least `least`, the best `most` of them in order; how many.
size_t Searcher::list_keys(const Scored& lists, float least, size_t most, Scratch& s) const {
    uint32_t* places = sized(s.positions, lists.count);
    const size_t found = primitives_.at_least(lists.scores, lists.count, least, places), start = s.lists.size();
    s.lists.resize(start + found);
    uint64_t* keys = s.lists.data() + start;
    for (size_t i = 0; i < found; ++i)
        keys[i] = make_key(lists.scores[places[i]], lists.numbers ? lists.numbers[places[i]] : places[i]);
    if (most < found) std::nth_element(keys, keys + most, keys + found);
    primitives_.sort_keys(keys, std::min(most, found));
    return std::min(most, found);
}

// Appends the keys of the lists to visit, best first, to s.lists. `reach`: the probe margin in the scores' own scale.
void Searcher::choose_lists(const Scored& lists, float reach, size_t k, const Plan& plan, Scratch& s, Route& route) const {
    const float all = -std::numeric_limits<float>::infinity(), least = std::isinf(plan.probe_margin) ? all : lists.best - reach;
    const int64_t wanted = kPostingsPerHit * int64_t(k);
    route.best = lists.best;
    route.start = s.lists.size();
    route.lists = list_keys(lists, least, plan.probes, s);
    int64_t postings = 0;
    for (size_t i = 0; i < route.lists; ++i) postings += postings_[uint32_t(s.lists[route.start + i])];
    // Too few to choose from: those of twice the reach, of four times, and so on.
    const size_t most = std::min(plan.probes, lists.count);
    for (float wider = 2 * reach; postings < wanted && route.lists < most && !std::isinf(plan.probe_margin); wider *= 2) {
        const float from = wider > 0 && wider < kWidest * reach ? lists.best - wider : all;
        s.lists.resize(route.start);
        const size_t found = list_keys(lists, from, most, s);
        for (; route.lists < found && postings < wanted; ++route.lists)
            postings += postings_[uint32_t(s.lists[route.start + route.lists])];
        if (from == all) break;
    }
    s.lists.resize(route.start + route.lists);
    route.postings = postings;
}

void Searcher::make_tables(Query& query) const {
    Scratch& s = query.s;
    const size_t blocks = model_.blocks, coded = blocks * model_.width, entries = blocks * kCentres;
    const float* vector = query.vector;
    if (coded > model_.dims) {  // the last block reaches past the end
        float* padded = sized(s.weights, coded);
        std::copy(vector, vector + model_.dims, padded);
        std::fill(padded + model_.dims, padded + coded, 0.0f);
        vector = padded;
    }
    float *products = sized(s.products, entries), *greatest = sized(s.greatest, blocks), *least = sized(s.least, blocks);
    primitives_.products(vector, model_.codebook, blocks, model_.width, model_.l2 ? 2.0f : 1.0f, products, greatest, least);
    float range = 0.0f;
    for (size_t m = 0; m < blocks; ++m) range += greatest[m] - least[m];
    query.inverse = 1.0f / usable((0.5f * range + 127.5f * bias_step_) / kDeficitAtMiddle);
    const size_t even = blocks + blocks % 2;
    uint8_t* table = sized(s.tables, (even + 2) * kCentres);
    primitives_.entries(products, greatest, blocks, query.inverse, table);
    std::fill(table + entries, table + even * kCentres, uint8_t(0));
}

// ---- scan -------------------------------------------------------------------------------------------------------

// The k-th least deficit of a first list, while there is nothing to compare with; 255 where it has fewer rows.
uint32_t Searcher::kth_least(const Query& query, const Segment& segment, const uint32_t* places, size_t count) const {
    const uint8_t* deficits = query.s.deficits.data();
    uint32_t low = 0, high = 255;  // it lies between
    if (segment.allowed) {
        uint32_t counts[256] = {};
        for (size_t j = 0; j < count; ++j) counts[deficits[j]] += segment.allowed[segment.row(places[j])] != 0;
        for (size_t sum = counts[0]; sum < query.k && low < high;) sum += counts[++low];
        return low;
    }
    while (low < high) {
        const uint32_t middle = (low + high) / 2;
        if (primitives_.count_within(deficits, count, uint8_t(middle)) >= query.k)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

void Searcher::scan_list(Query& query, size_t rank, size_t number) const {
    Scratch& s = query.s;
    const uint64_t key = query.lists[rank];
    const uint32_t list = uint32_t(key);
    const Segment& segment = segments_[number];
    const size_t start = size_t(segment.offsets[list]), count = size_t(segment.counts[list]);
    if (count == 0) return;
    const float behind = ((query.route.best + bias_top_) - (key_score(key) + segment.bias_top)) * query.inverse;
    const uint32_t offset = behind < float(kMaxOffset) ? uint32_t(std::max(std::nearbyintf(behind), 0.0f)) : kMaxOffset;  // NaN: the last
    const size_t blocks = (count + kBlock - 1) / kBlock;
    const uint8_t* codes = segment.codes + start * segment.pairs;
    const uint8_t* const* ahead = s.blocks.data() + query.block;
    query.block += blocks;
    const uint32_t* places = segment.places + start;
    uint32_t* positions = sized(s.positions, blocks * kBlock);
    uint8_t* deficits = sized(s.deficits, blocks * kBlock);
    size_t found;
    if (s.candidates.enough()) {
        const uint32_t limit = s.candidates.limit();
        if (limit < offset) return;
        found = primitives_.within(codes, blocks, segment.pairs, s.tables.data(), ahead,
                                   uint8_t(std::min<uint32_t>(limit - offset, 255)), positions, deficits);
    } else {
        admit(query);
        primitives_.sum_blocks(codes, blocks, segment.pairs, s.tables.data(), ahead, deficits);
        const uint32_t limit = kth_least(query, segment, places, count) + s.candidates.margin();
        found = primitives_.pick(deficits, count, uint8_t(std::min<uint32_t>(limit, 255)), positions, deficits);
    }
    while (found > 0 && positions[found - 1] >= count) --found;  // padding follows the last posting
    for (size_t i = 0; i < found; ++i) NESTVEC_PREFETCH(places + positions[i]);
    admit(query);
    s.positions.swap(s.pending_positions);
    s.deficits.swap(s.pending_deficits);
    query.pending = Pending{places, found, offset, number, rank};
    if (!s.candidates.enough()) admit(query);
}

// Adds what the list before found: by now the places of its rows, fetched then, have arrived. `note` is told each of them.
// `many`: so many candidates that they leave the cache.
template <bool many, class Note>
NESTVEC_INLINE void Searcher::admit_each(Query& query, const Note& note) const {
    Scratch& s = query.s;
    const Pending& pending = query.pending;
    const Segment& segment = segments_[pending.segment];
    const uint64_t high = uint64_t(pending.segment) << 32;
    const uint32_t limit = s.candidates.limit();
    for (size_t i = 0; i < pending.found; ++i) {
        if (many && i + kExpected < pending.found) s.candidates.expect(high | pending.places[s.pending_positions[i + kExpected]]);
        const uint32_t place = pending.places[s.pending_positions[i]], deficit = pending.offset + s.pending_deficits[i];
        if (deficit > limit || (segment.allowed && !segment.allowed[segment.row(place)])) continue;
        note(s.candidates.add(high | place, deficit), deficit);
    }
    s.candidates.settle();
    query.pending.found = 0;
}

void Searcher::admit(Query& query) const {
    if (query.pending.found == 0) return;
    if (!query.recording) return admit_each<false>(query, [](uint32_t, uint32_t) {});
    Recording& recording = *query.recording;
    Scratch& s = query.s;
    recording.ends.resize(query.pending.rank + 1, uint32_t(s.recorded_rows.size()));
    admit_each<true>(query, [&](uint32_t row, uint32_t deficit) {
        if (s.candidates.deficit(row) < deficit) return;  // a list before has it closer
        s.recorded_rows.push_back(row);
        s.recorded_deficits.push_back(uint16_t(deficit));
    });
}

// The addresses of all blocks to come, in order, shifted by kBlocksAhead: what to fetch while each is summed.
void Searcher::schedule(Query& query) const {
    Scratch& s = query.s;
    s.blocks.clear();
    for (size_t i = 0; i < query.route.lists; ++i)
        for (const Segment& segment : segments_) {
            const uint32_t list = uint32_t(query.lists[i]);
            const size_t blocks = (size_t(segment.counts[list]) + kBlock - 1) / kBlock, bytes = kBlock * segment.pairs;
            const uint8_t* codes = segment.codes + size_t(segment.offsets[list]) * segment.pairs;
            for (size_t b = 0; b < blocks; ++b) s.blocks.push_back(codes + b * bytes);
        }
    if (s.blocks.empty()) return;
    for (size_t b = 0; b < std::min(kBlocksAhead, s.blocks.size()); ++b)
        for (size_t byte = 0; byte < kBlock * segments_[0].pairs; byte += 64) NESTVEC_PREFETCH(s.blocks[b] + byte);
    s.blocks.erase(s.blocks.begin(), s.blocks.begin() + std::ptrdiff_t(std::min(kBlocksAhead, s.blocks.size() - 1)));
    s.blocks.insert(s.blocks.end(), kBlocksAhead, s.blocks.back());
}

// The table of the pair that holds l2's bias, whose step is the segment's own.
void Searcher::make_bias_table(Query& query, float step) const {
    uint8_t* table = query.s.tables.data() + (model_.blocks + model_.blocks % 2) * kCentres;
    for (size_t v = 0; v < kCentres; ++v) {
        table[v] = uint8_t(std::min(255.0f, std::nearbyintf(float(v) * step * query.inverse)));
        table[kCentres + v] = uint8_t(std::min(255.0f, std::nearbyintf(float(16 * v) * step * query.inverse)));
    }
}

// segment << 32 | row of segment << 32 | place.
uint64_t Searcher::row_key(uint64_t key) const {
    return (key >> 32 << 32) | segments_[size_t(key >> 32)].row(uint32_t(key));
}

// Hands the rows of all lists to s.candidates.
void Searcher::scan(Query& query) const {
    Scratch& s = query.s;
    const uint32_t margin = deficits_in(query.plan.margin, query.route.unit, query.inverse);
    s.candidates.start(query.k, std::max(query.plan.keep, query.k), margin);
    float tabled = -1.0f;  // the step that the bias table is of: no segment's
    for (size_t i = 0; i < query.route.lists; ++i)
        for (size_t number = 0; number < segments_.size(); ++number) {
            if (model_.l2 && segments_[number].bias_step != tabled)
                make_bias_table(query, tabled = segments_[number].bias_step);
            scan_list(query, i, number);
        }
    admit(query);
}

void Searcher::shortlist(Query& query) const {
    Scratch& s = query.s;
    s.candidates.cut(std::max(query.plan.keep, query.k), [this](uint64_t key) { return row_key(key); }, s.keys, s.order);
    query.rows = s.keys.size();
}

// ---- all of it --------------------------------------------------------------------------------------------------

bool Searcher::search(const float* vector, size_t k, const Plan& plan, Scratch& s, Counters counters) const {
    Stopwatch watch(counters.micros);
    s.hits.clear();
    s.lists.clear();
    Route route;
    if (!this->route(vector, 1, k, plan, s, &route)) return false;
    watch.lap();
    answer(vector, k, plan, route, s.lists.data(), s, Counters{counters.counts, counters.micros ? counters.micros + 1 : nullptr});
    return true;
}

void Searcher::answer(const float* vector, size_t k, const Plan& plan, const Route& route, const uint64_t* lists,
                      Scratch& s, Counters counters) const {
    Stopwatch watch(counters.micros);
    s.hits.clear();
    Query query{vector, k, plan, s, route, lists};
    schedule(query);
    make_tables(query);
    scan(query);
    shortlist(query);
    watch.lap();
    int64_t* counts = counters.counts;
    if (counts) {
        *counts++ = int64_t(route.lists);
        *counts++ = route.postings;
        *counts++ = int64_t(query.rows);
    }
    size_t int8_from = 0, stored_from = 0;
    bool stored = false;
    const auto by_rows = [&] {
        stored = true;
        start_stored(query);
        if (segments_.size() > 1) std::sort(s.keys.begin(), s.keys.begin() + query.rows);  // those of a segment together
    };
    for (const Stage& stage : plan.stages) {
        if (stage.int8) {
            if (int8_from == 0) weigh(query);
            int8_stage(query, stage, int8_from);
            int8_from = stage.dims;
        } else {
            if (!stored) by_rows();
            stored_stage(query, stage, stored_from);
            stored_from = stage.dims;
        }
        if (counts) *counts++ = int64_t(query.rows);
        watch.lap();
    }
    if (!stored) by_rows();
    finish(query, stored_from);
    if (counts) *counts = int64_t(s.hits.size());
    watch.lap();
}

}  // namespace nestvec
