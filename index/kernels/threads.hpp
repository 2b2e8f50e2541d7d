// The same work on several threads.
#pragma once

#include <cstddef>
#include <exception>
#include <thread>
#include <vector>

namespace nestvec {

// Calls work(t) on thread t of `threads`, this one being the first, and waits; rethrows the first failure.
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
