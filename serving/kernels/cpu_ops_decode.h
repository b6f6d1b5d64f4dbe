// The op paged_decode: attention of one query token per sequence over its paged keys and values.
// In: query [n, heads, head_dim], caches [blocks, kv_heads, block_size, head_dim] of its type or of
// codes, block tables; out: [n, heads, head_dim]. Any dtype and shape has a form in fp32 vectors;
// bfloat16 has a second one for CPUs with the AVX512-BF16 instructions, where head_dim is a multiple
// of 32 and block_size of 16.
#pragma once

#include <ATen/ops/empty.h>

#include <atomic>
#include <memory>
#include <utility>
#include <vector>

#include "cpu_ops_kv.h"
#include "cpu_ops_vectors.h"

namespace serving_cpu {

// A work item attends one KV head's query heads (the group) to at most kSplit positions of one
// sequence: all scores, one softmax, one weighted sum of values. Its partial result per query head
// is [maximum, sum, accumulator of head_dim]; the last item of a group to finish merges them.
constexpr int64_t kSplit = 256;
constexpr int64_t kKeyTile = 16;  // keys that the bfloat16 form scores at once

#ifdef __AVX512BF16__
template <typename T>
constexpr bool kHasTiles = std::is_same_v<T, BFloat16>;
#else
template <typename T>
constexpr bool kHasTiles = false;
#endif

struct Item {
  int64_t sequence, kv_head, begin, end;  // positions [begin, end) lie in one split
  int64_t first, splits;                  // the items of this group: [first, first + splits)
};

struct Shape {
  int64_t kv_heads, group, dim, block_size;
  float scale, softcap;  // `scale` with the scale that all keys have
  float value_scale;     // that all values have
  int64_t partial() const { return group * (dim + 2); }  // floats of one item's result
};

// Buffers of one thread. Scores and weights are [group, kSplit], by position within the split.
template <typename T>
struct Scratch {
  Scratch(const Shape& s, bool coded)
      : query(s.group * s.dim), narrow(s.group * kSplit), zeros(s.dim, T(0)),
        widened(kHasTiles<T> && coded ? kSplit * s.dim : 0),
        wide(s.group * s.dim), scores(s.group * kSplit), columns(kKeyTile * s.dim / 2) {
    for (int64_t j = 0; j < kSplit; ++j) widened_rows[j] = j * s.dim;
  }
  std::vector<T> query, narrow, zeros;        // [group, dim]; weights rounded to T; [dim]
  std::vector<T> widened;                     // codes of one split as T: [kSplit, dim]
  std::vector<float> wide, scores, columns;   // query in fp32; scores, then weights; a key tile
  int64_t rows[kSplit];                       // offset of each position's row in either cache
  int64_t widened_rows[kSplit];               // and in `widened`
  float key_scales[kSplit], value_scales[kSplit];  // of each position, where each has its own
};

// body(heads) with compile-time heads <= 8 for each tile of the group.
template <int H = 8, typename F>
inline void with_heads(int64_t heads, const F& body) {
  if constexpr (H > 1) {
    if (heads < H) return with_heads<H - 1>(heads, body);
  }
  body(std::integral_constant<int, H>{});
}

template <typename F>
inline void for_head_tiles(int64_t group, const F& body) {
  for (int64_t g = 0; g < group; g += 8) {
    with_heads(group - g, [&](auto heads) { body(g, heads); });
  }
}

// Any dtype: scores[h, j] = query[h] . keys[rows[j]] for j in [lo, hi).
template <int H, typename C>
void score(const float* query, const C* keys, const int64_t* rows, int64_t lo, int64_t hi,
           int64_t dim, float* scores) {
  for (int64_t j = lo; j < hi; ++j) {
    Vec total[H];
    std::fill_n(total, H, Vec(0));
    for_vectors(dim, [&](int64_t i, auto count) {
      const Vec key = read(keys + rows[j] + i, count);
      for (int h = 0; h < H; ++h) {
        total[h] = at::vec::fmadd(read(query + h * dim + i, count), key, total[h]);
      }
    });
    for (int h = 0; h < H; ++h) scores[h * kSplit + j] = reduce_sum(total[h]);
  }
}

// Any dtype: out[h] (rows `stride` apart) = sum over j of weights[h, j] * values[rows[j]].
template <int H, typename C>
void weigh(const float* weights, const C* values, const int64_t* rows, int64_t lo, int64_t hi,
           int64_t dim, float* out, int64_t stride) {
  for_vectors(dim, [&](int64_t i, auto count) {
    Vec total[H];
    std::fill_n(total, H, Vec(0));
    for (int64_t j = lo; j < hi; ++j) {
      const Vec value = read(values + rows[j] + i, count);
      for (int h = 0; h < H; ++h) {
        total[h] = at::vec::fmadd(Vec(weights[h * kSplit + j]), value, total[h]);
      }
    }
    for (int h = 0; h < H; ++h) write(out + h * stride + i, total[h], count);
  });
}

#ifdef __AVX512BF16__
inline __m512 dot_bf16(__m512 total, __m512i a, __m512i b) {
  return _mm512_dpbf16_ps(total, (__m512bh)a, (__m512bh)b);
}

inline __m512i broadcast_pair(const BFloat16* p) {
  int32_t pair;
  std::memcpy(&pair, p, sizeof(pair));
  return _mm512_set1_epi32(pair);
}

// Turns 16 rows of 16 pairs, `stride` elements apart, into 16 columns: out [16 pairs, 16 rows].
inline void transpose_pairs(const BFloat16* in, int64_t stride, float* out) {
  __m512i r[16], t[16];
  for (int i = 0; i < 16; ++i) r[i] = _mm512_loadu_si512(in + i * stride);
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {  // lane L of r[i + c] then holds column 4L + c of four rows
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int c = 0; c < 4; ++c) {
    const __m512i even = _mm512_shuffle_i32x4(r[c], r[4 + c], 0x88);
    const __m512i even2 = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0x88);
    const __m512i odd = _mm512_shuffle_i32x4(r[c], r[4 + c], 0xdd);
    const __m512i odd2 = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0xdd);
    _mm512_storeu_si512(out + 16 * c, _mm512_shuffle_i32x4(even, even2, 0x88));
    _mm512_storeu_si512(out + 16 * (c + 4), _mm512_shuffle_i32x4(odd, odd2, 0x88));
    _mm512_storeu_si512(out + 16 * (c + 8), _mm512_shuffle_i32x4(even, even2, 0xdd));
    _mm512_storeu_si512(out + 16 * (c + 12), _mm512_shuffle_i32x4(odd, odd2, 0xdd));
  }
}

