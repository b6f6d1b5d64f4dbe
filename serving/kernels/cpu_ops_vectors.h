// What every op of cpu_ops.cpp shares: vectors of fp32 read from and written to any dtype, dispatch
// by dtype, rows over torch's threads, checks of arguments. ATen's vectors make one source serve
// AVX512, AVX2 and NEON; which one is known from the compiler's flags, and set before its headers.
#pragma once

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#define CPU_CAPABILITY AVX512
#define CPU_CAPABILITY_AVX512
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define CPU_CAPABILITY AVX2
#define CPU_CAPABILITY_AVX2
#else
#define CPU_CAPABILITY DEFAULT
#endif

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace serving_cpu {

using at::BFloat16;
using at::Tensor;
using Vec = at::vec::Vectorized<float>;

constexpr int64_t kWidth = Vec::size();
constexpr float kInf = std::numeric_limits<float>::infinity();

// Reads n <= kWidth elements as fp32; the lanes beyond n hold `fill`.
template <typename T>
inline Vec read(const T* p, int64_t n = kWidth, float fill = 0) {
  T padded[kWidth];
  if (n < kWidth) {
    std::fill_n(padded, kWidth, T(fill));
    std::copy_n(p, n, padded);
    p = padded;
  }
  if constexpr (std::is_same_v<T, float>) {
    return Vec::loadu(p);
  } else {
    Vec v;
    at::vec::load_to_float<T>(p, v);
    return v;
  }
}

// Rounds to T; only the first kWidth elements of the result count.
template <typename T>
inline at::vec::Vectorized<T> narrow(Vec v) {
#ifdef __AVX512BF16__
  if constexpr (std::is_same_v<T, BFloat16>) {
    return _mm512_castsi256_si512((__m256i)_mm512_cvtneps_pbh(v));
  }
#endif
  return at::vec::convert_from_float<T>(v, v);
}

// Writes the first n <= kWidth lanes, rounded to T.
template <typename T>
inline void write(T* p, Vec v, int64_t n = kWidth) {
  if constexpr (std::is_same_v<T, float>) {
    v.store(p, n);
  } else {
    const at::vec::Vectorized<T> values = narrow<T>(v);
    if (n < kWidth) {
      values.store(p, n);
    } else {  // a plain store: a masked one could not be forwarded to the load that follows
      std::memcpy(p, &values, kWidth * sizeof(T));
    }
  }
}

template <typename T>
inline Vec rounded(Vec v) {
  if constexpr (std::is_same_v<T, float>) {
    return v;
  } else {
    return std::get<0>(at::vec::convert_to_float<T>(narrow<T>(v)));
  }
}

inline float reduce_sum(Vec v) {
  return at::vec::vec_reduce_all<float>([](Vec a, Vec b) { return a + b; }, v);
}

inline float reduce_max(Vec v) {
  return at::vec::vec_reduce_all<float>([](Vec a, Vec b) { return at::vec::maximum(a, b); }, v);
}

// Calls body(first, count) over [0, n); count is a compile-time kWidth except for the tail.
template <typename F>
inline void for_vectors(int64_t n, const F& body) {
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) body(i, std::integral_constant<int64_t, kWidth>{});
  if (i < n) body(i, n - i);
}

// Calls body with a value of the C++ type of the tensor's elements.
template <typename F>
void by_dtype(const Tensor& t, const F& body) {
  switch (t.scalar_type()) {
    case at::kFloat: return body(float{});
    case at::kHalf: return body(at::Half{});
    case at::kBFloat16: return body(BFloat16{});
    default: break;
  }
  TORCH_CHECK(false, "dtype must be float32, float16 or bfloat16, got ", t.scalar_type());
}

// body(row) for each row of `width` elements; a thread is woken for no less than 16k elements.
template <typename F>
void parallel_rows(int64_t rows, int64_t width, const F& body) {
  const int64_t grain = std::max<int64_t>(1, 16384 / std::max<int64_t>(1, width));
  at::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) body(row);
  });
}

inline void check_rows(const Tensor& t, const char* name, int64_t dim) {
  TORCH_CHECK(t.dim() == dim, name, " must have ", dim, " dimensions, got ", t.dim());
  TORCH_CHECK(t.numel() == 0 || t.stride(-1) == 1, name,
              " must be contiguous in its last dimension");
}

inline void check_like(const Tensor& t, const char* name, const Tensor& x) {
  TORCH_CHECK(t.scalar_type() == x.scalar_type(), name, " must be ", x.scalar_type(), ", got ",
              t.scalar_type());
}

inline void check_vector(const Tensor& t, const char* name, int64_t size, at::ScalarType dtype) {
  TORCH_CHECK(t.is_contiguous() && t.dim() == 1 && t.size(0) == size && t.scalar_type() == dtype,
              name, " must be a contiguous ", dtype, " of shape [", size, "], got ",
              t.scalar_type(), " of shape ", t.sizes());
}

}  // namespace serving_cpu
