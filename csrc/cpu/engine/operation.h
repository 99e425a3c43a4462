// An operation of the engine with its arguments, for some of its blocks of images; and several, one after the other.
#pragma once

#include <functional>
#include <vector>

#include "engine.h"

namespace lpk::engine {

struct Operation {
  int64_t blocks;
  std::function<void(const Part& part, int threads)> run;
};

// Operations on the same number of blocks form a stretch. Every thread takes equally many blocks, one after the other,
// and each of them through the whole stretch, so that its activations stay in the thread's cache: their place is the
// thread's number. The blocks that are left over, fewer than there are threads, are computed by all threads together,
// operation by operation, in places from 0 on. What reads other blocks than its own (global_average_pool of patches,
// multiply by what it returned, relayout from another number of patches) has another number of them than what it reads.
void run(const std::vector<const Operation*>& operations, int threads);

// The same; returns how long each took: the mean of the threads where each has blocks of its own.
std::vector<double> seconds(const std::vector<const Operation*>& operations, int threads);

}  // namespace lpk::engine
