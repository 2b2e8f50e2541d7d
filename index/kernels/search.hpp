// One search of posting lists: route, scan, int8 stages, stored stages. reference_search.py says what each step means.
#pragma once

#include "candidates.hpp"
#include "kernels.hpp"
#include "primitives.hpp"

namespace nestvec {

// A layer of a router, as bytes: outputs are sums of weights times inputs, plus a bias. Nodes come in groups of siblings
// that are scored together: the children of one parent.
struct Layer {
    const uint8_t* codes;  // [nodes / siblings, tiles, groups, width, 4]
    size_t nodes, siblings, tiles, groups, width;
    float half_scale;   // of weights: list_scores doubles where there is a bias
    const float* bias;  // [nodes]
};

// A learned tree over the lists.
struct Router {
    size_t dims, beam;            // numbers of a query that it sees; nodes kept after each level but the last
    std::vector<Layer> heads;     // one per level
    std::vector<Layer> features;  // none, or the two layers of the residual that comes first
    const float* centroids;       // [partitions, covered]: what codes are residuals of
    size_t covered;
};

struct Model {
    bool l2;
    size_t dims, partitions, tiles, groups;  // groups of 4 dims that the centroids cover
    const Router* router;                    // or null: the centroids choose the lists
    const uint8_t* centroid_codes;           // [tiles, groups, kTile, 4]
    float centroid_scale;
    const float* centroid_bias;  // [partitions]
    const float* codebook;       // [blocks, width, kCentres]: transposed
    size_t blocks, width;
    const float* rescore_scale;  // [rescore_dims]
    size_t rescore_dims;
    double spread;
    const float* centre;  // [dims]

    size_t covered() const { return std::min(dims, 4 * groups); }  // dims that the centroids see
};

struct Segment {
    const uint8_t* codes;  // [blocks, pairs, kBlock]
    size_t pairs;
    const int64_t* offsets;
    const int32_t* counts;
    const uint32_t* places;     // of the postings: where their int8 rows lie
    const uint32_t* row_at;     // [n]: the row of each place, or null where int8 rows lie in order of rows
    float bias_top, bias_step;
    const uint8_t* rescore;     // [n, rescore_dims], by place, or null
    const float* rescore_bias;  // [n], by place, "l2" only
    const void* vectors;        // [n, dims] of float or Half
    bool half;
    const int64_t* seqs;        // [n], or null where they are first_seq, first_seq + 1 and so on
    int64_t first_seq;
    const uint8_t* allowed;  // [n], or null
    size_t n;

    uint32_t row(uint32_t place) const { return row_at ? row_at[place] : place; }
    int64_t seq(uint32_t row) const { return seqs ? seqs[row] : first_seq + int64_t(row); }

    // The start of a stored row. What counts is the translation of its address, which takes as long as the bytes.
    void fetch_stored(uint32_t row, size_t dims) const {
        NESTVEC_PREFETCH(static_cast<const char*>(vectors) + size_t(row) * dims * (half ? 2 : 4));
    }
};

struct Stage {
    size_t dims, keep;
    float margin;
    bool int8;
};

struct Plan {
    size_t probes;
    float probe_margin;
    size_t keep;
    float margin;
    std::vector<Stage> stages;
    bool cosine;
};

constexpr int64_t kPostingsPerHit = 4;  // that the lists to visit must hold, whatever the margin

// Where a query goes: its score unit, and its lists, whose keys are at `start` of the buffer that they were appended to.
struct Route {
    float unit, best;
    size_t start, lists;
    int64_t postings;  // of those lists
};

// A margin in table steps.
inline uint32_t deficits_in(float margin, float unit, float inverse) {
    const float reach = std::floor(margin * unit * inverse), most = float(1 << 20);
    return reach < most ? uint32_t(reach) : 1 << 20;  // NaN (no margin, no unit) is no cut too
}

struct Hit {
    float score;
    int64_t seq;
};

struct Recording;

// Buffers of one thread; they grow to what its queries need and stay.
struct Scratch {
    std::vector<int8_t> query8, high, low;
    std::vector<int32_t> dots;
    std::vector<uint32_t> sums;
    std::vector<float> scores, products, greatest, least, weights, row_scores, sorted, hidden, seen, level, below, leading;
    std::vector<uint64_t> lists, keys, order, merged;
    std::vector<uint8_t> tables, deficits, pending_deficits;
    std::vector<uint32_t> positions, pending_positions, level_numbers, below_numbers, recorded_rows;
    std::vector<uint16_t> recorded_deficits;
    std::vector<const uint8_t*> blocks, addresses;
    std::vector<double> query64, totals, squares;
    std::vector<int64_t> rows;
    std::vector<Hit> hits;
    Candidates candidates;
};

// What a search did, where somebody asked.
struct Counters {
    int64_t* counts = nullptr;  // lists, codes, shortlist, rows after each stage, hits
    double* micros = nullptr;   // route, scan, each stage, final
};

class Searcher {
   public:
    Searcher(const Model& model, std::vector<Segment> segments, Isa isa);

