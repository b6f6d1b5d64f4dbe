// Collectives between ranks of one machine, through a region of memory that all of them map.
// In: this rank's part of a tensor; out: the sum, or all parts side by side, the same bits on
// every rank. A step of a small model needs dozens of these: sockets take half a millisecond each
// where a rank has to be woken up, a flag in shared memory takes about a microsecond.
#pragma once

#include "cpu_ops_vectors.h"

#include <ATen/ops/empty.h>
#include <sched.h>
#include <time.h>

#include <atomic>

namespace serving_cpu {

// A rank that waits burns its core, then offers it, then sleeps: others may be on that core, and a
// rank may wait for long where another one reads a prompt alone or has died.
constexpr int kSpins = 4000, kYields = 2000;
constexpr timespec kNap{0, 20'000};
constexpr int64_t kLine = 64;  // bytes of a cache line, so that no two ranks write to one

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// One area for each rank: how many pieces it has published, then two buffers that take turns.
// Piece n may be written once every rank has published piece n - 1: none reads n - 2 any more.
class Exchange {
 public:
  Exchange(const Tensor& region, int64_t rank, int64_t size)
      : base_(region.data_ptr<uint8_t>()), rank_(rank), size_(size), area_(region.numel() / size) {
    TORCH_CHECK(region.is_contiguous() && rank >= 0 && rank < size && capacity() >= kLine,
                "region of ", region.numel(), " bytes cannot serve rank ", rank, " of ", size);
    next_ = published(rank).load(std::memory_order_relaxed) + 1;
  }

  // Bytes of one piece.
  int64_t capacity() const { return (area_ - kLine) / 2 / kLine * kLine; }

  // Publishes what write(buffer) fills; afterwards read(rank) is valid until the next call.
  template <typename F>
  void publish(const F& write) {
    await_all(next_ - 1);
    write(buffer(rank_, next_));
    published(rank_).store(next_, std::memory_order_release);
    await_all(next_);
    ++next_;
  }

  const uint8_t* read(int64_t rank) const { return buffer(rank, next_ - 1); }

 private:
  std::atomic<uint64_t>& published(int64_t rank) const {
    return *reinterpret_cast<std::atomic<uint64_t>*>(base_ + rank * area_);
  }

  uint8_t* buffer(int64_t rank, uint64_t piece) const {
    return base_ + rank * area_ + kLine + (piece & 1) * capacity();
  }

  void await_all(uint64_t piece) const {
    for (int64_t rank = 0; rank < size_; ++rank) {
      for (int tries = 0; published(rank).load(std::memory_order_acquire) < piece; ++tries) {
        if (tries < kSpins) {
          relax();
        } else if (tries < kSpins + kYields) {
          sched_yield();
        } else {
          nanosleep(&kNap, nullptr);
        }
      }
    }
  }

  uint8_t* base_;
  int64_t rank_, size_, area_;
  uint64_t next_;
};

// x, contiguous, becomes the sum of every rank's x: added in fp32 in the order of the ranks.
inline void exchange_sum_(Tensor& x, const Tensor& region, int64_t rank, int64_t size) {
  TORCH_CHECK(x.is_contiguous(), "x must be contiguous");
  Exchange exchange(region, rank, size);
  by_dtype(x, [&](auto zero) {
    using T = decltype(zero);
    T* const data = x.mutable_data_ptr<T>();
    const int64_t most = exchange.capacity() / static_cast<int64_t>(sizeof(T));
    for (int64_t start = 0; start < x.numel(); start += most) {
      T* const piece = data + start;
      const int64_t n = std::min(most, x.numel() - start);
      exchange.publish([&](uint8_t* to) { std::memcpy(to, piece, n * sizeof(T)); });
      for_vectors(n, [&](int64_t i, auto count) {
        Vec sum(0);
        for (int64_t from = 0; from < size; ++from) {
          sum = sum + read(reinterpret_cast<const T*>(exchange.read(from)) + i, count);
        }
        write(piece + i, sum, count);
      });
    }
  });
}

// x [rows, n], contiguous, of each rank to [rows, size * n] in the order of the ranks.
inline Tensor exchange_gather(const Tensor& x, const Tensor& region, int64_t rank, int64_t size) {
  TORCH_CHECK(x.is_contiguous() && x.dim() == 2, "x must be contiguous and have 2 dimensions");
  Exchange exchange(region, rank, size);
  const int64_t rows = x.size(0), bytes = x.size(1) * x.element_size();
  Tensor all = at::empty({rows, size * x.size(1)}, x.options());
  const auto* const from = static_cast<const uint8_t*>(x.const_data_ptr());
  auto* const to = static_cast<uint8_t*>(all.mutable_data_ptr());
  const int64_t most = exchange.capacity() / std::max<int64_t>(bytes, 1);
  TORCH_CHECK(most > 0, "a row of ", bytes, " bytes does not fit into a piece of ",
              exchange.capacity());
  for (int64_t start = 0; start < rows; start += most) {
    const int64_t n = std::min(most, rows - start);
    exchange.publish([&](uint8_t* piece) { std::memcpy(piece, from + start * bytes, n * bytes); });
    for (int64_t row = 0; row < n; ++row) {
      for (int64_t peer = 0; peer < size; ++peer) {
        std::memcpy(to + ((start + row) * size + peer) * bytes, exchange.read(peer) + row * bytes,
                    bytes);
      }
    }
  }
  return all;
}

}  // namespace serving_cpu
