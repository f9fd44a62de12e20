"A run leaves its folder whole or not at all, goes on to the same bytes after a kill, and reading it executes nothing."

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections import OrderedDict
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
import numpy as np
import open_clip
import pandas as pd
import pytest
import torch
from open_clip import factory
from safetensors.torch import load_file, save_file
from reclip.labeller import label_images
from reclip import ReCLIP, demo, encode_images, load_clip, text_classifier
from reclip.clip import Clip
from reclip.images import find_images, read_path
from reclip.run import adapt, export, info, predict, read_run, write_table
from reclip.words import read_templates

all_files = [
    'adapted.safetensors',
    'config.json',
    'digests.safetensors',
    'features.safetensors',
    'history.csv',
    'predictions.csv',
    'skipped.csv',
]
columns = [
    'path',
    'label',
    'confidence',
    'probability',
    'zero_shot_label',
    'changed',
    't_label',
    'v_label',
    'propagated_label',
]
names, settings = list(demo.class_names), dict(model='demo', templates='digit', device='cpu', progress=False)


def scan(folder, n, name='{:03}.png'):
    "A folder with the first digits as files"
    for i, image in enumerate(demo.demo_digits()[0][:n]):
        path = folder / (name(i) if callable(name) else name.format(i))
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    return folder


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).rglob('*')) if p.is_file()}


def files(folder):
    return sorted(o.name for o in folder.iterdir())


def same(a, b):
    "Whether two runs have the same results to the last byte"
    return all(
        (a / o).read_bytes() == (b / o).read_bytes()
        for o in ('adapted.safetensors', 'predictions.csv', 'features.safetensors', 'skipped.csv')
    )


worker_code = '''
import json, os, resource, sys
import torch
from reclip.run import adapt

for line in sys.stdin:
    job = json.loads(line)
    pid = os.fork()
    if pid:
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
        continue
    torch.set_num_threads(job.pop('threads'))
    if limit := job.pop('limit', None):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        adapt(**job)
    except OSError as e:
        os._exit(3)
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(4)
    os._exit(0)
'''


reader_code = '''
import json, sys
from pathlib import Path
import numpy as np, open_clip, torch
from PIL import Image
from safetensors.torch import load_file

folder, images, out = map(Path, json.loads(sys.stdin.readline()))
model, _, preprocess = open_clip.create_model_and_transforms(f'local-dir:{folder}')
tokenizer = open_clip.get_tokenizer(f'local-dir:{folder}')
classes = (folder / 'classes.txt').read_text(encoding='utf-8').splitlines()
weights = load_file(folder / 'classifier.safetensors')
with torch.no_grad():
    features = model.eval().encode_image(
        torch.stack([preprocess(Image.open(o)) for o in sorted(images.iterdir())]), normalize=True
    )
    texts = model.encode_text(tokenizer(['a photo of the number one.', 'a picture of a nine.']), normalize=True)
labels = [classes[i] for i in (features @ weights['centroids'].T).argmax(1)]
assert 'reclip' not in sys.modules
np.savez(out, features=features.numpy(), texts=texts.numpy(), labels=labels, classes=classes)
'''


