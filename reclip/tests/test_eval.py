"The evaluation: scores against oracles, scenarios, labels that reach only scores, rows that go on and are equal"

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file
from sklearn.metrics import balanced_accuracy_score, log_loss
from typer.testing import CliRunner
from reclip import demo, evaluate, evaluating, label_features, scores
from reclip.cli import app
from reclip.clip import Clip
from reclip.encoded import Source, about_model, about_words, features_source, image_source, write_features
from reclip.evaluate import METHODS, PEERS, TRAINED, Sample, method_settings, predict
from reclip.evaluating import evaluate_sources
from reclip.result_rows import Asked, near_path, row_name
from reclip.scenarios import Scenario, choose_images
from reclip.settings import using
from .conftest import blobs

openers = pytest.importorskip('reclip.openers')


def call(*args):
    return CliRunner().invoke(app, ['eval', *(str(o) for o in args)])


def files(folder):
    return {o.name: o.read_bytes() for o in Path(folder).glob('[!.]*.json')}


def features_file(folder, name='blobs', n=90, m=5, seed=0, **changed):
    "A set of features as `--features` takes it"
    x, t, y = blobs(n, m, seed=seed, dtype=torch.float32)
    tensors = dict(image_features=x, text_features=t, labels=y) | changed
    folder.mkdir(exist_ok=True)
    save_file(
        {k: v.contiguous() for k, v in tensors.items() if v is not None},
        folder / f'{name}.safetensors',
        dict(logit_scale='20'),
    )
    return folder / f'{name}.safetensors'


@pytest.fixture(scope='module')
def words():
    return [[o] for o in demo.class_names], list(demo.templates)


@pytest.fixture(scope='module')
def small(words):
    "90 digits as a labelled set"
    images, labels = demo.demo_digits()
    return openers.LabelledSet('digits', images[:90], labels[:90].numpy(), *words, 'all', 'memory')


@pytest.fixture(scope='module')
def source(clip, small):
    return image_source(Clip(*clip), small, about_model(Clip(*clip), 'demo'))


# scores


def test_scores_are_scikit_learns():
    rng = np.random.default_rng(0)
    p, y = rng.dirichlet(np.ones(6), 400), rng.integers(0, 4, 400)
    found = scores.scores(scores.outcome(p, y))
    assert found['mean_per_class'] == pytest.approx(balanced_accuracy_score(y, p.argmax(1)))
    assert found['nll'] == pytest.approx(log_loss(y, p.clip(scores.FLOOR, 1), labels=range(6)), abs=1e-5)
    assert found['top1'] == (p.argmax(1) == y).mean()


def test_ece_is_the_loop_over_bins():
    rng = np.random.default_rng(1)
    p, y = rng.dirichlet(np.ones(3) * 0.5, 300), rng.integers(0, 3, 300)
    top, right = p.max(1), p.argmax(1) == y
    expected = 0
    for b in range(15):
        own = (top > b / 15) & (top <= (b + 1) / 15)
        if own.any():
            expected += own.mean() * abs(right[own].mean() - top[own].mean())
    assert scores.scores(scores.outcome(p, y))['ece'] == pytest.approx(expected)


def test_interval_is_that_of_resampling_by_hand():
    rng = np.random.default_rng(2)
    p, q = rng.dirichlet(np.ones(3), 60), rng.dirichlet(np.ones(3), 60)
    y = rng.integers(0, 3, 60)
    a, b = scores.outcome(p, y), scores.outcome(q, y)
    again, drawn = np.random.default_rng(5), []
    for _ in range(200):
        rows = again.integers(0, 60, 60)
        one, two = (scores.scores(scores.outcome(o[rows], y[rows])) for o in (p, q))
        drawn.append([(1 if k == 'nll' else 100) * (one[k] - two[k]) for k in scores.SCORES])
    found = scores.gain(a, b, resamples=200, seed=5)
    for k, (low, high) in zip(scores.SCORES, np.quantile(drawn, (0.025, 0.975), axis=0).T):
        assert (found[k]['low'], found[k]['high']) == pytest.approx((low, high)), k


