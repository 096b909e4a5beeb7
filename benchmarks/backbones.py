"""Cells a second through frozen MiniLM, forward and backward: `load_backbone` against the plain loop, in one run, with memory.

    python benchmarks/backbones.py [all] [rounds]

The plain loop is transformers' own pass in float32 over all six layers with eager attention, every cell at n positions, the state at the last
one taken from all of them. All cells are full here, so that nothing is won by shorter ones. Each way takes its turn in every round, and its
best round counts; processor seconds stand beside, since other work on the machine lengthens them less.
"""
import os
import sys
import time

import torch
from measure import measured
from transformers import AutoModel

from scinterp.methods.backbones import load_backbone
from scinterp.text.encoders import bf16_is_fast, minilm_path

FASTER = 1.8  # all layers, bf16, last position only, at 64 and 256 positions
SIZES = [(64, 16), (64, 64), (256, 16)]
MORE = [(64, 32), (256, 32), (256, 64)]


def plain():
    "The plain loop"
    model = AutoModel.from_pretrained(minilm_path(), attn_implementation="eager", dtype=torch.float32).eval().requires_grad_(False)
    return lambda x, mask: model(inputs_embeds=x, attention_mask=mask).last_hidden_state[:, -1]


def ours(at=-1, **options):
    "A backbone, asked for one position or for all"
    backbone = load_backbone("minilm", device="cpu", **options)
    return lambda x, mask: backbone.read(x, mask, at=at) if at else backbone.read(x, mask)[:, -1]


def ways(everything):
    "Name and call of each way"
    made = {"plain loop: fp32, eager, all positions": plain(), "fp32, sdpa": ours(precision="fp32", attention="sdpa")}
    for name, options in {"": {}, ", left after layer 3": dict(layers=3)}.items():
        made[f"bf16, eager{name}"] = ours(precision="bf16", attention="eager", **options)
        if everything:
            made[f"bf16, eager, all positions{name}"] = ours(at=None, precision="bf16", attention="eager", **options)
            made[f"bf16, sdpa{name}"] = ours(precision="bf16", attention="sdpa", **options)
            made[f"fp32, eager{name}"] = ours(precision="fp32", attention="eager", **options)
    return made


def step(way, x, mask):
    "One pass, forward and backward"
    x.grad = None
    way(x, mask).square().sum().backward()
    return x.grad


def timed(call):
    "Seconds, and processor seconds"
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - cpu


def compare(made, n, batch, rounds):
    "Best seconds and processor seconds of each way, MB over the start, and the cosine of its gradient with the plain loop's"
    x = (torch.randn(batch, n, 384, generator=torch.Generator().manual_seed(0)) * .05).requires_grad_()
    mask = torch.ones(batch, n, dtype=torch.long)
    first = {name: measured(lambda way=way: step(way, x, mask)) for name, way in made.items()}
    times = {name: [] for name in made}
    for _ in range(rounds):
        for name, way in made.items():
            times[name].append(timed(lambda way=way: step(way, x, mask)))
    reference = first[next(iter(made))][0].flatten()
    return {name: (*map(min, zip(*times[name])), first[name][2], torch.cosine_similarity(first[name][0].flatten(), reference, dim=0).item()) for name in made}


if __name__ == "__main__":
    everything, rounds = "all" in sys.argv[1:], next((int(a) for a in sys.argv[1:] if a.isdigit()), 5)
    made, slow = ways(everything), []
    load = f", load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores" if hasattr(os, "getloadavg") else ""
    print(f"frozen MiniLM, forward and backward, {torch.get_num_threads()} threads, best of {rounds}{load}")
    print("| n | batch | way | cells/s | ratio | cells per processor second | ratio | MB over the start | cosine of the gradients |\n|---|---|---|---|---|---|---|---|---|")
    for n, batch in SIZES + (MORE if everything else []):
        rows = compare(made, n, batch, rounds)
        base = next(iter(rows.values()))
        for name, (wall, cpu, mb, cosine) in rows.items():
            print(f"| {n} | {batch} | {name} | {batch / wall:.0f} | {base[0] / wall:.2f} | {batch / cpu:.0f} | {base[1] / cpu:.2f} | {mb:.0f} | {cosine:.4f} |", flush=True)
        if base[1] / rows["bf16, eager"][1] < FASTER:
            slow.append((n, batch))
    if not bf16_is_fast("cpu"):
        print("this CPU does not compute in bfloat16: the default is float32")
    else:
        assert not slow, f"less than {FASTER} times as fast at {slow}"
