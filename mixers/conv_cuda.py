"""The causal convolution along a sequence on NVIDIA GPUs by causal-conv1d, when that package is installed.

Source: github.com/Dao-AILab/causal-conv1d, `causal_conv1d/causal_conv1d_interface.py::causal_conv1d_fn`. Its
kernels have 2 to 4 taps. They read channels-last tensors where the number of channels is a multiple of 8, and
otherwise want them copied; a single token, too.
"""

import torch
from torch import Tensor

TAPS = (2, 3, 4)
_VECTOR = 8  # channels


def causal_conv_cuda(
    x: Tensor, weight: Tensor, bias: Tensor, silu: bool, channels_first: bool = False
) -> Tensor:
    """Arguments and result as in `mixers.conv.causal_conv_reference`.

    Raises:
        ValueError: what the kernels lack: float64, or another number of taps than 2 to 4.
    """
    from causal_conv1d import causal_conv1d_fn

    if x.dtype == torch.float64:
        raise ValueError("causal-conv1d has no float64; use backend='reference'")
    if weight.shape[1] not in TAPS:
        raise ValueError(f"causal-conv1d has 2 to 4 taps, got {weight.shape[1]}; use backend='reference'")
    if torch.is_autocast_enabled("cuda"):  # as torch's convolutions do
        x = x.to(torch.get_autocast_dtype("cuda"))
    x = x.transpose(1, 2).contiguous() if channels_first else x.contiguous().transpose(1, 2)
    if x.shape[1] % _VECTOR or x.shape[2] == 1:
        # copied even if torch takes it for contiguous, as it does a single token of any strides: the package
        # looks at the strides
        x = x.clone(memory_format=torch.contiguous_format)
    y: Tensor = causal_conv1d_fn(x, weight, bias, activation="silu" if silu else None)
    return y.transpose(1, 2)
