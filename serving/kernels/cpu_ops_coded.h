// Products with quantized weights, and with 16-bit weights where the CPU cannot multiply them: the
// layout of their codes, and the ops. In: x [rows, inputs], tiles of `pack_codes`; out: [rows,
// outputs]. Next: cpu_ops_product.h.
#pragma once

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <optional>
#include <tuple>
#include <vector>

#include "cpu_ops_product.h"

namespace serving_cpu {

// ---------------------------------------------------------------- layout

// Whether products with x take both inputs of a pair at once.
inline bool takes_pairs(at::ScalarType x, Codes codes) {
#ifdef __AVX512BF16__
  return x == at::kBFloat16 && codes != Codes::kBFloat16 && codes != Codes::kHalf;
#else
  return false;
#endif
}

// codes: nibbles uint8 [outputs, inputs / 2], bytes uint8 [outputs, inputs], or 16-bit floats
// [outputs, inputs], to [tiles, inputs / 2, bytes of a pair]; outputs that are missing are 0.
inline Tensor pack_codes(const Tensor& codes, int64_t kind, bool paired) {
  check_rows(codes, "codes", 2);
  const auto which = static_cast<Codes>(kind);
  const int64_t size = are_nibbles(which) ? 1 : codes.element_size();
  const int64_t outputs = codes.size(0), row = codes.size(1) * codes.element_size();
  const int64_t together = paired ? 1 : pairs_of_step(which);
  const int64_t step = bytes_of_pair(which) * together, width = step / kTile;  // of an output
  TORCH_CHECK(row % width == 0, "codes must fill ", 2 * together, " inputs at a time");
  const int64_t steps = row / width, tiles = (outputs + kTile - 1) / kTile;
  Tensor packed = at::zeros({tiles, steps * together, step / together},
                            codes.options().dtype(at::kByte));
  const auto* from = static_cast<const uint8_t*>(codes.const_data_ptr());
  const int64_t stride = codes.stride(0) * codes.element_size();
  uint8_t* to = packed.mutable_data_ptr<uint8_t>();
  parallel_rows(tiles, steps * step, [&](int64_t tile) {
    for (int64_t o = 0; o < std::min<int64_t>(kTile, outputs - tile * kTile); ++o) {
      const uint8_t* in = from + (tile * kTile + o) * stride;
      uint8_t* out = to + tile * steps * step;
      for (int64_t p = 0; p < steps; ++p, in += width, out += step) {
        if (are_nibbles(which) || paired) {
          std::memcpy(out + o * width, in, width);
        } else {
          std::memcpy(out + o * size, in, size);
          std::memcpy(out + (kTile + o) * size, in + size, size);
        }
      }
    }
  });
  return packed;
}

// ---------------------------------------------------------------- ops

// Tiles of strips over torch's threads; totals become out [rows, outputs], with what is left to do
// for each element: done(total, row, output).
template <typename T, typename P, typename F>
void by_strips(const P& product, Tensor& out, const F& done) {
  const int64_t rows = out.size(0), outputs = out.size(1);
  const int64_t tiles = (outputs + kTile - 1) / kTile, strips = (tiles + kStrip - 1) / kStrip;
  T* to = out.mutable_data_ptr<T>();
  parallel_rows(strips, kStrip * kTile * product.inputs, [&](int64_t strip) {
    const int64_t start = strip * kStrip, stop = std::min(tiles, start + kStrip);
    std::vector<float> totals((stop - start) * rows * kTile);
    product.run(start, stop, totals.data());
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t tile = start; tile < stop; ++tile) {
        const float* from = totals.data() + ((tile - start) * rows + row) * kTile;
        const int64_t output = tile * kTile;
        for_vectors(std::min<int64_t>(kTile, outputs - output), [&](int64_t i, auto count) {
          write(to + row * outputs + output + i, done(read(from + i, count), row, output + i, count),
                count);
        });
      }
    }
  });
}

// x in fp32, multiplied with what the numbers of its codes are in units of.
template <typename T>
Tensor widened(const Tensor& x, bool has_units) {
  if (!has_units && std::is_same_v<T, float>) return x;
  Tensor wide = at::empty(x.sizes(), x.options().dtype(at::kFloat));
  float units[kWidth];
  for (int i = 0; i < kWidth; ++i) units[i] = has_units ? kInt4Units[i % 4] : 1;
  const Vec factors = Vec::loadu(units);
  const T* from = x.const_data_ptr<T>();
  float* to = wide.mutable_data_ptr<float>();
  parallel_rows(x.size(0), x.size(1), [&](int64_t row) {
    for_vectors(x.size(1), [&](int64_t i, auto count) {
      const int64_t at = row * x.size(1) + i;
      write(to + at, read(from + at, count) * factors, count);
    });
  });
  return wide;
}

