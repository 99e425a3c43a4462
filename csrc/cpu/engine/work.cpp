#include "work.h"

#include <algorithm>

namespace lpk::engine {
namespace {

constexpr int64_t kLeastWork = 1024;  // about two microseconds

int64_t least_work = kLeastWork;

}  // namespace

int threads_for(int64_t work, int threads) { return int(std::clamp<int64_t>(work / least_work, 1, threads)); }

void set_least_work(int64_t work) { least_work = work > 0 ? work : kLeastWork; }

}  // namespace lpk::engine
