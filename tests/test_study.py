"""Studies: what is killed goes on, what is recorded is not run again, and what was altered is noticed."""
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from scinterp.cells.splits import make_split, part_names
from scinterp.core import DataError, InputError, digest
from scinterp.evaluate.metrics import score_table, scores
from scinterp.methods.baselines import Majority
from scinterp.run import plans, stored as stored_arms, study as s
from scinterp.run.experiment import METHODS, Entry

PLANS = (plans.Plan("majority"), plans.Plan("knn-pca", dict(n_components=5)), plans.Plan("knn-pca[k=3]", dict(n_components=5, k=3)), plans.Plan("knn-pca[few]", dict(n_components=5), caps=dict(train_per_type=4)))
TOY = plans.Study("toy", {"S": plans.Setting("S", "demo", min_cells=20, caps=dict(train=200, test=60))}, {p.label: p for p in PLANS}, dict(source="bundled", encoder="minilm"), seeds=(0, 1))
EVERY = list(TOY.plans)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    "One run of everything"
    return s.run_study(TOY, "S", EVERY, out=tmp_path_factory.mktemp("whole"), say=str)


@pytest.fixture
def own(whole, tmp_path):
    "A copy of it to spoil"
    return shutil.copytree(whole, tmp_path / "S")


def bytes_of(folder):
    return (folder / "predictions.jsonl.xz").read_bytes()


def timeless(folder):
    return pd.read_csv(folder / "results.csv").drop(columns="seconds")


def made(folder):
    return {k: d.record["made"] for k, d in stored_arms.read_stored(folder).arms.items()}


# what is run


def test_the_same_arms_in_another_order_give_the_same_files(whole, tmp_path):
    again = s.run_study(TOY, "S", EVERY[::-1], seeds=[1, 0], by="method", out=tmp_path, say=str)
    assert bytes_of(again) == bytes_of(whole)
    pd.testing.assert_frame_equal(timeless(again), timeless(whole))


def test_scores_are_those_of_a_plain_loop(whole):
    stored = stored_arms.read_stored(whole)
    values = stored.results.query("metric == 'macro_f1'").set_index(["method", "control", "seed"]).value
    for key, cells in stored.predictions.groupby(["method", "control", "seed"]):
        assert values[key] == pytest.approx(scores(cells.true, cells.predicted)["macro_f1"], abs=1e-5)


def test_two_halves_make_a_whole(whole, tmp_path):
    one = s.run_study(TOY, "S", EVERY[:2], out=tmp_path / "one", say=str)
    two = s.run_study(TOY, "S", EVERY[1:], out=tmp_path / "two", say=str)
    stored_arms.merge_stored(one, two)
    assert bytes_of(one) == bytes_of(whole)
    pd.testing.assert_frame_equal(timeless(one), timeless(whole))
    lines = []
    s.run_study(TOY, "S", EVERY, out=tmp_path / "one", say=lines.append)
    assert lines == ["S: 8 of 8 arms are done"]


def test_halves_that_contradict_each_other_are_not_merged(whole, own, tmp_path):
    altered = consistently_altered(own, ("majority", "", 0))
    with pytest.raises(InputError, match="both folders hold majority, seed 0, with different answers"):
        stored_arms.merge_stored(altered, whole)
    other = s.run_study(replace(TOY, settings={"S": replace(TOY.settings["S"], caps=dict(test=50))}), "S", ["majority"], seeds=[0], out=tmp_path / "other", say=str)
    with pytest.raises(InputError, match="of another setting"):
        stored_arms.merge_stored(other, whole)


def test_changed_settings_run_only_what_changed(own):
    changed = replace(TOY, plans=TOY.plans | {"knn-pca": plans.Plan("knn-pca", dict(n_components=7))})
    before = made(own)
    lines = []
    s.run_study(changed, "S", EVERY, out=own.parent, say=lines.append)
    assert lines[0] == "S: 6 of 8 arms are done"
    after = stored_arms.read_stored(own).arms
    assert {k for k, d in after.items() if d.record["settings"] != TOY.plans[k[0]].settings} == {("knn-pca", "", 0), ("knn-pca", "", 1)}
    assert {k: v for k, v in made(own).items() if k[0] != "knn-pca"} == {k: v for k, v in before.items() if k[0] != "knn-pca"}


