// Products of rows with coded weights, sixteen outputs (a tile) at a time: codes become numbers in
// registers (few rows) or in a buffer of the first cache (many), never in memory. Used by
// cpu_ops_coded.h. Every sum runs in one order, whatever the number of rows or threads: over the
// inputs of a piece, then piece by piece. Next: cpu_ops_codes.h.
#pragma once

#include <vector>

#include "cpu_ops_codes.h"

namespace serving_cpu {

constexpr int64_t kSegment = 256;  // inputs that are expanded at once, at most
constexpr int64_t kStrip = 4;      // tiles of one work item

// A tile's scales and offsets, from one group of inputs on, kTile each; null where there are none.
struct Groups {
  const float *scales, *offsets;

  Groups at(int64_t g) const {
    return {scales == nullptr ? nullptr : scales + g * kTile,
            offsets == nullptr ? nullptr : offsets + g * kTile};
  }
};

// Neighbouring inputs that are worked on at once: whole groups, or a part of one.
struct Block {
  int64_t first, pieces, length;  // the first input; groups, or 1; inputs of each
  int64_t group;                  // of the first piece
  bool adds_offsets;              // false behind the first part of a group
};

// A tile whose numbers lie in a buffer.
template <typename Weights>
struct Expanded {
  const Weights* data;

  static constexpr int kPairs = 1;

  template <int>
  const Weights& get(int64_t pair) const {
    return data[pair];
  }
};

// body(i) for i in [0, n), each known to the compiler.
template <int n, typename F, int i = 0>
inline void unrolled(const F& body) {
  if constexpr (i < n) {
    body(std::integral_constant<int, i>{});
    unrolled<n, F, i + 1>(body);
  }
}

// Adds sums, scaled, to a tile of totals; `sum`: of the row's inputs, for the offsets.
inline void finish(const FloatSums& sums, Groups group, float sum, float* totals) {
  for (int v = 0; v < kVecs; ++v) {
    Vec total = Vec::loadu(totals + v * kWidth);
    total = group.scales == nullptr
                ? total + sums.v[v]
                : at::vec::fmadd(sums.v[v], Vec::loadu(group.scales + v * kWidth), total);
    if (group.offsets != nullptr) {
      total = at::vec::fmadd(Vec(sum), Vec::loadu(group.offsets + v * kWidth), total);
    }
    total.store(totals + v * kWidth);
  }
}

inline void finish(const IntSums& sums, Groups, float, float* totals) {
  for (int v = 0; v < kVecs; ++v) {  // exact up to 2^24 in a segment, rounded like any sum beyond
    (Vec::loadu(totals + v * kWidth) + converted(sums.v[v])).store(totals + v * kWidth);
  }
}

#ifdef __AVX512BF16__
inline void finish(const HalfSums& sums, Groups group, float sum, float* totals) {
  FloatSums same;
  same.v[0] = sums.v[0];
  finish(same, group, sum, totals);
}
#endif

// Adds the products of `m` rows with one block of `t` tiles, whose pairs begin at `pair`, to totals
// [t, m, kTile]. x, groups and sums begin with the block.
template <typename Sums, int m, int t, typename Source>
void add_block(const Source* tiles, int64_t pair, const Block& block,
               const typename Sums::Input* x, int64_t stride, const Groups* groups,
               const float* sums, int64_t sums_stride, float* totals, int64_t totals_stride) {
  const int64_t pairs = block.length / 2;
  for (int64_t piece = 0; piece < block.pieces; ++piece, pair += pairs, x += block.length) {
    Sums acc[m][t];
    for (auto& row : acc)
      for (Sums& one : row) one.clear();
    const auto multiply = [&](int64_t p) {
      unrolled<Source::kPairs>([&](auto which) {
        constexpr int k = decltype(which)::value;
#pragma GCC unroll 4
        for (int j = 0; j < t; ++j) {
          const auto& w = tiles[j].template get<k>(pair + p);
#pragma GCC unroll 8
          for (int i = 0; i < m; ++i) acc[i][j].add(w, x + i * stride + 2 * (p + k));
        }
      });
    };
    if constexpr (Sums::kUnrolls) {
#pragma GCC unroll 4
      for (int64_t p = 0; p < pairs; p += Source::kPairs) multiply(p);
    } else {
      for (int64_t p = 0; p < pairs; p += Source::kPairs) multiply(p);
    }
#pragma GCC unroll 8
    for (int i = 0; i < m; ++i) {
      const float sum = sums == nullptr ? 0 : sums[i * sums_stride + piece];
#pragma GCC unroll 4
      for (int j = 0; j < t; ++j) {
        finish(acc[i][j], groups[j].at(piece), sum, totals + j * totals_stride + i * kTile);
      }
    }
  }
}

// The same for `count` <= most rows.
template <typename Sums, int most, int t, typename Source, typename... Rest>
void add_rows(int64_t count, const Source* tiles, const Rest&... rest) {
  if constexpr (most > 0) {
    if (count == most) return add_block<Sums, most, t>(tiles, rest...);
    add_rows<Sums, most - 1, t>(count, tiles, rest...);
  }
}

// A product x @ weight.T. Tile: CodeTile, ShortTile or HalfTile, whose numbers Sums multiplies.
template <typename Sums, typename Tile>
struct Product {
  using Input = typename Sums::Input;
  const Input* x;     // [rows, inputs]
  const float* sums;  // [rows, groups] of x, where there are offsets
  int64_t rows, inputs, groups;
  const uint8_t* packed;          // [tiles, inputs / 2, kPairBytes]
  const float *scales, *offsets;  // [tiles, groups, kTile] or null
  const Table* table;             // of nibbles

