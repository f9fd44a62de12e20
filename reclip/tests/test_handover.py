"What is handed on: exports that say what they repeat, probabilities, accounts for machines, and folders to train from."

import json
import re
from contextlib import chdir
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner
from reclip import demo, run
from reclip.cli import app
from reclip.kept import read_tensors
from reclip.probabilities import write_probabilities
from reclip.sorted_folders import distinct_names, sort_images

WORDS = ', '.join(demo.class_names)
N = 60


def call(*args):
    return CliRunner().invoke(app, [str(o) for o in args])


def fine(*args):
    found = call(*args)
    assert found.exit_code == 0, (found.output, found.exception)
    return found


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    "60 digits as files"
    folder = tmp_path_factory.mktemp('handover') / 'photos'
    folder.mkdir()
    for i, image in enumerate(demo.demo_digits()[0][:N]):
        image.save(folder / f'{i:02}.png')
    return folder


@pytest.fixture(scope='module')
def runs(photos):
    "A run of each kind: who answers differs"
    kinds = dict(auto={}, paper=dict(recipe='paper'), free=dict(method='training-free'), plain=dict(method='zeroshot'))
    words = dict(model='demo', templates='digit', epochs=1, progress=False)
    for name, how in kinds.items():
        run.adapt(photos, WORDS, photos.parent / name, **words, **how)
    return {name: photos.parent / name for name in kinds}


def as_exported(folder, images):
    "What the code in an exported README says of images"
    code = (folder / 'README.md').read_text(encoding='utf-8').split('```python\n')[1].split('```')[0]
    *setup, last = code.strip().splitlines()
    assert last == 'print(classes[int(found.argmax())])'
    answer, found = next(o for o in setup[::-1] if o.startswith('found = ')).removeprefix('found = '), []
    with chdir(folder):
        names = dict(image=images[0])
        exec(code, names)
        for o in images:
            logits = eval(answer, names | dict(image=o))
            found.append((names['classes'][int(logits.argmax())], float(logits.softmax(1).max())))
    return pd.DataFrame(found, columns=['label', 'probability'])


@pytest.mark.parametrize(
    'kind, student, chosen, by',
    [
        ('auto', None, 'V', 'are those of V.'),
        ('auto', 'T', 'T', 'are those of V.'),
        ('auto', 'both', 'both', 'are those of V.'),
        ('paper', None, None, 'are the mean of the students T and V.'),
        ('paper', 'both', 'both', 'are the mean of the students T and V.'),
        ('free', None, 'V', 'come from the labeller, not from a student'),
        ('plain', None, 'V', 'come from plain CLIP'),
    ],
)
def test_an_export_says_how_often_it_repeats_the_run(runs, tmp_path, capsys, kind, student, chosen, by):
    found = fine('export', runs[kind], tmp_path / 'X', *(() if student is None else ('--student', student)))
    told = (tmp_path / 'X' / 'README.md').read_text(encoding='utf-8')
    table = run.read_predictions(runs[kind])
    if chosen is None:  # the student that repeats more labels
        chosen = 'V' if (table.v_label == table.label).sum() >= (table.t_label == table.label).sum() else 'T'
    answers = as_exported(tmp_path / 'X', demo.demo_digits()[0][:N])
    same = int((answers.label == table.label).sum())
    counts = re.findall(r'(\d+) of (\d+) images', told)
    assert counts == [(str(same), str(N))] * 2 and by in told  # what it says is what open_clip alone sees
    assert by in found.stderr.replace('\n', ' ') and f'{same} of {N} images' in found.stderr
    own = dict(V=table.v_label, T=table.t_label).get(chosen)
    assert own is None or answers.label.tolist() == own.tolist()
    if (kind, student) in (('auto', None), ('paper', 'both')):  # who answered, with its own probability
        assert same == N and (answers.probability - table.probability).abs().max() < 1e-3
    assert str(runs[kind].parent) not in told  # no absolute paths


def test_two_students_stand_side_by_side(runs, tmp_path):
    run.export(runs['paper'], tmp_path / 'X', student='both')
    assert sorted(o.name for o in (tmp_path / 'X').iterdir()) == ['README.md', 'T', 'V', 'classes.txt']
    t, v = (load_file(tmp_path / 'X' / o / 'open_clip_model.safetensors') for o in 'TV')
    moved = {k for k in t if not torch.equal(t[k], v[k])}
    assert any(o.startswith('visual.') for o in moved) and any(o.startswith('transformer.') for o in moved)
    pretrained = demo.demo_clip()[0].state_dict()
    assert all(torch.equal(t[k], pretrained[k]) for k in t if k.startswith('visual.'))
    run.export(runs['paper'], tmp_path / 'V', student='V')
    assert load_file(tmp_path / 'V' / 'open_clip_model.safetensors').keys() == v.keys()
    assert 'centroids' in load_file(tmp_path / 'V' / 'classifier.safetensors')


