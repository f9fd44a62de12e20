"The command line: same results as Python, one sentence and exit code 2 on bad input, nothing left behind."
import json
import os
import subprocess
import sys
from pathlib import Path
import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner
from reclip import demo, run
from reclip.cli import app

WORDS = ', '.join(demo.class_names)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "A folder with 60 digits as files"
    here = tmp_path_factory.mktemp('cli')
    (here / 'digits').mkdir()
    for i, image in enumerate(demo.demo_digits()[0][:60]): image.save(here / 'digits' / f'{i:02}.png')
    return here


def call(*args): return CliRunner().invoke(app, [str(o) for o in args])


@pytest.fixture(scope='module')
def done(folder):
    "A run, made by the command"
    found = call('adapt', folder / 'digits', '-c', WORDS, '-t', 'digit', '-m', 'demo', '-o', folder / 'RUN', '--epochs', 1, '--seed', 3, '-q')
    assert found.exit_code == 0, found.output
    assert found.output == ''                                                               # quiet is quiet
    return folder / 'RUN'


def test_adapt_is_the_function(folder, done, tmp_path):
    table = run.adapt(folder / 'digits', list(demo.class_names), tmp_path / 'RUN', 'demo', templates='digit', epochs=1, seed=3, progress=False)
    assert (tmp_path / 'RUN' / 'predictions.csv').read_bytes() == (done / 'predictions.csv').read_bytes() and len(table) == 60
    assert (tmp_path / 'RUN' / 'adapted.safetensors').read_bytes() == (done / 'adapted.safetensors').read_bytes()


@pytest.mark.parametrize('option, value, name, kept', [
    ('--projection', 'P1', 'projection', 'P1'), ('--recipe', 'official', 'recipe', 'official'), ('--step', 32, 'batch_size', 32), ('--lr-text', .01, 'lr_text', .01), ('--lr-image', .02, 'lr_image', .02),
    ('--neighbors', 5, 'n_neighbors', 5), ('--alpha', .5, 'alpha', .5), ('--seed', 9, 'seed', 9), ('--batch-size', 16, 'encode_batch_size', 16), ('--workers', 0, 'num_workers', 0), ('--precision', 'float32', 'precision', 'float32'), ('--device', 'cpu', 'device', 'cpu')])
def test_every_option_arrives(option, value, name, kept, monkeypatch):
    seen = {}
    monkeypatch.setattr(run, 'adapt', lambda *args, **settings: seen.update(settings) or pd.DataFrame(dict(label=['a'], changed=[False], confidence=[1.])))
    found = call('adapt', 'x', '-c', 'a,b', '-o', 'R', option, value, '-q')
    assert found.exit_code == 0, found.output
    assert seen[name] == kept


def test_zeroshot_predict_info_export(folder, done, tmp_path):
    assert call('zeroshot', folder / 'digits', '-c', WORDS, '-t', 'digit', '-m', 'demo', '-o', tmp_path / 'Z', '-q').exit_code == 0
    before, after = pd.read_csv(tmp_path / 'Z' / 'predictions.csv'), pd.read_csv(done / 'predictions.csv')
    assert before.label.tolist() == after.zero_shot_label.tolist() and not before.changed.any()
    assert call('predict', done, folder / 'digits', '-o', tmp_path / 'new.csv', '--probabilities', tmp_path / 'p.npy', '-q').exit_code == 0
    new, p = pd.read_csv(tmp_path / 'new.csv'), np.load(tmp_path / 'p.npy')
    assert new.label.tolist() == after.label.tolist() and new.t_label.tolist() == after.t_label.tolist() and new.zero_shot_label.tolist() == after.zero_shot_label.tolist()
    assert p.shape == (60, 10) and [demo.class_names[i] for i in p.argmax(1)] == new.label.tolist()
    assert call('predict', done, folder / 'digits', '-o', tmp_path / 'new.jsonl', '-q').exit_code == 0
    assert [json.loads(line)['label'] for line in (tmp_path / 'new.jsonl').read_text().splitlines()] == new.label.tolist()
    told = call('info', done)
    assert told.exit_code == 0 and 'n_images         60' in told.output and 'demo' in told.output
    assert call('export', done, tmp_path / 'X').exit_code == 0 and (tmp_path / 'X' / 'open_clip_model.safetensors').is_file()