@pytest.mark.parametrize(
    'p, y',
    [([[0.5, 0.6]], [0]), ([[float('nan'), 1]], [0]), ([[0.5, 0.5]], [2]), ([[0.5, 0.5]], [-1]), ([[1.0, 0]], [0, 1])],
)
def test_what_cannot_be_scored_is_refused(p, y):
    with pytest.raises(ValueError):
        scores.outcome(np.array(p), y)


# scenarios


def test_long_tail_of_an_uneven_set_is_geometric():
    labels = np.repeat(np.arange(4), [300, 40, 90, 500])
    for seed in range(5):
        counts = np.sort(np.bincount(labels[choose_images(labels, Scenario(imbalance=8), seed)]))
        assert len(counts) == 4 and counts[-1] / counts[0] == pytest.approx(8, rel=0.3)
        assert counts[1] / counts[0] == pytest.approx(2, rel=0.3)


def test_scenarios_are_of_the_seed():
    labels = np.arange(200) % 10
    for o in (Scenario(present=3), Scenario(imbalance=4), Scenario(limit=50)):
        assert (choose_images(labels, o, 1) == choose_images(labels, o, 1)).all()
        assert choose_images(labels, o, 1).tolist() != choose_images(labels, o, 2).tolist()
    assert (choose_images(labels, Scenario(limit=500)) == np.arange(200)).all()
    assert len(choose_images(labels, Scenario(present=3), -1)) == 60


# methods


@pytest.mark.parametrize('method', ['zeroshot', 'propagation', 'mixture', *PEERS])
def test_methods_on_features_give_probabilities(method):
    x, t, _ = blobs(80, 4, dtype=torch.float32)
    found = predict(method, Sample(x, t, 20.0))
    assert list(found.stages) == ['zeroshot', 'final']
    p = found.stages['final']()
    assert p.shape == (80, 4) and (p >= 0).all() and torch.allclose(p.sum(1), torch.ones(80, dtype=p.dtype), atol=1e-4)
    assert torch.equal(p, predict(method, Sample(x, t, 20.0)).stages['final']())
    json.dumps(method_settings(method))


def test_propagation_is_the_librarys():
    x, t, _ = blobs(80, 4, dtype=torch.float32)
    labels = label_features(x, t).pseudo_labels
    assert torch.equal(
        predict('propagation', Sample(x, t, 20.0)).stages['final']().argmax(1)[labels >= 0], labels[labels >= 0]
    )


@pytest.mark.parametrize('method', ['reclip', 'reclip-paper'])
def test_training_is_the_librarys(method, source):
    from reclip.selftrain import adapt

    sample, s = source.sample(np.arange(90)), using(epochs=1, recipe=TRAINED[method])
    found = predict(method, sample, s)
    theirs = adapt(sample.clip, sample.images, sample.class_names, sample.templates, s)
    assert list(found.stages) == ['zeroshot', 'first', 'T', 'V', 'final']
    labels = {k: p().argmax(1) for k, p in found.stages.items()}
    assert torch.equal(labels['zeroshot'], theirs.zero_shot_labels) and torch.equal(
        labels['final'], theirs.logits[s.voices()].mean(0).argmax(1)
    )
    assert torch.equal(labels['T'], theirs.logits[0].argmax(1)) and torch.equal(labels['V'], theirs.logits[1].argmax(1))
    known = theirs.first_pseudo_labels >= 0
    assert torch.equal(labels['first'][known], theirs.first_pseudo_labels[known])


@pytest.mark.parametrize('method', METHODS)
def test_no_label_reaches_a_method(method, source, monkeypatch):
    "With true labels, shuffled ones and none at all, every probability is the same"
    sample, s = source.sample(np.arange(90)), using(epochs=1)
    assert not {'labels', 'label', 'y'} & {*Sample._fields}
    seen = []
    monkeypatch.setattr(evaluate, 'outcome', lambda p, labels: seen.append(p.copy()) or scores.outcome(p, labels))
    shuffled = np.random.default_rng(0).permutation(source.labels)
    rows = [evaluate.evaluate(method, sample, o, s)[0] for o in (source.labels, shuffled)]
    absent = [p().float().numpy() for p in predict(method, sample, s).stages.values()]
    n = len(absent)
    assert len(seen) == 2 * n
    for a, b, c in zip(seen[:n], seen[n:], absent):
        assert np.array_equal(a, b) and np.array_equal(a, c)
    assert rows[0]['signals'] == rows[1]['signals'] and rows[0]['stages'] != rows[1]['stages']


