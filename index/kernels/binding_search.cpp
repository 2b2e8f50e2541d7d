// The Python side of a search: one query, or a batch of them by several threads.

#include <pybind11/stl.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <optional>

#include "binding_recording.hpp"
#include "binding_segment.hpp"
#include "narrowed.hpp"
#include "threads.hpp"

namespace nestvec {
namespace {

constexpr size_t kShare = 16;             // queries of a batch that a thread takes at a time

Scratch& thread_scratch() {
    thread_local Scratch scratch;
    return scratch;
}

class SearcherHolder {
   public:
    SearcherHolder(const ModelHolder& model, const std::vector<SegmentHolder>& segments, py::object model_ref)
        : segments_(segments), model_ref_(std::move(model_ref)) {
        std::vector<Segment> plain;
        const size_t pairs = (model.model.blocks + 1) / 2 + (model.model.l2 ? 1 : 0);
        for (const SegmentHolder& one : segments_) {
            fit("lists", one.lists, model.model.partitions);
            fit("bytes a posting", one.segment.pairs, pairs);
            fit("dims", one.dims, model.model.dims);
            if (one.segment.rescore) fit("int8 dims", one.rescore_dims, model.model.rescore_dims);
            if (one.segment.rescore && (one.segment.rescore_bias != nullptr) != model.model.l2)
                throw py::value_error("rescore_bias belongs to l2, and to nothing else");
            int8_ = int8_ && (one.segment.rescore || one.segment.n == 0);
            plain.push_back(one.segment);
        }
        int8_ = int8_ && model.model.rescore_dims > 0;
        searcher_ = std::make_unique<Searcher>(model.model, std::move(plain), current_isa());
    }

    // The same searcher, with copies of those postings alone that masks let through.
    std::unique_ptr<SearcherHolder> narrowed(py::ssize_t threads) const {
        PlanHolder::positive(threads, "threads");
        auto made = std::make_unique<SearcherHolder>(segments_, model_ref_, int8_);
        std::vector<Segment> plain;
        {
            const py::gil_scoped_release unlocked;
            for (const SegmentHolder& one : segments_) {
                plain.push_back(one.segment);
                if (!one.segment.allowed) continue;
                made->narrowed_.push_back(std::make_unique<Narrowed>(one.segment, one.lists, size_t(threads)));
                plain.back() = made->narrowed_.back()->segment();
            }
        }
        made->searcher_ = std::make_unique<Searcher>(searcher_->over(std::move(plain)));
        return made;
    }

    SearcherHolder(const std::vector<SegmentHolder>& segments, py::object model_ref, bool int8)
        : segments_(segments), model_ref_(std::move(model_ref)), int8_(int8) {}

    py::tuple search(const py::array& query, py::ssize_t k, const PlanHolder& plan, int64_t first) const {
        Scratch& scratch = thread_scratch();
        run(query, k, plan, scratch, Counters{});
        return hits_of(scratch, first);
    }

    py::tuple search_counted(const py::array& query, py::ssize_t k, const PlanHolder& plan) const {
        Scratch& scratch = thread_scratch();
        py::array_t<int64_t> counts(py::ssize_t(4 + plan.plan.stages.size()));
        py::array_t<double> micros(py::ssize_t(3 + plan.plan.stages.size()));
        run(query, k, plan, scratch, Counters{counts.mutable_data(), micros.mutable_data()});
        const py::tuple hits = hits_of(scratch, 0);
        return py::make_tuple(hits[0], hits[1], counts, micros);
    }

    py::tuple search_batch(const py::array& queries, py::ssize_t k, const PlanHolder& plan, py::ssize_t threads) const {
        check(queries, "queries", 'f', 4, "float32", {-1, py::ssize_t(searcher_->model().dims)});
        check_request(k, plan);
        if (threads < 1) throw py::value_error("threads must be >= 1, got " + std::to_string(threads));
        const py::ssize_t b = queries.shape(0), width = py::ssize_t(4 + plan.plan.stages.size());
        py::array_t<int64_t> seqs({b, k}), counts({b, width});
        py::array_t<float> scores({b, k});
        Batch batch{data<float>(queries), size_t(b), size_t(k), plan.plan, seqs.mutable_data(), scores.mutable_data(),
                    counts.mutable_data(), size_t(width)};
        bool good;
        {
            py::gil_scoped_release unlocked;
            good = run_batch(batch, std::max<size_t>(1, std::min<size_t>(size_t(threads), (size_t(b) + kShare - 1) / kShare)));
        }
        if (!good) throw py::value_error("queries must be finite");
        return py::make_tuple(seqs, scores, counts);
    }

