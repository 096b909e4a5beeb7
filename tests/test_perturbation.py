"""Perturbation: every baseline against a loop or scikit-learn, planted effects found again, scores against scipy, bad input refused."""
import json
import sys
import types

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from hypothesis import given, settings, strategies as st
from scipy import sparse, stats
from sklearn.linear_model import Ridge, RidgeCV

from scinterp.cells import datasets
from scinterp.cells.screens import read_screen
from scinterp.core import DataError, InputError
from scinterp.methods import perturbation as pt
from scinterp.methods.latent_shift import LatentShift, told_share
from scinterp.run import perturbation as rp
from scinterp.text.gene_tables import GeneTable

quick = settings(database=None, deadline=None, max_examples=20)


def screen(seed, n=12, m=15, pairs=True):
    "Changes of `n` single genes, the first ones among the `m` measured, and of two pairs"
    rng = np.random.default_rng(seed)
    genes = [f"g{i}" for i in range(m)]
    names = [f"g{i}" for i in range(n - 2)] + ["far0", "far1"] + (["g0+g1", "g2+far0"] if pairs else [])
    return pt.Effects(rng.normal(size=(len(names), m)), rng.random(m), names, genes, np.full(len(names), 30)), rng


def two_ridges(Y, P, Q, dim, ridge):
    "Y ~ G W P' + b by two regressions of scikit-learn, gene components by an eigendecomposition"
    b = Y.mean(1, keepdims=True)
    centred = Y - Y.mean(0)
    values, vectors = np.linalg.eigh(centred.T @ centred)
    G = centred @ vectors[:, np.argsort(-values)[:dim]]
    left = Ridge(ridge, fit_intercept=False).fit(G, Y - b).coef_.T
    W = Ridge(ridge, fit_intercept=False).fit(P(G), left.T).coef_
    return (G @ W @ Q(G).T + b).T


@quick
@given(st.integers(0, 10**6), st.booleans())
def test_simple_baselines_are_the_loops_they_claim(seed, pairs):
    e, rng = screen(seed, pairs=pairs)
    order = rng.permutation(len(e.names))
    train, test = order[:9], order[9:]
    mean = sum(e.delta[i] for i in train)/len(train)
    np.testing.assert_array_equal(pt.no_change(e, train, test), np.zeros((len(test), 15)))
    np.testing.assert_allclose(pt.mean_shift(e, train, test), [mean]*len(test))
    for row, i in zip(pt.additive(e, train, test), test):
        said = np.zeros(15)
        for gene in e.names[i].split("+"):
            at = [j for j in train if e.names[j] == gene]
            said += e.delta[at[0]] if at else mean
        np.testing.assert_allclose(row, said)


@quick
@given(st.integers(0, 10**6), st.integers(2, 6), st.floats(.01, 10))
def test_the_linear_model_is_two_ridge_regressions(seed, dim, ridge):
    e, _ = screen(seed)
    train, test = np.arange(10), np.array([12])  # ten measured genes; a pair of two of them
    row = lambda G: G[:10]
    said = two_ridges(e.delta[train].T, row, lambda G: (G[:1] + G[1:2])/2, dim, ridge)
    np.testing.assert_allclose(pt.linear(e, train, test, dim, ridge), said, atol=1e-7)


def test_the_linear_model_says_the_mean_of_a_gene_that_is_not_measured():
    e, _ = screen(0)
    np.testing.assert_allclose(pt.linear(e, range(10), [10]), [e.delta[:10].mean(0)])
    both = pt.linear(e, range(10), [13])  # g2+far0: what is known of g2
    np.testing.assert_allclose(both, two_ridges(e.delta[:10].T, lambda G: G[:10], lambda G: G[2:3], 10, .1), atol=1e-7)


