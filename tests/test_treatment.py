"""In-silico treatment: the closed forms against embedding the cells again, on made cells of every awkward kind."""
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given, settings, strategies as st
from scipy import sparse
from scipy.spatial import distance

from scinterp.core import DataError
from scinterp.methods import treatment as tr
from scinterp.text.gene_tables import GeneTable

quick = settings(database=None, deadline=None, max_examples=25)


def made(seed, n=12, m=9, d=4, empty=False, lone=False):
    "A contrast and a gene matrix, with a gene without vector and one that nobody expresses; `lone`: a cell with one gene"
    rng = np.random.default_rng(seed)
    X = rng.gamma(1, 2, (n, m)) * (rng.random((n, m)) < .5)
    X[:, 2] = 0
    X[:, 0] += .1
    if lone: X[1] = 0; X[1, 3] = 2.
    if empty: X[0] = 0
    sick = np.arange(n) % 2 == 1
    G = rng.normal(size=(m, d))
    G[4] = 0
    return tr.Contrast(sparse.csr_matrix(X), sick, [f"g{i}" for i in range(m)], ("well", "sick"), np.full(n, ""), None), G


def embedded(X, G, mode):
    "Cells embedded one by one; an empty cell is at zero"
    return np.array([(x @ G)/len(x) if mode == "aa" else (x @ G)/x.sum() if x.sum() else 0*G[0] for x in X])


def by_hand(con, G, mode, zeroed):
    cosine = lambda Z: 1 - distance.cosine(Z[con.sick].mean(0), Z[~con.sick].mean(0))
    now, out = cosine(embedded(con.X.toarray(), G, mode)), []
    for g in range(len(con.genes)):
        X = con.X.toarray()
        X[con.sick | (zeroed == "both"), g] = 0
        out.append(cosine(embedded(X, G, mode)) - now)
    return np.array(out)


@quick
@given(st.integers(0, 10**6), st.sampled_from(tr.MODES), st.sampled_from(tr.ZEROED), st.booleans(), st.booleans())
def test_closed_forms_are_what_embedding_again_gives(seed, mode, zeroed, empty, lone):
    con, G = made(seed, empty=empty, lone=lone)
    np.testing.assert_allclose(tr.target_scores(con, G, mode, zeroed), by_hand(con, G, mode, zeroed), atol=1e-10)


@quick
@given(st.integers(0, 10**6), st.sampled_from(tr.MODES), st.sampled_from(tr.ZEROED))
def test_without_text_every_gene_is_a_dimension(seed, mode, zeroed):
    con, _ = made(seed)
    dense = np.eye(len(con.genes))
    np.testing.assert_allclose(tr.target_scores(con, tr.gene_matrix(None, con.genes), mode, zeroed), by_hand(con, dense, mode, zeroed), atol=1e-10)


@quick
@given(st.integers(0, 10**6), st.sampled_from(tr.ZEROED))
def test_an_unchanged_gene_scores_as_in_a_matrix_where_it_is_unchanged(seed, zeroed):
    "The gene's column is replaced by its mean over all cells, and everything is computed again"
    con, G = made(seed)
    got = tr.unchanged_scores(con, G, "aa", zeroed)
    for g in (0, 1, 5):
        X = con.X.toarray()
        X[:, g] = X[:, g].mean()
        flat = tr.Contrast(sparse.csr_matrix(X), con.sick, con.genes, con.names, con.types, None)
        np.testing.assert_allclose(got[g], by_hand(flat, G, "aa", zeroed)[g], atol=1e-10)


