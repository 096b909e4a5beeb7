"""Training and reading with a Llama of the papers' size on a GPU: cells a second and memory at 2,048 genes. Weights are drawn, as speed does not depend on them.

    python benchmarks/gpu/interpreter.py [tiny|1b|7b|13b] [genes] [batch] [device]

`tiny` on the CPU shows that it runs: python benchmarks/gpu/interpreter.py tiny 64 4 cpu
Projector and head are those of `PRESETS['as_released']`, five layers each, trained in bf16 (mixed); the language model is frozen in bf16. Three ways:
all positions of the last layer, the last one only, and the latter with the backbone left half-way.
"""
import sys
import time

import torch
from transformers import LlamaConfig, LlamaModel

from scinterp.methods.backbones import TINY, Backbone, leave_after
from scinterp.methods.reader import Reader
from scinterp.methods.training import Plan, Sequences, Trainer, read_scores

SIZES = {  # hidden, intermediate, layers, heads, as in the published configurations
    "tiny": None,
    "1b": (2048, 5632, 22, 32),
    "7b": (4096, 11008, 32, 32),
    "13b": (5120, 13824, 40, 40),
}


def language_model(size, device, layers=None):
    "A Llama of that size with drawn weights, frozen, made on the device in bf16"
    if size == "tiny":
        config = LlamaConfig(**TINY)
    else:
        hidden, intermediate, depth, heads = SIZES[size]
        config = LlamaConfig(vocab_size=32000, hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=depth, num_attention_heads=heads, max_position_embeddings=4096)
    torch.manual_seed(0)
    with torch.device(device):
        model = LlamaModel(config).to(torch.bfloat16).eval()
    model.config.use_cache = False
    if layers:
        leave_after(model, layers, size)
    backbone = Backbone(model, f"random:{size}", "drawn", "drawn", device=device)
    backbone.attend_by("sdpa")
    return backbone


def made_up(cells, genes, n_types=61):
    "Cells that read `genes` of 20,000 genes"
    rng = torch.Generator().manual_seed(0)
    ids = torch.stack([torch.randperm(20_000, generator=rng)[:genes] for _ in range(cells)])
    return Sequences(ids, torch.rand(cells, genes, generator=rng), torch.randint(n_types, (cells, 1), generator=rng))


def run(size, genes, batch, device, layers=None, every_state=False):
    "Cells a second in training and in reading, and GB"
    backbone = language_model(size, device, layers)
    if every_state:
        read = backbone.read
        backbone.read = lambda embeds, mask, at=None: read(embeds, mask)[:, -1] if at == -1 else read(embeds, mask)
    reader = Reader(torch.randn(20_000, 1536), [61], backbone, "what is the cell type of this given embedding?", value_weight="multiply", projector_layers=5, head_layers=5, init_std=0.02)
    cells, on_gpu = made_up(8 * batch, genes), device.startswith("cuda")
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    warm = Trainer(reader, Sequences(cells.ids[:batch], cells.values[:batch], cells.answers[:batch]), Plan(epochs=1, batch_size=batch, precision="bf16"), device=None if on_gpu else "cpu")
    warm.run()
    trainer = Trainer(reader, cells, Plan(epochs=1, batch_size=batch, optimiser="adam", learning_rate=5e-5, precision="bf16"), device=None if on_gpu else "cpu")
    trainer.run()
    start = time.perf_counter()
    read_scores(reader, cells, size=batch)
    reading = len(cells) / (time.perf_counter() - start)
    memory = torch.cuda.max_memory_allocated() / 2**30 if on_gpu else float("nan")
    return len(cells) / trainer.seconds, reading, memory, sum(p.numel() for p in trainer.weights().values())


if __name__ == "__main__":
    size, genes, batch, device = (*sys.argv[1:5], *("7b", "2048", "8", "cuda")[len(sys.argv[1:5]):])
    if device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit("there is no GPU here: try `tiny 64 4 cpu` to see that it runs")
    name = torch.cuda.get_device_name() if device.startswith("cuda") else "CPU"
    print(f"{size}, {genes} genes, batches of {batch}, {name}, torch {torch.__version__}\n| way | trained cells/s | read cells/s | GB | trained numbers |\n|---|---|---|---|---|")
    depth = TINY["num_hidden_layers"] if size == "tiny" else SIZES[size][2]
    for way, options in {"all positions of the last layer": dict(every_state=True), "the last position only": {}, "left half-way": dict(layers=depth // 2)}.items():
        train, read, memory, trained = run(size, int(genes), int(batch), device, **options)
        print(f"| {way} | {train:.1f} | {read:.1f} | {memory:.1f} | {trained/1e6:.1f} M |", flush=True)
