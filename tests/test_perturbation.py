"""Perturbation: every baseline against a loop or scikit-learn, planted effects found again, scores against scipy, bad input refused."""
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given, settings, strategies as st
from scipy import sparse, stats
from sklearn.linear_model import Ridge, RidgeCV

from scinterp.core import DataError, InputError
from scinterp.methods import perturbation as pt
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
    e, base = pt.type_effects(cells, "condition", "rest", "moved")
    assert e.names == list("abde") and len(base) == 4


@pytest.mark.parametrize("change, error, says", [
    (lambda c: c[(c.obs.condition == "rest").to_numpy()].copy(), DataError, "no cell is 'moved' in 'condition', which has rest: two conditions"),
    (lambda c: c[(c.obs.condition == "moved").to_numpy()].copy(), DataError, "no cell is 'rest' in 'condition'"),
    (lambda c: c[c.obs.cell_type.isin(["a", "b"])].copy(), DataError, "2 cell types have 20 cells both 'rest' and 'moved': three are needed"),
    (lambda c: AnnData(c.X, obs=c.obs[["condition"]], var=c.var), InputError, "no column 'cell_type' in obs"),
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