    // Of each query the true rows, best first: numbers through all segments, from starts[i] to starts[i + 1].
    std::unique_ptr<RecordingHolder> record(const py::array& queries, py::ssize_t k, const PlanHolder& plan,
                                            const py::array& starts, const py::array& rows, py::ssize_t threads) const {
        check(queries, "queries", 'f', 4, "float32", {-1, py::ssize_t(searcher_->model().dims)});
        check(starts, "starts", 'i', 8, "int64", {queries.shape(0) + 1});
        check(rows, "rows", 'i', 8, "int64", {-1});
        check_request(k, plan);
        PlanHolder::positive(threads, "threads");
        if (searcher_->model().router) throw py::value_error("a search with a router cannot be recorded");
        check_truth(starts, rows);
        auto recorded = std::make_unique<RecordingHolder>(size_t(queries.shape(0)), size_t(k), plan.plan);
        const Batch batch{data<float>(queries), size_t(queries.shape(0)), size_t(k), plan.plan, nullptr, nullptr, nullptr, 0};
        bool good;
        {
            const py::gil_scoped_release unlocked;
            Routed routed;
            good = route_batch(batch, size_t(threads), routed);
            if (good)
                in_order(routed, size_t(threads), [&](size_t i) {
                    Recording& one = (*recorded)[i];
                    const Route& route = routed.routes[i];
                    searcher_->record(batch.queries + i * searcher_->model().dims, batch.k, batch.plan, route,
                                      routed.lists[i]->data() + route.start, thread_scratch(), one);
                    const int64_t* start = data<int64_t>(starts) + i;
                    rank_rows(one, names(data<int64_t>(rows) + start[0], data<int64_t>(rows) + start[1]));
                });
        }
        if (!good) throw py::value_error("queries must be finite");
        return recorded;
    }

   private:
    struct Batch {
        const float* queries;
        size_t n, k;
        const Plan& plan;
        int64_t* seqs;
        float* scores;
        int64_t* counts;
        size_t width;
    };

    static void fit(const char* what, size_t got, size_t want) {
        if (got != want)
            throw py::value_error(std::string("a segment has ") + std::to_string(got) + " " + what + ", the model " +
                                  std::to_string(want) + ": code the segment with this model");
    }

    void check_truth(const py::array& starts, const py::array& rows) const {
        const int64_t* at = data<int64_t>(starts);
        int64_t total = 0;
        for (const SegmentHolder& one : segments_) total += int64_t(one.segment.n);
        if (at[0] != 0 || at[starts.shape(0) - 1] != rows.shape(0) || !std::is_sorted(at, at + starts.shape(0)))
            throw py::value_error("starts must ascend from 0 to the number of rows");
        const int64_t* row = data<int64_t>(rows);
        if (std::any_of(row, row + rows.shape(0), [&](int64_t each) { return each < 0 || each >= total; }))
            throw py::value_error("rows must be from 0 to " + std::to_string(total - 1));
    }

    std::vector<uint64_t> names(const int64_t* row, const int64_t* end) const {
        std::vector<uint64_t> named;
        for (; row < end; ++row) {
            int64_t left = *row;
            size_t number = 0;
            while (left >= int64_t(segments_[number].segment.n)) left -= int64_t(segments_[number++].segment.n);
            named.push_back(uint64_t(number) << 32 | uint64_t(left));
        }
        return named;
    }

    void check_request(py::ssize_t k, const PlanHolder& plan) const {
        PlanHolder::positive(k, "k");
        for (const Stage& stage : plan.plan.stages) {
            if (stage.int8 && !int8_)
                throw py::value_error("the plan has an int8 stage, but a segment has no int8 rows: leave the stage out");
            const size_t most = stage.int8 ? searcher_->model().rescore_dims : searcher_->model().dims;
            if (stage.dims > most)
                throw py::value_error("a stage's dims must be at most " + std::to_string(most) + ", got " +
                                      std::to_string(stage.dims));
        }
    }

