#!/usr/bin/env python3
"""Question: what is there to gain after GPTQ, by tuning scales, rounding offsets, or both, against the model's output?

    python3 kernels/lab/refine.py MODEL ARTIFACT CALIBRATION.txt TEXT.txt [--scales 3e-3] [--rounding 1e-3] [--epochs 2]

MODEL is a folder, ARTIFACT what a quantize job made of it with integer zeros and "refine": false. Scales are multiplied
by e^θ, and with --rounding every code may move too (straight through, from where the weight lies between codes); Adam on
the mean KL to the reference over the calibration's windows of 2048 tokens. Judged on the windows of TEXT, in bf16.
Needs torch, transformers, safetensors and numpy.

measured (SmolLM2-135M, guided GPTQ at 3 bits in groups of 64, PyTorch 2.11, H100; KL on WikiText-2, 0.4196 before):
scales 1e-3, 3e-3, 1e-2, one pass: 0.3353, 0.3147, 0.3223; 3e-3 for 2 and 4 passes: 0.3015, 0.2902; 4 passes over half of
the windows: 0.3093; batches of 2, 8 windows: 0.3076, 0.3073. Rounding offsets too, at 1e-3, 3e-4, 2 passes: 0.2935,
0.3014; at 1e-2: 0.69 after one pass, 0.47 after four. worker/pipeline/refine.c does the scales, two passes.
"""
import argparse
import glob
import math
import time

import numpy
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, AutoTokenizer

LENGTH, WARM_UP = 2048, 4
DEVICE = "cuda"


def unpack(packed, rows, cols, bits):
    """A bitstream a row, lowest bit first (docs/formats.md)."""
    stream = numpy.unpackbits(packed.numpy().view(numpy.uint8).reshape(rows, -1), axis=1, bitorder="little")
    values = (stream[:, : cols * bits].reshape(rows, cols, bits) * (1 << numpy.arange(bits))).sum(2)
    return torch.tensor(values, device=DEVICE, dtype=torch.float32)


class Quantized(nn.Module):
    def __init__(self, tensors, name, weight, rounding):
        super().__init__()
        rows, cols = tensors[name + ".weight_shape"].tolist()
        packed, scale = tensors[name + ".weight_packed"], tensors[name + ".weight_scale"].to(DEVICE).float()
        bits, groups = round(packed.shape[1] * 32 / cols), scale.shape[1]
        zero = unpack(tensors[name + ".weight_zero_point"].t().contiguous(), groups, rows, bits).t()
        self.top, self.group_of = 2**bits - 1, torch.arange(cols, device=DEVICE) // -(-cols // groups)
        self.scale, self.zero, self.codes = scale, zero[:, self.group_of], unpack(packed, rows, cols, bits)
        self.theta, self.at = nn.Parameter(torch.zeros_like(scale)), None
        if rounding:
            between = weight.float() / scale[:, self.group_of] + self.zero - self.codes
            self.at = nn.Parameter(self.codes + between.clamp(-0.49, 0.49))

    def weight(self):
        codes = self.codes
        if self.at is not None:
            inside = self.at.clamp(0, self.top)
            codes = inside + (inside.round() - inside).detach()
        return (codes - self.zero) * (self.scale * self.theta.exp())[:, self.group_of]

    def forward(self, x):
        return F.linear(x, self.weight().to(x.dtype))


def load(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).to(DEVICE)
    model.config.use_cache = False
    return model.requires_grad_(False)


def load_quantized(folder, artifact, rounding):
    tensors, model = {}, load(folder)
    for shard in sorted(glob.glob(artifact + "/*.safetensors")):
        tensors.update(load_file(shard))
    for name, linear in list(model.named_modules()):
        if name + ".weight_packed" in tensors:
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, Quantized(tensors, name, linear.weight, rounding))
    return model


def windows(tokenizer, path, most):
    with open(path, encoding="utf-8") as text:
        ids = tokenizer(text.read(), add_special_tokens=False)["input_ids"]
    count = min(len(ids) // LENGTH, most)
    return torch.tensor(ids[: count * LENGTH], device=DEVICE).view(count, LENGTH)


def kl(x, reference, head):
    a, b = F.log_softmax((reference @ head.t()).float(), -1), F.log_softmax((x @ head.t()).float(), -1)
    return (a.exp() * (a - b)).sum(-1)


@torch.no_grad()
def finals(model, text):
    return torch.cat([model.model(window[None]).last_hidden_state for window in text])


def judge(model, reference, text, head):
    with torch.no_grad():
        sums = [kl(x[:-1], r[:-1], head).sum().item() for x, r in zip(finals(model, text), reference)]
    return sum(sums) / (len(text) * (LENGTH - 1))


def share_of_rate(step, steps):
    return min(1, (step + 1) / WARM_UP) * (1 + math.cos(math.pi * step / steps)) / 2


def tune(model, reference, text, head, options):
    linears = [m for m in model.modules() if isinstance(m, Quantized)]
    groups = [{"params": [q.theta for q in linears], "lr": options.scales, "full": options.scales}]
    if options.rounding:
        groups.append({"params": [q.at for q in linears], "lr": options.rounding, "full": options.rounding})
    adam = torch.optim.Adam(groups, betas=(0.9, 0.99))
    steps, step = options.epochs * (len(text) // options.batch), 0
    random = torch.Generator().manual_seed(0)
    for _ in range(options.epochs):
        for chosen in torch.randperm(len(text), generator=random).to(DEVICE).split(options.batch):
            for group in adam.param_groups:
                group["lr"] = group["full"] * share_of_rate(step, steps)
            x = model.model(text[chosen]).last_hidden_state
            losses = [checkpoint(kl, x[i], reference[n], head, use_reentrant=False).mean() for i, n in enumerate(chosen)]
            (sum(losses) / len(losses)).backward()
            adam.step()
            adam.zero_grad()
            step += 1


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("model", "artifact", "calibration", "text"):
        parser.add_argument(name)
    parser.add_argument("--scales", type=float, default=3e-3)
    parser.add_argument("--rounding", type=float, default=0)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch", type=int, default=4)
    options = parser.parse_args()
    tokenizer, reference = AutoTokenizer.from_pretrained(options.model), load(options.model)
    calibration, text = windows(tokenizer, options.calibration, 128), windows(tokenizer, options.text, 148)
    head, wanted = reference.lm_head.weight, finals(reference, text)
    model = load_quantized(options.model, options.artifact, options.rounding > 0)
    before, began = judge(model, wanted, text, head), time.perf_counter()
    tune(model, finals(reference, calibration), calibration, head, options)
    torch.cuda.synchronize()
    print(f"KL {before:.4f} before, {judge(model, wanted, text, head):.4f} after {time.perf_counter() - began:.1f} s")


if __name__ == "__main__":
    main()
