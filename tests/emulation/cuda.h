// Runs the CUDA kernels of csrc/cuda on a CPU, without a GPU: a test of their logic, not of their speed or of races.
// The threads of a block are fibers that run in turn from one barrier to the next; blocks run one after the other.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <vector>

#define LPK_EMULATED
#undef __shared__
#define __shared__ static

namespace emulation {

constexpr std::size_t kStack = 1 << 16;
inline ucontext_t scheduler;
inline std::vector<ucontext_t> fibers;
inline std::vector<char> alive;
inline std::vector<unsigned> exchanged;
inline unsigned current;
inline std::function<void()> body;

inline void run() {
  body();
  alive[current] = 0;
  swapcontext(&fibers[current], &scheduler);
}

inline void barrier() { swapcontext(&fibers[current], &scheduler); }

}  // namespace emulation

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

inline void __syncthreads() { emulation::barrier(); }

// Every thread of the block must call it, as all kernels here do.
inline unsigned __reduce_add_sync(unsigned, unsigned value) {
  emulation::exchanged[threadIdx.x] = value;
  emulation::barrier();
  const unsigned first = threadIdx.x / 32 * 32;
  unsigned sum = 0;
  for (unsigned i = first; i < std::min(first + 32, blockDim.x); ++i) sum += emulation::exchanged[i];
  emulation::barrier();
  return sum;
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

template <class Body>
void emulate(dim3 blocks, unsigned threads, Body&& kernel) {
  using namespace emulation;
  body = kernel;
  gridDim = blocks;
  blockDim = dim3(threads);
  fibers.resize(threads);
  alive.resize(threads);
  exchanged.resize(threads);
  static std::vector<char> stacks;
  stacks.resize(std::max(stacks.size(), threads * kStack));
  for (unsigned y = 0; y < blocks.y; ++y) {
    for (unsigned x = 0; x < blocks.x; ++x) {
      for (unsigned t = 0; t < threads; ++t) {
        getcontext(&fibers[t]);
        fibers[t].uc_stack.ss_sp = stacks.data() + t * kStack;
        fibers[t].uc_stack.ss_size = kStack;
        fibers[t].uc_link = nullptr;
        makecontext(&fibers[t], run, 0);
        alive[t] = 1;
      }
      for (bool any = true; any;) {
        any = false;
        for (unsigned t = 0; t < threads; ++t) {
          if (!alive[t]) continue;
          any = true;
          current = t;
          threadIdx = dim3(t);
          blockIdx = dim3(x, y);
          swapcontext(&scheduler, &fibers[t]);
        }
      }
    }
  }
}

#define LPK_LAUNCH(kernel, blocks, threads, stream, ...) \
  (void)(stream), emulate(dim3(blocks), unsigned(threads), [=] { kernel(__VA_ARGS__); })