def test_the_model_comes_back_as_it_was(source):
    sample = source.sample(np.arange(90))
    before = {k: v.clone() for k, v in sample.clip.model.state_dict().items()}
    predict('reclip', sample, using(epochs=1, lr_image=0.1))
    assert all(torch.equal(v, before[k]) for k, v in sample.clip.model.state_dict().items())


# rows


def test_two_runs_write_equal_bytes(source, tmp_path):
    asked = Asked(('zeroshot', 'propagation', 'reclip', *PEERS), (0, 1), Scenario(present=3), using(epochs=1))
    for name in 'ab':
        assert evaluate_sources([source], tmp_path / name, asked) == 0
    assert len(files(tmp_path / 'a')) == 14 and files(tmp_path / 'a') == files(tmp_path / 'b')
    costs = json.loads((tmp_path / 'a/costs' / next(iter(files(tmp_path / 'a')))).read_text())
    assert {'seconds', 'peak_bytes', 'machine', 'date'} <= {*costs}


def test_row_has_what_a_reader_needs(source, tmp_path):
    evaluate_sources([source], tmp_path, Asked(('propagation',)))
    name = row_name(source.model, 'digits', 'propagation', Scenario(), 0)
    assert name == 'demo__digits__propagation__full__s0.json'
    row = json.loads((tmp_path / name).read_text())
    assert {
        'schema',
        'model',
        'set',
        'split',
        'method',
        'seed',
        'scenario',
        'n_images',
        'n_classes',
        'settings',
        'stages',
        'gain',
        'signals',
        'versions',
        'command',
    } <= {*row}
    assert {*row['gain']['top1']} == {'value', 'low', 'high'} and {*row['stages']} == {'zeroshot', 'final'}
    assert {*row['stages']['final']} == {'top1', 'mean_per_class', 'ece', 'nll'} and {*row['model']} == {
        'name',
        'pretrained',
        'fingerprint',
    }


def test_one_encoding_for_all_rows(source, tmp_path, monkeypatch):
    asked, seen = Asked(('zeroshot', 'propagation'), (0, 1, 2), Scenario(limit=20)), []
    counted = source._replace(sample=lambda rows: seen.append(len(rows)) or source.sample(rows))
    evaluate_sources([counted], tmp_path, asked)
    evaluate_sources([counted], tmp_path, asked)
    union = {int(i) for s in range(3) for i in choose_images(source.labels, asked.scenario, s)}
    assert seen == [len(union)] and len(files(tmp_path)) == 6


def test_rows_that_are_there_are_kept(tmp_path):
    source = features_source(features_file(tmp_path / 'F'), 'm')
    evaluate_sources([source], tmp_path / 'R', Asked(('zeroshot', 'propagation')))
    whole = files(tmp_path / 'R')
    (gone, kept) = sorted(whole)
    (tmp_path / 'R' / gone).unlink()
    before = (tmp_path / 'R' / kept).stat().st_mtime_ns
    assert evaluate_sources([source], tmp_path / 'R', Asked(('zeroshot', 'propagation'))) == 1
    assert files(tmp_path / 'R') == whole and (tmp_path / 'R' / kept).stat().st_mtime_ns == before


def changed_model(f):
    return f._replace(model=f.model | dict(fingerprint='00'))


def changed_words(f):
    return f._replace(words=f.words | dict(classes='00'))


def changed_size(f):
    return f._replace(labels=f.labels[:-1])


@pytest.mark.parametrize('change', [changed_model, changed_words, changed_size])
def test_rows_of_something_else_are_refused_or_made_again(change, tmp_path):
    source = features_source(features_file(tmp_path / 'F'), 'm')
    evaluate_sources([source], tmp_path / 'R')
    before = files(tmp_path / 'R')
    with pytest.raises(FileExistsError, match='something else.*--overwrite'):
        evaluate_sources([change(source)], tmp_path / 'R')
    assert files(tmp_path / 'R') == before
    evaluate_sources([change(source)], tmp_path / 'R', Asked(overwrite=True))
    assert files(tmp_path / 'R') != before


