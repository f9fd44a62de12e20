"The report: self-contained, escaped, honest about samples, right; from 2 classes to 1,000, from 20 images to 100,000."

import json
import os
import re
import shutil
import subprocess
import sys
from copy import deepcopy
import numpy as np
import pandas as pd
import pytest
import torch
from markupsafe import escape
from safetensors.torch import load_file, save_file
from sklearn.calibration import calibration_curve
from typer.testing import CliRunner
from reclip import demo, report, run
from reclip.cli import app

NASTY = '<script>alert("x")</script>'


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "A run on 90 digits in folders with names of classes, one of them a nasty name"
    here = tmp_path_factory.mktemp('report')
    images, labels = demo.demo_digits()
    for i in range(90):
        at = here / 'digits' / demo.class_names[labels[i]]
        at.mkdir(parents=True, exist_ok=True)
        images[i].save(at / f'{i:02} $x_1$ & <b>.png')
    images[4].save(here / 'digits' / 'four' / 'twin.png')
    (here / 'digits' / 'torn.png').write_bytes(b'')
    run.adapt(
        here / 'digits',
        [*demo.class_names[:9], ['nine', NASTY]],
        here / 'RUN',
        'demo',
        templates='digit',
        epochs=1,
        progress=False,
    )
    return here


def synthetic(folder, n, m, method='training-free', features=True):
    "A run folder of any size, without images, as run.adapt writes it"
    rng, names = np.random.default_rng(0), [f'class {i}' for i in range(m)]
    folder.mkdir()
    label, before = rng.integers(m, size=n), rng.integers(m, size=n)
    table = pd.DataFrame(
        dict(
            path=[str(i) for i in range(n)],
            label=np.array(names)[label],
            confidence=rng.random(n).round(4),
            probability=rng.random(n).round(4),
            zero_shot_label=np.array(names)[before],
            changed=label != before,
            t_label=np.array(names)[before],
            v_label=np.array(names)[label],
            propagated_label=np.array(names)[label],
        )
    )
    table.to_csv(folder / 'predictions.csv', index=False)
    pd.DataFrame(
        [dict(epoch=0, confidence=0.5, confidence_t=0.5, confidence_v=0.5, agreement=0.9, changed=0.1)]
    ).to_csv(folder / 'history.csv', index=False)
    pd.DataFrame(columns=['path', 'kind', 'reason']).to_csv(folder / 'skipped.csv', index=False)
    rows = torch.arange(n)[:20_000]
    x = torch.randn(len(rows), 32, generator=torch.Generator().manual_seed(0)).half()
    save_file(dict(rows=rows, frozen=x, adapted=x.clone()), folder / 'features.safetensors')
    save_file(dict(a=torch.zeros(1)), folder / 'adapted.safetensors')
    settings = dict(
        model='demo',
        pretrained=None,
        templates=['a photo of a {}.'],
        descriptions=None,
        projection='P2',
        recipe='paper',
        n_neighbors=20,
        alpha=0.99,
        batch_size=64,
        lr_text=1e-3,
        lr_image=1e-3,
        momentum=0.9,
        precision='float32',
        seed=0,
        class_names=names,
    )
    about = dict(
        method=method,
        begun={},
        images='features.npy',
        features=features,
        classes=names,
        n_images=n,
        n_skipped=0,
        n_unreadable=0,
        started='2026-01-01T00:00:00',
        machine=dict(cores=2, device='cpu', gpu=None),
        seconds=dict(encode=1, fit=1, total=2),
    )
    (folder / 'config.json').write_text(json.dumps(dict(settings=settings, run=about, history=[{}], versions={})))
    return folder


def test_page_is_whole_and_safe(made):
    page = report.write_report(made / 'RUN', labels='folders', notebook=True, progress=False)
    text = page.read_text(encoding='utf-8')
    assert text.startswith('<!doctype html>') and text.rstrip().endswith('</html>') and 'Traceback' not in text
    assert (
        not re.search(r'(?:src|href)="(?!data:|#)', text) and '<script' not in text and 'url(' not in text
    )  # self-contained, and no code in it
    assert '<b>.png' not in text
    assert len(re.findall(r'<h2', text)) == 14 and text.count('src="data:image/') > 50
    notebook = json.loads((made / 'RUN' / 'report.ipynb').read_text(encoding='utf-8'))
    assert all(c['outputs'] for c in notebook['cells'] if c['cell_type'] == 'code' and c['id'] != 'report-parameters')
    assert sorted(p.name for p in (made / 'RUN').iterdir()) == [
        'adapted.safetensors',
        'config.json',
        'digests.safetensors',
        'features.safetensors',
        'history.csv',
        'predictions.csv',
        'report.html',
        'report.ipynb',
        'skipped.csv',
    ]


