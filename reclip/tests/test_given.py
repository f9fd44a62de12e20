"Words, labels, runs of others, numbers and options on the command line: used as given, or a line says that not."

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner
from reclip import demo
from reclip.cli import app

NAMES = list(demo.class_names)


def call(*args):
    return CliRunner().invoke(app, [str(o) for o in args])


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
    "A folder with 40 digits as files"
    here = tmp_path_factory.mktemp('given') / 'digits'
    here.mkdir()
    for i, image in enumerate(demo.demo_digits()[0][:40]):
        image.save(here / f'{i:03}.png')
    return here


@pytest.fixture(scope='module')
def label(digits):
    "Label the digits with some classes; what came out, and the labels and notes of the run"

    def labelled(classes, output, *more):
        found = call('zeroshot', digits, '-c', classes, '-m', 'demo', '-t', 'digit', '-o', output, *more)
        if found.exit_code:
            return found, None, None
        config = json.loads((output / 'config.json').read_text(encoding='utf-8'))
        return found, config['run']['classes'], config['notes']

    return labelled


def refused(found, *words):
    "Exit code 2 and one line that holds these words"
    lines = [o for o in found.stderr.splitlines() if o.startswith('reclip ')]
    assert found.exit_code == 2 and len(lines) == 1 and not found.stdout.strip(), (found.output, found.exception)
    assert all(word in lines[0] for word in words), lines[0]


FORMS = {
    'id2label.json': json.dumps({str(i): o for i, o in enumerate(NAMES)}),
    'label2id.json': json.dumps({o: i for i, o in enumerate(NAMES)}),
    'config.json': json.dumps(dict(model_type='vit', id2label={str(i): o for i, o in enumerate(NAMES)})),
    'imagenet_class_index.json': json.dumps({str(i): [f'n{i:08}', o] for i, o in enumerate(NAMES)}),
    'classes.csv': 'id,name\n' + ''.join(f'{i},{o}\n' for i, o in enumerate(NAMES)),
    'ids.txt': ''.join(f'{i} {o}\n' for i, o in enumerate(NAMES)),
    'bullets.txt': '# digits\n' + ''.join(f'- {o}\n' for o in NAMES),
    'quoted.txt': ''.join(f'"{o}",\n' for o in NAMES),
    'windows.txt': '\ufeff' + '\r\n'.join(NAMES),
}


@pytest.mark.parametrize('name', FORMS)
def test_forms_of_class_files(label, tmp_path, name):
    (tmp_path / name).write_bytes(FORMS[name].encode())
    found, classes, notes = label(tmp_path / name, tmp_path / 'RUN')
    assert found.exit_code == 0 and classes == NAMES, found.output
    dropped = name in (
        'classes.csv',
        'ids.txt',
        'bullets.txt',
        'quoted.txt',
        'config.json',
        'imagenet_class_index.json',
    )
    assert not dropped or notes  # what was left away is said
    assert all(f'note: {o}' in found.stderr for o in notes)


def test_words_that_look_like_something_else_stay_words(label, digits, tmp_path):
    words = ['None | zero', 'NA | one', 'null | two', 'n/a | three', 'nan | four', *NAMES[5:]]
    shown = [o.split(' | ')[0] for o in words]
    (tmp_path / 'none.txt').write_text('\n'.join(words))
    found, classes, notes = label(tmp_path / 'none.txt', tmp_path / 'RUN')
    assert found.exit_code == 0 and classes == shown and notes == [], found.output
    truth = pd.DataFrame(dict(path=sorted(o.name for o in digits.iterdir())))
    truth['label'] = [shown[i % 5] for i in range(len(truth))]
    truth.to_csv(tmp_path / 'l.csv', index=False)
    (tmp_path / 'l.json').write_text(json.dumps(dict(zip(truth.path, truth.label))))
    for name in ('l.csv', 'l.json'):
        assert call('report', tmp_path / 'RUN', '--labels', tmp_path / name, '-q').exit_code == 0
        assert 'From 40 images with a label' in (tmp_path / 'RUN' / 'report.html').read_text(encoding='utf-8'), name