def test_a_changed_default_runs_again_and_a_new_setting_does_not(own, monkeypatch):
    class Other(Majority):
        def __init__(self, depth=1):
            self.depth = depth

    monkeypatch.setitem(METHODS, "majority", Entry(f"{__name__}:Other", table=False))
    monkeypatch.setattr(sys.modules[__name__], "Other", Other, raising=False)
    bench = s.Bench(TOY, TOY.settings["S"])
    assert bench.is_done(stored_arms.read_stored(own), TOY.plans["majority"], "", 0)  # `depth` is new
    monkeypatch.setitem(METHODS, "knn-pca", Entry("scinterp.methods.baselines:KNNPCA", table=False, fixed=dict(k=11)))  # k was 10
    assert not bench.is_done(stored_arms.read_stored(own), TOY.plans["knn-pca"], "", 0)


def test_other_code_does_not_undo_what_was_run(own, monkeypatch):
    monkeypatch.setattr(s, "code_sha256", lambda: "of other code")
    lines = []
    s.run_study(TOY, "S", EVERY, out=own.parent, say=lines.append)
    assert lines == ["S: 8 of 8 arms are done"]
    assert {d.record["environment"]["code_sha256"] for d in stored_arms.read_stored(own).arms.values()} != {"of other code"}
    assert s.verify_study(TOY, "S", "majority", out=own.parent)["code"] == "changed"


def test_outdated_arms_are_named_and_pruned(own):
    lines = []
    smaller = replace(TOY, plans={k: p for k, p in TOY.plans.items() if k != "knn-pca[few]"})
    s.run_study(smaller, "S", ["majority"], out=own.parent, say=lines.append)
    assert "2 recorded arms are not those of today's config" in lines[1] and "knn-pca[few], seed 0" in lines[1]
    assert s.prune_study(smaller, "S", own.parent) == [("knn-pca[few]", "", 0), ("knn-pca[few]", "", 1)]
    assert len(stored_arms.read_stored(own).arms) == 6


def test_an_arm_that_cannot_be_run_does_not_stop_the_others(tmp_path):
    broken = replace(TOY, plans=TOY.plans | {"knn-pca": plans.Plan("knn-pca", dict(depth=3))})
    with pytest.raises(InputError, match="could not be run: knn-pca, seed 0"):
        s.run_study(broken, "S", ["knn-pca", "majority"], seeds=[0], out=tmp_path, say=str)
    assert set(stored_arms.read_stored(tmp_path / "S").arms) == {("majority", "", 0)}


# what is killed

KILLED = """
import sys, time
from dataclasses import replace
sys.path.insert(0, {tests!r})
import test_study as t
real = t.s.Bench.run
def slow(self, *arm): done = real(self, *arm); print('fitted', flush=True); time.sleep({pause}); return done
t.s.Bench.run = slow
t.s.run_study(t.TOY, 'S', t.EVERY, out={out!r}, say=lambda line: print(line, flush=True))
"""


@pytest.mark.slow(20)
@pytest.mark.parametrize("pause", [0, 0.05, 0.3])
def test_a_run_that_is_killed_goes_on(whole, tmp_path, pause):
    code = KILLED.format(tests=str(ROOT / "tests"), pause=pause, out=str(tmp_path))
    run = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    seen = 0
    for line in run.stdout:
        seen += line.startswith("fitted")
        if seen == 3:
            time.sleep(pause / 2)
            run.send_signal(signal.SIGKILL)
            break
    run.wait(), run.stdout.close()
    kept = stored_arms.read_stored(tmp_path / "S").arms
    assert 2 <= len(kept) <= 8
    before = made(tmp_path / "S")
    again = s.run_study(TOY, "S", EVERY, out=tmp_path, say=str)
    assert bytes_of(again) == bytes_of(whole)
    assert {k: v for k, v in made(again).items() if k in before} == before  # nothing was run twice
    assert {p.name for p in again.iterdir()} == set(stored_arms.FILES)


