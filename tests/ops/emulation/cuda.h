// Runs the CUDA kernels of csrc/cuda on a CPU, without a GPU: a test of their logic, not of their speed or of races.
// The threads of a block are fibers that run in turn, each until it has to wait for others of its warp or block; blocks run
// one after the other, forwards or backwards. Where blocks wait for each other, each has a thread of the system, and with it
// its own memory; they take turns, from one wait to the next.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#define LPK_EMULATED
#undef __shared__
#define __shared__ static thread_local
#undef __grid_constant__
#define __grid_constant__
#define __launch_bounds__(...)
#undef __noinline__
#define __noinline__ __attribute__((noinline))

namespace emulation {

constexpr std::size_t kStack = 1 << 16;

// One thread of a block. It is started once and takes part in one block after the other.
struct Fiber {
  std::unique_ptr<char[]> stack = std::make_unique_for_overwrite<char[]>(kStack);
  ucontext_t start;
  jmp_buf resume;
  bool started = false, running = false;
};

inline thread_local std::vector<std::unique_ptr<Fiber>> fibers;
inline thread_local jmp_buf scheduler;
inline thread_local std::vector<unsigned long long> exchanged;
inline thread_local unsigned current;
inline thread_local std::function<void()> body;
inline bool backwards = false;  // the last block and the last thread come first: shows where a barrier is missing

// The next thread's turn, without the system calls of swapcontext.
inline void yield() {
  if (!_setjmp(fibers[current]->resume)) _longjmp(scheduler, 1);
}

// What a block or a warp waits at: those of its threads that have not ended.
struct Barrier {
  unsigned threads = 0, arrived = 0;
  unsigned long long passed = 0;

  void wait() {
    ++arrived;
    for (const unsigned long long before = passed; passed == before;) {
      if (arrived < threads) {
        yield();
      } else {
        arrived = 0;
        ++passed;
      }
    }
  }
};
inline thread_local Barrier block;
inline thread_local std::vector<Barrier> warps;

inline void run() {
  for (;;) {
    body();
    fibers[current]->running = false;
    --block.threads;
    --warps[current / 32].threads;
    yield();
  }
}

inline void resume(unsigned thread) {
  current = thread;
  Fiber& fiber = *fibers[thread];
  if (_setjmp(scheduler)) return;
  if (fiber.started) _longjmp(fiber.resume, 1);
  fiber.started = true;
  getcontext(&fiber.start);
  fiber.start.uc_stack.ss_sp = fiber.stack.get();
  fiber.start.uc_stack.ss_size = kStack;
  fiber.start.uc_link = nullptr;
  makecontext(&fiber.start, run, 0);
  setcontext(&fiber.start);
}

}  // namespace emulation

inline thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

// The blocks of a kernel that wait for each other, in the order in which they take turns.
class Turns {
 public:
  explicit Turns(unsigned blocks) : waits_(blocks) {}

  void begin(unsigned place) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return turn_ == place; });
  }
  void wait(unsigned place) {
    ++waits_[place];
    pass_on(place);
    begin(place);
  }
  void end(unsigned place) { pass_on(place); }

 private:
  void pass_on(unsigned place) {
    std::unique_lock lock(mutex_);
    if (place > 0 && waits_[place] != waits_[0]) misled("a block waits more often, or less, than another");
    turn_ = (place + 1) % waits_.size();
    changed_.notify_all();
  }
  [[noreturn]] static void misled(const char* what) {
    std::fprintf(stderr, "emulation: %s\n", what);
    std::abort();
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<unsigned> waits_;  // of each block, so far
  unsigned turn_ = 0;
};
inline thread_local Turns* turns = nullptr;
inline thread_local unsigned place = 0;

}  // namespace emulation

inline void __syncthreads() { emulation::block.wait(); }

namespace cooperative_groups {

struct Grid {
  void sync() const {
    __syncthreads();
    if (threadIdx.x == 0) {
      const dim3 own = threadIdx;
      emulation::turns->wait(emulation::place);
      threadIdx = own;
    }
    __syncthreads();
  }
};
inline Grid this_grid() { return {}; }

}  // namespace cooperative_groups

inline void __syncwarp() { emulation::warps[threadIdx.x / 32].wait(); }

namespace emulation {

// Each thread of a warp or block hands over a value; what combine() makes of those of all.
template <class Combine>
unsigned long long exchange(Barrier& barrier, unsigned long long value, Combine combine) {
  exchanged[threadIdx.x] = value;
  barrier.wait();
  const unsigned long long result = combine();
  barrier.wait();
  return result;
}

inline Barrier& warp() { return warps[threadIdx.x / 32]; }

}  // namespace emulation

