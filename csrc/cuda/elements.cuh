// One element of a flat vector on the device: the arithmetic that every backend shares; and how kernels are launched.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#ifndef LPK_EMULATED  // tests/ops/emulation runs these kernels without a GPU
#include <cuda_runtime.h>
#endif

#include <atomic>
#include <stdexcept>
#include <string>

#include "operations.h"

#ifndef LPK_EMULATED
#define LPK_LAUNCH(kernel, blocks, threads, stream, ...) kernel<<<blocks, threads, 0, stream>>>(__VA_ARGS__)
#endif

namespace lpk::cuda {

// How each dtype is stored: its bits, and the key of a magnitude, which orders like it.
struct Float32 {
  static constexpr int kKeyBits = 31;
  using Stored = float;
  static __device__ float widen(float x) { return x; }
  static __device__ float narrow(float x) { return x; }
  static __device__ Key key(float x) { return __float_as_int(x) & 0x7fffffff; }
  static __device__ float value(Key key) { return __int_as_float(key); }
};

struct Float16 {
  static constexpr int kKeyBits = 15;
  using Stored = __half;
  static __device__ float widen(__half x) { return __half2float(x); }
  static __device__ __half narrow(float x) { return __float2half_rn(x); }
  static __device__ Key key(__half x) { return __half_as_ushort(x) & 0x7fff; }
  static __device__ float value(Key key) { return __half2float(__ushort_as_half(static_cast<unsigned short>(key))); }
};

struct Bfloat16 {
  static constexpr int kKeyBits = 15;
  using Stored = __nv_bfloat16;
  static __device__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
  static __device__ __nv_bfloat16 narrow(float x) { return __float2bfloat16_rn(x); }
  static __device__ Key key(__nv_bfloat16 x) { return __bfloat16_as_ushort(x) & 0x7fff; }
  static __device__ float value(Key key) { return __int_as_float(key << 16); }
};

template <class T>
__device__ T get(Scalar<T> scalar) {
  return scalar.device ? *scalar.device : scalar.value;
}

__device__ inline float get(const Coefficients& alphas, int k) {
  return alphas.device ? alphas.device[k] : alphas.values[k];
}

// x from a and b as they are stored.
template <class D>
__device__ typename D::Stored interpolated(typename D::Stored a, typename D::Stored b, float alpha) {
  return D::narrow(__fmaf_rn(alpha, D::widen(a), __fmul_rn(1.0f - alpha, D::widen(b))));
}

// The i-th entry of x.
template <class D>
__device__ typename D::Stored element(const Vectors& v, float alpha, int64_t i) {
  const auto* a = static_cast<const typename D::Stored*>(v.a);
  const auto* b = static_cast<const typename D::Stored*>(v.b);
  return b ? interpolated<D>(a[i], b[i], alpha) : a[i];
}

__device__ inline void report(const Vectors& v, int64_t i) {
  atomicMin(reinterpret_cast<long long*>(v.first_bad), static_cast<long long>(i));
}

__device__ inline bool finite(float x) { return (__float_as_int(x) & 0x7fffffff) < 0x7f800000; }

// |x| > value survives, and |x| = value up to position `last`.
struct Threshold {
  float value;
  int64_t last;

  __device__ bool survived_by(float x, int64_t i) const {
    const float magnitude = fabsf(x);
    return (magnitude > value) | ((magnitude == value) & (i <= last));  // without branches
  }
};

inline void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
}
inline void check_launch() { check(cudaGetLastError()); }

// A block takes a tile of neighbouring entries; each of its threads has kPerThread of them, kThreads apart, so that a warp
// reads whole cache lines and all reads of a thread are under way at once.
constexpr int kThreads = 256;
constexpr int kPerThread = 8;
constexpr int kTile = kThreads * kPerThread;

__host__ __device__ inline int64_t tiles(int64_t n) { return (n + kTile - 1) / kTile; }

// Where a thread's e-th entry lies in the tile.
__device__ inline int place(int e) { return e * kThreads + int(threadIdx.x); }

// Bit e: whether the thread's e-th entry of a tile of this size exists.
__device__ inline unsigned existing(int size) { return (1u << ((size + kThreads - 1 - int(threadIdx.x)) / kThreads)) - 1; }

// How a tile is read. kByEntry: each entry where it exists. kAtOnce: without asking, unless it is the last tile; for sweeps.
// kStreamed: so, and what is read makes room in the caches first.
enum Reading { kByEntry, kAtOnce, kStreamed };