    void run(const py::array& query, py::ssize_t k, const PlanHolder& plan, Scratch& scratch, Counters counters) const {
        check(query, "query", 'f', 4, "float32", {py::ssize_t(searcher_->model().dims)});
        check_request(k, plan);
        const float* vector = data<float>(query);
        bool good;
        {
            py::gil_scoped_release unlocked;
            good = searcher_->search(vector, size_t(k), plan.plan, scratch, counters);
        }
        if (!good) throw py::value_error("the query must be finite");
    }

    static py::tuple hits_of(const Scratch& scratch, int64_t first) {
        py::array_t<int64_t> seqs(py::ssize_t(scratch.hits.size()));
        py::array_t<float> scores(py::ssize_t(scratch.hits.size()));
        int64_t* seq = seqs.mutable_data();
        float* score = scores.mutable_data();
        for (const Hit& hit : scratch.hits) {
            *seq++ = hit.seq - first;
            *score++ = hit.score;
        }
        return py::make_tuple(std::move(seqs), std::move(scores));
    }

    // Where each query of a batch goes; the keys of its lists are in `lists`, of the thread that routed it.
    struct Routed {
        std::vector<Route> routes;
        std::vector<const std::vector<uint64_t>*> lists;
        std::vector<std::vector<uint64_t>> held;  // by thread
        std::vector<uint64_t> order;              // the number of the best list, and of the query
    };

    // False where a query is not finite.
    bool route_batch(const Batch& batch, size_t threads, Routed& routed) const {
        routed = Routed{std::vector<Route>(batch.n), std::vector<const std::vector<uint64_t>*>(batch.n),
                        std::vector<std::vector<uint64_t>>(threads), std::vector<uint64_t>(batch.n)};
        std::atomic<size_t> next{0};
        std::atomic<bool> good{true};
        in_threads(threads, [&](size_t thread) {
            for (size_t at; (at = next.fetch_add(kTogether)) < batch.n;)
                if (!route_some(batch, at, thread_scratch(), routed.held[thread], routed)) good = false;
        });
        std::sort(routed.order.begin(), routed.order.end());
        return good;
    }

    // Queries whose best lists are the same, or neighbours, follow each other and find those lists in the cache.
    template <class Work>
    static void in_order(const Routed& routed, size_t threads, const Work& work) {
        std::atomic<size_t> next{0};
        in_threads(threads, [&](size_t) {
            for (size_t at; (at = next.fetch_add(kShare)) < routed.order.size();)
                for (size_t i = at; i < std::min(at + kShare, routed.order.size()); ++i) work(size_t(uint32_t(routed.order[i])));
        });
    }

    bool run_batch(const Batch& batch, size_t threads) const {
        Routed routed;
        if (!route_batch(batch, threads, routed)) return false;
        in_order(routed, threads, [&](size_t i) { answer_one(batch, i, routed, thread_scratch()); });
        return true;
    }

    bool route_some(const Batch& batch, size_t at, Scratch& scratch, std::vector<uint64_t>& own, Routed& routed) const {
        const size_t count = std::min(kTogether, batch.n - at);
        scratch.lists.swap(own);
        const bool good = searcher_->route(batch.queries + at * searcher_->model().dims, count, batch.k, batch.plan, scratch,
                                           routed.routes.data() + at);
        scratch.lists.swap(own);
        if (!good) return false;
        for (size_t i = at; i < at + count; ++i) {
            routed.lists[i] = &own;
            routed.order[i] = (own[routed.routes[i].start] << 32) | i;  // by the number of the best list
        }
        return true;
    }

