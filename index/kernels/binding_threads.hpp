// Work in several threads, and the buffers of each.
#pragma once

#include <exception>
#include <thread>
#include <vector>

#include "search.hpp"

namespace nestvec {

inline Scratch& thread_scratch() {
    thread_local Scratch scratch;
    return scratch;
}

// Calls work(t) in so many threads, of which this one is the first.
template <class Work>
void in_threads(size_t threads, const Work& work) {
    std::vector<std::exception_ptr> failed(threads);  // an exception that leaves a thread ends the process
    const auto guarded = [&](size_t t) {
        try {
            work(t);
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

}  // namespace nestvec