// A thread's entries of the tile that begins at `begin`: 0 where none exist, and those of b where there is no b.
template <class D, Reading reading = kByEntry>
struct Tile {
  using Stored = typename D::Stored;
  int64_t begin;
  int size;  // how many entries of the tile exist
  Stored a[kPerThread], b[kPerThread];

  __device__ Tile(const Vectors& v, int64_t begin)
      : begin(begin), size(int(v.n - begin < kTile ? v.n - begin : kTile)) {
    load(a, v.a);
    load(b, v.b);
  }
  __device__ bool exists(int e) const { return place(e) < size; }
  __device__ int64_t index(int e) const { return begin + place(e); }

 private:
  __device__ void load(Stored (&own)[kPerThread], const void* vector) const {
    const auto* from = static_cast<const Stored*>(vector) + begin;
    if (reading != kByEntry && vector != nullptr && size == kTile) {
      const Stored* first = from + threadIdx.x;  // the others are a constant away
#pragma unroll
      for (int e = 0; e < kPerThread; ++e) own[e] = reading == kStreamed ? __ldcs(first + e * kThreads) : first[e * kThreads];
      return;
    }
#pragma unroll
    for (int e = 0; e < kPerThread; ++e)
      own[e] = vector != nullptr && exists(e) ? from[place(e)] : D::narrow(0.0f);
  }
};

// out[i] = f(x, i) for all entries x of the tile; reports an x that is not finite.
template <class D, class Out, class F>
__device__ void map_tile(const Vectors& v, const Tile<D>& tile, float alpha, Out* out, F f) {
  const auto x = [&](int e) { return v.b ? interpolated<D>(tile.a[e], tile.b[e], alpha) : tile.a[e]; };
  bool all_finite = true;
#pragma unroll
  for (int e = 0; e < kPerThread; ++e) {
    all_finite = all_finite && finite(D::widen(x(e)));
    if (tile.exists(e)) out[tile.index(e)] = f(x(e), tile.index(e));
  }
  if (all_finite) return;
#pragma unroll
  for (int e = 0; e < kPerThread; ++e)
    if (!finite(D::widen(x(e)))) report(v, tile.index(e));
}

// The tile of a block in a grid with one block for each.
template <class D>
__device__ Tile<D> own_tile(const Vectors& v) {
  return Tile<D>(v, int64_t(blockIdx.x) * kTile);
}

constexpr int kMostDevices = 64;  // that are remembered

// As many blocks of a kernel as the device runs at once.
template <auto kernel>
unsigned resident_blocks() {
#ifdef LPK_EMULATED
  return 3;
#else
  static std::atomic<unsigned> known[kMostDevices];  // of each device; 0: not yet
  int device = 0;
  check(cudaGetDevice(&device));
  auto& own = known[device % kMostDevices];
  if (device < kMostDevices && own.load() != 0) return own.load();
  int processors = 0, each = 0;
  check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device));
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, kThreads, 0));
  const auto blocks = unsigned(processors * (each > 0 ? each : 1));
  if (device < kMostDevices) own.store(blocks);
  return blocks;
#endif
}

// Launches a kernel whose blocks wait for each other: all of them run at once, or none. What looks on (a debugger, a sanitizer)
// may leave room for fewer than resident_blocks() says. A single block has nobody to wait for, and is launched like others.
template <auto kernel, class Argument>
void launch_together(unsigned blocks, cudaStream_t stream, Argument argument) {
#ifdef LPK_EMULATED
  emulate_together(blocks, kThreads, [=] { kernel(argument); });
#else
  void* arguments[] = {&argument};
  if (blocks == 1)
    return check(cudaLaunchKernel(reinterpret_cast<const void*>(kernel), 1, kThreads, arguments, 0, stream));
  for (;; blocks /= 2) {
    const auto error =
        cudaLaunchCooperativeKernel(reinterpret_cast<const void*>(kernel), blocks, kThreads, arguments, 0, stream);
    if (error != cudaErrorCooperativeLaunchTooLarge || blocks == 1) return check(error);
    cudaGetLastError();  // forgotten
  }
#endif
}

// body(D{}) with the dtype's D.
template <class Body>
void for_dtype(Dtype dtype, Body&& body) {
  if (dtype == kFloat32) body(Float32{});
  if (dtype == kFloat16) body(Float16{});
  if (dtype == kBfloat16) body(Bfloat16{});
}

}  // namespace lpk::cuda
