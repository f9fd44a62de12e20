"Rows of the bench: whole, with everything in them, and made again by the command that stands in them."

import inspect
import json
import os
import shlex
from pathlib import Path
import pytest
import torch
from typer.testing import CliRunner
from reclip import bench, benchopts, cli, demo, released, selftrain
from reclip.clip import Clip

KEYS = {
    'name',
    'settings',
    'n',
    'm',
    'd',
    'seconds',
    'total',
    'totals',
    'peak_bytes',
    'process_bytes',
    'memory',
    'accuracy',
    'recall',
    'baseline',
    'ratio',
    'versions',
    'machine',
    'seed',
    'command',
    'date',
}
PAGES = Path(__file__).parents[2] / 'nbs' / 'benchmarks'


def call(*args):
    return CliRunner().invoke(bench.app, [str(o) for o in args])


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "A file with the row of a tiny propagation, made by the command; each side is measured in a process of its own"
    path = tmp_path_factory.mktemp('bench') / 'rows.jsonl'
    done = CliRunner().invoke(
        cli.app,
        [
            'bench',
            'propagation',
            '--n',
            '400',
            '--m',
            '12',
            '--repeats',
            '1',
            '--threads',
            '1',
            '--device',
            'cpu',
            '-o',
            str(path),
        ],
    )
    assert done.exit_code == 0, done.output
    assert 'ratio' in done.stdout and len(done.stdout.splitlines()) == 1
    return path


def test_a_row_has_all_keys(made):
    row = json.loads(made.read_text())
    assert set(row) == KEYS and row['n'] == 400 and row['m'] == 12 and row['d'] == 11 and row['seed'] == 0
    assert set(row['seconds']) == {'neighbours', 'graph', 'solve', 'labels'} and all(
        o >= 0 for o in row['seconds'].values()
    )
    assert sum(row['seconds'].values()) == pytest.approx(row['total'], rel=0.2, abs=0.02)
    assert (
        row['ratio'] == pytest.approx(row['baseline']['seconds'] / row['total'], abs=1e-3)
        and row['baseline']['agreement'] >= 0.999
    )
    assert (
        0 < row['peak_bytes'] < row['process_bytes'] and row['baseline']['peak_bytes'] > 3 * 4 * 412**2
    )  # three matrices at least
    assert (
        row['machine']['threads'] == 1
        and row['machine']['memory_bytes'] > 1e8
        and {'reclip', 'torch', 'open_clip', 'numpy', 'python'} <= set(row['versions'])
    )


def test_the_command_in_a_row_makes_it_again(made, monkeypatch):
    row, seen = json.loads(made.read_text()), []
    monkeypatch.setattr(
        bench, 'measure', lambda case, settings, shape: seen.append((case, settings)) or dict(case=case)
    )
    words = shlex.split(row['command'])
    assert words[:2] == ['reclip', 'bench'] and call(*words[2:]).exit_code == 0
    assert seen == [('propagation', row['settings'])]
    again = [
        o
        for o in bench.provenance([row, row | dict(settings=row['settings'] | dict(n=500), n=500)]).splitlines()
        if o.startswith('reclip')
    ]
    assert len(again) == 1 and call(*shlex.split(again[0])[2:]).exit_code == 0  # one command for both
    assert [o[1]['n'] for o in seen[1:]] == [400, 500] and seen[1][1] == row['settings']


@pytest.mark.parametrize(
    'case, options',
    [
        ('adaptation', ['--n', 50, '--epochs', 1, '--recipe', 'paper', '--step', 16, '--no-baseline']),
        ('adaptation', ['--model', 'ViT-B-32', '--m', 7, '--precision', 'bfloat16']),
        ('encoding', ['--n', 9, '--batch-size', 4, '--precision', 'bfloat16', '--workers', 2]),
    ],
)
def test_commands_of_the_others_make_them_again(case, options, monkeypatch):
    seen = []
    monkeypatch.setattr(bench, 'measure', lambda case, settings, shape: seen.append(settings) or dict(case=case))
    assert call(case, *options, '--device', 'cpu', '--threads', 1).exit_code == 0
    assert call(*shlex.split(bench.command_line(case, seen[0]))[2:]).exit_code == 0
    assert seen[0] == seen[1] and str(options[1]) in map(str, seen[0].values())


@pytest.mark.parametrize('device', ['cpu', 'cuda'])
def test_all_rows_of_the_pages_have_commands(device, monkeypatch):
    seen = []
    monkeypatch.setattr(
        bench,
        'common_options',
        lambda repeats, _, threads, seed, output: dict(repeats=repeats, device=device, threads=1, seed=seed),
    )
    monkeypatch.setattr(bench, 'measure_devices', lambda settings, shape: seen.append(('devices', settings)) or {})
    monkeypatch.setattr(bench, 'measure', lambda case, settings, shape: seen.append((case, settings)) or {})
    for full in (False, True):
        for case, options in bench.plan(full, device):
            getattr(bench, case)(**options, **({} if case == 'devices' else dict(device=device)))
    assert {o[0] for o in seen} == {*bench.CASES, 'devices'} and {o[1]['n'] for o in seen if o[0] == 'propagation'} >= {
        1_000,
        10_000,
        1_000_000,
    }
    assert max(o[1]['n'] for o in seen if o[1].get('baseline')) == 10_000 and any(
        o[1].get('model') == 'ViT-L-14' for o in seen
    ) == (device == 'cuda')


