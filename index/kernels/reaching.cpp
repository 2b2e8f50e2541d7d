// Rows that reach a floor, in two steps. Products of bytes, several times cheaper than float32 ones, say of nearly every
// row and query that the score lies below the floor by more than bytes can err; the rest is scored in float64.
//
// Both sides lose a centre c first: p = q - c, y = x - c. Then <q, x> = <p, y> + <c, y> + <q, c>, and -||q - x||^2 =
// 2 <p, y> - ||y||^2 - ||p||^2. With p' and y' as bytes tell them, Cauchy and Schwarz bound the error of the product:
// |<p, y> - <p', y'>| <= ||p|| ||y - y'|| + ||p - p'|| ||y'||. What float32 rounds anywhere here, in any order of
// addition, is less than 2 (dims + 16) 2^-24 times the norms that meet (Higham, Accuracy and Stability, 3.1); twice
// that is added.

#include "reaching.hpp"

#include <algorithm>
#include <atomic>
#include <limits>
#include <numeric>

#include "primitives.hpp"
#include "threads.hpp"

#ifdef NESTVEC_X86

namespace nestvec {
namespace {

constexpr size_t kUnit = 1024;        // rows that a thread takes at a time: a query then finds several to score together
constexpr size_t kCentreRows = 128;   // whose mean is the centre
constexpr float kMostNorm = 1e18f;    // products of greater ones could overflow: those vectors are never ruled out
constexpr float kUnderflow = 1e-18f;  // a coordinate below it may have a square of 0
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// A vector less the centre, as bytes times a step. Norms are never below the true ones, but for what slack_ covers.
struct Coded {
    float step = 0, norm = 0, error = 0;  // ||y||, ||y - y'||
    float along = 0;                      // <c, y>
    int32_t sum = 0;                      // of the bytes
    bool sure = false;                    // else it is too large to be ruled out
};

NESTVEC_AVX512 NESTVEC_INLINE __m512 load(const float* x, __mmask16 some) { return _mm512_maskz_loadu_ps(some, x); }
NESTVEC_AVX512 NESTVEC_INLINE __m512 load(const Half* x, __mmask16 some) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(some, x));
}

// x [dims]; centre, y and out reach to the next multiple of kLanes, the centre with zeros.
template <class T>
NESTVEC_AVX512 Coded code(const T* x, size_t dims, const float* centre, float* y, int8_t* out) {
    __m512 squares = _mm512_setzero_ps(), products = squares, most = squares, gaps = squares;
    for (size_t j = 0; j < dims; j += kLanes) {
        const __mmask16 some = j + kLanes <= dims ? __mmask16(0xFFFF) : __mmask16((1u << (dims - j)) - 1);
        const __m512 c = _mm512_loadu_ps(centre + j), a = _mm512_sub_ps(load(x + j, some), c);
        _mm512_storeu_ps(y + j, a);
        squares = _mm512_add_ps(squares, _mm512_mul_ps(a, a));
        products = _mm512_add_ps(products, _mm512_mul_ps(a, c));
        most = _mm512_max_ps(most, _mm512_abs_ps(a));
    }
    const float tiny = std::sqrt(float(dims)) * kUnderflow;
    Coded coded;
    coded.norm = std::sqrt(_mm512_reduce_add_ps(squares)) + tiny;
    coded.along = _mm512_reduce_add_ps(products);
    coded.sure = coded.norm < kMostNorm;
    coded.step = coded.sure ? usable(_mm512_reduce_max_ps(most) / 127.0f) : kMostNorm;
    const __m512 step = _mm512_set1_ps(coded.step), steps = _mm512_set1_ps(1.0f / coded.step);
    __m512i sums = _mm512_setzero_si512();
    for (size_t j = 0; j < dims; j += kLanes) {
        const __m512 a = _mm512_loadu_ps(y + j);
        const __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(a, steps));
        const __m512 gap = _mm512_sub_ps(a, _mm512_mul_ps(_mm512_cvtepi32_ps(whole), step));
        _mm_storeu_si128((__m128i*)(out + j), _mm512_cvtepi32_epi8(whole));
        sums = _mm512_add_epi32(sums, whole);
        gaps = _mm512_add_ps(gaps, _mm512_mul_ps(gap, gap));
    }
    coded.sum = _mm512_reduce_add_epi32(sums);
    coded.error = std::sqrt(_mm512_reduce_add_ps(gaps)) + tiny;
    return coded;
}