def test_the_permutation_p_is_that_of_a_loop():
    "Every deal of every matched gene, computed by embedding the cells again"
    con, G = made(5, n=16, m=6)
    k, deals = 3, 7
    p, like = tr.permutation_p(con, G, k=k, n_perm=deals, seed=2)
    X, mean, above = con.X.toarray(), con.X.toarray().mean(0), np.zeros(6)
    seen = by_hand(con, G, "aa", "disease")
    for sick in tr.dealt_labels(con, deals, 2):
        for g in range(6):
            for h in like[g]:
                swapped = X.copy()
                scale = mean[g]/mean[h] if mean[h] else 0
                for side, now in ((con.sick, sick), (~con.sick, ~sick)):
                    swapped[side, g] = X[now, h].mean()*scale  # the mean of the gene on this side is that of h under the deal
                flat = tr.Contrast(sparse.csr_matrix(swapped), con.sick, con.genes, con.names, con.types, None)
                above[g] += by_hand(flat, G, "aa", "disease")[g] >= seen[g] - 1e-13
    np.testing.assert_allclose(p, (1 + above)/(1 + k*deals), atol=1/(1 + k*deals) + 1e-12)


def donors_of(con, crossed):
    n = len(con.sick)
    return (np.arange(n)//2 % 4).astype(str) if crossed else np.array([f"{s}{i % 4}" for i, s in zip(np.arange(n)//2, con.sick)])


@pytest.mark.parametrize("crossed", [True, False])
def test_donors_are_drawn_and_dealt_as_a_whole(crossed):
    con, _ = made(1, n=48)
    con = tr.Contrast(con.X, con.sick, con.genes, con.names, con.types, donors_of(con, crossed))
    for w in tr.drawn_weights(con, 20):
        assert all(len(set(w[con.donors == d])) == 1 for d in set(con.donors))
        assert w[con.sick].any() and w[~con.sick].any()
    for deal in tr.dealt_labels(con, 20):
        for d in set(con.donors):
            own = con.donors == d
            assert len(set(deal[own] ^ con.sick[own])) == 1
        if not crossed: assert len({d for d in con.donors[deal]}) == 4


def test_with_donors_the_interval_is_wider_where_donors_differ():
    "Cells of a donor share a shift of one gene: an interval over cells does not see it, one over donors does"
    rng = np.random.default_rng(0)
    donor = np.repeat(np.arange(10), 40)
    sick = donor >= 5
    X = rng.poisson(3, (400, 30)).astype(float)
    X[:, 0] = rng.poisson(np.exp(rng.normal(1, .8, 10))[donor]) + 3*sick
    cells = AnnData(sparse.csr_matrix(X, dtype=np.float32), obs=pd.DataFrame(dict(condition=np.where(sick, "sick", "well"), donor=donor.astype(str)), index=np.arange(400).astype(str)),
                    var=pd.DataFrame(index=[f"g{i}" for i in range(30)]))
    table = GeneTable.from_vectors(rng.normal(size=(30, 8)), list(cells.var_names), "human", "made up")
    args = (cells, table, "condition", "well", "sick")
    width = lambda t: (t.hi - t.lo)[t.gene == "g0"].iloc[0]
    over_cells, over_donors = tr.treat(*args, n_perm=5), tr.treat(*args, donor_key="donor", n_perm=5)
    assert set(over_cells.drawn) == {"cells"} and set(over_donors.drawn) == {"donors"}
    assert width(over_donors) > 2*width(over_cells)
    p = lambda key: tr.treat(*args, donor_key=key, k=1, n_perm=60, n_boot=0).set_index("gene").p["g0"]  # matched with itself alone
    assert p("donor") > 2*p(None)


def test_no_cells_no_guess():
    con, G = made(0)
    nothing = tr.Contrast(con.X.multiply(con.sick[:, None]).tocsr(), con.sick, con.genes, con.names, con.types, None)
    with pytest.raises(DataError, match="express nothing"): tr.target_scores(nothing, G)


def test_false_discovery_rates_by_hand():
    p = np.array([.001, .2, .03, .5, .04])
    order = np.argsort(p)
    q = np.minimum.accumulate((p[order]*5/np.arange(1, 6))[::-1])[::-1]
    np.testing.assert_allclose(tr._adjusted(p)[order], q)
