#!/usr/bin/env python3
"""Question: how many tokens a second does transformers evaluate, on an architecture's shapes, on this GPU?

    python3 kernels/lab/transformers_eval.py tests/bench/configs/granite-3-8b.json [--device cuda]

What docs/performance.md holds the eval against: the same shapes with random weights in bf16, attention by sdpa, no
cache; forward and the NLL of every next token, over windows of 2048 in batches of 1, 4 and 8. Needs torch and
transformers. Each batch size is warmed up with one batch; then --windows windows, rounded up to whole batches, are timed
together, the card waited for at the end alone.

measured (transformers 5.17.0, PyTorch 2.11, H100, granite-3-8b): 24,448, 25,478 and 25,512 tokens/s in batches of 1, 4
and 8; the bench's eval did 35,848 right before and 35,861 right after: 1.41 times as many.
"""
import argparse
import json
import math
import time

import torch
from packaging import version


def read_versions_leniently():
    """transformers takes a package without metadata to have version "N/A" and then fails on comparing it. Here it is of
    version 0: too old to be used."""
    strict = version.Version.__init__

    def lenient(self, text):
        try:
            strict(self, text)
        except (version.InvalidVersion, TypeError):
            strict(self, "0")

    version.Version.__init__ = lenient


def build_model(path, device):
    read_versions_leniently()
    from transformers import AutoConfig, AutoModelForCausalLM
    with open(path, encoding="utf-8") as file:
        config = AutoConfig.for_model(**json.load(file))
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    torch.set_default_dtype(torch.float32)
    assert model.dtype == torch.bfloat16 and model.config._attn_implementation == "sdpa"
    return model.eval()


def sum_of_nll(model, ids):
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="sum")


def wait(device):
    if device == "cuda":
        torch.cuda.synchronize()


def tokens_per_second(model, windows, batch, device):
    batches = windows.split(batch)
    sum_of_nll(model, batches[0])
    wait(device)
    began = time.perf_counter()
    nll = sum(sum_of_nll(model, ids) for ids in batches)
    wait(device)
    seconds = time.perf_counter() - began
    mean = nll.item() / (windows.shape[0] * (windows.shape[1] - 1))
    assert math.isfinite(mean)
    return windows.numel() / seconds, mean


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("config")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 8])
    arguments = parser.parse_args()
    torch.manual_seed(1)
    with torch.inference_mode():
        model = build_model(arguments.config, arguments.device)
        import transformers
        name = torch.cuda.get_device_name() if arguments.device == "cuda" else arguments.device
        parameters = sum(p.numel() for p in model.parameters())
        print(f"transformers {transformers.__version__}, torch {torch.__version__}, {name}, "
              f"{parameters / 1e9:.2f} G parameters, windows of {arguments.length}")
        for batch in arguments.batches:
            count = -(-arguments.windows // batch) * batch
            windows = torch.randint(model.config.vocab_size, (count, arguments.length), device=arguments.device)
            rate, mean = tokens_per_second(model, windows, batch, arguments.device)
            print(f"batches of {batch}: {rate:9.0f} tokens/s (mean NLL {mean:.3f}, {count} windows)", flush=True)


if __name__ == "__main__":
    main()
