// Compiled CPU ops of the engine (namespace serving_cpu), loaded by cpu_ops.py into every rank.
// In: torch tensors of one prefill or decode step; out: the results of the plain torch path, in
// fp32 arithmetic, for float32, float16 and bfloat16. Threads are torch's own (at::parallel_for).
// No result depends on the batch a row is in, nor on the number of threads: work is split by
// constants, and merged in order. Next: cpu_ops_vectors.h (helpers), cpu_ops_kv.h (KV caches),
// cpu_ops_decode.h (attention), cpu_ops_scan.h (state spaces),
// cpu_ops_exchange.h (between ranks).

#include "cpu_ops_vectors.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <tuple>
#include <vector>

#include "cpu_ops_decode.h"
#include "cpu_ops_exchange.h"
#include "cpu_ops_kv.h"
#include "cpu_ops_scan.h"

namespace serving_cpu {
namespace {

// ---------------------------------------------------------------- normalisation, activation

// Llama's order: normalise in fp32, round to T, then multiply by the weight.
template <typename T>
void normalize_row(const T* x, const T* weight, T* out, int64_t n, float eps) {
  Vec squares(0);
  for_vectors(n, [&](int64_t i, auto count) {
    const Vec v = read(x + i, count);
    squares = at::vec::fmadd(v, v, squares);
  });
  const Vec scale(1.0f / std::sqrt(reduce_sum(squares) / n + eps));
  for_vectors(n, [&](int64_t i, auto count) {
    write(out + i, rounded<T>(read(x + i, count) * scale) * read(weight + i, count), count);
  });
}

// x [rows, d] or [tokens, heads, d], any strides but the last; out likewise.
void normalize(const Tensor& x, const Tensor& weight, const Tensor& out, double eps) {
  TORCH_CHECK(x.dim() == 2 || x.dim() == 3, "x must have 2 or 3 dimensions, got ", x.dim());
  check_rows(x, "x", x.dim());
  const int64_t d = x.size(-1), heads = x.dim() == 3 ? x.size(1) : 1;
  check_vector(weight, "weight", d, x.scalar_type());
  by_dtype(x, [&](auto zero) {
    using T = decltype(zero);
    const T *in = x.const_data_ptr<T>(), *w = weight.const_data_ptr<T>();
    T* to = out.mutable_data_ptr<T>();
    parallel_rows(x.size(0) * heads, d, [&](int64_t row) {
      const int64_t token = row / heads, head = row % heads;
      normalize_row(in + token * x.stride(0) + head * x.stride(-2), w,
                    to + token * out.stride(0) + head * out.stride(-2), d, eps);
    });
  });
}

Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps) {
  Tensor out = at::empty(x.sizes(), x.options());
  normalize(x, weight, out, eps);
  return out;
}

void rms_norm_(Tensor& x, const Tensor& weight, double eps) { normalize(x, weight, x, eps); }

void add_rms_norm_(Tensor& x, Tensor& residual, const Tensor& weight, double eps) {
  check_rows(x, "x", 2);
  check_rows(residual, "residual", 2);
  check_like(residual, "residual", x);
  TORCH_CHECK(x.sizes() == residual.sizes(), "residual must have the shape of x, ", x.sizes(),
              ", got ", residual.sizes());
  const int64_t hidden = x.size(1);
  check_vector(weight, "weight", hidden, x.scalar_type());
  by_dtype(x, [&](auto zero) {
    using T = decltype(zero);
    T *xs = x.mutable_data_ptr<T>(), *rs = residual.mutable_data_ptr<T>();
    const T* w = weight.const_data_ptr<T>();
    parallel_rows(x.size(0), hidden, [&](int64_t row) {
      T *px = xs + row * x.stride(0), *pr = rs + row * residual.stride(0);
      for_vectors(hidden, [&](int64_t i, auto count) {
        write(pr + i, read(pr + i, count) + read(px + i, count), count);
      });
      normalize_row(pr, w, px, hidden, eps);
    });
  });
}

Tensor silu_mul(const Tensor& gate_up) {
  check_rows(gate_up, "gate_up", 2);
  TORCH_CHECK(gate_up.size(1) % 2 == 0, "gate_up must have an even width, got ", gate_up.size(1));
  const int64_t tokens = gate_up.size(0), inter = gate_up.size(1) / 2;
  Tensor out = at::empty({tokens, inter}, gate_up.options());
  by_dtype(gate_up, [&](auto zero) {
    using T = decltype(zero);
    const T* in = gate_up.const_data_ptr<T>();
    T* to = out.mutable_data_ptr<T>();
    parallel_rows(tokens, 2 * inter, [&](int64_t row) {
      const T* gate = in + row * gate_up.stride(0);
      for_vectors(inter, [&](int64_t i, auto count) {
        const Vec g = read(gate + i, count), up = read(gate + inter + i, count);
        write(to + row * inter + i, g / (Vec(1) + g.neg().exp_u20()) * up, count);
      });
    });
  });
  return out;
}

// ---------------------------------------------------------------- rotary position, cache write

// "Rotate half": dimension i turns with i + half, for i < half; x [head_dim], in place.
template <typename T>
void rotate(T* x, const float* cos, const float* sin, int64_t half) {
  for_vectors(half, [&](int64_t i, auto count) {
    const Vec a = read(x + i, count), b = read(x + half + i, count);
    const Vec c = read(cos + i, count), s = read(sin + i, count);
    write(x + i, a * c - b * s, count);
    write(x + half + i, b * c + a * s, count);
  });
}

// qkv [tokens, (heads + 2 * kv_heads) * head_dim]: rotates queries and keys in place, and writes
// keys and values to slot = block * block_size + offset; a negative slot is not written. Keys and
// values become what is read from the cache.
void rope_write_kv_(Tensor& qkv, const Tensor& cos, const Tensor& sin, Tensor& key_cache,
                    Tensor& value_cache, const Tensor& slots, int64_t heads, int64_t kv_heads,
                    int64_t head_dim, const Scales& key_scales, const Scales& value_scales) {
  check_rows(qkv, "qkv", 2);
  check_cache(key_cache, value_cache, key_scales, value_scales, qkv);
  const int64_t tokens = qkv.size(0), width = (heads + 2 * kv_heads) * head_dim;
  TORCH_CHECK(heads > 0 && kv_heads > 0 && head_dim > 0 && qkv.size(1) == width,
              "qkv must be (heads + 2 * kv_heads) * head_dim = ", width, " wide, got ",
              qkv.size(1));
  TORCH_CHECK(cos.is_contiguous() && sin.is_contiguous() && cos.dim() == 2 &&
                  cos.sizes() == sin.sizes() && cos.size(0) == tokens &&
                  cos.scalar_type() == at::kFloat && sin.scalar_type() == at::kFloat,
              "cos and sin must be contiguous float32 [tokens, rot / 2] of ", tokens, " tokens");
  const int64_t half = cos.size(1), blocks = key_cache.size(0), block_size = key_cache.size(2);
  TORCH_CHECK(2 * half <= head_dim, "rot must be at most head_dim ", head_dim, ", got ", 2 * half);
  TORCH_CHECK(key_cache.size(1) == kv_heads && key_cache.size(3) == head_dim,
              "key_cache must have ", kv_heads, " heads of ", head_dim, ", got ",
              key_cache.sizes());
  check_vector(slots, "slots", tokens, at::kLong);
  const int64_t* slot_of = slots.const_data_ptr<int64_t>();
  for (int64_t t = 0; t < tokens; ++t) {
    TORCH_CHECK(slot_of[t] < blocks * block_size, "slots must be below ", blocks * block_size,
                ", got ", slot_of[t]);
  }
  const float *cosines = cos.const_data_ptr<float>(), *sines = sin.const_data_ptr<float>();
  by_dtype(qkv, [&](auto zero) {
    using T = decltype(zero);
    T* rows = qkv.mutable_data_ptr<T>();
    by_element<T>(key_cache, [&](auto element) {
      using C = decltype(element);
      const auto keys = cache_of<C>(key_cache, key_scales);
      const auto values = cache_of<C>(value_cache, value_scales);
      parallel_rows(tokens, width, [&](int64_t t) {
        T* row = rows + t * qkv.stride(0);
        for (int64_t h = 0; h < heads + kv_heads; ++h) {
          rotate(row + h * head_dim, cosines + t * half, sines + t * half, half);
        }
        const int64_t slot = slot_of[t];
        if (slot < 0) return;
        T *k = row + heads * head_dim, *v = k + kv_heads * head_dim;
        for (int64_t h = 0; h < kv_heads; ++h) {
          const int64_t to = (slot / block_size * kv_heads + h) * block_size + slot % block_size;
          store_vector(k + h * head_dim, keys, to, head_dim);
          store_vector(v + h * head_dim, values, to, head_dim);
        }
      });
    });
  });
}

// ---------------------------------------------------------------- greedy choice

constexpr int64_t kColumns = 16384;  // logits that one work item scans
constexpr int64_t kBlock = 512;      // logits whose maximum is found before their exponentials

struct Best {
  float max = -kInf, sum = 0;  // sum of exp(x - max)
  int64_t index = 0;