def test_an_export_without_pictures_says_so(runs, photos, tmp_path):
    photos.rename(photos.parent / 'away')
    try:
        found = fine('export', runs['auto'], tmp_path / 'X')
    finally:
        (photos.parent / 'away').rename(photos)
    told = (tmp_path / 'X' / 'README.md').read_text(encoding='utf-8')
    assert told.count(f'{N} of {N} images') == 1 and 'could not be tried on the pictures' in told
    assert 'could not be tried' in found.stderr
    assert fine('export', runs['auto'], tmp_path / 'Y', '-q').output == ''
    assert 'student' in call('export', runs['auto'], tmp_path / 'Z', '--student', 'W').stderr
    assert call('export', runs['auto'], tmp_path / 'Z', '--student', 'W').exit_code == 2


@pytest.mark.parametrize('kind', ['auto', 'free', 'plain'])
def test_the_next_classes_and_all_probabilities(photos, runs, tmp_path, kind):
    methods = dict(auto=['adapt', '--epochs', 1], free=['adapt', '--training-free'], plain=['zeroshot'])
    job = [*methods[kind][:1], photos, '-c', WORDS, '-t', 'digit', '-m', 'demo', '-o', tmp_path / 'RUN']
    more = [*methods[kind][1:], '--top-k', 3, '--probabilities', tmp_path / 'p.safetensors']
    found = fine(*job, *more)
    table = run.read_predictions(tmp_path / 'RUN')
    assert table.label.tolist() == run.read_predictions(runs[kind]).label.tolist()
    tensors, about = read_tensors(tmp_path / 'p.safetensors')
    p = pd.DataFrame(tensors['probabilities'].double().numpy(), columns=about['classes'])
    assert about['paths'] == table.path.tolist() and (p.sum(axis=1) - 1).abs().max() < 1e-5
    for i, row in table.iterrows():
        rest = p.loc[i].drop(row.label).sort_values(ascending=False)
        assert [row.label_2, row.label_3] == rest.index[:2].tolist()
        assert abs(row.probability_2 - rest.iloc[0]) < 1e-4 and abs(row.probability_3 - rest.iloc[1]) < 1e-4
    noted = 'need not be its label' in ' '.join(run.read_run(tmp_path / 'RUN')['notes'])
    assert noted == (kind == 'free') == ('need not be its label' in found.stderr.replace('\n', ' '))
    if kind != 'free':  # the probabilities are those that the labels come from
        assert p.idxmax(axis=1).tolist() == table.label.tolist()
        assert (p.max(axis=1) - table.probability).abs().max() < 1e-4


def test_probabilities_in_each_format(photos, runs, tmp_path):
    named = [tmp_path / f'p{o}' for o in ('.npy', '.csv', '.jsonl', '.safetensors')]
    for path in named:
        fine('predict', runs['auto'], photos, '-o', tmp_path / f'{path.suffix[1:]}.csv', '--probabilities', path)
    plain = np.load(named[0], allow_pickle=False)
    table, lines = pd.read_csv(named[1]), pd.read_json(named[2], lines=True)
    assert list(table) == list(lines) == ['path', *demo.class_names] and plain.shape == (N, 10)
    for o in (table, lines):
        assert np.abs(o[list(demo.class_names)].to_numpy() - plain).max() < 1e-6
    assert np.array_equal(load_file(named[3])['probabilities'].numpy(), plain)
    write_probabilities(tmp_path / 'q.csv', torch.ones(1, 2) / 2, ['a.png'], ['path', 'field'])
    assert list(pd.read_csv(tmp_path / 'q.csv')) == ['image', 'path', 'field']  # a class may be called `path`
    fine('predict', runs['auto'], photos, '-o', tmp_path / 'k.csv', '--top-k', 2)
    new = pd.read_csv(tmp_path / 'k.csv')
    second = np.argsort(plain, axis=1)[:, -2]
    assert new.label_2.tolist() == [demo.class_names[i] for i in second]
    for args, words in [
        (['--top-k', 0], 'top_k'),
        (['--top-k', 101], 'top_k'),
        (['--probabilities', tmp_path / 'p.txt'], '.npy'),
        (['--probabilities', named[0]], 'exists'),
    ]:
        found = call('predict', runs['auto'], photos, '-o', tmp_path / 'n.csv', *args)
        assert found.exit_code == 2 and words in found.stderr and not (tmp_path / 'n.csv').exists()
    with pytest.raises(ValueError, match='top_k'):
        run.adapt(photos, WORDS, tmp_path / 'R', model='demo', top_k=0, progress=False)
    assert not (tmp_path / 'R').exists()


def test_words_of_next_classes_stay_words(tmp_path):
    folder = tmp_path / 'photos'
    folder.mkdir()
    for i, image in enumerate(demo.demo_digits()[0][:20]):
        image.save(folder / f'{i:02}.png')
    table = run.adapt(
        folder, ['007', 'None', '1e3'], tmp_path / 'R', model='demo', method='zeroshot', top_k=9, progress=False
    )
    assert {'label_3', 'probability_3'} < set(table) and 'label_4' not in table
    assert run.read_predictions(tmp_path / 'R').label_2.tolist() == table.label_2.tolist()
    assert 'there are only 3 classes' in ' '.join(run.read_run(tmp_path / 'R')['notes'])
    again = dict(model='demo', method='zeroshot', top_k=2, resume=True, progress=False)
    same = run.adapt(folder, ['007', 'None', '1e3'], tmp_path / 'R', **again)
    assert same.equals(run.read_predictions(tmp_path / 'R'))  # finished: nothing is done again