  // Adds to totals [stop - start, rows, kTile] of tiles [start, stop), at most kStrip.
  void run(int64_t start, int64_t stop, float* totals) const {
    std::vector<Tile> tiles;
    for (int64_t tile = start; tile < stop; ++tile) {
      tiles.push_back(Tile{packed + tile * (inputs / 2) * Tile::kPairBytes, table});
    }
    const int64_t group = inputs / groups;
    if (group > kSegment) {
      for (int64_t g = 0; g < groups; ++g) {
        for (int64_t done = 0; done < group; done += kSegment) {
          const int64_t count = std::min(kSegment, group - done);
          run_block({g * group + done, 1, count, g, done == 0}, tiles, start, totals);
        }
      }
      return;
    }
    const int64_t together = kSegment / group;
    for (int64_t g = 0; g < groups; g += together) {
      run_block({g * group, std::min(together, groups - g), group, g, true}, tiles, start, totals);
    }
  }

 private:
  void run_block(const Block& block, const std::vector<Tile>& tiles, int64_t start,
                 float* totals) const {
    Groups own[kStrip];
    const int64_t count = tiles.size(), stride = rows * kTile;
    for (int64_t j = 0; j < count; ++j) {
      const int64_t at = (start + j) * groups * kTile;
      own[j] = Groups{scales == nullptr ? nullptr : scales + at,
                      offsets == nullptr || !block.adds_offsets ? nullptr : offsets + at}
                   .at(block.group);
    }
    const Input* from = x + block.first;
    const float* own_sums = sums == nullptr ? nullptr : sums + block.group;
    const int64_t pair = block.first / 2;
    if (rows <= 2 && count == kStrip) {
      // Enough sums at once to hide how long one addition takes.
      constexpr int together = kVecs == 1 ? 4 : 2;
      if (rows == 1) {
        return add_block<Sums, 1, 4>(tiles.data(), pair, block, from, inputs, own, own_sums,
                                     groups, totals, stride);
      }
      for (int64_t j = 0; j < count; j += together) {
        add_block<Sums, 2, together>(tiles.data() + j, pair, block, from, inputs, own + j,
                                     own_sums, groups, totals + j * stride, stride);
      }
      return;
    }
    for (int64_t j = 0; j < count; ++j) {
      if (rows <= Sums::kRows) {
        add_rows<Sums, Sums::kRows, 1>(rows, tiles.data() + j, pair, block, from, inputs, own + j,
                                       own_sums, groups, totals + j * stride, stride);
      } else {
        expanded(tiles[j], block, own + j, own_sums, totals + j * stride);
      }
    }
  }

  void expanded(const Tile& tile, const Block& block, const Groups* own, const float* own_sums,
                float* totals) const {
    alignas(64) typename Sums::Weights buffer[kSegment / 2];
    const int64_t pairs = block.pieces * block.length / 2;
    for (int64_t p = 0; p < pairs; p += Tile::kPairs) {
      unrolled<Tile::kPairs>([&](auto k) {
        buffer[p + k] = tile.template get<decltype(k)::value>(block.first / 2 + p);
      });
    }
    const Expanded<typename Sums::Weights> source{buffer};
    for (int64_t row = 0; row < rows; row += Sums::kRows) {
      add_rows<Sums, Sums::kRows, 1>(
          std::min<int64_t>(Sums::kRows, rows - row), &source, int64_t{0}, block,
          x + row * inputs + block.first, inputs, own,
          own_sums == nullptr ? nullptr : own_sums + row * groups, groups, totals + row * kTile,
          rows * kTile);
    }
  }
};

}  // namespace serving_cpu
