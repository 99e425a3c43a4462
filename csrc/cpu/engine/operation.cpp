#include "operation.h"

#include "../parallel.h"

namespace lpk::engine {

namespace {

using Operations = std::vector<const Operation*>::const_iterator;

// Operations on the same blocks.
void run_together(Operations first, Operations last, int threads) {
  const int64_t blocks = (*first)->blocks;
  const int64_t most = (blocks + threads - 1) / threads;  // for one thread
  if (most * threads * 8 > blocks * 9) {                  // an eighth of the time would be waiting
    for (Operations i = first; i != last; ++i) (*i)->run(0, blocks, threads);
    return;
  }
  parallel_for(blocks, threads, [&](int64_t begin, int64_t end, int) {
    for (Operations i = first; i != last; ++i) (*i)->run(begin, end - begin, 1);
  });
}

}  // namespace

void run(const std::vector<const Operation*>& operations, int threads) {
  for (Operations first = operations.begin(); first != operations.end();) {
    // What was cut into patches has other blocks than what was not.
    const Operations last = std::find_if(first, operations.end(), [&](const Operation* operation) {
      return operation->blocks != (*first)->blocks;
    });
    run_together(first, last, threads);
    first = last;
  }
}

}  // namespace lpk::engine
