// Elements of a KV cache: numbers of the model's type T, or codes of one byte (kv_format.py). A coded
// number is code * scale; int8 vectors have a scale each, beside the codes, fp8 caches have one.
// In: a cache and its scales. Out: vectors of fp32 from either, and vectors of T as codes. For
// cpu_ops.cpp, which writes caches, and cpu_ops_decode.h, which reads them.
#pragma once

#include <c10/util/Float8_e4m3fn.h>
#include <c10/util/Float8_e5m2.h>

#include <cfloat>
#include <optional>

#include "cpu_ops_vectors.h"

namespace serving_cpu {

using c10::Float8_e4m3fn;
using c10::Float8_e5m2;

template <typename C>
constexpr bool kOwnScales = std::is_same_v<C, int8_t>;
template <typename C>
constexpr bool kCoded =
    kOwnScales<C> || std::is_same_v<C, Float8_e4m3fn> || std::is_same_v<C, Float8_e5m2>;

template <typename C>
struct Cache {
  C* codes;       // [blocks, kv_heads, block_size, dim]
  float* scales;  // [blocks, kv_heads, block_size], or [1], or null where there are no codes
};

// ---------------------------------------------------------------- codes to fp32

// kWidth codes each. Both kinds of fp8 are widened as float16: e5m2 is its upper half; the bits of
// e4m3 mean, with the exponent of float16, 1/256 of the number, and its NaN must be given another.
#if defined(CPU_CAPABILITY_AVX512)
inline Vec widened(const int8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
}

inline Vec widened(const Float8_e5m2* p) {
  const __m256i words = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)p));
  return _mm512_cvtph_ps(_mm256_slli_epi16(words, 8));
}

inline Vec widened(const Float8_e4m3fn* p) {
  const __m256i words = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)p));
  const __m256i most = _mm256_set1_epi16(0x3f80), nan = _mm256_set1_epi16(0x7c00);
  const __m256i half = _mm256_andnot_si256(_mm256_set1_epi16(0x4000), _mm256_slli_epi16(words, 7));
  const __m256i is_nan = _mm256_cmpeq_epi16(_mm256_and_si256(half, most), most);
  const __m256i bits = _mm256_or_si256(half, _mm256_and_si256(is_nan, nan));
  return _mm512_mul_ps(_mm512_cvtph_ps(bits), _mm512_set1_ps(256));
}
#elif defined(CPU_CAPABILITY_AVX2)
inline Vec widened(const int8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)));
}

inline Vec widened(const Float8_e5m2* p) {
  const __m128i words = _mm_cvtepi8_epi16(_mm_loadl_epi64((const __m128i*)p));
  return _mm256_cvtph_ps(_mm_slli_epi16(words, 8));
}

inline Vec widened(const Float8_e4m3fn* p) {
  const __m128i words = _mm_cvtepi8_epi16(_mm_loadl_epi64((const __m128i*)p));
  const __m128i most = _mm_set1_epi16(0x3f80), nan = _mm_set1_epi16(0x7c00);
  const __m128i half = _mm_andnot_si128(_mm_set1_epi16(0x4000), _mm_slli_epi16(words, 7));
  const __m128i is_nan = _mm_cmpeq_epi16(_mm_and_si128(half, most), most);
  const __m128i bits = _mm_or_si128(half, _mm_and_si128(is_nan, nan));
  return _mm256_mul_ps(_mm256_cvtph_ps(bits), _mm256_set1_ps(256));
}
#else
template <typename C>
Vec widened(const C* p) {
  float numbers[kWidth];
  for (int64_t i = 0; i < kWidth; ++i) numbers[i] = static_cast<float>(p[i]);
  return Vec::loadu(numbers);
}
#endif

// Reads n <= kWidth codes; the lanes beyond n hold 0.
template <typename C>
Vec read_codes(const C* p, int64_t n) {
  if (n == kWidth) return widened(p);
  C padded[kWidth];
  std::memset(padded, 0, sizeof(padded));
  std::memcpy(padded, p, n);
  return widened(padded);
}

inline Vec read(const int8_t* p, int64_t n = kWidth) { return read_codes(p, n); }
inline Vec read(const Float8_e4m3fn* p, int64_t n = kWidth) { return read_codes(p, n); }
inline Vec read(const Float8_e5m2* p, int64_t n = kWidth) { return read_codes(p, n); }

// ---------------------------------------------------------------- vectors to their slots

// x [dim] into the cache as its vector number `to`; x becomes what is read from there.
template <typename T>
void store_vector(T* x, const Cache<T>& cache, int64_t to, int64_t dim) {
  std::copy_n(x, dim, cache.codes + to * dim);
}

