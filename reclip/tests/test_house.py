"""The habits that keep the house: what ruff checks by its settings in pyproject.toml, and what it cannot count

An exception stands in a table, one by one and with its reason; a test fails for one that is no longer needed.
"""

import ast
import json
import re
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path
import pytest

ROOT = Path(__file__).parents[2]
if not (ROOT / 'pyproject.toml').is_file():
    pytest.skip('the pages are in a checkout, not in an installed package', allow_module_level=True)

FUNCTION = 45  # lines
MODULE = 250  # lines
PARAMETERS = 8
WIDTH = 120  # columns

LONG_FUNCTIONS = {
    'finished.predict': 'the declaration of a command, and its help',
}
MANY_PARAMETERS = {
    'cli._labelling': 'the declaration of what two commands share',
    'finished.predict': 'the declaration of a command',
    'bench.propagation': 'the declaration of a command',
    'bench.adaptation': 'the declaration of a command',
    'bench.encoding': 'the declaration of a command',
    'run.adapt': 'the door for people: each keyword is seen by an editor, with its comment',
    'selftrain.adapt': 'the same one floor below, for people who have a model of their own',
}
LONG_MODULES = {}
WIDE_MODULES = {}
PACKED = {}
CIRCLES = set()  # (who imports, what)
ALPHA = {'settings', 'released'}  # where its default is written: once, and in the oracle

TEXTS = {
    p.stem: p.read_text('utf-8')
    for p in sorted((ROOT / 'reclip').glob('*.py'))
    if p.stem not in ('__init__', '_modidx')
}
MODULES = {name: ast.parse(text) for name, text in TEXTS.items()}


def exceptions(found, allowed):
    "Nothing is found but what is allowed, and all that is allowed is found"
    assert not (new := {o: found[o] for o in found if o not in allowed}), f'mend: {new}'
    assert not (old := [o for o in allowed if o not in found]), f'no exceptions any more, take them out: {old}'


def functions(tree, before=''):
    "Name with its classes and functions before it, and node, of all functions"
    for node in ast.iter_child_nodes(tree):
        named = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
        name = f'{before}.{node.name}' if named else before
        if named and not isinstance(node, ast.ClassDef):
            yield name, node
        yield from functions(node, name)


FUNCTIONS = {name: node for module, tree in MODULES.items() for name, node in functions(tree, module)}


def cells():
    "Page and tree of each cell that is plain Python"
    for path in sorted((ROOT / 'nbs').rglob('*.ipynb')):
        if '.ipynb_checkpoints' in path.parts:
            continue
        for cell in json.loads(path.read_text('utf-8'))['cells']:
            lines = [o for o in ''.join(cell['source']).splitlines() if not o.startswith(('!', '%'))]
            if cell['cell_type'] == 'code':
                yield path.relative_to(ROOT).as_posix(), ast.parse('\n'.join(lines))


def ruff(*args):
    "A call of ruff; an error is no finding"
    pytest.importorskip('ruff')
    found = subprocess.run([sys.executable, '-m', 'ruff', *args], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode in (0, 1), found.stderr
    return found


def relative(path):
    return Path(path).resolve().relative_to(ROOT.resolve()).as_posix()


# ---- sizes


def test_functions_are_short():
    long = {name: o.end_lineno - o.lineno + 1 for name, o in FUNCTIONS.items()}
    exceptions({name: n for name, n in long.items() if n > FUNCTION}, LONG_FUNCTIONS)


def test_functions_take_few_parameters():
    many = {k: len([*o.args.posonlyargs, *o.args.args, *o.args.kwonlyargs]) for k, o in FUNCTIONS.items()}
    exceptions({name: n for name, n in many.items() if n > PARAMETERS}, MANY_PARAMETERS)
    reasons = [why for why in MANY_PARAMETERS.values() if not why.startswith('the declaration')]
    assert len(reasons) <= 3


def test_modules_are_short():
    exceptions({k: n for k, o in TEXTS.items() if (n := len(o.splitlines())) > MODULE}, LONG_MODULES)


def test_lines_of_modules_are_short():
    made = {
        i  # nbdev writes the names that a module exports in lines of its own length
        for name, tree in MODULES.items()
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == '__all__'
        for i in [(name, k) for k in range(node.lineno, node.end_lineno + 1)]
    }
    lines = [(name, k, o) for name, text in TEXTS.items() for k, o in enumerate(text.splitlines(), 1)]
    exceptions({name: k for name, k, o in lines if len(o) > WIDTH and (name, k) not in made}, WIDE_MODULES)


# ---- layout


def test_ruff_finds_nothing_but_the_exceptions():
    allowed = tomllib.loads((ROOT / 'pyproject.toml').read_text('utf-8'))['tool']['ruff']['lint']['per-file-ignores']
    said = json.loads(ruff('check', '--output-format', 'json', '--config', 'lint.per-file-ignores={}').stdout)
    found = {(relative(o['filename']), o['code']): o['location']['row'] for o in said}
    exceptions(found, [(path, code) for path, codes in allowed.items() for code in codes])


def test_pages_and_tests_are_formatted():
    settings = tomllib.loads((ROOT / 'pyproject.toml').read_text('utf-8'))['tool']['ruff']
    assert ruff('format', '--check').returncode == 0, 'run ruff format'
    done = [o for o in settings['format'].get('exclude', []) if ruff('format', '--check', o).returncode == 0]
    assert done == [], 'no exceptions any more, take them out'


def test_names_are_given_in_pairs_at_most():
    tests = [(relative(o), ast.parse(o.read_text('utf-8'))) for o in (ROOT / 'reclip' / 'tests').glob('*.py')]
    packed = {
        where: ast.unparse(node)
        for where, tree in [*MODULES.items(), *cells(), *tests]
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple) and isinstance(node.targets[0], ast.Tuple)
        if len(node.value.elts) > 2 and not any(isinstance(o, ast.Starred) for o in node.value.elts)
    }
    exceptions(packed, PACKED)


