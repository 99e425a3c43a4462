// The one parallel-for. OpenMP shares its threads with PyTorch (same libgomp); a sanitizer build defines
// LPK_STD_THREAD, because ThreadSanitizer cannot see into libgomp.
#pragma once

#include <algorithm>
#include <cstdint>
#include <exception>
#include <vector>

#ifdef LPK_X86
#include <immintrin.h>
#endif
#ifdef LPK_STD_THREAD
#include <thread>
#endif

namespace lpk {

// Denormals count: whatever the calling process has set (torch.set_flush_denormal), the kernels run with the default
// floating-point environment, and give the caller's back.
class [[maybe_unused]] DefaultFloatingPoint {
#if defined(LPK_X86)
 public:
  DefaultFloatingPoint() : saved_(_mm_getcsr()) { _mm_setcsr(0x1f80); }
  ~DefaultFloatingPoint() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#elif defined(__aarch64__)
 public:
  DefaultFloatingPoint() {
    asm volatile("mrs %0, fpcr" : "=r"(saved_));
    asm volatile("msr fpcr, %0" : : "r"(uint64_t(0)));
  }
  ~DefaultFloatingPoint() { asm volatile("msr fpcr, %0" : : "r"(saved_)); }

 private:
  uint64_t saved_;
#endif
};

// The part of 0..count that thread `thread` of `threads` works on: contiguous, in order, the same in every run.
inline int64_t part(int64_t count, int threads, int thread) {
  return count / threads * thread + std::min<int64_t>(thread, count % threads);
}

// body(begin, end, thread) for each thread's part of 0..count; the first exception is thrown again in the caller.
template <class Body>
void parallel_for(int64_t count, int threads, Body&& body) {
  threads = int(std::max<int64_t>(1, std::min<int64_t>(threads, count)));
  std::vector<std::exception_ptr> failures(threads);
  auto run = [&](int thread) {
    DefaultFloatingPoint environment;
    try {
      body(part(count, threads, thread), part(count, threads, thread + 1), thread);
    } catch (...) {
      failures[thread] = std::current_exception();
    }
  };
  if (threads == 1) {
    run(0);
  } else {
#ifdef LPK_STD_THREAD
    std::vector<std::thread> workers;
    for (int thread = 1; thread < threads; ++thread) workers.emplace_back(run, thread);
    run(0);
    for (auto& worker : workers) worker.join();
#else
    // OpenMP may grant fewer threads than asked for: the loop still covers every part.
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int thread = 0; thread < threads; ++thread) run(thread);
#endif
  }
  for (const auto& failure : failures)
    if (failure) std::rethrow_exception(failure);
}

}  // namespace lpk
