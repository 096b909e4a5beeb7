"""In-silico treatment of every gene: the closed forms against embedding the diseased cells again gene by gene, in one run, with memory.

    python benchmarks/treatment.py [cells] [genes] [non-zeros a cell] [width ...]

Made cells, half of them diseased, in which one gene in a hundred is raised; random vectors. *All of it* is what a call asks for: counts made
ready, vectors of the genes, and the score of every gene. The obvious way sets one gene to zero in the diseased cells, embeds them and compares
the means; it is timed on a few genes, and its time for all of them is extrapolated, and called so. CPU seconds are of all threads: on a machine
that is shared they say more than the clock. Exits with 1 if a score differs from embedding again, or if all of it takes `LONGEST` or more.
"""
import os
import sys
import time

import numpy as np
import torch
from anndata import AnnData
from measure import measured
from ranking import counts

from scinterp.methods import treatment as tr
from scinterp.methods.products import gene_sums
from scinterp.text.gene_tables import GeneTable

LONGEST = 5.  # seconds, on two quiet cores
ALIKE = 1e-3  # of the largest score
FEW = 2  # genes embedded again
KEYS = "condition", "well", "sick"


def made(cells, genes, nonzero):
    "Counts of two conditions"
    X = counts(cells, genes, nonzero)
    sick = np.arange(cells) % 2 == 1
    X.data[np.repeat(sick, nonzero) & (X.indices % 100 == 0)] *= 4
    adata = AnnData(X)
    adata.var_names = [f"G{i}" for i in range(genes)]
    adata.obs["condition"] = np.where(sick, "sick", "well")
    return adata


def timed(call):
    "Result, seconds, CPU seconds, and MB over the start"
    cpu = time.process_time()
    result, seconds, peak = measured(call)
    return result, seconds, time.process_time() - cpu, peak


def embedded(con, E, gene, mode, sums):
    "Mean of the diseased cells without a gene, embedded cell by cell"
    X = con.X[con.sick]
    X.data[X.indices == gene] = 0
    Z = sums(X, E)
    return (Z if mode == "aa" else Z / np.asarray(X.sum(1)).reshape(-1, 1)).mean(0, dtype=np.float64)


def changed(con, E, mode, after):
    "Change of the cosine of the means, by numpy in float64, if the diseased mean is `after`"
    mean = lambda S: np.asarray((S if mode == "aa" else S.multiply(1 / np.asarray(S.sum(1)).reshape(-1, 1)).tocsr()).mean(0)).ravel() @ E.astype(np.float64)
    well, sick = mean(con.X[~con.sick]), mean(con.X[con.sick])
    cosine = lambda b: well @ b / np.linalg.norm(well) / np.linalg.norm(b)
    return cosine(after) - cosine(sick)


def row(name, told, more=""):
    "A line of the table"
    print(f"| {name} | {told[1]:,.2f} | {told[2]:,.2f} | {told[3]:,.0f} | {more} |", flush=True)


if __name__ == "__main__":
    cells, genes, nonzero = (int(a) for a in (*sys.argv[1:4], *("10000", "20000", "1500")[len(sys.argv[1:4]):]))
    widths = [int(a) for a in sys.argv[4:]] or [384, 1536]
    adata, failed = made(cells, genes, nonzero), []
    print(f"{cells:,} cells x {genes:,} genes, {nonzero:,} non-zeros a cell; {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n")
    print("| | seconds | CPU seconds | MB over the start | |\n|---|---|---|---|---|")
    tr.contrast(made(300, genes, nonzero), *KEYS), gene_sums(counts(300, genes, nonzero), np.ones((genes, 384), np.float32))  # libraries loaded
    for width in widths:
        E = np.random.default_rng(0).normal(size=(genes, width)).astype(np.float32) + np.float32(1)  # as anisotropic as vectors of texts
        table = GeneTable.from_vectors(E, list(adata.var_names), "human", "made")
        ready = timed(lambda: tr.contrast(adata, *KEYS))
        G = timed(lambda: tr.gene_matrix(table, ready[0].genes))
        row(f"width {width:,}: counts made ready", ready)
        row(f"width {width:,}: vectors of the genes", G)
        for mode in tr.MODES:
            scored = timed(lambda: tr.target_scores(ready[0], G[0], mode))
            both = ready, G, scored
            whole = [None, *(sum(p[i] for p in both) for i in (1, 2)), max(p[3] for p in both)]
            row(f"width {width:,}, {mode}: scores of {genes:,} genes", scored)
            row(f"width {width:,}, {mode}: **all of it**", whole, "under" if whole[1] < LONGEST else f"not under {LONGEST:.0f} s")
            for way, sums in (("scipy's X @ E", lambda X, E: X @ E), ("gene_sums", gene_sums)):
                off, took = [], []
                for g in np.argsort(-scored[0])[:FEW] if way == "gene_sums" else [int(np.argmax(scored[0]))]:
                    took.append(timed(lambda: embedded(ready[0], E, g, mode, sums)))
                    off.append(abs(changed(ready[0], E, mode, took[-1][0]) - scored[0][g]))
                mean = [None, *np.mean([t[1:] for t in took], 0)]
                error = max(off) / np.abs(scored[0]).max()
                row(f"width {width:,}, {mode}: one gene again, {way}", mean, f"off by {error:.0e} of the largest score")
                row(f"width {width:,}, {mode}: every gene again, {way} (extrapolated)", [None, mean[1] * genes, mean[2] * genes, mean[3]], f"{mean[2] * genes / scored[2]:,.0f} x the CPU seconds of the scores")
                if error > ALIKE:
                    failed.append(f"{mode} at width {width} is off by {error:.0e}")
            if whole[1] >= LONGEST:
                failed.append(f"{mode} at width {width} took {whole[1]:.1f} s ({whole[2]:.1f} CPU seconds)")
    if failed:
        sys.exit("\n" + "; ".join(failed))
