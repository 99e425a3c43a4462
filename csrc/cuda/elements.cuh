// One element of a flat vector on the device: the arithmetic that every backend shares, and a launch over all elements.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <stdexcept>
#include <string>

#include "operations.h"

namespace lpk::cuda {

__device__ inline float widen(float x) { return x; }
__device__ inline float widen(__half x) { return __half2float(x); }
__device__ inline float widen(__nv_bfloat16 x) { return __bfloat162float(x); }

template <class T>
__device__ T narrow(float x);
template <>
__device__ inline float narrow<float>(float x) { return x; }
template <>
__device__ inline __half narrow<__half>(float x) { return __float2half_rn(x); }
template <>
__device__ inline __nv_bfloat16 narrow<__nv_bfloat16>(float x) { return __float2bfloat16_rn(x); }

template <class T>
__device__ T get(Scalar<T> scalar) { return scalar.device ? *scalar.device : scalar.value; }

// x_i as stored; reports it where it is not finite.
template <class T>
__device__ T element(const Vectors& v, float alpha, int64_t i) {
  const T* a = static_cast<const T*>(v.a);
  const T* b = static_cast<const T*>(v.b);
  const T x = b ? narrow<T>(__fmaf_rn(alpha, widen(a[i]), __fmul_rn(1.0f - alpha, widen(b[i])))) : a[i];
  if (!isfinite(widen(x))) atomicMin(reinterpret_cast<long long*>(v.first_bad), static_cast<long long>(i));
  return x;
}

// |x| > value survives, and |x| = value up to position `last`.
__device__ inline bool survives(float x, int64_t i, float value, int64_t last) {
  const float magnitude = fabsf(x);
  return magnitude > value || (magnitude == value && i <= last);
}

template <class Kernel, class... Arguments>
void launch(Kernel kernel, const Vectors& v, Arguments... arguments) {
  if (v.n == 0) return;
  constexpr int kThreads = 256;
  constexpr int64_t kMostBlocks = 1 << 16;  // a grid-stride loop does the rest
  const int64_t blocks = (v.n + kThreads - 1) / kThreads;
  kernel<<<unsigned(blocks < kMostBlocks ? blocks : kMostBlocks), kThreads, 0, v.stream>>>(v, arguments...);
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
}

__device__ inline int64_t first_index() { return int64_t(blockIdx.x) * blockDim.x + threadIdx.x; }
__device__ inline int64_t stride() { return int64_t(gridDim.x) * blockDim.x; }

}  // namespace lpk::cuda
