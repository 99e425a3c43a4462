// How many threads an operation is worth: one that has to be woken first begins some microseconds later.
#pragma once

#include <cstdint>

namespace lpk::engine {

// As many as have enough to do, but no more than `threads`. work: pixels (of 16 images) that are read and written, or
// four products of them. The outputs are the same.
int threads_for(int64_t work, int threads);

// What each thread has to do, at least; 0: back to what was measured. For tests, which wake threads for little.
void set_least_work(int64_t work);

}  // namespace lpk::engine
