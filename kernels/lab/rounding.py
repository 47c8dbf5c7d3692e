#!/usr/bin/env python3
"""Question: does guided GPTQ gain from an H_w per Linear or per group of output channels (GuidedQuant, Kim et al. 2025),
or from feedback over rows as well as columns (YAQA, Tseng et al. 2025)?

    python3 kernels/lab/rounding.py MODEL CALIBRATION.txt TEXT.txt [--bits 3 4] [--only shared,two-a] [--refine shared]
                                    [--json OUT] [--device cuda]

MODEL is a folder. Groups of 64, integer zeros, 128 windows of 2048 tokens whose labels are drawn from the model; as
kernels/cpu/gptq.c does with a group-aware order and weighted ranges. Judged by KL on the windows of TEXT, in bf16, also
after two sweeps of kernels/cpu/descend.c, and for the settings after --refine after refine.py's two passes over scales.
Needs torch, transformers, safetensors and numpy.

  shared    one H_w = Σ ‖g‖²·xxᵀ for all Linears of an input (q, k, v; gate, up), as the daemon has it
  groups-J  one H_w for each J-th of a Linear's rows, by the norm of these rows' gradients; J = 1: one for each Linear
  two-…     two-sided: the least tr(H_O·E·H_I·Eᵀ), E = ŵ − w
            a: H_I as in shared, H_O = Σ ggᵀ      b1: H_I = Σ ‖g‖²·xxᵀ, H_O = Σ ‖x‖²·ggᵀ
            b2, b3: H_I = Σ gᵀH_O g·xxᵀ, H_O = Σ xᵀH_I x·ggᵀ with those of the one before
            @0.5: 0.5 of its mean is added to the diagonal of H_O; else 0.05, as for H_I
            -static: grids are fitted to the weights as they are, not to what corrections made of them
            descend: a column at a time, its rows in SUBSETS turns, each code to where the objective is least

Two-sided: with H = M·D·Mᵀ, M unit upper, on both sides, the objective is Σ D_O[n]·D_I[k]·R[n,k]² for R = M_OᵀEM_I, so
that E = V_OᵀRV_I for V = M⁻¹. What R[n,k] = ŵ[n,k] − target[n,k] rounds is w[n,k] + Σ_{j<k} C[n,j]·V_I[j,k] +
Σ_{m<n} R[m,k]·V_O[m,n], C = V_OᵀR: GPTQ over the columns, each of which is rounded by GPTQ over its rows.

measured (SmolLM2-135M, PyTorch 2.11, H100; KL on WikiText-2, groups of 64):

  3 bits             rounded  descended  refined | 4 bits             rounded  descended  refined
  shared             0.424    0.395      0.290   | shared             0.102    0.097
  groups-1           0.440    0.405              | two-a@0.5          0.087               0.0780
  groups-2, 4, 8     0.417    0.397              | two-a@1.5          0.088               0.0790
                     0.435    0.409
                     0.421    0.395
  two-a              0.364
  two-a@0.5          0.353               0.261   two-b1         0.370
  two-a@1.5          0.351               0.264   two-b2, @0.5   0.402, 0.385
  two-a-static@0.5   0.359               0.266   two-b3         0.407

So an H_w for each Linear or each group of its rows gains nothing over one for all that read an input, and feedback over
rows a tenth at the end. Its damping was not chosen by WikiText-2: on text that neither was calibrated on nor judged
elsewhere, 3 bits, 0.05, 0.2 and 0.5 give 0.279, 0.274 and 0.258 (shared 0.299). Descent of both sides, a quarter of a
column's rows at a time, diverges. A setting takes 11–14 s here, launch by launch; "shared" 3.
"""
import argparse
import json
import time
from functools import partial

import refine
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoTokenizer

KINDS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj",
         "mlp.down_proj")
SHARING = ({0, 1, 2}, {0, 1, 2}, {0, 1, 2}, {3}, {4, 5}, {4, 5}, {6})
SETTINGS = ("shared", "groups-1", "two-a", "groups-4", "two-b2", "two-a@0.5", "groups-8", "groups-2", "two-b1", "two-b3",
            "two-b2@0.5")
GROUP, SLICES, DAMP, SUBSETS = 64, 8, 0.05, 4


# --- Statistics ---

