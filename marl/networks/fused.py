"""A plain MLP as one autograd node on the CPU: bias and activation inside of oneDNN's matrix product.

Run layer by layer, tanh alone takes as long as a 64-wide layer's product and each pass goes through memory. oneDNN
applies bias and activation while the result is still in registers; the operator is the one torch's own compiler emits
for a CPU. Its tanh is within 1e-7 of the exact one.
"""

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# Activations whose derivative is a function of their result, under torch's names; the gradient is overwritten.
DERIVATIVES = {
    "tanh": lambda g, result: torch.ops.aten.tanh_backward.grad_input(g, result, grad_input=g),
    "relu": lambda g, result: torch.ops.aten.threshold_backward.grad_input(g, result, 0, grad_input=g),
}
# Below so many outputs of the first layer oneDNN's fixed cost per call (12 us) outweighs what is saved.
SMALLEST = 8192
# From so many weights on its product with a transposed weight is faster than MKL's, too.
LARGE = 128 * 128


def available(activation: str) -> bool:
    """Whether this build of torch has the fused operator, and the activation a derivative here."""
    return activation in DERIVATIVES and torch.backends.mkldnn.is_available() and hasattr(torch.ops, "mkldnn")


def worthwhile(x: Tensor, layers: list[nn.Linear]) -> bool:
    """Whether `mlp` may and should be used for x [N, F]: float32 on a CPU, eager, plain layers without hooks."""
    return (
        not torch.compiler.is_compiling()  # first: sizes are symbols then
        and not torch.jit.is_tracing()
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and x.shape[0] * layers[0].out_features >= SMALLEST
        and not torch.is_autocast_enabled("cpu")
        and not any(
            type(layer) is not nn.Linear or layer._forward_hooks or layer._forward_pre_hooks for layer in layers
        )
    )


def mlp(x: Tensor, layers: list[nn.Linear], activation: str) -> Tensor:
    """Linear layers with the activation after each but the last: float32 [N, F] -> [N, out_features]."""
    parameters = [p for layer in layers for p in (layer.weight, layer.bias)]
    if torch.is_grad_enabled():
        return _MLP.apply(x, activation, *parameters)
    return _forward(x, activation, parameters)[-1]


def _forward(x: Tensor, activation: str, parameters: list[Tensor]) -> list[Tensor]:
    """Results of all layers, the input first."""
    linear = torch.ops.mkldnn._linear_pointwise
    results = [x]
    for weight, bias in zip(parameters[:-2:2], parameters[1:-2:2], strict=True):
        results.append(linear(results[-1], weight, bias, activation, [], ""))
    results.append(nn.functional.linear(results[-1], *parameters[-2:]))
    return results


class _MLP(torch.autograd.Function):
    """Gradients of the whole stack from the layers' results."""

    @staticmethod
    def forward(ctx, x: Tensor, activation: str, *parameters: Tensor) -> Tensor:
        results = _forward(x, activation, parameters)
        ctx.activation, ctx.depth = activation, len(parameters) // 2
        ctx.save_for_backward(*results[:-1], *parameters[::2])
        return results[-1]

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple:
        inputs, weights = ctx.saved_tensors[: ctx.depth], ctx.saved_tensors[ctx.depth :]
        derivative = DERIVATIVES[ctx.activation]
        needed = ctx.needs_input_grad
        gradients: list[Tensor | None] = [None] * (2 * ctx.depth)
        for i in range(ctx.depth - 1, -1, -1):
            if needed[2 + 2 * i]:
                gradients[2 * i] = gradient.t() @ inputs[i]
            if needed[3 + 2 * i]:
                gradients[2 * i + 1] = gradient.sum(0)
            if i == 0 and not needed[0]:
                return (None, None, *gradients)
            if weights[i].numel() >= LARGE:
                gradient = torch.ops.mkldnn._linear_pointwise(gradient, weights[i].t(), None, "none", [], "")
            else:
                gradient = gradient @ weights[i]
            if i > 0:
                gradient = derivative(gradient, inputs[i])
        return (gradient, None, *gradients)
