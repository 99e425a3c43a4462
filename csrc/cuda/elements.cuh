// One element of a flat vector on the device: the arithmetic that every backend shares; and how kernels are launched.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <stdexcept>
#include <string>

#include "operations.h"

#ifndef LPK_EMULATED  // tests/emulation runs these kernels without a GPU
#define LPK_LAUNCH(kernel, blocks, threads, stream, ...) kernel<<<blocks, threads, 0, stream>>>(__VA_ARGS__)
#endif

namespace lpk::cuda {

// How each dtype is stored: its bits, and the key of a magnitude, which orders like it.
struct Float32 {
  using Stored = float;
  static __device__ float widen(float x) { return x; }
  static __device__ float narrow(float x) { return x; }
  static __device__ Key key(float x) { return __float_as_int(x) & 0x7fffffff; }
  static __device__ float value(Key key) { return __int_as_float(key); }
};

struct Float16 {
  using Stored = __half;
  static __device__ float widen(__half x) { return __half2float(x); }
  static __device__ __half narrow(float x) { return __float2half_rn(x); }
  static __device__ Key key(__half x) { return __half_as_ushort(x) & 0x7fff; }
  static __device__ float value(Key key) { return __half2float(__ushort_as_half(static_cast<unsigned short>(key))); }
};

struct Bfloat16 {
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

// x from a and b as they are stored.
template <class D>
__device__ typename D::Stored interpolated(typename D::Stored a, typename D::Stored b, float alpha) {
  return D::narrow(__fmaf_rn(alpha, D::widen(a), __fmul_rn(1.0f - alpha, D::widen(b))));
}

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
__device__ inline bool survives(float x, int64_t i, float value, int64_t last) {
  const float magnitude = fabsf(x);
  return magnitude > value || (magnitude == value && i <= last);
}

constexpr int kThreads = 256;
constexpr int64_t kMostBlocks = 1 << 16;  // a grid-stride loop does the rest

inline unsigned blocks_for(int64_t pieces) { return unsigned(pieces < kMostBlocks ? pieces : kMostBlocks); }

__device__ inline int64_t first_index() { return int64_t(blockIdx.x) * blockDim.x + threadIdx.x; }
__device__ inline int64_t stride() { return int64_t(gridDim.x) * blockDim.x; }

inline void check_launch() {
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
}

// body(D{}) with the dtype's D.
template <class Body>
void for_dtype(Dtype dtype, Body&& body) {
  if (dtype == kFloat32) body(Float32{});
  if (dtype == kFloat16) body(Float16{});
  if (dtype == kBfloat16) body(Bfloat16{});
}

}  // namespace lpk::cuda
