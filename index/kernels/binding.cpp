// The Python side: checks every array, releases the GIL, and calls the kernels. Nothing below reads out of bounds
// whatever the caller passes: dtype, shape, contiguity and every index are checked here first.

#include <pybind11/pybind11.h>
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <atomic>
#include <cmath>
#include <limits>
#include <optional>

#include "kernels.hpp"

namespace py = pybind11;

namespace nestvec {

bool supported(Isa isa) {
#ifdef NESTVEC_X86
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    if (isa == Isa::avx2) return avx2;
    if (isa == Isa::avx512)
        return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
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

// ---- checks ---------------------------------------------------------------------------------------------------

std::string shape_of(const py::array& array) {
    std::string text = "(";
    for (py::ssize_t i = 0; i < array.ndim(); ++i) text += (i ? ", " : "") + std::to_string(array.shape(i));
    return text + ")";
}

bool is_dtype(const py::array& array, char kind, py::ssize_t size) {
    const char order = array.dtype().byteorder();
    return array.dtype().kind() == kind && array.itemsize() == size && (order == '=' || order == '|');
}

// `shape`: a negative length accepts any.
void check(const py::array& array, const char* name, char kind, py::ssize_t size, const char* dtype,
           std::initializer_list<py::ssize_t> shape, bool writeable = false) {
    if (!is_dtype(array, kind, size))
        throw py::type_error(std::string(name) + " must be " + dtype + ", got " + std::string(py::str(array.dtype())));
    bool fits = array.ndim() == py::ssize_t(shape.size());
    std::string want = "(";
    py::ssize_t axis = 0;
    for (const py::ssize_t length : shape) {
        if (fits && length >= 0 && array.shape(axis) != length) fits = false;
        want += (axis++ ? ", " : "") + (length < 0 ? std::string("any") : std::to_string(length));
        if (axis > array.ndim()) fits = false;
    }
    if (!fits) throw py::value_error(std::string(name) + " must have shape " + want + "), got " + shape_of(array));
    const int flags = array.flags();
    if (!(flags & py::array::c_style)) throw py::value_error(std::string(name) + " must be C-contiguous");
    if (!(flags & py::detail::npy_api::NPY_ARRAY_ALIGNED_)) throw py::value_error(std::string(name) + " must be aligned");
    if (writeable && !array.writeable()) throw py::value_error(std::string(name) + " must be writeable");
}

template <class T>
const T* data(const py::array& array) {
    return static_cast<const T*>(array.data());
}

void check_finite(float value, const char* name) {
    if (!std::isfinite(value)) throw py::value_error(std::string(name) + " must be finite, got " + std::to_string(value));
}

void check_list(const ScanTask& task, int64_t n_lists, int64_t total, size_t i) {
    const int64_t list = task.lists[i];
    if (list < 0 || list >= n_lists)
        throw py::index_error("lists[" + std::to_string(i) + "] = " + std::to_string(list) + " is not one of the " +
                              std::to_string(n_lists) + " lists");
    const int64_t start = task.offsets[list], end = task.offsets[list + 1], count = task.counts[list];
    if (start < 0 || start % int64_t(kBlock) != 0 || count < 0 || end > total || start > end || count > end - start)
        throw py::value_error("list " + std::to_string(list) + " is damaged: postings " + std::to_string(start) + " to " +
                              std::to_string(end) + ", count " + std::to_string(count) + ", of " + std::to_string(total) +
                              " stored (a list must start at a multiple of 32)");
    check_finite(task.list_bias[i] + task.base, "list_bias + base");
}

// ---- the functions of reference.py ----------------------------------------------------------------------------

py::tuple result_tuple(const ScanResult& result) {
    py::array_t<int64_t> rows{py::ssize_t(result.keys.size())};
    py::array_t<float> estimates{py::ssize_t(result.keys.size())};
    for (size_t i = 0; i < result.keys.size(); ++i) {
        rows.mutable_data()[i] = key_row(result.keys[i]);
        estimates.mutable_data()[i] = key_estimate(result.keys[i]);
    }
    return py::make_tuple(rows, estimates, result.scanned);
}

py::tuple py_scan_lists(const py::array& codes, const py::array& offsets, const py::array& counts, const py::array& rows,
                        const py::array& lists, const py::array& list_bias, const py::array& lut, double scale,
                        double base, const std::optional<py::array>& posting_bias,
                        const std::optional<py::array>& allowed, py::ssize_t keep) {
    check(codes, "codes", 'u', 1, "uint8", {-1, -1, py::ssize_t(kBlock)});
    const py::ssize_t pairs = codes.shape(1), total = codes.shape(0) * py::ssize_t(kBlock);
    if (2 * pairs > py::ssize_t(kMaxSubquantisers))
        throw py::value_error("codes must have at most 256 sub-quantisers, got " + std::to_string(2 * pairs) +
                              ": use more dims_per_block");
    check(counts, "counts", 'i', 4, "int32", {-1});
    check(offsets, "offsets", 'i', 8, "int64", {counts.shape(0) + 1});
    check(rows, "rows", 'u', 4, "uint32", {total});
    check(lists, "lists", 'i', 4, "int32", {-1});
    check(list_bias, "list_bias", 'f', 4, "float32", {lists.shape(0)});
    check(lut, "lut", 'u', 1, "uint8", {2 * pairs, 16});
    if (posting_bias) check(*posting_bias, "posting_bias", 'f', 4, "float32", {total});
    if (allowed) {
        const bool boolean = is_dtype(*allowed, 'b', 1);
        check(*allowed, "allowed", boolean ? 'b' : 'u', 1, "uint8 or bool", {-1});
    }
    if (keep < 0) throw py::value_error("keep must be >= 0, got " + std::to_string(keep));
    ScanTask task{};
    task.codes = data<uint8_t>(codes);
    task.pairs = size_t(pairs);
    task.offsets = data<int64_t>(offsets);
    task.counts = data<int32_t>(counts);
    task.rows = data<uint32_t>(rows);
    task.lists = data<int32_t>(lists);
    task.list_bias = data<float>(list_bias);
    task.n_lists = size_t(lists.shape(0));
    task.lut = data<uint8_t>(lut);
    task.scale = float(scale);
    task.base = float(base);
    task.posting_bias = posting_bias ? data<float>(*posting_bias) : nullptr;
    task.allowed = allowed ? data<uint8_t>(*allowed) : nullptr;
    task.n_allowed = allowed ? size_t(allowed->shape(0)) : 0;
    task.keep = size_t(keep);
    check_finite(task.scale, "scale");
    check_finite(task.base, "base");
    for (size_t i = 0; i < task.n_lists; ++i) check_list(task, counts.shape(0), total, i);
    ScanResult result;
    {
        py::gil_scoped_release unlocked;
        result = scan_lists(task, current.load());
    }
    if (result.bad_row >= 0)
        throw py::index_error("row " + std::to_string(result.bad_row) + " of the postings is beyond allowed, which has " +
                              std::to_string(task.n_allowed) + " rows");
    return result_tuple(result);
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
    BandTask task{data<float>(query),    vectors.data(), half,           size_t(dims),
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

py::array_t<uint8_t> py_encode(const py::array& residuals, const py::array& codebook) {
    check(codebook, "codebook", 'f', 4, "float32", {-1, 16, -1});
    const py::ssize_t blocks = codebook.shape(0), width = codebook.shape(2);
    check(residuals, "residuals", 'f', 4, "float32", {-1, blocks * width});
    py::array_t<uint8_t> codes({residuals.shape(0), blocks});
    uint8_t* out = codes.mutable_data();
    py::gil_scoped_release unlocked;
    encode(data<float>(residuals), size_t(residuals.shape(0)), data<float>(codebook), size_t(blocks), size_t(width), out,
           current.load());
    return codes;
}

py::array_t<uint8_t> py_pack(const py::array& codes) {
    check(codes, "codes", 'u', 1, "uint8", {-1, -1});
    const py::ssize_t n = codes.shape(0), subquantisers = codes.shape(1);
    if (n % py::ssize_t(kBlock) != 0)
        throw py::value_error("codes must have a multiple of 32 rows, got " + std::to_string(n));
    py::array_t<uint8_t> blocks({n / py::ssize_t(kBlock), (subquantisers + 1) / 2, py::ssize_t(kBlock)});
    uint8_t* out = blocks.mutable_data();
    bool good;
    {
        py::gil_scoped_release unlocked;
        good = pack(data<uint8_t>(codes), size_t(n), size_t(subquantisers), out);
    }
    if (!good) throw py::value_error("codes must be 0 to 15, got a larger one");
    return blocks;
}

}  // namespace
}  // namespace nestvec

PYBIND11_MODULE(_native, module) {
    using namespace nestvec;
    current.store(best_isa());
    module.def("available", &available, "Names of the instruction sets of this processor, best first.");
    module.def("use_isa", &use_isa, "Makes every later call of this process use the named instruction set.");
    module.def("isa", [] { return std::string(kNames[int(current.load())]); }, "The instruction set in use.");
    module.def("scan_lists", &py_scan_lists);
    module.def("band_scores", &py_band_scores);
    module.def("encode", &py_encode);
    module.def("pack", &py_pack);
}
