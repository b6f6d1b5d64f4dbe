// How the codes of quantized weights become numbers: sixteen outputs at a time (a tile), for two
// neighbouring inputs (a pair). Used by cpu_ops_product.h. In: tiles as `pack_codes` lays them out,
// step by step, a step being one pair or more. 4-bit integers: a word of each output, eight inputs,
// the first lowest. Other nibbles: a byte of each output, the even input low. Else planar (all
// outputs of the even input, then of the odd one), or paired (output by output, both inputs) where
// products take pairs.
#pragma once

#include "cpu_ops_vectors.h"

namespace serving_cpu {

constexpr int kTile = 16;                              // outputs
constexpr int kVecs = kTile / static_cast<int>(kWidth);  // vectors of a tile
static_assert(kVecs * kWidth == kTile);

// kTable4: numbers of a table of 16, fp32, or rounded to fp16 where x is narrower (kNarrowTable4).
enum class Codes : int64_t {
  kInt4 = 0, kTable4, kInt8, kE4M3, kE5M2, kBFloat16, kHalf, kNarrowTable4
};

constexpr bool are_nibbles(Codes codes) {
  return codes == Codes::kInt4 || codes == Codes::kTable4 || codes == Codes::kNarrowTable4;
}

constexpr int64_t bytes_of_pair(Codes codes) {
  if (are_nibbles(codes)) return kTile;
  return codes == Codes::kBFloat16 || codes == Codes::kHalf ? 4 * kTile : 2 * kTile;
}

// The numbers of a pair.
struct Pair {
  Vec even[kVecs], odd[kVecs];
};

// Pairs of a step, where they are not paired; and what the inputs of a step must be multiplied with
// for kInt4, whose numbers are 0 to 15 times a power of 16: bits that stay where they are.
constexpr int pairs_of_step(Codes codes) { return codes == Codes::kInt4 ? 4 : 1; }
constexpr float kInt4Units[4] = {1, 0x1p-4f, 0x1p-8f, 0x1p-12f};

// ---------------------------------------------------------------- kWidth 32-bit integers

#if defined(CPU_CAPABILITY_AVX512)
using Ints = __m512i;
inline Ints unsigned_bytes(const uint8_t* p) {
  return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline Ints signed_bytes(const uint8_t* p) {
  return _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline Ints words(const uint8_t* p) { return _mm512_loadu_si512(p); }
inline Ints masked(Ints a, int32_t mask) { return _mm512_and_si512(a, _mm512_set1_epi32(mask)); }
template <int n>
inline Ints right(Ints a) { return _mm512_srli_epi32(a, n); }
inline Vec converted(Ints a) { return _mm512_cvtepi32_ps(a); }
inline Vec looked_up(Ints index, const float* table) {
  return _mm512_permutexvar_ps(index, _mm512_loadu_ps(table));
}
using Halves = __m256i;  // kWidth 16-bit lanes
inline Halves bytes_as_halves(const uint8_t* p) {
  return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
template <int n>
inline Halves left16(Halves a) { return _mm256_slli_epi16(a, n); }
inline Halves masked16(Halves a, int16_t mask) {
  return _mm256_and_si256(a, _mm256_set1_epi16(mask));
}
inline Vec converted_halves(Halves a) { return _mm512_cvtph_ps(a); }
#elif defined(CPU_CAPABILITY_AVX2)
using Ints = __m256i;
inline Ints unsigned_bytes(const uint8_t* p) {
  return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}
inline Ints signed_bytes(const uint8_t* p) {
  return _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}
inline Ints words(const uint8_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
inline Ints masked(Ints a, int32_t mask) { return _mm256_and_si256(a, _mm256_set1_epi32(mask)); }
template <int n>
inline Ints right(Ints a) { return _mm256_srli_epi32(a, n); }
inline Vec converted(Ints a) { return _mm256_cvtepi32_ps(a); }
inline Vec looked_up(Ints index, const float* table) {
  const __m256 low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table), index);
  const __m256 high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table + 8), index);
  return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(index, 28)));
}
using Halves = __m128i;  // kWidth 16-bit lanes
inline Halves bytes_as_halves(const uint8_t* p) {
  return _mm_cvtepi8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}
