// Objects that hold the arrays of a model, and a plan, and check them once, so that a query only checks itself.
#pragma once

#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <tuple>
#include <vector>

#include "binding_checks.hpp"
#include "pages.hpp"
#include "search.hpp"

namespace nestvec {

constexpr size_t kMaxRescoreDims = 2048;  // more could overflow the 32-bit sums

inline float finite(double value, const char* name) {
    check_finite(float(value), name);
    return float(value);
}

inline float positive(double value, const char* name, bool or_zero = false) {
    const float number = finite(value, name);
    if (number < 0.0f || (number == 0.0f && !or_zero))
        throw py::value_error(std::string(name) + " must be " + (or_zero ? ">= 0" : "> 0") + ", got " + std::to_string(value));
    return number;
}

// Bytes in groups of 4 dims, in tiles of `width` nodes, as kernels read them; what is missing stays 128, which stands for 0.
class Tiles {
   public:
    // `families` families of `siblings` nodes each.
    Tiles(size_t families, size_t siblings, size_t groups, size_t width = kTile)
        : siblings_(siblings),
          groups_(groups),
          width_(width),
          tiles_((siblings + width - 1) / width),
          pages_(std::make_shared<Pages>(families * tiles_ * groups * width * 4)) {
        std::fill(pages_->data(), pages_->data() + pages_->size(), uint8_t(128));
    }

    void put(size_t node, size_t group, const uint8_t* four) {
        const size_t family = node / siblings_, at = node % siblings_, tile = family * tiles_ + at / width_;
        std::memcpy(pages_->data() + ((tile * groups_ + group) * width_ + at % width_) * 4, four, 4);
    }

    const uint8_t* data() const { return pages_->data(); }
    size_t tiles() const { return tiles_; }  // of a family

   private:
    size_t siblings_, groups_, width_, tiles_;
    std::shared_ptr<Pages> pages_;
};

struct LayerHolder {
    Layer layer{};
    size_t inputs;
    std::optional<Tiles> tiles;
    py::array bias;

    LayerHolder(const py::array& codes, double scale, py::array bias_, py::ssize_t siblings) : bias(bias_) {
        check(bias, "bias", 'f', 4, "float32", {-1});
        check_finite(bias, "bias");
        check(codes, "codes", 'u', 1, "uint8", {bias.shape(0), -1});
        if (codes.size() == 0 || codes.shape(1) % 4 != 0)
            throw py::value_error("codes must have nodes, and a multiple of 4 numbers for each; got shape " + shape_of(codes));
        if (siblings < 1 || bias.shape(0) % siblings != 0)
            throw py::value_error("siblings must divide the " + std::to_string(bias.shape(0)) + " nodes, got " +
                                  std::to_string(siblings));
        layer.nodes = size_t(bias.shape(0));
        layer.siblings = size_t(siblings);
        layer.groups = size_t(codes.shape(1)) / 4;
        layer.half_scale = 0.5f * positive(scale, "scale");
        layer.bias = data<float>(bias);
        inputs = 4 * layer.groups;
        layer.width = tile_width(layer.siblings);
        tiles.emplace(layer.nodes / layer.siblings, layer.siblings, layer.groups, layer.width);
        for (size_t node = 0; node < layer.nodes; ++node)
            for (size_t g = 0; g < layer.groups; ++g)
                tiles->put(node, g, data<uint8_t>(codes) + node * inputs + 4 * g);
        layer.codes = tiles->data();
        layer.tiles = tiles->tiles();
    }
};

struct RouterHolder {
    Router router{};
    std::vector<LayerHolder> held;  // the memory of the layers
    py::array centroids;
    size_t leaves = 1;

