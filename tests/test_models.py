"""A fitted method outlives its process to the last bit, and a folder that is not what it was is refused in one sentence."""
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import DATA, kang

from scinterp import methods
from scinterp.cells import datasets
from scinterp.core import InputError, ModelError, digest
from scinterp.methods import tl
from scinterp.methods.baselines import KNNPCA, LogisticHVG, Majority
from scinterp.methods.genept import GenePT
from scinterp.methods.queries import as_query
from scinterp.methods.scelmo import ScELMo
from scinterp.text.gene_tables import GeneTable


@pytest.fixture(scope="module")
def parts():
    cells, split = datasets.load("demo"), datasets.split("demo")
    return [cells[p].copy() for p in (split.train, split.val, split.test)]


@pytest.fixture(scope="module")
def table(parts):
    return GeneTable.build(parts[0])


METHODS = {
    "majority": lambda table: Majority(),
    "lr-hvg": lambda table: LogisticHVG(n_genes=300, penalties=(.1, 1.)),  # fewer genes than there are: both flavours are tried
    "knn-pca": lambda table: KNNPCA(),
    "knn-pca-tree": lambda table: KNNPCA(n_components=5, k=7),
    "genept-w": lambda table: GenePT(table),
    "genept-w-knn": lambda table: GenePT(table, head="knn"),
    "scelmo-aa": lambda table: ScELMo(table, "aa", head="lr"),
    "scelmo-wa": lambda table: ScELMo(table, "wa"),
    "scelmo-tuned": lambda table: ScELMo(table, "tuned", epochs=2),
    "genept-s": lambda table: GenePT(form="s", n_genes=3, head="knn"),
    "permuted": lambda table: GenePT(table.permuted(3)),
}

ASK = """
import sys, numpy as np
from scinterp.cells import datasets
from scinterp.core import InputError
from scinterp.methods import load
cells = datasets.load('demo'); test = cells[datasets.split('demo').test]
answers = {}
for folder in sys.argv[2:]:
    model = load(folder); name = folder.rsplit('/')[-1]; answers[f'{name} proba'] = model.predict_proba(test).to_numpy()
    answers[f'{name} unknown'] = (model.predict(test, unknown=True) == 'unknown').to_numpy()
    try: answers[f'{name} embed'] = model.embed(test)
    except InputError: pass
np.savez(sys.argv[1], **answers)
"""


def test_a_fresh_process_answers_the_same_to_the_last_bit(parts, table, tmp_path):
    train, val, test = parts
    expected = {}
    for name, make in METHODS.items():
        model = make(table).fit(train, validation=val).calibrate(val, error=.1)
        model.save(tmp_path / name)
        expected[f"{name} proba"] = model.predict_proba(test).to_numpy()
        expected[f"{name} unknown"] = (model.predict(test, unknown=True) == "unknown").to_numpy()
        if name != "majority":
            expected[f"{name} embed"] = model.embed(test)
    subprocess.run([sys.executable, "-c", ASK, tmp_path / "answers.npz", *(tmp_path / n for n in METHODS)], check=True)
    answers = np.load(tmp_path / "answers.npz")
    assert set(answers) == set(expected)
    assert [k for k in expected if not np.array_equal(answers[k], expected[k])] == []
    assert not list(tmp_path.rglob("*.pkl")) and {p.suffix for p in tmp_path.rglob("*") if p.is_file()} == {".json", ".safetensors", ".npz"}


def test_a_binary_model_and_one_without_validation(parts, tmp_path):
    train, _, test = parts
    two = train[train.obs["cell_type"].isin(["CD19+ B", "CD14+ Monocyte"])].copy()
    for model in (LogisticHVG(penalties=(1.,)).fit(two), KNNPCA().fit(two)):
        again = methods.load(model.save(tmp_path / model.name))
        assert again.predict_proba(test).equals(model.predict_proba(test))
        assert np.array_equal(again.embed(test), model.embed(test))


@pytest.fixture
def saved(parts, tmp_path):
    model = Majority().fit(parts[0])
    return model, model.save(tmp_path / "model")


def reseal(folder: Path, change):
    card = json.loads((folder / "method.json").read_text())
    change(card)
    card["sha256"] = digest({k: v for k, v in card.items() if k != "sha256"})
    (folder / "method.json").write_text(json.dumps(card))


def one_sentence(error, *words):
    said = str(error.value)
    assert isinstance(error.value, ModelError) and "\n" not in said and all(w in said for w in words), said