def test_without_labels_no_accuracy_and_nothing_of_the_run_folder_is_imported(made, tmp_path):
    shutil.copytree(made / 'RUN', tmp_path / 'RUN')
    marker = tmp_path / 'marker'
    for name in ('json.py', 'numpy.py', 'reclip.py', 'sitecustomize.py', 'matplotlib.py'):
        (tmp_path / 'RUN' / name).write_text(f'open({str(marker)!r}, "w").close(); raise SystemExit')
    text = report.write_report(tmp_path / 'RUN', progress=False).read_text(encoding='utf-8')
    assert 'accuracy' not in text.lower() and 'could not be opened' in text
    assert not marker.exists()


def test_numbers_are_right(made):
    d = report.open_run(made / 'RUN', 'folders')
    truth = [p.split('/')[0] for p in d.table.path]
    assert d.labels.tolist() == truth
    found = report.accuracies(d)
    assert found.accuracy['final'] == pytest.approx((d.table.label == truth).mean()) and found.accuracy[
        'zero-shot'
    ] == pytest.approx((d.table.zero_shot_label == truth).mean())
    counts = re.findall(r'<td class="n">(\d+)</td><td class="n"><b>(\d+)</b>', report.class_counts(d).data)
    assert sum(int(a) for a, _ in counts) == sum(int(b) for _, b in counts) == 91
    matrix = re.findall(r'rgba[^>]*">(\d+)', report.confusion(d).data)
    assert sum(map(int, matrix)) == 91
    assert [(d.table.path[a], d.table.path[b]) for a, b, apart in report.near_duplicates(d) if apart == 0] == [
        ('four/04 $x_1$ & <b>.png', 'four/twin.png')
    ]
    frame, error = report.calibration(d)
    assert frame.images.sum() == 91 and 0 <= error <= 1


@pytest.mark.parametrize('n, m', [(20, 2), (2_000, 1_000), (100_000, 50)])
def test_any_size(n, m, tmp_path):
    folder = synthetic(tmp_path / 'RUN', n, m)
    labels = pd.DataFrame(dict(path=[str(i) for i in range(0, n, 2)], label=[f'class {i % m}' for i in range(0, n, 2)]))
    labels.to_csv(tmp_path / 'labels.csv', index=False)
    d = report.open_run(folder, tmp_path / 'labels.csv')
    parts = [
        f(d).data
        for f in (
            report.title,
            report.summary,
            report.checks_list,
            report.class_counts,
            report.moves,
            report.surest_changes,
            report.least_sure,
            report.typical,
            report.map_note,
            report.duplicates_sheet,
            report.skipped_table,
            report.settings_table,
            report.scores,
            report.recalls,
            report.confusion,
        )
    ]
    assert sum(map(len, parts)) < 400_000  # a page, not a dump
    if m > 30:
        assert f'30 of {m:,} classes' in parts[3]
    if n > 1000:
        assert f'a random 1,000 of {n:,} images' in parts[8]
    for f in (report.history_figure, report.reliability_figure):
        assert f(d).axes
    assert len(report.embedding_map(d, most=min(n, 60)).axes) == 1  # nothing moved: one map


def test_pictures_that_are_gone_or_moved(made, tmp_path):
    shutil.copytree(made / 'RUN', tmp_path / 'RUN')
    shutil.copytree(made / 'digits', tmp_path / 'elsewhere')
    config = json.loads((tmp_path / 'RUN' / 'config.json').read_text())
    config['run']['images'] = str(tmp_path / 'nowhere')
    (tmp_path / 'RUN' / 'config.json').write_text(json.dumps(config))
    gone = report.open_run(tmp_path / 'RUN')
    assert (
        '<img' not in (text := report.least_sure(gone, 2).data)
        and sum(str(escape(o)) in text for o in gone.table.path) == 2
        and any('no pictures' in o for o in report.checks(gone))
    )
    assert '<img' in report.least_sure(report.open_run(tmp_path / 'RUN', images=tmp_path / 'elsewhere'), 2).data