@quick
@given(st.integers(0, 10**6), st.integers(2, 6), st.floats(.01, 10))
def test_the_linear_model_with_texts_is_two_ridge_regressions(seed, dim, ridge):
    e, rng = screen(seed)
    V = rng.normal(size=(14, 5)) + 3
    train, test = np.arange(10), np.arange(10, 14)
    P = V[train] - V[train].mean(0)
    scale = np.sqrt(np.mean([p @ p for p in P]))
    said = two_ridges(e.delta[train].T, lambda G: P/scale, lambda G: (V[test] - V[train].mean(0))/scale, dim, ridge)
    np.testing.assert_allclose(pt.linear_text(e, train, test, V, dim, ridge), said, atol=1e-7)


@quick
@given(st.integers(0, 10**6))
def test_genepert_is_the_ridge_of_scikit_learn_at_the_penalty_of_a_held_out_fifth(seed):
    e, rng = screen(seed)
    V = rng.normal(size=(14, 5))
    train, test = np.arange(10), np.arange(10, 14)
    held = np.random.default_rng(4).permutation(train)[:2]
    rest = [i for i in train if i not in held]
    loss = {a: np.mean((Ridge(a).fit(V[rest], e.delta[rest]).predict(V[held]) - e.delta[held])**2) for a in pt.ALPHAS}
    said = Ridge(min(loss, key=loss.get)).fit(V[train], e.delta[train]).predict(V[test])
    np.testing.assert_allclose(pt.ridge_text(e, train, test, V, seed=4), said, atol=1e-8)


def test_the_dual_form_holds_with_more_dimensions_than_perturbations():
    rng = np.random.default_rng(0)
    V, Y, new = rng.normal(size=(8, 40)), rng.normal(size=(8, 5)), rng.normal(size=(3, 40))
    np.testing.assert_allclose(pt.ridge_predict(V, Y, new, .5), RidgeCV([.5]).fit(V, Y).predict(new), atol=1e-8)


@quick
@given(st.integers(0, 10**6))
def test_the_counterfactual_is_a_weighted_mean(seed):
    e, rng = screen(seed)
    Z = rng.normal(size=(14, 4))
    train, test = range(10), [10, 13]
    distances = [np.sqrt(((Z[i] - Z[j])**2).sum()) for i in train for j in train if i < j]
    for row, i in zip(pt.counterfactual(e, train, test, Z), test):
        weight = [np.exp(-.5*((Z[i] - Z[j])**2).sum()/np.median(distances)**2) for j in train]
        np.testing.assert_allclose(row, sum(w*e.delta[j] for w, j in zip(weight, train))/sum(weight))


def made_cells(seed=0, effect=.8):
    "Cells of which eight genes are knocked down one at a time, and what that does to log expression"
    rng = np.random.default_rng(seed)
    genes = [f"g{i}" for i in range(30)]
    planted = rng.normal(size=(8, 30))*effect
    told = np.repeat(["control", *genes[:8]], 150)
    shift = np.array([np.zeros(30) if t == "control" else planted[genes.index(t)] for t in told])
    X = rng.poisson(np.exp(2 + shift)).astype(np.float32)
    return AnnData(sparse.csr_matrix(X), obs=pd.DataFrame({"perturbation": told}, index=np.arange(len(told)).astype(str)),
                   var=pd.DataFrame(index=genes)), planted


def test_planted_effects_are_recovered():
    cells, planted = made_cells()
    e = pt.effects(cells)
    X = cells.X.toarray()
    X = np.log1p(X/X.sum(1, keepdims=True)*1e4)
    told = cells.obs["perturbation"].to_numpy()
    for i, name in enumerate(e.names):
        np.testing.assert_allclose(e.delta[i], X[told == name].mean(0) - X[told == "control"].mean(0), atol=1e-4)
        centred = planted[i] - np.log(np.exp(2 + planted[i]).sum()/np.exp(2*np.ones(30)).sum())  # what is left after scaling each cell
        assert np.corrcoef(e.delta[i], centred)[0, 1] > .98


