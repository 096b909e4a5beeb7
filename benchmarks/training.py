"""Training cells a second of `ScInterpreter` with MiniLM against the plain loop, at equal accuracy, in one run, with memory.

    python benchmarks/training.py [cells] [epochs]

The plain loop is what one writes first: transformers' MiniLM in float32 with eager attention, every cell padded to n positions, every gene of
every cell projected, all states of all layers computed, batches in random order. Network, weights at the start, optimiser, learning rate and
number of steps are the same. Cells: `human_pbmc_kang_8donors_1287genes` with its donors held out where $SCINTERP_DATA has it, else the demo.
Each runs in a process of its own, so that its memory is its own; accuracy is on the test cells, at the last epoch.
"""
import json
import os
import subprocess
import sys
import time

import numpy as np
import torch
from measure import measured

from scinterp.cells import datasets
from scinterp.methods.scinterpreter import ScInterpreter
from scinterp.text.encoders import bf16_is_fast
from scinterp.text.gene_tables import GeneTable

FASTER, ALIKE = 1.8, .005
SIZES = {64: 51, 256: 243}  # positions: genes beside 12 tokens of instruction and the class token


def material(cells):
    "Training and test cells, and a table"
    name = "human_pbmc_kang_8donors_1287genes" if os.environ.get("SCINTERP_DATA") else "demo"
    adata = datasets.load(name)
    parts = datasets.split(adata, "donor" if name != "demo" else "random", 0)
    rng = np.random.default_rng(0)
    train, test = (np.sort(rng.permutation(p)[:n]) for p, n in ((parts.train, cells), (parts.test, 1000)))
    return name, adata[train].copy(), adata[test].copy(), GeneTable.build(adata)


def plain(method, train, test):
    "The plain loop on a method's own network and numbers; cells a second and accuracy"
    from sklearn.base import clone

    start = clone(method).set_params(backbone_precision="fp32", epochs=1)
    start.set_params(learning_rate=1e-30)  # builds the network and leaves it as it starts
    start.fit(train)
    reader, backbone = start.reader_, start.reader_.backbone[0]
    backbone.attend_by("eager")
    model, n = backbone.model, method.n_genes
    y = torch.from_numpy(np.searchsorted(start.classes_, train.obs["cell_type"].astype(str)))
    sequences = start._sequences(start._expression(train))

    def scores(ids, values):
        mask = ids >= 0
        genes = reader.projector(reader.E[ids.clamp(min=0)])
        embeds, mask = reader.sequence(genes, mask)
        states = model(inputs_embeds=embeds, attention_mask=mask.long()).last_hidden_state
        return reader.heads[0](states[:, -1])

    torch.manual_seed(0)
    parameters = [p for p in reader.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=method.learning_rate, weight_decay=method.weight_decay)
    steps, step, plan, began = method.epochs * -(-len(y) // method.batch_size), 0, method._plan(), time.perf_counter()
    for _ in range(method.epochs):
        for rows in torch.randperm(len(y)).split(method.batch_size):
            loss = torch.nn.functional.cross_entropy(scores(sequences.ids[rows, :n], sequences.values[rows, :n]), y[rows])
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, method.clip)
            for group in optimiser.param_groups:
                group["lr"] = method.learning_rate * plan.rate(step, steps)
            optimiser.step()
            step += 1
    speed = len(y) * method.epochs / (time.perf_counter() - began)
    asked = start._sequences(start._expression(test))
    with torch.no_grad():
        said = torch.cat([scores(i, v).argmax(1) for i, v in zip(asked.ids.split(64), asked.values.split(64))]).numpy()
    return speed, float((start.classes_[said] == test.obs["cell_type"].astype(str)).mean())


def ours(method, train, test):
    "The same with `fit`"
    method.fit(train)
    return method.training_["cells_per_second"], float((method.predict(test) == test.obs["cell_type"].astype(str)).mean())


WAYS = {"plain loop": (plain, {}), "fit": (ours, {}), "fit, left after layer 3": (ours, dict(backbone_layers=3)), "fit, fp32": (ours, dict(backbone_precision="fp32"))}


def one(name, n, cells, epochs):
    "One way in this process"
    data, train, test, table = material(cells)
    call, settings = WAYS[name]
    method = ScInterpreter(table, n_genes=n, epochs=epochs, attention="eager", device="cpu", **settings)
    (speed, accuracy), _, peak = measured(lambda: call(method, train, test))
    print(json.dumps(dict(data=data, cells=train.n_obs, test=test.n_obs, speed=speed, accuracy=accuracy, peak=peak)))


if __name__ == "__main__":
    if sys.argv[1:2] == ["one"]:
        one(sys.argv[2], *map(int, sys.argv[3:]))
        sys.exit()
    cells, epochs = (int(a) for a in (*sys.argv[1:], *("600", "3")[len(sys.argv) - 1:]))
    load = f", load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores" if hasattr(os, "getloadavg") else ""
    print(f"{epochs} epochs of {cells} training cells, frozen MiniLM, batches of 16, {torch.get_num_threads()} threads{load}")
    print("| positions | way | data | cells/s | ratio | accuracy | MB over the start |\n|---|---|---|---|---|---|---|")
    slow = []
    for positions, n in SIZES.items():
        base = None
        for name in WAYS:
            done = subprocess.run([sys.executable, __file__, "one", name, str(n), str(cells), str(epochs)], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr[-2000:]
            told = json.loads(done.stdout.splitlines()[-1])
            base = base or told
            ratio = told["speed"] / base["speed"]
            print(f"| {positions} | {name} | {told['data']} | {told['speed']:.0f} | {ratio:.2f} | {told['accuracy']:.3f} | {told['peak']:.0f} |", flush=True)
            if name == "fit" and (ratio < FASTER or abs(told["accuracy"] - base["accuracy"]) > ALIKE):
                slow.append((positions, round(ratio, 2), told["accuracy"], base["accuracy"]))
    if not bf16_is_fast("cpu"):
        print("this CPU does not compute in bfloat16: the default is float32")
    elif slow:
        sys.exit(f"not {FASTER} times as fast at an accuracy within {ALIKE}: {slow}")
