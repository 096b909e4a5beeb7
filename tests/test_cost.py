"""Estimates: token ranges against published counts and the published cutting rule, prices that can be replaced, sums that add up."""
import math
import sys

import pytest
from api_server import EMBEDDINGS, api_server
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from scinterp.core import InputError
from scinterp.text import cost

# exact cl100k_base counts, from the tests of tiktoken and jtokkit and from OpenAI's cookbook
KNOWN = {
    "hello world": 2, "Hello world!": 3, "Hello, how are you?": 6, "This is a sentence without spaces.": 7, "How about some punctuation?!!": 6,
    "This     is     a     sentence     with     extra     spaces.": 14, "Can we handle email addresses? user@example.com": 9,
    "How about numbers? 123 45.6 -78.9": 14, "The moon is made of cheese and the stars are made of jelly beans": 14,
    "A wizard in a top hat riding a unicycle while juggling flaming pineapples": 17, "Two giraffes in bow ties and monocles having a conversation over tea": 15,
    "Bonjour le monde!": 4, "Ce n'est pas une bonne idée de faire ça.": 12, "Zdravstvuyte, kak dela?": 11, "Привет мир": 5, "I love 🍕": 5, "お誕生日おめでとう": 9,
}
# how the vocabularies cut a text before anything else (tiktoken_ext/openai_public.py)
CL100K = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@pytest.mark.parametrize("text", KNOWN)
def test_the_range_holds_published_counts(text):
    counts = cost.count_tokens(text).iloc[0]
    assert counts.low <= KNOWN[text] <= counts.high


@settings(database=None, deadline=None, max_examples=300)
@given(st.text(alphabet=st.sampled_from(" \t\n'’.,-_/()[]{}09²½aAbBsStTzZéßβЖ中🍕"), max_size=40))
def test_the_low_end_is_never_more_than_the_pieces_that_cannot_be_joined(text):
    regex = pytest.importorskip("regex")
    low, high = cost.count_tokens(text).iloc[0]
    assert low <= len(regex.findall(CL100K, text)) and low <= high
    assert high <= max(len(text.encode()) + text.count(" "), low)


@settings(database=None, deadline=None)
@given(st.text(max_size=200))
def test_pieces_are_the_whole_text(text):
    assert "".join(cost.PIECE.findall(text)) == text


def test_real_summaries_lie_around_the_rule_of_thumb():
    file = ROOT.parent / "shared" / "data" / "text" / "human_gene_summaries.tsv.gz"
    if not file.is_file():
        pytest.skip("the gene summaries are not here")
    import pandas as pd
    told = pd.read_csv(file, sep="\t", keep_default_na=False, nrows=3000)
    texts = (told.symbol + ": " + told.full_name + ". " + told.summary)[told.summary != ""]
    low, high = cost.count_tokens(texts)[["low", "high"]].sum()
    thumb = texts.str.len().sum() / 4
    assert .6 < low / thumb < .9 and 1.1 < high / thumb < 1.5


def fake_vocabulary(folder, monkeypatch, content=b"words"):
    "A tiktoken that counts words, and its vocabulary"
    name, _ = cost._VOCABULARIES["cl100k_base"]
    (folder / name).write_bytes(content)
    (folder / "tiktoken.py").write_text("class E:\n    def encode_batch(self, texts, disallowed_special): return [t.split() for t in texts]\ndef get_encoding(name): return E()\n")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(folder))
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "tiktoken", raising=False)
    monkeypatch.setattr(cost, "_VOCABULARIES", {"cl100k_base": (name, cost.file_sha256(folder / name))})
    return folder / name


def test_exact_where_the_vocabulary_is_here(tmp_path, monkeypatch):
    file = fake_vocabulary(tmp_path, monkeypatch)
    counts = cost.count_tokens(["one two three", ""], "text-embedding-3-small")
    assert counts.low.tolist() == counts.high.tolist() == [3, 0] and counts.attrs["how"] == "exact (cl100k_base)"
    assert cost.count_tokens(["one"], "gpt-4o").attrs["how"] == "estimated range", "another vocabulary"
    file.write_bytes(b"altered")  # tiktoken would download it again
    assert cost.count_tokens(["one"], "text-embedding-3-small").attrs["how"] == "estimated range"
    file.unlink()
    assert cost.count_tokens(["one"], "text-embedding-3-small").attrs["how"] == "estimated range"