def test_bad_input_is_one_sentence_and_exit_code_2(folder, done, tmp_path):
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'empty.txt').write_text('\n\n')
    good = ['-c', WORDS, '-m', 'demo', '-q']
    for args, word in [
        (['adapt', tmp_path / 'nowhere', *good, '-o', tmp_path / 'R'], 'not there'),
        (['adapt', tmp_path / 'empty', *good, '-o', tmp_path / 'R'], 'no images'),
        (['adapt', folder / 'digits', '-c', tmp_path / 'empty.txt', '-m', 'demo', '-o', tmp_path / 'R'], 'no class names'),
        (['adapt', folder / 'digits', '-c', 'zero', '-m', 'demo', '-o', tmp_path / 'R'], 'two or more'),
        (['adapt', folder / 'digits', '-c', 'zero,Zero', '-m', 'demo', '-o', tmp_path / 'R'], 'told apart'),
        (['adapt', folder / 'digits', *good, '-t', 'no hole', '-o', tmp_path / 'R'], 'none of the sets'),
        (['adapt', folder / 'digits', '-c', WORDS, '-m', 'ViT-B32', '-o', tmp_path / 'R'], 'nearest: ViT-B-32'),
        (['adapt', folder / 'digits', '-c', WORDS, '-p', 'openia', '-o', tmp_path / 'R'], 'nearest: openai'),
        (['adapt', folder / 'digits', *good, '--alpha', 1.5, '-o', tmp_path / 'R'], 'alpha'),
        (['adapt', folder / 'digits', *good, '-o', done], '--overwrite'),
        (['predict', done, tmp_path / 'nowhere', '-o', tmp_path / 'x.csv'], 'not there'),
        (['predict', done, folder / 'digits', '-o', tmp_path / 'x.txt'], '.csv, .jsonl or .parquet'),
        (['predict', tmp_path / 'empty', folder / 'digits', '-o', tmp_path / 'x.csv'], 'not a finished run'),
        (['report', tmp_path / 'empty'], 'not a finished run'), (['info', tmp_path / 'empty'], 'not a finished run'), (['export', tmp_path / 'empty', tmp_path / 'X'], 'not a finished run'),
        (['report', done, '--labels', tmp_path / 'none.csv'], 'not there')]:
        found = call(*args)
        lines = [line for line in found.stderr.splitlines() if line]
        assert found.exit_code == 2 and len(lines) == 1 and lines[0].startswith(f'reclip {args[0]}: ') and word in lines[0], (args, found.output, found.exception)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['empty', 'empty.txt'] and sorted(p.name for p in folder.iterdir()) == ['RUN', 'digits']


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(run, 'info', lambda folder: 1 / 0)
    assert isinstance(call('info', 'x').exception, ZeroDivisionError)


def test_ctrl_c_says_how_to_go_on(monkeypatch):
    def stop(*args, **settings): raise KeyboardInterrupt
    monkeypatch.setattr(run, 'adapt', stop)
    found = call('adapt', 'x', '-c', 'a,b', '-o', 'R')
    assert found.exit_code == 130 and '--resume' in found.stderr


def test_help_answers_without_torch():
    code = "import sys, reclip.cli\ntry: reclip.cli.app(['adapt', '--help'])\nexcept SystemExit as e: assert e.code == 0\nassert 'torch' not in sys.modules and 'open_clip' not in sys.modules"
    found = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=os.environ | dict(COLUMNS='200'))
    assert found.returncode == 0, found.stderr
    for word in ('Examples', '--resume', '--batch-size', '--precision', '--device', '--workers', '--seed', 'features.npy'): assert word in found.stdout


def test_module_and_script_are_the_same_program():
    for line in ([sys.executable, '-m', 'reclip', '--version'], [str(Path(sys.executable).with_name('reclip')), '--version']):
        if not Path(line[0]).exists(): continue
        assert subprocess.run(line, capture_output=True, text=True).stdout.startswith('reclip ')
