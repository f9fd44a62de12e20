"What is released: a wheel without tests, a source distribution with the notebooks, and words about both that agree."

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from configparser import ConfigParser
from email import message_from_bytes
from pathlib import Path
import pytest
import yaml
from typer.testing import CliRunner
import reclip
from reclip import ReCLIP, demo
from reclip.cli import app
from reclip.files import read_json, write_json

ROOT = Path(__file__).parents[2]
if not (ROOT / 'setup.py').is_file():
    pytest.skip('packages are built from a checkout', allow_module_level=True)
CONFIG = ConfigParser(delimiters=['='])
CONFIG.read(ROOT / 'settings.ini', 'utf-8')
CFG = CONFIG['DEFAULT']
TEXTS = ('CHANGELOG.md', 'CITATION.cff', 'CONTRIBUTING.md', 'LICENSE', 'README.md', 'SECURITY.md')

ALONE = """
import pkgutil, sys
for name in ('matplotlib', 'nbformat', 'IPython', 'nbdev', 'pytest', 'transformers', 'faiss', 'datasets', 'accelerate'):
    sys.modules[name] = None
from reclip.cli import main
sys.argv = ['reclip', 'demo', '--epochs', '0', '-q', '-o', 'out']
main()
"""


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    "Names in the wheel and in the source distribution, and what the wheel says about itself"
    pytest.importorskip('setuptools', '77')
    here = tmp_path_factory.mktemp('built')
    left = shutil.ignore_patterns('.git', '.venv', '_docs', '_proc', '.*_cache', '__pycache__', '*.egg-info', 'build')
    shutil.copytree(ROOT, here / 'checkout', ignore=left)
    make = "from setuptools import build_meta as b; b.build_sdist('..'); b.build_wheel('..')"
    done = subprocess.run([sys.executable, '-c', make], cwd=here / 'checkout', capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,), (source,) = here.glob('*.whl'), here.glob('*.tar.gz')
    with zipfile.ZipFile(wheel) as z:
        inside = {*z.namelist()}
        about = message_from_bytes(z.read(next(o for o in inside if o.endswith('/METADATA'))))
    with tarfile.open(source) as t:
        return inside, {o.partition('/')[2] for o in t.getnames()}, about


def test_the_wheel_has_the_library_and_no_tests(built):
    inside, _, _ = built
    files = {o.relative_to(ROOT).as_posix() for o in (ROOT / 'reclip').iterdir() if o.is_file()}
    assert 'reclip/py.typed' in files and {o for o in inside if '.dist-info/' not in o} == files


def test_the_source_distribution_has_the_notebooks(built):
    _, source, _ = built
    pages = {o.relative_to(ROOT).as_posix() for o in (ROOT / 'nbs').rglob('*.ipynb') if 'checkpoints' not in str(o)}
    assert len(pages) > 100 and pages <= source
    assert {*TEXTS, 'settings.ini', 'setup.py', 'pyproject.toml', 'reclip/tests/conftest.py', '.ci/docs.py'} <= source
    assert not [o for o in source if re.search(r'^_docs|^_proc|__pycache__|\.pyc$|checkpoints', o)]


def test_what_the_index_shows(built):
    _, _, about = built
    links = dict(o.split(', ') for o in about.get_all('Project-URL'))
    assert links.keys() == {'Documentation', 'Source', 'Issues', 'Changelog'}
    said = about.get_all('Classifier')
    assert 'Typing :: Typed' in said and [o for o in said if o.startswith('Topic :: Scientific/Engineering')]
    text = about.get_payload()
    addresses = re.findall(r'\]\(([^)]+)\)', text)
    assert addresses and all(o.startswith(('https://', '#')) for o in addresses)
    pictures = re.findall(r'!\[[^]]*\]\(([^)]+)\)', text)
    raw = CFG['git_url'].replace('github.com', 'raw.githubusercontent.com') + f'/v{CFG["version"]}/'
    assert len(pictures) == 2 and all((ROOT / o.removeprefix(raw)).is_file() for o in pictures)