def test_labels_in_every_form(made, tmp_path):
    names, classes = ['a/1.png', 'b/2.png', 'b/3.png'], [['cat', 'kitty'], 'b']
    (tmp_path / 'l.csv').write_text('\ufeffpath,label\na/1.png,Kitty\nb/2.png,\n')
    (tmp_path / 'l.json').write_text(json.dumps({'a/1.png': 'cat', 'b/3.png': 'cow'}))
    assert report.read_labels(tmp_path / 'l.csv', names, classes).tolist() == ['cat', None, None]
    assert report.read_labels(tmp_path / 'l.json', names, classes).tolist() == ['cat', None, 'cow']
    assert report.read_labels('folders', names, classes).tolist() == ['a', 'b', 'b']
    for content, word in (
        ('file,class\na,b\n', 'columns path and label'),
        ('path,label\nz.png,cat\n', 'none of'),
        ('path,label\na/1.png,cow\n', 'no label is a class'),
    ):
        (tmp_path / 'bad.csv').write_text(content)
        with pytest.raises(ValueError, match=word):
            report.read_labels(tmp_path / 'bad.csv', names, classes)
    with pytest.raises(FileNotFoundError, match='folders'):
        report.read_labels(tmp_path / 'no.csv', names, classes)


def test_checks_notice_what_they_should(tmp_path):
    d = report.open_run(synthetic(tmp_path / 'RUN', 400, 4))
    assert not [o for o in report.checks(d) if 'got no image' in o or 'gather' in o]
    told = ' '.join(report.checks(d._replace(table=d.table.assign(label='class 0', changed=True))))
    for word in (
        '3 of 4 classes got no image',
        'got 100%',
        'effective number 1.0',
        'More than doubled',
        '100% of the labels changed',
    ):
        assert word in told


def change(part, **values):
    "Damage of a run's `config.json`"

    def act(folder):
        config = json.loads((folder / 'config.json').read_text())
        config[part] |= values
        (folder / 'config.json').write_text(json.dumps(config))

    return act


def put(name, content):
    "Damage of a file"
    return lambda folder: (folder / name).write_bytes(content)


def tensors(**functions):
    "Damage of `features.safetensors`"

    def act(folder):
        found = load_file(folder / 'features.safetensors')
        save_file(
            {k: v for k, v in (found | {k: f(found[k]) for k, f in functions.items()}).items() if v is not None},
            folder / 'features.safetensors',
        )

    return act


def cells(**columns):
    "Damage of `predictions.csv`: None takes a column away"

    def act(folder):
        table = pd.read_csv(folder / 'predictions.csv', dtype=str, keep_default_na=False)
        table.assign(**columns)[[k for k in table if columns.get(k, '') is not None]].to_csv(
            folder / 'predictions.csv', index=False
        )

    return act