def test_text_that_holds_the_effects_is_found_and_permuted_text_is_not():
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(80, 6))
    moved = vectors @ rng.normal(size=(6, 40))
    names = [f"p{i}" for i in range(80)]
    table = GeneTable.from_vectors(vectors.astype(np.float32), names, "human", "made")
    e = pt.Effects(moved + rng.normal(size=moved.shape)*.2, np.zeros(40), names, [f"x{i}" for i in range(40)], np.full(80, 50))
    train, test = np.arange(60), np.arange(60, 80)
    score = lambda said: np.nanmean(pt.change_scores(moved[test], said).pearson_delta)
    for model in (pt.ridge_text, pt.linear_text):
        assert score(model(e, train, test, pt.text_of(e, table))) > .97
        assert abs(score(model(e, train, test, pt.text_of(e, table.permuted(0))))) < .4
    known = pt.Effects(e.delta[train], e.control, names[:60], e.genes, e.cells[:60])
    said = pt.unseen(known, table, names[60:])
    assert list(said.index) == names[60:] and list(said.columns) == e.genes
    np.testing.assert_allclose(said, pt.ridge_text(e, train, test, pt.text_of(e, table)), atol=1e-8)


@quick
@given(st.integers(0, 10**6), st.integers(3, 20))
def test_scores_are_those_of_scipy(seed, top):
    rng = np.random.default_rng(seed)
    true, said = rng.normal(size=(3, 25)), rng.normal(size=(3, 25))
    for (t, g), s in zip(zip(true, said), pt.change_scores(true, said, top).itertuples()):
        most = sorted(range(25), key=lambda j: -abs(t[j]))[:top]
        np.testing.assert_allclose(s.pearson_delta, stats.pearsonr(t, g)[0])
        np.testing.assert_allclose(s.pearson_delta_top, stats.pearsonr(t[most], g[most])[0])
        np.testing.assert_allclose(s.mse, sum((a - b)**2 for a, b in zip(t, g))/25)
        np.testing.assert_allclose([s.mse_top, s.l2_top], [np.mean([(t[j] - g[j])**2 for j in most]), np.sqrt(sum((t[j] - g[j])**2 for j in most))])
        assert s.sign_top == np.mean([t[j]*g[j] > 0 for j in most])


def test_a_correlation_with_no_change_stays_empty():
    s = pt.change_scores(np.random.default_rng(0).normal(size=(2, 9)), np.zeros((2, 9)))
    assert s.pearson_delta.isna().all() and s.pearson_delta_top.isna().all() and (s.mse > 0).all()


def typed_cells(seed=0, types="abcde", per=40):
    "Cells of several types, treated and not; the change of a type depends on its expression"
    rng = np.random.default_rng(seed)
    base = rng.normal(size=(len(types), 25))*.5 + 1.5
    kind, state = np.repeat(np.arange(len(types)), 2*per), np.tile(np.repeat([0, 1], per), len(types))
    X = rng.poisson(np.exp(base[kind] + state[:, None]*.7*np.sign(np.arange(25) - 12))).astype(np.float32)
    obs = pd.DataFrame({"cell_type": np.array(list(types))[kind], "condition": np.array(["rest", "moved"])[state]}, index=np.arange(len(X)).astype(str))
    return AnnData(sparse.csr_matrix(X), obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(25)]))


def test_changes_of_types_are_differences_of_their_means():
    cells = typed_cells()
    e, base = pt.type_effects(cells, "condition", "rest", "moved")
    X = cells.X.toarray()
    X = np.log1p(X/X.sum(1, keepdims=True)*1e4)
    of = lambda t, s: X[(cells.obs.cell_type == t) & (cells.obs.condition == s)].mean(0)
    assert e.names == list("abcde") and set(e.cells) == {80}
    np.testing.assert_allclose(base, [of(t, "rest") for t in "abcde"], atol=1e-4)
    np.testing.assert_allclose(e.delta, [of(t, "moved") - of(t, "rest") for t in "abcde"], atol=1e-4)