def test_adapting_needs_nothing_of_the_extras(built, tmp_path):
    _, _, about = built
    needed = [re.split(r'[<>=;]', o)[0] for o in about.get_all('Requires-Dist') if 'extra' not in o]
    assert not {'matplotlib', 'nbformat', 'ipykernel', 'nbdev', 'jupyter', 'pytest'} & {*needed}
    done = subprocess.run([sys.executable, '-c', ALONE], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "pip install 'reclip-torch[report]'" in done.stdout and 'final' in done.stdout
    assert sorted(o.name for o in (tmp_path / 'out').iterdir()) == ['images', 'labels.csv', 'run']


def test_without_matplotlib_a_picture_is_refused_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'matplotlib', None)
    (tmp_path / 'photos').mkdir()
    demo.demo_digits()[0][0].save(tmp_path / 'photos' / '0.png')
    label = ['adapt', str(tmp_path / 'photos'), '--classes', 'one, two', '--model', 'demo', '-o', str(tmp_path / 'RUN')]
    for line in ([*label, '--report'], ['report', str(tmp_path)], ['table', str(tmp_path), '--figure', 'gains.png']):
        found = CliRunner().invoke(app, line)
        assert found.exit_code == 2 and "needs Matplotlib, which is not installed: pip install" in found.stderr, line
    assert [o.name for o in tmp_path.iterdir()] == ['photos']


def test_one_version(digits, tmp_path):
    version = CFG['version']
    cited = yaml.safe_load((ROOT / 'CITATION.cff').read_text('utf-8'))
    assert reclip.__version__ == version == str(cited['version'])
    assert re.search(r'^## (\S+)', (ROOT / 'CHANGELOG.md').read_text('utf-8'), re.M)[1] == version
    assert CliRunner().invoke(app, ['--version']).stdout == f'reclip {version}\n'
    saved = ReCLIP('demo', class_names=demo.class_names, templates=demo.templates, epochs=0).fit(digits[0][:60])
    saved.save(tmp_path / 'new')
    config = read_json(tmp_path / 'new' / 'config.json')
    assert config['versions']['reclip-torch'] == version
    config['settings']['logit_scale'] = config.pop('logit_scale')  # as 0.0.1 wrote it
    config['versions']['reclip-torch'] = '0.0.1'
    write_json(tmp_path / 'new' / 'config.json', config)
    assert ReCLIP.load(tmp_path / 'new').labels_.equal(saved.labels_)


def workflow(name):
    return yaml.safe_load((ROOT / '.github' / 'workflows' / name).read_text('utf-8'))['jobs']


def test_every_python_that_is_promised_is_tried(built):
    _, _, about = built
    promised = [o.split(' :: ')[-1] for o in about.get_all('Classifier') if re.search(r':: 3\.\d+$', o)]
    jobs = workflow('test.yaml')
    assert promised == ['3.11', '3.12', '3.13'] and promised[0] == CFG['min_python']
    assert jobs['test']['strategy']['matrix']['python'] == jobs['wheel']['strategy']['matrix']['python'] == promised
    assert not [o for o in jobs['wheel']['steps'] if 'checkout' in o.get('uses', '')]  # the wheel is all there is
    assert {o['resolution'] for o in jobs['bounds']['strategy']['matrix']['include']} == {'lowest-direct', 'highest'}
    tests = re.findall(r'reclip/tests/\w+\.py', jobs['bounds']['steps'][-1]['run'])
    assert tests and all((ROOT / o).is_file() for o in tests)


def test_a_release_needs_no_password():
    jobs, text = workflow('release.yaml'), (ROOT / '.github' / 'workflows' / 'release.yaml').read_text('utf-8')
    assert jobs['publish']['permissions'] == {'id-token': 'write'} and 'secrets.' not in text
    assert jobs['publish']['needs'] == 'build' and [o for o in jobs['build']['steps'] if 'reclip demo' in str(o)]


def test_issue_forms_are_forms():
    forms = sorted((ROOT / '.github' / 'ISSUE_TEMPLATE').glob('*.yml'))
    assert len(forms) == 4
    for o in forms:
        form = yaml.safe_load(o.read_text('utf-8'))
        assert o.name == 'config.yml' or {'name', 'description', 'body'} <= form.keys()
        ids = [part['id'] for part in form.get('body', []) if part['type'] != 'markdown']
        assert len(ids) == len({*ids})


def test_the_demo_leaves_nothing_unignored():
    if not (ROOT / '.git').exists():
        pytest.skip('git is not there')
    seen = subprocess.run(['git', 'check-ignore', 'reclip-demo/run/config.json'], cwd=ROOT, capture_output=True)
    assert seen.returncode == 0
