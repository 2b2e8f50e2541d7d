// The Python side of a search: one query, or a batch of them by several threads.

#include <pybind11/stl.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <memory>
#include <optional>
#include <thread>

#include "binding_segment.hpp"

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

    py::tuple search(const py::array& query, py::ssize_t k, const PlanHolder& plan) const {
        Scratch& scratch = thread_scratch();
        run(query, k, plan, scratch, Counters{});
        return hits_of(scratch);
    }

    py::tuple search_counted(const py::array& query, py::ssize_t k, const PlanHolder& plan) const {
        Scratch& scratch = thread_scratch();
        py::array_t<int64_t> counts(py::ssize_t(4 + plan.plan.stages.size()));
        py::array_t<double> micros(py::ssize_t(3 + plan.plan.stages.size()));
        run(query, k, plan, scratch, Counters{counts.mutable_data(), micros.mutable_data()});
        const py::tuple hits = hits_of(scratch);
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

    static py::tuple hits_of(const Scratch& scratch) {
        py::array_t<int64_t> seqs(py::ssize_t(scratch.hits.size()));
        py::array_t<float> scores(py::ssize_t(scratch.hits.size()));
        int64_t* seq = seqs.mutable_data();
        float* score = scores.mutable_data();
        for (const Hit& hit : scratch.hits) {
            *seq++ = hit.seq;
            *score++ = hit.score;
        }
        return py::make_tuple(std::move(seqs), std::move(scores));
    }

    // Where each query of a batch goes; the keys of its lists are in `lists`, of the thread that routed it.
    struct Routed {
        std::vector<Route> routes;
        std::vector<const std::vector<uint64_t>*> lists;
    };

    // Queries whose best lists are the same, or neighbours, follow each other and find those lists in the cache.
    bool run_batch(const Batch& batch, size_t threads) const {
        Routed routed{std::vector<Route>(batch.n), std::vector<const std::vector<uint64_t>*>(batch.n)};
        std::vector<std::vector<uint64_t>> lists(threads);
        std::vector<uint64_t> order(batch.n);
        std::atomic<size_t> next{0}, thread{0};
        std::atomic<bool> good{true};
        in_threads(threads, [&] {
            std::vector<uint64_t>& own = lists[thread.fetch_add(1)];
            Scratch& scratch = thread_scratch();
            for (size_t at; (at = next.fetch_add(kTogether)) < batch.n;)
                if (!route_some(batch, at, scratch, own, routed, order)) good = false;
        });
        if (!good) return false;
        std::sort(order.begin(), order.end());
        next = 0;
        in_threads(threads, [&] {
            Scratch& scratch = thread_scratch();
            for (size_t at; (at = next.fetch_add(kShare)) < batch.n;)
                for (size_t i = at; i < std::min(at + kShare, batch.n); ++i)
                    answer_one(batch, size_t(uint32_t(order[i])), routed, scratch);
        });
        return true;
    }

    bool route_some(const Batch& batch, size_t at, Scratch& scratch, std::vector<uint64_t>& own, Routed& routed,
                    std::vector<uint64_t>& order) const {
        const size_t count = std::min(kTogether, batch.n - at);
        scratch.lists.swap(own);
        const bool good = searcher_->route(batch.queries + at * searcher_->model().dims, count, batch.k, batch.plan, scratch,
                                           routed.routes.data() + at);
        scratch.lists.swap(own);
        if (!good) return false;
        for (size_t i = at; i < at + count; ++i) {
            routed.lists[i] = &own;
            order[i] = (own[routed.routes[i].start] << 32) | i;  // by the number of the best list
        }
        return true;
    }

    template <class Work>
    static void in_threads(size_t threads, const Work& work) {
        std::vector<std::exception_ptr> failed(threads);  // an exception that leaves a thread ends the process
        const auto guarded = [&](size_t t) {
            try {
                work();
            } catch (...) {
                failed[t] = std::current_exception();
            }
        };
        std::vector<std::thread> others;
        for (size_t t = 1; t < threads; ++t) others.emplace_back(guarded, t);
        guarded(0);
        for (std::thread& other : others) other.join();
        for (const std::exception_ptr& one : failed)
            if (one) std::rethrow_exception(one);
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
        .def("search", &SearcherHolder::search)
        .def("search_counted", &SearcherHolder::search_counted)
        .def("search_batch", &SearcherHolder::search_batch);
    module.def("resident", &resident);
}

}  // namespace nestvec