// bfloat16: as score(), 16 keys at a time; lo is a multiple of 16 and a tile lies in one block.
// Blocks are anywhere in memory and the hardware does not foresee the next one: while a tile is
// scored, the keys two tiles ahead and the values of this one are prefetched, a cache line of each
// per step.
inline void score_tiles(const BFloat16* query, const BFloat16* keys, const BFloat16* values,
                        const int64_t* rows, int64_t lo, int64_t hi, const Shape& shape,
                        float* columns, float* scores) {
  const int64_t dim = shape.dim;
  for (int64_t j = lo; j < hi; j += kKeyTile) {
    const BFloat16* next_keys = keys + rows[std::min(j + 2 * kKeyTile, hi - kKeyTile)];
    const BFloat16* tile_values = values + rows[j];
    for (int64_t i = 0; i < dim; i += 32) transpose_pairs(keys + rows[j] + i, dim, columns + 8 * i);
    for_head_tiles(shape.group, [&](int64_t g, auto heads) {
      __m512 total[heads];
      for (int h = 0; h < heads; ++h) total[h] = _mm512_setzero_ps();
      for (int64_t i = 0; i < dim; i += 2) {
        if (g == 0) {
          __builtin_prefetch(next_keys + 16 * i);
          __builtin_prefetch(tile_values + 16 * i, 0, 2);  // for later: no further than level 2
        }
        const __m512i pairs = _mm512_loadu_si512(columns + 8 * i);
        for (int h = 0; h < heads; ++h) {
          total[h] = dot_bf16(total[h], pairs, broadcast_pair(query + (g + h) * dim + i));
        }
      }
      for (int h = 0; h < heads; ++h) _mm512_storeu_ps(scores + (g + h) * kSplit + j, total[h]);
    });
  }
}

