// The Python side of reaching.

#include "binding_checks.hpp"
#include "reaching.hpp"

namespace nestvec {

#ifdef NESTVEC_X86

namespace {

py::tuple py_reaching(const py::array& vectors, const py::array& levels, const py::array& queries, const py::array& floors,
                      const std::string& metric, py::ssize_t threads) {
    if (metric != "dot" && metric != "l2") throw py::value_error("metric must be 'dot' or 'l2', got '" + metric + "'");
    const bool half = is_dtype(vectors, 'f', 2);
    check(vectors, "vectors", 'f', half ? 2 : 4, "float32 or float16", {-1, -1});
    const py::ssize_t n = vectors.shape(0), dims = vectors.shape(1);
    if (dims < 1 || size_t(dims) > kMostReachDims)
        throw py::value_error("vectors must have 1 to " + std::to_string(kMostReachDims) + " dims, got " + std::to_string(dims));
    check(levels, "levels", 'u', 1, "uint8", {n});
    check(queries, "queries", 'f', 4, "float32", {-1, dims});
    check_finite(queries, "queries");
    check(floors, "floors", 'f', 4, "float32", {-1, queries.shape(0)});
    const py::ssize_t depth = floors.shape(0);
    const uint8_t* level = data<uint8_t>(levels);
    if (std::any_of(level, level + n, [&](uint8_t one) { return py::ssize_t(one) > depth; }))
        throw py::value_error("levels must be at most the number of floors, " + std::to_string(depth));
    const float* least = data<float>(floors);
    if (std::any_of(least, least + floors.size(), [](float value) { return std::isnan(value); }))
        throw py::value_error("floors must not be NaN");
    if (threads < 1) throw py::value_error("threads must be >= 1, got " + std::to_string(threads));
    const ReachTask task{vectors.data(), half,         size_t(n), size_t(dims), level, data<float>(queries),
                         least,          size_t(queries.shape(0)), size_t(depth), metric == "l2"};
    if (current_isa() != Isa::avx512) throw std::runtime_error("reaching needs avx512: use the reference elsewhere");
    std::vector<std::vector<Reached>> found;
    {
        py::gil_scoped_release unlocked;
        found = reaching(task, size_t(threads));
    }
    py::array_t<int64_t> counts(py::ssize_t(found.size()));
    size_t total = 0;
    for (size_t q = 0; q < found.size(); total += found[q++].size()) counts.mutable_data()[q] = int64_t(found[q].size());
    py::array_t<int64_t> rows{py::ssize_t(total)};
    py::array_t<float> scores{py::ssize_t(total)};
    int64_t* row = rows.mutable_data();
    float* score = scores.mutable_data();
    for (const auto& hits : found)
        for (const Reached& hit : hits) {
            *row++ = hit.row;
            *score++ = hit.score;
        }
    return py::make_tuple(std::move(counts), std::move(rows), std::move(scores));
}

}  // namespace

void bind_reaching(py::module_& module) { module.def("reaching", &py_reaching); }

#else

void bind_reaching(py::module_&) {}

#endif

}  // namespace nestvec