HEAD = b'path,label,confidence,probability,zero_shot_label,changed,t_label,v_label,propagated_label\n'
OF_CONFIG = {
    'method': change('run', method='foo'),
    'method-list': change('run', method=[]),
    'seconds': change('run', seconds={}),
    'seconds-text': change('run', seconds=dict(encode=1, fit=1, total='long')),
    'machine': change('run', machine=None),
    'classes': change('run', classes=3),
    'other-classes': change('run', classes=['class 0']),
    'images': change('run', images=None),
    'images-numbers': change('run', images=[1, 2]),
    'n_images': change('run', n_images='many'),
    'features': change('run', features='x'),
    'n_unreadable': change('run', n_unreadable=None),
    'started': change('run', started=5),
    'model': change('settings', model=3),
    'alpha': change('settings', alpha='x'),
    'class_names': change('settings', class_names=[3, 4]),
    'templates': change('settings', templates=[3]),
}
OF_TABLE = {
    'noise': put('predictions.csv', b'\xff\xfe\x00junk'),
    'empty': put('predictions.csv', b''),
    'other-columns': put('predictions.csv', b'a,b\n1,2\n'),
    'header-only': put('predictions.csv', HEAD),
    'long-rows': put('predictions.csv', HEAD + b'0,' * 9 + b'0\n'),
    'text-in-confidence': cells(confidence='x'),
    'nan-confidence': cells(confidence='nan'),
    'empty-probability': cells(probability=''),
    'changed-maybe': cells(changed='maybe'),
    'no-label': cells(label=''),
    'no-changed': cells(changed=None),
}
OF_REST = {
    'fewer-rows': put('predictions.csv', HEAD + b'0,class 0,1,1,class 0,False,class 0,class 0,\n'),
    'features-noise': put('features.safetensors', b'junk'),
    'features-empty': put('features.safetensors', b''),
    'features-gone': lambda folder: (folder / 'features.safetensors').unlink(),
    'no-rows': tensors(rows=lambda o: None),
    'far-rows': tensors(rows=lambda o: o + 1000),
    'negative-rows': tensors(rows=lambda o: o - 30),
    'rows-twice': tensors(rows=lambda o: o // 2),
    'float-rows': tensors(rows=lambda o: o.float()),
    'few-features': tensors(frozen=lambda o: o[:3].clone()),
    'no-features': tensors(adapted=lambda o: None),
    'nan-features': tensors(frozen=lambda o: o * float('nan')),
    'whole-features': tensors(frozen=lambda o: o.long(), adapted=lambda o: o.long()),
    'history-noise': put('history.csv', b'x'),
    'history-empty': put('history.csv', b''),
    'history-text': put('history.csv', b'epoch,confidence,changed\n0,x,0\n'),
    'history-header': put('history.csv', b'epoch,confidence,changed\n'),
    'history-gone': lambda folder: (folder / 'history.csv').unlink(),
    'skipped-noise': put('skipped.csv', b'\xff'),
    'skipped-columns': put('skipped.csv', b'a\n1\n'),
}


@pytest.mark.parametrize('damage', [*OF_CONFIG, *OF_TABLE, *OF_REST])
def test_a_damaged_run_is_named(damage, tmp_path):
    folder = synthetic(tmp_path / 'RUN', 20, 2)
    report.open_run(folder), run.info(folder)  # whole before
    (OF_CONFIG | OF_TABLE | OF_REST)[damage](folder)
    where = (
        'config.json'
        if damage in OF_CONFIG
        else 'predictions.csv'
        if damage in OF_TABLE or damage == 'fewer-rows'
        else damage.split('-')[0]
        if damage.startswith(('history', 'skipped'))
        else 'features.safetensors'
    )
    with pytest.raises((ValueError, FileNotFoundError), match=where):
        report.write_report(folder)
    if damage in OF_CONFIG or damage in OF_TABLE:
        with pytest.raises(ValueError, match=where):
            run.info(folder)
    assert not (folder / 'report.html').exists()


def test_numbers_that_are_not_finite_are_refused_before_predicting(made, tmp_path):
    shutil.copytree(made / 'RUN', tmp_path / 'RUN')
    found = load_file(tmp_path / 'RUN' / 'adapted.safetensors')
    save_file(found | dict(centroids_=found['centroids_'] * float('nan')), tmp_path / 'RUN' / 'adapted.safetensors')
    with pytest.raises(ValueError, match='centroids_ holds numbers that are not finite'):
        run.predict(tmp_path / 'RUN', made / 'digits', progress=False)


def test_a_report_has_only_parts_that_say_something(made, tmp_path):
    d = report.open_run(made / 'RUN')

    def parts(method='adapt', labels=d.labels, files=d.files, changed=True):
        one = d._replace(
            config=d.config | dict(run=d.config['run'] | dict(method=method)),
            labels=labels,
            files=files,
            table=d.table.assign(changed=changed),
        )
        return {o.name for o in report.parts_for(one)}, one

    whole, _ = parts(labels=d.table.label)
    assert {'scores', 'moves', 'changed', 'history', 'typical', 'duplicates'} <= whole and not {
        'classes',
        'found',
    } & whole
    assert (
        'scores' not in parts()[0]
        and 'changed' not in parts(changed=False)[0]
        and not {'typical', 'duplicates'} & parts(files=None)[0]
    )
    free, one = parts('training-free')
    assert (
        'history' not in free
        and 'moves' in free
        and 'Learning rate' in report.settings_table(d).data
        and 'Learning rate' not in report.settings_table(one).data
        and report.embedding_map(one, most=20).axes[0].get_title() == ''
    )
    plain, one = parts('zeroshot', d.table.label, changed=False)
    assert not {'history', 'moves', 'changed', 'counts', 'recalls'} & plain and {'classes', 'found'} <= plain
    for f in (report.summary, report.class_counts, report.recalls, report.settings_table):
        assert not re.search('adapted|final|changed|P2|bar old', f(one).data)


def test_sheets_without_pictures_have_row_numbers_and_name_their_sample(tmp_path):
    d = report.open_run(synthetic(tmp_path / 'RUN', 30_000, 3))
    found = report.surest_changes(d, 3).data
    assert [int(o) for o in re.findall(r'row (\d+)', found)] == list(
        d.table[d.table.changed].sort_values('confidence', ascending=False, kind='stable').index[:3]
    ) and 'no picture' not in found
    assert 'a random 20,000 of 30,000 images' in report.typical(d, each=1).data


def test_classes_with_images_come_before_those_without(tmp_path):
    d = report.open_run(synthetic(tmp_path / 'RUN', 400, 100))
    few = d._replace(
        table=d.table.assign(
            zero_shot_label=['class 9', 'class 7'] * 200, label=['class 9', 'class 7'] * 199 + ['class 9', 'class 8']
        )
    )
    assert (
        re.findall('<th>(class [0-9]+)', report.class_counts(few).data) == ['class 7', 'class 8', 'class 9']
        and '3 of 100 classes: all that have an image' in report.class_counts(few).data
    )


def test_intervals_stay_inside_the_possible(tmp_path):
    d = report.open_run(synthetic(tmp_path / 'RUN', 20, 2))
    found = report.accuracies(d._replace(labels=d.table.label)).loc['final (label propagation)']
    assert found.accuracy == 1 == pytest.approx(found.high) and found.low == pytest.approx(0.8389, abs=1e-4)  # 20 of 20
    found = report.accuracies(d._replace(labels=d.table.label.where(d.table.index < 8, 'class x'))).loc[
        'final (label propagation)'
    ]
    assert (found.accuracy, found.low, found.high) == pytest.approx((0.4, 0.2188, 0.6134), abs=1e-4)  # 8 of 20


def test_a_part_that_fails_is_named_and_each_part_a_tick(tmp_path, monkeypatch):
    ticks = []

    def bar(parts, name, **about):
        for o in parts:
            yield o
            ticks.append(o.name)

    def broken(d):
        return 1 / 0

    parts = (*report.PARTS[:2], report.Part('broken', broken), *report.PARTS[2:])
    monkeypatch.setattr(report, 'parts_for', lambda d: parts)
    monkeypatch.setattr(report, 'tqdm', bar)
    folder = synthetic(tmp_path / 'RUN', 20, 2)
    with pytest.raises(ZeroDivisionError) as found:
        report.write_report(folder)
    assert found.value.__notes__ == ["while making the part 'broken' of the report"]
    assert ticks == ['title', 'summary'] and not (folder / 'report.html').exists()


def test_numbers_are_those_of_the_formulas(tmp_path):
    d = report.open_run(synthetic(tmp_path / 'RUN', 997, 7, 'adapt'))
    d = d._replace(labels=d.table.label.where(np.random.default_rng(1).random(997) < 0.7, 'class 0'))
    found = report.accuracies(d)
    n = 997
    z = 1.959964
    p = np.array(
        [
            (d.table[k] == d.labels).mean()
            for k in ('zero_shot_label', 'propagated_label', 't_label', 'v_label', 'label')
        ]
    )
    middle, half = (
        (p + z**2 / (2 * n)) / (1 + z**2 / n),
        z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)),
    )
    assert (
        np.allclose(found.accuracy, p)
        and np.allclose(found.low, middle - half, atol=1e-7)
        and np.allclose(found.high, middle + half, atol=1e-7)
    )
    share = d.table.label.value_counts(normalize=True)
    assert report.effective_classes(d.table.label) == pytest.approx(np.exp(-(share * np.log(share)).sum()))
    frame, error = report.calibration(d)
    q, right = d.table.probability.to_numpy(), (d.table.label == d.labels).to_numpy()
    which = np.minimum((q * 10).astype(int), 9)
    off = np.abs(q * 10 - np.round(q * 10)) > 1e-9  # a probability on an edge is in the lower bin
    assert error == pytest.approx(
        sum(abs((q - right)[which == i].sum()) for i in range(10)) / n, abs=2 * (~off).sum() / n
    )
    for i, (accuracy, probability) in enumerate(zip(*calibration_curve(right, q, n_bins=10))):
        assert (frame.accuracy.iloc[i], frame.probability.iloc[i]) == pytest.approx((accuracy, probability))
    edges = d._replace(table=d.table.assign(probability=np.arange(997) % 11 / 10))
    assert len(report.calibration(edges)[0]) == 10 and report.calibration(edges)[0].images.sum() == 997
    assert np.allclose(
        report.calibration(edges)[0].accuracy, calibration_curve(right, edges.table.probability, n_bins=10)[0]
    )