    void answer_one(const Batch& batch, size_t i, const Routed& routed, Scratch& scratch) const {
        const Route& route = routed.routes[i];
        searcher_->answer(batch.queries + i * searcher_->model().dims, batch.k, batch.plan, route,
                          routed.lists[i]->data() + route.start, scratch, Counters{batch.counts + i * batch.width, nullptr});
        int64_t* seqs = batch.seqs + i * batch.k;
        float* scores = batch.scores + i * batch.k;
        for (size_t j = 0; j < batch.k; ++j) {
            const bool there = j < scratch.hits.size();
            seqs[j] = there ? scratch.hits[j].seq : -1;
            scores[j] = there ? scratch.hits[j].score : -std::numeric_limits<float>::infinity();
        }
    }

    std::vector<SegmentHolder> segments_;
    py::object model_ref_;  // the model's arrays must outlive this
    std::vector<std::unique_ptr<Narrowed>> narrowed_;
    std::unique_ptr<Searcher> searcher_;
    bool int8_ = true;
};

py::array resident(const py::array& array) {
    if (!(array.flags() & py::array::c_style)) throw py::value_error("the array must be C-contiguous");
    auto pages = std::make_unique<Pages>(size_t(array.nbytes()));
    {
        py::gil_scoped_release unlocked;
        std::memcpy(pages->data(), array.data(), pages->size());
    }
    void* start = pages->data();
    py::capsule owner(pages.release(), [](void* held) { delete static_cast<Pages*>(held); });
    return py::array(array.dtype(), std::vector<py::ssize_t>(array.shape(), array.shape() + array.ndim()), start, owner);
}

}  // namespace

void bind_search(py::module_& module) {
    py::class_<LayerHolder>(module, "Layer").def(py::init<const py::array&, double, py::array, py::ssize_t>());
    py::class_<RouterHolder>(module, "Router")
        .def(py::init<py::ssize_t, const std::vector<LayerHolder>&, const std::vector<LayerHolder>&, py::ssize_t, py::array>());
    py::class_<ModelHolder>(module, "Model")
        .def(py::init<bool, py::ssize_t, const std::optional<py::array>&, double, py::array, const py::array&, py::array, double,
                      py::array, const std::optional<RouterHolder>&>(),
             py::arg("l2"), py::arg("dims"), py::arg("centroid_codes").none(true), py::arg("centroid_scale"),
             py::arg("centroid_bias"), py::arg("codebook"), py::arg("rescore_scale"), py::arg("spread"), py::arg("centre"),
             py::arg("router") = py::none());
    py::class_<GatheredHolder, std::shared_ptr<GatheredHolder>>(module, "GatheredRows")
        .def(py::init<const py::array&, const py::array&, const py::array&, const py::array&, const std::optional<py::array>&>());
    py::class_<SegmentHolder>(module, "Segment")
        .def(py::init<py::array, py::array, py::array, py::array, double, double, std::optional<py::array>,
                      std::optional<py::array>, py::array, py::array, std::optional<py::array>,
                      std::shared_ptr<GatheredHolder>>(),
             py::arg(), py::arg(), py::arg(), py::arg(), py::arg(), py::arg(), py::arg(), py::arg(), py::arg(), py::arg(),
             py::arg(), py::arg("gathered") = nullptr)
        .def("with_allowed", &SegmentHolder::with_allowed);
    py::class_<PlanHolder>(module, "Plan")
        .def(py::init<py::ssize_t, double, py::ssize_t, double,
                      const std::vector<std::tuple<py::ssize_t, py::ssize_t, double, bool>>&, bool>());
    py::class_<SearcherHolder>(module, "Searcher")
        .def(py::init([](const py::object& model, const std::vector<SegmentHolder>& segments) {
            return std::make_unique<SearcherHolder>(model.cast<const ModelHolder&>(), segments, model);
        }))
        .def("search", &SearcherHolder::search, py::arg("query"), py::arg("k"), py::arg("plan"), py::arg("first") = 0)
        .def("search_counted", &SearcherHolder::search_counted)
        .def("search_batch", &SearcherHolder::search_batch)
        .def("record", &SearcherHolder::record)
        .def("narrowed", &SearcherHolder::narrowed);
    py::class_<RecordingHolder>(module, "Recording")
        .def("replay", &RecordingHolder::replay)
        .def("extend", &RecordingHolder::extend);
    module.def("resident", &resident);
}

}  // namespace nestvec