// What the queries bring to the comparison, in whole tiles.
struct Side {
    std::vector<float> scale, norm, error;
    std::vector<std::vector<float>> least;  // of each level
};

// What a row brings to it: 128 times the sum of its bytes, their step, its error, norm, and terms of its own.
struct Row {
    int32_t shift;
    float step, error, norm, own;
};

// The numbers, ascending, of the queries whose floor the row may reach; how many.
NESTVEC_AVX512 size_t may_reach(const int32_t* dots, size_t width, const Row& row, const Side& side, const float* least,
                                uint32_t* numbers) {
    const __m512 step = _mm512_set1_ps(row.step), error = _mm512_set1_ps(row.error), norm = _mm512_set1_ps(row.norm);
    size_t found = 0;
    for (size_t q = 0; q < width; q += kLanes) {
        const __m512i sums = _mm512_sub_epi32(_mm512_loadu_si512(dots + q), _mm512_set1_epi32(row.shift));
        __m512 most = _mm512_mul_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(sums), step), _mm512_loadu_ps(&side.scale[q]));
        most = _mm512_add_ps(most, _mm512_mul_ps(error, _mm512_loadu_ps(&side.norm[q])));
        most = _mm512_add_ps(most, _mm512_mul_ps(norm, _mm512_loadu_ps(&side.error[q])));
        most = _mm512_add_ps(most, _mm512_set1_ps(row.own));
        uint32_t mask = _mm512_cmp_ps_mask(most, _mm512_loadu_ps(least + q), _CMP_GE_OQ);
        for (; mask; mask &= mask - 1) numbers[found++] = uint32_t(q) + uint32_t(__builtin_ctz(mask));
    }
    return found;
}

void add(const float* x, size_t n, double* sums) {
    for (size_t j = 0; j < n; ++j) sums[j] += double(x[j]);
}

void add(const Half* x, size_t n, double* sums) {
    for (size_t j = 0; j < n; ++j) sums[j] += widened(x[j]);
}

// Buffers of one thread.
struct Buffers {
    std::vector<float> y;
    std::vector<int8_t> bytes;
    std::vector<int32_t> dots;
    std::vector<uint32_t> numbers;
    std::vector<std::vector<int64_t>> candidates;  // of each query
    std::vector<double> scores;
};

class Reach {
   public:
    explicit Reach(const ReachTask& task)
        : task_(task),
          width_((task.dims + kLanes - 1) / kLanes * kLanes),
          tiles_((task.count + kTile - 1) / kTile),
          slack_(4.0f * float(task.dims + 16) * 0x1p-24f),
          codes_(tiles_ * kTile * width_, uint8_t(128)),
          centre_(width_, 0.0f) {
        for (size_t row = 0; row < task.n; ++row)
            if (task.levels[row]) rows_.push_back(int64_t(row));
        find_centre();
        for (std::vector<float>* each : {&side_.scale, &side_.norm, &side_.error}) each->assign(tiles_ * kTile, 0.0f);
        side_.least.assign(task.depth, std::vector<float>(tiles_ * kTile, kInfinity));
        Buffers buffers = make_buffers();
        for (size_t q = 0; q < task.count; ++q) take(q, buffers);
        wide_.assign(task.queries, task.queries + task.count * task.dims);
    }

    size_t units() const { return (rows_.size() + kUnit - 1) / kUnit; }