  // Takes over what comes after: a NaN wins and stays, as in torch.argmax.
  void join(const Best& next) {
    if (std::isnan(max) || next.max == -kInf) return;
    if (next.max <= max) {
      sum += next.sum * std::exp(next.max - max);
    } else {
      *this = {next.max, next.sum + sum * std::exp(max - next.max), next.index};
    }
  }
};

template <typename T>
void scan_block(const T* x, int64_t begin, int64_t n, Best& best) {
  Vec top(-kInf), total(0);
  for_vectors(n, [&](int64_t i, auto count) {
    top = at::vec::maximum(top, read(x + i, count, -kInf));
  });
  const float highest = reduce_max(top);
  if (highest == -kInf) return;
  for_vectors(n, [&](int64_t i, auto count) {
    total = total + (read(x + i, count, -kInf) - Vec(highest)).exp_u20();
  });
  int64_t found = 0;
  if (!(highest <= best.max)) {
    const bool nan = std::isnan(highest);
    while (nan ? !std::isnan(float(x[found])) : float(x[found]) != highest) ++found;
  }
  best.join({highest, reduce_sum(total), begin + found});
}

// logits [n, vocab] to the index of each row's first maximum and its log-softmax.
std::tuple<Tensor, Tensor> greedy(const Tensor& logits) {
  check_rows(logits, "logits", 2);
  const int64_t n = logits.size(0), vocab = logits.size(1);
  TORCH_CHECK(vocab > 0, "logits must have at least one column");
  const int64_t parts = (vocab + kColumns - 1) / kColumns;
  Tensor ids = at::empty({n}, logits.options().dtype(at::kLong));
  Tensor logprobs = at::empty({n}, logits.options().dtype(at::kFloat));
  std::vector<Best> best(n * parts);
  by_dtype(logits, [&](auto zero) {
    using T = decltype(zero);
    const T* in = logits.const_data_ptr<T>();
    parallel_rows(n * parts, std::min(vocab, kColumns), [&](int64_t i) {
      const T* row = in + i / parts * logits.stride(0);
      const int64_t begin = i % parts * kColumns, end = std::min(vocab, begin + kColumns);
      for (int64_t b = begin; b < end; b += kBlock) {
        scan_block(row + b, b, std::min(kBlock, end - b), best[i]);
      }
    });
  });
  for (int64_t row = 0; row < n; ++row) {
    Best all;
    for (int64_t part = 0; part < parts; ++part) all.join(best[row * parts + part]);
    ids.mutable_data_ptr<int64_t>()[row] = all.index;
    logprobs.mutable_data_ptr<float>()[row] = all.max - all.max - std::log(all.sum);
  }
  return {ids, logprobs};
}

}  // namespace

