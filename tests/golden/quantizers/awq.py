#!/usr/bin/env python3
"""Writes awq.json beside itself: AWQ's search for channel scales, restated in float64 from the paper (Lin et al. 2023,
"AWQ: Activation-aware Weight Quantization", section 3.2) and its published search, auto_scale.py.

    tests/golden/quantizers/awq.py        (needs numpy)

Two Linears read one input. For both ways of making a scale and every ratio: round both to nearest, compare their outputs
on all tokens. The weights and inputs are small multiples of powers of two, so that JSON says them exactly.
"""
import json
import pathlib

import numpy as np

TOKENS, CHANNELS, ROWS, GROUP, RATIOS = 96, 48, (24, 12), 16, 20


def fit(group, bits):
    """Asymmetric min-max grid with an integer zero; the scale as 16 bits keep it."""
    low, high, top = min(group.min(), 0), max(group.max(), 0), 2**bits - 1
    scale = float(np.float16((high - low) / top))
    return scale, float(np.clip(np.rint(-low / scale), 0, top))


def quantize(weights, bits):
    codes, restored = np.zeros(weights.shape, int), np.zeros(weights.shape)
    for n in range(weights.shape[0]):
        for start in range(0, weights.shape[1], GROUP):
            part = slice(start, start + GROUP)
            scale, zero = fit(weights[n, part], bits)
            codes[n, part] = np.clip(np.rint(weights[n, part] / scale + zero), 0, 2**bits - 1)
            restored[n, part] = (codes[n, part] - zero) * scale
    return codes, restored


def weight_share(linears):
    """Of every channel: its weights over the largest of their group, averaged over the rows of all Linears."""
    weights = np.abs(np.concatenate(linears))
    grouped = weights.reshape(weights.shape[0], -1, GROUP)
    return (grouped / grouped.max(axis=2, keepdims=True)).reshape(weights.shape).mean(axis=0)


def make_scale(activity, share, ratio, duo):
    scale = activity**ratio
    if duo:
        scale = scale / (share ** (1 - ratio) + 1e-4)
    scale = np.maximum(scale, 1e-4)
    # what is multiplied with is a float32
    return (scale / np.sqrt(scale.max() * scale.min())).astype(np.float32).astype(float)


def search(inputs, linears, bits):
    activity, share = np.abs(inputs).mean(axis=0), weight_share(linears)
    tried = []
    for duo in (False, True):
        for step in range(RATIOS):
            scale = make_scale(activity, share, step / RATIOS, duo)
            loss = sum(np.square(inputs @ (w - quantize(w * scale, bits)[1] / scale).T).sum() for w in linears)
            tried.append({"ratio": step / RATIOS, "duo": duo, "loss": loss})
    best = min(tried, key=lambda one: one["loss"])
    scale = make_scale(activity, share, best["ratio"], best["duo"])
    return {"bits": bits, "tried": tried, "best": best, "gain": best["loss"] / tried[0]["loss"], "scale": scale.tolist(),
            "codes": [quantize(w * scale, bits)[0].tolist() for w in linears]}


def main():
    random = np.random.Generator(np.random.PCG64(20260117))
    channel = np.exp(random.normal(0, 1.2, CHANNELS))  # a few channels carry most of the energy
    inputs = np.rint(random.normal(0, 1, (TOKENS, CHANNELS)) * channel * 64) / 64
    linears = [np.rint(random.normal(0, 0.05, (rows, CHANNELS)) * 1024) / 1024 for rows in ROWS]
    golden = {"group": GROUP, "inputs": inputs.tolist(), "linears": [w.tolist() for w in linears],
              "cases": [search(inputs, linears, bits) for bits in (3, 4)]}
    path = pathlib.Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(golden) + "\n")
    for case in golden["cases"]:
        print(f"{path.name}: {case['bits']} bits, best {case['best']}, {case['gain']:.3f} of the error without a scale")


if __name__ == "__main__":
    main()