    Buffers make_buffers() const {
        Buffers b;
        b.y.resize(width_);
        b.bytes.resize(kTogether * width_);
        b.dots.resize(kTogether * tiles_ * kTile);
        b.numbers.resize(task_.count);
        b.candidates.resize(task_.count);
        return b;
    }

    // The rows of one unit that reach the floors: query by query, rows ascending; `counts`: how many of each query.
    void run(size_t unit, Buffers& b, std::vector<Reached>& found, std::vector<uint32_t>& counts) const {
        const size_t end = std::min(rows_.size(), (unit + 1) * kUnit);
        for (auto& each : b.candidates) each.clear();
        for (size_t at = unit * kUnit; at < end; at += kTogether) rule_out(at, std::min(kTogether, end - at), b);
        counts.resize(task_.count);
        for (size_t q = 0; q < task_.count; ++q) {
            const size_t before = found.size();
            score(q, b, found);
            counts[q] = uint32_t(found.size() - before);
        }
    }

   private:
    // Calls visit with the row's numbers.
    template <class Visit>
    auto with_row(int64_t row, const Visit& visit) const {
        const size_t from = size_t(row) * task_.dims;
        if (task_.half) return visit(static_cast<const Half*>(task_.vectors) + from);
        return visit(static_cast<const float*>(task_.vectors) + from);
    }

    // Asks for the lines of a row that comes after the products of those before it, which take longer than they do.
    void fetch(int64_t row) const {
        const size_t bytes = task_.dims * (task_.half ? sizeof(Half) : sizeof(float));
        const char* from = static_cast<const char*>(task_.vectors) + size_t(row) * bytes;
        for (size_t line = 0; line < bytes; line += 64) NESTVEC_PREFETCH(from + line);
    }

    // Whatever it is, results are the same: a mean only makes what is left of the vectors small, and so the errors.
    void find_centre() {
        if (rows_.empty()) return;
        const size_t step = (rows_.size() + kCentreRows - 1) / kCentreRows;
        std::vector<double> sums(task_.dims, 0.0);
        size_t taken = 0;
        for (size_t i = 0; i < rows_.size(); i += step, ++taken)
            with_row(rows_[i], [&](const auto* x) { add(x, task_.dims, sums.data()); });
        double square = 0;
        for (size_t j = 0; j < task_.dims; ++j) {
            centre_[j] = float(sums[j] / double(taken));
            square += double(centre_[j]) * double(centre_[j]);
        }
        centre_norm_ = float(std::sqrt(square)) + std::sqrt(float(width_)) * kUnderflow;
        if (centre_norm_ < kMostNorm) return;
        std::fill(centre_.begin(), centre_.end(), 0.0f);
        centre_norm_ = 0.0f;
    }

    void take(size_t q, Buffers& b) {
        const float* query = task_.queries + q * task_.dims;
        const Coded coded = code(query, task_.dims, centre_.data(), b.y.data(), b.bytes.data());
        for (std::vector<float>& least : side_.least) least[q] = -kInfinity;
        if (!coded.sure) return;
        const size_t groups = width_ / 4;
        for (size_t j = 0; j < width_; ++j)
            codes_[((q / kTile * groups + j / 4) * kTile + q % kTile) * 4 + j % 4] = uint8_t(b.bytes[j] + 128);
        const float times = task_.l2 ? 2.0f : 1.0f;
        double own = 0;
        if (task_.l2)
            own = -double(coded.norm) * double(coded.norm);
        else
            for (size_t j = 0; j < task_.dims; ++j) own += double(query[j]) * double(centre_[j]);
        const double rounded = task_.l2 ? 2.0 * double(slack_) * double(coded.norm) * double(coded.norm) : 0.0;
        side_.scale[q] = times * coded.step;
        side_.norm[q] = times * coded.norm;
        side_.error[q] = times * coded.error;
        for (size_t level = 0; level < task_.depth; ++level) {
            const double floor = task_.floors[level * task_.count + q];
            side_.least[level][q] = float(floor - own - rounded - 0x1p-20 * std::fabs(floor));
        }
    }