// The scale is that of the largest element. One NaN makes it, and so all elements, NaN.
template <typename T>
void store_vector(T* x, const Cache<int8_t>& cache, int64_t to, int64_t dim) {
  Vec top(0);
  for_vectors(dim, [&](int64_t i, auto count) {
    top = at::vec::maximum(top, read(x + i, count).abs());
  });
  const float scale = reduce_max(top) / 127;
  cache.scales[to] = scale;
  const Vec divisor(std::max(scale, FLT_MIN)), most(127), least(-127);  // zeros: no division by 0
  for_vectors(dim, [&](int64_t i, auto count) {
    const Vec code = at::vec::clamp((read(x + i, count) / divisor).round(), least, most);
    float codes[kWidth];
    code.store(codes);
    for (int64_t c = 0; c < count; ++c) {
      cache.codes[to * dim + i + c] = std::isnan(codes[c]) ? 0 : static_cast<int8_t>(codes[c]);
    }
    write(x + i, code * Vec(scale), count);
  });
}

template <typename T, typename C>
void store_fp8(T* x, const Cache<C>& cache, int64_t to, int64_t dim, float limit) {
  const float scale = *cache.scales, largest = std::numeric_limits<T>::max();
  for (int64_t i = 0; i < dim; ++i) {
    const C code(std::clamp(static_cast<float>(x[i]) / scale, -limit, limit));  // a NaN stays
    cache.codes[to * dim + i] = code;
    x[i] = T(std::clamp(static_cast<float>(code) * scale, -largest, largest));
  }
}

template <typename T>
void store_vector(T* x, const Cache<Float8_e4m3fn>& cache, int64_t to, int64_t dim) {
  store_fp8(x, cache, to, dim, 448);
}

template <typename T>
void store_vector(T* x, const Cache<Float8_e5m2>& cache, int64_t to, int64_t dim) {
  store_fp8(x, cache, to, dim, 57344);
}

// ---------------------------------------------------------------- arguments

using Scales = std::optional<Tensor>;

// body(element) with a value of the C++ type of a cache's elements; T is the model's.
template <typename T, typename F>
void by_element(const Tensor& cache, const F& body) {
  switch (cache.scalar_type()) {
    case at::kChar: return body(int8_t{});
    case at::kFloat8_e4m3fn: return body(Float8_e4m3fn{});
    case at::kFloat8_e5m2: return body(Float8_e5m2{});
    default: return body(T{});
  }
}

template <typename C>
Cache<C> cache_of(const Tensor& codes, const Scales& scales) {
  return {codes.mutable_data_ptr<C>(), scales ? scales->mutable_data_ptr<float>() : nullptr};
}

// The scale that all vectors of a cache have.
inline float shared_scale(const Tensor& codes, const Scales& scales) {
  return scales && codes.scalar_type() != at::kChar ? *scales->const_data_ptr<float>() : 1.0f;
}

inline void check_scales(const Tensor& cache, const Scales& scales, const char* name) {
  const bool own = cache.scalar_type() == at::kChar;
  const int64_t count = own ? cache.size(0) * cache.size(1) * cache.size(2) : 1;
  const bool right = scales && scales->scalar_type() == at::kFloat && scales->is_contiguous() &&
                     scales->numel() == count;
  TORCH_CHECK(right, name, " of a cache of ", cache.scalar_type(),
              " must be contiguous float32 of ",
              own ? "shape [blocks, kv_heads, block_size]" : "one element");
}

inline void check_cache(const Tensor& key_cache, const Tensor& value_cache,
                        const Scales& key_scales, const Scales& value_scales, const Tensor& like) {
  TORCH_CHECK(key_cache.is_contiguous() && value_cache.is_contiguous() && key_cache.dim() == 4 &&
                  key_cache.sizes() == value_cache.sizes(),
              "key_cache and value_cache must be contiguous and of one shape [blocks, kv_heads, "
              "block_size, head_dim]");
  check_like(value_cache, "value_cache", key_cache);
  const at::ScalarType type = key_cache.scalar_type();
  if (type == at::kChar || type == at::kFloat8_e4m3fn || type == at::kFloat8_e5m2) {
    check_scales(key_cache, key_scales, "key_scales");
    check_scales(value_cache, value_scales, "value_scales");
  } else {
    check_like(key_cache, "key_cache", like);
    TORCH_CHECK(!key_scales && !value_scales, "a cache of ", type, " has no scales");
  }
}

}  // namespace serving_cpu