def test_a_report_leaves_no_trace_in_the_program_around_it(tmp_path):
    synthetic(tmp_path / 'RUN', 60, 3, 'adapt')
    code = """if True:
    import random, sys
    import matplotlib, numpy

    matplotlib.rcParams.update({'lines.linewidth': 7, 'axes.facecolor': 'red', 'font.size': 30})
    before = matplotlib.rcParams.copy()  # dict() would choose a backend
    from reclip import report

    state = random.getstate(), repr(numpy.random.get_state())
    first = report.write_report(sys.argv[1], progress=False).read_bytes()
    assert not [
        o
        for o in sys.modules
        if o.startswith(('IPython', 'ipykernel', 'jupyter', 'nbformat', 'nbconvert')) or o == 'matplotlib.pyplot'
    ]
    assert not [o for o in before if o != 'backend' and before[o] != matplotlib.rcParams[o]]
    assert (random.getstate(), repr(numpy.random.get_state())) == state
    matplotlib.rcdefaults()
    assert report.write_report(sys.argv[1], progress=False).read_bytes() == first
    import matplotlib.pyplot as plt

    plt.figure()
    report.write_report(sys.argv[1], progress=False)
    assert plt.get_fignums() == [1]
"""
    env = {k: v for k, v in os.environ.items() if k != 'MPLBACKEND'}
    done = subprocess.run([sys.executable, '-c', code, tmp_path / 'RUN'], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr


def test_the_notebook_makes_the_same_again(made, tmp_path):
    nbformat, nbclient = pytest.importorskip('nbformat'), pytest.importorskip('nbclient')
    shutil.copytree(made / 'RUN', tmp_path / 'RUN', ignore=shutil.ignore_patterns('report.*'))
    report.write_report(tmp_path / 'RUN', 'folders', progress=False)
    assert not (tmp_path / 'RUN' / 'report.ipynb').exists()  # only if asked for
    report.write_report(tmp_path / 'RUN', 'folders', notebook=True, progress=False)
    written = nbformat.read(tmp_path / 'RUN' / 'report.ipynb', as_version=4)
    nbformat.validate(written)
    again = nbclient.NotebookClient(deepcopy(written), kernel_name='python3').execute()
    for a, b in zip(written.cells, again.cells, strict=True):
        for x, y in zip(a.get('outputs', []), b.get('outputs', []), strict=True):
            assert set(x.data) == set(y.data) and all(
                x.data[o].rstrip() == y.data[o].rstrip() for o in x.data if o != 'image/png'
            )


def test_a_notebook_without_nbformat_is_refused_with_the_way_out(tmp_path, monkeypatch):
    folder = synthetic(tmp_path / 'RUN', 20, 2)
    monkeypatch.setattr(report, 'find_spec', lambda name: None)
    found = CliRunner().invoke(app, ['report', str(folder), '--notebook'])
    assert (
        found.exit_code == 2
        and "pip install 'reclip-torch[notebook]'" in found.stderr
        and len(found.stderr.splitlines()) == 1
    )
    assert not (folder / 'report.html').exists()
    assert (
        CliRunner().invoke(app, ['report', str(folder), '--quiet']).exit_code == 0 and (folder / 'report.html').exists()
    )


@pytest.mark.parametrize('n', [1, 2, 3, 9])
def test_a_few_images_are_enough(n, tmp_path):
    text = report.write_report(synthetic(tmp_path / 'RUN', n, 2, 'adapt'), progress=False).read_text(encoding='utf-8')
    assert text.count('src="data:image/png') == 2


def test_old_names_are_here():
    names = """STYLE PAGE read_labels RunData open_run effective_classes accuracies title summary checks checks_list
        class_counts moves contact_sheet surest_changes least_sure typical embedding_map map_note history_figure
        near_duplicates duplicates_sheet skipped_table scores recalls confusion calibration reliability_figure
        settings_table write_report"""
    assert set(names.split()) <= set(report.__all__) and all(hasattr(report, o) for o in report.__all__)
    assert 'body {' in report.PAGE and 'body {' not in report.STYLE  # safe in any page
