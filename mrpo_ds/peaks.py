"""What NVIDIA's data sheets promise: dense matmul peaks of GPUs, teraflop/s, without sparsity."""

import torch

PEAKS: tuple[tuple[str, float, float, float], ...] = (
    ("B200", 2250.0, 1125.0, 75.0),
    ("GH200", 989.4, 494.7, 66.9),
    ("H200 NVL", 835.5, 417.5, 60.0),
    ("H200", 989.4, 494.7, 66.9),
    ("H100 NVL", 835.5, 417.5, 60.0),
    ("H100 PCIe", 756.0, 378.0, 51.0),
    ("H100", 989.4, 494.7, 66.9),
    ("H800", 989.4, 494.7, 66.9),
    ("A100", 312.0, 156.0, 19.5),
    ("A800", 312.0, 156.0, 19.5),
    ("L40S", 362.0, 183.0, 91.6),
    ("L4", 121.0, 60.0, 30.3),
    ("A40", 149.7, 74.8, 37.4),
    ("A10G", 70.0, 35.0, 31.5),
    ("A10", 125.0, 62.5, 31.2),
)
"""(a part of the device's name, bf16, TF32, fp32); the first that fits counts."""


def peak_tflops(device_name: str, dtype: torch.dtype, tf32: bool) -> float | None:
    """The data-sheet peak of a device, teraflop/s, or None for one that is not in the table.

    Args:
        device_name: as torch.cuda.get_device_name says it.
        dtype: of the matmuls, bfloat16 or float32.
        tf32: whether float32 matmuls may use TF32.
    """
    words = device_name.replace("-", " ").split()
    if "MIG" in words:  # a part of a device
        return None
    for name, bf16, tensor_float, fp32 in PEAKS:
        if all(word in words for word in name.split()):
            return bf16 if dtype == torch.bfloat16 else (tensor_float if tf32 else fp32)
    return None


def device_peak_tflops(device: torch.device, dtype: torch.dtype) -> float | None:
    """peak_tflops of a real device; None for CPUs."""
    if device.type != "cuda":
        return None
    return peak_tflops(torch.cuda.get_device_name(device), dtype, torch.get_float32_matmul_precision() != "highest")
