#!/usr/bin/env python3
"""Question: how fast is the `hqq` library itself on this GPU, with its own defaults?

    python3 kernels/lab/hqq_library.py FOLDER [--device cuda]

FOLDER is an unpacked sdist or wheel of hqq: the folder that holds `hqq/core`. Needs torch and numpy alone. Times, on
weights that are on the device already, what a user calls (Quantizer.quantize, which also packs the codes) and the
optimizer inside it, for groups along each axis: axis=0 is the library's default, axis=1 what checkpoints and kernels
take. Random normal weights; medians; the library empties the allocator's cache in each call, as it does for its users.

measured (hqq 0.2.8.post1, PyTorch 2.11, H100; G weights/s): Quantizer.quantize 1.29–2.16, its optimizer 1.54–2.30,
the most for 4 bits of a 4096 × 12800 weight. The backend's HQQ did 124–129 in the same run.
"""
import argparse
import statistics
import sys
import time
import types

import torch

SHAPES = [(4096, 4096), (4096, 12800)]
TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
BITS = [2, 3, 4]
GROUP = 64


def import_quantizer(folder):
    """quantize.py wants termcolor, to print in colours."""
    sys.modules.setdefault("termcolor", types.SimpleNamespace(colored=lambda text, *_, **__: text))
    sys.path.insert(0, folder)
    from hqq.core import quantize
    return quantize


def seconds(call, device, repeats):
    """The median of `repeats` calls after one that warms up."""
    took = []
    for _ in range(repeats + 1):
        if device == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        took.append(time.perf_counter() - began)
    return statistics.median(took[1:])


def optimizer_arguments(weight, bits, axis):
    """As Quantizer.quantize makes them."""
    grouped = weight.float().reshape([-1, GROUP] if axis == 1 else [GROUP, -1])
    least, most = grouped.amin(axis, keepdim=True), grouped.amax(axis, keepdim=True)
    scale = ((2**bits - 1) / (most - least)).clamp(max=2e4)
    return {"tensor": grouped, "scale": scale, "zero": -least * scale, "min_max": [0, 2**bits - 1], "axis": axis}


def measure(library, weight, bits, axis, device, repeats):
    arguments = optimizer_arguments(weight, bits, axis)
    quantizer = library.Quantizer
    whole = seconds(lambda: quantizer.quantize(weight, nbits=bits, group_size=GROUP, axis=axis, device=device),
                    device, repeats)
    inner = seconds(lambda: library.optimize_weights_proximal(**arguments, device=device), device, repeats)
    return whole, inner


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--rows", type=int, help="of the weights, for a try on a slow device")
    arguments = parser.parse_args()
    library, device = import_quantizer(arguments.folder), arguments.device
    import hqq
    name = torch.cuda.get_device_name() if device == "cuda" else device
    print(f"hqq {hqq.__version__}, torch {torch.__version__}, {name}, groups of {GROUP}; G weights/s")
    print(f"{'weight':>12} {'type':>5} {'bits':>4} {'axis':>4} {'quantize':>9} {'optimizer':>9}")
    for rows, cols in SHAPES:
        rows = arguments.rows or rows
        for type_name, dtype in TYPES.items():
            torch.manual_seed(1)
            weight = (torch.randn(rows, cols) * 0.02).to(device, dtype)
            for bits in BITS:
                for axis in (0, 1):
                    whole, inner = measure(library, weight, bits, axis, device, arguments.repeats)
                    print(f"{f'{rows} x {cols}':>12} {type_name:>5} {bits:>4} {axis:>4} "
                          f"{rows * cols / whole / 1e9:9.3f} {rows * cols / inner / 1e9:9.3f}", flush=True)


if __name__ == "__main__":
    main()
