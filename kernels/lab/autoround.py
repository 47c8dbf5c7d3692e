#!/usr/bin/env python3
"""Question: what does AutoRound make of a model at uniform bits, on the same calibration text and judged by the same
measure, and how long does it take?

    python3 kernels/lab/autoround.py MODEL CALIBRATION.txt TEXT.txt [--bits 3] [--iters 200] [--device cuda]

MODEL is a folder. Needs torch, transformers and auto-round. Groups of 64 and integer zeros, 128 windows of 2048 tokens
to calibrate on, its own settings otherwise (200 iterations a block). Judged by perplexity, KL to the reference and
top-1 agreement over the windows of 2048 tokens of TEXT, in the model's own type.
"""
import argparse
import math
import time

import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

LENGTH = 2048


def windows(tokenizer, path, length, most):
    with open(path, encoding="utf-8") as text:
        ids = tokenizer(text.read(), add_special_tokens=False)["input_ids"]
    count = min(len(ids) // length, most)
    return torch.tensor(ids[: count * length]).view(count, length)


def load(folder, device):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).to(device).eval()


@torch.no_grad()
def compare(reference, model, text, device):
    nll = kl = same = positions = 0
    for window in text.to(device):
        a = F.log_softmax(reference(window[None]).logits[0, :-1].float(), -1)
        b = F.log_softmax(model(window[None]).logits[0, :-1].float(), -1)
        nll += F.nll_loss(b, window[1:], reduction="sum").item()
        kl += (a.exp() * (a - b)).sum().item()
        same += (a.argmax(-1) == b.argmax(-1)).sum().item()
        positions += len(window) - 1
    return math.exp(nll / positions), kl / positions, same / positions


def quantize(arguments, tokenizer, calibration):
    from auto_round import AutoRound

    model = load(arguments.model, arguments.device)
    batches = [{"input_ids": window[None], "attention_mask": torch.ones_like(window[None])} for window in calibration]
    rounder = AutoRound(model, tokenizer, bits=arguments.bits, group_size=64, sym=False, iters=arguments.iters,
                        nsamples=len(calibration), seqlen=arguments.length, dataset=batches,
                        device_map=arguments.device)
    began = time.perf_counter()
    model, _ = rounder.quantize()
    return model.to(arguments.device).eval(), time.perf_counter() - began


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("calibration")
    parser.add_argument("text")
    parser.add_argument("--bits", type=int, default=3)
    parser.add_argument("--iters", type=int, default=200)
    parser.add_argument("--length", type=int, default=LENGTH)
    parser.add_argument("--windows", type=int, default=148)
    parser.add_argument("--device", default="cuda")
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    calibration = windows(tokenizer, arguments.calibration, arguments.length, 128)
    model, seconds = quantize(arguments, tokenizer, calibration)
    text = windows(tokenizer, arguments.text, arguments.length, arguments.windows)
    perplexity, kl, same = compare(load(arguments.model, arguments.device), model, text, arguments.device)
    print(f"auto-round, {arguments.bits} bits: perplexity {perplexity:.2f}, KL {kl:.4f}, top-1 {same:.1%}, "
          f"{seconds:.1f} s", flush=True)


if __name__ == "__main__":
    main()
