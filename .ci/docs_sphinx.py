"""How Sphinx renders the converted notebooks: its configuration, and a small extension for anchors and formulas."""
import re
from collections import Counter
from io import StringIO

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.errors import SphinxError
from sphinx.util.docutils import docutils_namespace, patch_docutils

from docs_pages import DocsError

HOUSE, SISTER = '#0072B2', '#56B4E9' # as in nbs/styles.css, where the choice is explained


def pandoc_id(text):
    "The anchor that Quarto gives a heading"
    return re.sub(r'^[^a-z]+', '', re.sub(r'\s+', '-', re.sub(r'[^\w\s.-]', '', text).strip().lower())) or 'section'


def quarto_anchors(app, doctree):
    "Give every section the anchor that Quarto would: links are the same in both sites, and nbdev's (`#genetable.align`) fit"
    taken = Counter()
    for section in doctree.findall(nodes.section):
        name = pandoc_id(section[0].astext())
        section['ids'] = [f'{name}-{taken[name]}' if taken[name] else name]
        taken[name] += 1


def visit_math(self, node, block=False):
    "Formulas as MathML: Sphinx's default fetches a script from the network"
    try: self.body.append(tex2mathml(node.astext(), as_block=block))
    except MathError as e: raise DocsError(f'the formula {node.astext()!r} cannot be read: {e}') from e
    raise nodes.SkipNode


def setup(app):
    "This file is an extension of Sphinx too"
    app.connect('doctree-read', quarto_anchors, priority=100) # before Sphinx collects anchors for its contents
    app.add_html_math_renderer('mathml', inline_renderers=(visit_math, None),
                               block_renderers=(lambda self, node: visit_math(self, node, block=True), None))
    return {'parallel_read_safe': True, 'parallel_write_safe': True}


SCROLL = """addEventListener('DOMContentLoaded', () => {
  const bar = document.querySelector('.sidebar-scroll'), here = bar?.querySelector('.current-page')
  if (here) bar.scrollTop = here.offsetTop - bar.clientHeight/2
})""" # furo leaves the sidebar at its top, where the page one reads may not be in sight


def sphinx_config(project, static):
    "What a conf.py would hold"
    light = {'color-brand-primary': HOUSE, 'color-brand-content': HOUSE, 'color-brand-visited': HOUSE}
    dark = {'color-brand-primary': SISTER, 'color-brand-content': SISTER, 'color-brand-visited': SISTER}
    return dict(
        project=project.site['title'], html_title=project.site['title'], html_baseurl=project.url, language='en_GB',
        project_copyright=project.copyright, extensions=['myst_nb', __name__], exclude_patterns=['_static'],
        html_theme='furo', html_theme_options=dict(light_css_variables=light, dark_css_variables=dark),
        html_static_path=[str(static)], html_css_files=['styles.css'], html_js_files=[(None, {'body': SCROLL})], html_math_renderer='mathml',
        html_show_sphinx=False, html_copy_source=False, html_show_sourcelink=False, html_use_index=False,
        nb_execution_mode='off', nb_merge_streams=True, nb_render_markdown_format='myst',
        nb_code_prompt_show='Show the code', nb_code_prompt_hide='Hide the code',
        # Links are made and checked here, so Sphinx is to leave them alone; dollars are formulas where Pandoc says so.
        myst_all_links_external=True, myst_enable_extensions=['attrs_block', 'colon_fence', 'dollarmath'],
        myst_dmath_allow_space=False, myst_dmath_allow_digits=False)


def run_sphinx(project, work, out, jobs):
    "Render the notebooks of `work` in `out`; returns Sphinx's warnings"
    stream = StringIO()
    try:
        with patch_docutils(), docutils_namespace():
            app = Sphinx(work, None, out, out.parent/'.doctrees', 'html', sphinx_config(project, work/'_static'),
                         status=None, warning=stream, freshenv=True, parallel=jobs)
            app.build(force_all=True)
    except SphinxError as e: raise DocsError(f'Sphinx: {e}') from e
    return re.sub(r'\x1b\[[\d;]*m', '', stream.getvalue()).replace(f'{work}/', '').splitlines()