@pytest.fixture(scope='module', autouse=True)
def processes():
    "One forks a child for each line that it reads, one knows only open_clip; both get ready while other tests run"
    started = [
        subprocess.Popen(
            [sys.executable, '-c', code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True
        )
        for code, stderr in ((worker_code, None), (reader_code, subprocess.PIPE))
    ]
    yield started
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def begin(processes):
    "Starts `adapt` in a process of its own; returns its id, and a function that waits for its exit status"
    worker = processes[0]

    def start(**job):
        worker.stdin.write(json.dumps(dict(threads=torch.get_num_threads()) | job) + '\n')
        worker.stdin.flush()
        return int(worker.stdout.readline()), lambda: int(worker.stdout.readline())

    return start


@pytest.fixture(scope='module')
def scans(tmp_path_factory):
    return scan(tmp_path_factory.mktemp('scans'), 120)


@pytest.fixture(scope='module')
def few(tmp_path_factory):
    return scan(tmp_path_factory.mktemp('few'), 60)


@pytest.fixture(scope='module')
def run(scans, tmp_path_factory):
    "`(folder, table)` of an adapted run; tests must leave it as it is"
    folder = tmp_path_factory.mktemp('runs') / 'run'
    table = adapt(scans, names, folder, epochs=2, **settings)
    before = contents(folder)
    yield folder, table
    assert contents(folder) == before


@pytest.fixture(scope='module')
def small(few, tmp_path_factory):
    "Folder of an adapted run of 60 images and one epoch"
    folder = tmp_path_factory.mktemp('runs') / 'small'
    adapt(few, names, folder, epochs=1, **settings)
    return folder


@pytest.fixture(scope='module')
def small_free(few, tmp_path_factory):
    "Folder of a training-free run of 60 images"
    folder = tmp_path_factory.mktemp('runs') / 'small'
    adapt(few, names, folder, method='training-free', **settings)
    return folder


@pytest.fixture(scope='module')
def free(scans, tmp_path_factory):
    "`(folder, table)` of a training-free run"
    folder = tmp_path_factory.mktemp('runs') / 'free'
    return folder, adapt(scans, names, folder, method='training-free', **settings)


@pytest.fixture(scope='module')
def rows(scans, tmp_path_factory, clip):
    "File with the features of the scans"
    path = tmp_path_factory.mktemp('rows') / 'rows.npy'
    np.save(path, encode_images(clip[0], find_images(scans)[0], clip[1]).numpy())
    return path


def test_what_a_run_leaves(run, scans):
    folder, table = run
    assert files(folder) == all_files and files(folder.parent) == ['run']
    written = pd.read_csv(folder / 'predictions.csv')
    assert (
        list(written) == columns
        and written.equals(table)
        and written.path.tolist() == [f'{i:03}.png' for i in range(120)]
    )
    assert (
        set(written.label) <= set(names)
        and written.probability.between(0, 1).all()
        and ((written.label != written.zero_shot_label) == written.changed).all()
    )
    history = pd.read_csv(folder / 'history.csv')
    assert list(history) == [
        'epoch',
        'agreement',
        'confidence_t',
        'confidence_v',
        'changed',
        'steps',
        'loss_t',
        'loss_v',
        'seconds',
    ] and history.epoch.tolist() == [0, 1, 2]
    assert (folder / 'skipped.csv').read_text() == 'path,kind,reason\n'
    tensors = load_file(folder / 'features.safetensors')
    assert (
        tensors['rows'].tolist() == list(range(120))
        and tensors['frozen'].shape == tensors['adapted'].shape == (120, 64)
        and tensors['frozen'].dtype == torch.float16
    )
    config = json.loads((folder / 'config.json').read_text())
    assert (
        set(config) == {'settings', 'history', 'logit_scale', 'fingerprint', 'versions', 'run', 'notes'}
        and config['notes'] == []
        and config['settings']['templates'] == read_templates('digit')
        and config['settings']['epochs'] == 2
    )
    about = config['run']
    assert (
        about['method'],
        about['n_images'],
        about['n_skipped'],
        about['classes'],
        about['images'],
        about['features'],
    ) == ('adapt', 120, 0, names, str(scans), False) and {'system', 'python', 'device'} <= set(about['machine'])
    assert info(folder)['n_images'] == 120 and info(folder)['epochs'] == 2 and info(folder)['model'] == 'demo'


def test_a_run_is_the_estimator_of_its_images(run, scans):
    folder, table = run
    found = ReCLIP('demo', class_names=names, templates=read_templates('digit'), epochs=2, device='cpu').fit(
        find_images(scans)[0]
    )
    assert [names[i] for i in found.labels_] == table.label.tolist() and [
        names[i] for i in found.v_labels_
    ] == table.v_label.tolist()
    back, before = ReCLIP.load(folder), contents(folder)
    assert [names[i] for i in back.predict(find_images(scans)[0])] == table.label.tolist() and torch.equal(
        back.labels_, found.labels_
    )
    again, probabilities, skipped = predict(folder, scans, progress=False)
    assert (
        list(again) == columns[:-1]
        and again.equals(table[columns[:-1]])
        and probabilities.shape == (120, 10)
        and not skipped
        and contents(folder) == before
    )


def test_the_same_run_twice(small, few, tmp_path):
    adapt(few, names, tmp_path / 'run', epochs=1, **settings)
    assert same(tmp_path / 'run', small)


def test_training_free(free, run, rows):
    folder, table = free
    assert (
        files(folder) == all_files
        and list(table) == columns
        and read_run(folder)['run']['method'] == 'training-free'
        and len(pd.read_csv(folder / 'history.csv')) == 1
    )
    x, back = torch.from_numpy(np.load(rows)), ReCLIP.load(folder)
    found, sure, _ = label_images(x, back.text_features_, logit_scale=back.loaded().logit_scale)
    assert (
        [names[i] for i in found] == table.propagated_label.tolist() == table.label.tolist()
        and table.zero_shot_label.equals(run[1].zero_shot_label)
        and table.changed.any()
    )
    assert table.propagated_label.equals(run[1].propagated_label) and np.allclose(table.probability, sure, atol=2e-3)
    new, probabilities, _ = predict(folder, rows, progress=False)
    assert (
        len(new) == 120
        and torch.allclose(probabilities.sum(1), torch.ones(120), atol=1e-5)
        and new.zero_shot_label.tolist() == table.zero_shot_label.tolist()
    )


def test_zeroshot(scans, run, tmp_path, clip):
    table = adapt(scans, names, tmp_path / 'run', method='zeroshot', **settings)
    assert (
        files(tmp_path / 'run') == all_files
        and table.label.equals(run[1].zero_shot_label)
        and not table.changed.any()
        and table.propagated_label.isna().all()
    )
    features, texts = (
        encode_images(clip[0], find_images(scans)[0], clip[1]),
        text_classifier(Clip(*clip), names, read_templates('digit')),
    )
    p = (Clip(*clip).logit_scale * features @ texts.T).softmax(1).max(1)
    assert [names[i] for i in p.indices] == table.label.tolist() and np.allclose(table.probability, p.values, atol=1e-3)
    assert predict(tmp_path / 'run', scans, progress=False)[0].label.equals(table.label)


@pytest.mark.parametrize('suffix', ['npy', 'safetensors'])
def test_features_give_what_their_images_give(rows, free, suffix, tmp_path):
    path = tmp_path / f'rows.{suffix}'
    np.save(path, np.load(rows)) if suffix == 'npy' else save_file(
        dict(image_features=torch.from_numpy(np.load(rows)), other=torch.ones(1)), path
    )
    table = adapt(path, names, tmp_path / 'run', **settings)
    assert (
        files(tmp_path / 'run') == all_files
        and table.path.tolist() == [str(i) for i in range(120)]
        and all(table[o].equals(free[1][o]) for o in columns if 'label' in o or o == 'changed')
        and np.allclose(table.probability, free[1].probability, atol=2e-3)  # rows were made unit rows once more
    )
    about = read_run(tmp_path / 'run')['run']
    assert about['method'] == 'training-free' and about['features'] and about['n_images'] == 120


def test_unreadable_files_are_listed(scans, tmp_path):
    shutil.copytree(scans, tmp_path / 'in')
    (tmp_path / 'in' / 'torn.png').write_bytes((scans / '000.png').read_bytes()[:50])
    (tmp_path / 'in' / 'empty.png').write_bytes(b'')
    (tmp_path / 'in' / 'new\nline, "x".png').write_bytes(b'hello')
    (tmp_path / 'in' / 'gone.png').symlink_to('nowhere')
    (tmp_path / 'in' / 'again.png').symlink_to('007.png')
    table = adapt(tmp_path / 'in', names, tmp_path / 'run', method='training-free', **settings)
    skipped = pd.read_csv(tmp_path / 'run' / 'skipped.csv')
    assert dict(zip(skipped.path, skipped.kind)) == {
        'torn.png': 'unreadable',
        'empty.png': 'unreadable',
        'gone.png': 'unreadable',
        'new\nline, "x".png': 'unreadable',
        'again.png': 'duplicate',
    }
    assert len(table) == 120 and skipped.reason.notna().all() and not skipped.reason.str.contains(str(tmp_path)).any()
    about = read_run(tmp_path / 'run')['run']
    assert (about['n_images'], about['n_skipped'], about['n_unreadable']) == (120, 5, 4)
    with pytest.raises(ValueError, match='4 of 124 images cannot be opened'):
        adapt(tmp_path / 'in', names, tmp_path / 'other', method='training-free', max_unreadable=0.03, **settings)
    assert not (tmp_path / 'other').exists()


odd = [
    'new\nline.png',
    'car\rriage.png',
    'both\r\n.png',
    'com,ma.png',
    'quo"te.png',
    ' space .png',
    'NA.png',
    '\u732b.png',
    os.fsdecode(b'caf\xe9.png'),
    os.fsdecode(b'\xff\xfe\x80.png'),
    os.fsdecode(b'deep\xe9/er/007.png'),
]


def test_odd_names_come_back(tmp_path):
    try:
        scan(tmp_path / 'in', 60, lambda i: odd[i] if i < len(odd) else f'{i}.png')
    except OSError:
        pytest.skip('this disk has no such names')
    (tmp_path / 'in' / os.fsdecode(b'empty\xe9.png')).write_bytes(b'')
    table = adapt(tmp_path / 'in', names, tmp_path / 'run', epochs=1, **settings)
    expected = [o for o in find_images(tmp_path / 'in')[0].names if 'empty' not in o]
    for found in (table, pd.read_csv(tmp_path / 'run' / 'predictions.csv')):
        assert len(found) == 60 and found.path.map(read_path).tolist() == expected
        assert all((tmp_path / 'in' / read_path(o)).is_file() for o in found.path)
    assert [read_path(o) for o in pd.read_csv(tmp_path / 'run' / 'skipped.csv').path] == [os.fsdecode(b'empty\xe9.png')]
    paths = [tmp_path / 'in' / o for o in odd]
    listed = adapt(paths, names, tmp_path / os.fsdecode(b'run\xe9'), method='zeroshot', **settings)
    assert [read_path(o) for o in listed.path] == [str(o) for o in paths] and read_run(
        tmp_path / os.fsdecode(b'run\xe9')
    )['run']['images'] == listed.path.tolist()
    assert listed.label.tolist() == table.set_index(table.path.map(read_path)).zero_shot_label[odd].tolist()


def test_class_names_that_look_like_something_else(few, tmp_path):
    odd = ['None', 'NA', 'null', 'nan', '7', '007', '1.0', 'True', 'comma, name', 'quo"te']
    classes = [
        o if i in (4, 5, 6) else [o, names[i]] for i, o in enumerate(odd)
    ]  # the shown name, and one that the demo model knows
    table = adapt(few, classes, tmp_path / 'run', method='zeroshot', **settings)
    again = adapt(few, classes, tmp_path / 'run', method='zeroshot', resume=True, **settings)
    assert (
        again.label.tolist() == table.label.tolist()
        and again.zero_shot_label.tolist() == table.zero_shot_label.tolist()
        and set(table.label) & {'None', 'NA', 'null', 'nan'}
    )
    largest = table.label.value_counts()
    assert (
        info(tmp_path / 'run')['empty_classes'] == 10 - len(largest)
        and info(tmp_path / 'run')['largest_class'] == f'{largest.index[0]} ({largest.iloc[0]})'
    )


@pytest.mark.parametrize('overwrite', [False, True])
@pytest.mark.parametrize('kind', ['photos', 'empty', 'config only', 'file'])
def test_another_folder_is_never_replaced(few, tmp_path, kind, overwrite):
    if kind == 'file':
        (tmp_path / 'run').write_text('mine')
    else:
        (tmp_path / 'run').mkdir()
    if kind == 'photos':
        (tmp_path / 'run' / 'a.jpg').write_text('mine')
    if kind == 'config only':
        (tmp_path / 'run' / 'config.json').write_text('{}')
    before = contents(tmp_path)
    for resume in (False, True):
        with pytest.raises(
            FileExistsError, match='is not a run of reclip' if overwrite else 'exists; name another folder'
        ):
            adapt(few, names, tmp_path / 'run', method='zeroshot', overwrite=overwrite, resume=resume, **settings)
    assert contents(tmp_path) == before and files(tmp_path) == ['run']


@pytest.mark.parametrize('overwrite', [False, True])
def test_a_folder_in_the_way_of_the_unfinished_run(few, tmp_path, overwrite):
    (tmp_path / 'run.partial').mkdir()
    (tmp_path / 'run.partial' / 'a.jpg').write_text('mine')
    with pytest.raises(FileExistsError, match='run.partial is in the way'):
        adapt(few, names, tmp_path / 'run', method='zeroshot', overwrite=overwrite, resume=overwrite, **settings)
    assert contents(tmp_path) == {'run.partial/a.jpg': b'mine'}


def test_a_run_is_replaced_only_when_asked(small, few, tmp_path):
    shutil.copytree(small, tmp_path / 'run')
    with pytest.raises(FileExistsError, match='run exists; name another folder, or .*overwrite'):
        adapt(few, names, tmp_path / 'run', method='zeroshot', **settings)
    assert contents(tmp_path / 'run') == contents(small)
    with pytest.raises(FileExistsError, match='run exists'):
        adapt(few, names, tmp_path / 'run', method='zeroshot', resume=True, **settings)
    adapt(few, names, tmp_path / 'run', method='zeroshot', overwrite=True, **settings)
    assert (
        read_run(tmp_path / 'run')['run']['method'] == 'zeroshot'
        and files(tmp_path) == ['run']
        and files(tmp_path / 'run') == all_files
    )


class PowerCut(Exception):
    "Stops a run"


def interrupted(images, output, after=0, **other):
    "A run that stops when its features are known, or after some epochs"
    real = ReCLIP.fit

    def fit(self, images, keep, **rest):
        if not after:
            raise PowerCut

        def keep_and_stop(state):
            keep(state)
            if len(state.history) >= after:
                raise PowerCut

        return real(self, images, keep=keep_and_stop, **rest)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(PowerCut):
        patch.setattr(ReCLIP, 'fit', fit)
        adapt(images, names, output, **settings | dict(epochs=1) | other)
    assert not output.exists() or other.get('overwrite')


@pytest.fixture(scope='module')
def halves(few, tmp_path_factory):
    "Files of a run that stopped when its features were known, and after its only epoch"
    found = []
    for after in (0, 1):
        root = tmp_path_factory.mktemp('halves')
        interrupted(few, root / 'run', after)
        found.append(contents(root))
    return found


def put(found, root):
    for name, content in found.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(content)


def test_what_an_unfinished_run_holds(halves):
    assert sorted(halves[0]) == ['run.partial/begun.json', 'run.partial/frozen.safetensors'] and sorted(halves[1]) == [
        'run.partial/begun.json',
        'run.partial/checkpoint.safetensors',
        'run.partial/frozen.safetensors',
    ]


def test_an_unfinished_run_is_refused_without_resume(few, small, halves, tmp_path):
    put(halves[0], tmp_path)
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match='run.partial holds an unfinished run; .*resume'):
        adapt(few, names, tmp_path / 'run', epochs=1, **settings)
    with pytest.raises(FileNotFoundError, match='run.partial is unfinished'):
        read_run(tmp_path / 'run')
    assert contents(tmp_path) == before
    adapt(few, names, tmp_path / 'run', epochs=1, overwrite=True, **settings)
    assert same(tmp_path / 'run', small) and files(tmp_path) == ['run']


