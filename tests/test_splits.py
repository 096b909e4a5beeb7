"""Splits: every cell in one part, every group on one side, the same cells for everybody, today and tomorrow."""
import hashlib
import json
from collections import Counter, defaultdict

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from scinterp.cells import datasets
from scinterp.cells.splits import GROUP_KINDS, PARTS, make_split, part_names, read_split, save_split
from scinterp.core import DataError

SHARED = ROOT.parent / "shared" / "data"
STORED = sorted((ROOT / "data" / "splits").glob("*/*.json"))
COLUMN = {"donor": "donor", "study": "dataset"}  # of the published files
SAME = {"human_multistudy": {"kangctrl": "kang4k"}}  # two files of one experiment, with the same donors
many = settings(max_examples=150, database=None, deadline=None)

counts = st.lists(st.lists(st.integers(0, 5), min_size=4, max_size=4), min_size=2, max_size=7)  # groups x types
cells = counts.map(lambda table: [(f"type {t}", f"g{g}" if g else "unknown") for g, row in enumerate(table) for t, n in enumerate(row) for _ in range(n)])


def ids_of(n):
    return [f"cell{i * 7919 % 1000:03d}" for i in range(n)]  # unique below 1000, not in the order of the rows


def make_or_none(*args, **kwargs):
    "A split, or None where the cells cannot be split so, which must be said as a DataError"
    try:
        return make_split(*args, **kwargs)
    except DataError:
        return None


@many
@given(cells, st.sampled_from(["random", "fewshot-1", "fewshot-3", "donor", "species"]), st.integers(0, 12))
def test_every_cell_is_in_one_part(rows, kind, seed):
    labels, groups = zip(*rows) if rows else ((), ())
    split = make_or_none(ids_of(len(rows)), labels, kind, seed, groups if kind in GROUP_KINDS else None)
    assume(split is not None)
    assert sorted(np.concatenate([getattr(split, part) for part in PARTS])) == list(range(len(rows)))
    assert len(split.train) and len(split.val) and len(split.test)
    assert set(np.array(labels)[split.test]) | set(np.array(labels)[split.val]) <= set(np.array(labels)[split.train])
    words = part_names(split)
    assert all((words[getattr(split, part)] == part).all() for part in PARTS)


@many
@given(cells, st.sampled_from(GROUP_KINDS), st.integers(0, 12))
def test_no_group_is_on_two_sides(rows, kind, seed):
    assume(rows)
    labels, groups = map(np.array, zip(*rows))
    split = make_or_none(ids_of(len(rows)), labels, kind, seed, groups)
    assume(split is not None)
    judged, chosen, trained = (set(groups[i]) for i in (np.r_[split.test, split.novel], split.val, split.train))
    assert judged == set(split.groups["test"]) and not judged & (chosen | trained)
    if split.groups["val"]:
        assert chosen == set(split.groups["val"]) and not chosen & trained
    assert "unknown" not in judged | chosen | trained
    known = set(groups) - {"unknown"}
    assert len(judged) <= max(1, round(0.2 * len(known))) and len(split.groups["val"]) <= (max(1, round(0.1 * len(known))) if len(known) >= 4 else 0)
    assert not set(labels[split.novel]) & set(labels[split.train])
    assert len(set(labels[split.test])) >= 2, "something to tell apart"


@many
@given(cells, st.integers(0, 4))
def test_few_shot_is_the_random_split_with_fewer_training_cells(rows, seed):
    labels = np.array([label for label, _ in rows])
    full = make_or_none(ids_of(len(rows)), labels, "random", seed)
    assume(full is not None)
    smaller = set()
    for k in (1, 2, 5, 1000):
        few = make_split(ids_of(len(rows)), labels, f"fewshot-{k}", seed)
        assert np.array_equal(few.test, full.test) and np.array_equal(few.val, full.val)
        assert Counter(labels[few.train]) == {t: min(k, n) for t, n in Counter(labels[full.train]).items()}
        assert smaller <= set(few.train) <= set(full.train)
        smaller = set(few.train)
    assert few.sha256 == full.sha256


