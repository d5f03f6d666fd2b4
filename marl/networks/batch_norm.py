"""Batch normalisation over rows of features, of all processes together."""

import torch
from torch import Tensor, nn
from torch.distributed import nn as differentiable

from marl.core import distributed
from marl.core.errors import UserError


class BatchNorm(nn.BatchNorm1d):
    """Batch normalisation (Ioffe and Szegedy 2015) over all leading dimensions: float [..., F] → [..., F].

    While training in several processes mean and variance are those of everybody's rows, as torch.nn.SyncBatchNorm
    takes them, which runs between GPUs only: gradients and running statistics are those of one process with the whole
    minibatch. Frozen (`optimizer.freeze`) it is the same function as in evaluation, and its statistics stand still.
    Raises UserError for a single row while training.
    """

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        if self.training and not self.weight.requires_grad:
            parameters = self.running_mean, self.running_var, self.weight, self.bias
            return nn.functional.batch_norm(rows, *parameters, training=False, eps=self.eps).reshape(x.shape)
        if self.training and distributed.world() > 1:
            return self._together(rows).reshape(x.shape)
        if self.training and len(rows) == 1:
            raise UserError("network.batch_norm=true: a minibatch of a single row has no variance")
        return super().forward(rows).reshape(x.shape)

    def _together(self, rows: Tensor) -> Tensor:
        sums = torch.cat([rows.sum(0), rows.square().sum(0), rows.new_tensor([len(rows)])])
        total = differentiable.all_reduce(sums)  # its gradient is summed over the processes too
        count = total[-1]
        mean, square = (total[:-1] / count).chunk(2)
        variance = square - mean.square()
        with torch.no_grad():
            assert self.num_batches_tracked is not None  # as in every layer of a network here
            assert self.running_mean is not None and self.running_var is not None
            self.num_batches_tracked += 1
            share = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean.detach(), share)
            self.running_var.lerp_((variance * count / (count - 1)).detach(), share)
        return (rows - mean) / (variance + self.eps).sqrt() * self.weight + self.bias
