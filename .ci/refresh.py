"""Refresh what is committed of a demo run (table, pictures, executed notebooks) and the outputs stored in notebooks.

    python .ci/refresh.py RUN_FOLDER [NOTEBOOK ...]      without names: every notebook
    python .ci/refresh.py --study [SETTING ...]          the papers' figures on settings of the committed study
"""
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat

from scinterp.run.notebooks import execute

ROOT = Path(__file__).parents[1]
NBS = ROOT / "nbs"
PICTURES = {"fig2_performance": "performance", "fig3_confusion": "confusion", "fig4_umap": "umap"}


def publish(run: Path):
    "Copy the result table, the pictures and the executed notebooks of a finished run into the project"
    kept = ROOT / "data" / "results" / "demo"
    kept.mkdir(parents=True, exist_ok=True)
    for name in ("results.csv", "predictions.csv", "maps.csv", "run.json"):
        shutil.copyfile(run / name, kept / name)
    for figure, name in PICTURES.items():
        shutil.copyfile(run / "figures" / f"{figure}.png", NBS / "images" / f"demo_{name}.png")
        out = NBS / "results" / "demo" / f"{figure}.ipynb"
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(run / "notebooks" / f"{figure}.ipynb", out)


STUDY = {"human_multistudy": "S1sub", "mouse_multistudy": "S2sub"}  # folder in nbs/results, and the setting of the study


def publish_study(settings):
    "Execute the figures of both papers on settings of the committed study, and show what is in them"
    for name, setting in STUDY.items():
        for paper in ("scinterpreter", "screader") if not settings or setting in settings else ():
            for figure in PICTURES:
                out = NBS / "results" / name / f"{paper}_{figure}.ipynb"
                execute(NBS / "papers" / "scinterpreter" / f"{figure}.ipynb", out, dict(paper=paper, setting=setting))
                print(out.relative_to(NBS), f"{out.stat().st_size / 1000:.0f} kB", flush=True)


def sources() -> list[Path]:
    "Notebooks whose outputs are made by running them as they are"
    books = sorted(p for p in NBS.rglob("*.ipynb") if not any(q[0] in "._" for q in p.relative_to(NBS).parts))
    return [p for p in books if "results" not in p.relative_to(NBS).parts]


def store_outputs(path: Path):
    "Execute a notebook and keep its outputs in it; ids and metadata stay as they were"
    source = nbformat.read(path, as_version=4)
    done = path.with_name(f".{path.stem}.done.ipynb")
    execute(path, done)
    executed = [c for c in nbformat.read(done, as_version=4).cells if c.id != "skip"]
    done.unlink()
    for old, new in zip(source.cells, executed, strict=True):
        if old.cell_type == "code":
            old.outputs, old.execution_count = [o for o in new.outputs if o.get("name") != "stderr"], None
    nbformat.write(source, path)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--study"]:
        publish_study(sys.argv[2:])
        sys.exit()
    run, *books = map(Path, sys.argv[1:])
    publish(run)
    for book in [b.resolve() for b in books] or sources():
        print(book.relative_to(NBS), flush=True)
        store_outputs(book)
    subprocess.run([str(Path(sys.executable).with_name("nbdev_clean"))], cwd=ROOT, check=True)
