"""Pages of a study: every label at its row, what is missing said, and verdicts that are those of `evaluate`."""
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from scinterp.evaluate import pl
from scinterp.evaluate.comparisons import VERDICTS, standing
from scinterp.evaluate.metrics import confusion_matrix
from scinterp.run.report import claim, figure_run, page_note, panel_answers, panels
from scinterp.run.plans import load_study
from scinterp.run.study_report import changed_answers, language_answer, not_run, over_seeds, spoken, study_report, tally, target_words


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def rows_of(ax):
    "Row of an axis, by label"
    return {t.get_text(): round(y) for t, y in zip(ax.get_yticklabels(), ax.get_yticks())}


def comparisons(intervals, margin=0.01):
    "A table of comparisons with these intervals; None for one that was not run"
    rows = []
    for i, interval in enumerate(intervals):
        lo, hi = interval or (np.nan, np.nan)
        said = standing(lo, hi, margin) if interval else pl.NOT_RUN
        rows.append(dict(title=f"setting {i // 2}", a="scinterpreter", b=("lr-hvg", "scinterpreter+no-llm")[i % 2], value=(lo + hi) / 2, lo=lo, hi=hi, detectable=0.02, p=0.01, p_holm=0.02, splits=5 if interval else 0, verdict=said))
    return pd.DataFrame(rows)


ENDS = st.tuples(st.floats(-0.2, 0.2), st.floats(-0.2, 0.2)).map(lambda p: tuple(sorted(p)))
ARMS = [("lr-hvg", ""), ("scinterpreter", ""), ("scinterpreter", "no-llm"), ("genept-w", "")]


def scores(values):
    "A table of scores of `ARMS` in as many settings as there are lists"
    rows = [dict(setting=str(s), method=m, control=c, value=v, lo=v - 0.01, hi=v + 0.01, seeds=0 if np.isnan(v) else 5, of=5) for s, line in enumerate(values) for (m, c), v in zip(ARMS, line)]
    return pd.DataFrame(rows)


# panels


def test_every_dot_is_at_the_row_of_its_label():
    table = scores([[0.7, 0.6, 0.5, 0.4], [0.1, 0.2, 0.3, 0.8]])
    fig = pl.study_panels(table.sample(frac=1, random_state=0), {"1": "second", "0": "first"})
    at = {(round(line.get_ydata()[0]), round(line.get_xdata()[0], 6)) for ax in fig.axes for line in ax.lines if len(line.get_xdata()) == 1}
    rows = rows_of(fig.axes[0])
    assert [ax.get_title(loc="left") for ax in fig.axes] == ["second", "first"]
    assert at == {(rows[pl.row_name(m, c)], v) for m, c, v in zip(table.method, table.control, table.value)}


@pytest.mark.parametrize("gone, words", [([0], "not run yet: `lr-hvg`"), ([2, 3], "not run yet: `scinterpreter+no-llm`, `genept-w`"), ([1, 2], "not run yet: `scinterpreter` and its controls"), ([0, 1, 2, 3], "not run yet: everything")])
def test_what_was_not_run_says_so_in_its_row(gone, words):
    line = [np.nan if i in gone else 0.5 + i / 10 for i in range(4)]
    ax = pl.study_panels(scores([line]), {"0": "only"}, columns=1).axes[0]
    assert {round(t.get_position()[1]) for t in ax.texts if t.get_text() == pl.NOT_RUN} == set(gone)
    assert not_run(scores([line])).endswith(f"*0*: {words}")


def test_a_whole_table_misses_nothing():
    assert not_run(scores([[0.1, 0.2, 0.3, 0.4]])) == ""


# differences