def test_one_command_makes_all_rows_and_begins_their_files_anew(made, tmp_path, monkeypatch):
    row, seen = json.loads(made.read_text()), []
    for name in ('measure', 'measure_devices'):
        monkeypatch.setattr(
            bench,
            name,
            lambda *about: row | dict(command=f'row {len(seen)}', settings=seen.append(about) or row['settings']),
        )
    (tmp_path / 'propagation-cpu.jsonl').write_text('an old row')
    done = call('all', '--device', 'cpu', '--threads', 1, '--seed', 3, '-o', tmp_path)
    assert done.exit_code == 0 and len(done.stdout.splitlines()) == len(seen) > len(bench.plan(False)), done.output
    assert sorted(os.listdir(tmp_path)) == [
        f'{case}-cpu.jsonl' for case in ('adaptation', 'devices', 'encoding', 'propagation')
    ]
    assert len(bench.read_rows(tmp_path)) == len(seen) and all(
        o[-2]['seed'] == 3 and o[-2]['threads'] == 1 for o in seen
    )


@pytest.mark.skipif(not PAGES.is_dir(), reason='the notebooks are in a checkout, not in an installed package')
@pytest.mark.parametrize('case', [*bench.CASES, 'devices'])
def test_commands_of_committed_rows_and_lines_under_their_figures_make_them_again(case, monkeypatch):
    rows, seen = bench.read_rows(PAGES / 'rows', case), []
    monkeypatch.setattr(bench, 'measure', lambda case, settings, shape: seen.append((case, settings, shape)) or {})
    monkeypatch.setattr(
        bench, 'measure_devices', lambda settings, shape: seen.append(('devices', settings, shape)) or {}
    )
    monkeypatch.setattr(bench, 'how_many', lambda model, n, most: n or 1_797)  # MNIST need not be here
    for row in rows:
        assert call(*shlex.split(row['command'])[2:]).exit_code == 0
    assert seen == [(case, row['settings'], {k: row[k] for k in 'nmd'}) for row in rows]
    made, seen[:] = [o[1] for o in seen], []
    for line in [o for o in bench.provenance(rows).splitlines() if o.startswith('reclip')]:
        assert call(*shlex.split(line)[2:]).exit_code == 0, line
    assert sorted(map(str, (o[1] for o in seen))) == sorted(map(str, made)) and made


@pytest.mark.parametrize('case', [*bench.CASES, 'devices'])
def test_usual_values_are_those_of_the_commands(case):
    parameters = inspect.signature(getattr(bench, case)).parameters.items()
    declared = {k: p.default[0] if isinstance(p.default, list) else p.default for k, p in parameters if k != 'output'}
    assert declared == benchopts.USUAL[case] and set(declared) >= set(benchopts.REPEATED.get(case, ()))