@pytest.mark.parametrize("name", ["method.json", "state.safetensors", "table.safetensors"])
@pytest.mark.parametrize("fault", ["missing", "one bit", "cut", "empty"])
def test_every_file_is_checked(parts, table, tmp_path, name, fault):
    folder = GenePT(table, head="knn").fit(parts[0][:60]).save(tmp_path / "model")
    path = folder / name
    content = path.read_bytes()
    path.unlink()
    at = len(content) // 2
    if fault != "missing":
        path.write_bytes({"one bit": content[:at] + bytes([content[at] ^ 1]) + content[at + 1:], "cut": content[:at], "empty": b""}[fault])
    with pytest.raises(ModelError) as error:
        methods.load(folder)
    one_sentence(error, "model")


def test_another_format_version_is_named_with_ours(saved):
    reseal(saved[1], lambda card: card.update(version=7))
    with pytest.raises(ModelError) as error:
        methods.load(saved[1])
    one_sentence(error, "saved in format 7", "reads format 1")


def test_a_file_cannot_name_what_is_to_be_run(saved):
    reseal(saved[1], lambda card: card.update({"class": "Popen", "module": "subprocess"}))
    with pytest.raises(ModelError) as error:
        methods.load(saved[1])
    one_sentence(error, "Popen", "not known here")
    reseal(saved[1], lambda card: card.update({"class": "GeneTable", "module": "scinterp.methods.genept"}))
    with pytest.raises(ModelError):  # there, but no method
        methods.load(saved[1])