def test_a_type_seen_in_one_condition_only_is_left_out():
    cells = typed_cells()
    cells = cells[~((cells.obs.cell_type == "c") & (cells.obs.condition == "moved")).to_numpy()].copy()
    with pytest.warns(UserWarning, match="left out, with fewer than 20 cells in one of the two conditions: c$"):
        e, base = pt.type_effects(cells, "condition", "rest", "moved")
    assert e.names == list("abde") and len(base) == 4


@pytest.mark.parametrize("change, error, says", [
    (lambda c: c[(c.obs.condition == "rest").to_numpy()].copy(), DataError, "no cell is 'moved' in 'condition', which has rest: two conditions"),
    (lambda c: c[(c.obs.condition == "moved").to_numpy()].copy(), DataError, "no cell is 'rest' in 'condition'"),
    (lambda c: c[c.obs.cell_type.isin(["a", "b"])].copy(), DataError, "2 cell types have 20 cells both 'rest' and 'moved': three are needed"),
    (lambda c: AnnData(c.X, obs=c.obs[["condition"]], var=c.var), InputError, "no column 'cell_type' in obs"),
    (lambda c: AnnData(c.X, obs=c.obs.assign(cell_type=c.obs.cell_type.astype(object).where(np.arange(c.n_obs) > 2)), var=c.var), DataError, "3 cells have no type in 'cell_type'"),
])
def test_cells_that_cannot_be_compared(change, error, says):
    with pytest.raises(error) as told:
        pt.type_effects(change(typed_cells()), "condition", "rest", "moved")
    assert says in str(told.value) and "\n" not in str(told.value)


def test_both_conditions_must_differ():
    with pytest.raises(InputError, match="both conditions are 'rest'"):
        pt.type_effects(typed_cells(), "condition", "rest", "rest")


@pytest.mark.parametrize("model", [pt.ridge_text, pt.linear_text])
@pytest.mark.parametrize("vectors, says", [(np.ones((14, 3)), "have the same vector"), (np.full((14, 3), np.nan), "0 training perturbations have a text vector")])
def test_text_that_says_nothing_is_refused(model, vectors, says):
    with pytest.raises(DataError, match=says):
        model(screen(0)[0], range(10), [10], vectors)


def test_a_constant_embedding_of_types_is_refused():
    with pytest.raises(DataError, match="have the same vector"):
        pt.counterfactual(screen(0)[0], range(10), [10], np.ones((14, 3)))


def test_a_gene_without_text_is_named():
    e, rng = screen(0, pairs=False)
    table = GeneTable.from_vectors(rng.normal(size=(13, 4)).astype(np.float32), [*e.names, "new"], "human", "made")
    assert pt.unseen(e, table, ["new", "g0+new"]).shape == (2, 15)
    with pytest.raises(InputError, match="nothere not in the gene table"):
        pt.unseen(e, table, ["g0+nothere"])
    with pytest.raises(InputError, match="must be a list"):
        pt.unseen(e, table, "new")


# ---- CPA's way

def shifted(seed=0, kinds="abcde", per=60, m=40):
    "Cells on a line of latent states: a type and a treatment each add their own vector"
    rng = np.random.default_rng(seed)
    base, move = rng.normal(size=(len(kinds), m)), rng.normal(size=m)*(rng.random(m) < .4)
    types, treated = np.repeat(list(kinds), 2*per), np.tile(np.repeat([False, True], per), len(kinds))
    X = base[np.repeat(np.arange(len(kinds)), 2*per)] + treated[:, None]*move + rng.normal(size=(len(types), m))*.4
    return X.astype(np.float32), treated, types, move