@pytest.mark.parametrize('text', ['', '{', '[]', '{"schema": 1}', '[' * 100_000])
def test_a_file_that_is_no_row_is_refused(text, tmp_path):
    source = features_source(features_file(tmp_path / 'F'), 'm')
    (tmp_path / row_name(source.model, 'blobs', 'zeroshot', Scenario(), 0)).write_text(text)
    with pytest.raises(FileExistsError):
        evaluate_sources([source], tmp_path)
    evaluate_sources([source], tmp_path, Asked(overwrite=True))
    assert len(files(tmp_path)) == 2


def test_another_version_of_the_package_is_something_else(tmp_path):
    source = features_source(features_file(tmp_path / 'F'), 'm')
    evaluate_sources([source], tmp_path / 'R')
    for path in (tmp_path / 'R').glob('*.json'):
        row = json.loads(path.read_text())
        row['versions']['reclip'] = '0.0.0'
        path.write_text(json.dumps(row))
    with pytest.raises(FileExistsError, match='version of reclip'):
        evaluate_sources([source], tmp_path / 'R')


# the command line


def test_features_from_the_command_line(tmp_path):
    for i in range(3):
        features_file(tmp_path / 'F', f'set{i}', seed=i)
    words = [
        '--features',
        tmp_path / 'F',
        '--set',
        'all',
        '--method',
        'propagation',
        '--method',
        'kmeans',
        '--seed',
        0,
        '--seed',
        1,
    ]
    done = call(*words, '-o', tmp_path / 'R')
    assert done.exit_code == 0, done.output
    assert len(files(tmp_path / 'R')) == 12
    row = json.loads((tmp_path / 'R' / 'F__set1__kmeans__full__s1.json').read_text())
    assert row['model']['name'] == 'F'
    again = CliRunner().invoke(app, [*shlex.split(row['command'])[1:], '-o', str(tmp_path / 'again'), '-q'])
    assert again.exit_code == 0 and again.output == ''
    assert files(tmp_path / 'again') == {
        'F__set1__kmeans__full__s1.json': (tmp_path / 'R' / 'F__set1__kmeans__full__s1.json').read_bytes()
    }
    assert '12 of 12 rows are there already' in call(*words, '-o', tmp_path / 'R').output


def test_digits_from_the_command_line(tmp_path):
    words = [
        '--model',
        'demo',
        '--set',
        'digits',
        '--limit',
        120,
        '--present',
        4,
        '--method',
        'reclip',
        '--epochs',
        1,
        '--no-cache',
    ]
    done = call(*words, '-o', tmp_path / 'R', '--keep-features', tmp_path / 'F')
    assert done.exit_code == 0, done.output
    ((name, text),) = files(tmp_path / 'R').items()
    assert name == 'demo__digits__reclip__present4-limit120__s0.json'
    assert json.loads(text)['command'] == (
        'reclip eval --model demo --epochs 1 --set digits --method reclip --seed 0 --present 4 --limit 120'
    )
    done = call('--features', tmp_path / 'F', '--name', 'demo', '--set', 'digits', '-o', tmp_path / 'Q')
    assert done.exit_code == 0 and len(files(tmp_path / 'Q')) == 2


def test_a_printed_command_works_in_another_checkout(clip, tmp_path, monkeypatch):
    "Whole paths, given in one place, are relative ones in the row; a checkout elsewhere with the same beside it"
    for place in ('one', 'two'):
        folder_set(tmp_path / place / 'shared' / 'data', 'mnist')
        (tmp_path / place / 'checkout').mkdir()
    monkeypatch.chdir(tmp_path / 'one' / 'checkout')
    words = [
        '--model',
        'demo',
        '--set',
        'mnist',
        '--method',
        'zeroshot',
        '--templates',
        tmp_path / 'one' / 't.txt',
        '-q',
    ]
    for place in ('one', 'two'):
        (tmp_path / place / 't.txt').write_text('a {}.')
    assert call(*words, '--root', tmp_path / 'one' / 'shared' / 'data', '-o', 'R').exit_code == 0
    ((name, first),) = files('R').items()
    command = json.loads(first)['command']
    assert command == (
        'reclip eval --model demo --root ../shared/data --templates ../t.txt --set mnist --method zeroshot --seed 0'
    )
    assert str(tmp_path) not in first.decode()
    monkeypatch.chdir(tmp_path / 'two' / 'checkout')
    assert CliRunner().invoke(app, shlex.split(command)[1:]).exit_code == 0
    assert files('results') == {name: first}


