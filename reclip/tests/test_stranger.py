"What somebody who did not write these pages tried on the command line: each input is used as given, or a line says so."

import json
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner
from reclip.cli import app

WORDS = 'zero,one,two,three'


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp('pictures')
    for i in range(10):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (8, 8), dtype=np.uint8)).save(folder / f'{i}.png')
    return folder


def reclip(*given):
    return CliRunner().invoke(app, [str(o) for o in given])


def zeroshot(images, classes, out, *more):
    return reclip('zeroshot', images, '-c', classes, '-m', 'demo', '-t', 'digit', '-o', out, *more)


def noted(folder):
    return json.loads((folder / 'config.json').read_text())['notes']


def test_an_ordinary_run_notes_nothing(pictures, tmp_path):
    found = zeroshot(pictures, WORDS, tmp_path / 'run', '--no-cache')
    assert found.exit_code == 0 and noted(tmp_path / 'run') == []
    assert 'note:' not in found.stderr


@pytest.mark.parametrize('tag', ['!!python/object/apply:os.system', '!Thing', '!!binary'])
def test_yaml_that_asks_for_an_object_is_refused_and_not_read_as_words(pictures, tmp_path, tag):
    (tmp_path / 'c.yaml').write_text(f'- one\n- {tag} "two"\n')
    found = zeroshot(pictures, tmp_path / 'c.yaml', tmp_path / 'run', '--no-cache')
    assert found.exit_code == 2 and f'{tag} asks for an object' in found.stderr and 'in line 2' in found.stderr


def test_yaml_that_says_what_its_text_is_stays_text(pictures, tmp_path):
    (tmp_path / 'c.yaml').write_text('- !!str one\n- !!int 2\n- three\n')
    found = zeroshot(pictures, tmp_path / 'c.yaml', tmp_path / 'run', '--no-cache')
    assert found.exit_code == 0, found.stderr
    assert json.loads((tmp_path / 'run/config.json').read_text())['run']['classes'] == ['one', '2', 'three']


@pytest.mark.parametrize(
    'text, got',
    [
        ('[1, 2]', 'got 1 at [0]'),
        ('["one", null]', 'got None at [1]'),
        ('["one", true]', 'got True at [1]'),
        ('5', 'got a int'),
    ],
)
def test_what_is_no_name_is_shown(pictures, tmp_path, text, got):
    (tmp_path / 'c.json').write_text(text)
    found = zeroshot(pictures, tmp_path / 'c.json', tmp_path / 'run', '--no-cache')
    assert found.exit_code == 2 and got in found.stderr and 'expected one name a line' in found.stderr


def test_a_cache_that_cannot_be_used_is_noted(pictures, tmp_path):
    (tmp_path / 'file').write_text('in the way')
    found = zeroshot(pictures, WORDS, tmp_path / 'run', '--cache', tmp_path / 'file')
    assert found.exit_code == 0 and found.stderr.count('features cannot be kept') == 1
    (note,) = noted(tmp_path / 'run')
    assert str(tmp_path / 'file') in note and '--cache' in note


def test_pictures_that_are_damaged_or_not_there_are_noted(pictures, tmp_path):
    (tmp_path / 'empty.png').write_bytes(b'')
    paths = [tmp_path / 'empty.png', tmp_path / 'gone.png', *sorted(pictures.iterdir())]
    (tmp_path / 'list.txt').write_text('\n'.join(map(str, paths)))
    found = zeroshot(tmp_path / 'list.txt', WORDS, tmp_path / 'run', '--no-cache', '--max-unreadable', '.5')
    assert found.exit_code == 0, found.stderr
    (note,) = noted(tmp_path / 'run')
    assert '2 of 12 pictures without a label' in note and note in ' '.join(found.stderr.split())


@pytest.mark.parametrize('option', ['images', 'classes', 'templates', 'labels'])
@pytest.mark.parametrize('kind', ['loop', 'long'])
def test_a_name_that_the_system_refuses_is_said_in_words(pictures, tmp_path, option, kind):
    path = tmp_path / 'loop.csv' if kind == 'loop' else tmp_path / ('x' * 300 + '.csv')
    if kind == 'loop':
        path.symlink_to('loop.csv')
    if option == 'labels':
        run = tmp_path / 'run'
        assert zeroshot(pictures, WORDS, run, '--no-cache').exit_code == 0
        found = reclip('report', run, '--labels', path)
    else:
        given = dict(images=pictures, classes=WORDS, templates='digit') | {option: path}
        found = reclip(
            'zeroshot',
            given['images'],
            '-c',
            given['classes'],
            '-m',
            'demo',
            '-t',
            given['templates'],
            '-o',
            tmp_path / 'run',
            '--no-cache',
        )
    assert found.exit_code == 2 and found.stderr.strip() and '[Errno' not in found.stderr, found.stderr
    assert 'Traceback' not in found.stderr and found.exception.__class__ is SystemExit
