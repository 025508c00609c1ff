#!/bin/bash
# nvcc, for the one kind of GPU that SM names: 80 for A100, 86 for RTX 3090, 89 for RTX 4090, 90 for H100 and H200.
#
#     export SM=90 PYTORCH_NVCC=$PWD/mixers/nvcc_one_gpu.sh
#     MAMBA_KEEP_CUDA_BUILD=TRUE MAMBA_FORCE_BUILD=TRUE CAUSAL_CONV1D_FORCE_BUILD=TRUE uv sync --extra cuda
#
# The setup.py of mamba-ssm and of causal-conv1d list nine kinds and ignore TORCH_CUDA_ARCH_LIST, so each of their
# kernels is compiled nine times. PyTorch takes its nvcc from PYTORCH_NVCC. No GPU needs to be at hand.
set -euo pipefail
: "${SM:?names no kind of GPU. Say for instance SM=90}"

arguments=()
while (($#)); do
    case $1 in
        -gencode) shift 2 ;;
        -gencode=*) shift ;;
        *) arguments+=("$1") && shift ;;
    esac
done
exec "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" "${arguments[@]}" -gencode "arch=compute_$SM,code=sm_$SM"