def test_paths_from_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / 'a' / 'b').mkdir(parents=True)
    monkeypatch.chdir(tmp_path / 'a' / 'b')
    sep = os.sep
    assert near_path(tmp_path / 'a' / 'data' / 'x') == f'..{sep}data{sep}x' and near_path(Path.cwd()) == '.'
    assert near_path(tmp_path / 'elsewhere') == str(tmp_path / 'elsewhere')
    assert near_path(f'local-dir:{tmp_path}/a/m') == f'local-dir:..{sep}m'
    for word in ('ViT-L-14', 'hf-hub:org/name', 'a photo of a {}.', '../data'):
        assert near_path(word) == word
    monkeypatch.chdir('/')
    assert near_path(tmp_path) == str(tmp_path)


@pytest.mark.parametrize(
    'words, told',
    [
        ([], '--set'),
        (['--set', 'digits', '--method', 'magic'], 'magic'),
        (['--set', 'digits', '--present', 11], '10 occur'),
        (['--set', 'digits', '--present', 0], 'present'),
        (['--set', 'digits', '--imbalance', 0.5], 'imbalance'),
        (['--set', 'digits', '--imbalance', 'nan'], 'imbalance'),
        (['--set', 'digits', '--imbalance', 5000], 'at most'),
        (['--set', 'digits', '--limit', 0], 'limit'),
        (['--set', 'digits', '--alpha', 2], 'alpha'),
        (['--set', 'digits', '--seed', 2**70], '64 bits'),
        (['--set', 'digits', '--templates', 'nothing'], 'templates'),
        (['--set', 'no such set'], 'no such set'),
    ],
)
def test_bad_words_are_one_sentence(words, told, tmp_path):
    done = call('--model', 'demo', '-o', tmp_path / 'R', *words)
    assert done.exit_code == 2 and told in done.output and len(done.output.strip().splitlines()) == 1, done.output
    assert not (tmp_path / 'R').exists()


@pytest.mark.parametrize(
    'changed, about, told',
    [
        (dict(labels=None), dict(logit_scale='20'), 'lacks labels'),
        (dict(labels=torch.full((90,), 7)), dict(logit_scale='20'), 'from 0 to 4'),
        (dict(labels=torch.zeros(3, dtype=torch.int64)), dict(logit_scale='20'), '90 labels'),
        (dict(labels=torch.zeros(90)), dict(logit_scale='20'), 'whole numbers'),
        (dict(text_features=torch.ones(5, 3)), dict(logit_scale='20'), 'wide'),
        (dict(image_features=torch.zeros(90, 16)), dict(logit_scale='20'), 'all zeros'),
        ({}, {}, 'logit_scale'),
        ({}, dict(logit_scale='warm'), 'warm'),
        ({}, dict(logit_scale='-1'), 'positive'),
        ({}, dict(logit_scale='20', classes='{'), 'JSON'),
    ],
)
def test_bad_features_are_one_sentence(changed, about, told, tmp_path):
    path = features_file(tmp_path / 'F', **changed)
    x, t, y = blobs(90, 5, dtype=torch.float32)
    tensors = dict(image_features=x, text_features=t, labels=y) | changed
    save_file({k: v.contiguous() for k, v in tensors.items() if v is not None}, path, about)
    done = call('--features', tmp_path / 'F', '--set', 'blobs', '-o', tmp_path / 'R')
    assert done.exit_code == 2 and told in done.output and len(done.output.strip().splitlines()) == 1, done.output


def test_more_bad_features(tmp_path):
    assert call('--features', tmp_path / 'none', '--set', 'all').exit_code == 2
    path = features_file(tmp_path / 'F')
    done = call('--features', tmp_path / 'F', '--set', 'blobs', '--method', 'reclip')
    assert done.exit_code == 2 and 'trains on images' in done.output
    assert 'it holds blobs' in call('--features', tmp_path / 'F', '--set', 'other').output
    path.write_bytes(b'no tensors')
    assert call('--features', tmp_path / 'F', '--set', 'blobs').exit_code == 2
    (tmp_path / 'R').write_text('a file')
    features_file(tmp_path / 'F')
    assert 'is a file' in call('--features', tmp_path / 'F', '--set', 'blobs', '-o', tmp_path / 'R').output