def test_rows_are_appended_whole(made, tmp_path, monkeypatch):
    row, path = json.loads(made.read_text()), tmp_path / 'rows.jsonl'
    bench.add_row(row, path)
    bench.add_row(row | dict(command='another'), path)
    before = path.read_bytes()
    monkeypatch.setattr(os, 'replace', lambda *args: (_ for _ in ()).throw(OSError('no space left')))
    with pytest.raises(OSError):
        bench.add_row(row | dict(total=1e9), path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ['rows.jsonl']
    monkeypatch.undo()
    bench.add_row(row | dict(total=7.0), path)
    found = bench.read_rows(tmp_path)
    assert (
        len(path.read_text().splitlines()) == 3
        and [o['command'] for o in found] == ['another', row['command']]
        and found[1]['total'] == 7
    )  # the last of each command
    assert bench.read_rows(tmp_path, 'encoding') == [] == bench.read_rows(tmp_path / 'nowhere')
    path.write_text('{"half": ')
    with pytest.raises(ValueError, match='line 1: not a row'):
        bench.read_rows(tmp_path)


def test_bad_arguments_end_with_one_sentence_and_exit_code_2(tmp_path, monkeypatch):
    monkeypatch.setenv('RECLIP_DATA', str(tmp_path))
    for args, word in [
        (['propagation', '--n', 10_000_000], 'GB'),
        (['propagation', '--alpha', 1.5], 'alpha'),
        (['propagation', '--n', 5, '--m', 5], 'nodes'),
        (['propagation', '-o', tmp_path / 'x.csv'], '.jsonl'),
        (['propagation', '-o', tmp_path / 'no' / 'x.jsonl'], 'not there'),
        (['adaptation', '--model', 'ViT-B-23'], 'list_models'),
        (['adaptation', '--n', 20_000], 'mnist_test.npz'),
        (['encoding', '--device', 'tpu'], 'device'),
        *([] if torch.cuda.is_available() else [(['encoding', '--device', 'cuda'], 'no GPU')]),
    ]:
        found = call(*args)
        assert (
            found.exit_code == 2 and word in found.stderr and len(found.stderr.splitlines()) == 1 and found.stdout == ''
        ), (args, found.output)
    assert call('propagation', '--n', 0).exit_code == 2 and os.listdir(tmp_path) == []


def test_the_bench_times_the_loop_that_the_tests_compare_with():
    settings = dict(
        model='demo',
        n=60,
        m=10,
        epochs=1,
        recipe='official',
        step=64,
        precision='float32',
        workers=0,
        device='cpu',
        seed=0,
    )
    ours, theirs, truth = bench.CASES['adaptation'](settings, False)
    (labels, seconds, _), (others, whole, _) = ours(), theirs()
    assert (
        bench.released is released
        and len(truth) == 60
        and set(seconds) == set(bench.STAGES)
        and min(seconds.values()) > 0
        and whole['all'] > 0
    )
    assert (labels == others).float().mean() > 0.98
    model, preprocess, tokenizer = demo.demo_clip()
    again = released.run(
        Clip(model, preprocess, tokenizer), demo.demo_digits()[0][:60], demo.class_names, demo.templates, epochs=1
    )
    assert torch.equal(again.logits[-1].argmax(1), others)
    assert not hasattr(selftrain.Training.learn, '__wrapped__')  # the clocks are gone


def test_the_released_loop_with_matrices_in_half_precision():
    "As it runs on a GPU: norm layers stay in float32 and move"
    model, preprocess, tokenizer = demo.demo_clip()
    full, half = (
        released.run(
            Clip(model, preprocess, tokenizer),
            demo.demo_digits()[0][:40],
            demo.class_names,
            demo.templates[:1],
            epochs=1,
            half=o,
        )
        for o in (False, True)
    )
    assert (
        half.logits[-1].dtype == torch.float16
        and (half.logits[-1].argmax(1) == full.logits[-1].argmax(1)).float().mean() > 0.9
    )
    assert half.losses[0] == pytest.approx(full.losses[0], rel=0.1)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_rows_of_a_gpu(tmp_path):
    for args in (
        ['propagation', '--n', 2_000, '--m', 20],
        ['adaptation', '--n', 200, '--epochs', 1],
        ['encoding', '--n', 64],
    ):
        assert call(*args, '--repeats', 1, '--device', 'cuda', '-o', tmp_path / 'rows.jsonl').exit_code == 0
    for row in bench.read_rows(tmp_path):
        assert (
            row['machine']['gpu']
            and row['peak_bytes'] > 0
            and (not row['baseline'] or row['baseline']['agreement'] > 0.97)
        )


def test_a_stage_does_not_count_what_another_one_within_it_takes():
    import time
    from types import SimpleNamespace

    def inner():
        time.sleep(0.05)

    module = SimpleNamespace(inner=inner)
    module.outer = lambda: (time.sleep(0.1), module.inner())
    with bench.stopwatch(module, dict(a='outer', b='inner')) as found:
        module.outer()
        module.inner()
    assert 0.1 <= found['a'] < 0.3 and 0.1 <= found['b'] < 0.3 and module.inner is inner


def test_made_up_features_and_images_are_the_same_again():
    a, b = bench.synthetic_features(1_000, 30, seed=1), bench.synthetic_features(1_000, 30, seed=1)
    assert all(torch.equal(x, y) for x, y in zip(a, b)) and not torch.equal(
        a[1], bench.synthetic_features(1_000, 30, seed=2)[1]
    )
    assert (
        a[1].shape == (1_000, 29)
        and torch.allclose(a[1].norm(dim=1), torch.ones(1_000))
        and bench.synthetic_features(10, 1_000)[1].shape == (10, 249)
    )
    images = bench.SyntheticImages(130, 32)
    assert (
        torch.equal(images[129], bench.SyntheticImages(130, 32)[129])
        and not torch.equal(images[129], images[1])
        and len(list(images)) == 130
    )


@pytest.mark.skipif(not PAGES.is_dir(), reason='the notebooks are in a checkout, not in an installed package')
@pytest.mark.parametrize('page', ['propagation', 'adaptation', 'scale'])
@pytest.mark.parametrize('rows', ['none', 'one'])
def test_pages_draw_with_and_without_rows(page, rows, made, tmp_path, monkeypatch, capfd):
    from nbdev.test import test_nb as run_nb

    monkeypatch.setenv('MPLBACKEND', 'agg')
    copy = tmp_path / f'{page}.ipynb'
    copy.write_bytes((PAGES / copy.name).read_bytes())
    if rows == 'one':
        (tmp_path / 'rows').mkdir()
        (tmp_path / 'rows' / 'a.jsonl').write_bytes(made.read_bytes())
    ok, _ = run_nb(copy)
    assert ok, capfd.readouterr().err