    RouterHolder(py::ssize_t dims, const std::vector<LayerHolder>& heads, const std::vector<LayerHolder>& features,
                 py::ssize_t beam, py::array middle)
        : centroids(middle) {
        if (dims < 1) throw py::value_error("dims must be >= 1, got " + std::to_string(dims));
        if (beam < 1) throw py::value_error("beam must be >= 1, got " + std::to_string(beam));
        if (heads.empty()) throw py::value_error("a router needs at least one head");
        check(centroids, "centroids", 'f', 4, "float32", {-1, -1});
        check_finite(centroids, "centroids");
        router.dims = size_t(dims);
        router.beam = size_t(beam);
        for (const LayerHolder& head : heads) {
            fit("head", head, router.dims);
            if (head.layer.nodes != leaves * head.layer.siblings)
                throw py::value_error("a head must have " + std::to_string(leaves) + " families of nodes, got " +
                                      std::to_string(head.layer.nodes) + " nodes in families of " +
                                      std::to_string(head.layer.siblings));
            leaves = head.layer.nodes;
            router.heads.push_back(head.layer);
        }
        if (!features.empty()) add_features(features);
        if (size_t(centroids.shape(0)) != leaves || centroids.shape(1) < 1)
            throw py::value_error("centroids must cover " + std::to_string(leaves) + " lists, got shape " + shape_of(centroids));
        held.insert(held.end(), heads.begin(), heads.end());
        router.centroids = data<float>(centroids);
        router.covered = size_t(centroids.shape(1));
    }

   private:
    static void fit(const char* what, const LayerHolder& one, size_t inputs) {
        if (one.inputs != (inputs + 3) / 4 * 4)
            throw py::value_error(std::string("a ") + what + " must take " + std::to_string((inputs + 3) / 4 * 4) +
                                  " numbers, got " + std::to_string(one.inputs));
    }

    void add_features(const std::vector<LayerHolder>& features) {
        if (features.size() != 2) throw py::value_error("features are two layers, or none");
        fit("first layer", features[0], router.dims);
        fit("second layer", features[1], features[0].layer.nodes);
        if (features[1].layer.nodes != router.dims)
            throw py::value_error("the second layer must give " + std::to_string(router.dims) + " numbers, got " +
                                  std::to_string(features[1].layer.nodes));
        for (const LayerHolder& one : features) {
            if (one.layer.siblings != one.layer.nodes) throw py::value_error("the nodes of a feature layer are one family");
            router.features.push_back(one.layer);
        }
        held.insert(held.end(), features.begin(), features.end());
    }
};

struct ModelHolder {
    Model model{};
    std::optional<Tiles> centroids;
    std::optional<RouterHolder> router;
    std::vector<float> transposed;
    py::array centroid_bias, rescore_scale, centre;

    ModelHolder(const ModelHolder&) = delete;  // the model points into it
    ModelHolder& operator=(const ModelHolder&) = delete;
    ModelHolder(bool l2, py::ssize_t dims, const std::optional<py::array>& codes, double scale, py::array bias,
                const py::array& codebook, py::array rescore, double spread, py::array middle,
                const std::optional<RouterHolder>& tree)
        : router(tree), centroid_bias(bias), rescore_scale(rescore), centre(middle) {
        if (codes.has_value() == tree.has_value())
            throw py::value_error("a model has either centroid_codes or a router");
        if (codes) check(*codes, "centroid_codes", 'u', 1, "uint8", {-1, -1, 4});
        if (dims < 1) throw py::value_error("dims must be >= 1, got " + std::to_string(dims));
        check(bias, "centroid_bias", 'f', 4, "float32", {-1});
        check(codebook, "codebook", 'f', 4, "float32", {-1, py::ssize_t(kCentres), -1});
        check(rescore, "rescore_scale", 'f', 4, "float32", {-1});
        check(middle, "centre", 'f', 4, "float32", {dims});
        if (codes && codes->shape(0) == 0) throw py::value_error("centroid_codes must not be empty");
        if (codebook.size() == 0) throw py::value_error("codebook must not be empty");
        check_finite(bias, "centroid_bias");
        check_finite(codebook, "codebook");
        check_finite(rescore, "rescore_scale");
        check_finite(middle, "centre");
        const size_t partitions = size_t(bias.shape(0)), padded = codes ? size_t(codes->shape(1)) : 0;
        if (codes && (partitions == 0 || padded != (partitions + 15) / 16 * 16))
            throw py::value_error("centroid_codes must cover " + std::to_string((partitions + 15) / 16 * 16) +
                                  " centroids (centroid_bias has " + std::to_string(partitions) + "), got " +
                                  std::to_string(padded));
        if (size_t(rescore.shape(0)) % 64 != 0 || size_t(rescore.shape(0)) > kMaxRescoreDims)
            throw py::value_error("rescore_scale must have a multiple of 64 and at most 2048 numbers, got " +
                                  std::to_string(rescore.shape(0)));
        model.l2 = l2;
        model.dims = size_t(dims);
        model.partitions = partitions;
        if (codes) tile(*codes);
        if (router) take_router();
        model.centroid_scale = positive(scale, "centroid_scale");
        model.centroid_bias = data<float>(centroid_bias);
        model.blocks = size_t(codebook.shape(0));
        model.width = size_t(codebook.shape(2));
        transpose(codebook);
        model.codebook = transposed.data();
        model.rescore_scale = data<float>(rescore_scale);
        model.rescore_dims = size_t(rescore.shape(0));
        model.spread = positive(spread, "spread", true);
        model.centre = data<float>(centre);
    }

