// The Python side: checks every array, releases the GIL, and calls the kernels. Nothing below reads out of bounds
// whatever the caller passes: dtype, shape, contiguity and every index are checked here first.

#include <pybind11/stl.h>

#include <atomic>
#include <optional>

#include "binding_checks.hpp"

namespace nestvec {

bool supported(Isa isa) {
#ifdef NESTVEC_X86
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    if (isa == Isa::avx2) return avx2;
    if (isa == Isa::avx512)
        return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("avx512vnni");
#endif
    return isa == Isa::portable;
}

namespace {

constexpr const char* kNames[] = {"portable", "avx2", "avx512"};

Isa best_isa() {
    for (int i = 2; i > 0; --i)
        if (supported(Isa(i))) return Isa(i);
    return Isa::portable;
}

std::atomic<Isa> current{Isa::portable};

std::vector<std::string> available() {
    std::vector<std::string> names;
    for (int i = 2; i >= 0; --i)
        if (supported(Isa(i))) names.emplace_back(kNames[i]);
    return names;
}

void use_isa(const std::string& name) {
    for (int i = 0; i < 3; ++i)
        if (name == kNames[i] && supported(Isa(i))) return current.store(Isa(i));
    std::string names;
    for (const auto& one : available()) names += (names.empty() ? "" : ", ") + one;
    throw py::value_error("instruction set '" + name + "' is not available here; available: " + names);
}

void py_band_scores(const py::array& query, const py::array& vectors, const py::array& rows, py::ssize_t lo,
                    py::ssize_t hi, const std::string& metric, py::array scores, std::optional<py::array> norms) {
    if (metric != "dot" && metric != "l2") throw py::value_error("metric must be 'dot' or 'l2', got '" + metric + "'");
    const bool half = is_dtype(vectors, 'f', 2);
    check(vectors, "vectors", 'f', half ? 2 : 4, "float32 or float16", {-1, -1});
    const py::ssize_t n = vectors.shape(0), dims = vectors.shape(1);
    check(query, "query", 'f', 4, "float32", {dims});
    check(rows, "rows", 'i', 8, "int64", {-1});
    check(scores, "scores", 'f', 8, "float64", {rows.shape(0)}, true);
    if (norms) check(*norms, "norms", 'f', 8, "float64", {rows.shape(0)}, true);
    if (lo < 0 || hi < lo || hi > dims)
        throw py::value_error("the band must satisfy 0 <= lo <= hi <= " + std::to_string(dims) + ", got " +
                              std::to_string(lo) + " to " + std::to_string(hi));
    const std::vector<double> band(data<float>(query) + lo, data<float>(query) + hi);
    BandTask task{band.data(),           vectors.data(), half,           size_t(dims),
                  data<int64_t>(rows),   size_t(rows.shape(0)),          size_t(lo), size_t(hi), metric == "l2",
                  static_cast<double*>(scores.mutable_data()),
                  norms ? static_cast<double*>(norms->mutable_data()) : nullptr};
    for (size_t i = 0; i < task.n_rows; ++i)
        if (task.rows[i] < 0 || task.rows[i] >= n)
            throw py::index_error("rows[" + std::to_string(i) + "] = " + std::to_string(task.rows[i]) +
                                  " is not one of the " + std::to_string(n) + " rows");
    py::gil_scoped_release unlocked;
    band_scores(task, current.load());
}

}  // namespace

Isa current_isa() { return current.load(); }

}  // namespace nestvec

PYBIND11_MODULE(_native, module) {
    using namespace nestvec;
    current.store(best_isa());
    module.def("available", &available, "Names of the instruction sets of this processor, best first.");
    module.def("use_isa", &use_isa, "Makes every later call of this process use the named instruction set.");
    module.def("isa", [] { return std::string(kNames[int(current.load())]); }, "The instruction set in use.");
    module.def("band_scores", &py_band_scores);
    bind_encode(module);
    bind_reaching(module);
    bind_search(module);
}