template <int n>
inline Halves left16(Halves a) { return _mm_slli_epi16(a, n); }
inline Halves masked16(Halves a, int16_t mask) { return _mm_and_si128(a, _mm_set1_epi16(mask)); }
inline Vec converted_halves(Halves a) { return _mm256_cvtph_ps(a); }
#else
struct Ints {
  int32_t lane[kWidth];
};
template <typename F>
inline Ints each(const F& f) {
  Ints r;
  for (int i = 0; i < kWidth; ++i) r.lane[i] = f(i);
  return r;
}
inline Ints unsigned_bytes(const uint8_t* p) {
  return each([&](int i) { return static_cast<int32_t>(p[i]); });
}
inline Ints signed_bytes(const uint8_t* p) {
  return each([&](int i) { return static_cast<int32_t>(static_cast<int8_t>(p[i])); });
}
inline Ints words(const uint8_t* p) {
  Ints r;
  std::memcpy(&r, p, sizeof(r));
  return r;
}
inline Ints masked(Ints a, int32_t mask) { return each([&](int i) { return a.lane[i] & mask; }); }
template <int n>
inline Ints right(Ints a) {
  return each([&](int i) { return static_cast<int32_t>(static_cast<uint32_t>(a.lane[i]) >> n); });
}
inline Vec converted(Ints a) {
  float r[kWidth];
  for (int i = 0; i < kWidth; ++i) r[i] = static_cast<float>(a.lane[i]);
  return Vec::loadu(r);
}
inline Vec looked_up(Ints index, const float* table) {
  float r[kWidth];
  for (int i = 0; i < kWidth; ++i) r[i] = table[index.lane[i]];
  return Vec::loadu(r);
}
struct Halves {  // kWidth 16-bit lanes
  uint16_t lane[kWidth];
};
inline Halves bytes_as_halves(const uint8_t* p) {
  Halves r;
  for (int i = 0; i < kWidth; ++i) r.lane[i] = static_cast<uint16_t>(static_cast<int8_t>(p[i]));
  return r;
}
template <int n>
inline Halves left16(Halves a) {
  for (uint16_t& one : a.lane) one = static_cast<uint16_t>(one << n);
  return a;
}
inline Halves masked16(Halves a, int16_t mask) {
  for (uint16_t& one : a.lane) one &= static_cast<uint16_t>(mask);
  return a;
}
inline Vec converted_halves(Halves a) {
  float r[kWidth];
  for (int i = 0; i < kWidth; ++i) r[i] = c10::Half(a.lane[i], c10::Half::from_bits());
  return Vec::loadu(r);
}
#endif

// ---------------------------------------------------------------- codes to numbers

// 8-bit floats are fp16 with a shorter mantissa, E4M3 with a shorter exponent too: moved to where
// fp16 has them they stand for their number, or for kE4M3Unit of it; subnormals included.
constexpr float kE4M3Unit = 0x1p-8f;
inline Vec e4m3(const uint8_t* p) {
  return converted_halves(masked16(left16<7>(bytes_as_halves(p)), static_cast<int16_t>(0xbfff)));
}
inline Vec e5m2(const uint8_t* p) { return converted_halves(left16<8>(bytes_as_halves(p))); }

// The numbers of nibbles, in every form in which they are looked up.
struct Table {
  float numbers[16];
  uint8_t low[16], high[16];  // the bytes of each in fp16

  explicit Table(const float* from) {
    for (int i = 0; i < 16; ++i) {
      numbers[i] = from[i];
      const uint16_t half = c10::Half(from[i]).x;
      low[i] = static_cast<uint8_t>(half);
      high[i] = static_cast<uint8_t>(half >> 8);
    }
  }

  // Sixteen bytes of two nibbles to the numbers of the low nibbles and of the high ones.
  void look_up_halves(const uint8_t* p, Vec* even, Vec* odd) const {
#if defined(CPU_CAPABILITY_AVX512) || defined(CPU_CAPABILITY_AVX2)
    const __m128i both = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    const __m128i mask = _mm_set1_epi8(15);
    halves_of(_mm_and_si128(both, mask), even);
    halves_of(_mm_and_si128(_mm_srli_epi16(both, 4), mask), odd);
#else
    float r[2][kTile];
    for (int i = 0; i < kTile; ++i) {
      for (int j = 0; j < 2; ++j) {
        const int code = p[i] >> (4 * j) & 15;
        const auto bits = static_cast<uint16_t>(low[code] | high[code] << 8);
        r[j][i] = c10::Half(bits, c10::Half::from_bits());
      }
    }
    for (int v = 0; v < kVecs; ++v) {
      even[v] = Vec::loadu(r[0] + v * kWidth);
      odd[v] = Vec::loadu(r[1] + v * kWidth);
    }
#endif
  }

