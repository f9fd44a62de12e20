"The command line: same results as Python, one sentence and exit code 2 on bad input, nothing left behind."

import json
import logging
import os
import re
import subprocess
import sys
import warnings
from dataclasses import fields
from pathlib import Path
import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner
from reclip import demo, run
from reclip.cli import app
from reclip.settings import Settings
from reclip.shell import plain_messages

WORDS = ', '.join(demo.class_names)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "A folder with 60 digits as files"
    here = tmp_path_factory.mktemp('cli')
    (here / 'digits').mkdir()
    for i, image in enumerate(demo.demo_digits()[0][:60]):
        image.save(here / 'digits' / f'{i:02}.png')
    return here


def call(*args):
    return CliRunner().invoke(app, [str(o) for o in args])


@pytest.fixture(scope='module')
def done(folder):
    "A run, made by the command"
    found = call(
        'adapt',
        folder / 'digits',
        '-c',
        WORDS,
        '-t',
        'digit',
        '-m',
        'demo',
        '-o',
        folder / 'RUN',
        '--epochs',
        1,
        '--seed',
        3,
        '-q',
    )
    assert found.exit_code == 0, found.output
    assert found.output == ''  # quiet is quiet
    return folder / 'RUN'


def test_adapt_is_the_function(folder, done, tmp_path):
    table = run.adapt(
        folder / 'digits',
        list(demo.class_names),
        tmp_path / 'RUN',
        'demo',
        templates='digit',
        epochs=1,
        seed=3,
        progress=False,
    )
    assert (tmp_path / 'RUN' / 'predictions.csv').read_bytes() == (done / 'predictions.csv').read_bytes() and len(
        table
    ) == 60
    assert (tmp_path / 'RUN' / 'adapted.safetensors').read_bytes() == (done / 'adapted.safetensors').read_bytes()


ARRIVES = [
    ('--projection', 'P1', 'projection', 'P1'),
    ('--recipe', 'official', 'recipe', 'official'),
    ('--batch-size', 32, 'batch_size', 32),
    ('--step', 32, 'batch_size', 32),
    ('--lr-text', 0.01, 'lr_text', 0.01),
    ('--lr-image', 0.02, 'lr_image', 0.02),
    ('--n-neighbors', 5, 'n_neighbors', 5),
    ('--neighbors', 5, 'n_neighbors', 5),
    ('--alpha', 0.5, 'alpha', 0.5),
    ('--epochs', 4, 'epochs', 4),
    ('--max-dim', 30, 'max_dim', 30),
    ('--max-dim', 'none', 'max_dim', None),
    ('--max-dim', 'auto', 'max_dim', 'auto'),
    ('--max-iter', 7, 'max_iter', 7),
    ('--tol', 0.001, 'tol', 0.001),
    ('--momentum', 0.5, 'momentum', 0.5),
    ('--weight-decay', 0.1, 'weight_decay', 0.1),
    ('--labeller', 'propagation', 'labeller', 'propagation'),
    ('--logit-scale', 50, 'logit_scale', 50.0),
    ('--keep-images', 0, 'keep_images', 0.0),
    ('--search', 'exact', 'search', 'exact'),
    ('--seed', 9, 'seed', 9),
    ('--encode-batch-size', 16, 'encode_batch_size', 16),
    ('--num-workers', 2, 'num_workers', 2),
    ('--workers', 2, 'num_workers', 2),
    ('-w', 2, 'num_workers', 2),
    ('--precision', 'bfloat16', 'precision', 'bfloat16'),
    ('--device', 'cpu', 'device', 'cpu'),
    ('--none-of-these', 0.4, 'none_of_these', 0.4),
    ('--grad-checkpointing', None, 'grad_checkpointing', True),
    ('--compile', None, 'compile', True),
]


def what_arrives(monkeypatch, *args):
    "Keywords with which a command calls run.adapt"
    seen = {}

    def adapt(*args, **settings):
        seen.update(settings)
        return pd.DataFrame(dict(label=['a'], changed=[False], confidence=[1.0]))

    monkeypatch.setattr(run, 'adapt', adapt)
    found = call(*args, 'x', '-c', 'a,b', '-o', 'R')
    assert found.exit_code == 0, found.output
    return seen, found


@pytest.mark.parametrize('option, value, name, kept', ARRIVES)
def test_every_option_arrives(option, value, name, kept, monkeypatch):
    seen, _ = what_arrives(monkeypatch, 'adapt', '-q', option, *([] if value is None else [value]))
    assert seen[name] == kept and type(seen[name]) is type(kept)
    others = {f.name: f.default for f in fields(Settings) if f.metadata['option'] and f.name != name}
    assert {k: seen[k] for k in others} == others  # which are the defaults of page 00a