// Sums of each row's groups of inputs, fp32 [rows, groups].
template <typename T>
Tensor sums_of_groups(const Tensor& x, int64_t groups) {
  const int64_t rows = x.size(0), group = x.size(1) / groups;
  Tensor sums = at::empty({rows, groups}, x.options().dtype(at::kFloat));
  const T* from = x.const_data_ptr<T>();
  float* to = sums.mutable_data_ptr<float>();
  parallel_rows(rows, x.size(1), [&](int64_t row) {
    for (int64_t g = 0; g < groups; ++g) {
      Vec sum(0);
      for_vectors(group, [&](int64_t i, auto count) {
        sum = sum + read(from + row * x.size(1) + g * group + i, count);
      });
      to[row * groups + g] = reduce_sum(sum);
    }
  });
  return sums;
}

inline void check_packed(const Tensor& packed, int64_t outputs, int64_t inputs, int64_t pair) {
  const int64_t tiles = (outputs + kTile - 1) / kTile;
  TORCH_CHECK(packed.is_contiguous() && packed.scalar_type() == at::kByte && packed.dim() == 3 &&
                  packed.size(0) == tiles && packed.size(1) * 2 == inputs &&
                  packed.size(2) == pair,
              "packed must be uint8 [", tiles, ", ", inputs / 2, ", ", pair, "], got ",
              packed.sizes());
}

inline void check_tiles(const Tensor& t, const char* name, int64_t tiles, int64_t groups) {
  TORCH_CHECK(t.is_contiguous() && t.scalar_type() == at::kFloat && t.dim() == 3 &&
                  t.size(0) == tiles && t.size(1) == groups && t.size(2) == kTile,
              name, " must be float32 [", tiles, ", ", groups, ", ", kTile, "], got ", t.sizes());
}

template <typename T, typename Sums, typename Tile>
void run_coded(const Tensor& x, const Tensor& sums, const Tensor& packed, const Tensor& scales,
               const Tensor& offsets, const Table* table, const Tensor& bias, Tensor& out) {
  const auto floats = [](const Tensor& t) {
    return t.defined() ? t.const_data_ptr<float>() : nullptr;
  };
  const int64_t groups = scales.defined() ? scales.size(1) : 1;
  const Product<Sums, Tile> product{
      x.const_data_ptr<typename Sums::Input>(), floats(sums), x.size(0), x.size(1), groups,
      packed.const_data_ptr<uint8_t>(), floats(scales), floats(offsets), table};
  const T* add = bias.defined() ? bias.const_data_ptr<T>() : nullptr;
  by_strips<T>(product, out, [&](Vec total, int64_t, int64_t output, auto count) {
    return add == nullptr ? total : total + read(add + output, count);
  });
}

template <typename F>
void by_codes(Codes codes, const F& body) {
  switch (codes) {
    case Codes::kInt4: return body(std::integral_constant<Codes, Codes::kInt4>{});
    case Codes::kTable4: return body(std::integral_constant<Codes, Codes::kTable4>{});
    case Codes::kInt8: return body(std::integral_constant<Codes, Codes::kInt8>{});
    case Codes::kE4M3: return body(std::integral_constant<Codes, Codes::kE4M3>{});
    case Codes::kE5M2: return body(std::integral_constant<Codes, Codes::kE5M2>{});
    case Codes::kBFloat16: return body(std::integral_constant<Codes, Codes::kBFloat16>{});
    case Codes::kHalf: return body(std::integral_constant<Codes, Codes::kHalf>{});
    case Codes::kNarrowTable4: break;  // kTable4 is all that callers know
  }
  TORCH_CHECK(false, "unknown codes ", static_cast<int64_t>(codes));
}