inline unsigned __reduce_add_sync(unsigned, unsigned value) {
  return unsigned(emulation::exchange(emulation::warp(), value, [] {
    const unsigned first = threadIdx.x / 32 * 32;
    unsigned long long sum = 0;
    for (unsigned i = first; i < std::min(first + 32, blockDim.x); ++i) sum += emulation::exchanged[i];
    return sum;
  }));
}

inline unsigned __reduce_or_sync(unsigned, unsigned value) {
  return unsigned(emulation::exchange(emulation::warp(), value, [] {
    const unsigned first = threadIdx.x / 32 * 32;
    unsigned long long all = 0;
    for (unsigned i = first; i < std::min(first + 32, blockDim.x); ++i) all |= emulation::exchanged[i];
    return all;
  }));
}

inline unsigned __ballot_sync(unsigned lanes, bool value) { return __reduce_or_sync(lanes, unsigned(value) << threadIdx.x % 32); }

inline unsigned long long __shfl_sync(unsigned, unsigned long long value, unsigned lane) {
  return emulation::exchange(emulation::warp(), value,
                             [=] { return emulation::exchanged[threadIdx.x / 32 * 32 + lane]; });
}

inline unsigned long long __shfl_up_sync(unsigned, unsigned long long value, unsigned distance) {
  return emulation::exchange(emulation::warp(), value, [=] {
    return emulation::exchanged[threadIdx.x % 32 >= distance ? threadIdx.x - distance : threadIdx.x];
  });
}

inline int __syncthreads_or(int value) {
  return int(emulation::exchange(emulation::block, value != 0, [] {
    unsigned long long any = 0;
    for (unsigned i = 0; i < blockDim.x; ++i) any |= emulation::exchanged[i];
    return any;
  }));
}

template <class T>
T atomicAdd(T* at, T value) {
  const T old = *at;
  *at += value;
  return old;
}
inline long long atomicMin(long long* at, long long value) {
  const long long old = *at;
  *at = std::min(old, value);
  return old;
}

template <class T>
T __ldcs(const T* at) {
  return *at;
}

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned by) {
  return unsigned(((static_cast<unsigned long long>(high) << 32 | low) << by) >> 32);
}
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline int __float_as_int(float x) {
  int i;
  std::memcpy(&i, &x, 4);
  return i;
}
inline float __int_as_float(int i) {
  float x;
  std::memcpy(&x, &i, 4);
  return x;
}

extern "C" inline cudaError_t cudaGetLastError() { return cudaSuccess; }
extern "C" inline const char* cudaGetErrorString(cudaError_t) { return ""; }

inline long long clock64() {
  static std::atomic<long long> clock{0};
  return ++clock;
}

namespace emulation {

// Runs one block to its end.
inline void run_block(dim3 index, dim3 blocks, unsigned threads, const std::function<void()>& kernel) {
  body = kernel;
  gridDim = blocks;
  blockDim = dim3(threads);
  blockIdx = index;
  exchanged.resize(threads);
  while (fibers.size() < threads) fibers.push_back(std::make_unique<Fiber>());
  for (unsigned t = 0; t < threads; ++t) fibers[t]->running = true;
  block = {threads};
  warps.assign(threads / 32, {32});
  for (bool any = true; any;) {
    any = false;
    for (unsigned i = 0; i < threads; ++i) {
      const unsigned t = backwards ? threads - 1 - i : i;
      if (!fibers[t]->running) continue;
      any = true;
      threadIdx = dim3(t);
      resume(t);
    }
  }
}

}  // namespace emulation

inline void emulate(dim3 blocks, unsigned threads, const std::function<void()>& kernel) {
  for (unsigned y = 0; y < blocks.y; ++y)
    for (unsigned x = 0; x < blocks.x; ++x)
      emulation::run_block(dim3(emulation::backwards ? blocks.x - 1 - x : x, y), blocks, threads, kernel);
}

inline void emulate_together(unsigned blocks, unsigned threads, const std::function<void()>& kernel) {
  emulation::Turns turns(blocks);
  std::vector<std::thread> system_threads;
  for (unsigned place = 0; place < blocks; ++place)
    system_threads.emplace_back([&, place] {
      emulation::turns = &turns;
      emulation::place = place;
      turns.begin(place);
      emulation::run_block(dim3(emulation::backwards ? blocks - 1 - place : place), dim3(blocks), threads, kernel);
      turns.end(place);
    });
  for (auto& thread : system_threads) thread.join();
}

#define LPK_LAUNCH(kernel, blocks, threads, stream, ...) \
  (void)(stream), emulate(dim3(blocks), unsigned(threads), [=] { kernel(__VA_ARGS__); })
