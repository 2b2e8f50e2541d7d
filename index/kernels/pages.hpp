// Memory in huge pages where the system has them: posting lists are read at random, and a translation lookaside buffer
// of 4 KiB pages covers little of them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace nestvec {

class Pages {
   public:
    explicit Pages(size_t bytes) : bytes_(bytes) {
#ifdef __linux__
        // Private and anonymous: transparent huge pages do nothing for shared mappings.
        mapped_ = bytes + kHuge;
        start_ = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (start_ == MAP_FAILED) throw std::bad_alloc();
        data_ = reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(start_) + kHuge - 1) & ~uintptr_t(kHuge - 1));
        if (bytes >= kHuge) madvise(data_, bytes, MADV_HUGEPAGE);
#else
        start_ = std::malloc(bytes + 64);
        if (start_ == nullptr) throw std::bad_alloc();
        data_ = reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(start_) + 63) & ~uintptr_t(63));
#endif
    }

    Pages(const Pages&) = delete;
    Pages& operator=(const Pages&) = delete;

    ~Pages() {
#ifdef __linux__
        munmap(start_, mapped_);
#else
        std::free(start_);
#endif
    }

    uint8_t* data() const { return data_; }
    size_t size() const { return bytes_; }

   private:
    static constexpr size_t kHuge = size_t(1) << 21;
    size_t bytes_, mapped_ = 0;
    void* start_;
    uint8_t* data_;
};

}  // namespace nestvec
