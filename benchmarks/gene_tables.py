"""The vector cache: 20,000 genes from a full cache, against one file a text and against embedding again, in one run.

    python benchmarks/gene_tables.py [texts] [width] [texts to embed]
"""
import hashlib
import os
import random
import sys
import tempfile
from pathlib import Path

import numpy as np
from measure import measured

from scinterp.cells.nomenclature import bundled_genes
from scinterp.text.descriptions import describe
from scinterp.text.encoders import encoder
from scinterp.text.vector_cache import encode_once


class Random:
    "Vectors of noise, so that the time is the cache's"
    name, revision, truncated = "random", "1", 0

    def __init__(self, width):
        self.width, self.asked = width, 0

    def __call__(self, texts, progress=False):
        self.asked += len(texts)
        return np.random.default_rng(len(texts)).standard_normal((len(texts), self.width), dtype=np.float32)


def file_of(folder, text):
    return folder / f"{hashlib.sha256(text.encode()).hexdigest()}.npy"


if __name__ == "__main__":
    n, width, few = (int(a) for a in (sys.argv[1:] + ["20000", "384", "100"][len(sys.argv) - 1:]))
    rng = random.Random(0)
    texts = [f"gene {i}: " + " ".join(rng.choices(("binds", "cell", "kinase", "of", "membrane", "receptor", "the"), k=70)) for i in range(n)]
    genes = bundled_genes().query("species == 'human'").symbol.tolist()[:few]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SCINTERP_CACHE"] = folder
        noise, per_file = Random(width), Path(folder) / "files"
        (first, _), cold_s, _ = measured(lambda: encode_once(texts, noise))
        (again, _), warm_s, warm_mb = measured(lambda: encode_once(texts, noise))
        assert noise.asked == n and (first == again).all()
        per_file.mkdir()
        for text, vector in zip(texts, first):
            np.save(file_of(per_file, text), vector)
        files, files_s, files_mb = measured(lambda: np.stack([np.load(file_of(per_file, text)) for text in texts]))
        assert (files == first).all()
        told, minilm = describe(genes).text, encoder("minilm")
        minilm(told[:2])  # loaded once
        _, embed_s, _ = measured(lambda: minilm(told))
    embed_s *= n / len(genes)
    print(f"{n:,} texts, vectors of {width}\n| way | seconds | MB over the start |\n|---|---|---|")
    print(f"| full cache | {warm_s:.2f} | {warm_mb:.0f} |\n| one file a text, unchecked | {files_s:.2f} | {files_mb:.0f} |")
    print(f"| empty cache, vectors of noise | {cold_s:.2f} | |\n| MiniLM again (from {len(genes)} texts) | {embed_s:.0f} | |")
    print(f"ratio to files {files_s / warm_s:.1f}, to MiniLM {embed_s / warm_s:.0f}")