# ---- modules


def imported(tree):
    "Modules of the library, and their names, that a module imports, at its top or inside a function"
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or '').split('.')[0] == 'reclip'):
            home = (node.module or '').removeprefix('reclip').strip('.')
            yield from ((home or o.name, o.name if home else '', o.asname or o.name) for o in node.names)
        if isinstance(node, ast.Import):
            inside = [o.name.split('.')[1] for o in node.names if o.name.startswith('reclip.')]
            yield from ((name, '', name) for name in inside)


def ways(graph, start):
    "All modules that one imports, at first or second hand"
    found, new = set(), {start}
    while new:
        found |= new
        new = set().union(*(graph[o] for o in new)) - found
    return found


def test_no_circles():
    graph = {name: {o for o, *_ in imported(tree) if o in MODULES} for name, tree in MODULES.items()}
    assert len(graph['cli']) > 5  # it sees relative imports
    for name, other in CIRCLES:
        assert name in ways(graph, other), 'no exception any more, take it out'
        graph[name].discard(other)
    TopologicalSorter(graph).prepare()  # CycleError names the circle


def test_what_is_imported_is_used():
    for name, tree in MODULES.items():
        every = [
            o.asname or o.name for n in ast.walk(tree) if isinstance(n, (ast.Import, ast.ImportFrom)) for o in n.names
        ]
        used = {o.id for o in ast.walk(tree) if isinstance(o, ast.Name)}
        for node in tree.body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == '__all__':
                used |= {*ast.literal_eval(node.value)}
        assert every and not {o.split('.')[0] for o in every} - used, name


def private(name):
    return name.startswith('_') and not name.startswith('__')


def own_names(tree):
    "Private names that a module defines: functions, classes, globals and attributes"
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and private(node.name):
            yield node.name
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and private(node.id):
            yield node.id
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and private(node.attr):
            yield node.attr


def test_what_is_private_stays_at_home():
    homes = {name: {*own_names(tree)} for name, tree in MODULES.items()}
    everywhere = set().union(*homes.values())
    assert {'_fit', '_line', '_number'} <= everywhere
    reached = {}
    for name, tree in MODULES.items():
        reached |= {f'{name}: {o}.{what}': 'import' for o, what, _ in imported(tree) if private(what)}
        doors = {as_name for o, what, as_name in imported(tree) if not what and o in MODULES}
        for node in ast.walk(tree):
            if not isinstance(node, ast.Attribute) or not private(node.attr):
                continue
            of_module = isinstance(node.value, ast.Name) and node.value.id in doors
            if of_module or node.attr in everywhere - homes[name]:
                reached[f'{name}: {ast.unparse(node)}'] = node.lineno
    assert reached == {}


# ---- defaults


def has_number(node):
    return any(isinstance(o, ast.Constant) and isinstance(o.value, float) for o in ast.walk(node)) if node else False


def alpha_defaults(tree):
    "Lines where a number is what `alpha` is if nobody says anything"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            plain, keywords = [*node.args.posonlyargs, *node.args.args], node.args.kwonlyargs
            pairs = [*zip(plain[::-1], node.args.defaults[::-1]), *zip(keywords, node.args.kw_defaults)]
            yield from (o.lineno for o, value in pairs if o.arg == 'alpha' and has_number(value))
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == 'alpha' and has_number(node.value):
            yield node.lineno
        if isinstance(node, ast.Call) and ast.unparse(node.func) == 'dict':
            yield from (node.lineno for o in node.keywords if o.arg == 'alpha' and has_number(o.value))


def test_the_default_of_alpha_is_written_once():
    found = {name: lines for name, tree in MODULES.items() if (lines := [*alpha_defaults(tree)])}
    assert found.keys() == ALPHA and all(len(lines) == 1 for lines in found.values()), found


# ---- pages


STAGES = '02_zeroshot 03_projection 04_graph 05_pseudolabel 05a_mixture 05c_labeller 06_selftrain'.split()
BOXES = ('note', 'Why it is there'), ('warning', 'When it fails'), ('tip', 'Turn this knob')


@pytest.mark.parametrize('page', STAGES)
def test_a_stage_closes_with_three_boxes_of_one_form(page):
    cells = json.loads((ROOT / 'nbs' / f'{page}.ipynb').read_text('utf-8'))['cells']
    said = '\n'.join(''.join(o['source']) for o in cells if o['cell_type'] == 'markdown')
    assert re.findall(r'^::: \{\.callout-(\w+) title="([^"]+)"\}$', said, re.M) == list(BOXES)
    assert any('knob_figure(' in ''.join(o['source']) and o.get('outputs') for o in cells)
