"""Ranking each cell's most expressed genes: `top_genes` against the per-cell loop, in one run, with memory.

    python benchmarks/ranking.py [cells] [genes] [non-zeros a cell]
"""
import sys

import numpy as np
from measure import measured
from scipy import sparse

from scinterp.cells.normalise import top_genes

N_TOP = 2048


def counts(cells, genes, nonzero, seed=0):
    "Random counts with many ties, as sequencing gives them"
    rng = np.random.default_rng(seed)
    indices = np.concatenate([np.sort(rng.choice(genes, nonzero, replace=False)) for _ in range(cells)]).astype(np.int32)
    values = rng.geometric(.4, cells * nonzero).astype(np.float32)
    return sparse.csr_matrix((values, indices, np.arange(0, cells * nonzero + 1, nonzero)), shape=(cells, genes))


def loop(X, n):
    "One cell after the other, with numpy"
    ids = np.full((X.shape[0], n), -1, np.int32)
    for i in range(X.shape[0]):
        row = X[i]
        order = np.lexsort((row.indices, -row.data))[:n]
        ids[i, : len(order)] = row.indices[order]
    return ids


if __name__ == "__main__":
    cells, genes, nonzero = (int(a) for a in (sys.argv[1:] + ["50000", "20000", "2000"][len(sys.argv) - 1:]))
    X = counts(cells, genes, nonzero)
    top_genes(X[:2], N_TOP)  # compiled once, then kept on disk
    (fast, _), fast_s, fast_mb = measured(lambda: top_genes(X, N_TOP))
    slow, slow_s, slow_mb = measured(lambda: loop(X, N_TOP))
    assert (fast == slow).all()
    print(f"{cells:,} cells x {genes:,} genes, {nonzero:,} non-zeros a cell, top {N_TOP:,}")
    print("| way | seconds | MB over the start |\n|---|---|---|")
    print(f"| top_genes | {fast_s:.2f} | {fast_mb:.0f} |\n| per-cell loop | {slow_s:.2f} | {slow_mb:.0f} |")
    print(f"ratio {slow_s / fast_s:.1f}")