def test_json_that_is_nested_too_deep(label, digits, tmp_path):
    deep = tmp_path / 'deep.json'
    deep.write_text('[' * 100_000)
    refused(label(deep, tmp_path / 'RUN')[0], 'deep.json', 'nested too deep')
    assert label(','.join(NAMES), tmp_path / 'RUN')[0].exit_code == 0
    refused(call('report', tmp_path / 'RUN', '--labels', deep), 'nested too deep')
    shutil.copy(deep, tmp_path / 'RUN' / 'config.json')
    for command in (
        ['report', tmp_path / 'RUN'],
        ['info', tmp_path / 'RUN'],
        ['export', tmp_path / 'RUN', tmp_path / 'X'],
    ):
        refused(call(*command), 'config.json')


def test_files_of_our_own_that_somebody_nested_too_deep(digits, tmp_path):
    job = ['zeroshot', digits, '-c', ','.join(NAMES), '-m', 'demo', '-t', 'digit', '--cache', tmp_path / 'cache']
    assert call(*job, '-o', tmp_path / 'A').exit_code == 0
    for content in ('[' * 100_000, '[1]'):
        for store in (tmp_path / 'cache').glob('*/settings.json'):
            store.write_text(content)
        told = call('cache', '--cache', tmp_path / 'cache')
        assert told.exit_code == 0 and '40 images' in told.output
    tensors = dict(digests=torch.zeros(40, 16, dtype=torch.uint8))
    save_file(tensors, tmp_path / 'A' / 'digests.safetensors', dict(run_id='[' * 100_000))
    refused(call('report', tmp_path / 'A'), 'digests.safetensors', 'nested too deep')


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='needs pipes')
def test_a_pipe_is_not_waited_for(label, digits, tmp_path):
    pipe = tmp_path / 'pipe.txt'
    os.mkfifo(pipe)
    refused(label(pipe, tmp_path / 'RUN')[0], 'pipe')
    refused(label(','.join(NAMES), tmp_path / 'RUN', '-t', pipe)[0], 'pipe')
    refused(call('zeroshot', pipe, '-c', ','.join(NAMES), '-m', 'demo', '-o', tmp_path / 'RUN'), 'pipe')
    assert label(','.join(NAMES), tmp_path / 'RUN')[0].exit_code == 0
    refused(call('report', tmp_path / 'RUN', '--labels', pipe), 'pipe')
    assert call('report', tmp_path / 'RUN', '-q').exit_code == 0
    own, config = pictures(tmp_path / 'RUN'), json.loads((tmp_path / 'RUN' / 'config.json').read_text())
    config['run']['images'] = str(pipe)
    (tmp_path / 'RUN' / 'config.json').write_text(json.dumps(config))
    found = call('report', tmp_path / 'RUN')
    assert found.exit_code == 0 and pictures(tmp_path / 'RUN') < own - 20


def pictures(run):
    "How many pictures and figures a report holds"
    return (run / 'report.html').read_text(encoding='utf-8').count('data:image')


def test_a_report_opens_no_folder_that_its_run_did_not_see(label, digits, tmp_path):
    assert label(','.join(NAMES), tmp_path / 'RUN')[0].exit_code == 0
    assert call('report', tmp_path / 'RUN').exit_code == 0
    own = pictures(tmp_path / 'RUN')
    private = tmp_path / 'private'
    private.mkdir()
    for i, image in enumerate(demo.demo_digits()[0][100:140]):
        image.resize((60, 60)).save(private / f'{i:03}.png')  # the same names, other pictures
    config = json.loads((tmp_path / 'RUN' / 'config.json').read_text())
    config['run']['images'] = str(private)
    (tmp_path / 'RUN' / 'config.json').write_text(json.dumps(config))
    found = call('report', tmp_path / 'RUN')
    left = pictures(tmp_path / 'RUN')
    assert found.exit_code == 0 and str(private) in found.stderr and own > left + 20
    assert call('report', tmp_path / 'RUN', '--images', private).exit_code == 0  # named, so opened
    assert pictures(tmp_path / 'RUN') > left + 20


