"""The interpreter beyond its notebooks: other language models, every way to tune, kills, memory, and the plain loop."""
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from scinterp.cells.datasets import load, split
from scinterp.core import DataError, InputError, ModelError
from scinterp.methods.backbones import layer_stack
from scinterp.methods.gene_contributions import contributions, gene_ranking, occlusion
from scinterp.methods.hybrid import ScInterpreterHybrid
from scinterp.methods.protocol import load as load_method
from scinterp.methods.reader import Reader
from scinterp.methods.scinterpreter import PRESETS, ScInterpreter, ScReader, preset, tuned_parameters
from scinterp.methods.training import Plan, Sequences, Trainer, length_buckets
from scinterp.text.gene_tables import GeneTable

quick = settings(database=None, deadline=None, max_examples=40)
TINY = dict(backbone="tiny-llama", n_genes=12, epochs=2)


@pytest.fixture(scope="module")
def cells():
    adata = load("demo")
    return adata, split(adata), GeneTable.build(adata)


@pytest.fixture(scope="module")
def few(cells):
    adata, parts, table = cells
    return adata[parts.train[::6]].copy(), adata[parts.val].copy(), adata[parts.test[::4]].copy(), table


def fitted(few, method=ScInterpreter, **settings):
    train, validation, _, table = few
    return method(table, **{**TINY, **settings}).fit(train, validation=validation)


# ---- other language models and every choice


@pytest.mark.parametrize("method", [ScInterpreter, ScReader])
@pytest.mark.parametrize("choice", [{}, dict(order="prompt_first"), dict(pooling="mean"), dict(rank="hvg"), dict(value_weight="append"), dict(backbone_layers=1), dict(backbone="none"),
                                    dict(class_weight="balanced"), dict(optimiser="adam", decay="constant", warmup=3), dict(accumulate=2), dict(token_scale=1.0)])
def test_every_choice_runs_and_is_a_choice(few, method, choice):
    made = fitted(few, method, **choice)
    proba = made.predict_proba(few[2]).to_numpy()
    np.testing.assert_allclose(proba.sum(1), 1, atol=1e-6)
    if choice:
        assert not np.array_equal(proba, fitted(few, method).predict_proba(few[2]).to_numpy())


@pytest.mark.parametrize("name", [n for n in PRESETS if n != "small"])
def test_the_presets_of_the_papers_run(few, name):
    "With the smallest language model and few genes in the place of Llama-2 and 2,048"
    train, validation, test, table = few
    made = preset(ScReader, name, table, backbone="tiny-llama", n_genes=12, epochs=1, warmup=2).fit(train, validation=validation)
    assert made.reader_.projector[0].weight.dtype == torch.float32 and len(made.history_) == 1
    assert sum(isinstance(m, torch.nn.Linear) for m in made.reader_.projector) == 5 and sum(isinstance(m, torch.nn.Linear) for m in made.reader_.heads[0]) == 5
    assert made.reader_.class_token.requires_grad == (name == "as_described")
    assert made.predict(test).isin(made.classes_).all()


def test_a_first_token_is_refused_where_it_would_see_nothing(few):
    with pytest.raises(InputError, match="tiny-llama only looks back"):
        fitted(few, pooling="first")


def test_more_genes_than_positions(few):
    with pytest.raises(ModelError, match="minilm has 512 positions, 13 of them .* pass n_genes=499 or less"):
        fitted(few, backbone="minilm", n_genes=600)


# ---- tuning