// x [rows, inputs] with codes packed for its dtype, scales and offsets [tiles, groups, kTile], the
// table [16] of kTable4, bias [outputs] of the dtype of x; to [rows, outputs]. Codes of kInt4 count
// from 0, those of kE4M3 as kE4M3Unit of their number.
inline Tensor coded_matmul(const Tensor& x, const Tensor& packed,
                           const std::optional<Tensor>& scales,
                           const std::optional<Tensor>& offsets,
                           const std::optional<Tensor>& table, const std::optional<Tensor>& bias,
                           int64_t kind, int64_t outputs) {
  TORCH_CHECK(x.dim() == 2, "x must have 2 dimensions, got ", x.dim());
  const auto codes = static_cast<Codes>(kind);
  const int64_t inputs = x.size(1), tiles = (outputs + kTile - 1) / kTile;
  check_packed(packed, outputs, inputs, bytes_of_pair(codes));
  const int64_t groups = scales ? scales->size(1) : 1;
  const int64_t step = takes_pairs(x.scalar_type(), codes) ? 2 : 2 * pairs_of_step(codes);
  TORCH_CHECK(inputs % (step * groups) == 0, "groups must fill ", step, " inputs at a time");
  if (scales) check_tiles(*scales, "scales", tiles, groups);
  if (offsets) check_tiles(*offsets, "offsets", tiles, groups);
  if (table) check_vector(*table, "table", 16, at::kFloat);
  TORCH_CHECK(codes != Codes::kTable4 || table, "these codes need a table");
  if (bias) check_vector(*bias, "bias", outputs, x.scalar_type());
  Tensor out = at::empty({x.size(0), outputs}, x.options());
  const auto given = [](const std::optional<Tensor>& t) { return t.value_or(Tensor()); };
  const Tensor rows = x.contiguous();
  std::optional<Table> numbers;
  if (table) numbers.emplace(table->const_data_ptr<float>());
  const Table* looked_up = numbers ? &*numbers : nullptr;
  by_dtype(x, [&](auto zero) {
    using T = decltype(zero);
    const Tensor sums = offsets ? sums_of_groups<T>(rows, groups) : Tensor();
    by_codes(codes, [&](auto which) {
      constexpr Codes own = decltype(which)::value;
#ifdef __AVX512BF16__
      if constexpr (std::is_same_v<T, BFloat16> && own != Codes::kBFloat16 &&
                    own != Codes::kHalf) {
        return run_coded<T, HalfSums, HalfTile<own>>(rows, sums, packed, given(scales),
                                                     given(offsets), looked_up, given(bias), out);
      }
#endif
      constexpr bool is_narrow = own == Codes::kTable4 && !std::is_same_v<T, float>;
      constexpr Codes used = is_narrow ? Codes::kNarrowTable4 : own;
      const Tensor wide = widened<T>(rows, own == Codes::kInt4);
      run_coded<T, FloatSums, CodeTile<used>>(wide, sums, packed, given(scales), given(offsets),
                                              looked_up, given(bias), out);
    });
  });
  return out;
}

// Rows of x as integers of 8 bits in any type: round(x / scale) with scale = max |x| / 127.
template <typename Integer>
void quantize_rows(const Tensor& x, Integer* to, float* scales) {
  const int64_t width = x.size(1);
  by_dtype(x, [&](auto zero) {
    using T = decltype(zero);
    const T* from = x.const_data_ptr<T>();
    parallel_rows(x.size(0), width, [&](int64_t row) {
      const T* in = from + row * x.stride(0);
      Vec most(0);
      for_vectors(width, [&](int64_t i, auto n) {
        most = at::vec::maximum(most, read(in + i, n).abs());
      });
      const float scale = reduce_max(most) / 127.0f;
      const float inverse = scale > 0 ? 1.0f / scale : 0.0f;
      scales[row] = scale;
      for (int64_t i = 0; i < width; ++i) {
        to[row * width + i] = static_cast<Integer>(std::nearbyint(float(in[i]) * inverse));
      }
    });
  });
}

// x [rows, inputs] to int8 of the same shape and fp32 [rows] of scales.
inline std::tuple<Tensor, Tensor> int8_rows(const Tensor& x) {
  check_rows(x, "x", 2);
  Tensor codes = at::empty(x.sizes(), x.options().dtype(at::kChar));
  Tensor scales = at::empty({x.size(0)}, x.options().dtype(at::kFloat));
  quantize_rows(x, codes.mutable_data_ptr<int8_t>(), scales.mutable_data_ptr<float>());
  return {codes, scales};
}

// x [rows, inputs], quantized row by row to 8 bits, with integers of 8 bits packed in pairs, which
// have a scale for each output; to [rows, outputs]. The sums are exact.
inline Tensor int8_matmul(const Tensor& x, const Tensor& packed, const Tensor& scales,
                          const std::optional<Tensor>& bias) {
  check_rows(x, "x", 2);
  const int64_t count = x.size(0), inputs = x.size(1), outputs = scales.numel();
  check_packed(packed, outputs, inputs, bytes_of_pair(Codes::kInt8));
  check_vector(scales, "scales", outputs, at::kFloat);
  if (bias) check_vector(*bias, "bias", outputs, x.scalar_type());
  Tensor out = at::empty({count, outputs}, x.options());
  Tensor codes = at::empty({count, inputs}, x.options().dtype(at::kShort));
  std::vector<float> scale_of(count);
  quantize_rows(x, codes.mutable_data_ptr<int16_t>(), scale_of.data());
  const Product<IntSums, ShortTile> product{
      codes.const_data_ptr<int16_t>(), nullptr, count, inputs, 1,
      packed.const_data_ptr<uint8_t>(), nullptr, nullptr, nullptr};
  const float* output_scales = scales.const_data_ptr<float>();
  by_dtype(x, [&](auto zero) {
    using T = decltype(zero);
    const T* add = bias ? bias->const_data_ptr<T>() : nullptr;
    by_strips<T>(product, out, [&](Vec total, int64_t row, int64_t output, auto n) {
      const Vec scaled = total * (read(output_scales + output, n) * Vec(scale_of[row]));
      return add == nullptr ? scaled : scaled + read(add + output, n);
    });
  });
  return out;
}

}  // namespace serving_cpu