def test_a_planted_shift_is_found_for_a_type_whose_treated_cells_were_not_seen():
    X, treated, types, move = shifted()
    seen = ~((types == "e") & treated)
    model = LatentShift(components=20, epochs=60).fit(X[seen], treated[seen], types[seen], dict(zip("abcde", np.eye(5))))
    said = model.change(X[(types == "e") & ~treated], "e")
    assert np.corrcoef(said, move)[0, 1] > .8 and .4 < np.abs(said).sum()/np.abs(move).sum() < 1.6
    assert ((said - move)**2).mean() < (move**2).mean(), "nearer than no change"


def test_the_penalty_takes_types_and_treatment_out_of_the_basal_state():
    X, treated, types, _ = shifted()
    told = dict(zip("abcde", np.eye(5)))
    groups = torch.from_numpy(2*np.unique(types, return_inverse=True)[1] + treated)
    left = []
    for penalty in (0., 1.):
        model = LatentShift(components=20, epochs=40, penalty=penalty).fit(X, treated, types, told)
        basal = model.net_.encode(torch.from_numpy((model.pca_.transform(X)/model.scale_).astype(np.float32))).detach()
        between = sum(len(z)*((z.mean(0) - basal.mean(0))**2).sum() for z in (basal[groups == g] for g in groups.unique()))
        left.append(float(between/((basal - basal.mean(0))**2).sum()))
        assert np.isclose(told_share(basal, groups).item(), left[-1], rtol=1e-4)
    assert left[0] > .5 and left[1] < .2


def test_the_seed_decides_and_the_callers_random_numbers_stay():
    X, treated, types, _ = shifted(per=20)
    told = dict(zip("abcde", np.eye(5)))
    fit = lambda seed: LatentShift(components=10, epochs=2, seed=seed).fit(X, treated, types, told).change(X[:9], "a")
    torch.manual_seed(7)
    before = torch.get_rng_state()
    np.testing.assert_array_equal(fit(1), fit(1))
    assert not np.allclose(fit(1), fit(2)) and torch.equal(before, torch.get_rng_state())


# ---- the runner

ARMS = {("ridge-text", ""), ("counterfactual", ""), ("linear-text", ""), ("cpa-genes", ""), ("cpa-label", "")}


@pytest.fixture
def kang_like(tmp_path, monkeypatch):
    "A made set in the place of Kang, bundled texts of real genes, and small settings"
    cells = typed_cells(types=["B", "NK", "CD8 T", "Dendritic"], per=30)
    cells.var_names = "CD3D CD3E CD19 MS4A1 LYZ S100A8 S100A9 NKG7 GNLY GZMB ISG15 IFI6 MX1 IFIT1 CD14 FCGR3A IL7R CCR7 CD8A CD8B CD79A PPBP PF4 FCER1A CST3".split()
    cells.obs["cell_type"] = cells.obs["cell_type"].astype(str)
    cells.write_h5ad(tmp_path / "kangish.h5ad")
    monkeypatch.setenv("SCINTERP_DATA", str(tmp_path))
    config = rp.perturbation_config() | dict(dataset="kangish", species="human", control="rest", treated="moved", text={"source": "bundled"}, encoder="tfidf",
                                             min_cells=20, components=3, control_seeds=[0, 1], bootstrap=50)
    config["cpa"] = config["cpa"] | dict(seeds=[0, 1], epochs=3, components=8, cells_per_group=15)
    return cells, config


def test_every_arm_has_its_controls_in_one_table(kang_like, tmp_path):
    cells, config = kang_like
    result = rp.run_perturbation(tmp_path / "out", config)
    mean = result[result.split == "mean"].set_index(["method", "control", "metric"])
    arms = set(result[["method", "control"]].itertuples(index=False, name=None))
    assert arms == {("no-change", ""), ("mean-shift", "")} | {(m, c) for m, _ in ARMS for c in ("", "no-text", "permuted-text", "random-table")}
    e, _ = pt.type_effects(cells, "condition", "rest", "moved")
    others = np.array([np.delete(e.delta, i, 0).mean(0) for i in range(4)])
    by_hand = [stats.pearsonr(t, g)[0] for t, g in zip(e.delta, others)]
    assert np.isclose(mean.value["mean-shift", "", "pearson_delta"], np.mean(by_hand), atol=1e-6)
    for m, _ in ARMS:
        difference = mean.value[m, "", "pearson_delta"] - mean.value[m, "random-table", "pearson_delta"]
        assert np.isclose(mean.value[m, "", "pearson_delta_over_random-table"], difference, atol=1e-6)
    kept = json.loads((tmp_path / "out" / "run.json").read_text())["identity"]
    assert kept["left_out"] == [] and kept["settings"]["cpa"]["epochs"] == 3