    Row row_of(const Coded& coded) const {
        const float most = coded.norm + centre_norm_;
        const float own = task_.l2 ? (2.0f * slack_ - 1.0f) * coded.norm * coded.norm : coded.along + slack_ * centre_norm_ * most;
        return Row{128 * coded.sum, coded.step, coded.error + slack_ * most, coded.norm + coded.error, own};
    }

    // Adds the 1..kTogether rows from number `at` on to the candidates of the queries whose floor they may reach.
    void rule_out(size_t at, size_t count, Buffers& b) const {
        Coded coded[kTogether];
        for (size_t i = 0; i < count; ++i)
            coded[i] = with_row(rows_[at + i], [&](const auto* x) {
                return code(x, task_.dims, centre_.data(), b.y.data(), b.bytes.data() + i * width_);
            });
        for (size_t i = at + kTogether; i < std::min(at + 2 * kTogether, rows_.size()); ++i) fetch(rows_[i]);
        avx512().centroid_dots(codes_.data(), task_.count, width_ / 4, b.bytes.data(), count, b.dots.data());
        for (size_t i = 0; i < count; ++i) {
            size_t found = task_.count;
            if (coded[i].sure)
                found = may_reach(b.dots.data() + i * tiles_ * kTile, tiles_ * kTile, row_of(coded[i]), side_,
                                  side_.least[task_.levels[rows_[at + i]] - 1u].data(), b.numbers.data());
            else
                std::iota(b.numbers.begin(), b.numbers.end(), 0u);
            for (size_t j = 0; j < found; ++j) b.candidates[b.numbers[j]].push_back(rows_[at + i]);
        }
    }

    void score(size_t q, Buffers& b, std::vector<Reached>& found) const {
        const std::vector<int64_t>& rows = b.candidates[q];
        b.scores.assign(rows.size(), 0.0);
        band_scores(BandTask{wide_.data() + q * task_.dims, task_.vectors, task_.half, task_.dims, rows.data(), rows.size(),
                             0, task_.dims, task_.l2, b.scores.data(), nullptr},
                    Isa::avx512);
        for (size_t i = 0; i < rows.size(); ++i)
            if (float(b.scores[i]) >= task_.floors[(task_.levels[rows[i]] - 1u) * task_.count + q]) found.push_back(Reached{rows[i], float(b.scores[i])});
    }

    const ReachTask& task_;
    size_t width_, tiles_;
    float slack_;
    std::vector<uint8_t> codes_;  // of the queries: [tiles, width / 4, kTile, 4]
    std::vector<float> centre_;
    float centre_norm_ = 0;
    Side side_;
    std::vector<double> wide_;  // the queries
    std::vector<int64_t> rows_;  // allowed
};

}  // namespace

std::vector<std::vector<Reached>> reaching(const ReachTask& task, size_t threads) {
    const Reach reach(task);
    std::vector<std::vector<Reached>> found(reach.units());
    std::vector<std::vector<uint32_t>> counts(reach.units());
    std::atomic<size_t> next{0};
    in_threads(std::max<size_t>(1, std::min(threads, reach.units())), [&](size_t) {
        Buffers buffers = reach.make_buffers();
        for (size_t unit; (unit = next.fetch_add(1)) < reach.units();) reach.run(unit, buffers, found[unit], counts[unit]);
    });
    std::vector<std::vector<Reached>> all(task.count);
    for (size_t unit = 0; unit < reach.units(); ++unit) {
        const Reached* from = found[unit].data();
        for (size_t q = 0; q < task.count; from += counts[unit][q++]) all[q].insert(all[q].end(), from, from + counts[unit][q]);
    }
    return all;
}

}  // namespace nestvec

#endif