// bfloat16: as weigh(), two positions and 32 columns at a time. `zeros` stands in for the row
// outside [lo, hi) of an odd end, which may hold anything, NaN included.
template <int H>
void weigh_pairs(const BFloat16* weights, const BFloat16* values, const int64_t* rows, int64_t lo,
                 int64_t hi, int64_t dim, const BFloat16* zeros, float* out, int64_t stride) {
  const __m512i first = _mm512_set_epi32(23, 22, 21, 20, 7, 6, 5, 4, 19, 18, 17, 16, 3, 2, 1, 0);
  const __m512i second =
      _mm512_set_epi32(31, 30, 29, 28, 15, 14, 13, 12, 27, 26, 25, 24, 11, 10, 9, 8);
  for (int64_t i = 0; i < dim; i += 32) {
    __m512 low[H], high[H];  // unpacking leaves columns in 128-bit lanes: 0-3, 8-11 .. and 4-7 ..
    for (int h = 0; h < H; ++h) low[h] = high[h] = _mm512_setzero_ps();
    for (int64_t j = lo & ~int64_t{1}; j < hi; j += 2) {
      const BFloat16* a = j >= lo ? values + rows[j] : zeros;
      const BFloat16* b = j + 1 < hi ? values + rows[j + 1] : zeros;
      const __m512i row_a = _mm512_loadu_si512(a + i), row_b = _mm512_loadu_si512(b + i);
      const __m512i pairs_low = _mm512_unpacklo_epi16(row_a, row_b);
      const __m512i pairs_high = _mm512_unpackhi_epi16(row_a, row_b);
      for (int h = 0; h < H; ++h) {
        const __m512i weight = broadcast_pair(weights + h * kSplit + j);
        low[h] = dot_bf16(low[h], pairs_low, weight);
        high[h] = dot_bf16(high[h], pairs_high, weight);
      }
    }
    for (int h = 0; h < H; ++h) {
      float* to = out + h * stride + i;
      _mm512_storeu_ps(to, _mm512_permutex2var_ps(low[h], first, high[h]));
      _mm512_storeu_ps(to + 16, _mm512_permutex2var_ps(low[h], second, high[h]));
    }
  }
}
#endif

// Scores [lo, hi) of one query head to weights exp(score - maximum), in fp32 and in T; the
// positions outside [begin, end) of that range count nothing. Returns the maximum and the sum.
// Scales that each position has of its own go into its score and its weight; null: there are none.
template <typename T>
std::pair<float, float> softmax(float* scores, T* narrow, int64_t lo, int64_t hi, int64_t begin,
                                int64_t end, const float* key_scales, const float* value_scales,
                                const Shape& shape) {
  Vec top(-kInf), total(0);
  std::fill(scores + lo, scores + begin, -kInf);
  std::fill(scores + end, scores + hi, -kInf);
  for_vectors(hi - lo, [&](int64_t i, auto count) {
    Vec score = read(scores + lo + i, count, -kInf) * Vec(shape.scale);
    if (key_scales != nullptr) score = score * read(key_scales + lo + i, count, 1);
    if (shape.softcap > 0) {  // cap * tanh(score / cap), and -inf where nothing counts
      const Vec doubled = (score * Vec(2 / shape.softcap)).exp_u20();
      const Vec capped = Vec(shape.softcap) - Vec(2 * shape.softcap) / (doubled + Vec(1));
      score = Vec::blendv(capped, score, score == Vec(-kInf));
    }
    write(scores + lo + i, score, count);
    top = at::vec::clamp_min(score, top);
  });
  const float highest = reduce_max(top);
  for_vectors(hi - lo, [&](int64_t i, auto count) {
    Vec weight = (read(scores + lo + i, count, -kInf) - Vec(highest)).exp_u20();
    total = total + weight;
    if (value_scales != nullptr) weight = weight * read(value_scales + lo + i, count);
    write(scores + lo + i, weight, count);
    if constexpr (kHasTiles<T>) write(narrow + lo + i, weight, count);
  });
  return {highest, reduce_sum(total)};
}