@pytest.mark.parametrize("written", [1, 2])
def test_a_write_that_is_cut_between_files_loses_that_arm_only(whole, own, monkeypatch, written):
    "The first one or two of the three files are new, the rest old"
    stored = stored_arms.read_stored(own)
    del stored.arms["majority", "", 1]
    stored_arms.write_stored(own, stored)
    for name in stored_arms.FILES[:written]:
        shutil.copy(whole / name, own / name)
    assert set(stored_arms.read_stored(own).arms) == set(stored.arms)
    assert bytes_of(s.run_study(TOY, "S", EVERY, out=own.parent, say=str)) == bytes_of(whole)


# what is damaged or altered


@pytest.mark.parametrize("name, harm", [(n, h) for n in stored_arms.FILES for h in ("gone", "cut", "empty", "nonsense") if (n, h) != ("run.json", "gone")])  # without its manifest a folder was never run
def test_damaged_files_are_one_sentence(own, name, harm):
    path = own / name
    data = path.read_bytes()
    {"gone": path.unlink, "cut": lambda: path.write_bytes(data[: len(data) // 2]), "empty": lambda: path.write_bytes(b""), "nonsense": lambda: path.write_bytes(b"\xff\x00 nonsense")}[harm]()
    with pytest.raises(InputError) as e:
        stored_arms.read_stored(own)
    assert "restore" in str(e.value) and "\n" not in str(e.value)


def test_a_manifest_of_something_else_is_refused(own):
    (own / "run.json").write_text('{"arms": [{"method": "majority"}]}')
    with pytest.raises(InputError, match="does not hold the files of a study"):
        stored_arms.read_stored(own)


def test_an_altered_answer_is_noticed_on_reading(own):
    import lzma

    lines = lzma.open(own / "predictions.jsonl.xz", "rt").read().splitlines()
    arm = json.loads(lines[-1])
    arm["predicted"][0] += 1
    with lzma.open(own / "predictions.jsonl.xz", "wt") as f:
        f.write("\n".join([*lines[:-1], json.dumps(arm)]) + "\n")
    with pytest.raises(InputError, match="were altered after they were written"):
        stored_arms.read_stored(own)


def test_an_altered_score_is_noticed_by_check(own):
    stored_arms.check_study(own)
    table = pd.read_csv(own / "results.csv", keep_default_na=False)
    table.loc[0, "value"] += 0.01
    table.to_csv(own / "results.csv", index=False)
    with pytest.raises(InputError, match="does not follow from its answers"):
        stored_arms.check_study(own)


def consistently_altered(folder, key, n=2):
    "The folder with `n` answers of an arm changed, and every hash and score made to fit"
    stored = stored_arms.read_stored(folder)
    done = stored.arms[key]
    types = len(stored.about["types"])
    done.answers["predicted"][:n] = [(t + 1) % types for t in done.answers["predicted"][:n]]
    done.record["answers_sha256"] = digest(done.answers)
    names = np.array(stored.about["types"])
    again = score_table(names[done.answers["true"]], names[done.answers["predicted"]]).set_index("metric")
    done.rows = done.rows.set_index("metric").assign(**{c: again[c] for c in ("value", "lo", "hi")}).reset_index()[list(done.rows)].dropna(subset="value")
    stored_arms.write_stored(folder, stored)
    return folder


def test_verify_fails_loudly_on_an_altered_answer(own):
    assert s.verify_study(TOY, "S", "knn-pca", seed=1, out=own.parent)["differ"] == 0
    stored_arms.check_study(consistently_altered(own, ("knn-pca", "", 1)))  # at one with itself
    with pytest.raises(InputError, match=r"knn-pca, seed 1 of S does not come out as recorded: 2 of 60 cells differ"):
        s.verify_study(TOY, "S", "knn-pca", seed=1, out=own.parent)
    assert s.verify_study(TOY, "S", "knn-pca", seed=1, out=own.parent, tolerance=0.05)["differ"] == 2
    assert s.main(["--setting", "S", "--methods", "knn-pca", "--out", str(own.parent), "--verify"], TOY, str) == 1


def test_a_map_is_of_the_arm_that_is_recorded(own):
    s.map_study(TOY, "S", ["knn-pca"], seed=1, out=own.parent, say=str)
    before = s.study_maps(own)
    assert set(before.embedding) == {"knn-pca"} and len(before) == 60 and before.cell_type.notna().all()
    consistently_altered(own, ("knn-pca", "", 1))
    with pytest.raises(InputError, match="does not come out as recorded .2 of 60 cells differ., so its map"):
        s.map_study(TOY, "S", ["knn-pca"], seed=1, out=own.parent, say=str)
    pd.testing.assert_frame_equal(s.study_maps(own), before)


def test_loadings_come_from_training_cells_and_controls_leave_them():
    plan = plans.Plan("genept-w[both]", vectors="text+loadings", controls=("permuted-text",))
    bench = s.Bench(replace(TOY, plans={plan.label: plan}), TOY.settings["S"])
    split = bench.split(plan, 0)
    dense = bench.cells[split.train].X.toarray().astype(float)
    first = np.linalg.svd(dense - dense.mean(0), full_matrices=False)[2][0]
    learnt = bench.loadings(plan, 0).vectors[:, 0]
    assert abs(np.corrcoef(first, learnt)[0, 1]) > 0.999
    words = bench.text_table(plan).dim
    with_, without = (bench.method(plan, c, 0).table.vectors for c in ("", "permuted-text"))
    assert np.array_equal(with_[:, words:], without[:, words:]) and not np.array_equal(with_[:, :words], without[:, :words])
    assert bench.identity(plan, "", 0) != bench.identity(replace(plan, vectors="text"), "", 0)


def test_verify_refuses_what_was_run_on_something_else(own):
    other = replace(TOY, settings={"S": replace(TOY.settings["S"], caps=dict(test=40))})
    with pytest.raises(InputError, match="was run on other cells, splits or texts"):
        s.verify_study(other, "S", "majority", out=own.parent)


# caps


@settings(database=None, deadline=None, max_examples=60)
@given(st.lists(st.integers(3, 40), min_size=2, max_size=6), st.integers(0, 9), st.dictionaries(st.sampled_from(plans.CAPS), st.integers(1, 60)), st.integers(0, 12))
def test_caps_never_move_a_cell(sizes, seed, caps, min_cells):
    labels = np.repeat([f"t{i}" for i in range(len(sizes))], sizes)
    ids = [f"c{i}" for i in np.random.default_rng(seed).permutation(len(labels))]
    stored = make_split(ids, labels, "random", seed)
    try:
        few = plans.capped_split(stored, ids, labels, min_cells, caps)
    except DataError as e:
        assert "raise the cap" in str(e)
        return
    before, after = part_names(stored), part_names(few)
    assert set(after[before != after]) <= {"unused"}
    large = {t for t, n in zip(*np.unique(labels, return_counts=True)) if n >= min_cells}
    for part in ("train", "val", "test"):
        mine = labels[getattr(few, part)]
        whole = [t for t in labels[getattr(stored, part)] if t in large]
        assert set(mine) == set(whole), "a type was lost, or one too small is left"
        per_type = caps.get(f"{part}_per_type", 10**9)
        assert max(np.unique(mine, return_counts=True)[1], default=0) <= per_type
        left = sum(min(whole.count(t), per_type) for t in set(whole))
        assert len(mine) == min(left, caps.get(part, 10**9))
    assert (few.sha256 == stored.sha256) == (after == before).all()


def test_every_setting_of_the_study_can_be_split():
    study = plans.load_study()
    assert set(study.settings) == {"S1", "S2", "S3", "S5b", "S6_5", "S6_20", "S1sub", "S2sub", "S3sub", "S5bsub"}
    data = os.environ.get("SCINTERP_DATA")
    if not data:
        pytest.skip("SCINTERP_DATA is not set: the real cells are not here")
    bench = s.Bench(study, study.settings["S3sub"])
    split = bench.split(study.plans["lr-hvg"], 0)
    assert [split.sizes[p] for p in ("train", "val", "test")] == [2000, 400, 1000]
    donors = bench.cells.obs["donor"].to_numpy(str)
    assert not set(donors[split.test]) & set(donors[split.train])
