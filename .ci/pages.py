"""What the site needs beyond smalldocs: it works without a network, a page's number stands beside its name, formulas
are set while the site is built, signatures are the source's own, and search weighs names above text."""

import ast, base64, html, inspect, io, json, posixpath, re, textwrap
from dataclasses import is_dataclass
from latex2mathml.converter import convert
from nbdev.showdoc import BasicMarkdownRenderer
from PIL import Image

_NUMBER = re.compile(r'^(\d+[a-z]?)_')
_MODULES = re.compile(r'\b(?:collections\.abc|pathlib|torch\.nn\.modules\.module|typing)\.(?=[A-Z])')
_MATH = re.compile(r'<span class="math (inline|display)">\\[(\[](.*?)\\[)\]]</span>', re.S)
_HREF = re.compile(r'(<a\b[^>]*?\bhref=")([^"#?:]+\.html)((?:#[^"]*)?"[^>]*>)(<span class="menu-text">)?')
_TWICE = re.compile(r'\[([^\[\]]*</a>[^\[\]]*)\]\([\w./-]*\.ipynb[\w.#-]*\)')  # a link that nbdev linked within
_PICTURE = re.compile(r'<img( alt="[^"]*")? src="(data:image/(?:png|jpeg);base64,)([^"]+)" class="img-fluid"')


def html_name(name):
    "As nbdev's `output-file`, which smalldocs ignores: 05_pseudolabel.html -> pseudolabel.html"
    return re.sub(r'^\d+[a-zA-Z0-9]*_', '', name)


def number(name):
    "05_pseudolabel.html -> 05; empty for a page without one"
    m = _NUMBER.match(name)
    return m[1] if m else ''


def _header(lines, node):
    "The lines of a function or class to the colon before its body, with the decorators that say how it is called"
    told = [d for d in node.decorator_list if ast.unparse(d) in ('classmethod', 'staticmethod', 'property')]
    kept = [lines[d.lineno - 1] for d in told]
    end = node.body[0]
    if end.lineno == node.lineno:
        return '\n'.join([*kept, lines[node.lineno - 1][: end.col_offset].rstrip()])
    return '\n'.join([*kept, *lines[node.lineno - 1 : end.lineno - 1]]).rstrip()


def signature(sym):
    "The header of a function or class as its author wrote it; None where that says too little"
    try:
        src = textwrap.dedent(inspect.getsource(sym))
        node = ast.parse(src).body[0]
    except (OSError, TypeError, SyntaxError, IndexError):
        return None
    lines = src.split('\n')
    if isinstance(node, ast.FunctionDef):
        return _header(lines, node)
    if not isinstance(node, ast.ClassDef) or is_dataclass(sym):
        return None
    out = [_header(lines, node)]
    for part in node.body:
        if isinstance(part, ast.AnnAssign):
            out.extend(lines[part.lineno - 1 : part.end_lineno])
        elif isinstance(part, ast.FunctionDef) and part.name == '__init__':
            out.append(_header(lines, part))
    return '\n'.join(out)


class Signature(BasicMarkdownRenderer):
    "nbdev's `show_doc` with the signature of the source"

    def __init__(self, sym, name=None, title_level=3):
        super().__init__(sym, name=name, title_level=title_level)
        text = signature(self.sym)
        if text is None:
            text = _MODULES.sub('', re.sub(r'<\S+ object at 0x\w+>', '...', str(self.dm)))
            text = re.sub(r'^def ', 'class ', text) if inspect.isclass(self.sym) else text
        self.dm = text


def mathml(page):
    "Formulas as MathML, and nothing of KaTeX"

    def _set(m):
        tex = html.unescape(m[2])
        out = convert(tex, display='block' if m[1] == 'display' else 'inline')
        kind = m[1] + (' long' if len(tex) > 40 else '')  # in a line of text, may scroll within itself
        return f'<span class="math {kind}" title="{html.escape(tex.strip())}">{out}</span>'

    page = re.sub(r'<link[^>]*katex[^>]*>|<script[^>]*katex[^>]*></script>', '', page)
    return _MATH.sub(_set, page)


def numbers(page, place, numbered):
    "The number of each page before its name, in the sidebar, the line of pages above and the links below"

    def _link(m):
        target = posixpath.normpath(posixpath.join(posixpath.dirname(place), m[2]))
        n = numbered.get(target)
        if not n or 'nav-link' in m[0] or not (m[4] or 'pagination-link' in m[0]):
            return m[0]
        return f'{m[1]}{m[2]}{m[3]}<span class="page-number">{n}</span> {m[4] or ""}'

    if place in numbered:
        page = page.replace(
            '<h1 class="title">', f'<h1 class="title"><span class="page-number">{numbered[place]}</span> ', 1
        )
    return _HREF.sub(_link, page)


def _is_chart(picture):
    "Mostly white, with no black patch: photos, digits and heat maps are none"
    grey = picture.convert('L')
    white = sum(grey.histogram()[250:]) / (grey.width * grey.height)
    return white > 0.5 and grey.reduce(10).getextrema()[0] > 20


def figures(page):
    """Stored pictures carry their width, so that a phone scrolls them sideways rather than shrink them past reading,
    and say whether they are charts, which turn dark with the page, or show pictures, which stay as they are"""

    def _one(m):
        picture = Image.open(io.BytesIO(base64.b64decode(m[3])))
        kind = 'chart' if _is_chart(picture) else 'picture'
        wide = f'style="--own-width: {picture.width}px" width="{picture.width}" height="{picture.height}"'
        return f'<img{m[1] or ""} src="{m[2]}{m[3]}" class="img-fluid figure-stored {kind}" {wide}'

    return _PICTURE.sub(_one, page)


def mend(page, place, numbered, base):
    "One page of smalldocs as it should be; `place` is its path in the site, `base` the address of the site"
    up = '../' * place.count('/')
    page = figures(numbers(mathml(page), place, numbered))
    page = re.sub(
        r'<details open="" class="code-fold">(\s*<summary>Exported source)', r'<details class="code-fold">\1', page
    )
    page = re.sub(r'<img alt="Open in Colab" src="[^"]*"[^>]*>', 'Open in Colab', page)
    page = _TWICE.sub(r'\1', page)
    page = page.replace(f'href="{base}', f'href="{up}')
    page = page.replace('smalldocs-search', 'site-search')  # smalldocs' own search finds nothing to do
    return re.sub(
        r'<script src="[^"]*fuse[^"]*"></script>', f'<script src="{up}site_libs/search.js" defer></script>', page
    )


def index(out, numbered):
    "What search.js looks through, from smalldocs' search.json: a page's number, name and description, its sections"
    pages = {}
    for e in json.loads((out / 'search.json').read_text('utf-8')):
        place = e['href'].partition('#')[0]
        if place not in pages:
            text = (out / place).read_text('utf-8')
            about = re.search(r'<meta name="description" content="([^"]*)"', text)
            pages[place] = {
                'href': place,
                'number': numbered.get(place, ''),
                'title': e['title'],
                'about': html.unescape(about[1]) if about else '',
                'sections': [],
            }
        text = re.sub(r'\\(?=[A-Za-z]{2,})', '', e['text']).replace('Open in Colab', '').strip()
        pages[place]['sections'].append([e['href'].partition('#')[2], e['section'], text])
    return 'window.searchPages = ' + json.dumps(list(pages.values()), ensure_ascii=False) + ';\n'