def test_every_setting_has_an_option():
    assert {o[2] for o in ARRIVES} == {f.name for f in fields(Settings) if f.metadata['option']}


def test_batch_size_says_once_that_it_is_another_one(monkeypatch):
    text = '--batch-size is the number of images in one training step (before: --step)'
    for words, times in [(['--batch-size', 32], 1), (['--batch-size=32'], 1), (['--step', 32], 0), ([], 0)]:
        seen, found = what_arrives(monkeypatch, 'adapt', *words)
        assert found.stderr.count(text) == sum(o.startswith(text) for o in seen['noted']) == times, words


@pytest.mark.parametrize('option', ['--batch-size', '--encode-batch-size'])
def test_where_nothing_is_trained_batch_size_is_that_of_encoding(option, monkeypatch):
    seen, found = what_arrives(monkeypatch, 'zeroshot', option, 16)
    assert seen['encode_batch_size'] == 16 and 'batch_size' not in seen and seen['noted'] == []
    monkeypatch.setattr(run, 'predict', lambda *args, **settings: seen.update(settings) or 1 / 0)
    assert isinstance(call('predict', 'R', 'x', '-o', 'x.csv', option, 8).exception, ZeroDivisionError)
    assert seen['encode_batch_size'] == 8


@pytest.mark.parametrize(
    'option, value, words',
    [
        ('--n-neighbors', 0, 'n_neighbors: expected a whole number from 1 up, got 0'),
        ('--step', 0, 'batch_size: expected a whole number from 1 up, got 0'),
        ('--max-dim', 'many', "max_dim: expected a whole number from 1 up, got 'many'"),
        ('--max-dim', 0, 'max_dim: expected a whole number from 1 up, got 0'),
        ('--recipe', 'mine', "recipe: expected one of auto, paper, official, got 'mine'"),
        ('--tol', -1, 'tol: expected a number from 0 up, got -1.0'),
        ('--tol', 'nan', 'tol: expected a number from 0 up, got nan'),
        ('--alpha', 1, 'alpha: expected a number between 0 and 1, both excluded, got 1.0'),
    ],
)
def test_a_setting_out_of_range_is_one_sentence(option, value, words, monkeypatch):
    monkeypatch.setattr(run, 'adapt', lambda *args, **settings: pytest.fail('it began to work'))
    found = call('adapt', 'x', '-c', 'a,b', '-o', 'R', option, value)
    assert found.exit_code == 2 and found.stderr == f'reclip adapt: {words}\n', (found.output, found.exception)


def test_zeroshot_predict_info_export(folder, done, tmp_path):
    assert (
        call(
            'zeroshot', folder / 'digits', '-c', WORDS, '-t', 'digit', '-m', 'demo', '-o', tmp_path / 'Z', '-q'
        ).exit_code
        == 0
    )
    before, after = pd.read_csv(tmp_path / 'Z' / 'predictions.csv'), pd.read_csv(done / 'predictions.csv')
    assert before.label.tolist() == after.zero_shot_label.tolist() and not before.changed.any()
    assert (
        call(
            'predict', done, folder / 'digits', '-o', tmp_path / 'new.csv', '--probabilities', tmp_path / 'p.npy', '-q'
        ).exit_code
        == 0
    )
    new, p = pd.read_csv(tmp_path / 'new.csv'), np.load(tmp_path / 'p.npy')
    assert (
        new.label.tolist() == after.label.tolist()
        and new.t_label.tolist() == after.t_label.tolist()
        and new.zero_shot_label.tolist() == after.zero_shot_label.tolist()
    )
    assert p.shape == (60, 10) and [demo.class_names[i] for i in p.argmax(1)] == new.label.tolist()
    assert call('predict', done, folder / 'digits', '-o', tmp_path / 'new.jsonl', '-q').exit_code == 0
    assert [
        json.loads(line)['label'] for line in (tmp_path / 'new.jsonl').read_text().splitlines()
    ] == new.label.tolist()
    told = call('info', done)
    assert told.exit_code == 0 and 'n_images         60' in told.output and 'demo' in told.output
    assert (
        call('export', done, tmp_path / 'X').exit_code == 0
        and (tmp_path / 'X' / 'open_clip_model.safetensors').is_file()
    )


