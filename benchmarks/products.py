"""Cells times gene vectors: `gene_sums` against scipy's `X @ E`, in one run, with memory.

    python benchmarks/products.py [cells] [genes] [non-zeros a cell] [width]
"""
import sys

import numpy as np
from measure import measured
from ranking import counts

from scinterp.methods.products import gene_sums
from scinterp.text.encoders import bf16_is_fast

REPEATS = 3  # the quickest counts
TARGETS = {"gene_sums": 4, "gene_sums, bf16": 6, "gene_sums, read-out of 32 folded in": 50}  # times scipy


def best(call):
    "Result, seconds and memory of the quickest of several calls"
    return min((measured(call) for _ in range(REPEATS)), key=lambda r: r[1])


if __name__ == "__main__":
    cells, genes, nonzero, width = (int(a) for a in (sys.argv[1:] + ["5000", "20000", "2000", "1536"][len(sys.argv) - 1:]))
    X = counts(cells, genes, nonzero)
    rng = np.random.default_rng(0)
    E, W = rng.normal(size=(genes, width)).astype(np.float32), rng.normal(size=(width, 32)).astype(np.float32)
    folded = E @ W
    gene_sums(X[:300], E), gene_sums(X[:300], E, "bf16")  # libraries loaded
    plain, plain_s, plain_mb = best(lambda: X @ E)
    print(f"{cells:,} cells x {genes:,} genes, {nonzero:,} non-zeros a cell, width {width:,}\n")
    missed = []
    print("| way | cells/s | ratio | MB over the start | relative error |\n|---|---|---|---|---|")
    print(f"| scipy X @ E | {cells / plain_s:,.0f} | 1 | {plain_mb:.0f} | |")
    for name, call, truth in [("gene_sums", lambda: gene_sums(X, E), plain), ("gene_sums, bf16", lambda: gene_sums(X, E, "bf16"), plain),
                              ("gene_sums, read-out of 32 folded in", lambda: gene_sums(X, folded), plain @ W)]:
        found, seconds, mb = best(call)
        error = np.linalg.norm(found - truth) / np.linalg.norm(truth)
        print(f"| {name} | {cells / seconds:,.0f} | {plain_s / seconds:.1f} | {mb:.0f} | {error:.1e} |")
        missed += [f"{name}: {plain_s / seconds:.1f} of {TARGETS[name]}"] * (plain_s / seconds < TARGETS[name] and (bf16_is_fast() or "bf16" not in name))
    if missed:
        sys.exit(f"below its target: {'; '.join(missed)}")
