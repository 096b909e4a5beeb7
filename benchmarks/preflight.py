"""The pre-flight of a large file against loading it and looking, in one run, with memory.

    python benchmarks/preflight.py [cells] [genes] [non-zeros a cell] [counts|log1p] [none|gzip|lzf]
"""
import sys
import tempfile
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from measure import measured
from ranking import counts

from scinterp.cells.identifiers import match_genes
from scinterp.cells.nomenclature import bundled_genes
from scinterp.cells.preflight import preflight


def write_file(path, cells, genes, nonzero, state, compression):
    "A file of random expression whose first genes have real names; 1,000 cells, over and over"
    X = counts(min(cells, 1000), genes, nonzero)
    if state == "log1p":
        X.data = np.log1p(X.data * np.repeat(1e4 / np.asarray(X.sum(1)).ravel(), nonzero).astype(np.float32))
    tile = -(-cells // X.shape[0])
    X = type(X)((np.tile(X.data, tile), np.tile(X.indices, tile), np.arange(0, tile * X.nnz + 1, nonzero)), shape=(tile * X.shape[0], genes))[:cells]
    names = [*bundled_genes().query("species == 'human'").symbol, *(f"gene{i}" for i in range(genes))][:genes]
    obs = pd.DataFrame({"cell_type": pd.Categorical(np.arange(cells) % 20)}, index=np.arange(cells).astype(str))
    ad.AnnData(X, obs=obs, var=pd.DataFrame(index=names)).write_h5ad(path, compression=None if compression == "none" else compression)


def load_and_look(path):
    "What a careful person does by hand: read it all, then ask numpy"
    adata = ad.read_h5ad(path)
    x = adata.X.data
    finite, negative, whole = np.isfinite(x).all(), (x < 0).any(), (x == np.round(x)).all()
    totals = np.asarray((adata.X if whole else adata.X.expm1()).sum(axis=1)).ravel()
    empty = (np.diff(adata.X.indptr) == 0).sum(), (np.bincount(adata.X.indices, minlength=adata.n_vars) == 0).sum()
    known = match_genes(adata.var_names, "human").symbol != ""
    mass = np.asarray(adata.X.sum(axis=0)).ravel()
    return finite, negative, whole, totals, empty, mass[known].sum() / mass.sum(), adata.var_names.is_unique, adata.obs.cell_type.value_counts()


if __name__ == "__main__":
    given = sys.argv[1:] + ["100000", "30000", "2000", "counts", "none"][len(sys.argv) - 1:]
    cells, genes, nonzero, state, compression = *map(int, given[:3]), *given[3:]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cells.h5ad"
        write_file(path, cells, genes, nonzero, state, compression)
        small = Path(folder) / "small.h5ad"
        write_file(small, 1000, 2000, 100, "log1p", "none")
        preflight(small, strict=False)  # compiled once, then kept on disk; the table of names is read
        report, fast_s, fast_mb = measured(lambda: preflight(path, strict=False))
        looked, slow_s, slow_mb = measured(lambda: load_and_look(path))
        assert abs(looked[5] - report.recognised_mass) < 1e-4 and report.state == ("counts" if state == "counts" else "log1p-cp10k")
        print(f"{cells:,} cells x {genes:,} genes, {nonzero:,} non-zeros a cell, {state}, {path.stat().st_size / 1e9:.1f} GB ({compression})")
        print("| way | seconds | MB over the start |\n|---|---|---|")
        print(f"| preflight | {fast_s:.1f} | {fast_mb:.0f} |\n| load and look | {slow_s:.1f} | {slow_mb:.0f} |")
        print(f"ratio {slow_s / fast_s:.1f}")