def test_what_a_method_cannot_do_leaves_the_others(tmp_path):
    "Two classes with one text: no projection space is left, and zero-shot goes on"
    features_file(tmp_path / 'F', 'a', text_features=torch.ones(5, 16))
    features_file(tmp_path / 'F', 'b')
    done = call('--features', tmp_path / 'F', '--set', 'all', '-o', tmp_path / 'R')
    assert done.exit_code == 2 and '1 of 4 rows could not be made; the first: a, propagation, seed 0: P2' in done.output
    assert sorted(files(tmp_path / 'R')) == [
        f'F__{o}__full__s0.json' for o in ('a__zeroshot', 'b__propagation', 'b__zeroshot')
    ]


def test_list_names_the_sets():
    done = call('--list')
    assert done.exit_code == 0 and {'cifar10', 'imagenet', 'pacs/photo'} <= set(done.output.split())


@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_evaluation_goes_on(number, tmp_path):
    for i in range(6):
        features_file(tmp_path / 'F', f'set{i}', n=150, seed=i)
    line = [
        sys.executable,
        '-m',
        'reclip',
        'eval',
        '--features',
        str(tmp_path / 'F'),
        '--set',
        'all',
        '--method',
        'propagation',
        '--seed',
        '0',
        '--seed',
        '1',
    ]
    run = subprocess.Popen(
        [*line, '-o', str(tmp_path / 'R')], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    end = time.monotonic() + 100
    while len(files(tmp_path / 'R')) < 2 and run.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    os.kill(run.pid, number)
    told = run.communicate()[1]
    some = files(tmp_path / 'R')
    assert 2 <= len(some) < 12 and run.returncode == (-9 if number == signal.SIGKILL else 130)
    if number == signal.SIGINT:
        assert 'Repeat the command to go on' in told
    done = call(*line[4:], '-o', tmp_path / 'R')
    assert done.exit_code == 0 and f'{len(some)} of 12 rows are there already' in done.output
    assert call(*line[4:], '-o', tmp_path / 'whole').exit_code == 0
    assert files(tmp_path / 'R') == files(tmp_path / 'whole') and len(files(tmp_path / 'R')) == 12
    assert not [o for o in (tmp_path / 'R').rglob('.*')]


# models in memory, sets by name, and what the page promises


def folder_set(folder, name, n=30):
    "Digits as a folder of class folders"
    images, labels = demo.demo_digits()
    for i in range(n):
        place = folder / name / demo.class_names[labels[i]]
        place.mkdir(parents=True, exist_ok=True)
        images[i].save(place / f'{i:03}.png')
    classes = [[o, o] for o in demo.class_names]
    (folder / name / 'classes.json').write_text(json.dumps(dict(classes=classes)))


def test_a_model_in_memory(clip, small, tmp_path):
    folder_set(tmp_path / 'data', 'mnist')
    seen = []
    evaluating.evaluate_sets(
        Clip(*clip), ['mnist', small], tmp_path / 'R', model_name='my model', root=tmp_path / 'data', tell=seen.append
    )
    assert [o['set'] for o in seen] == ['mnist'] * 2 + ['digits'] * 2
    row = json.loads((tmp_path / 'R' / 'my_model__mnist__propagation__full__s0.json').read_text())
    assert (
        row['n_images'] == 30
        and row['command'] == "evaluate_sets(clip, ['mnist'], RESULTS, Asked(methods=['propagation'], seeds=[0]))"
    )


def test_features_are_the_images(clip, tmp_path):
    folder_set(tmp_path / 'data', 'mnist')
    words = ['--set', 'mnist', '--method', 'zeroshot', '--method', 'propagation', '--name', 'demo']
    assert (
        call(
            '--model',
            'demo',
            '--root',
            tmp_path / 'data',
            '--keep-features',
            tmp_path / 'F',
            '-o',
            tmp_path / 'A',
            *words,
        ).exit_code
        == 0
    )
    assert call('--features', tmp_path / 'F', '-o', tmp_path / 'B', *words).exit_code == 0
    for name, text in files(tmp_path / 'A').items():
        a, b = json.loads(text), json.loads(files(tmp_path / 'B')[name])
        for stage in a['stages']:
            assert a['stages'][stage] == pytest.approx(b['stages'][stage], abs=1e-3)


def test_a_missing_set_is_one_sentence(tmp_path):
    done = call('--model', 'demo', '--set', 'dtd', '--root', tmp_path, '-o', tmp_path / 'R')
    assert done.exit_code == 2 and str(tmp_path) in done.output and len(done.output.strip().splitlines()) == 1


def page_command():
    "What page 14_eval says would make the paper's table"
    page = json.loads((Path(__file__).parents[2] / 'nbs' / '14_eval.ipynb').read_text())
    text = next(''.join(o['source']) for o in page['cells'] if o['id'] == 'eval-about-paper')
    block = text.split('```sh')[1].split('```')[0].replace('\\\n', ' ')
    return [o.split()[1:] for o in block.strip().splitlines()]


def test_the_papers_command_on_stand_ins(clip, tmp_path, monkeypatch):
    "The model and the sets are small ones; the words are the page's"
    for name in ('mnist', 'stl10'):
        folder_set(tmp_path / 'data', name)
    names = ['airplane', 'bird', 'car', 'cat', 'deer', 'dog', 'horse', 'monkey', 'ship', 'truck']
    (tmp_path / 'data/stl10/classes.json').write_text(
        json.dumps(dict(classes=[*map(list, zip(demo.class_names, names))]))
    )
    from reclip import clip as clips

    with torch.random.fork_rng():
        torch.manual_seed(0)
        other = open_clip.CLIP(**demo.CONFIG).eval()  # it tells all words apart
    monkeypatch.setattr(clips, 'load_clip', lambda model, pretrained, device: Clip(other, *clip[1:]))
    evaluation, table = page_command()
    there = {
        'DATA': str(tmp_path / 'data'),
        'RESULTS': str(tmp_path / 'R'),
        'table.md': str(tmp_path / 't.md'),
        'table.png': str(tmp_path / 't.png'),
    }
    done = CliRunner().invoke(app, [there.get(o, o) for o in evaluation] + ['--epochs', '1'])
    assert done.exit_code == 0, done.output
    assert '20 sets were not found' in done.output
    assert len(files(tmp_path / 'R')) == 2 * 4 * 3
    row = json.loads(files(tmp_path / 'R')['ViT-L-14-openai__stl10__reclip-official__full__s2.json'])
    assert row['settings']['recipe'] == 'official' and row['model']['pretrained'] == 'openai' and row['n_classes'] == 10
    done = CliRunner().invoke(app, [there.get(o, o) for o in table])
    assert done.exit_code == 0, done.output
    assert '74.94' in (tmp_path / 't.md').read_text() and (tmp_path / 't.png').stat().st_size > 5000


def test_table_of_rows(tmp_path):
    for i in range(2):
        features_file(tmp_path / 'F', f'set{i}', seed=i)
    for more in ([], ['--present', 2]):
        assert (
            call(
                '--features',
                tmp_path / 'F',
                '--set',
                'all',
                '--method',
                'propagation',
                '--method',
                'zlap',
                '-o',
                tmp_path / 'R',
                *more,
            ).exit_code
            == 0
        )

    def table(*args):
        return CliRunner().invoke(app, ['table', str(tmp_path / 'R'), *(str(o) for o in args)])

    assert 'set0' in table().output and 'zlap' in table().output and table().exit_code == 0
    done = table('--csv', tmp_path / 't.csv', '--figure', tmp_path / 'g.png', '--scenario', 'present2')
    assert done.exit_code == 0 and (tmp_path / 't.csv').is_file() and (tmp_path / 'g.png').is_file(), done.output
    for words in (
        ['--scenario', 'none'],
        ['--score', 'magic'],
        ['--csv', tmp_path / 't.xyz'],
        ['--figure', tmp_path / 'g.png'],
    ):
        done = table(*words)
        assert done.exit_code == 2 and len(done.output.strip().splitlines()) == 1, done.output
    assert CliRunner().invoke(app, ['table', str(tmp_path / 'nothing')]).exit_code == 2
