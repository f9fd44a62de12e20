"""Build the documentation site and README.md from the notebooks, without Quarto.

nbdev processes the notebooks just as `nbdev_docs` does, and smalldocs, which reads the same `_quarto.yml`, renders
them into `_docs`. No cell runs except imports, exported cells and `show_doc`; all results are the stored outputs.
"""

import json, re, shutil, sys
from pathlib import Path
from fastcore.script import call_parse
from nbdev.config import get_config
from nbdev.quarto import nbdev_sidebar, refresh_quarto_yml
from nbdev.serve import proc_nbs
from nbdev import showdoc
from pages import Signature, html_name, index, mend, number
from smalldocs.site import build


def _rename(out):
    "Give the pages nbdev's names, and mend them"
    pages = {p.relative_to(out).as_posix(): p for p in out.rglob('*.html')}
    old = {p.name: html_name(p.name) for p in pages.values() if p.name != html_name(p.name)}
    numbered = {html_name(k): number(k) for k in pages if number(k)}  # numbered pages stand at the top
    pat = re.compile(r'(?<![\w])(' + '|'.join(map(re.escape, old)) + ')')
    for p in list(out.rglob('*')):
        if p.suffix in ('.html', '.json', '.xml'):
            p.write_text(pat.sub(lambda m: old[m[1]], p.read_text('utf-8')), 'utf-8')
        if p.name in old:
            p.rename(p.with_name(old[p.name]))
    finish(out, numbered)


def finish(out, numbered):
    "Mend each page, and lay search beside them"
    cfg, here = get_config(), Path(__file__).parent
    base = cfg.doc_host.rstrip('/') + cfg.doc_baseurl.rstrip('/') + '/'
    (out / 'site_libs/search-index.js').write_text(index(out, numbered), 'utf-8')
    for p in out.rglob('*.html'):
        text = mend(p.read_text('utf-8'), p.relative_to(out).as_posix(), numbered, base)
        p.write_text(text, 'utf-8')
    for p in out.glob('site_libs/themes/*.css'):  # their fonts come from a network; styles.css names the system's
        p.write_text(re.sub(r'@import url\([^)]*\);', '', p.read_text('utf-8')), 'utf-8')
    shutil.copy(here / 'search.js', out / 'site_libs')
    shutil.rmtree(out / 'site_libs/fuse')
    (out / 'search.json').unlink()


def site(cfg):
    "Build `_docs`, and return the warnings"
    showdoc.BasicMarkdownRenderer = Signature
    refresh_quarto_yml()
    nbdev_sidebar.__wrapped__()
    shutil.rmtree(cfg.config_path / '_proc', ignore_errors=True)
    res = build(proc_nbs(n_workers=0), quiet=True)
    _rename(res.out)
    shutil.rmtree(cfg.doc_path, ignore_errors=True)
    shutil.move(res.out, cfg.doc_path)
    return [w for w in res.warnings if 'output-file is not read' not in w]


def _spine(text, site):
    "A list of pages without those that have a letter, and where these are"
    short = re.sub(r'^\| \[\d\d[a-z] .*\n', '', text, flags=re.M)
    if short == text:
        return text
    more = f'The pages with a letter are [on the site]({site}).'
    return re.sub(r'(^\| \[\d\d .*\n(?:\|.*\n)*)', rf'\1\n{more}\n', short, count=1, flags=re.M)


def readme(cfg):
    "The text of README.md, from the index notebook; cells of code in a row are one block"
    base = cfg.doc_host.rstrip('/') + cfg.doc_baseurl.rstrip('/') + '/'

    def _link(m):
        return f'](<{base}{m[1]}{html_name(m[2])}.html{m[3] or ""}>)'.replace('<', '').replace('>', '')

    out, was = [], None
    for c in json.loads((cfg.nbs_path / 'index.ipynb').read_text('utf-8'))['cells']:
        src = ''.join(c['source'])
        if re.search(r'^#\|\s*(hide|export|include: false)', src, re.M):
            continue
        if c['cell_type'] == 'markdown':
            text = re.sub(r'\]\(((?:[\w.-]+/)*)([\w.-]+)\.ipynb(#[\w-]+)?\)', _link, _spine(src, base))
            out.append(text.replace('](images/', '](nbs/images/'))
        elif c['cell_type'] == 'code':
            code = re.sub(r'^#\|.*\n', '', src, flags=re.M) + '\n```'
            if was == 'code' and out[-1].startswith('```python'):
                out[-1] = out[-1].removesuffix('```') + '\n' + code
            else:
                out.append('```python\n' + code)
            for o in c['outputs']:
                txt = ''.join(o.get('text') or o.get('data', {}).get('text/plain') or '')
                if txt:
                    out.append('```\n' + txt.rstrip() + '\n```')
        was = c['cell_type']
    return '<!-- Made from nbs/index.ipynb: edit there -->\n\n' + '\n\n'.join(out) + '\n'


@call_parse
def main(
    check: bool = False,  # Fail on a warning, and when README.md is not up to date
):
    "Build `_docs` and README.md"
    cfg = get_config()
    warns, txt, f = site(cfg), readme(cfg), cfg.config_path / 'README.md'
    stale = not f.exists() or f.read_text('utf-8') != txt
    if stale and not check:
        f.write_text(txt, 'utf-8')
    if stale and check:
        warns.append('README.md is not up to date with nbs/index.ipynb: run `python .ci/docs.py`')
    print(*warns, sep='\n', file=sys.stderr)
    print(f'{len(list(cfg.doc_path.rglob("*.html")))} pages in {cfg.doc_path}')
    if check and warns:
        sys.exit(1)
