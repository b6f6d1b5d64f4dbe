// Compiled CPU ops on quantized weights (namespace serving_cpu), a source of their own: it takes as
// long to compile as all others, beside them. Same rules as in cpu_ops.cpp. Next: cpu_ops_coded.h.

#include "cpu_ops_coded.h"

#include <torch/library.h>

namespace serving_cpu {

TORCH_LIBRARY_FRAGMENT(serving_cpu, m) {
  m.def("pack_codes(Tensor codes, int kind, bool paired) -> Tensor");
  m.def("takes_pairs(ScalarType x, int kind) -> bool", [](at::ScalarType x, int64_t kind) {
    return takes_pairs(x, static_cast<Codes>(kind));
  });
  m.def(
      "coded_matmul(Tensor x, Tensor packed, Tensor? scales, Tensor? offsets, Tensor? table,"
      " Tensor? bias, int kind, int outputs) -> Tensor");
  m.def("int8_rows(Tensor x) -> (Tensor codes, Tensor scales)");
  m.def("int8_matmul(Tensor x, Tensor packed, Tensor scales, Tensor? bias) -> Tensor");
}

TORCH_LIBRARY_IMPL(serving_cpu, CPU, m) {
  m.impl("pack_codes", &pack_codes);
  m.impl("coded_matmul", &coded_matmul);
  m.impl("int8_rows", &int8_rows);
  m.impl("int8_matmul", &int8_matmul);
}

}  // namespace serving_cpu