@many
@given(cells, st.sampled_from(GROUP_KINDS), st.integers(0, 12), st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter_to_groups(rows, kind, seed, random):
    assume(rows)
    mixed = list(zip(ids_of(len(rows)), *zip(*rows)))
    first = make_or_none(*map(list, list(zip(*mixed))[:2]), kind, seed, [g for _, _, g in mixed])
    assume(first is not None)
    random.shuffle(mixed)
    ids, labels, groups = zip(*mixed)
    again = make_split(ids, labels, kind, seed, groups)
    assert again.sha256 == first.sha256
    part = dict(zip(ids_of(len(rows)), part_names(first)))
    assert [part[i] for i in ids] == part_names(again).tolist()


@pytest.mark.parametrize("n_groups, n_test", [(2, 1), (3, 1), (5, 1), (8, 2), (13, 3)])
def test_seeds_walk_round_the_groups(n_groups, n_test):
    groups = np.repeat([f"donor {i:02d}" for i in range(n_groups)], 20)
    labels = np.resize(["a", "b"], len(groups))
    splits = [make_split(ids_of(len(groups)), labels, "donor", seed, groups) for seed in range(n_groups * n_test)]
    assert {len(s.groups["test"]) for s in splits} == {n_test}
    first = splits[: n_groups // n_test]
    assert max(Counter(g for s in first for g in s.groups["test"]).values()) == 1, "nobody is tested twice in one round"
    assert {g for s in splits for g in s.groups["test"]} == set(groups)
    rounds = splits[: n_groups // n_test * n_test]
    assert len({frozenset(s.groups["test"]) for s in rounds}) == len(rounds), "no seed repeats another before the walk is over"
    assert all(len(s.groups["val"]) == (0 if n_groups < 4 else max(1, round(n_groups / 10))) for s in splits)


def test_two_species_in_one_table():
    human, mouse = (ad.AnnData(np.ones((60, 3), np.float32), obs=pd.DataFrame({"cell_type": np.resize(types, 60)}, index=[f"{s}{i}" for i in range(60)]))
                    for s, types in (("h", ["B cell", "T cell", "platelet"]), ("m", ["B cell", "T cell"])))
    both = ad.concat({"human": human, "mouse": mouse}, label="species")
    on_mouse, on_human = (datasets.split(both, "species", seed) for seed in (0, 1))
    assert set(both.obs.species.iloc[on_mouse.test]) == {"mouse"} and set(both.obs.species.iloc[on_mouse.train]) == {"human"}
    assert on_human.groups["test"] == ["human"] and set(both.obs.cell_type.iloc[on_human.novel]) == {"platelet"} and len(on_human.novel) == 20
    with pytest.raises(DataError, match="use kind='random'"):
        datasets.split(both[both.obs.species == "human"].copy(), "species")


def test_key_chooses_the_column_and_the_registry_merges_groups(monkeypatch, tmp_path):
    cells = datasets.load("demo")
    cells.obs["batch"] = np.resize(["one", "two", "three", "four", "five"], cells.n_obs)
    monkeypatch.setenv("SCINTERP_CACHE", str(tmp_path))
    monkeypatch.setattr(datasets, "registry", lambda: {"demo": {"study": "batch", "same_study": {"two": "one"}}})
    split = datasets.split(cells, "study")
    assert {frozenset(cells.obs["batch"].iloc[i]) & {"one", "two"} for i in (split.train, split.val, split.test)} == {frozenset(), frozenset({"one", "two"})}
    assert datasets.split(cells, "study").sha256 == split.sha256 and len(list(tmp_path.rglob("study-0.json"))) == 1
    other = datasets.split(cells, "sample", key="batch")
    assert set(other.groups["test"]) < set(cells.obs["batch"]) and not list(tmp_path.rglob("sample-0.json")), "a key of one's own is not stored"
    cells.obs["batch"] = cells.obs["batch"].to_numpy()[::-1]
    with pytest.raises(DataError, match="another study column"):
        datasets.split(cells, "study")


def test_embryos_of_another_stage(monkeypatch, tmp_path):
    "The atlas of mouse embryos is split by stage under its name: stored, compared, and samples that pool stages stay out"
    monkeypatch.setenv("SCINTERP_CACHE", str(tmp_path))
    stages = np.resize(["E6.5", "E7.0", "E7.5", "E8.0", "E8.5", "mixed_gastrulation"], 120)
    embryos = ad.AnnData(np.ones((120, 2), np.float32), uns={"scinterp_source": {"name": "mouse-13k", "registered": True}},
                         obs=pd.DataFrame({"cell_type": np.resize(["Gut"] * 6 + ["PGC"] * 6, 120), "stage": stages}, index=ids_of(120)))
    splits = [datasets.split(embryos, "stage", seed) for seed in range(5)]
    assert {s.groups["test"][0] for s in splits} == {"E6.5", "E7.0", "E7.5", "E8.0", "E8.5"}
    for seed, split in enumerate(splits):
        assert set(stages[split.test]) == set(split.groups["test"]) and not set(stages[split.test]) & set(stages[split.train])
        assert set(stages[split.unused]) == {"mixed_gastrulation"} and len(split.unused) == 20
        assert (tmp_path / "splits" / "mouse-13k" / f"stage-{seed}.json").is_file() and datasets.split(embryos, "stage", seed).sha256 == split.sha256
    embryos.obs["stage"] = stages[::-1]
    with pytest.raises(DataError, match="another stage column"):
        datasets.split(embryos, "stage")


def test_sha256_is_that_of_the_committed_runs(tmp_path):
    runs = [json.loads(p.read_text()) for p in sorted((ROOT / "data" / "results").rglob("run.json"))]
    identities = [run["identity"] for run in runs if "experiment" in run.get("identity", {})]  # runs at the level of genes have no cells to split
    assert identities
    for identity in identities:
        for seed, sha256 in identity["sha256"]["split"].items():
            stored = ROOT / "data" / "splits" / identity["experiment"]["dataset"] / f"{identity['experiment']['split']}-{seed}.json"
            assert json.loads(stored.read_text())["sha256"] == sha256


def test_sha256_by_hand():
    labels = np.resize(["a", "b", "c"], 40)
    ids = np.array(ids_of(40))
    split = make_split(ids, labels, seed=1)
    by_hand = lambda *parts: hashlib.sha256(json.dumps(parts, separators=(",", ":")).encode()).hexdigest()
    now = by_hand(sorted(zip(ids.tolist(), labels.tolist())))
    assert split.cells_sha256 == now
    assert split.sha256 == by_hand(now, sorted(ids[split.val].tolist()), sorted(ids[split.test].tolist()))


@pytest.mark.parametrize("change", ["truncated", "seed", "parts", "not json", "a list", "missing"])
def test_a_file_that_was_altered_is_refused(tmp_path, change):
    ids, labels = ids_of(30), np.resize(["a", "b"], 30)
    save_split(path := tmp_path / "random-0.json", make_split(ids, labels), ids)
    record = json.loads(whole := path.read_text())
    if change == "missing":
        path.unlink()
    else:
        path.write_text({"truncated": whole[: len(whole) // 2], "not json": "PK\x03\x04", "a list": "[1]"}.get(change) or json.dumps(
            record | {"seed": {"seed": 1}, "parts": {"parts": record["parts"][::-1]}}[change]))
    with pytest.raises(DataError, match="restore it, or make a new split"):
        read_split(path, ids, labels)


def test_what_is_stored_is_small_and_complete():
    assert sum(p.stat().st_size for p in STORED) < 1_500_000
    seeds = defaultdict(list)
    for path in STORED:
        kind, seed = path.stem.rsplit("-", 1)
        seeds[path.parent.name, kind].append(int(seed))
    assert all(sorted(s) == list(range(10 if kind == "species" else 5)) for (_, kind), s in seeds.items())
    assert {("demo", "random"), ("human_pbmc_kang_8donors_1287genes", "donor")} <= set(seeds)
    for name in ("human_multistudy", "mouse_multistudy"):
        assert {kind for n, kind in seeds if n == name} == {"random", "study", "fewshot-1", "fewshot-5", "fewshot-20"}


@pytest.mark.parametrize("name", sorted({p.parent.name for p in STORED}))
def test_stored_splits_are_remade_bit_for_bit(name, tmp_path):
    if name.endswith("human_mouse"):
        pytest.skip("joint sets are compared in test_joint.py")
    if name == "demo":
        obs = datasets.load("demo").obs
    elif (path := SHARED / f"{name}.h5ad").is_file():
        obs = ad.read_h5ad(path, backed="r").obs
    else:
        pytest.skip(f"{name}.h5ad is not here")
    for path in (p for p in STORED if p.parent.name == name):
        kind, seed = path.stem.rsplit("-", 1)
        groups = obs[COLUMN[kind]].astype(str).replace(SAME.get(name, {}) if kind == "study" else {}) if kind in GROUP_KINDS else None
        stored, made = read_split(path, obs.index, obs.cell_type, groups), make_split(obs.index, obs.cell_type, kind, int(seed), groups)
        assert stored.sha256 == made.sha256 and all(np.array_equal(getattr(stored, part), getattr(made, part)) for part in PARTS)
        save_split(tmp_path / path.name, made, obs.index)
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()
