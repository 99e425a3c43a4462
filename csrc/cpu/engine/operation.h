// An operation of the engine with its arguments, for some of its blocks of images; and several, one after the other.
#pragma once

#include <functional>
#include <vector>

#include "engine.h"

namespace lpk::engine {

struct Operation {
  int64_t blocks;
  std::function<void(int64_t first, int64_t count, int threads)> run;
};

// Blocks do not depend on each other: where there are enough of them, each thread takes some through all operations,
// and their activations stay in its cache. Else the threads share each operation. What reads other blocks than its own
// (global_average_pool of patches, multiply by what it returned) has another number of them than what it reads.
void run(const std::vector<const Operation*>& operations, int threads);

}  // namespace lpk::engine
