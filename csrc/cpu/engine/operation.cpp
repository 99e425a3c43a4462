#include "operation.h"

#include <chrono>

#include "../parallel.h"

namespace lpk::engine {

namespace {

using Operations = std::vector<const Operation*>::const_iterator;

using Clock = std::chrono::steady_clock;

// seconds: where what it takes is added; null: nobody asks.
void run_one(const Operation& operation, const Part& part, int threads, double* seconds) {
  if (seconds == nullptr) return operation.run(part, threads);
  const Clock::time_point began = Clock::now();
  operation.run(part, threads);
  *seconds += std::chrono::duration<double>(Clock::now() - began).count();
}

// seconds: of each operation, or null.
void run_stretch(Operations first, Operations last, int threads, double* seconds) {
  const int64_t blocks = (*first)->blocks, each = blocks / threads, left = blocks % threads, count = last - first;
  std::vector<double> taken(seconds == nullptr ? 0 : threads * count);  // by each thread
  if (each > 0)
    parallel_for(threads, threads, [&](int64_t begin, int64_t end, int) {
      for (int64_t thread = begin; thread < end; ++thread)
        for (int64_t block = thread * each; block < (thread + 1) * each; ++block)
          for (int64_t i = 0; i < count; ++i)
            run_one(*first[i], {block, 1, thread}, 1, seconds == nullptr ? nullptr : &taken[thread * count + i]);
    });
  for (int64_t i = 0; i < int64_t(taken.size()); ++i) seconds[i % count] += taken[i] / threads;
  if (left > 0)
    for (int64_t i = 0; i < count; ++i)
      run_one(*first[i], {blocks - left, left, 0}, threads, seconds == nullptr ? nullptr : seconds + i);
}

void run_all(const std::vector<const Operation*>& operations, int threads, double* seconds) {
  for (Operations first = operations.begin(); first != operations.end();) {
    // What was cut into patches has other blocks than what was not.
    const Operations last = std::find_if(first, operations.end(), [&](const Operation* operation) {
      return operation->blocks != (*first)->blocks;
    });
    run_stretch(first, last, threads, seconds == nullptr ? nullptr : seconds + (first - operations.begin()));
    first = last;
  }
}

}  // namespace

void run(const std::vector<const Operation*>& operations, int threads) { run_all(operations, threads, nullptr); }

std::vector<double> seconds(const std::vector<const Operation*>& operations, int threads) {
  std::vector<double> taken(operations.size());
  run_all(operations, threads, taken.data());
  return taken;
}

}  // namespace lpk::engine