def test_bad_input_is_one_sentence_and_exit_code_2(folder, done, tmp_path):
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'empty.txt').write_text('\n\n')
    good = ['-c', WORDS, '-m', 'demo', '-q']
    for args, word in [
        (['adapt', tmp_path / 'nowhere', *good, '-o', tmp_path / 'R'], 'not there'),
        (['adapt', tmp_path / 'empty', *good, '-o', tmp_path / 'R'], 'no images'),
        (
            ['adapt', folder / 'digits', '-c', tmp_path / 'empty.txt', '-m', 'demo', '-o', tmp_path / 'R'],
            'no class names',
        ),
        (['adapt', folder / 'digits', '-c', 'zero', '-m', 'demo', '-o', tmp_path / 'R'], 'two or more'),
        (['adapt', folder / 'digits', '-c', 'zero,Zero', '-m', 'demo', '-o', tmp_path / 'R'], 'told apart'),
        (['adapt', folder / 'digits', *good, '-t', 'no hole', '-o', tmp_path / 'R'], 'none of the sets'),
        (['adapt', folder / 'digits', '-c', WORDS, '-m', 'ViT-B32', '-o', tmp_path / 'R'], 'nearest: ViT-B-32'),
        (['adapt', folder / 'digits', '-c', WORDS, '-p', 'openia', '-o', tmp_path / 'R'], 'nearest: openai'),
        (['adapt', folder / 'digits', '-c', WORDS, '-m', 'Demo', '-o', tmp_path / 'R'], 'nearest: demo'),
        (
            ['adapt', folder / 'digits', '-c', WORDS, '-m', 'RN50', '-p', 'laion2b_e16', '-o', tmp_path / 'R'],
            'known: openai, yfcc15m, cc12m',
        ),
        (
            ['adapt', folder / 'digits', '-c', WORDS, '-m', 'RN50', '-p', 'nofile.pt', '-o', tmp_path / 'R'],
            'known: openai, yfcc15m, cc12m',
        ),
        (['adapt', folder / 'digits', *good, '--alpha', 1.5, '-o', tmp_path / 'R'], 'alpha'),
        *(
            (
                ['adapt', folder / 'digits', *good, '--device', o, '-o', tmp_path / 'R'],
                f"device: '{o}' cannot be used; this machine has cpu",
            )
            for o in ('tpu', 'cuda:99', 'meta', 'c p u')
        ),
        (
            ['predict', done, folder / 'digits', '-o', tmp_path / 'x.csv', '--device', 'tpu'],
            "device: 'tpu' cannot be used",
        ),
        *(
            (
                [command, folder / 'digits', '-c', 'zero, dog, horse', '-m', 'demo', '-o', tmp_path / 'R'],
                "cannot tell 'dog' from 'horse'",
            )
            for command in ('adapt', 'zeroshot')
        ),
        (['adapt', folder / 'digits', *good, '-o', '.'], '. exists'),
        (['adapt', folder / 'digits', *good, '-o', '/'], '/ exists'),
        (['adapt', folder / 'digits', *good, '-o', done], '--overwrite'),
        (['predict', done, tmp_path / 'nowhere', '-o', tmp_path / 'x.csv'], 'not there'),
        (['predict', done, folder / 'digits', '-o', tmp_path / 'x.txt'], '.csv, .jsonl or .parquet'),
        (
            ['predict', done, folder / 'digits', '-o', tmp_path / 'x.csv', '--probabilities', tmp_path / 'p.txt'],
            'ends in .npy',
        ),
        (['predict', tmp_path / 'empty', folder / 'digits', '-o', tmp_path / 'x.csv'], 'not a finished run'),
        (['report', tmp_path / 'empty'], 'not a finished run'),
        (['info', tmp_path / 'empty'], 'not a finished run'),
        (['export', tmp_path / 'empty', tmp_path / 'X'], 'not a finished run'),
        (['report', done, '--labels', tmp_path / 'none.csv'], 'not there'),
    ]:
        found = call(*args)
        lines = [line for line in found.stderr.splitlines() if line]
        assert (
            found.exit_code == 2 and len(lines) == 1 and lines[0].startswith(f'reclip {args[0]}: ') and word in lines[0]
        ), (args, found.output, found.exception)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['empty', 'empty.txt'] and sorted(
        p.name for p in folder.iterdir()
    ) == ['RUN', 'digits']


def test_predict_looks_at_its_output_before_the_work(folder, done, tmp_path, monkeypatch):
    monkeypatch.setattr(run, 'predict', lambda *args, **settings: pytest.fail('it began to work'))
    monkeypatch.setattr('reclip.tables.find_spec', lambda name: None)
    cases = [(['-o', tmp_path / 'x.parquet'], 'needs pyarrow: pip install pyarrow')]
    if Path('/proc/self').is_dir():
        cases += [
            (['-o', '/proc/x.csv'], '/proc cannot be written to'),
            (['-o', tmp_path / 'x.csv', '--probabilities', '/proc/p.npy'], '/proc cannot be written to'),
        ]  # not even by root
    for args, word in cases:
        found = call('predict', done, folder / 'digits', *args)
        assert found.exit_code == 2 and word in found.stderr and found.stderr.count('\n') == 1, (
            found.output,
            found.exception,
        )
    assert not list(tmp_path.iterdir())