// Finds the rows of positions [lo, hi) of a split in either cache, and their own scales; positions
// outside [begin, end) may hold anything, so they get scales that do no harm.
template <typename T, typename C>
void locate(const Item& item, const Shape& shape, int64_t base, int64_t lo, int64_t hi,
            const Cache<C>& keys, const Cache<C>& values, const int32_t* table,
            Scratch<T>& scratch) {
  const int64_t size = shape.block_size;
  for (int64_t j = lo; j < hi;) {  // one block at a time
    const int64_t block = table[(base + j) / size], offset = (base + j) % size;
    int64_t vector = (block * shape.kv_heads + item.kv_head) * size + offset;
    const int64_t stop = std::min(hi, j + size - offset);
    if constexpr (kOwnScales<C>) {
      std::copy_n(keys.scales + vector, stop - j, scratch.key_scales + j);
      std::copy_n(values.scales + vector, stop - j, scratch.value_scales + j);
    }
    for (; j < stop; ++j, ++vector) scratch.rows[j] = vector * shape.dim;
  }
  if constexpr (kOwnScales<C>) {
    for (float* scales : {scratch.key_scales, scratch.value_scales}) {
      std::fill(scales + lo, scales + (item.begin - base), 1.0f);
      std::fill(scales + (item.end - base), scales + hi, 1.0f);
    }
  }
}

// Where the bfloat16 form finds rows [lo, hi), and their offsets: in the cache, or, if that has codes,
// behind their conversion, which is exact.
template <typename T, typename C>
std::pair<const T*, const int64_t*> rows_of(const Cache<C>& cache, int64_t lo, int64_t hi,
                                            int64_t dim, Scratch<T>& scratch) {
  if constexpr (std::is_same_v<T, C>) {
    return {cache.codes, scratch.rows};
  } else {
    T* to = scratch.widened.data();
    for (int64_t j = lo; j < hi; ++j) {
      for_vectors(dim, [&](int64_t i, auto count) {
        write(to + j * dim + i, read(cache.codes + scratch.rows[j] + i, count), count);
      });
    }
    return {to, scratch.widened_rows};
  }
}

