// The lists that a learned tree chooses. reference_router.py says what each step means.

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "query.hpp"

namespace nestvec {

namespace {

// Among the best lists of a search with at most so many probes, count is kept of which they are.
constexpr size_t kLed = 16;

// How far below the best node others are put in order at first, and by what that grows: a sort of few is soon done.
constexpr float kNear = 1.0f, kWider = 1.5f;

// The least of the best `most` of all scores so far, once there are so many; `leading` holds those, least first as a heap.
float led_from(const float* scores, size_t n, size_t most, std::vector<float>& leading) {
    const auto above = std::greater<float>();
    for (size_t i = 0; i < n; ++i) {
        if (leading.size() == most) {
            if (!(scores[i] > leading.front())) continue;
            std::pop_heap(leading.begin(), leading.end(), above);
            leading.pop_back();
        }
        leading.push_back(scores[i]);
        std::push_heap(leading.begin(), leading.end(), above);
    }
    return leading.size() == most ? leading.front() : -std::numeric_limits<float>::infinity();
}

}  // namespace

// Brings n numbers into the form that the layers read: bytes in s.query8.
Searcher::Input Searcher::read_in(const float* x, size_t n, const Layer& layer, Scratch& s) const {
    const size_t padded = 4 * layer.groups;
    int8_t* bytes = sized(s.query8, padded);
    const float step = usable(primitives_.peak(x, n) / 127.0f);
    const int32_t shift = 128 * primitives_.quantise(x, n, step, bytes);
    std::fill(bytes + n, bytes + padded, int8_t(0));
    return Input{step, shift};
}

// The outputs of the nodes below one parent; the greatest. `next`: the parent that is asked for after it.
float Searcher::layer_out(const Layer& layer, size_t parent, size_t next, const Input& input, Scratch& s, float* out) const {
    int32_t* dots = sized(s.dots, layer.tiles * layer.width);
    const size_t family = layer.tiles * layer.groups * layer.width * 4;
    const uint8_t *codes = layer.codes + parent * family, *ahead = layer.codes + next * family;
    if (layer.width < kTile)
        primitives_.family_dots(codes, layer.width, layer.groups, s.query8.data(), ahead, dots);
    else
        primitives_.centroid_dots(codes, layer.siblings, layer.groups, s.query8.data(), 1, dots);
    return primitives_.list_scores(dots, layer.siblings, input.shift, layer.half_scale * input.step,
                                   layer.bias + parent * layer.siblings, out);
}

// The numbers that the heads see: the query's first, plus what the hidden layer makes of them.
const float* Searcher::router_features(const float* vector, const Router& router, Scratch& s) const {
    if (router.features.empty()) return vector;
    const Layer &first = router.features[0], &second = router.features[1];
    float* hidden = sized(s.hidden, first.nodes);
    layer_out(first, 0, 0, read_in(vector, router.dims, first, s), s, hidden);
    for (size_t i = 0; i < first.nodes; ++i) hidden[i] = hidden[i] > 0.0f ? hidden[i] : 0.0f;
    float* seen = sized(s.seen, router.dims);
    layer_out(second, 0, 0, read_in(hidden, first.nodes, second, s), s, seen);
    for (size_t i = 0; i < router.dims; ++i) seen[i] = vector[i] + seen[i];
    return seen;
}

// Whether lists that score above that hold so many postings.
bool Searcher::filled(const Scored& lists, float above, int64_t wanted, Scratch& s) const {
    uint32_t* places = sized(s.positions, lists.count);
    const size_t found = primitives_.at_least(lists.scores, lists.count, above, places);
    for (size_t i = 0; i < found && wanted > 0; ++i)
        if (lists.scores[places[i]] > above) wanted -= postings_[lists.numbers[places[i]]];
    return wanted <= 0;
}

// The lists that a search may visit, each with its log-probability less what is the same for all.
Searcher::Scored Searcher::tree_scores(const float* vector, size_t k, const Plan& plan, Scratch& s) const {
    const Router& router = *model_.router;
    const Layer& root = router.heads[0];
    const float* seen = router_features(vector, router, s);
    const Input input = read_in(seen, router.dims, root, s);
    const float best = layer_out(root, 0, 0, input, s, sized(s.level, root.nodes));
    Scored found{s.level.data(), nullptr, root.nodes, best};
    for (size_t level = 1; level < router.heads.size(); ++level) {
        found = level_below(found, level, input, k, plan, s);
        s.level.swap(s.below);
        s.level_numbers.swap(s.below_numbers);
    }
    return found;
}

// The children of the best nodes of a level, in s.below: of as many as the beam is wide, and of those above lists no more
// once a node is less probable than all lists to visit.
Searcher::Scored Searcher::level_below(const Scored& above, size_t level, const Input& input, size_t k, const Plan& plan,
                                       Scratch& s) const {
    const Layer& layer = model_.router->heads[level];
    const bool last = level + 1 == model_.router->heads.size();
    const size_t siblings = layer.siblings, parents = layer.nodes / siblings, below = model_.partitions / parents;
    const size_t reach = std::max(model_.router->beam, (std::min(plan.probes, model_.partitions) + below - 1) / below);
    const size_t width = std::min(reach, parents), start = s.lists.size();
    float* scores = sized(s.below, width * siblings);
    uint32_t* numbers = sized(s.below_numbers, width * siblings);
    Scored read{scores, numbers, 0, -std::numeric_limits<float>::infinity()};
    float led = read.best;
    s.leading.clear();
    size_t i = 0;
    const auto enough = [&](float score) {
        return score < led || (score < read.best - plan.probe_margin && filled(read, score, kPostingsPerHit * int64_t(k), s));
    };
    // Those within the margin are read, those beyond it rarely: they are put in order as far as they are asked for.
    float within = last ? std::max(plan.probe_margin, kNear) : std::numeric_limits<float>::infinity();
    for (size_t found = 0; i == found && i < width; within *= kWider) {
        s.lists.resize(start);
        found = list_keys(above, above.best - within, width, s);
        const uint64_t* keys = s.lists.data() + start;
        for (; i < found && !(last && enough(key_score(keys[i]))); ++i) {
            const uint32_t parent = uint32_t(keys[i]), next = uint32_t(keys[std::min(i + 1, found - 1)]);
            float* out = scores + read.count;
            read.best = std::max(read.best, children(layer, parent, next, key_score(keys[i]), input, s, out));
            for (uint32_t j = 0; j < siblings; ++j) numbers[read.count + j] = parent * uint32_t(siblings) + j;
            read.count += siblings;
            if (last && plan.probes <= kLed) led = led_from(out, siblings, plan.probes, s.leading);
        }
        if (std::isinf(within)) break;
    }
    s.lists.resize(start);
    return read;
}

// out[j] = the parent's score + the log-probability of its child j among its children. The greatest.
float Searcher::children(const Layer& layer, size_t parent, size_t next, float score, const Input& input, Scratch& s,
                         float* out) const {
    const float most = layer_out(layer, parent, next, input, s, out);
    double lanes[kLanes] = {};
    primitives_.add_exps(out, layer.siblings, most, lanes);
    const float total = most + float(std::log(add_pairwise(lanes)));
    for (size_t j = 0; j < layer.siblings; ++j) out[j] = (score + out[j]) - total;
    return (score + most) - total;
}

// The keys of the lists to visit get the scores of their centroids: codes are of what a row has beyond its centroid.
void Searcher::rescore_lists(const float* vector, Scratch& s, Route& route) const {
    const Router& router = *model_.router;
    uint64_t* keys = s.lists.data() + route.start;
    int64_t* rows = sized(s.rows, route.lists);
    for (size_t i = 0; i < route.lists; ++i) rows[i] = int64_t(uint32_t(keys[i]));
    double* query64 = sized(s.query64, router.covered);
    std::copy(vector, vector + router.covered, query64);
    double* totals = sized(s.totals, route.lists);
    std::fill_n(totals, route.lists, 0.0);
    band_scores(BandTask{query64, router.centroids, false, router.covered, rows, route.lists, 0, router.covered, false,
                         totals, nullptr},
                isa_);
    route.best = -std::numeric_limits<float>::infinity();
    for (size_t i = 0; i < route.lists; ++i) {
        const float dot = float(totals[i]);
        const float score = model_.l2 ? 2.0f * dot + model_.centroid_bias[rows[i]] : dot;
        keys[i] = make_key(score, uint32_t(rows[i]));
        route.best = std::max(route.best, score);
    }
}

}  // namespace nestvec