@settings(database=None, deadline=None, max_examples=20)
@given(st.lists(st.one_of(st.none(), ENDS), min_size=4, max_size=4), st.sampled_from([0.01, 0.05]))
def test_the_words_beside_an_interval_are_those_of_its_verdict(intervals, margin):
    table = comparisons(intervals, margin)
    ax = pl.difference_forest(table, margin)
    rows, said = {t.get_text(): round(t.get_position()[1]) for t in ax.texts}, [t.get_text() for t in ax.texts]
    for interval in filter(None, intervals):
        assert any(f"{sum(interval) / 2:+.3f}  {standing(*interval, margin)}, 5 seeds" == s for s in said)
    drawn = sorted((round(min(line.get_xdata()), 9), round(max(line.get_xdata()), 9)) for line in ax.lines if len(line.get_xdata()) == 2 and line.get_lw() == 1.4)
    assert drawn == sorted((round(a, 9), round(b, 9)) for a, b in filter(None, intervals))
    assert (pl.NOT_RUN in rows) == (None in intervals)
    assert (ax.patches[0].get_x(), ax.patches[0].get_width()) == (-margin, margin)
    plt.close("all")


@settings(database=None, deadline=None, max_examples=50)
@given(st.lists(st.one_of(st.none(), ENDS), min_size=1, max_size=6))
def test_a_tally_counts_every_comparison_once(intervals):
    said = tally(comparisons(intervals))
    counts = {v: sum(standing(*i) == v for i in intervals if i) for v in VERDICTS}
    for word, n in counts.items():
        assert (f"{word} in {n}" in said.replace("not inferior in", "not-inferior in" if word == "inferior" else "not inferior in")) == (n > 0)
    assert (f"{intervals.count(None)} {pl.NOT_RUN}" in said) == (None in intervals)


@settings(database=None, deadline=None, max_examples=50)
@given(st.lists(st.one_of(st.none(), ENDS), min_size=1, max_size=6))
def test_a_target_is_reached_only_if_every_setting_is(intervals):
    good = [standing(*i) in ("superior", "not inferior") for i in intervals if i]
    word = "not reached" if not all(good) else "open" if None in intervals else "reached"
    assert f"**{word}**" in target_words(comparisons(intervals))


def test_nothing_run_is_a_page_too():
    table = comparisons([None] * 4)
    assert spoken(table) == f"All of it is {pl.NOT_RUN}." and pl.NOT_RUN in language_answer(table) and "**open**" in target_words(table)
    ax = pl.difference_forest(table)
    assert list(rows_of(ax)) == ["setting 0", "setting 1"] and [t.get_text() for t in ax.texts] == [pl.NOT_RUN] * 2


# numbers


@settings(database=None, deadline=None, max_examples=50)
@given(st.lists(st.sampled_from("ABC"), min_size=1, max_size=30), st.data())
def test_changed_answers_are_counted_one_by_one(true, data):
    a, b = (data.draw(st.lists(st.sampled_from("ABC"), min_size=len(true), max_size=len(true))) for _ in range(2))
    table = pd.DataFrame([dict(method=m, control="", cell=i, true=t, predicted=p) for m, answers in (("a", a), ("b", b)) for i, (t, p) in enumerate(zip(true, answers))])
    n = len(true)
    want = dict(changed=sum(p != q for p, q in zip(a, b)) / n, gained=sum(p == t != q for t, p, q in zip(true, a, b)) / n, lost=sum(q == t != p for t, p, q in zip(true, a, b)) / n)
    assert changed_answers(table.sample(frac=1, random_state=0), "a", "b") == pytest.approx(want)


def test_one_seed_has_no_interval():
    one = over_seeds([0.5])
    assert one["value"] == 0.5 and np.isnan(one["lo"]) and one["seeds"] == 1


@settings(database=None, deadline=None, max_examples=100)
@given(st.lists(st.floats(-1, 1), min_size=1, max_size=8), st.floats(0.01, 0.3))
def test_names_keep_their_order_and_their_distance(heights, gap):
    at = pl.spread(heights, gap)
    order = np.argsort(heights, kind="stable")
    assert (np.diff(at[order]) >= gap - 1e-9).all() and np.mean(at) == pytest.approx(np.mean(heights), abs=1e-9)


# figures of a paper

PAGE = 7.2  # inches, the width of a page's text