   private:
    // From [groups, centroids, 4].
    void tile(const py::array& codes) {
        const size_t padded = size_t(codes.shape(1));
        model.groups = size_t(codes.shape(0));
        centroids.emplace(1, padded, model.groups);
        for (size_t g = 0; g < model.groups; ++g)
            for (size_t l = 0; l < padded; ++l) centroids->put(l, g, data<uint8_t>(codes) + (g * padded + l) * 4);
        model.tiles = centroids->tiles();
        model.centroid_codes = centroids->data();
    }

    void take_router() {
        if (router->leaves != model.partitions)
            throw py::value_error("the router has " + std::to_string(router->leaves) + " leaves, the model " +
                                  std::to_string(model.partitions) + " lists");
        if (router->router.dims > model.dims || router->router.covered > model.dims)
            throw py::value_error("the router and its centroids must see at most " + std::to_string(model.dims) + " dims");
        model.router = &router->router;
    }

    void transpose(const py::array& codebook) {
        transposed.resize(size_t(codebook.size()));
        const float* from = data<float>(codebook);
        for (size_t m = 0; m < model.blocks; ++m)
            for (size_t c = 0; c < kCentres; ++c)
                for (size_t j = 0; j < model.width; ++j)
                    transposed[(m * model.width + j) * kCentres + c] = from[(m * kCentres + c) * model.width + j];
    }
};

struct PlanHolder {
    Plan plan{};

    PlanHolder(py::ssize_t probes, double probe_margin, py::ssize_t keep, double margin,
               const std::vector<std::tuple<py::ssize_t, py::ssize_t, double, bool>>& stages, bool cosine) {
        plan.probes = positive(probes, "probes");
        plan.probe_margin = checked_margin(probe_margin, "probe_margin");
        plan.keep = positive(keep, "keep");
        plan.margin = checked_margin(margin, "margin");
        plan.cosine = cosine;
        bool stored = false;
        size_t before = 0;
        for (const auto& [dims, kept, cut, int8] : stages) {
            if (int8 && stored) throw py::value_error("int8 stages come before stored ones");
            if (!int8 && !stored) before = 0;
            stored = !int8;
            const size_t size = positive(dims, "a stage's dims");
            if (size <= before) throw py::value_error("stage dims must ascend, got " + std::to_string(dims));
            if (int8 && size % 64 != 0)
                throw py::value_error("an int8 stage's dims must be a multiple of 64, got " + std::to_string(dims));
            before = size;
            plan.stages.push_back(Stage{size, positive(kept, "a stage's keep"), checked_margin(cut, "a stage's margin"), int8});
        }
    }

    static size_t positive(py::ssize_t value, const char* name) {
        if (value < 1) throw py::value_error(std::string(name) + " must be >= 1, got " + std::to_string(value));
        return size_t(value);
    }

    static float checked_margin(double value, const char* name) {
        if (!(value >= 0.0)) throw py::value_error(std::string(name) + " must be >= 0, got " + std::to_string(value));
        return float(value);
    }
};

}  // namespace nestvec
