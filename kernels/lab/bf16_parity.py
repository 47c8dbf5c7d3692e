#!/usr/bin/env python3
"""Question: which of a bf16 forward pass's roundings moves the drift of an o_proj?

    python3 kernels/lab/bf16_parity.py MODEL CALIBRATION.txt [--windows 4] [--blocks 10,20,22,28]

An fp32 forward pass on the CPU in which one kind of value at a time is rounded to bf16, and then all that the bf16
backend rounds; printed is the relative change of RTN's drift at 4 bits in groups of 64 of the o_proj in each block.
Needs torch and transformers.

measured (SmolLM2-135M, 4 windows of 2048 tokens):

                         10         20         22         28
  all              -1.1e-05   -1.5e-05   -1.2e-03   -2.5e-03
  inputs           +1.5e-05   +1.1e-04   -8.0e-04   -2.1e-03
  outputs          +9.9e-05   -1.4e-05   +6.7e-04   -3.6e-04
  q and k          +5.3e-05   -1.0e-04   +5.7e-04   +1.0e-04
  probabilities    +7.1e-06   +1.4e-05   +1.7e-05   +2.8e-05
  v                +3.3e-05   +5.3e-06   +1.8e-05   +9.9e-05
  mixed            +1.7e-05   +2.7e-05   +1.0e-05   -5.6e-07

So it is the inputs of the products upstream, which a bf16 product cannot do without; what attention rounds matters less.
"""
import argparse
from functools import partial

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

LENGTH, BITS, GROUP = 2048, 4, 64
ROUNDED = {"all": {"inputs", "outputs", "q and k", "v", "probabilities", "mixed"}}
ROUNDED |= {kind: {kind} for kind in ("inputs", "outputs", "q and k", "probabilities", "v", "mixed")}
now = set()


def rounded(x, kind):
    return x.bfloat16().float() if kind in now else x


def attention(_module, q, k, v, _mask, scaling=None, **_):
    q, k, v = rounded(q, "q and k"), rounded(k, "q and k"), rounded(v, "v")
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = q @ k.transpose(2, 3) * scaling
    scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), -torch.inf)
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    mixed = rounded(weights, "probabilities") / weights.sum(-1, keepdim=True) @ v
    return rounded(mixed, "mixed").transpose(1, 2).contiguous(), None


def load(path):
    ALL_ATTENTION_FUNCTIONS.register("rounding", attention)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    for config in (model.config, *(layer.self_attn.config for layer in model.model.layers)):
        config._attn_implementation = "rounding"
    return model


def watch(model, names, grams):
    def before(name, _module, inputs):
        x = inputs[0] if name.endswith("o_proj") else rounded(inputs[0], "inputs")
        if name in names:
            rows = x.flatten(0, -2).double()
            grams[name] = grams.get(name, 0) + rows.T @ rows
        return (x, *inputs[1:])

    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.Linear) or name == "lm_head": continue
        module.register_forward_pre_hook(partial(before, name))
        if not name.endswith(("o_proj", "down_proj")):
            module.register_forward_hook(lambda _module, _inputs, out: rounded(out, "outputs"))


def drift(weight, h):
    groups = weight.unflatten(1, (-1, GROUP))
    low, high = groups.amin(2, keepdim=True), groups.amax(2, keepdim=True)
    step = (high - low) / (2**BITS - 1)
    error = (groups - (((groups - low) / step).round() * step + low)).flatten(1).double()
    return (((error @ h) * error).sum() / ((weight.double() @ h) * weight).sum()).item()


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("calibration")
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--blocks", default="10,20,22,28")
    options = parser.parse_args()
    text = open(options.calibration, encoding="utf-8").read()
    ids = AutoTokenizer.from_pretrained(options.model)(text, add_special_tokens=False).input_ids
    names = [f"model.layers.{block}.self_attn.o_proj" for block in options.blocks.split(",")]
    model, grams, exact = load(options.model), {}, None
    watch(model, names, grams)
    for kind, kinds in ({"none": set()} | ROUNDED).items():
        now.clear(), now.update(kinds), grams.clear()
        for window in range(options.windows):
            model.model(torch.tensor([ids[window * LENGTH:(window + 1) * LENGTH]]))
        drifts = [drift(model.get_submodule(name).weight, grams[name]) for name in names]
        exact = exact or drifts
        print(f"  {kind:<16}" + "".join(f"{d / e - 1:+11.1e}" for d, e in zip(drifts, exact)), flush=True)


if __name__ == "__main__":
    main()
