"""2,000 texts through MiniLM on the CPU: `encoder` against the default `SentenceTransformer.encode`, in one run, with memory.

    python benchmarks/encoding.py [bundled|ncbi] [texts]

bundled: the descriptions that ship with scinterp, and to fill up, sentences of several genes;
ncbi: RefSeq summaries, `human_gene_summaries.tsv.gz` in the folder $SCINTERP_DATA/text
"""
import os
import random
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
from measure import measured

from scinterp.cells.nomenclature import bundled_genes
from scinterp.text.descriptions import cell_types
from scinterp.text.encoders import bf16_is_fast, encoder, minilm_path

FASTER, ALIKE = 2, .995


def bundled(n, seed=0):
    "Descriptions of genes and cell types; then sentences of several genes, until they are as long as a description"
    genes = [f"{g.symbol}: {g['name']}. {g.description}" for _, g in bundled_genes().iterrows() if g.description]
    texts = dict.fromkeys(genes + cell_types()["description"].tolist())
    draw, sentences = random.Random(seed), [t.split(". ")[1:] for t in genes]
    while len(texts) < n:
        target, text = len(draw.choice(genes).split()), draw.choice(genes).split(". ")[0] + "."
        while len(text.split()) < target - 6:
            text += " " + draw.choice(draw.choice(sentences)).rstrip(".") + "."
        texts[text] = None
    return list(texts)[:n]


def ncbi(n, seed=0):
    "Symbol, name and summary of random protein-coding genes"
    path = Path(os.environ.get("SCINTERP_DATA", "../shared/data")) / "text" / "human_gene_summaries.tsv.gz"
    if not path.is_file():
        sys.exit(f"{path.name} is not there: set SCINTERP_DATA to the folder that has text/{path.name}, or take the bundled texts")
    genes = pd.read_csv(path, sep="\t", low_memory=False).fillna("").query("locus_group == 'protein-coding gene'").sample(n, random_state=seed)
    return (genes.symbol + ": " + genes.full_name + ". " + genes.summary).tolist()


def timed(call):
    "Result, seconds, MB, and seconds of all cores: other work on the machine lengthens the first more than the last"
    start = time.process_time()
    return *measured(call), time.process_time() - start


if __name__ == "__main__":
    try:
        from sentence_transformers import SentenceTransformer
        from transformers import AutoTokenizer
    except ImportError:
        sys.exit("this benchmark compares with sentence-transformers: pip install sentence-transformers")
    source, n = (sys.argv[1:] + ["bundled", "2000"][len(sys.argv) - 1:])[:2]
    texts = dict(bundled=bundled, ncbi=ncbi)[source](int(n))
    assert len(set(texts)) == len(texts) == int(n)
    tokens = [len(i) for i in AutoTokenizer.from_pretrained(minilm_path())(texts, padding=False, truncation=False, verbose=False)["input_ids"]]
    ways = {"SentenceTransformer.encode": SentenceTransformer(str(minilm_path()), device="cpu").encode}
    ways |= {f"encoder, {p}": encoder("minilm", precision=p, long="cut", device="cpu") for p in ("fp32", "auto")}
    rows = {}
    for name, encode in ways.items():
        encode(texts[:8])  # loaded and warm
        rows[name] = timed(lambda: encode(texts))
    reference, slow, _, slow_cpu = rows["SentenceTransformer.encode"]
    load = f", load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores" if hasattr(os, "getloadavg") else ""
    print(f"{len(texts):,} {source} texts, {np.mean(tokens):.0f} tokens on average, {max(tokens)} at most{load}")
    print("| way | seconds | ratio | CPU seconds | ratio | MB over the start | smallest cosine |\n|---|---|---|---|---|---|---|")
    for name, (vectors, seconds, mb, cpu) in rows.items():
        cosine = (vectors * reference).sum(1) / np.linalg.norm(vectors, axis=1) / np.linalg.norm(reference, axis=1)
        print(f"| {name} | {seconds:.1f} | {slow / seconds:.1f} | {cpu:.1f} | {slow_cpu / cpu:.1f} | {mb:.0f} | {cosine.min():.5f} |")
        assert cosine.min() >= ALIKE, f"{name}: vectors differ"
    if bf16_is_fast("cpu"):
        assert slow / seconds >= FASTER, f"less than {FASTER} times as fast"
    else:
        print("this CPU does not compute in bfloat16: 'auto' is float32")
