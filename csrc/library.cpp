// Every operator of the library, on one page. Implementations register themselves beside their kernels.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(amkd_fast, m) {
  // student, teacher [B, K]; weight, ce_weight [B] in the statistics' dtype; labels [B] int32 or int64.
  // Returns the loss ([] or, per row, [B]) and the statistics of csrc/kl/kl.h.
  m.def(
      "kl_forward(Tensor student, Tensor teacher, Tensor? weight, Tensor? labels, Tensor? ce_weight, "
      "float temperature, int divergence, float beta, float row_scale, float kl_factor, float ce_factor, "
      "int ignore_index, bool per_row) -> (Tensor loss, Tensor stats)");
  // grad_loss has the shape of the loss. Returns the gradient of the student, [B, K] in its dtype.
  m.def(
      "kl_backward(Tensor grad_loss, Tensor student, Tensor teacher, Tensor? weight, Tensor? labels, "
      "Tensor? ce_weight, Tensor stats, float temperature, int divergence, float beta, float row_scale, "
      "float kl_factor, float ce_factor, int ignore_index, bool per_row) -> Tensor");
}