def test_every_shipped_price_says_when_and_where_it_was_read():
    table = cost.prices()
    assert table.read.notna().all() and table.source.str.contains("https://").all()
    assert (table.input > 0).all() and table.batch.eq(.5).all() and table.output[table.task == "chat"].gt(0).all()
    assert table.limits_source.notna().equals(table.rpm.notna()), "a limit without a source, or the other way round"
    assert table.input[["text-embedding-3-small", "text-embedding-3-large", "text-embedding-ada-002"]].tolist() == [.02, .13, .10]


def test_prices_of_your_own_win(tmp_path, monkeypatch):
    (tmp_path / "a.toml").write_text('["text-embedding-3-small"]\ntask = "embed"\ninput = 1\n["mine"]\ntask = "chat"\ninput = 2\noutput = 3\ncurrency = "EUR"\n')
    (tmp_path / "b.toml").write_text('["mine"]\ntask = "chat"\ninput = 20\noutput = 30\n')
    monkeypatch.setenv("SCINTERP_PRICES", str(tmp_path / "a.toml"))
    assert cost.price("text-embedding-3-small")["input"] == 1 and cost.price("mine")["currency"] == "EUR"
    assert cost.price("mine", tmp_path / "b.toml")["output"] == 30 and cost.price("gpt-4")["output"] == 60
    monkeypatch.setenv("SCINTERP_PRICES", str(tmp_path / "none.toml"))
    with pytest.raises(InputError, match="there is no price file"):
        cost.prices()


@pytest.mark.parametrize("text, why", [("[", "no price file"), ("m = 1", "a table is wanted"), ('["m"]\ninput = 1', "task must be"), ('["m"]\ntask = "embed"', "input must be"),
                                       ('["m"]\ntask = "chat"\ninput = 1', "output must be"), ('["m"]\ntask = "embed"\ninput = nan', "input must be"),
                                       ('["m"]\ntask = "embed"\ninput = true', "input must be"), ('["m"]\ntask = "embed"\ninput = 1\nbatch = 0', "batch must be"),
                                       ('["m"]\ntask = "embed"\ninput = 1\nImput = 1', "unknown key"),
                                       *[(f'["m"]\ntask = "embed"\ninput = 1\n{key} = {value}', f"{key} must be") for key, value in (("batch", '"half"'), ("rpm", '"many"'), ("tpm", "[1]"), ("queue", '"long"'), ("queue", 0))]])
def test_a_price_file_that_cannot_be_used(tmp_path, text, why):
    (tmp_path / "p.toml").write_text(text)
    with pytest.raises(InputError, match=why):
        cost.prices(tmp_path / "p.toml")


def test_unknown_models_say_how_to_add_a_price():
    with pytest.raises(InputError, match=r'no price is known for .*\["llama-9"\].*SCINTERP_PRICES'):
        cost.estimate(["a"], "llama-9")


@settings(database=None, deadline=None)
@given(st.lists(st.integers(1, 50), max_size=60), st.integers(1, 9), st.integers(50, 120))
def test_packing_keeps_order_and_limits(tokens, inputs, total):
    ranges = cost.pack(tokens, inputs, total)
    assert [i for r in ranges for i in r] == list(range(len(tokens)))
    assert all(len(r) <= inputs and sum(tokens[i] for i in r) <= total for r in ranges)
    for a, b in zip(ranges, ranges[1:]):  # no request is closed before it must be
        assert len(a) == inputs or sum(tokens[i] for i in a) + tokens[b[0]] > total


def test_a_whole_genept_table():
    "33,703 summaries of 200 tokens: the figures of the reference notes"
    small, large = (cost.estimate(33_703, m, tokens_each=200) for m in ("text-embedding-3-small", "text-embedding-3-large"))
    assert small.requests == math.ceil(33_703 / 1500) == 23 and small.tokens == (6_740_600, 6_740_600)
    assert small.money == pytest.approx((.1348, .1348), abs=1e-3) and large.money == pytest.approx((.876, .876), abs=1e-3)
    assert large.batch_money == pytest.approx((.438, .438), abs=1e-3) and small.minutes == pytest.approx(6.74, abs=.01)
    assert (large.batches, small.batches) == (3, 1), "3 million tokens may wait at once"


def test_chat_counts_the_prompt_with_every_text_and_what_is_written():
    one = cost.estimate(["CD79A"], "gpt-4", prompt="Describe this gene.", output_tokens=(10, 20))
    ten = cost.estimate([f"GENE{i}" for i in range(10)], "gpt-4", prompt="Describe this gene.", output_tokens=(10, 20))
    assert ten.written == (100, 200) and ten.requests == 10 and ten.tokens[1] > 9 * one.tokens[1] * .8
    assert one.money[1] == pytest.approx((one.tokens[1] * 30 + 20 * 60) / 1e6)
    assert "assumed" in repr(one) and "<table" in one._repr_html_()