@pytest.mark.parametrize("n", [15, 37, 50])
def test_types_are_at_their_rows_and_readable_on_a_page(n):
    types = [f"a type of cells with a long name, number {i:02}" for i in range(n)]
    moved = np.roll(np.eye(n), 1, axis=1)  # every type is taken for the next
    fig = pl.confusion_panels({m: pd.DataFrame(moved, types, types) for m in ("lr-hvg", "genept-w", "scinterpreter")})
    fig.canvas.draw()
    scale = min(1, PAGE / fig.get_figwidth())
    for ax in fig.axes[:3]:
        drawn = ax.collections[0].get_array().reshape(n, n)
        columns, rows = ([t.get_text() for t in axis.get_ticklabels()] for axis in (ax.xaxis, ax.yaxis))
        assert columns == types and rows in (types, []), "labels are not in their order"
        for i in range(n):
            assert columns[int(np.argmax(drawn[i]))] == types[(i + 1) % n]
        size = ax.xaxis.get_ticklabels()[0].get_fontsize()
        room = ax.get_window_extent().height / n * 72 / fig.dpi  # points a row
        assert size * scale >= 4.5 and room >= 0.9 * size, f"{n} types: {size * scale:.1f} points on a page, {room:.1f} a row"


def test_panels_stand_in_one_order_whatever_the_answers_are():
    run = figure_run("S1sub")
    answers = panel_answers(run).sample(frac=1, random_state=0)
    labels = sorted({*answers.true, *answers.predicted})
    for m, own in answers.groupby("method"):
        matrix = confusion_matrix(own.true, own.predicted, labels, normalize=True)
        assert list(matrix.index) == list(matrix.columns) == labels
        a, b = own.true.value_counts().index[:2]
        mine = own[own.true == a]
        assert matrix.loc[a, b] == pytest.approx((mine.predicted == b).mean())
    seeds = answers.groupby("method").seed.unique().map(sorted)
    assert all(s == seeds.iloc[0] for s in seeds), "panels are of other seeds"
    assert set(answers.method) <= set(panels(run, "confusion"))


@pytest.mark.parametrize("figure", ["fig2_performance", "fig3_confusion", "fig4_umap"])
def test_prose_of_a_figure_names_no_paper_by_itself(figure):
    cells = nbformat.read(ROOT / "nbs" / "papers" / "scinterpreter" / f"{figure}.ipynb", 4).cells
    prose = " ".join(c.source for c in cells if c.cell_type == "markdown") + " ".join(line for c in cells for line in c.source.splitlines() if line.startswith("#| fig-"))
    assert "scInterpreter" not in prose and "scReader" not in prose
    for paper, name, other in (("scinterpreter", "scInterpreter", "scReader"), ("screader", "scReader", "scInterpreter")):
        assert claim(paper, figure.split("_")[0]).startswith(f"**{name}") and other not in claim(paper, figure.split("_")[0])


def test_a_composite_is_called_a_substitute_wherever_it_is_drawn():
    study = load_study()
    for name, setting in study.settings.items():
        if setting.dataset.endswith("_multistudy"):
            assert setting.stands_for in ("HUMAN-10k", "MOUSE-13k")
            assert page_note(figure_run(name)).startswith(f"> **A substitute.** {setting.stands_for}")


@pytest.mark.parametrize("book", sorted((ROOT / "nbs" / "results").glob("*_multistudy/*.ipynb")), ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_committed_pages_are_small_and_whole(book):
    assert book.stat().st_size < 300_000
    cells = nbformat.read(book, 4).cells
    shown = " ".join(str(o) for c in cells if c.cell_type == "code" for o in c.outputs)
    assert "image/png" in shown and "A substitute." in shown and "Traceback" not in shown


# what is committed


def test_the_committed_study_can_be_read():
    report = study_report()
    table = report.scores(list(report.study.settings), report.arms(["lr-hvg", "genept-w"]))
    assert len(table) == len(report.study.settings) * 4 and (table.seeds <= table.of).all()
    assert set(report.study.screened) <= set(report.study.plans)