// One work item. keys and values are whole caches; query [group, dim], its heads `head_stride`
// apart; table the sequence's block table; partial receives [group, dim + 2].
template <typename T, typename C>
void attend(const Item& item, const Shape& shape, const T* query, int64_t head_stride,
            const Cache<C>& keys, const Cache<C>& values, const int32_t* table,
            Scratch<T>& scratch, float* partial) {
  const int64_t dim = shape.dim, size = shape.block_size, base = item.begin / kSplit * kSplit;
  const int64_t begin = item.begin - base, end = item.end - base, stride = dim + 2;
  const bool tiles = kHasTiles<T> && dim % 32 == 0 && size % kKeyTile == 0;
  const int64_t lo = tiles ? begin / kKeyTile * kKeyTile : begin;
  const int64_t hi = tiles ? (end + kKeyTile - 1) / kKeyTile * kKeyTile : end;
  locate(item, shape, base, lo, hi, keys, values, table, scratch);
  float* scores = scratch.scores.data();
  if constexpr (kHasTiles<T>) {
    if (tiles) {
      for (int64_t g = 0; g < shape.group; ++g) {
        std::copy_n(query + g * head_stride, dim, scratch.query.data() + g * dim);
      }
      const auto [tile_keys, rows] = rows_of(keys, lo, hi, dim, scratch);
      const T* ahead = tile_keys;  // what is prefetched beside the keys
      if constexpr (std::is_same_v<T, C>) ahead = values.codes;
      score_tiles(scratch.query.data(), tile_keys, ahead, rows, lo, hi, shape,
                  scratch.columns.data(), scores);
    }
  }
  if (!tiles) {
    for (int64_t g = 0; g < shape.group; ++g) {
      std::copy_n(query + g * head_stride, dim, scratch.wide.data() + g * dim);
    }
    for_head_tiles(shape.group, [&](int64_t g, auto heads) {
      score<heads>(scratch.wide.data() + g * dim, keys.codes, scratch.rows, lo, hi, dim,
                   scores + g * kSplit);
    });
  }
  const float* key_scales = kOwnScales<C> ? scratch.key_scales : nullptr;
  const float* value_scales = kOwnScales<C> ? scratch.value_scales : nullptr;
  for (int64_t g = 0; g < shape.group; ++g) {
    const auto [highest, total] = softmax(scores + g * kSplit, scratch.narrow.data() + g * kSplit,
                                          lo, hi, begin, end, key_scales, value_scales, shape);
    partial[g * stride] = highest;
    partial[g * stride + 1] = total;
  }
  if constexpr (kHasTiles<T>) {
    if (tiles) {
      const auto found = rows_of(values, lo, hi, dim, scratch);
      return for_head_tiles(shape.group, [&](int64_t g, auto heads) {
        weigh_pairs<heads>(scratch.narrow.data() + g * kSplit, found.first, found.second, begin,
                           end, dim, scratch.zeros.data(), partial + g * stride + 2, stride);
      });
    }
  }
  for_head_tiles(shape.group, [&](int64_t g, auto heads) {
    weigh<heads>(scores + g * kSplit, values.codes, scratch.rows, begin, end, dim,
                 partial + g * stride + 2, stride);
  });
}

// Partial results of one group, [splits, group, dim + 2], to out [group, dim].
template <typename T>
void merge(const float* partials, int64_t splits, const Shape& shape, T* out) {
  const int64_t stride = shape.dim + 2;
  for (int64_t g = 0; g < shape.group; ++g) {
    const float* head = partials + g * stride;
    float highest = -kInf, total = 0;
    for (int64_t s = 0; s < splits; ++s) highest = std::max(highest, head[s * shape.partial()]);
    for (int64_t s = 0; s < splits; ++s) {
      const float* part = head + s * shape.partial();
      total += std::exp(part[0] - highest) * part[1];
    }
    for_vectors(shape.dim, [&](int64_t i, auto count) {
      Vec value(0);
      for (int64_t s = 0; s < splits; ++s) {
        const float* part = head + s * shape.partial();
        const Vec share(std::exp(part[0] - highest) / total * shape.value_scale);
        value = at::vec::fmadd(share, read(part + 2 + i, count), value);
      }
      write(out + g * shape.dim + i, value, count);
    });
  }
}

// The work items of a call, those of one (sequence, KV head) side by side; checks every block id.
inline std::vector<Item> plan(const Tensor& block_tables, const Tensor& context_lens,
                              int64_t blocks, const Shape& shape, int64_t window) {
  const int64_t n = context_lens.size(0), limit = block_tables.size(1) * shape.block_size;
  const int32_t* lengths = context_lens.const_data_ptr<int32_t>();
  const int32_t* table = block_tables.const_data_ptr<int32_t>();
  std::vector<Item> items;
  items.reserve(n * shape.kv_heads);
  for (int64_t i = 0; i < n; ++i, table += block_tables.size(1)) {
    const int64_t length = lengths[i];
    TORCH_CHECK(length >= 0 && length <= limit, "context_lens must be 0 to ", limit,
                " (block table), got ", length);
    if (length == 0) continue;
    const int64_t begin = window > 0 ? std::max<int64_t>(0, length - window) : 0;
    for (int64_t b = begin / shape.block_size; b * shape.block_size < length; ++b) {
      TORCH_CHECK(table[b] >= 0 && table[b] < blocks, "block_tables must be 0 to ", blocks - 1,
                  ", got ", table[b]);
    }
    const int64_t split = begin / kSplit, splits = (length - 1) / kSplit + 1 - split;
    for (int64_t head = 0; head < shape.kv_heads; ++head) {
      const int64_t first = items.size();
      for (int64_t s = split; s < split + splits; ++s) {
        items.push_back({i, head, std::max(begin, s * kSplit), std::min(length, (s + 1) * kSplit),
                         first, splits});
      }
    }
  }
  return items;
}

