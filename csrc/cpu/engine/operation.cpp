#include "operation.h"

#include "../parallel.h"

namespace lpk::engine {

void run(const std::vector<const Operation*>& operations, int threads) {
  if (operations.empty()) return;
  const int64_t blocks = operations[0]->blocks;
  const int64_t most = (blocks + threads - 1) / threads;  // for one thread
  if (most * threads * 8 > blocks * 9) {                  // an eighth of the time would be waiting
    for (const Operation* operation : operations) operation->run(0, operation->blocks, threads);
    return;
  }
  parallel_for(blocks, threads, [&](int64_t begin, int64_t end, int) {
    for (const Operation* operation : operations) operation->run(begin, end - begin, 1);
  });
}

}  // namespace lpk::engine