    // The hits, best first, are in scratch.hits. Returns false where the query is not finite.
    bool search(const float* query, size_t k, const Plan& plan, Scratch& scratch, Counters counters) const;

    // The two halves of a search, for batches. `route` takes 1..kTogether queries, one after another, and appends the
    // lists to visit to scratch.lists; `answer` takes them from wherever the caller put them.
    bool route(const float* queries, size_t count, size_t k, const Plan& plan, Scratch& scratch, Route* routes) const;
    void answer(const float* query, size_t k, const Plan& plan, const Route& route, const uint64_t* lists,
                Scratch& scratch, Counters counters) const;

    // An answer whose cuts are not made but recorded; see recording.hpp.
    void record(const float* query, size_t k, const Plan& plan, const Route& route, const uint64_t* lists, Scratch& scratch,
                Recording& recording) const;

    // The same over other segments, which hold of every list the postings of allowed rows alone: see Narrowed. Counts
    // stay those of all postings.
    Searcher over(std::vector<Segment> narrowed) const {
        Searcher made = *this;
        made.segments_ = std::move(narrowed);
        return made;
    }

    const Model& model() const { return model_; }

   private:
    struct Query;
    struct Input {
        float step;
        int32_t shift;
    };
    struct Scored {  // nodes of a tree, or lists, and the best of their scores
        const float* scores;
        const uint32_t* numbers;  // or null: 0, 1 and so on
        size_t count;
        float best;
    };

    Input read_in(const float* x, size_t n, const Layer& layer, Scratch& scratch) const;
    float layer_out(const Layer& layer, size_t parent, size_t next, const Input& input, Scratch& scratch, float* out) const;
    const float* router_features(const float* vector, const Router& router, Scratch& scratch) const;
    Scored tree_scores(const float* vector, size_t k, const Plan& plan, Scratch& scratch) const;
    Scored level_below(const Scored& above, size_t level, const Input& input, size_t k, const Plan& plan, Scratch& scratch) const;
    bool filled(const Scored& lists, float above, int64_t wanted, Scratch& scratch) const;
    float children(const Layer& layer, size_t parent, size_t next, float score, const Input& input, Scratch& scratch,
                   float* out) const;
    void rescore_lists(const float* vector, Scratch& scratch, Route& route) const;
    bool measure(const float* vector, Route& route) const;
    size_t list_keys(const Scored& lists, float least, size_t most, Scratch& scratch) const;
    void choose_lists(const Scored& lists, float reach, size_t k, const Plan& plan, Scratch& scratch, Route& route) const;
    void schedule(Query& query) const;
    void make_tables(Query& query) const;
    void make_bias_table(Query& query, float step) const;
    void weigh(Query& query) const;
    void scan(Query& query) const;
    uint64_t row_key(uint64_t key) const;
    uint32_t kth_least(const Query& query, const Segment& segment, const uint32_t* places, size_t count) const;
    void scan_list(Query& query, size_t rank, size_t number) const;
    void shortlist(Query& query) const;
    template <bool many, class Note>
    void admit_each(Query& query, const Note& note) const;
    void admit(Query& query) const;
    void int8_scores(Query& query, const Stage& stage, size_t from) const;
    void int8_stage(Query& query, const Stage& stage, size_t from) const;
    void start_stored(Query& query) const;
    void stored_scores(Query& query, const Stage& stage, size_t from) const;
    void stored_stage(Query& query, const Stage& stage, size_t from) const;
    void finish(Query& query, size_t from) const;
    void record_stages(Query& query) const;
    void add_band(Query& query, size_t from, size_t to, bool norms) const;

    Model model_;
    std::vector<Segment> segments_;
    Isa isa_;
    const Primitives& primitives_;
    float bias_top_, bias_step_;  // the greatest of all segments
    std::vector<int64_t> postings_;  // of each list, in all segments
};

}  // namespace nestvec
