"""Backbones against transformers' own pass: models built from a configuration, saved, and loaded as a user's would be; and from a hub that is open, closed or missing."""
import json
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_encoders import COMMIT, MODEL, hub, python  # noqa: F401 (a fixture)
from transformers import AutoConfig, AutoModel, AutoTokenizer

from scinterp.core import InputError, ModelError
from scinterp.methods.backbones import frozen_precision, leave_after, load_backbone, moved_together
from scinterp.text.encoders import minilm_path

SMALL = dict(vocab_size=300, hidden_size=48, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=64)
KINDS = {  # what a configuration needs beside SMALL
    "bert": {},
    "roberta": dict(max_position_embeddings=66, pad_token_id=1),
    "llama": dict(num_key_value_heads=2),
    "mistral": dict(num_key_value_heads=2, sliding_window=None),
    "qwen2": dict(num_key_value_heads=2),
    "qwen3": dict(num_key_value_heads=2, head_dim=16),
    "gpt2": {},
    "gpt_neox": {},  # Pythia
    "opt": dict(ffn_dim=96, word_embed_proj_dim=48),
    "modernbert": dict(pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2),
    "distilbert": dict(dim=48, hidden_dim=96, n_layers=3, n_heads=4),
}
CAUSAL = {"llama", "mistral", "qwen2", "qwen3", "gpt2", "gpt_neox", "opt"}
ONE_POSITION = {"bert", "roberta", "llama", "mistral", "qwen2", "qwen3"}


def built(kind, seed=0, **more):
    "A model with weights large enough that attention matters"
    options = SMALL | KINDS[kind] | more
    if kind == "distilbert":
        options = {k: v for k, v in options.items() if k in ("vocab_size", "max_position_embeddings", *KINDS[kind])}
    torch.manual_seed(seed)
    model = AutoModel.from_config(AutoConfig.for_model(kind, **options), dtype=torch.float32).eval()
    for p in model.parameters():
        if p.dim() > 1:
            p.data.normal_(0, .15)
        else:
            p.data += .1 * torch.randn_like(p)
    return model


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    "Each kind as a folder with safetensors, and the model that was saved there"
    made = {}
    for kind in KINDS:
        model, folder = built(kind), tmp_path_factory.mktemp(kind) / kind
        model.save_pretrained(folder, safe_serialization=True)
        made[kind] = folder, model
    return made


def fp32(folder, **options):
    return load_backbone(str(folder), precision="fp32", device="cpu", **{"attention": "eager"} | options)


def cells(width=48, n=7, seed=1):
    "Three cells of 7, 4 and 1 vectors, padded behind"
    x = torch.randn(3, n, width, generator=torch.Generator().manual_seed(seed))
    return x, torch.arange(n) < torch.tensor([n, 4, 1])[:, None]


def alone(model, x, mask, **options):
    "transformers' own pass, one cell at a time, without padding"
    with torch.no_grad():
        return [model(inputs_embeds=row[keep][None], **options) for row, keep in zip(x, mask)]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", KINDS)
def test_states_are_those_of_transformers(folders, kind, attention):
    folder, model = folders[kind]
    backbone, (x, mask) = fp32(folder, attention=attention), cells()
    got, want = backbone.read(x, mask), alone(model, x, mask)
    for state, keep, own in zip(got, mask, want):
        torch.testing.assert_close(state[keep], own.last_hidden_state[0], atol=1e-5, rtol=1e-4)
    assert got.dtype == torch.float32 and not got[~mask].any()
    assert backbone.causal == (kind in CAUSAL) and backbone.hidden == 48 and backbone.room == 64