@pytest.mark.parametrize("tune", ["norms", "last", "lora"])
def test_tuning_changes_the_backbone_and_is_kept(few, tmp_path, tune):
    if tune == "lora":
        pytest.importorskip("peft")
    made = fitted(few, tune=tune, backbone_precision="fp32")
    start = ScInterpreter(few[3], **TINY, backbone_precision="fp32")._load_backbone().model.state_dict()
    now = {n: p.detach() for n, p in made.reader_.backbone[0].model.named_parameters()}
    same = {n for n, p in now.items() if torch.equal(p, start.get(n.replace(".base_layer", ""), p.new_zeros(0)))}
    assert set(now) - same == set(made.tuned_) != set()
    made.save(tmp_path / "m")
    np.testing.assert_array_equal(load_method(tmp_path / "m").predict_proba(few[2]).to_numpy(), made.predict_proba(few[2]).to_numpy())


def test_the_last_layer_is_that_of_a_backbone_left_early(few):
    made = fitted(few, tune="last", backbone_layers=1, backbone_precision="fp32")
    (backbone,) = made.reader_.backbone
    assert made.tuned_ and {id(p) for p in made.tuned_.values()} == {id(p) for p in layer_stack(backbone.model)[1][-1].parameters()}


@pytest.mark.parametrize("kind, tune", [("gpt2", "norms"), ("gpt2", "last"), ("gpt2", "lora"), ("distilbert", "norms"), ("distilbert", "lora")])
def test_architectures_that_name_things_otherwise_are_tuned_too(kind, tune):
    config = transformers.AutoConfig.for_model(kind, vocab_size=64, **{"gpt2": dict(n_embd=16, n_layer=2, n_head=2), "distilbert": dict(dim=16, hidden_dim=32, n_layers=2, n_heads=2)}[kind])
    model = transformers.AutoModel.from_config(config)
    chosen = tuned_parameters(SimpleNamespace(model=model, dtype=torch.float32, name=kind), tune)
    assert chosen and all(p.requires_grad for p in chosen.values())
    if tune == "norms":
        assert {p for p in chosen.values()} == {p for m in model.modules() if isinstance(m, torch.nn.LayerNorm) for p in m.parameters()}


@pytest.mark.parametrize("tune, says", [("norms", "nothing that tune='norms' could train"), ("last", "nothing that tune='last'"), ("lora", "is not known, so tune='lora' cannot be")])
def test_a_backbone_with_nothing_to_tune(tune, says):
    bare = SimpleNamespace(model=torch.nn.Sequential(torch.nn.Linear(2, 2)), dtype=torch.float32, name="bare")
    with pytest.raises(InputError, match=says):
        tuned_parameters(bare, tune)


def test_a_backbone_in_half_precision_is_not_tuned(few):
    with pytest.raises(InputError, match="pass backbone_precision='fp32'"):
        fitted(few, tune="last", backbone_precision="bf16")


def test_nothing_of_the_backbone_is_trained_otherwise(few):
    made = fitted(few)
    assert not any(p.requires_grad for p in made.reader_.backbone[0].model.parameters()) and not any(n.startswith("backbone") for n in made._state())


# ---- the plain loop


def test_one_epoch_is_that_of_the_plain_loop(few):
    "Every cell padded, every gene projected, all states computed, plain PyTorch: the same weights after an epoch"
    train, _, _, table = few
    settings = dict(backbone="tiny-llama", n_genes=240, epochs=1, batch_size=16, backbone_precision="fp32", attention="eager")
    made = ScInterpreter(table, **settings).fit(train)
    start = ScInterpreter(table, **settings)
    start.classes_, start.genes_, start.gene_mass_, start.question_classes_ = made.classes_, made.genes_, made.gene_mass_, {}
    torch.manual_seed(0)
    start._build([len(made.classes_)])
    reader, model = start.reader_, start.reader_.backbone[0].model
    start.order_ = made.order_
    sequences = start._sequences(start._expression(train))
    y = torch.from_numpy(np.searchsorted(made.classes_, train.obs["cell_type"].astype(str)))
    parameters = [p for p in reader.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.01)
    batches = length_buckets(sequences.lengths, 16, (0, 0))
    assert (sequences.lengths < 240).any() and (sequences.lengths == 240).any()  # some are padded, some are not
    plan = Plan(epochs=1)
    for step, rows in enumerate(batches):
        ids = sequences.ids[rows]
        losses = []
        for cell, label in zip(ids, y[rows]):  # one by one: no padding at all
            genes = reader.projector(reader.E[cell[cell >= 0]])
            embeds = torch.cat([genes, reader.prompt, reader.class_token])[None]
            state = model(inputs_embeds=embeds).last_hidden_state[:, -1]
            losses.append(torch.nn.functional.cross_entropy(reader.heads[0](state), label[None]))
        optimiser.zero_grad()
        torch.stack(losses).mean().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for group in optimiser.param_groups:
            group["lr"] = 1e-3 * plan.rate(step, len(batches))
        optimiser.step()
    ours, theirs = (dict(r.named_parameters()) for r in (made.reader_, reader))
    for name in ours:
        # Adam divides by the size of a gradient, so where that is all but zero its sign is a matter of rounding
        close = np.isclose(ours[name].detach(), theirs[name].detach(), atol=2e-4).mean()
        assert close > 0.99, (name, close)