class Statistics:
    """Of one pass: h [blocks, SLICES or 1, K, K], outer [blocks, N, N], plain (H_O of a; of the first pass only)."""

    def __init__(self, linears, last):
        self.linears, self.last = linears, last
        self.h, self.outer, self.plain = [], [], []
        for kind in linears:
            (rows, cols), count = kind[0].weight.shape, len(kind)
            zeros = partial(torch.zeros, device=refine.DEVICE)
            self.h.append(zeros(count, 1 if last else SLICES, cols, cols))
            self.outer.append(zeros(count, rows, rows))
            self.plain.append(None if last else zeros(count, rows, rows))

    def add(self, kind, block, x, g):
        x, g = x.reshape(-1, x.shape[-1]).float(), g.reshape(-1, g.shape[-1]).float()
        if self.last:
            inner, outer = self.last[0][kind][block], self.last[1][kind][block]
            weights, of_outer = ((g @ outer) * g).sum(-1)[None], ((x @ inner) * x).sum(-1)
        else:
            weights, of_outer = g.view(len(g), SLICES, -1).square().sum(-1).t(), x.square().sum(-1)
            self.plain[kind][block].addmm_(g.t(), g)
        for h, weight in zip(self.h[kind][block], weights):
            h.addmm_((x * weight[:, None]).t(), x)
        self.outer[kind][block].addmm_((g * of_outer[:, None]).t(), g)

    def hook(self, kind, block, module, inputs, output):
        x = inputs[0].detach()
        output.register_hook(lambda g: self.add(kind, block, x, g))


def of_unit_mean(h):
    return h / h.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]


def gather(model, linears, text, labels, last=None, batch=4):
    """`labels` are drawn in the first pass and filled in."""
    s = Statistics(linears, last)
    hooks = [linear.register_forward_hook(partial(s.hook, k, b)) for k, kind in enumerate(linears)
             for b, linear in enumerate(kind)]
    hooks.append(model.get_input_embeddings().register_forward_hook(lambda m, i, o: o.requires_grad_()))
    random = torch.Generator(refine.DEVICE).manual_seed(0)
    for n, chosen in enumerate(text.split(batch)):
        logits = model(chosen).logits.flatten(0, 1).float()
        if n == len(labels):
            with torch.no_grad():
                labels.append(torch.multinomial(logits.softmax(-1), 1, generator=random)[:, 0])
        F.cross_entropy(logits, labels[n], reduction="sum").backward()
    for hook in hooks:
        hook.remove()
    return s