def test_repeats_are_sent_once():
    plan = cost.estimate(["a gene", "a gene", "another"], "text-embedding-3-small")
    assert (plan.texts, plan.repeated) == (2, 1) and plan.tokens == cost.estimate(["a gene", "another"]).tokens
    assert cost.estimate([]).tokens == (0, 0) and cost.estimate([]).requests == 0


def test_budgets():
    assert not cost.over_budget(1, None) and not cost.over_budget(1, 1) and "budget is 1" in cost.over_budget(.6, 1, spent=.5)


def wordpieces(text):
    return len(cost._wordpiece().encode(text, add_special_tokens=False).ids)


@pytest.mark.parametrize("count", [None, wordpieces], ids=["a quarter of the letters", "WordPiece"])
def test_the_estimate_bounds_what_a_server_counts(tmp_path, count):
    """Of two servers that count in their own ways, not with OpenAI's vocabulary, which is not here: by the rule of thumb of its help pages
    (a quarter of the letters), and by MiniLM's WordPiece, on which the upper estimate of plain words rests too."""
    from scinterp.text.api_encoders import OpenAIEncoder
    from scinterp.text.descriptions import describe
    from scinterp.cells.nomenclature import bundled_genes
    texts = describe(bundled_genes().symbol[:200]).text
    with api_server(count=count) as api:
        plan = cost.estimate(texts)
        encode = OpenAIEncoder(base_url=api.base_url, folder=tmp_path, inputs=64)
        encode(texts)
        assert plan.tokens[0] <= api.usage["prompt"] <= plan.tokens[1]
        assert encode.tokens == api.usage["prompt"] and plan.money[0] <= encode.spent <= plan.money[1]
        assert len(api.paths(EMBEDDINGS)) == math.ceil(plan.texts / 64)


def test_the_number_of_requests_is_the_one_that_is_sent(tmp_path):
    from scinterp.text.api_encoders import OpenAIEncoder
    texts = [f"{i} " + "Phosphorylation of CD79A by LYN. " * 300 for i in range(100)]
    with api_server() as api:
        plan = cost.estimate(texts)
        OpenAIEncoder(base_url=api.base_url, folder=tmp_path)(texts)
        assert plan.requests == len(api.paths(EMBEDDINGS)) > 1


def test_reports_take_lists_files_and_data_sets(tmp_path):
    (tmp_path / "genes.txt").write_text("CD79A\n\nMS4A1\tB cells\n")
    report = cost.cost_report(str(tmp_path / "genes.txt"), species="human")
    assert report == cost.cost_report(["CD79A", "MS4A1"], "openai:text-embedding-3-small", "human") and report.task == "embed"
    assert cost.cost_report("demo").texts == 765
    assert cost.cost_report(["CD79A"], species="human", source="symbol").tokens[1] < report.tokens[1]
    chat = cost.cost_report(["CD79A", "MS4A1"], "gpt-4o-mini", "human")
    assert chat.task == "chat" and chat.requests == 2 and chat.written == (200, 2000)
    with pytest.raises(InputError, match="not there yet"):
        cost.cost_report(["CD79A"], species="human", source="llm", chat=None)
    for local in ("minilm", "tfidf", "hf:org/model@main"):
        assert cost.cost_report(["CD79A"], local, "human").money == (0, 0)
    for genes, why in (([], "empty"), (tmp_path / "no.csv", "there is no file")):
        with pytest.raises(InputError, match=why):
            cost.cost_report(genes)


def test_gene_files_as_spreadsheets_write_them(tmp_path):
    (tmp_path / "genes.csv").write_text('"CD79A","B cells, all"\n"MS4A1",1\n')
    assert cost.cost_report(tmp_path / "genes.csv", species="human") == cost.cost_report(["CD79A", "MS4A1"], species="human")
    (tmp_path / "genes.csv").write_bytes("CD79A,naïve\n".encode("latin-1"))
    with pytest.raises(InputError, match="not text in UTF-8"):
        cost.cost_report(tmp_path / "genes.csv", species="human")


def test_no_key_is_needed_and_nothing_is_sent(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("SCINTERP_OFFLINE", "1")
    assert cost.cost_report("demo").money[1] > 0