@pytest.mark.parametrize(
    'option, value', [('--seed', 2**70), ('--batch-size', 2**63), ('--epochs', 2**64), ('--seed', -(2**64))]
)
def test_whole_numbers_of_more_than_64_bits(digits, tmp_path, option, value):
    found = call('adapt', digits, '-c', ','.join(NAMES), '-m', 'demo', '-o', tmp_path / 'RUN', option, value)
    assert found.exit_code == 2 and 'Traceback' not in found.output and not (tmp_path / 'RUN').exists()


def test_options_without_a_use_are_said(digits, tmp_path):
    job = [
        'adapt',
        digits,
        '-c',
        ','.join(NAMES),
        '-m',
        'demo',
        '-t',
        'digit',
        '--training-free',
        '-o',
        tmp_path / 'RUN',
    ]
    found = call(*job, '--lr-text', 0.1, '--pretrained', 'openai')
    notes = json.loads((tmp_path / 'RUN' / 'config.json').read_text())['notes']
    assert found.exit_code == 0 and len(notes) == 2, found.output
    assert any('--lr-text' in o for o in notes) and any('--pretrained' in o for o in notes)
    assert all(found.stderr.count(f'note: {o}') == 1 for o in notes)
    told = call('info', tmp_path / 'RUN')
    assert all(o in told.output for o in notes)
    assert call('report', tmp_path / 'RUN', '-q').exit_code == 0
    page = (tmp_path / 'RUN' / 'report.html').read_text(encoding='utf-8')
    assert page.index('--lr-text') < page.index('data:image')  # first of all


def test_an_ordinary_run_has_no_notes(digits, tmp_path):
    job = ['adapt', digits, '-c', ','.join(NAMES), '-m', 'demo', '-t', 'digit', '--epochs', 1, '-o', tmp_path / 'RUN']
    found = call(*job)
    assert found.exit_code == 0 and json.loads((tmp_path / 'RUN' / 'config.json').read_text())['notes'] == []
    assert 'note:' not in found.stderr


def test_cells_that_a_spreadsheet_would_run(tmp_path):
    folder = tmp_path / 'in'
    folder.mkdir()
    for i, image in enumerate(demo.demo_digits()[0][:12]):
        image.save(folder / (f'={i}+1.png' if i % 2 else f'{i}.png'))
    job = ['zeroshot', folder, '-c', ','.join(NAMES), '-m', 'demo', '-t', 'digit']
    assert call(*job, '-o', tmp_path / 'A').exit_code == call(*job, '-o', tmp_path / 'B', '--csv-safe').exit_code == 0
    plain, safe = ((tmp_path / o / 'predictions.csv').read_text() for o in 'AB')
    assert '\n=1+1.png' in plain and '\n=1+1.png' not in safe and "\n'=1+1.png" in safe
    assert (
        call('report', tmp_path / 'B', '-q').exit_code == 0
        and call(*job, '-o', tmp_path / 'B', '--csv-safe', '--resume').exit_code == 0
    )


@pytest.mark.skipif(os.name != 'posix', reason='needs signals')
def test_a_stop_from_outside_says_how_to_go_on(tmp_path):
    folder = tmp_path / 'in'
    folder.mkdir()
    for i, image in enumerate(demo.demo_digits()[0][:200]):
        image.save(folder / f'{i:03}.png')
    job = [
        'adapt',
        str(folder),
        '-c',
        ','.join(NAMES),
        '-m',
        'demo',
        '-t',
        'digit',
        '--epochs',
        '90',
        '-o',
        str(tmp_path / 'RUN'),
    ]
    process = subprocess.Popen(
        [sys.executable, '-m', 'reclip', *job, '--no-cache'], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    kept = Path(f'{tmp_path / "RUN"}.partial') / 'checkpoint.safetensors'
    for _ in range(600):
        if kept.is_file() or process.poll() is not None:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode in (130, 143) and '--resume' in said and 'Traceback' not in said, said
