// Checks of arrays from Python, shared by the binding files: nothing below them reads out of bounds.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <string>

#include "kernels.hpp"

namespace nestvec {

namespace py = pybind11;

Isa current_isa();  // what every kernel of this process runs on

void bind_encode(py::module_& module);
void bind_reaching(py::module_& module);
void bind_search(py::module_& module);

inline std::string shape_of(const py::array& array) {
    std::string text = "(";
    for (py::ssize_t i = 0; i < array.ndim(); ++i) text += (i ? ", " : "") + std::to_string(array.shape(i));
    return text + ")";
}

inline std::string wanted(std::initializer_list<py::ssize_t> shape) {
    std::string text = "(";
    for (const py::ssize_t length : shape)
        text += (text.size() > 1 ? ", " : "") + (length < 0 ? std::string("any") : std::to_string(length));
    return text + ")";
}

inline bool is_dtype(const py::array& array, char kind, py::ssize_t size) {
    const char order = array.dtype().byteorder();
    return array.dtype().kind() == kind && array.itemsize() == size && (order == '=' || order == '|');
}

// `shape`: a negative length accepts any.
inline void check(const py::array& array, const char* name, char kind, py::ssize_t size, const char* dtype,
           std::initializer_list<py::ssize_t> shape, bool writeable = false) {
    if (!is_dtype(array, kind, size))
        throw py::type_error(std::string(name) + " must be " + dtype + ", got " + std::string(py::str(array.dtype())));
    bool fits = array.ndim() == py::ssize_t(shape.size());
    py::ssize_t axis = 0;
    for (const py::ssize_t length : shape) {
        if (fits && length >= 0 && array.shape(axis) != length) fits = false;
        ++axis;
    }
    if (!fits) throw py::value_error(std::string(name) + " must have shape " + wanted(shape) + ", got " + shape_of(array));
    const int flags = array.flags();
    if (!(flags & py::array::c_style)) throw py::value_error(std::string(name) + " must be C-contiguous");
    if (!(flags & py::detail::npy_api::NPY_ARRAY_ALIGNED_)) throw py::value_error(std::string(name) + " must be aligned");
    if (writeable && !array.writeable()) throw py::value_error(std::string(name) + " must be writeable");
}

template <class T>
const T* data(const py::array& array) {
    return static_cast<const T*>(array.data());
}

inline void check_finite(const py::array& array, const char* name) {
    const float* values = data<float>(array);
    if (!std::all_of(values, values + array.size(), [](float value) { return std::isfinite(value); }))
        throw py::value_error(std::string(name) + " must be finite");
}

inline void check_finite(float value, const char* name) {
    if (!std::isfinite(value)) throw py::value_error(std::string(name) + " must be finite, got " + std::to_string(value));
}

}  // namespace nestvec
