// The Python side of encode, encode_aware and pack.

#include "binding_checks.hpp"

namespace nestvec {
namespace {

py::array_t<uint8_t> py_encode(const py::array& residuals, const py::array& codebook) {
    check(codebook, "codebook", 'f', 4, "float32", {-1, kCentres, -1});
    const py::ssize_t blocks = codebook.shape(0), width = codebook.shape(2);
    check(residuals, "residuals", 'f', 4, "float32", {-1, blocks * width});
    py::array_t<uint8_t> codes({residuals.shape(0), blocks});
    uint8_t* out = codes.mutable_data();
    py::gil_scoped_release unlocked;
    encode(data<float>(residuals), size_t(residuals.shape(0)), data<float>(codebook), size_t(blocks), size_t(width), out,
           current_isa());
    return codes;
}

py::array_t<uint8_t> py_encode_aware(const py::array& residuals, const py::array& directions, const py::array& codebook,
                                     float eta) {
    check(codebook, "codebook", 'f', 4, "float32", {-1, kCentres, -1});
    const py::ssize_t blocks = codebook.shape(0), width = codebook.shape(2);
    check(residuals, "residuals", 'f', 4, "float32", {-1, blocks * width});
    check(directions, "directions", 'f', 4, "float32", {residuals.shape(0), blocks * width});
    check_finite(eta, "eta");
    if (eta < 1.0f) throw py::value_error("eta must be >= 1, got " + std::to_string(eta));
    py::array_t<uint8_t> codes({residuals.shape(0), blocks});
    uint8_t* out = codes.mutable_data();
    py::gil_scoped_release unlocked;
    encode_aware(data<float>(residuals), data<float>(directions), size_t(residuals.shape(0)), data<float>(codebook),
                 size_t(blocks), size_t(width), eta, out, current_isa());
    return codes;
}

py::array_t<uint8_t> py_pack(const py::array& codes) {
    check(codes, "codes", 'u', 1, "uint8", {-1, -1});
    const py::ssize_t n = codes.shape(0), subquantisers = codes.shape(1);
    if (n % py::ssize_t(kBlock) != 0)
        throw py::value_error("codes must have a multiple of " + std::to_string(kBlock) + " rows, got " +
                              std::to_string(n));
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

void bind_encode(py::module_& module) {
    module.def("encode", &py_encode);
    module.def("encode_aware", &py_encode_aware);
    module.def("pack", &py_pack);
}

}  // namespace nestvec