inline Tensor paged_decode(const Tensor& query, const Tensor& key_cache,
                           const Tensor& value_cache, const Tensor& block_tables,
                           const Tensor& context_lens, double scale, int64_t window,
                           double softcap, const Scales& key_scales, const Scales& value_scales) {
  check_rows(query, "query", 3);
  check_cache(key_cache, value_cache, key_scales, value_scales, query);
  const int64_t n = query.size(0), heads = query.size(1), dim = query.size(2);
  const int64_t kv_heads = key_cache.size(1);
  TORCH_CHECK(kv_heads > 0 && heads % kv_heads == 0 && key_cache.size(3) == dim, "query of ", heads,
              " heads of ", dim, " does not fit key_cache ", key_cache.sizes());
  TORCH_CHECK(block_tables.is_contiguous() && block_tables.scalar_type() == at::kInt &&
                  block_tables.dim() == 2 && block_tables.size(0) == n,
              "block_tables must be a contiguous int32 [", n, ", max_blocks]");
  check_vector(context_lens, "context_lens", n, at::kInt);
  const int64_t block_size = key_cache.size(2);
  const Shape shape{kv_heads, heads / kv_heads, dim, block_size,
                    float(scale) * shared_scale(key_cache, key_scales), float(softcap),
                    shared_scale(value_cache, value_scales)};
  const std::vector<Item> items =
      plan(block_tables, context_lens, key_cache.size(0), shape, window);
  Tensor out = at::empty({n, heads, dim}, query.options());
  const auto partials = std::make_unique_for_overwrite<float[]>(items.size() * shape.partial());
  const auto finished = std::make_unique<std::atomic<int64_t>[]>(items.size());  // at item.first
  const int32_t *tables = block_tables.const_data_ptr<int32_t>(),
                *lengths = context_lens.const_data_ptr<int32_t>();
  by_dtype(query, [&](auto zero) {
    using T = decltype(zero);
    const T* q = query.const_data_ptr<T>();
    T* to = out.mutable_data_ptr<T>();
    for (int64_t i = 0; i < n; ++i) {
      if (lengths[i] == 0) std::fill_n(to + i * heads * dim, heads * dim, T(0));
    }
    by_element<T>(key_cache, [&](auto element) {
      using C = decltype(element);
      const auto keys = cache_of<C>(key_cache, key_scales);
      const auto values = cache_of<C>(value_cache, value_scales);
      std::atomic<int64_t> next{0};  // contexts differ in length, so threads take items as they go
      const int64_t count = items.size(), threads = at::get_num_threads();
      at::parallel_for(0, std::min(count, threads), 1, [&](int64_t, int64_t) {
        Scratch<T> scratch(shape, kCoded<C>);
        for (int64_t i = next++; i < count; i = next++) {
          const Item& item = items[i];
          const int64_t head = item.kv_head * shape.group;
          attend(item, shape, q + item.sequence * query.stride(0) + head * query.stride(1),
                 query.stride(1), keys, values, tables + item.sequence * block_tables.size(1),
                 scratch, partials.get() + i * shape.partial());
          if (++finished[item.first] == item.splits) {
            merge(partials.get() + item.first * shape.partial(), item.splits, shape,
                  to + (item.sequence * heads + head) * dim);
          }
        }
      });
    });
  });
  return out;
}

}  // namespace serving_cpu