@pytest.mark.parametrize('after', [0, 1])
def test_resume(few, small, halves, tmp_path, after, caplog):
    put(halves[after], tmp_path)
    with caplog.at_level('INFO', 'reclip'):
        adapt(
            str(few), ','.join(names), str(tmp_path / 'run'), epochs=1, resume=True, num_workers=2 * after, **settings
        )
    assert same(tmp_path / 'run', small) and files(tmp_path) == ['run'] and files(tmp_path / 'run') == all_files
    assert 'found the features of 60 images' in caplog.text and ('going on after epoch 1' in caplog.text) == (
        after == 1
    )


def test_resume_with_nothing_to_resume(few, small, tmp_path):
    adapt(few, names, tmp_path / 'run', epochs=1, resume=True, **settings)
    assert same(tmp_path / 'run', small)


def test_resume_while_an_earlier_run_is_replaced(few, small, tmp_path):
    shutil.copytree(small, tmp_path / 'run')
    interrupted(few, tmp_path / 'run', 1, overwrite=True, epochs=2)
    assert contents(tmp_path / 'run') == contents(small)
    adapt(few, names, tmp_path / 'run', epochs=2, overwrite=True, resume=True, **settings)
    assert (
        read_run(tmp_path / 'run')['settings']['epochs'] == 2
        and files(tmp_path) == ['run']
        and files(tmp_path / 'run') == all_files
    )


