"""The built site, in a browser: `python .ci/docs.py` builds it. All pages are opened from the folder, by one process;
where there is no browser or no built site, these tests skip."""

import html, json, re
from pathlib import Path
import pytest
from reclip.tests.browser import Browser, browser_path

ROOT = Path(__file__).parents[2]
SITE, NOTEBOOKS = ROOT / '_docs', ROOT / 'nbs'
PAGES = sorted(SITE.rglob('*.html'))
needs_site = pytest.mark.skipif(not PAGES, reason='no built site: run `python .ci/docs.py`')
needs_browser = pytest.mark.skipif(not browser_path(), reason='no browser of the Chromium family')
pytestmark = pytest.mark.xdist_group('site')

# A page: its width, TeX and links that nobody has set, characters without a glyph, pictures without a text
LOOK = r"""(async () => {
  await document.fonts.ready;
  const seen = window.__glyphs || (window.__glyphs = {});
  const canvas = document.createElement('canvas'), pen = canvas.getContext('2d', { willReadFrequently: true });
  canvas.width = canvas.height = 24;
  const drawn = (font, text) => {
    pen.clearRect(0, 0, 24, 24); pen.font = '16px ' + font; pen.fillText(text, 2, 18);
    return pen.getImageData(0, 0, 24, 24).data.filter((_, i) => i % 4 === 3).join();
  };
  const captioned = (image) => image.closest('figure')?.querySelector('figcaption')?.textContent.trim();
  const wide = document.documentElement.clientWidth + 1;
  const cut = (e) => {
    const box = e.getBoundingClientRect();
    if (box.right <= wide || !box.width || !box.height || getComputedStyle(e).position === 'absolute') return false;
    for (let up = e.parentElement; up !== document.body; up = up.parentElement) {
      if (up.id === 'quarto-content') return true;
      const scrolls = /auto|scroll|hidden/.test(getComputedStyle(up).overflowX);
      if (scrolls && up.getBoundingClientRect().right <= wide) return false;
    }
    return true;
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), chars = {}, tex = [];
  for (let node; (node = walker.nextNode());) {
    const parent = node.parentElement, text = node.nodeValue;
    if (parent.closest('script, style, annotation')) continue;
    const raw = /\$\$|\\[()[\]]|\\[a-zA-Z]{2,}|\]\(|\.ipynb\)/.test(text);
    if (raw && !parent.closest('pre, code')) tex.push(text.trim().slice(0, 80));
    if (/[^\x00-\x7f]/.test(text)) {
      const of = chars[getComputedStyle(parent).fontFamily] ||= new Set();
      for (const c of text) if (c > '\x7f') of.add(c);
    }
  }
  const missing = [];
  for (const [font, of] of Object.entries(chars)) {
    const none = drawn(font, '\u{10FFFE}');
    for (const c of of) {
      if (c === '\uFFFD' || (!/[\p{Z}\p{C}\p{M}]/u.test(c) && drawn(font, c) === none)) missing.push(c);
    }
  }
  const icons = [...document.fonts].filter((f) => f.status === 'error').map((f) => f.family);
  return {
    tex, missing: missing.concat(icons),
    over: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    cut: [...document.querySelectorAll('main *')].filter(cut).map((e) => e.outerHTML.slice(0, 80)).slice(0, 2),
    blind: [...document.querySelectorAll('main img')].filter((i) => !i.alt.trim() && !captioned(i)).length,
    broken: [...document.images].filter((i) => i.complete && !i.naturalWidth).map((i) => i.src.slice(0, 80)),
    open: [...document.querySelectorAll('details[open] > summary')].map((s) => s.textContent),
    address: (document.querySelector('main').textContent.match(/\w+ object at 0x\w+/g) || []),
  };
})()"""


@pytest.fixture(scope='module')
def browser():
    it = Browser(browser_path())
    yield it
    it.close()


def wrong(browser, page):
    "What is wrong with a page at the width of a phone, in words"
    browser.open(page.as_uri())
    look = browser.run(LOOK)
    out = [f'console: {c}' for c in browser.complaints()]
    out += [f'scrolls sideways by {look["over"]} pixels'] if look['over'] > 0 else []
    out += [f'{look["blind"]} pictures without alt text'] if look['blind'] else []
    for key, said in dict(
        cut='cut off', tex='TeX', missing='no glyph', broken='no picture', open='source unfolded', address='an address'
    ).items():
        out += [f'{said}: {o}' for o in look[key]]
    return out


@needs_site
@needs_browser
def test_every_page_of_the_site(browser):
    browser.size(390, 844)
    found = {p.relative_to(SITE).as_posix(): w for p in PAGES if (w := wrong(browser, p))}
    assert not found, json.dumps(found, indent=1, ensure_ascii=False)