@quick
@given(st.lists(st.integers(0, 9), min_size=1, max_size=200), st.integers(1, 7), st.integers(0, 5))
def test_batches_hold_each_cell_once(lengths, size, seed):
    batches = length_buckets(lengths, size, seed)
    assert sorted(np.concatenate(batches)) == list(range(len(lengths))) and max(map(len, batches)) <= size
    assert len(batches) <= -(-len(lengths) // size) + len(lengths) // (32 * size)


def test_cells_without_a_known_gene(few):
    "A cell in which nothing is read gets an answer, and does not disturb the others"
    train, _, test, table = few
    made = ScInterpreter(table, **TINY).fit(train)
    blank = test.copy()
    blank.X = test.X.copy()
    blank.X[0] = 0
    blank.X.eliminate_zeros()
    proba = made.predict_proba(blank).to_numpy()
    assert np.isfinite(proba).all()
    np.testing.assert_allclose(proba[1:], made.predict_proba(test).to_numpy()[1:], atol=1e-5)


# ---- repeatability, kills, memory

RUN = """
import sys, hashlib
from scinterp.cells.datasets import load, split
from scinterp.methods.scinterpreter import ScInterpreter
from scinterp.text.gene_tables import GeneTable
cells = load('demo'); parts = split(cells)
method = ScInterpreter(GeneTable.build(cells), n_genes=12, epochs=4, backbone='tiny-llama', attention='eager', checkpoint=sys.argv[1] or None).fit(cells[parts.train[::3]], validation=cells[parts.val])
print(method.training_['resumed_epochs'], hashlib.sha256(method.predict_proba(cells[parts.test]).to_numpy().tobytes()).hexdigest())
"""


def run(folder):
    return subprocess.Popen([sys.executable, "-c", RUN, str(folder or "")], stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


@pytest.mark.slow(40)
def test_killed_and_resumed_is_as_never_killed(tmp_path):
    whole = run(None).communicate(timeout=300)[0].split()
    first = run(tmp_path)
    until = time.time() + 240
    while not list(tmp_path.glob("*/training.json")) and time.time() < until and first.poll() is None:
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait()
    second = run(tmp_path).communicate(timeout=300)[0].split()
    assert int(second[0]) >= 1 and second[1] == whole[1]
    assert run(tmp_path).communicate(timeout=300)[0].split() == ["4", whole[1]]


def test_a_damaged_checkpoint_is_not_used(few, tmp_path):
    first = fitted(few, checkpoint=str(tmp_path))
    tensors = next(tmp_path.glob("*/*.safetensors"))
    tensors.write_bytes(tensors.read_bytes()[:-100])
    again = fitted(few, checkpoint=str(tmp_path))
    assert again.training_["resumed_epochs"] == 0
    np.testing.assert_array_equal(first.predict_proba(few[2]).to_numpy(), again.predict_proba(few[2]).to_numpy())


def no_more_than(cells, at_once):
    "A reader that runs out of memory with more cells than that"

    def forward(self, ids, values):
        at_once.append(len(ids))
        if len(ids) > cells:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return whole(self, ids, values)

    whole = Reader.forward
    return forward


def test_out_of_memory_names_the_batch_to_try(few, monkeypatch):
    monkeypatch.setattr(Reader, "forward", no_more_than(0, []))
    with pytest.raises(ModelError, match="out of memory with 16 cells at once: try batch_size=8"):
        fitted(few)


def test_what_the_advice_says_is_enough(few, monkeypatch):
    "Training goes on with the batch that the sentence names, and reading takes fewer cells by itself"
    monkeypatch.setattr(Reader, "forward", no_more_than(8, sizes := []))
    with pytest.raises(ModelError, match="try batch_size=8"):
        fitted(few)
    made = fitted(few, batch_size=8)
    assert max(sizes) > 8, "validation began with more"
    proba = made.predict_proba(few[2]).to_numpy()
    monkeypatch.undo()
    np.testing.assert_allclose(proba, made.predict_proba(few[2]).to_numpy(), atol=1e-5)


def test_reading_stops_where_one_cell_is_too_many(few, monkeypatch):
    made = fitted(few)
    monkeypatch.setattr(Reader, "forward", no_more_than(0, []))
    with pytest.raises(ModelError, match="out of memory with 1 cells at once: try fewer genes"):
        made.predict(few[2])


def test_a_backbone_that_does_not_fit(few, monkeypatch):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(torch.nn.Module, "to", full)
    with pytest.raises(ModelError, match="tiny-llama does not fit into the memory of cpu: choose a smaller backbone"):
        fitted(few)


def test_training_is_where_the_backbone_is(few, monkeypatch):
    "Accelerate would choose an Apple GPU by itself, and leave the backbone behind"
    from accelerate import state

    monkeypatch.setattr(state, "is_mps_available", lambda *a, **k: True)
    assert fitted(few, epochs=1).reader_.class_token.device.type == "cpu"
    with pytest.raises(InputError, match="device must be 'cpu', 'cuda' or 'cuda:0', not 'mps'"):
        fitted(few, device="mps")


def test_several_processes_are_refused(few, monkeypatch):
    from accelerate import Accelerator

    monkeypatch.setattr(Accelerator, "num_processes", property(lambda self: 2))
    with pytest.raises(InputError, match="training is for one device"):
        fitted(few)


def test_gradient_checkpointing_computes_the_same(few):
    plain, saving = (fitted(few, epochs=1, attention="eager", gradient_checkpointing=g).predict_proba(few[2]).to_numpy() for g in (False, True))
    np.testing.assert_allclose(plain, saving, atol=1e-4)


def test_early_stopping_keeps_the_best_epoch():
    rng = np.random.default_rng(0)
    ids, y = torch.from_numpy(rng.integers(0, 30, (120, 5))), torch.from_numpy(rng.integers(0, 2, (120, 1)))
    cells = Sequences(ids, torch.ones(120, 5), y)  # nothing to be learnt: validation only falls by chance
    trainer = Trainer(Reader(torch.randn(30, 8), [2], None), cells, Plan(epochs=12, learning_rate=0.03), Sequences(ids.flip(0), torch.ones(120, 5), y))
    trainer.run()
    best = max(h["val_macro_f1"] for h in trainer.history)
    assert trainer._validate()["val_macro_f1"] == best


OTHERWISE = [dict(order="prompt_first"), dict(pooling="mean"), dict(value_weight="multiply"), dict(token_scale=1.0), dict(backbone_layers=1), dict(learn_class_token=False),
             dict(instruction="cell type of what this is?"), dict(class_weight="balanced"), dict(rank="expression"), dict(seed=1), dict(tune="norms")]


@pytest.mark.parametrize("other", OTHERWISE)
def test_no_two_trainings_share_a_checkpoint(few, tmp_path, other):
    common = dict(checkpoint=str(tmp_path), backbone_precision="fp32", epochs=1)
    fitted(few, **common)
    second = fitted(few, **{**common, **other})
    assert second.training_["resumed_epochs"] == 0 and len(list(tmp_path.iterdir())) == 2
    assert fitted(few, **{**common, **other}).training_["resumed_epochs"] == 1


def test_tuning_repeats_though_attention_is_timed(few):
    "Timing the two ways of attention leaves no gradient behind"
    from scinterp.methods import backbones

    backbones._CHOSEN.clear()
    first, second = (fitted(few, tune="norms", backbone_precision="fp32").predict_proba(few[2]).to_numpy() for _ in range(2))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("column", [lambda n: np.arange(n) % 2, lambda n: np.arange(n) % 2 == 0, lambda n: np.where(np.arange(n) % 2, "a", None)])
def test_questions_of_any_kind_are_learnt_from(few, column):
    train, validation, test, table = few
    train = train.copy()
    train.obs["asked"] = column(train.n_obs)
    known = train.obs["asked"].notna().sum()
    if train.obs["asked"].nunique() < 2:
        with pytest.raises(DataError, match="fewer than two answers"):
            ScInterpreter(table, questions=("asked",), **TINY).fit(train)
        return
    made = ScInterpreter(table, questions=["asked"], **TINY)
    seen = []
    made._sequences = lambda X, y=None, extra=(): seen.append(extra) or ScInterpreter._sequences(made, X, y, extra)
    made.fit(train)
    assert (seen[0][0] >= 0).sum() == known and list(made.answers(test)["asked"]) == sorted(map(str, train.obs["asked"].unique()))


def test_validation_of_other_types_only(few):
    train, validation, _, table = few
    other = validation.copy()
    other.obs["cell_type"] = "another"
    with pytest.warns(UserWarning, match="no validation cell is of a type of training"):
        made = ScInterpreter(table, **TINY).fit(train, validation=other)
    assert made.history_.val_macro_f1.isna().all()


@pytest.mark.parametrize("missing", ["train", "validation"])
def test_a_column_that_is_not_there(few, missing):
    train, validation, _, table = few
    cells = dict(train=train, validation=validation)
    cells[missing] = cells[missing].copy()
    del cells[missing].obs["cell_type"]
    with pytest.raises(DataError, match="no column 'cell_type' in obs"):
        ScInterpreter(table, **TINY).fit(cells["train"], validation=cells["validation"])


# ---- keeping


def test_the_precision_of_training_is_kept(few, tmp_path, monkeypatch):
    made = fitted(few, backbone_precision="bf16").set_params(backbone_precision=None)
    made.save(tmp_path / "m")
    from scinterp.methods import backbones

    for fast in (True, False):
        monkeypatch.setattr(backbones, "bf16_is_fast", lambda *a, fast=fast: fast)
        copy = load_method(tmp_path / "m")
        assert copy.reader_.backbone[0].dtype == torch.bfloat16
        np.testing.assert_array_equal(copy.predict_proba(few[2]).to_numpy(), made.predict_proba(few[2]).to_numpy())


def test_the_attention_of_training_is_kept(few, tmp_path, monkeypatch):
    from scinterp.methods import backbones

    made = fitted(few, attention="sdpa").set_params(attention=None)
    made.save(tmp_path / "m")
    monkeypatch.setattr(backbones.Backbone, "_faster", lambda *args: "eager")  # what timing would choose here
    copy = load_method(tmp_path / "m")
    np.testing.assert_array_equal(copy.predict_proba(few[2]).to_numpy(), made.predict_proba(few[2]).to_numpy())
    assert copy.reader_.backbone[0].attention == "sdpa"


def test_equal_trainings_have_equal_fingerprints(few, tmp_path):
    assert fitted(few).fingerprint == fitted(few, checkpoint=tmp_path, progress=True).fingerprint != fitted(few, seed=1).fingerprint


def test_another_backbone_under_the_same_name_is_noticed(few, tmp_path, monkeypatch):
    from scinterp.methods import scinterpreter

    fitted(few).save(tmp_path / "m")
    loads = scinterpreter.load_backbone

    def other(name, *args, **kwargs):
        backbone = loads(name, *args, **kwargs)
        backbone.sha256 = "0" * 64
        return backbone

    monkeypatch.setattr(scinterpreter, "load_backbone", other)
    with pytest.raises((InputError, ModelError), match="tiny-llama is not the model that was read with in training"):
        load_method(tmp_path / "m")


@pytest.mark.parametrize("method", [ScReader, ScInterpreterHybrid])
def test_kept_and_loaded_to_the_last_bit(few, tmp_path, method):
    made = fitted(few, method)
    made.calibrate(few[1], error=0.2)
    made.save(tmp_path / "m")
    copy = load_method(tmp_path / "m")
    assert type(copy) is method
    np.testing.assert_array_equal(copy.predict_proba(few[2]).to_numpy(), made.predict_proba(few[2]).to_numpy())
    assert copy.predict(few[2], unknown=True).equals(made.predict(few[2], unknown=True))


# ---- what carried a prediction


@pytest.mark.slow(30)
def test_a_language_model_leans_on_markers(cells):
    "MiniLM, a few epochs: markers of B cells speak for B cells more than the other genes that were read"
    adata, parts, table = cells
    made = ScInterpreter(table, n_genes=51, epochs=4).fit(adata[parts.train])
    ranking = gene_ranking(contributions(made, adata[parts.test]))
    aucs = []
    for kind, markers in {"CD19+ B": ["CD79A", "CD79B", "MS4A1", "CD19", "BLK"], "Dendritic": ["FCER1A", "CD1C", "CST3", "HLA-DQA1", "LILRA4", "IRF8"]}.items():
        of = ranking[ranking.type == kind]
        marker = of.gene.isin(markers).to_numpy()
        aucs.append((of.contribution.to_numpy()[marker][:, None] > of.contribution.to_numpy()[~marker]).mean())
    assert np.mean(aucs) > 0.65, aucs


# ---- what cannot be


@pytest.mark.parametrize("settings, says", [(dict(checkpoint=__file__), "cannot be a folder"), (dict(device="warp"), "device must be"), (dict(n_genes=0), "n_genes must be")])
def test_settings_that_cannot_be_are_one_sentence(few, settings, says):
    with pytest.raises(InputError, match=says):
        fitted(few, **settings)


@pytest.mark.parametrize("table", [None, "minilm", np.ones((3, 2))])
def test_what_is_no_gene_table_is_refused(few, table):
    with pytest.raises(InputError, match=r"table must be a GeneTable, not \w+: make one with si.GeneTable.build"):
        ScInterpreter(table, **TINY).fit(few[0])


@pytest.mark.parametrize("gates", [(), (0, "x"), (0, 2), "01"])
def test_gates_are_numbers(few, gates):
    with pytest.raises(InputError, match="gates must be numbers from 0 to 1"):
        fitted(few, ScInterpreterHybrid, gates=gates)


def test_a_closed_gate_has_no_contributions(few):
    made = fitted(few, ScInterpreterHybrid, gates=(0,))
    with pytest.raises(InputError, match="the gate of this hybrid is 0"):
        contributions(made, few[2])


def test_occlusion_of_padded_cells(few):
    made = fitted(few, epochs=1)
    seq = made._sequences(made._expression(few[2]))
    assert (occlusion(made.reader_, seq.ids, seq.values, torch.zeros(len(seq), dtype=torch.long))[seq.ids < 0] == 0).all()