def test_templates_may_be_repeated(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(run, '_encode', lambda *args: (_ for _ in ()).throw(ValueError('far enough')))
    seen, real = {}, run.open_output
    monkeypatch.setattr(
        run, 'open_output', lambda output, settings, *rest: seen.update(settings) or real(output, settings, *rest)
    )
    (tmp_path / 't.txt').write_text('a blurry {}.\na {}.\n')
    found = call(
        'zeroshot',
        folder / 'digits',
        '-c',
        WORDS,
        '-m',
        'demo',
        '-o',
        tmp_path / 'R',
        *(o for t in ('digit', tmp_path / 't.txt', 'the {}.', 'photo') for o in ('-t', t)),
        '-q',
    )
    assert 'far enough' in found.stderr and seen['templates'] == [
        *demo.templates,
        'a blurry {}.',
        'a {}.',
        'the {}.',
        'a photo of a {}.',
    ]


def test_every_message_once(folder, done, tmp_path):
    run.export(done, tmp_path / 'toy')
    job = ['zeroshot', str(folder / 'digits'), '-c', WORDS, '--no-cache', '-o', str(tmp_path / 'R'), '--overwrite']
    toy = [*job, '-m', f'local-dir:{tmp_path / "toy"}']
    code = f'''
import sys
from reclip.cli import app
for args in {[job, [*job, '-q'], toy, [*toy, '-q'], [*toy, '-v']]!r}:
    try: app(args)
    except SystemExit as e: print('exit code', e.code, file=sys.stderr)
'''
    found = subprocess.run(
        [sys.executable, '-c', code],
        capture_output=True,
        text=True,
        env=os.environ | dict(HF_HUB_OFFLINE='1', HF_HOME=str(tmp_path)),
    ).stderr
    away, away_quiet, plain, quiet, much, rest = re.split(r'exit code \d\n', found)
    for o in (away, away_quiet):
        assert (
            len(o.splitlines()) == 1
            and 'cannot be had from the hub' in o
            and '--pretrained FILE' in o
            and '--model demo' in o
        ), o  # the default model, without a network
    for o in (plain, much):
        assert o.count('60 images found') == 1 and 'INFO:reclip' not in o, o
    assert (
        'root:' not in plain and 'root:' in much and 'on cpu; 10 classes, 1 templates' in much and quiet == rest == ''
    ), found


def test_help_names_values():
    found = subprocess.run(
        [sys.executable, '-m', 'reclip', 'adapt', '--help'],
        capture_output=True,
        text=True,
        env=os.environ | dict(COLUMNS='150', TERM='dumb'),
    ).stdout
    for word in ('IMAGES', 'WORDS', 'NAME', 'TAG', 'none|center|P1|P2', 'N [x>=1]', 'DIR'):
        assert word in found, word
    for word in ('list[str]', '<path>', '<int', '<float'):
        assert word not in found, word
    assert found.count('<bool>') <= 1  # Typer's own --help


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(run, 'info', lambda folder: 1 / 0)
    assert isinstance(call('info', 'x').exception, ZeroDivisionError)


def test_messages_stand_above_bars(capsys):
    from tqdm import tqdm

    plain_messages(False, False)
    with tqdm(total=2, file=sys.stderr, mininterval=0) as bar:
        bar.update()
        warnings.warn('careful')
        logging.getLogger('reclip').info('100 images')
    lines = [o.rpartition('\r')[2] for o in capsys.readouterr().err.split('\n')]
    assert 'note: careful' in lines and '100 images' in lines


def test_ctrl_c_says_how_to_go_on(monkeypatch):
    def stop(*args, **settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, 'adapt', stop)
    found = call('adapt', 'x', '-c', 'a,b', '-o', 'R')
    assert found.exit_code == 130 and '--resume' in found.stderr


def test_help_answers_without_torch():
    code = (
        "import sys, reclip.cli\ntry: reclip.cli.app(['adapt', '--help'])\nexcept SystemExit as e: assert e.code == 0\n"
        "assert 'torch' not in sys.modules and 'open_clip' not in sys.modules"
    )
    found = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, env=os.environ | dict(COLUMNS='200')
    )
    assert found.returncode == 0, found.stderr
    for word in (
        'Examples',
        '--resume',
        '--batch-size',
        '--encode-batch-size',
        '--precision',
        '--device',
        '--num-workers',
        '--seed',
        'features.npy',
    ):
        assert word in found.stdout


def test_module_and_script_are_the_same_program():
    for line in (
        [sys.executable, '-m', 'reclip', '--version'],
        [str(Path(sys.executable).with_name('reclip')), '--version'],
    ):
        if not Path(line[0]).exists():
            continue
        assert subprocess.run(line, capture_output=True, text=True).stdout.startswith('reclip ')