class Factors:
    """H_I [blocks, slices, K, K] and H_O [blocks, N, N] or None of each kind for a setting; passes as they are needed."""

    def __init__(self, model, linears, text):
        self.run, self.passes, self.labels = partial(gather, model, linears, text), [], []

    def at(self, n):
        while len(self.passes) <= n:
            last, began = None, time.perf_counter()
            if self.passes:
                p = self.passes[-1]
                last = [of_unit_mean(h.sum(1)) for h in p.h], [of_unit_mean(h) for h in p.outer]
            self.passes.append(self.run(self.labels, last))
            synchronize()
            print(f"pass {len(self.passes)} over the calibration: {time.perf_counter() - began:.1f} s", flush=True)
        return self.passes[n]

    def of(self, setting, kind):
        first = self.at(0)
        if setting.startswith("groups-"):
            h, count = first.h[kind], int(setting[7:])
            return h.unflatten(1, (count, SLICES // count)).sum(2), None
        if setting.startswith("two-b"):
            p = self.at(int(setting[5]) - 1)
            return p.h[kind].sum(1, keepdim=True), p.outer[kind]
        h = sum(first.h[k].sum(1, keepdim=True) for k in SHARING[kind])
        return h, first.plain[kind] if setting.startswith("two-a") else None


# --- Rounding; b matrices at a time ---

def permuted(x, order, dim):
    """x[b, …] with its dimension `dim` in the order [b, n]."""
    index = order.view(order.shape[0], *(order.shape[1] if d == dim else 1 for d in range(1, x.dim())))
    return x.gather(dim, index.expand(*(-1 if d in (0, dim) else x.shape[d] for d in range(x.dim()))))


def damped(h, damp):
    """Of a mean of 1, in fp64."""
    return of_unit_mean(h.double()) + damp * torch.eye(h.shape[-1], device=h.device)


def group_aware(h):
    """Groups by their largest diagonal, in them columns by theirs, each from large to small."""
    diagonal = h.diagonal(dim1=1, dim2=2).unflatten(1, (-1, GROUP))
    inside = diagonal.argsort(dim=2, descending=True, stable=True)
    groups = diagonal.amax(2).argsort(dim=1, descending=True, stable=True)
    return permuted(inside + GROUP * torch.arange(diagonal.shape[1], device=h.device)[:, None], groups, 1).flatten(1)


def factor(h):
    """H⁻¹ = UᵀU, U = diag(d)·V: V [b, K, K], unit upper, in fp32, and d [b, K]."""
    v, d = [], []
    for one in h:  # one at a time: batches of large ones are slow, and fp64 is large
        lower = torch.linalg.cholesky(one.flip(0, 1))
        eye = torch.eye(len(one), device=one.device, dtype=one.dtype)
        upper = torch.linalg.solve_triangular(lower, eye, upper=False).flip(0, 1)
        d.append(upper.diagonal())
        v.append((upper / d[-1][:, None]).float())
    return torch.stack(v), torch.stack(d)


def stored(scale):
    return scale.clamp(2.0**-14, 65504).half().float()


def fit(w, weight, top):
    """RANGE_WEIGHTED (kernels/cpu/range.c): scale and zero [b, N] for w [b, N, GROUP] and weight [b, GROUP]."""
    low, high = w.amin(2).clamp(max=0), w.amax(2).clamp(min=0)
    best = None
    for percent in (100, *range(110, 30, -1)):
        scale = stored((high - low) * (percent / 100 / top))
        zero = (-low * (percent / 100) / scale).round().clamp(0, top)
        at = w / scale[..., None] + zero[..., None]
        error = ((at - at.round().clamp(0, top)).square() @ weight[:, :, None])[..., 0] * scale.square()
        if best is None:
            best = [error, scale, zero]
            continue
        better = error < best[0]
        best = [torch.where(better, new, old) for new, old in zip((error, scale, zero), best)]
    return best[1:]


def round_columns(t, scale, zero, v, top):
    """Codes and C = ŵ − t for t [b, N, GROUP], whose later columns take what earlier ones did."""
    codes, c = torch.empty_like(t), torch.empty_like(t)
    for k in range(GROUP):
        codes[:, :, k] = (t[:, :, k] / scale + zero).round().clamp(0, top)
        c[:, :, k] = (codes[:, :, k] - zero) * scale - t[:, :, k]
        t[:, :, k + 1:] += c[:, :, k, None] * v[:, None, k, k + 1:]
    return codes, c


def padded(x, value=0.0):
    return F.pad(x, (0, 0, GROUP - 1, GROUP - 1), value=value)


def round_both(outer, t, scale, zero, v, top):
    """The same with feedback over rows. [n, k] waits for what is above it and to its left, so all of n + k = d go at
    once: with columns reversed they are the diagonal of GROUP rows from d on. `outer` is V_O, strictly upper, with
    GROUP − 1 zeros around, and so are the rows of all else."""
    b, rows, wide = t.shape[0], t.shape[1], outer.shape[1]
    t, v = padded(t.flip(2)), v.triu(1).flip(1, 2)
    scale, zero = padded(scale[..., None], 1.0)[..., 0], padded(zero[..., None])[..., 0]
    codes, c, above = torch.zeros_like(t), torch.zeros_like(t), t.new_zeros(b, GROUP, wide)
    for d in range(rows + GROUP - 1):
        here = slice(d, d + GROUP)
        at, s, z = t[:, here].diagonal(dim1=1, dim2=2), scale[:, here], zero[:, here]
        target = at + above.as_strided((b, GROUP), (GROUP * wide, wide + 1), d)
        code = (target / s + z).round_().clamp_(0, top)
        w = (code - z) * s
        moved = w - at
        codes[:, here].diagonal(dim1=1, dim2=2).copy_(code)
        c[:, here].diagonal(dim1=1, dim2=2).copy_(moved)
        t[:, here].addcmul_(moved[..., None], v)
        above[:, :, d:].addcmul_((w - target)[..., None], outer[:, here, d:])
    inside = slice(GROUP - 1, GROUP - 1 + rows)
    return codes[:, inside].flip(2), c[:, inside].flip(2)


class Rounding:
    """Of w [b, N, K] by h [b, K, K], and by outer [b, N, N] where there is one."""

    def __init__(self, w, h, outer, bits, damp_outer=DAMP, static=False):
        self.top, self.order, self.rows, self.outer = 2**bits - 1, group_aware(h), None, None
        self.static = static
        if outer is not None:
            self.rows = outer.diagonal(dim1=1, dim2=2).argsort(dim=1, descending=True, stable=True)
            w = permuted(w, self.rows, 1)
        self.w = permuted(w.float(), self.order, 2)
        h = permuted(permuted(damped(h, DAMP), self.order, 1), self.order, 2)
        self.h = h.float()
        self.run(*factor(h), self.inner(outer, damp_outer))

    def inner(self, outer, damp):
        if outer is None: return round_columns
        outer = permuted(permuted(damped(outer, damp), self.rows, 1), self.rows, 2)
        self.outer = outer.float()
        v, _ = factor(outer)
        return partial(round_both, F.pad(v.triu(1), (GROUP - 1,) * 4))

    def run(self, v, diagonal, inner):
        weight = (diagonal.amin(1, keepdim=True) / diagonal).square().float()
        w, codes, scales, zeros = self.w.clone(), [], [], []
        for at in range(0, w.shape[2], GROUP):
            here, behind = slice(at, at + GROUP), slice(at + GROUP, None)
            scale, zero = fit((self.w if self.static else w)[:, :, here], weight[:, here], self.top)
            code, c = inner(w[:, :, here].clone(), scale, zero, v[:, here, here], self.top)
            w[:, :, behind] += c @ v[:, here, behind]
            codes.append(code), scales.append(scale), zeros.append(zero)
        self.codes, self.scale, self.zero = torch.cat(codes, 2), torch.stack(scales, 2), torch.stack(zeros, 2)

    def values(self):
        return (self.codes - self.zero.repeat_interleave(GROUP, 2)) * self.scale.repeat_interleave(GROUP, 2)

    def descend(self, sweeps):
        """kernels/cpu/descend.c"""
        if self.outer is not None: return self.descend_both(sweeps)
        error = self.values() - self.w
        for k in list(range(self.w.shape[2])) * sweeps:
            slope, scale, code = (error @ self.h[:, :, k, None])[..., 0], self.scale[:, :, k // GROUP], self.codes[:, :, k]
            moved = (code - slope / (self.h[:, k, k, None] * scale)).clamp(-1, self.top + 1)
            moved = (code + (moved - code).round()).clamp(0, self.top)
            error[:, :, k] += (moved - code) * scale
            code.copy_(moved)

    def descend_both(self, sweeps):
        error = self.values() - self.w
        for k in list(range(self.w.shape[2])) * sweeps:
            for subset in range(SUBSETS):
                rows = slice(subset, None, SUBSETS)
                slope = (self.outer[:, rows] @ (error @ self.h[:, :, k, None]))[..., 0]
                curvature = self.outer.diagonal(dim1=1, dim2=2)[:, rows] * self.h[:, k, k, None]
                scale, code = self.scale[:, rows, k // GROUP], self.codes[:, rows, k]
                moved = (code - slope / (curvature * scale)).clamp(-1, self.top + 1)
                moved = (code + (moved - code).round()).clamp(0, self.top)
                error[:, rows, k] += (moved - code) * scale
                code.copy_(moved)

    def result(self):
        """Codes, scales and zeros as the columns and rows lie in the model."""
        groups = (self.order[:, ::GROUP] // GROUP).argsort(dim=1)
        out = [permuted(self.codes, self.order.argsort(dim=1), 2), permuted(self.scale, groups, 2),
               permuted(self.zero, groups, 2)]
        return out if self.rows is None else [permuted(x, self.rows.argsort(dim=1), 1) for x in out]


# --- Settings ---

class Rounded(refine.Quantized):
    def __init__(self, codes, scale, zero, bits):
        nn.Module.__init__(self)
        self.top, self.group_of = 2**bits - 1, torch.arange(codes.shape[1], device=codes.device) // GROUP
        self.codes, self.scale, self.zero = codes, scale, zero[:, self.group_of]
        self.theta, self.at = nn.Parameter(torch.zeros_like(scale)), None


def synchronize():
    if refine.DEVICE == "cuda": torch.cuda.synchronize()


def find_linears(model, blocks):
    return [[layer.get_submodule(kind) for layer in model.model.layers[:blocks]] for kind in KINDS]


def rounding_of(linears, setting, kind, bits, factors):
    h, outer = factors.of(setting, kind)
    w = torch.stack([linear.weight for linear in linears[kind]]).unflatten(1, (h.shape[1], -1)).flatten(0, 1)
    damp = float(setting.partition("@")[2] or DAMP)
    return Rounding(w, h.flatten(0, 1), outer, bits, damp, "-static" in setting)


class Trial:
    """Copies of a model that a setting is put into, and the judge."""

    def __init__(self, options, text, calibration, reference):
        self.options, self.calibration, self.text, self.reference = options, calibration, text, reference
        self.head, self.wanted = reference.lm_head.weight, refine.finals(reference, text)
        self.file = open(options.json, "a", encoding="utf-8") if options.json else None

    def report(self, bits, setting, step, kl, seconds):
        print(f"{bits} bits  {setting:<12}{step:<18}KL {kl:.5f}  {seconds:7.1f} s", flush=True)
        if self.file:
            row = {"bits": bits, "setting": setting, "step": step, "kl": kl, "seconds": round(seconds, 2)}
            self.file.write(json.dumps(row) + "\n")
            self.file.flush()

    def model(self, results, bits):
        model = refine.load(self.options.model)
        for kind, (codes, scale, zero) in zip(KINDS, results):
            parent, _, last = kind.partition(".")
            for layer, *parts in zip(model.model.layers, codes, scale, zero):
                setattr(layer.get_submodule(parent), last, Rounded(*parts, bits))
        return model

    def judge(self, bits, setting, step, roundings, seconds):
        results = [[x.unflatten(0, (self.options.blocks, -1)).flatten(1, 2) for x in r.result()] for r in roundings]
        model = self.model(results, bits)
        self.report(bits, setting, step, refine.judge(model, self.wanted, self.text, self.head), seconds)
        if setting not in self.options.refine: return
        began = time.perf_counter()
        tuning = argparse.Namespace(scales=3e-3, rounding=0, epochs=2, batch=4)
        refine.tune(model, self.finals, self.calibration, self.head, tuning)
        synchronize()
        kl, took = refine.judge(model, self.wanted, self.text, self.head), time.perf_counter() - began
        self.report(bits, setting, step + " + refine", kl, took)

    @property
    def finals(self):
        return refine.finals(self.reference, self.calibration)

    def run(self, linears, setting, bits, factors):
        factors.of(setting, 0)
        began, roundings = time.perf_counter(), []
        for kind in range(len(KINDS)):
            roundings.append(rounding_of(linears, setting, kind, bits, factors))
        synchronize()
        self.judge(bits, setting, "round", roundings, time.perf_counter() - began)
        began = time.perf_counter()
        for r in roundings:
            r.descend(2)
        synchronize()
        self.judge(bits, setting, "descend", roundings, time.perf_counter() - began)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("model", "calibration", "text"):
        parser.add_argument(name)
    names = partial(str.split, sep=",")
    parser.add_argument("--only", type=names, default=SETTINGS)
    parser.add_argument("--refine", type=names, default=())
    parser.add_argument("--bits", type=int, nargs="+", default=[3, 4])
    parser.add_argument("--json")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--windows", type=int, default=128)
    parser.add_argument("--eval-windows", type=int, default=148)
    parser.add_argument("--blocks", type=int, default=1000)
    return parser.parse_args()


def main():
    options = arguments()
    refine.DEVICE = options.device
    tokenizer, reference = AutoTokenizer.from_pretrained(options.model), refine.load(options.model)
    options.blocks = min(options.blocks, len(reference.model.layers))
    calibration = refine.windows(tokenizer, options.calibration, options.windows)
    text = refine.windows(tokenizer, options.text, options.eval_windows)
    linears = find_linears(reference, options.blocks)
    trial, factors = Trial(options, text, calibration, reference), Factors(reference, linears, calibration)
    for bits in options.bits:
        for setting in options.only:
            trial.run(linears, setting, bits, factors)


if __name__ == "__main__":
    main()