@needs_site
@needs_browser
def test_the_checks_find_what_they_look_for(browser, tmp_path):
    bad = tmp_path / 'bad.html'
    bad.write_text(
        '<meta charset=utf-8><meta name=viewport content="width=device-width"><main>'
        '<p>\\(\\frac 1 2\\) \U000e1234 \ufffd</p>'
        '<img src="https://example.org/x.png"><div style="width: 900px">wide</div>'
        '<details open><summary>Exported source</summary></details>&lt;Settings object at 0x7f&gt;</main>'
        '<script>console.error("oh"); throw new Error("ah")</script>',
        'utf-8',
    )
    browser.size(390, 844)
    said = ' '.join(wrong(browser, bad))
    for word in 'oh', 'ah', 'example.org', 'sideways', 'cut off', 'TeX', '\ufffd', 'alt text', 'unfolded', 'address':
        assert word in said, (word, said)


@needs_site
@needs_browser
@pytest.mark.parametrize(
    'question, first',
    [
        ('label propagation', 'pseudolabel.html'),
        ('projection', 'projection.html'),
        ('from_model', 'reclip.html'),
        ('command line', 'cli.html'),
        ('05b', 'blocks.html'),
    ],
)
def test_search_finds_the_page_that_explains_it(browser, question, first):
    browser.open((SITE / 'index.html').as_uri())
    assert browser.run(f'searchSite({question!r}).then((hits) => hits[0].page.href)') == first


@needs_site
@needs_browser
@pytest.mark.parametrize('dark', [False, True])
def test_search_can_be_read(browser, dark):
    browser.size(1440, 900, dark)
    browser.open((SITE / 'pseudolabel.html').as_uri())
    script = """(async () => {
      const linear = (v) => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
      const light = (element, what) => {
        const [r, g, b] = getComputedStyle(element)[what].match(/[\\d.]+/g).slice(0, 3).map((v) => linear(v / 255));
        return .2126 * r + .7152 * g + .0722 * b;
      };
      const input = document.querySelector('.site-search input');
      input.value = 'label propagation';
      input.dispatchEvent(new Event('input'));
      await window.searchSite('x');
      await new Promise((r) => setTimeout(r, 100));
      const back = light(document.querySelector('.site-search-results'), 'backgroundColor');
      const parts = ['title', 'section', 'text'].map((k) => document.querySelector('.search-result-' + k));
      const ratio = (l) => (Math.max(l, back) + .05) / (Math.min(l, back) + .05);
      return [...parts, input].map((p) => ratio(light(p, 'color'))).concat(back); })()"""
    *ratios, back = browser.run(script)
    assert (back < 0.5) == dark and min(ratios) > 4.5, (ratios, back)


def text_of(page):
    return html.unescape(re.sub('<[^>]+>', '', page))


@needs_site
def test_signatures_are_those_of_the_source():
    page = text_of((SITE / 'reclip.html').read_text('utf-8'))
    assert '@classmethod\ndef from_model(\n    cls,\n    model: nn.Module,  # open_clip model in memory' in page
    assert '    **settings,  # all others of ReCLIP\n) -> ' in page
    assert '@classmethod\ndef load(\n    cls,\n    folder: str | Path,  # from `save`' in page
    page = text_of((SITE / 'pseudolabel.html').read_text('utf-8'))
    assert 'settings: Settings = DEFAULTS,' in page and 'class PseudoLabels(NamedTuple):\n' in page


@needs_site
def test_formulas_are_set_and_pages_numbered():
    page = (SITE / 'pseudolabel.html').read_text('utf-8')
    assert page.count('<math ') > 5 and 'katex' not in page.lower()
    assert '<span class="page-number">05</span> <span class="menu-text">Class names' in page
    assert (
        '<span class="page-number">05b</span>' in page
        and '<h1 class="title"><span class="page-number">05</span>' in page
    )


@needs_site
def test_boxes_of_help_are_whole():
    page = text_of((SITE / 'cli.html').read_text('utf-8'))
    box = [line for line in page.split('\n') if line[:1] in '╭│╰' and line.strip()]
    assert len(box) > 50
    assert {len(line) for line in box} == {100} and {line[-1] for line in box} <= set('╮│╯')


def figures():
    for path in sorted(NOTEBOOKS.rglob('*.ipynb')):
        for cell in json.loads(path.read_text('utf-8'))['cells']:
            for out in cell.get('outputs', []):
                if {'image/png', 'image/jpeg'} & out.get('data', {}).keys():
                    yield path, cell
                    break


def test_figures_have_a_text_beside_them_and_no_missing_glyphs():
    blind = [f'{p.name} {c["id"]}' for p, c in figures() if '#| fig-alt: ' not in ''.join(c['source'])]
    assert not blind, f'a cell with a picture begins with `#| fig-alt: "what it shows"`: {blind}'
    for path in sorted(NOTEBOOKS.rglob('*.ipynb')):
        assert 'missing from font' not in path.read_text('utf-8'), f'{path.name}: a figure lacks a glyph'