@pytest.mark.parametrize("change, says", [
    (dict(treated="IFN-gamma"), "no cell is 'IFN-gamma' in 'condition'"),
    (dict(type_key="kind"), "kind"),
    (dict(min_cells=1000), "0 cell types have 1000 cells"),
])
def test_a_run_that_cannot_be_leaves_nothing(kang_like, tmp_path, change, says):
    with pytest.raises(InputError, match=says):
        rp.run_perturbation(tmp_path / "out", kang_like[1] | change)
    assert not (tmp_path / "out").exists()


# ---- screens

def gears_file(path, n=24, per=40, layout="gears", seed=3):
    "A made screen: the change of a gene is a linear map of its vector; a pair adds up"
    rng = np.random.default_rng(seed)
    names, V = [f"P{i}" for i in range(n + 4)], rng.normal(size=(n + 4, 4)).astype(np.float32)
    move = V @ rng.normal(size=(4, 40))*.4
    told = ["ctrl", *(f"{g}+ctrl" if i % 2 else f"ctrl+{g}" for i, g in enumerate(names[:n])), "P1+P0"]
    shift = np.vstack([np.zeros(40), move[:n], move[0] + move[1]])
    counts = rng.poisson(np.exp(1.5 + np.repeat(shift, per, 0))).astype(np.float32)
    key = "condition"
    if layout == "scperturb":
        key, told = "perturbation", ["control", *names[:n], "P1_P0"]
    X = sparse.csr_matrix(counts if layout == "scperturb" else np.log1p(counts/counts.sum(1, keepdims=True)*np.median(counts.sum(1))))
    obs = pd.DataFrame({key: np.repeat(told, per)}, index=[f"c{i}" for i in range(len(X.toarray()))])
    var = pd.DataFrame({"gene_name": [f"g{i}" for i in range(10)] + [f"P{i}" for i in range(30)]}, index=[f"ENSG{i:011}" for i in range(40)])
    AnnData(X, obs=obs, var=var).write_h5ad(path)
    return GeneTable.from_vectors(V, names, "human", "made"), names, move


@pytest.mark.parametrize("layout", ["gears", "scperturb"])
def test_unseen_perturbations_of_a_screen_are_foretold_end_to_end(tmp_path, layout):
    table, names, move = gears_file(tmp_path / "made.h5ad", layout=layout)
    result = rp.run_screen(tmp_path / "made.h5ad", tmp_path / "out", table=table)
    v = result[result.split == "mean"].set_index(["method", "control", "metric"])
    for m in ("ridge-text", "linear-text"):
        assert v.value[m, "", "pearson_delta"] > .8
        assert v.lo[m, "", "pearson_delta_over_permuted-text"] > .2 and v.lo[m, "", "pearson_delta_over_mean-shift"] > .2
    assert {"no-change", "mean-shift", "linear"} < set(result.method)
    assert sorted(set(result.split) - {"mean"}) == sorted(names[:24]), "single genes, each once; no pair"
    assert json.loads((tmp_path / "out" / "run.json").read_text())["identity"]["layout"] == layout
    cells = read_screen(tmp_path / "made.h5ad")
    assert {"P0+P1", "control", "P3"} <= set(cells.obs["perturbation"]) and cells.var_names[0] == "g0"
    e = pt.effects(cells, as_is=layout == "gears")
    said = pt.unseen(e, table, names[24:])  # genes outside the screen
    assert np.corrcoef(said.to_numpy().ravel(), move[24:].ravel())[0, 1] > .8


