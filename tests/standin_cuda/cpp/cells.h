// The cells of GRUs and LSTMs that only a GPU has, written with operators that every device has.
#pragma once

#include <ATen/ATen.h>

namespace standin {

using Maybe = std::optional<at::Tensor>;

inline at::Tensor biased(const at::Tensor& gates, const Maybe& bias) {
  return bias && bias->defined() ? gates + *bias : gates;
}

inline std::tuple<at::Tensor, at::Tensor> gru_cell(const at::Tensor& input, const at::Tensor& hidden, const at::Tensor& hx,
                                                   const Maybe& input_bias, const Maybe& hidden_bias) {
  auto i = biased(input, input_bias).chunk(3, 1), h = biased(hidden, hidden_bias).chunk(3, 1);
  auto r = (i[0] + h[0]).sigmoid(), z = (i[1] + h[1]).sigmoid(), n = (i[2] + r * h[2]).tanh();
  return {n + z * (hx - n), at::cat({r, z, n, hx, h[2]}, 1)};
}

inline std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> gru_cell_backward(
    const at::Tensor& gradient, const at::Tensor& workspace, bool has_bias) {
  auto w = workspace.chunk(5, 1);
  const auto &r = w[0], &z = w[1], &n = w[2], &hx = w[3], &h = w[4];
  auto dn = gradient * (1 - z) * (1 - n * n), dz = gradient * (hx - n) * z * (1 - z), dr = dn * h * r * (1 - r);
  auto input = at::cat({dr, dz, dn}, 1), hidden = at::cat({dr, dz, dn * r}, 1);
  at::Tensor none;
  return {input, hidden, gradient * z, has_bias ? input.sum(0) : none, has_bias ? hidden.sum(0) : none};
}

inline std::tuple<at::Tensor, at::Tensor, at::Tensor> lstm_cell(const at::Tensor& input, const at::Tensor& hidden,
                                                                const at::Tensor& cx, const Maybe& input_bias,
                                                                const Maybe& hidden_bias) {
  auto gates = (biased(input, input_bias) + biased(hidden, hidden_bias)).chunk(4, 1);
  auto i = gates[0].sigmoid(), f = gates[1].sigmoid(), g = gates[2].tanh(), o = gates[3].sigmoid();
  auto cy = f * cx + i * g;
  return {o * cy.tanh(), cy, at::cat({i, f, g, o}, 1)};
}

inline std::tuple<at::Tensor, at::Tensor, at::Tensor> lstm_cell_backward(const Maybe& grad_hy, const Maybe& grad_cy,
                                                                         const at::Tensor& cx, const at::Tensor& cy,
                                                                         const at::Tensor& workspace, bool has_bias) {
  auto w = workspace.chunk(4, 1);
  const auto &i = w[0], &f = w[1], &g = w[2], &o = w[3];
  auto gh = grad_hy && grad_hy->defined() ? *grad_hy : at::zeros_like(cx);
  auto gc = grad_cy && grad_cy->defined() ? *grad_cy : at::zeros_like(cx);
  auto t = cy.tanh(), cell = gh * o * (1 - t * t) + gc;
  auto gates = at::cat({cell * g * i * (1 - i), cell * cx * f * (1 - f), cell * i * (1 - g * g), gh * t * o * (1 - o)}, 1);
  return {gates, cell * f, has_bias ? gates.sum(0) : at::Tensor()};
}

}  // namespace standin