def test_resume_lists_what_was_skipped_before(few, tmp_path):
    shutil.copytree(few, tmp_path / 'in')
    for i in range(3):
        (tmp_path / 'in' / f'bad{i}.png').write_bytes(b'')
    interrupted(tmp_path / 'in', tmp_path / 'run', 1)
    adapt(tmp_path / 'in', names, tmp_path / 'run', epochs=1, resume=True, **settings)
    assert (
        pd.read_csv(tmp_path / 'run' / 'skipped.csv').path.tolist() == ['bad0.png', 'bad1.png', 'bad2.png']
        and len(pd.read_csv(tmp_path / 'run' / 'predictions.csv')) == 60
    )


@pytest.mark.parametrize(
    'other, says',
    [
        (dict(epochs=2), 'epochs was 1, now 2'),
        (dict(seed=5), 'seed was 0, now 5'),
        (dict(templates='photo'), 'templates was'),
        (dict(method='zeroshot'), "method was 'adapt', now 'zeroshot'"),
        (dict(max_unreadable=0.5), r'max_unreadable was 0.1, now 0.5'),
        (dict(projection='P1', lr_text=0.1), "projection was 'P2', now 'P1'.*|lr_text was 0.001, now 0.1"),
    ],
)
def test_resume_with_other_settings_is_refused(few, halves, tmp_path, other, says):
    put(halves[0], tmp_path)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=f'was begun with other settings: .*({says})'):
        adapt(few, names, tmp_path / 'run', resume=True, **settings | dict(epochs=1) | other)
    assert contents(tmp_path) == before


def test_resume_with_other_images_or_words_is_refused(few, halves, tmp_path):
    put(halves[0], tmp_path)
    with pytest.raises(ValueError, match='was begun with other settings: class_names was'):
        adapt(few, names[::-1], tmp_path / 'run', resume=True, epochs=1, **settings)
    with pytest.raises(ValueError, match='was begun with other settings: images was'):
        adapt([few / '000.png', few / '001.png'], names, tmp_path / 'run', resume=True, epochs=1, **settings)
    assert contents(tmp_path) == halves[0]


def test_resume_of_a_finished_run_returns_it(run, scans):
    before, clock = contents(run[0]), (run[0] / 'config.json').stat().st_mtime_ns
    again = adapt(scans, names, run[0], epochs=2, resume=True, **settings)
    pd.testing.assert_frame_equal(again, run[1])
    assert contents(run[0]) == before and (run[0] / 'config.json').stat().st_mtime_ns == clock
    with pytest.raises(FileExistsError, match='exists'):
        adapt(scans, names, run[0], epochs=3, resume=True, **settings)


def test_resume_of_a_finished_run_of_features_returns_it(rows, tmp_path):
    tables = [adapt(rows, names, tmp_path / 'run', resume=True, **settings) for _ in '12']
    assert tables[0].path.tolist() == tables[1].path.tolist() and tables[0].label.tolist() == tables[1].label.tolist()


@pytest.mark.parametrize('after', [0, 1])
def test_resume_when_a_picture_is_gone(few, tmp_path, after):
    shutil.copytree(few, tmp_path / 'in')
    interrupted(tmp_path / 'in', tmp_path / 'run', after)
    (tmp_path / 'in' / '007.png').unlink()
    (tmp_path / 'in' / '009.png').unlink()
    with pytest.raises(ValueError, match='2 images of the unfinished run are gone, such as 007.png'):
        adapt(tmp_path / 'in', names, tmp_path / 'run', epochs=1, resume=True, **settings)
    assert not (tmp_path / 'run').exists()


def test_resume_when_a_picture_has_come(few, tmp_path):
    shutil.copytree(few, tmp_path / 'in')
    interrupted(tmp_path / 'in', tmp_path / 'run', 1)
    shutil.copy(few / '000.png', tmp_path / 'in' / 'new.png')
    try:
        table = adapt(tmp_path / 'in', names, tmp_path / 'run', epochs=1, resume=True, **settings)
    except ValueError as e:
        assert 'new.png' in str(e)
    else:
        assert 'new.png' in table.path.tolist() + pd.read_csv(tmp_path / 'run' / 'skipped.csv').path.tolist()


@pytest.mark.parametrize('name', ['frozen.safetensors', 'checkpoint.safetensors', 'begun.json'])
@pytest.mark.parametrize('damage', ['cut', 'empty', 'pickle'])
def test_a_damaged_unfinished_run_is_named(few, halves, tmp_path, name, damage):
    put(halves[1], tmp_path)
    file = tmp_path / 'run.partial' / name
    file.write_bytes(
        dict(cut=file.read_bytes()[:200], empty=b'', pickle=pickle.dumps(Opens(tmp_path / 'marker')))[damage]
    )
    with pytest.raises(ValueError, match=name):
        adapt(few, names, tmp_path / 'run', epochs=1, resume=True, **settings)
    assert not (tmp_path / 'run').exists() and not (tmp_path / 'marker').exists()


def test_leftovers_of_a_kill_do_not_stay(few, small, halves, tmp_path):
    put(halves[1], tmp_path)
    (tmp_path / 'run.partial' / '.checkpoint.safetensors-x1y2z3.safetensors').write_bytes(b'half of a file')
    adapt(few, names, tmp_path / 'run', epochs=1, resume=True, **settings)
    assert same(tmp_path / 'run', small) and files(tmp_path / 'run') == all_files


def test_a_kill_before_the_first_file(few, small, tmp_path):
    (tmp_path / 'run.partial').mkdir()
    (tmp_path / 'run.partial' / '.begun.json-x1y2z3.json').write_bytes(b'{"me')
    adapt(few, names, tmp_path / 'run', epochs=1, resume=True, **settings)
    assert same(tmp_path / 'run', small) and files(tmp_path / 'run') == all_files