 private:
#if defined(CPU_CAPABILITY_AVX512) || defined(CPU_CAPABILITY_AVX2)
  void halves_of(__m128i index, Vec* out) const {
    const __m128i l = _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(low)), index);
    const __m128i h =
        _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(high)), index);
    const __m128i first = _mm_unpacklo_epi8(l, h), second = _mm_unpackhi_epi8(l, h);
#if defined(CPU_CAPABILITY_AVX512)
    out[0] = _mm512_cvtph_ps(_mm256_set_m128i(second, first));
#else
    out[0] = _mm256_cvtph_ps(first);
    out[1] = _mm256_cvtph_ps(second);
#endif
  }
#endif
};

// One tile of planar codes; gives pair `i` of the step that begins with a pair.
template <Codes codes>
struct CodeTile {
  static constexpr int64_t kPairBytes = bytes_of_pair(codes);
  static constexpr int kPairs = pairs_of_step(codes);
  const uint8_t* data;
  const Table* table;  // of nibbles

  template <int i>
  Pair get(int64_t pair) const {
    constexpr int64_t size = bytes_of_pair(codes) / (are_nibbles(codes) ? 1 : 2);  // of one input
    const uint8_t* p = data + pair * bytes_of_pair(codes);
    Pair r;
    if constexpr (codes == Codes::kInt4) {
      constexpr int32_t low = i % 2 == 0 ? 0xf : 0xf00;
      for (int v = 0; v < kVecs; ++v) {
        const Ints all = words(p + v * 4 * kWidth), four = i < 2 ? all : right<16>(all);
        r.even[v] = converted(masked(four, low));
        r.odd[v] = converted(masked(four, low << 4));
      }
      return r;
    }
    if constexpr (codes == Codes::kNarrowTable4) {
      table->look_up_halves(p, r.even, r.odd);
      return r;
    }
    for (int v = 0; v < kVecs; ++v, p += size / kVecs) fill(p, p + size, r.even[v], r.odd[v]);
    return r;
  }

 private:
  void fill(const uint8_t* p, const uint8_t* q, Vec& even, Vec& odd) const {
    if constexpr (codes == Codes::kTable4) {
      const Ints both = unsigned_bytes(p);
      even = looked_up(masked(both, 15), table->numbers);
      odd = looked_up(right<4>(both), table->numbers);
    } else {
      even = number(p);
      odd = number(q);
    }
  }

  static Vec number(const uint8_t* p) {
    if constexpr (codes == Codes::kInt8) return converted(signed_bytes(p));
    if constexpr (codes == Codes::kE4M3) return e4m3(p);
    if constexpr (codes == Codes::kE5M2) return e5m2(p);
    if constexpr (codes == Codes::kBFloat16) return read(reinterpret_cast<const BFloat16*>(p));
    return read(reinterpret_cast<const at::Half*>(p));
  }
};

// ---------------------------------------------------------------- sums of products

// fp32 sums of a row's products with a tile.
struct FloatSums {
  using Input = float;
  using Weights = Pair;
  static constexpr int kRows = kVecs == 1 ? 8 : 4;  // whose sums fit into the registers
  static constexpr bool kUnrolls = false;
  Vec v[kVecs];

  void clear() {
    for (Vec& one : v) one = Vec(0);
  }
  void add(const Pair& w, const float* x) {
    const Vec a(x[0]), b(x[1]);
    for (int i = 0; i < kVecs; ++i) {
      v[i] = at::vec::fmadd(w.even[i], a, v[i]);
      v[i] = at::vec::fmadd(w.odd[i], b, v[i]);
    }
  }
};

// Both inputs of a pair as 16-bit integers, output by output.
struct Shorts {
  Ints v[kVecs];
};

inline Ints shorts(const uint8_t* p) {
#if defined(CPU_CAPABILITY_AVX512)
  return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(CPU_CAPABILITY_AVX2)
  return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  int16_t r[2 * kWidth];
  for (int i = 0; i < 2 * kWidth; ++i) r[i] = static_cast<int8_t>(p[i]);
  return words(reinterpret_cast<const uint8_t*>(r));
#endif
}

