"What README.md shows is complete and runs as printed; only the model's name is another, and the photos are small."

import ast
import json
import re
import shlex
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path
import numpy as np
import pytest
from typer.testing import CliRunner
from reclip import demo
from reclip.cli import app

ROOT = Path(__file__).parents[2]
if not (ROOT / 'README.md').is_file():
    pytest.skip('README.md is in a checkout, not in an installed package', allow_module_level=True)
README = (ROOT / 'README.md').read_text('utf-8')


def blocks(kind):
    return re.findall(rf'^```{kind}\n(.*?)^```', README, re.M | re.S)


def stand_in(text):
    "The demo model, which needs no download"
    assert 'ViT-B-32' in text
    return text.replace('ViT-B-32', 'demo')


@pytest.fixture
def desk(tmp_path, features):
    "A folder as the README has it: photos, more of them, words, and features"
    images, _ = demo.demo_digits()
    for folder, some in dict(photos=images[:40], new_photos=images[40:46]).items():
        (tmp_path / folder).mkdir()
        for i, image in enumerate(some):
            image.convert('RGB').save(tmp_path / folder / f'{i:02}.jpg')
    (tmp_path / 'classes.txt').write_text(''.join(f'{o}\n' for o in demo.class_names))
    np.save(tmp_path / 'image_features.npy', features[0].numpy())
    np.save(tmp_path / 'text_features.npy', features[1].numpy())
    return tmp_path


def test_snippets_are_complete():
    assert len(blocks('python')) >= 4
    for text in blocks('python'):
        tree = ast.parse(text)
        assert not [o for o in ast.walk(tree) if isinstance(o, ast.Constant) and o.value is ...], text
        assert isinstance(tree.body[0], (ast.Import, ast.ImportFrom)), f'it needs what another imports: {text}'


def test_snippets_run(desk):
    texts = [o.replace('ViT-B-32', 'demo') for o in blocks('python')]
    assert texts != blocks('python')
    (desk / 'texts.json').write_text(json.dumps(texts))
    each = "import json\nfor text in json.load(open('texts.json')):\n    exec(compile(text, text, 'exec'), {})"
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', each], cwd=desk, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {'RUN', 'adapted'} <= {o.name for o in desk.iterdir()} and (desk / 'RUN' / 'report.html').is_file()
    printed = re.search(r'```\n(zero-shot .*?)```', README, re.S)[1]
    numbers = [[float(o) for o in re.findall(r'([\d.]+)%', text)] for text in (printed, done.stdout)]
    assert len(numbers[0]) == 3 and numbers[0] == pytest.approx(numbers[1], abs=1.5)  # another torch, another digit


def test_commands_run(desk, monkeypatch):
    monkeypatch.chdir(desk)
    (text,) = [o for o in blocks('bash') if o.startswith('reclip adapt')]
    lines = [shlex.split(o, comments=True) for o in stand_in(text).splitlines()]
    assert [o[1] for o in lines] == ['adapt', 'report', 'predict', 'export']
    for line in lines:
        done = CliRunner().invoke(app, line[1:])
        assert done.exit_code == 0, f'{line}: {done.output} {done.stderr}'
    assert (desk / 'RUN' / 'report.html').is_file() and (desk / 'exported' / 'README.md').is_file()
    assert len((desk / 'new.csv').read_text().splitlines()) == 7


def test_promise_picture_commands_results_limits():
    order = [
        '\n> ',
        '](nbs/images/demo.png)',
        '```bash\ngit clone https://github.com/',
        '&& reclip demo',
        '&& pytest',
        'https://download.pytorch.org/whl/cpu',
        '| zero-shot, % |',
        'where it loses',
        '## Your own images',
    ]
    places = [README.index(o) for o in order]
    assert places == sorted(places)
    assert README[: places[4]].count('\n') <= 15  # what is seen without scrolling


def test_extras_and_files_are_there():
    config = ConfigParser(delimiters=['='])
    config.read(ROOT / 'settings.ini', 'utf-8')
    named = re.findall(r"\[(\w+)\](?=['`])", README)
    assert {'report', 'dev', 'hf', 'faiss'} <= {*named}
    assert not [o for o in named if f'{o}_requirements' not in config['DEFAULT']]
    addresses = re.findall(r'\]\(([^)]+)\)', README)
    assert not [o for o in addresses if not o.startswith(('https:', '#')) and not (ROOT / o).is_file()]
    here = re.findall(r'github\.com/[\w-]+/reclip/blob/main/([\w./-]+)', README)
    assert here and not [o for o in here if not (ROOT / o).is_file()]