def test_a_screen_that_is_none_leaves_nothing(tmp_path):
    AnnData(np.ones((3, 2), np.float32), obs=pd.DataFrame({"guide": list("abc")}, index=list("xyz"))).write_h5ad(tmp_path / "x.h5ad")
    with pytest.raises(DataError, match="another layout"):
        rp.run_screen(tmp_path / "x.h5ad", tmp_path / "out")
    table, _, _ = gears_file(tmp_path / "few.h5ad", n=3)
    with pytest.raises(DataError, match="3 single perturbations have enough cells: 5 are needed"):
        rp.run_screen(tmp_path / "few.h5ad", tmp_path / "out", table=table)
    with pytest.raises(InputError, match="there is no file"):
        rp.run_screen(tmp_path / "absent.h5ad", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["norman", "adamson", "dixit", "replogle_k562", "replogle_rpe1"])
def test_named_screens_have_an_address_a_licence_and_a_cell_line(name):
    entry = datasets.registry()[name]
    assert entry["recipe"] == "screens.gears" and entry["options"]["line"] in ("K562", "RPE1")
    assert entry["licence"].startswith("UNKNOWN") and "not built by us" in entry["status"]
    (file,) = entry["files"]
    assert file["urls"][0].startswith("https://dataverse.harvard.edu/") and "sha256" not in file


# ---- CINEMA-OT

def test_cinema_ot_without_pertpy_is_one_sentence(monkeypatch):
    cells = typed_cells()
    monkeypatch.setitem(sys.modules, "pertpy.tools", None)
    with pytest.raises(InputError, match=r"pip install 'scinterp\[perturbation\]'") as told:
        pt.cinema_ot(cells, np.random.default_rng(0).normal(size=(cells.n_obs, 20)), "condition", "rest")
    assert "\n" not in str(told.value)


def test_cinema_ot_hands_over_what_it_is_given(monkeypatch):
    "A stand-in for pertpy that matches each treated cell with one untreated cell"
    seen = {}

    class Cinemaot:
        def causaleffect(self, cells, key, control, **options):
            seen.update(options, key=key, control=control)
            here = (cells.obs[key] == control).to_numpy()
            W = np.eye((~here).sum())*3
            X = cells.X.toarray()
            cells.obsm["cf"] = cells.obsm["Z"]
            return AnnData(X[~here] - X[here], obsm={"ot": W})

    monkeypatch.setitem(sys.modules, "pertpy.tools", types.SimpleNamespace(Cinemaot=Cinemaot))
    cells, Z = typed_cells(), np.random.default_rng(0).normal(size=(400, 25))
    m = pt.cinema_ot(cells, Z, "condition", "rest", threshold=.4)
    assert seen["thres"] == .4 and seen["use_rep"] == "Z" and seen["dim"] == 20 and seen["preweight_label"] == "cell_type"
    np.testing.assert_array_equal(m.weights, np.eye(200))
    np.testing.assert_array_equal(m.confounders, Z)
    assert (cells.obs.condition.to_numpy()[m.treated] == "moved").all() and (cells.obs.condition.to_numpy()[m.untreated] == "rest").all()
    e, _ = pt.type_effects(cells, "condition", "rest", "moved")
    kinds, treated = cells.obs.cell_type.to_numpy(), (cells.obs.condition == "moved").to_numpy()
    scores = rp.matched_scores(m, kinds, e, cells.X, treated, 5, 0)
    assert scores["same_type"] == 1 and scores["pearson_delta"] > .999, "matched within types: their mean effects are the changes of the types"
    worse = pt.Matched(m.effects, m.weights[:, ::-1], m.confounders, m.treated, m.untreated)
    assert np.isclose(rp.matched_scores(worse, kinds, e, cells.X, treated, 5, 0)["same_type"], .2), "turned round, only the middle type meets itself"