@pytest.mark.parametrize('earlier', [False, True])
def test_a_kill_before_the_last_rename(few, small, tmp_path, earlier, monkeypatch):
    if earlier:
        shutil.copytree(small, tmp_path / 'run')

    def stop(*args):
        raise PowerCut

    with pytest.MonkeyPatch.context() as patch, pytest.raises(PowerCut):
        patch.setattr('reclip.run.finish', stop)
        adapt(few, names, tmp_path / 'run', epochs=1, overwrite=earlier, **settings)
    if earlier:
        assert contents(tmp_path / 'run') == contents(small)
    adapt(few, names, tmp_path / 'run', epochs=1, resume=True, overwrite=earlier, **settings)
    assert same(tmp_path / 'run', small) and files(tmp_path) == ['run'] and files(tmp_path / 'run') == all_files


def labelled(folder, words):
    "60 digits in folders that tell a class, with files of labels beside them; the order does not depend on the words"
    truth = demo.demo_digits()[1].tolist()
    scan(folder, 60, lambda i: f'{i:03}-{words[truth[i]]}/x.png')
    for i in range(60):
        (folder / f'{i:03}-{words[truth[i]]}' / 'x.cls').write_text(str(words.index(words[truth[i]])))
    (folder / 'labels.csv').write_text('\n'.join(words))
    return folder


@pytest.mark.parametrize('kind', ['true', 'reversed', 'tar', 'tar reversed'])
def test_labels_cannot_reach_a_run(small, tmp_path, kind):
    words = names[::-1] if 'reversed' in kind else names
    source = labelled(tmp_path / 'in', words)
    if 'tar' in kind:
        with tarfile.open(tmp_path / 's.tar', 'w') as archive:
            for path in sorted(source.rglob('*')):
                archive.add(path, str(path.relative_to(source)), recursive=False)
        source = tmp_path / 's.tar'
    table = adapt(source, names, tmp_path / 'run', epochs=1, **settings)
    assert (tmp_path / 'run' / 'adapted.safetensors').read_bytes() == (small / 'adapted.safetensors').read_bytes()
    assert (
        table.drop(columns='path').equals(pd.read_csv(small / 'predictions.csv').drop(columns='path'))
        and len(table) == 60
    )


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory):
    "`(images, run)` of 200 images and three epochs"
    root = tmp_path_factory.mktemp('whole')
    adapt(scan(root / 'in', 200), names, root / 'run', epochs=3, **settings)
    return root / 'in', root / 'run'


@pytest.mark.parametrize(
    'point, earlier',
    [
        ('begun.json', False),
        ('frozen.safetensors', True),
        ('checkpoint.safetensors', False),
        ('adapted.safetensors', False),
    ],
)
def test_killed_and_resumed_to_the_same_bytes(point, earlier, begin, uninterrupted, small, tmp_path, caplog):
    images, whole = uninterrupted
    output, partial = tmp_path / 'run', tmp_path / 'run.partial'
    if earlier:
        shutil.copytree(small, output)
    job = dict(classes=names, epochs=3, overwrite=earlier, **settings)
    pid, status = begin(images=str(images), output=str(output), **job)
    until = time.monotonic() + 60
    while not (partial / point).exists() and time.monotonic() < until and not (not earlier and output.exists()):
        time.sleep(0.001)
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    code = status()
    assert code == -signal.SIGKILL or code == 0 and point == 'adapted.safetensors'
    if code:
        assert partial.is_dir() and (contents(output) == contents(small) if earlier else not output.exists())
    with caplog.at_level('INFO', 'reclip'):
        table = adapt(images, resume=True, output=output, **job)
    assert same(output, whole) and files(tmp_path) == ['run'] and files(output) == all_files and len(table) == 200
    assert (point in ('begun.json', 'adapted.safetensors')) or 'found the features' in caplog.text
    assert point != 'checkpoint.safetensors' or 'going on after epoch' in caplog.text
    a, b = (pd.read_csv(o / 'history.csv').drop(columns='seconds') for o in (output, whole))
    assert a.equals(b)


@pytest.mark.parametrize(
    'limit, left, earlier',
    [
        (100, [], False),
        (10_000, ['begun.json'], False),
        (20_000, ['begun.json', 'frozen.safetensors'], False),
        (20_000, ['begun.json', 'frozen.safetensors'], True),
    ],
)
def test_a_full_disk(limit, left, earlier, begin, few, small, tmp_path):
    output, partial = tmp_path / 'run', tmp_path / 'run.partial'
    if earlier:
        shutil.copytree(small, output)
    job = dict(classes=names, epochs=1, overwrite=earlier, **settings)
    assert begin(images=str(few), output=str(output), limit=limit, **job)[1]() == 3
    assert contents(output) == contents(small) if earlier else not output.exists()
    assert (
        not partial.exists()
        or files(partial) == left
        and all(json.loads(o.read_text()) if o.suffix == '.json' else load_file(o) for o in partial.iterdir())
    )
    adapt(few, output=output, resume=True, **job)
    assert same(output, small) and files(tmp_path) == ['run'] and files(output) == all_files


@pytest.mark.parametrize('name', ['begun.json', 'frozen.safetensors', 'checkpoint.safetensors', *all_files])
def test_an_error_at_any_file(name, few, small, small_free, tmp_path, monkeypatch):
    job, expected = (dict(epochs=1), small) if 'checkpoint' in name else (dict(method='training-free'), small_free)
    real = os.replace

    def fail(a, b):
        if Path(b).name == name:
            raise OSError(28, 'No space left on device')
        return real(a, b)

    with monkeypatch.context() as patch:
        patch.setattr(os, 'replace', fail)
        with pytest.raises(OSError, match='No space'):
            adapt(few, names, tmp_path / 'run', **job, **settings)
    assert not (tmp_path / 'run').exists() and not [
        o for o in contents(tmp_path) if Path(o).name == name or Path(o).name.startswith('.')
    ]
    adapt(few, names, tmp_path / 'run', resume=True, **job, **settings)
    assert same(tmp_path / 'run', expected) and files(tmp_path) == ['run'] and files(tmp_path / 'run') == all_files


def test_the_earlier_run_comes_back_when_the_last_rename_fails(few, small, tmp_path, monkeypatch):
    shutil.copytree(small, tmp_path / 'run')
    real = os.replace

    def fail(a, b):
        if Path(b) == tmp_path / 'run' and Path(a).name == 'run.partial':
            raise OSError(16, 'Device or resource busy')
        return real(a, b)

    with monkeypatch.context() as patch, pytest.raises(OSError, match='busy'):
        patch.setattr(os, 'replace', fail)
        patch.setattr('reclip.folders.exchange', lambda a, b: False)
        adapt(few, names, tmp_path / 'run', method='zeroshot', overwrite=True, **settings)
    assert contents(tmp_path / 'run') == contents(small) and files(tmp_path) == ['run', 'run.partial']
    adapt(few, names, tmp_path / 'run', method='zeroshot', overwrite=True, resume=True, **settings)
    assert (
        read_run(tmp_path / 'run')['run']['method'] == 'zeroshot'
        and files(tmp_path) == ['run']
        and files(tmp_path / 'run') == all_files
    )