TORCH_LIBRARY(serving_cpu, m) {
  m.def("add_rms_norm_(Tensor(a!) x, Tensor(b!) residual, Tensor weight, float eps) -> ()");
  m.def("rms_norm(Tensor x, Tensor weight, float eps) -> Tensor");
  m.def("rms_norm_(Tensor(a!) x, Tensor weight, float eps) -> ()");
  m.def("silu_mul(Tensor gate_up) -> Tensor");
  m.def(
      "rope_write_kv_(Tensor(a!) qkv, Tensor cos, Tensor sin, Tensor(b!) key_cache,"
      " Tensor(c!) value_cache, Tensor slots, int heads, int kv_heads, int head_dim,"
      " Tensor(d!)? key_scales=None, Tensor(e!)? value_scales=None) -> ()");
  m.def(
      "paged_decode(Tensor query, Tensor key_cache, Tensor value_cache, Tensor block_tables,"
      " Tensor context_lens, float scale, int window, float softcap, Tensor? key_scales=None,"
      " Tensor? value_scales=None) -> Tensor");
  m.def(
      "selective_scan_(Tensor x, Tensor steps, Tensor rates, Tensor b, Tensor c, Tensor(a!) pool,"
      " Tensor rows, Tensor starts) -> Tensor");
  m.def("greedy(Tensor logits) -> (Tensor ids, Tensor logprobs)");
  m.def("exchange_sum_(Tensor(a!) x, Tensor region, int rank, int size) -> ()");
  m.def("exchange_gather(Tensor x, Tensor region, int rank, int size) -> Tensor");
}

TORCH_LIBRARY_IMPL(serving_cpu, CPU, m) {
  m.impl("add_rms_norm_", &add_rms_norm_);
  m.impl("rms_norm", &rms_norm);
  m.impl("rms_norm_", &rms_norm_);
  m.impl("silu_mul", &silu_mul);
  m.impl("rope_write_kv_", &rope_write_kv_);
  m.impl("paged_decode", &paged_decode);
  m.impl("selective_scan_", &selective_scan_);
  m.impl("greedy", &greedy);
  m.impl("exchange_sum_", &exchange_sum_);
  m.impl("exchange_gather", &exchange_gather);
}

}  // namespace serving_cpu