def test_info_and_report_for_machines(photos, runs, tmp_path):
    table = run.read_predictions(runs['paper'])
    told = json.loads(fine('info', runs['paper'], '--json').stdout)
    assert told['classes'] == {o: int((table.label == o).sum()) for o in demo.class_names}
    assert told['empty_classes'] == [o for o, n in told['classes'].items() if not n]
    assert told['changed'] == table.changed.mean() and told['settings']['recipe'] == 'paper'
    truth = [demo.class_names[i] for i in demo.demo_digits()[1][:N]]
    pd.DataFrame(dict(path=table.path, label=truth)).to_csv(tmp_path / 'truth.csv', index=False)
    fine('report', runs['paper'], '-q', '--labels', tmp_path / 'truth.csv', '--json', tmp_path / 'r.json')
    found = json.loads((tmp_path / 'r.json').read_text(encoding='utf-8'))
    assert found.items() >= told.items() and found['skipped'] == [] and len(found['history']) == found['epochs'] + 1
    scores = found['scores']
    assert scores['n_labels'] == N and scores['accuracy']['final']['accuracy'] == (table.label == truth).mean()
    assert scores['accuracy']['V (image student)']['accuracy'] == (table.v_label == truth).mean()
    found = call('report', runs['paper'], '-q', '--json', tmp_path / 'truth.csv' / 'r.json')
    assert found.exit_code == 2 and 'is not a folder' in found.stderr


def tree(folder):
    return sorted(o.relative_to(folder).as_posix() for o in folder.rglob('*') if o.suffix == '.png')


def test_sorted_folders(photos, runs, tmp_path):
    table = run.read_predictions(runs['auto'])
    fine('sort', runs['auto'], '--copy-to', tmp_path / 'C')
    fine('sort', runs['auto'], '--link-to', tmp_path / 'L', '-q')
    assert tree(tmp_path / 'C') == tree(tmp_path / 'L') == sorted(f'{o.label}/{o.path}' for o in table.itertuples())
    for o in table.itertuples():
        copied, linked = (tmp_path / k / o.label / o.path for k in 'CL')
        assert copied.read_bytes() == (photos / o.path).read_bytes() and not copied.is_symlink()
        assert linked.is_symlink() and linked.samefile(photos / o.path)
    assert call('sort', runs['auto'], '--copy-to', tmp_path / 'C').exit_code == 2  # nothing is replaced
    assert 'give one of them' in call('sort', runs['auto']).stderr
    classes = pd.read_csv(tmp_path / 'C' / 'classes.csv')
    assert dict(zip(classes.label, classes.images)) == table.label.value_counts().to_dict()


def test_sorted_folders_list_what_is_left_out(tmp_path):
    for i, image in enumerate(demo.demo_digits()[0][:24]):
        (tmp_path / 'photos' / 'ab'[i % 2]).mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / 'photos' / 'ab'[i % 2] / f'{i // 2}.png')
    names = ['zero/one', 'Two', 'two.', '..', 'con', 'five']
    table = run.adapt(tmp_path / 'photos', names, tmp_path / 'R', model='demo', method='zeroshot', progress=False)
    gone, other = tmp_path / 'photos' / table.path[0], tmp_path / 'photos' / table.path[23]
    gone.unlink()
    other.write_bytes((tmp_path / 'photos' / table.path[12]).read_bytes())
    found = sort_images(tmp_path / 'R', tmp_path / 'S')
    assert found.n_images == 22 == len(tree(tmp_path / 'S'))
    assert {o.path for o in found.skipped} == {table.path[0], table.path[23]}
    assert set(pd.read_csv(tmp_path / 'S' / 'skipped.csv').path) == {table.path[0], table.path[23]}
    assert distinct_names(names) == ['zero_one', 'Two', 'two-2', '_', '_con', 'five']
    classes = pd.read_csv(tmp_path / 'S' / 'classes.csv', keep_default_na=False)
    for o in classes.itertuples():
        assert len(list((tmp_path / 'S' / o.folder).iterdir())) == o.images
    for o in table.drop([0, 23]).itertuples():  # each picture is in the folder of its class, under some name
        folder = tmp_path / 'S' / dict(zip(classes.label, classes.folder))[o.label]
        data = (tmp_path / 'photos' / o.path).read_bytes()
        assert any(f.read_bytes() == data for f in folder.iterdir())


def test_sorted_folders_are_whole_or_not_there(runs, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr('reclip.sorted_folders.write_table', full)
    with pytest.raises(OSError, match='No space'):
        sort_images(runs['auto'], tmp_path / 'S')
    assert not list(tmp_path.iterdir())