def test_a_folder_that_cannot_be_written(few, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, 'Permission denied')

    monkeypatch.setattr('reclip.places.tempfile.TemporaryFile', refuse)
    with pytest.raises(PermissionError, match='cannot be written to .Permission denied.'):
        adapt(few, names, tmp_path / 'run', epochs=1, **settings)
    assert not files(tmp_path)


@pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid() == 0, reason='root may write everywhere')
def test_a_read_only_folder(few, tmp_path):
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(PermissionError, match='cannot be written to'):
            adapt(few, names, tmp_path / 'run', epochs=1, **settings)
        assert not files(tmp_path)
    finally:
        tmp_path.chmod(0o755)


@pytest.mark.parametrize(
    'wrong',
    [
        dict(method='x'),
        dict(epochs=-1),
        dict(epochs=1.5),
        dict(epochs='3'),
        dict(batch_size=0),
        dict(batch_size=2.5),
        dict(n_neighbors=0),
        dict(n_neighbors=2.5),
        dict(alpha=0),
        dict(alpha=1.0),
        dict(alpha='x'),
        dict(projection='P3'),
        dict(recipe='x'),
        dict(precision='int8'),
        dict(max_unreadable=1.5),
        dict(logit_scale=float('nan')),
        dict(logit_scale='x'),
        dict(logit_scale=0),
        dict(max_dim=0),
        dict(seed='x'),
        dict(lr_text=-1),
        dict(lr_image=float('nan')),
        dict(num_workers=-1),
        dict(num_workers=1.5),
        dict(encode_batch_size=0),
        dict(encode_batch_size=2.5),
        dict(max_iter=0),
        dict(tol=-1),
        dict(momentum='x'),
        dict(templates='nothing'),
        dict(model='no such model'),
        dict(epoch=3),
        dict(device='nowhere'),
    ],
    ids=lambda o: '-'.join(f'{k}={v}' for k, v in o.items()),
)
def test_a_wrong_setting_is_refused_before_any_work(few, tmp_path, wrong, monkeypatch):
    def work(*args, **kwargs):
        raise AssertionError('work was done')

    monkeypatch.setattr('reclip.found.encode_readable', work)
    with pytest.raises(
        (ValueError, TypeError, RuntimeError) if set(wrong) & {'epoch', 'device'} else ValueError,
        match='set|model' if set(wrong) & {'templates', 'model'} else next(iter(wrong)),
    ):
        adapt(few, names, tmp_path / 'run', **settings | wrong)
    assert not files(tmp_path)


def make_source(root, kind):
    if kind == 'nothing':
        return root / 'nowhere'
    if kind == 'empty list':
        return []
    if kind == 'number':
        return 3
    if kind == 'empty folder':
        (root / 'in').mkdir()
        return root / 'in'
    if kind == 'csv':
        (root / 'in.csv').write_text('1')
        return root / 'in.csv'
    if kind == 'nan':
        np.save(root / 'in.npy', np.full((4, 64), np.nan))
        return root / 'in.npy'
    if kind == 'width':
        np.save(root / 'in.npy', np.ones((40, 32)))
        return root / 'in.npy'
    if kind == 'no features':
        return root / 'nowhere.npy'


@pytest.mark.parametrize(
    'kind', ['nothing', 'empty list', 'number', 'empty folder', 'csv', 'nan', 'width', 'no features']
)
def test_a_wrong_source_leaves_nothing_behind(tmp_path, kind):
    source = make_source(tmp_path, kind)
    before = files(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError)):
        adapt(source, names, tmp_path / 'run', **settings)
    assert files(tmp_path) == before


class Opens:
    "Creates a file when it is unpickled"

    def __init__(self, file):
        self.file = str(file)

    def __reduce__(self):
        return open, (self.file, 'w')


def torch_file(what):
    file = BytesIO()
    torch.save(what, file)
    return file.getvalue()