// sums + the products of the two 16-bit integers of each lane.
inline Ints add_products(Ints sums, Ints a, Ints b) {
#if defined(__AVX512VNNI__) && defined(CPU_CAPABILITY_AVX512)
  return _mm512_dpwssd_epi32(sums, a, b);
#elif defined(CPU_CAPABILITY_AVX512)
  return _mm512_add_epi32(sums, _mm512_madd_epi16(a, b));
#elif defined(CPU_CAPABILITY_AVX2)
  return _mm256_add_epi32(sums, _mm256_madd_epi16(a, b));
#else
  int16_t x[2 * kWidth], y[2 * kWidth];
  std::memcpy(x, &a, sizeof(a));
  std::memcpy(y, &b, sizeof(b));
  return each([&](int i) { return sums.lane[i] + x[2 * i] * y[2 * i] + x[2 * i + 1] * y[2 * i + 1]; });
#endif
}

inline Ints repeated(int32_t value) {
#if defined(CPU_CAPABILITY_AVX512)
  return _mm512_set1_epi32(value);
#elif defined(CPU_CAPABILITY_AVX2)
  return _mm256_set1_epi32(value);
#else
  return each([&](int) { return value; });
#endif
}

// Exact sums of products of 8-bit integers.
struct IntSums {
  using Input = int16_t;
  using Weights = Shorts;
  static constexpr int kRows = kVecs == 1 ? 8 : 3;
  static constexpr bool kUnrolls = true;  // so short that counting pairs would take a quarter
  Ints v[kVecs];

  void clear() {
    for (Ints& one : v) one = repeated(0);
  }
  void add(const Shorts& w, const int16_t* x) {
    int32_t both;
    std::memcpy(&both, x, sizeof(both));
    const Ints a = repeated(both);
    for (int i = 0; i < kVecs; ++i) v[i] = add_products(v[i], w.v[i], a);
  }
};

// One tile of paired 8-bit integers; gives them as 16-bit ones.
struct ShortTile {
  static constexpr int64_t kPairBytes = bytes_of_pair(Codes::kInt8);
  static constexpr int kPairs = 1;
  const uint8_t* data;
  const Table* unused;

  template <int>
  Shorts get(int64_t pair) const {
    Shorts r;
    for (int v = 0; v < kVecs; ++v) r.v[v] = shorts(data + pair * 2 * kTile + v * 2 * kWidth);
    return r;
  }
};

#ifdef __AVX512BF16__
// fp32 sums of products of bf16 pairs.
struct HalfSums {
  using Input = BFloat16;
  using Weights = __m512bh;
  static constexpr int kRows = 8;
  static constexpr bool kUnrolls = false;
  Vec v[1];

  void clear() { v[0] = Vec(0); }
  void add(__m512bh w, const BFloat16* x) {
    int32_t both;
    std::memcpy(&both, x, sizeof(both));
    v[0] = _mm512_dpbf16_ps(v[0], w, (__m512bh)_mm512_set1_epi32(both));
  }
};

// One tile of paired codes; gives pairs in bf16, which holds all but those of kTable4 exactly.
template <Codes codes>
struct HalfTile {
  static constexpr int64_t kPairBytes = bytes_of_pair(codes);
  static constexpr int kPairs = 1;
  const uint8_t* data;
  __m512i table;  // of nibbles: their numbers in bf16, twice

  HalfTile(const uint8_t* data_, const Table* table_) : data(data_), table(halves(table_)) {}

  template <int>
  __m512bh get(int64_t pair) const {
    const uint8_t* p = data + pair * bytes_of_pair(codes);
    if constexpr (are_nibbles(codes)) {
      // The index of a 16-bit lane is its low five bits; the fifth is never looked at.
      const Ints both = unsigned_bytes(p);
      const Ints index = _mm512_or_si512(both, _mm512_slli_epi32(both, 12));
      return (__m512bh)_mm512_permutexvar_epi16(index, table);
    } else {
      return _mm512_cvtne2ps_pbh(number(p + kTile), number(p));
    }
  }

 private:
  static Vec number(const uint8_t* p) {
    if constexpr (codes == Codes::kInt8) return converted(signed_bytes(p));
    return codes == Codes::kE4M3 ? e4m3(p) : e5m2(p);
  }

  static __m512i halves(const Table* table) {
    if constexpr (!are_nibbles(codes)) return _mm512_setzero_si512();
    BFloat16 twice[32];
    for (int i = 0; i < 32; ++i) {
      twice[i] = codes == Codes::kInt4 ? BFloat16(float(i % 16)) : BFloat16(table->numbers[i % 16]);
    }
    return _mm512_loadu_si512(twice);
  }
};
#endif

}  // namespace serving_cpu
