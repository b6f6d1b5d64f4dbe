// The op selective_scan_: the recurrence of a selective state space over the tokens of one step.
// In: x and steps [tokens, channels], rates [state, channels], b and c [tokens, state], the pool of
// states [rows, state, channels], all float32; out: y [tokens, channels], and the pool's rows
// advanced. Sequence i has the tokens starts[i] to starts[i + 1] and the state in row rows[i].
#pragma once

#include <ATen/ops/zeros.h>

#include <vector>

#include "cpu_ops_vectors.h"

namespace serving_cpu {

constexpr int64_t kGroup = 4;  // vectors of channels in one work item

// What is read and written for some channels and all tokens of one sequence.
struct ScanItem {
  const float *x, *steps, *rates, *b, *c;
  float *state, *y;
  int64_t channels, tokens;  // `channels`: distance between rows of x

  ScanItem from(int64_t first) const {
    ScanItem item = *this;
    item.x += first, item.steps += first, item.rates += first, item.state += first, item.y += first;
    return item;
  }
};

// h = exp(step * rate) * h + step * x * b; y = sum of h * c. kState is the size of the state where
// it is known when compiling: then states and rates stay in registers.
template <int64_t kState>
void scan_channels(const ScanItem& item, int64_t size, int64_t count) {
  constexpr int64_t held = kState ? kState : 1;
  const int64_t n = kState ? kState : size;
  Vec fixed[2 * held];
  std::vector<Vec> grown(kState ? 0 : 2 * n);
  Vec* const h = kState ? fixed : grown.data();
  Vec* const rate = h + n;
  for (int64_t s = 0; s < n; ++s) {
    h[s] = read(item.state + s * item.channels, count);
    rate[s] = read(item.rates + s * item.channels, count);
  }
  for (int64_t t = 0; t < item.tokens; ++t) {
    const Vec step = read(item.steps + t * item.channels, count);
    const Vec input = step * read(item.x + t * item.channels, count);
    const float *b = item.b + t * n, *c = item.c + t * n;
    Vec y(0);
    for (int64_t s = 0; s < n; ++s) {
      h[s] = at::vec::fmadd((step * rate[s]).exp_u20(), h[s], input * Vec(b[s]));
      y = at::vec::fmadd(h[s], Vec(c[s]), y);
    }
    write(item.y + t * item.channels, y, count);
  }
  for (int64_t s = 0; s < n; ++s) write(item.state + s * item.channels, h[s], count);
}

// The same for one token and up to kGroup vectors: states come from memory, so they are read in runs.
inline void step_channels(const ScanItem& item, int64_t size, int64_t width) {
  Vec step[kGroup], input[kGroup], y[kGroup];
  const auto each = [&](const auto& body) {
    for (int64_t v = 0; v * kWidth < width; ++v) {
      body(v, v * kWidth, std::min(kWidth, width - v * kWidth));
    }
  };
  each([&](int64_t v, int64_t first, int64_t count) {
    step[v] = read(item.steps + first, count);
    input[v] = step[v] * read(item.x + first, count);
    y[v] = Vec(0);
  });
  for (int64_t s = 0; s < size; ++s) {
    const Vec b(item.b[s]), c(item.c[s]);
    const float* rates = item.rates + s * item.channels;
    float* state = item.state + s * item.channels;
    each([&](int64_t v, int64_t first, int64_t count) {
      const Vec decay = (step[v] * read(rates + first, count)).exp_u20();
      const Vec h = at::vec::fmadd(decay, read(state + first, count), input[v] * b);
      write(state + first, h, count);
      y[v] = at::vec::fmadd(h, c, y[v]);
    });
  }
  each([&](int64_t v, int64_t first, int64_t count) { write(item.y + first, y[v], count); });
}

inline void check_matrix(const Tensor& t, const char* name, int64_t rows, int64_t columns) {
  TORCH_CHECK(t.is_contiguous() && t.dim() == 2 && t.size(0) == rows && t.size(1) == columns &&
                  t.scalar_type() == at::kFloat,
              name, " must be contiguous float32 of shape [", rows, ", ", columns, "], got ",
              t.scalar_type(), " of shape ", t.sizes());
}

inline Tensor selective_scan_(const Tensor& x, const Tensor& steps, const Tensor& rates,
                              const Tensor& b, const Tensor& c, Tensor& pool, const Tensor& rows,
                              const Tensor& starts) {
  TORCH_CHECK(pool.is_contiguous() && pool.dim() == 3 && pool.scalar_type() == at::kFloat,
              "pool must be contiguous float32 [rows, state, channels]");
  const int64_t size = pool.size(1), channels = pool.size(2), n = rows.numel();
  TORCH_CHECK(x.dim() == 2, "x must have 2 dimensions, got ", x.dim());
  const int64_t tokens = x.size(0);
  check_matrix(x, "x", tokens, channels);
  check_matrix(steps, "steps", tokens, channels);
  check_matrix(rates, "rates", size, channels);
  check_matrix(b, "b", tokens, size);
  check_matrix(c, "c", tokens, size);
  check_vector(rows, "rows", n, at::kLong);
  check_vector(starts, "starts", n + 1, at::kLong);
  const int64_t *row_of = rows.const_data_ptr<int64_t>(), *start = starts.const_data_ptr<int64_t>();
  TORCH_CHECK(start[0] >= 0 && start[n] <= tokens, "starts must lie in [0, ", tokens, "]");
  for (int64_t i = 0; i < n; ++i) {
    TORCH_CHECK(0 <= row_of[i] && row_of[i] < pool.size(0), "rows must be in [0, ", pool.size(0),
                "), got ", row_of[i]);
    TORCH_CHECK(start[i] <= start[i + 1], "starts must not fall");
  }
  Tensor y = at::zeros({tokens, channels}, x.options());
  const float *xs = x.const_data_ptr<float>(), *step = steps.const_data_ptr<float>();
  const float *rate = rates.const_data_ptr<float>();
  const float *bs = b.const_data_ptr<float>(), *cs = c.const_data_ptr<float>();
  float *states = pool.mutable_data_ptr<float>(), *to = y.mutable_data_ptr<float>();
  constexpr int64_t group = kGroup * kWidth;
  const int64_t parts = (channels + group - 1) / group;
  const int64_t mean = n ? (start[n] - start[0] + n - 1) / n : 0;
  parallel_rows(n * parts, mean * size * group, [&](int64_t i) {
    const int64_t sequence = i / parts, first = i % parts * group, from = start[sequence];
    const int64_t at = from * channels + first;
    const ScanItem item{xs + at, step + at, rate + first, bs + from * size, cs + from * size,
                        states + row_of[sequence] * size * channels + first, to + at, channels,
                        start[sequence + 1] - from};
    const int64_t width = std::min(group, channels - first);
    if (item.tokens == 1) return step_channels(item, size, width);
    for (int64_t v = 0; v < width; v += kWidth) {
      const int64_t count = std::min(kWidth, width - v);
      size == 16 ? scan_channels<16>(item.from(v), size, count)
                 : scan_channels<0>(item.from(v), size, count);
    }
  });
  return y;
}

}  // namespace serving_cpu