def test_a_class_of_another_module_is_found_when_it_is_ours(saved):
    code = "from scinterp import methods; import sys; print(type(methods.load(sys.argv[1])).__module__)"
    done = subprocess.run([sys.executable, "-c", code, saved[1]], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "scinterp.methods.baselines"


def test_settings_of_another_version(saved):
    reseal(saved[1], lambda card: card["parameters"].update(depth=3))
    with pytest.raises(ModelError) as error:
        methods.load(saved[1])
    one_sentence(error, "does not fit the Majority of this scinterp")


KILLED = """
import os, sys
from scinterp.cells import datasets
from scinterp.methods import protocol
from scinterp.methods.baselines import LogisticHVG
protocol.write_json = lambda *args: os._exit(9)  # as if it were killed before the last file
LogisticHVG(penalties=(1.,)).fit(datasets.load('demo')).save(sys.argv[1], overwrite=True)
"""


def test_a_killed_save_leaves_the_old_folder(saved, parts, tmp_path):
    model, folder = saved
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    assert subprocess.run([sys.executable, "-c", KILLED, folder]).returncode == 9
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert subprocess.run([sys.executable, "-c", KILLED, tmp_path / "new"]).returncode == 9
    assert not (tmp_path / "new").exists()
    model.save(folder, overwrite=True)  # nothing of the killed one is in it
    assert {p.name for p in folder.iterdir()} == {"method.json", "state.safetensors"}
    assert methods.load(folder).name == "majority"


def test_a_save_that_fails_leaves_nothing(parts, tmp_path, monkeypatch):
    model = Majority().fit(parts[0])
    monkeypatch.setattr(Majority, "_state", lambda self: dict(share=np.array(["a"])))
    with pytest.raises(ModelError):
        model.save(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_somebody_else_is_left_alone(saved, tmp_path):
    model, folder = saved
    (folder / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        model.save(folder, overwrite=True)
    with pytest.raises(InputError, match="is a file"):
        model.save(folder / "thesis.txt")
    assert (folder / "thesis.txt").read_text() == "mine"


def test_a_setting_that_is_no_value_is_refused(parts, tmp_path):
    class Odd(Majority):
        def __init__(self, thing=None): self.thing = thing
    with pytest.raises(ModelError, match="the setting thing of majority is a object"):
        Odd(object()).fit(parts[0]).save(tmp_path / "model")


def test_what_decides_answers_decides_the_fingerprint(parts, table):
    train, val, _ = parts
    model = GenePT(table, head="knn").fit(train)
    again = GenePT(table, head="knn").fit(train)
    assert model.fingerprint == again.fingerprint
    again.about["note"] = "mine"  # decides nothing
    assert model.fingerprint == again.fingerprint
    others = [GenePT(table.permuted(0), head="knn").fit(train), GenePT(table, head="knn").fit(train[:-1]), again.calibrate(val, error=.1)]
    assert len({model.fingerprint, *(o.fingerprint for o in others)}) == 4


def test_large_queries_are_asked_in_parts(parts, monkeypatch):
    from scinterp.methods import protocol
    model = KNNPCA().fit(parts[0])
    whole, vectors = model.predict_proba(parts[2]), model.embed(parts[2])
    monkeypatch.setattr(protocol, "CHUNK", 50)
    assert model.predict_proba(parts[2]).equals(whole)
    np.testing.assert_allclose(model.embed(parts[2]), vectors, rtol=1e-4, atol=1e-4)


# Real cells: half of the donors teach, the others ask.

needs_data = pytest.mark.skipif(not DATA, reason="needs the real files of SCINTERP_DATA")


@pytest.fixture(scope="module")
def donors():
    train, query = kang()
    rng = np.random.default_rng(0)
    own = rng.permutation(train.n_obs)
    return train[own[:1200]].copy(), train[own[1200:2200]].copy(), query[rng.permutation(query.n_obs)[:1500]].copy()


@needs_data
def test_the_rate_of_unknown_cells_is_held_on_cells_of_the_same_donors(donors):
    "200 draws of calibration and query cells, one model: the guarantee is of the average"
    from scinterp.methods.certainty import measure_certainty
    train, held, _ = donors
    model = LogisticHVG(penalties=(1.,)).fit(train)
    held = held[held.obs["cell_type"].isin(model.classes_)]
    P, y = model.predict_proba(held).to_numpy(), np.searchsorted(model.classes_, held.obs["cell_type"].astype(str))
    rng, shares = np.random.default_rng(1), []
    for _ in range(200):
        order = rng.permutation(len(y))
        sure = measure_certainty(P[order[:200]], y[order[:200]], .05)
        shares.append(sure.is_unknown(sure.proba(P[order[200:]])).mean())
    assert np.mean(shares) < .05 + 4 * np.std(shares) / np.sqrt(200)
    assert np.mean(shares) > .02, "the rule is not empty"


@needs_data
def test_cells_of_a_type_left_out_are_called_unknown_more_often(donors):
    train, held, query = donors
    some = lambda a: a[a.obs["cell_type"] != "B cells"].copy()
    model = LogisticHVG(penalties=(1.,)).fit(some(train)).calibrate(some(held), error=.05)
    unknown = model.predict(query, unknown=True) == "unknown"
    new = (query.obs["cell_type"] == "B cells").to_numpy()
    assert unknown[new].mean() > 3 * unknown[~new].mean()


@needs_data
def test_ensembl_ids_and_counts_give_the_answers_of_symbols_and_logarithms(donors):
    from scinterp.cells.normalise import log_normalised
    train, _, query = donors
    model = LogisticHVG(penalties=(1.,)).fit(train)
    ids = query.copy()
    ids.var_names = query.var["ensembl"].astype(str)
    ids = ids[:, ids.var_names.str.startswith("ENSG") & ~ids.var_names.duplicated()].copy()
    renamed, match = as_query(ids, model)
    assert match["how"]["ensembl"] > 1000 and match["mass"] > .9
    told = renamed.var_names
    same = query[:, [g in set(told) for g in query.var_names]].copy()
    assert match["matched"] == same.n_vars
    agree = (tl.annotate(ids, model, copy=True).obs["scinterp_pred"].astype(str) == model.predict(same)).mean()
    assert agree > .97  # genes without an id are counted in one of the two totals only
    logs = query.copy()
    logs.X = log_normalised(query)
    pd.testing.assert_frame_equal(model.predict_proba(logs), model.predict_proba(query), atol=1e-5)


@needs_data
def test_mouse_cells_are_refused_by_name_and_read_through_orthologs_by_text(donors):
    from scinterp.core import DataError
    mouse = datasets.load("mouse_lung_zilionis_healthy_tumour")[:300].copy()
    train = donors[0][:600]
    with pytest.raises(DataError, match="the cells are of mouse and the model of human"):
        tl.annotate(mouse, LogisticHVG(penalties=(1.,)).fit(train))
    assert "scinterp_pred" not in mouse.obs
    model = GenePT(GeneTable.build(train, "human", encoder="tfidf")).fit(train)
    tl.annotate(mouse, model)
    genes = mouse.uns["scinterp"]["genes"]
    assert genes["species"] == "mouse" and genes["model_species"] == "human" and genes["how"]["ortholog-one2one"] > 500
    kinds = pd.crosstab(mouse.obs["cell_type"], mouse.obs["scinterp_pred"])
    assert kinds.loc["B cells"].idxmax() == "B cells"  # not by chance: mouse B cells are found among human types


def test_moved_folders_still_load(saved, tmp_path):
    shutil.move(saved[1], tmp_path / "elsewhere")
    assert methods.load(os.path.relpath(tmp_path / "elsewhere")).name == "majority"