def use(folder, images, output, load=True):
    "What reads a run refuses this one, and loads no other model instead"
    real = load_clip

    def loads(model, *args):
        assert model not in ('ViT-B-32', None)
        return real(model, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('reclip.adapt.load_clip', loads)
        for read in (
            lambda: predict(folder, images, progress=False),
            lambda: export(folder, output),
            lambda: ReCLIP.load(folder),
        )[: 2 + load]:
            with pytest.raises((ValueError, FileNotFoundError)):
                read()
    assert not output.exists()


@pytest.fixture
def copied(run, tmp_path):
    return shutil.copytree(run[0], tmp_path / 'run')


@pytest.mark.parametrize('content', ['pickle', 'torch', 'cut', 'empty', 'noise'])
def test_damaged_tensors(copied, scans, tmp_path, content):
    file, marker = copied / 'adapted.safetensors', tmp_path / 'marker'
    file.write_bytes(
        dict(
            pickle=pickle.dumps(Opens(marker)),
            torch=torch_file(dict(centroids_=Opens(marker))),
            cut=file.read_bytes()[:-100],
            empty=b'',
            noise=np.random.default_rng(0).bytes(5000),
        )[content]
    )
    use(copied, scans, tmp_path / 'out')
    assert not marker.exists()


@pytest.mark.parametrize('name', ['config.json', 'predictions.csv', 'adapted.safetensors'])
def test_a_run_without_a_file(copied, scans, tmp_path, name):
    (copied / name).unlink()
    for read in (
        lambda: predict(copied, scans, progress=False),
        lambda: info(copied),
        lambda: export(copied, tmp_path / 'out'),
        lambda: read_run(copied),
    ):
        with pytest.raises(FileNotFoundError, match='is not a finished run of reclip'):
            read()


def without(config, *keys):
    for k in keys[:-1]:
        config = config[k]
    del config[keys[-1]]


@pytest.mark.parametrize(
    'content',
    [
        b'',
        b'{"settings": ',
        b'\xff\xfe',
        b'[]',
        b'3',
        b'null',
        b'{}',
        b'{"settings": {}, "run": {}, "history": [], "versions": {}}',
        b'{"settings": [], "run": [], "history": {}, "versions": 1}',
        b'{"settings": null, "run": null, "history": null, "versions": null}',
    ],
)
def test_a_damaged_config(copied, scans, tmp_path, content):
    (copied / 'config.json').write_bytes(content)
    use(copied, scans, tmp_path / 'out')
    for read in (lambda: info(copied), lambda: adapt(scans, names, copied, epochs=2, resume=True, **settings)):
        with pytest.raises((ValueError, FileExistsError)):
            read()


@pytest.mark.parametrize(
    'keys',
    [
        ('settings',),
        ('run',),
        ('history',),
        ('versions',),
        ('fingerprint',),
        ('run', 'method'),
        ('run', 'begun'),
        ('settings', 'model'),
        ('settings', 'class_names'),
    ],
    ids='-'.join,
)
def test_a_config_that_lacks_a_part(copied, scans, tmp_path, keys):
    config = json.loads((copied / 'config.json').read_text())
    without(config, *keys)
    (copied / 'config.json').write_text(json.dumps(config))
    if keys != ('run', 'begun'):
        use(copied, scans, tmp_path / 'out', load=keys[0] not in ('run', 'versions'))  # a saved estimator has neither
    else:
        with pytest.raises((ValueError, FileExistsError)):
            adapt(scans, names, copied, epochs=2, resume=True, **settings)


@pytest.mark.parametrize(
    'change',
    [
        dict(class_names=names[:9]),
        dict(class_names=names + ['ten']),
        dict(class_names=3),
        dict(class_names=None),
        dict(templates='no place'),
        dict(templates=5),
        dict(model=5),
        dict(model='no such model'),
        dict(precision='int8'),
        dict(logit_scale='x'),
        dict(surprise=1),
        dict(descriptions=[['a']]),
        dict(model='local-dir:nowhere', pretrained=None),
    ],
    ids=(
        '9-classes 11-classes number-of-classes no-classes no-place number-of-templates number-of-model unknown-model '
        'precision scale surprise descriptions folder'
    ).split(),
)
def test_settings_that_do_not_fit_the_tensors(copied, scans, change):
    config = json.loads((copied / 'config.json').read_text())
    config['settings'] |= change
    (copied / 'config.json').write_text(json.dumps(config))
    with pytest.raises((ValueError, FileNotFoundError)):
        predict(copied, scans, progress=False)


class Trips:
    "A plain pickle takes it, a loader of weights only raises TypeError at it"

    def __reduce__(self):
        return OrderedDict, (), (None, {})


@pytest.fixture
def toy(tmp_path, monkeypatch):
    "Configuration of a model that open_clip knows as `toy-code` while a test runs"
    config = dict(
        embed_dim=16,
        vision_cfg=dict(image_size=32, patch_size=16, layers=1, width=64),
        text_cfg=dict(context_length=16, vocab_size=49408, width=16, heads=1, layers=1),
    )
    (tmp_path / 'toy-code.json').write_text(json.dumps(config))
    monkeypatch.setattr(factory, '_MODEL_CONFIGS', dict(factory._MODEL_CONFIGS))
    monkeypatch.setattr(factory, '_MODEL_CONFIG_PATHS', list(factory._MODEL_CONFIG_PATHS))
    open_clip.add_model_config(tmp_path / 'toy-code.json')
    return config


@pytest.mark.filterwarnings('ignore::UserWarning')
@pytest.mark.parametrize('kind', ['torch', 'trips', 'pickle'])
@pytest.mark.parametrize('where', ['file', 'folder'])
def test_a_run_that_names_a_model_with_code_in_it(copied, scans, toy, tmp_path, where, kind, monkeypatch):
    marker, evil = tmp_path / 'marker', tmp_path / 'evil'
    what = dict(a=Trips(), b=Opens(marker)) if kind == 'trips' else dict(state_dict=Opens(marker))
    content = pickle.dumps(what) if kind == 'pickle' else torch_file(what)
    evil.mkdir()
    (evil / 'open_clip_config.json').write_text(json.dumps(dict(model_cfg=toy, preprocess_cfg={})))
    (evil / 'open_clip_pytorch_model.bin').write_bytes(content)
    config = json.loads((copied / 'config.json').read_text())
    config['settings'] |= (
        dict(model='toy-code', pretrained=str(evil / 'open_clip_pytorch_model.bin'))
        if where == 'file'
        else dict(model=f'local-dir:{evil}', pretrained=None)
    )
    (copied / 'config.json').write_text(json.dumps(config))
    monkeypatch.setenv(
        'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1'
    )  # torch before 2.6: weights_only is off unless it is asked for
    use(copied, scans, tmp_path / 'out')
    assert not marker.exists()
    pickle.loads(content) if kind == 'pickle' else torch.load(BytesIO(content), weights_only=False)
    assert marker.exists()  # it would have


@pytest.mark.parametrize(
    'change',
    [
        'image shape',
        'text shape',
        'image gone',
        'all image gone',
        'unknown',
        'centroids wide',
        'centroids long',
        'text_features wide',
        'no centroids',
    ],
)
def test_tensors_of_another_shape(copied, scans, tmp_path, change):
    tensors = load_file(copied / 'adapted.safetensors')
    image, text = (next(k for k in sorted(tensors) if k.startswith(o)) for o in ('image/', 'text/'))
    if change == 'image shape':
        tensors[image] = torch.ones(7)
    if change == 'text shape':
        tensors[text] = torch.ones(7)
    if change == 'image gone':
        del tensors[image]
    if change == 'all image gone':
        tensors = {k: v for k, v in tensors.items() if not k.startswith('image/')}
    if change == 'unknown':
        tensors['image/visual.nothing.weight'] = torch.ones(64)
    if change == 'centroids wide':
        tensors['centroids_'] = torch.ones(10, 32)
    if change == 'centroids long':
        tensors['centroids_'] = torch.ones(11, 64)
    if change == 'text_features wide':
        tensors['text_features_'] = torch.ones(10, 32)
    if change == 'no centroids':
        del tensors['centroids_']
    save_file(tensors, copied / 'adapted.safetensors')
    with pytest.raises(ValueError):
        predict(copied, scans, progress=False)
    with pytest.raises(ValueError):
        export(copied, tmp_path / 'out')
    assert files(tmp_path) == ['run']


def test_new_images(run, tmp_path):
    digits = demo.demo_digits()[0]
    (tmp_path / 'new').mkdir()
    for i in range(20):
        digits[500 + i].save(tmp_path / 'new' / f'{i:02}.png')
    (tmp_path / 'new' / 'bad.png').write_bytes(b'')
    table, probabilities, skipped = predict(run[0], tmp_path / 'new', progress=False)
    assert (
        table.path.tolist() == [f'{i:02}.png' for i in range(20)]
        and [o.path for o in skipped] == ['bad.png']
        and torch.allclose(probabilities.sum(1), torch.ones(20), atol=1e-5)
    )
    expected = ReCLIP.load(run[0]).predict_proba([o.convert('RGB') for o in digits[500:520]])
    assert torch.allclose(probabilities, expected, atol=1e-5) and table.label.tolist() == [
        names[i] for i in expected.argmax(1)
    ]
    again, _, _ = predict(run[0], tmp_path / 'new', progress=False, num_workers=2, encode_batch_size=7)
    assert again.label.equals(table.label)
    with pytest.raises(ValueError, match='1 of 21 images cannot be opened'):
        predict(run[0], tmp_path / 'new', max_unreadable=0.01, progress=False)


@pytest.mark.parametrize(
    'wrong', [dict(encode_batch_size=0), dict(num_workers=-1), dict(precision='int8'), dict(surprise=1)]
)
def test_predict_refuses_wrong_settings(run, scans, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        predict(run[0], scans, progress=False, **wrong)


def test_features_need_a_run_that_left_the_images_alone(run, free, rows, tmp_path):
    with pytest.raises(ValueError, match='moved its image tower'):
        predict(run[0], rows, progress=False)
    np.save(tmp_path / 'wide.npy', np.ones((5, 32), np.float32))
    with pytest.raises(ValueError, match='32 wide.*64'):
        predict(free[0], tmp_path / 'wide.npy', progress=False)
    np.save(tmp_path / 'double.npy', np.load(rows).astype(np.float64))
    save_file(dict(f=torch.from_numpy(np.load(rows)).double()), tmp_path / 'double.safetensors')
    expected = predict(free[0], rows, progress=False)[0]
    for name in ('double.npy', 'double.safetensors'):
        assert predict(free[0], tmp_path / name, progress=False)[0].label.equals(expected.label)


table = pd.DataFrame(
    dict(
        path=['a,b.png', 'new\nline.png', 'quo"te.png', 'caf\u00e9', 'caf\\udce9.png'],
        label=['x', None, '\u732b', 'NA', '7'],
        probability=[0.25, 1.0, 0.0, 0.5, 0.1],
        changed=[True, False, True, False, False],
    )
)


def test_tables(tmp_path):
    assert write_table(table, tmp_path / 't.csv') == tmp_path / 't.csv'
    back = pd.read_csv(tmp_path / 't.csv', keep_default_na=False, dtype=dict(label=str))
    assert (
        back.path.tolist() == table.path.tolist()
        and back.label.tolist() == ['x', '', '\u732b', 'NA', '7']
        and back.probability.equals(table.probability)
    )
    write_table(table, str(tmp_path / 't.jsonl'))
    back = [json.loads(o) for o in (tmp_path / 't.jsonl').read_text(encoding='utf-8').splitlines()]
    assert (
        [o['path'] for o in back] == table.path.tolist()
        and back[1]['label'] is None
        and back[0] == dict(path='a,b.png', label='x', probability=0.25, changed=True)
        and '\u732b' in (tmp_path / 't.jsonl').read_text(encoding='utf-8')
    )
    assert files(tmp_path) == ['t.csv', 't.jsonl'] and (tmp_path / 't.csv').stat().st_mode & 0o777 == 0o666 & ~umask()


def umask():
    now = os.umask(0)
    os.umask(now)
    return now


def test_parquet_or_what_it_needs(tmp_path):
    if find_spec('pyarrow') or find_spec('fastparquet'):
        assert pd.read_parquet(write_table(table, tmp_path / 't.parquet')).path.tolist() == table.path.tolist()
    else:
        with pytest.raises(ValueError, match='writing Parquet needs pyarrow: pip install pyarrow'):
            write_table(table, tmp_path / 't.parquet')
        assert not files(tmp_path)


@pytest.mark.parametrize(
    'name, kind', [('t.xlsx', ValueError), ('t', ValueError), ('t.json', ValueError), ('deep/t.csv', FileNotFoundError)]
)
def test_tables_that_cannot_be_written(tmp_path, name, kind):
    with pytest.raises(kind, match=r'ends in .csv, .jsonl or .parquet|make the folder first'):
        write_table(table, tmp_path / name)
    assert not files(tmp_path)


def test_an_earlier_table_stays_after_an_error(tmp_path, monkeypatch):
    write_table(table, tmp_path / 't.csv')
    before = contents(tmp_path)

    def fail(self, path, **kwargs):
        Path(path).write_text('half')
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(pd.DataFrame, 'to_csv', fail)
    with pytest.raises(OSError, match='No space'):
        write_table(table[:1], tmp_path / 't.csv')
    assert contents(tmp_path) == before


def test_an_export_is_read_by_open_clip_alone(run, scans, tmp_path, clip, processes):
    folder = export(run[0], tmp_path / 'deep' / 'out')
    assert (
        folder == tmp_path / 'deep' / 'out'
        and files(folder)
        == [
            'README.md',
            'classes.txt',
            'classifier.safetensors',
            'open_clip_config.json',
            'open_clip_model.safetensors',
        ]
        and files(folder.parent) == ['out']
    )
    _, errors = processes[1].communicate(
        json.dumps([str(folder), str(scans), str(tmp_path / 'out.npz')]) + '\n', timeout=60
    )
    assert processes[1].returncode == 0, errors
    found = np.load(tmp_path / 'out.npz', allow_pickle=False)
    fitted = ReCLIP.load(run[0])
    features = fitted.transform(find_images(scans)[0]).numpy()
    assert (
        np.abs(found['features'] - features).max() < 1e-5
        and found['classes'].tolist() == names
        and found['labels'].tolist() == run[1].v_label.tolist()
    )
    with torch.no_grad():
        texts = (
            clip[0].encode_text(clip[2](['a photo of the number one.', 'a picture of a nine.']), normalize=True).numpy()
        )
    assert (
        np.abs(found['texts'] - texts).max() < 1e-5
        and np.abs(features - encode_images(clip[0], find_images(scans)[0], clip[1]).numpy()).max() > 1e-3
    )
    assert torch.equal(load_file(folder / 'classifier.safetensors')['text_features'], fitted.text_features_)


def test_an_export_replaces_nothing_and_is_whole(run, tmp_path, monkeypatch):
    (tmp_path / 'out').mkdir()
    with pytest.raises(FileExistsError, match='exists'):
        export(run[0], tmp_path / 'out')

    def fail(*args):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr('reclip.export.write_json', fail)
    with pytest.raises(OSError, match='No space'):
        export(run[0], tmp_path / 'other')
    assert files(tmp_path) == ['out'] and not files(tmp_path / 'out')


def test_what_is_no_run(tmp_path, scans):
    for folder in (tmp_path, tmp_path / 'nowhere', scans):
        for read in (
            lambda: predict(folder, scans, progress=False),
            lambda: info(folder),
            lambda: export(folder, tmp_path / 'out'),
        ):
            with pytest.raises(FileNotFoundError, match='is not a finished run of reclip'):
                read()
    assert not files(tmp_path)