@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_nothing(folders, kind):
    backbone, (x, mask) = fp32(folders[kind][0]), cells()
    plain = backbone.read(x, mask)
    at = torch.tensor([[0, 2, 3, 5, 7, 8, 10], [6, 7, 8, 9, 0, 1, 2], [10, 0, 1, 2, 3, 4, 5]])  # where each vector goes
    wide = torch.full((3, 11, 48), 7.).scatter(1, at[..., None].expand(-1, -1, 48), x)
    keep = torch.zeros(3, 11, dtype=torch.bool).scatter(1, at, mask)
    there = backbone.read(wide, keep).gather(1, at[..., None].expand(-1, -1, 48))
    torch.testing.assert_close(there[mask], plain[mask], atol=1e-5, rtol=1e-4)
    for one in (0, -1):
        torch.testing.assert_close(backbone.read(wide, keep, at=one), backbone.read(x, mask, at=one), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("layers", [None, 2, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_one_position_equals_the_full_pass_and_so_do_its_gradients(folders, kind, layers):
    backbone, (x, mask) = fp32(folders[kind][0], layers=layers), cells()
    for at, where in ((-1, mask.sum(1) - 1), (0, torch.zeros(3, dtype=torch.long))):
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        full, one = backbone.read(a, mask)[torch.arange(3), where], backbone.read(b, mask, at=at)
        weight = torch.randn(3, 48, generator=torch.Generator().manual_seed(2))
        (full * weight).sum().backward()
        (one * weight).sum().backward()
        torch.testing.assert_close(one, full, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(b.grad, a.grad, atol=1e-5, rtol=1e-3)
        assert not b.grad[~mask].any() and b.grad[0].any()


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_layer_computes_one_position_where_that_is_known(folders, kind):
    "Counted in the rows that its feed-forward network gets"
    backbone, (x, mask) = fp32(folders[kind][0]), cells()
    rows, _ = [], backbone.causal  # asked before anything is counted
    big = [m for m in backbone.model.modules() if isinstance(m, torch.nn.Linear) and m.in_features == 48 and m.out_features == 96]
    if not big:  # GPT-2 has another kind of layer
        return
    big[-1].register_forward_hook(lambda m, inputs, out: rows.append(inputs[0].shape[:-1].numel()))
    backbone.read(x, mask, at=-1)
    assert rows == ([3] if kind in ONE_POSITION else [21])


@pytest.mark.parametrize("kind", KINDS)
def test_early_exit_is_a_hidden_state_of_the_whole_model(folders, kind):
    folder, model = folders[kind]
    x, mask = cells()
    for layers in (1, 2, 3):
        backbone = fp32(folder, layers=layers)
        got = backbone.read(x, mask)
        for state, keep, own in zip(got, mask, alone(model, x, mask, output_hidden_states=True)):
            torch.testing.assert_close(state[keep], own.hidden_states[layers][0], atol=1e-5, rtol=1e-4)
    assert fp32(folder, layers=1).n_parameters < backbone.n_parameters == model.num_parameters()


def test_early_exit_that_is_not_there(folders, tmp_path):
    for layers in (0, 4, -1, 1.5, True):
        with pytest.raises(InputError, match="has 3 layers, so layers cannot be"):
            fp32(folders["llama"][0], layers=layers)
    config = AutoConfig.for_model("albert", vocab_size=300, embedding_size=48, hidden_size=48, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4)
    AutoModel.from_config(config).save_pretrained(tmp_path / "albert")
    with pytest.raises(ModelError, match="not known here: leave layers= out"):
        fp32(tmp_path / "albert", layers=2)


def test_minilm_is_the_packaged_model():
    "Against AutoModel itself, in float32 to 1e-5 and in bfloat16 to its precision, with gradients"
    model = AutoModel.from_pretrained(minilm_path(), attn_implementation="sdpa").eval()
    x, mask = cells(384, 40)
    x = x * .2
    want = torch.stack([out.last_hidden_state[0, -1] for out in alone(model, x, mask)])
    exact, half = fp32("minilm"), load_backbone("minilm", precision="bf16", attention="eager", device="cpu")
    torch.testing.assert_close(exact.read(x, mask, at=-1), want, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(half.read(x, mask, at=-1), want, atol=.05, rtol=.05)
    torch.testing.assert_close(half.read(x, mask, at=-1), half.read(x, mask)[torch.arange(3), mask.sum(1) - 1], atol=.03, rtol=.03)
    grads = []
    for backbone in (exact, half):
        y = x.clone().requires_grad_()
        backbone.read(y, mask, at=-1).square().sum().backward()
        grads.append(y.grad)
    assert torch.nn.functional.cosine_similarity(*(g.flatten() for g in grads), dim=0) > .99
    assert exact.revision == "53aa51172d14" and exact.sha256.startswith(exact.revision)


def test_frozen_and_leaves_the_random_numbers_alone(folders):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    backbone = load_backbone("random:minilm", seed=3, layers=1)
    x, mask = cells(384)
    with torch.inference_mode():  # the first batch, on which attention is chosen, need not be one of training
        assert backbone.read(x[:, :6], mask[:, :6], at=-1).shape == (3, 384)
    y = x.requires_grad_()
    backbone.read(y, mask, at=-1).sum().backward()
    assert backbone.causal is False and backbone.attention in ("eager", "sdpa")
    assert torch.equal(before, torch.get_rng_state())
    assert y.grad.abs().sum() > 0
    assert all(p.grad is None and not p.requires_grad for p in backbone.model.parameters())
    with torch.inference_mode():
        assert backbone.read(x.detach(), mask).shape == (3, 7, 384)


def test_random_weights():
    trained, *drawn = (load_backbone(name, seed) for name, seed in (("minilm", 0), ("random:minilm", 0), ("random:minilm", 0), ("random:minilm", 1)))
    a, b, c = ({k: v for k, v in m.model.state_dict().items()} for m in drawn)
    assert all(torch.equal(a[k], b[k]) for k in a) and drawn[0].sha256 == drawn[1].sha256
    for other in (c, trained.model.state_dict()):
        assert not torch.equal(a["encoder.layer.0.attention.self.query.weight"], other["encoder.layer.0.attention.self.query.weight"])
    assert len({m.sha256 for m in (trained, *drawn)}) == 3
    assert drawn[0].n_parameters == trained.n_parameters
    half, full = (load_backbone("random:minilm", 0, precision=p) for p in ("bf16", "fp32"))
    assert half.sha256 == full.sha256 and (half.dtype, full.dtype) == (torch.bfloat16, torch.float32)
    tiny = [load_backbone("tiny-llama", seed) for seed in (0, 0, 1)]
    assert tiny[0].sha256 == tiny[1].sha256 != tiny[2].sha256 and tiny[0].causal


def test_precision_is_measured_or_given():
    assert load_backbone("tiny-llama", precision="fp32").dtype == torch.float32
    assert load_backbone("tiny-llama", precision="bf16").dtype == torch.bfloat16
    assert load_backbone("tiny-llama", device="cpu").dtype == frozen_precision()


def test_words(folders, tmp_path):
    minilm = fp32("minilm")
    ids = AutoTokenizer.from_pretrained(minilm_path())("what is the cell type?", add_special_tokens=False)["input_ids"]
    assert torch.equal(minilm.words("what is the cell type?"), minilm.model.embeddings.word_embeddings.weight[ids])
    assert minilm.words("").shape == (0, 384)
    with pytest.raises(ModelError, match="llama cannot be loaded by transformers|no fast tokenizer"):
        fp32(folders["llama"][0]).words("what is the cell type?")


@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2", "opt"])
def test_checkpointing_gives_the_same_gradients_with_each_layer_computed_twice(folders, kind):
    grads, (x, mask) = [], cells()
    for checkpointing in (False, True):
        backbone, seen = fp32(folders[kind][0], checkpointing=checkpointing), []
        assert backbone.causal == (kind in CAUSAL)  # asked before anything is counted
        first = next(m for m in backbone.model.modules() if isinstance(m, torch.nn.Linear) or type(m).__name__ == "Conv1D")
        first.register_forward_hook(lambda *_: seen.append(1))
        y = x.clone().requires_grad_()
        backbone.read(y, mask, at=-1).square().sum().backward()
        grads.append(y.grad)
        assert len(seen) == 1 + checkpointing
    torch.testing.assert_close(*grads, atol=1e-5, rtol=1e-4)


def test_a_folder_that_is_damaged(folders, tmp_path):
    folder = tmp_path / "llama"
    shutil.copytree(folders["llama"][0], folder)
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="cannot be loaded by transformers"):
        fp32(folder)
    weights.unlink()
    with pytest.raises(ModelError, match="no safetensors weights"):
        fp32(folder)
    weights.write_bytes(whole)
    fp32(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | dict(num_hidden_layers=4)))
    with pytest.raises(ModelError, match="lacks 9 weights"):
        fp32(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError):
        load_backbone(f"random:{folder}")


def test_a_folder_is_named_by_what_it_is_and_known_by_its_contents(folders):
    one, other = fp32(folders["llama"][0]), fp32(folders["qwen2"][0])
    assert one.name == "hf:llama" and str(folders["llama"][0]) not in repr(one)
    assert one.revision == one.sha256[:12] != other.revision
    drawn = load_backbone(f"random:{folders['llama'][0]}", seed=1)
    assert drawn.name == "random:hf:llama" and drawn.sha256 != one.sha256 and drawn.n_parameters == one.n_parameters


@pytest.mark.parametrize(("name", "options", "error", "says"), [
    ("gpt-9", {}, ModelError, "no backbone 'gpt-9': choose one of"),
    ("./nowhere", {}, ModelError, "nowhere is no folder"),
    ("minilm", dict(revision="abc"), InputError, "does not go with .minilm."),
    ("tiny-llama", dict(revision="abc"), InputError, "does not go with .tiny-llama."),
    ("minilm", dict(precision="fp8"), InputError, "precision must be one of"),
    ("minilm", dict(attention="flash"), InputError, "attention must be one of"),
    ("minilm", dict(quantise="2bit"), InputError, "quantise must be one of"),
    ("minilm", dict(quantise="8bit", device="cpu"), InputError, "needs an NVIDIA GPU"),
    ("random:minilm", dict(quantise="8bit", device="cpu"), InputError, "only weights of a file are quantised"),
    ("random:none", {}, ModelError, "no backbone 'none'"),
])
def test_what_cannot_be_had(name, options, error, says):
    with pytest.raises(error, match=says) as e:
        load_backbone(name, **options)
    assert "\n" not in str(e.value)


def test_quantisation_without_its_library(monkeypatch):
    import importlib.util

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install bitsandbytes"):
        load_backbone("minilm", quantise="4bit", device="cuda")


@settings(database=None, deadline=None, max_examples=60)
@given(st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=1, max_size=4))
def test_moving_together_keeps_the_order(mask):
    keep = torch.tensor(mask)
    values = torch.arange(keep.numel()).reshape(keep.shape)
    near, n, _ = moved_together(values[..., None].float(), keep)
    for row, number, own, k in zip(near[..., 0].long().tolist(), n.tolist(), values.tolist(), mask):
        assert row[:number] == [v for v, yes in zip(own, k) if yes]
    assert near.shape[1] == max(map(sum, mask))


def test_attention_is_measured_once_for_a_size_and_can_be_fixed(monkeypatch):
    from scinterp.methods import backbones

    asked = []
    monkeypatch.setattr(backbones, "_CHOSEN", {})
    monkeypatch.setattr(backbones.Backbone, "_seconds", lambda self, attention, x, n: asked.append(attention) or dict(eager=1.31, sdpa=1.)[attention])
    x, mask = cells(64)
    for chosen in ("sdpa", "sdpa"):
        backbone = load_backbone("tiny-llama", device="cpu")
        assert backbone.attention is None
        backbone.read(x, mask)
        assert backbone.attention == chosen == backbone.model.config._attn_implementation
    assert sorted(asked) == ["eager", "sdpa"]
    assert load_backbone("tiny-llama", attention="eager").attention == "eager"


def test_leaving_after_the_last_layer_keeps_the_final_norm():
    model = built("llama")
    leave_after(model, 3)
    assert len(model.layers) == 3 and not isinstance(model.norm, torch.nn.Identity)


ASK = """
from scinterp.core import InputError
from scinterp.methods.backbones import load_backbone
for name in {names}:
    try: print(repr(load_backbone(name, device='cpu', precision='fp32')))
    except InputError as e: print(e)
"""


def test_each_refusal_of_the_hub_is_one_sentence(hub, tmp_path):  # noqa: F811
    names = ["org/gated", "random:org/gated", "hf:org/forbidden", "org/none@v1", "org/norev@v1", "org/down", "not an/id"]
    said = python(ASK.format(names=names), hub.server_port, tmp_path)
    parts = ["is gated: accept its terms"] * 2 + ["refuses org/forbidden (403): accept its terms", "shows no model org/none", "has no revision v1", "did not give it", "is not the id of a model"]
    assert len(said) == len(names), said
    for sentence, part in zip(said, parts):
        assert part in sentence, said


@pytest.mark.slow(20)
def test_a_model_of_the_hub_is_fetched_once_and_known_by_its_commit(hub, tmp_path):  # noqa: F811
    ask = """
from scinterp.methods.backbones import load_backbone
b = load_backbone('{name}', device='cpu', precision='fp32')
print(b.name, b.revision, b.sha256[:12], b.words('cell').shape)
"""
    drawn = python(ask.format(name=f"random:{MODEL}"), hub.server_port, tmp_path)[0].split()
    assert drawn[:2] == [f"random:{MODEL}", COMMIT] and not any(p.endswith("safetensors") for p in hub.asked)
    said = python(ask.format(name=MODEL), hub.server_port, tmp_path)
    assert said[0].startswith(f"{MODEL} {COMMIT}") and any(p.endswith("model.safetensors") for p in hub.asked)
    before = len(hub.asked)
    assert python(ask.format(name=MODEL), hub.server_port, tmp_path, SCINTERP_OFFLINE="1") == said and len(hub.asked) == before
    absent = python(ASK.format(names=["org/absent"]), 9, tmp_path, SCINTERP_OFFLINE="1")[0]
    assert "org/absent at main is not on this machine and SCINTERP_OFFLINE forbids the network" in absent
