"The report: self-contained, escaped, honest about samples, right numbers; from 2 classes to 1,000 and from 20 images to 100,000."
import json
import re
import shutil
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from reclip import demo, report, run

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
    run.adapt(here / 'digits', [*demo.class_names[:9], ['nine', NASTY]], here / 'RUN', 'demo', templates='digit', epochs=1, progress=False)
    return here


def synthetic(folder, n, m, method='training-free'):
    "A run folder of any size, without images, as run.adapt writes it"
    rng, names = np.random.default_rng(0), [f'class {i}' for i in range(m)]
    folder.mkdir()
    label, before = rng.integers(m, size=n), rng.integers(m, size=n)
    table = pd.DataFrame(dict(path=[str(i) for i in range(n)], label=np.array(names)[label], confidence=rng.random(n).round(4), probability=rng.random(n).round(4), zero_shot_label=np.array(names)[before], changed=label != before,
                              t_label=np.array(names)[before], v_label=np.array(names)[label], propagated_label=np.array(names)[label]))
    table.to_csv(folder / 'predictions.csv', index=False)
    pd.DataFrame([dict(epoch=0, confidence=.5, changed=.1)]).to_csv(folder / 'history.csv', index=False)
    pd.DataFrame(columns=['path', 'kind', 'reason']).to_csv(folder / 'skipped.csv', index=False)
    rows = torch.arange(n)[:20_000]
    x = torch.randn(len(rows), 32, generator=torch.Generator().manual_seed(0)).half()
    save_file(dict(rows=rows, frozen=x, adapted=x.clone()), folder / 'features.safetensors')
    save_file(dict(a=torch.zeros(1)), folder / 'adapted.safetensors')
    settings = dict(model='demo', pretrained=None, templates=['a photo of a {}.'], descriptions=None, projection='P2', recipe='paper', n_neighbors=20, alpha=.99, batch_size=64, lr_text=1e-3, lr_image=1e-3, momentum=.9, precision='float32', seed=0, class_names=names)
    about = dict(method=method, begun={}, images='features.npy', features=True, classes=names, n_images=n, n_skipped=0, n_unreadable=0, started='2026-01-01T00:00:00', machine=dict(cores=2), seconds=dict(encode=1, fit=1, total=2))
    (folder / 'config.json').write_text(json.dumps(dict(settings=settings, run=about, history=[{}], versions={})))
    return folder


def test_page_is_whole_and_safe(made):
    page = report.write_report(made / 'RUN', labels='folders')
    text = page.read_text(encoding='utf-8')
    assert text.startswith('<!doctype html>') and text.rstrip().endswith('</html>') and 'Traceback' not in text
    assert not re.search(r'(?:src|href)="(?!data:|#)', text) and '<script' not in text and 'url(' not in text        # self-contained, and no code in it
    assert '<b>.png' not in text
    assert len(re.findall(r'<h2', text)) == 14 and text.count('src="data:image/') > 50
    notebook = json.loads((made / 'RUN' / 'report.ipynb').read_text(encoding='utf-8'))
    assert all(c['outputs'] for c in notebook['cells'] if c['cell_type'] == 'code' and c['id'] not in ('report-parameters', 'report-setup'))
    assert sorted(p.name for p in (made / 'RUN').iterdir()) == ['adapted.safetensors', 'config.json', 'features.safetensors', 'history.csv', 'predictions.csv', 'report.html', 'report.ipynb', 'skipped.csv']


def test_without_labels_no_accuracy_and_nothing_of_the_run_folder_is_imported(made, tmp_path):
    shutil.copytree(made / 'RUN', tmp_path / 'RUN')
    marker = tmp_path / 'marker'
    for name in ('json.py', 'numpy.py', 'reclip.py', 'sitecustomize.py', 'matplotlib.py'): (tmp_path / 'RUN' / name).write_text(f'open({str(marker)!r}, "w").close(); raise SystemExit')
    text = report.write_report(tmp_path / 'RUN').read_text(encoding='utf-8')
    assert 'accuracy' not in text.lower() and 'could not be opened' in text
    assert not marker.exists()


def test_numbers_are_right(made):
    d = report.open_run(made / 'RUN', 'folders')
    truth = [p.split('/')[0] for p in d.table.path]
    assert d.labels.tolist() == truth
    found = report.accuracies(d)
    assert found.accuracy['final'] == pytest.approx((d.table.label == truth).mean()) and found.accuracy['zero-shot'] == pytest.approx((d.table.zero_shot_label == truth).mean())
    counts = re.findall(r'<td class="n">(\d+)</td><td class="n"><b>(\d+)</b>', report.class_counts(d).data)
    assert sum(int(a) for a, _ in counts) == sum(int(b) for _, b in counts) == 91
    matrix = re.findall(r'inherit">(\d+)|#fff">(\d+)', report.confusion(d).data)
    assert sum(int(a or b) for a, b in matrix) == 91
    assert [(d.table.path[a], d.table.path[b]) for a, b, apart in report.near_duplicates(d) if apart == 0] == [('four/04 $x_1$ & <b>.png', 'four/twin.png')]
    frame, error = report.calibration(d)
    assert frame.images.sum() == 91 and 0 <= error <= 1


@pytest.mark.parametrize('n, m', [(20, 2), (2_000, 1_000), (100_000, 50)])
def test_any_size(n, m, tmp_path):
    folder = synthetic(tmp_path / 'RUN', n, m)
    labels = pd.DataFrame(dict(path=[str(i) for i in range(0, n, 2)], label=[f'class {i % m}' for i in range(0, n, 2)]))
    labels.to_csv(tmp_path / 'labels.csv', index=False)
    d = report.open_run(folder, tmp_path / 'labels.csv')
    parts = [f(d).data for f in (report.title, report.summary, report.checks_list, report.class_counts, report.moves, report.surest_changes, report.least_sure, report.typical, report.map_note, report.duplicates_sheet, report.skipped_table, report.settings_table, report.scores, report.recalls, report.confusion)]
    assert sum(map(len, parts)) < 400_000                                                             # a page, not a dump
    if m > 30: assert f'30 of {m:,} classes' in parts[3]
    if n > 1000: assert f'a random 1,000 of {n:,} images' in parts[8]
    for f in (report.history_figure, report.reliability_figure): assert f(d).axes
    assert len(report.embedding_map(d, most=min(n, 60)).axes) == 1                                    # nothing moved: one map


def test_pictures_that_are_gone_or_moved(made, tmp_path):
    shutil.copytree(made / 'RUN', tmp_path / 'RUN'); shutil.copytree(made / 'digits', tmp_path / 'elsewhere')
    config = json.loads((tmp_path / 'RUN' / 'config.json').read_text())
    config['run']['images'] = str(tmp_path / 'nowhere')
    (tmp_path / 'RUN' / 'config.json').write_text(json.dumps(config))
    gone = report.open_run(tmp_path / 'RUN')
    assert 'no picture' in report.least_sure(gone, 2).data and any('no pictures' in o for o in report.checks(gone))
    assert '<img' in report.least_sure(report.open_run(tmp_path / 'RUN', images=tmp_path / 'elsewhere'), 2).data


def test_labels_in_every_form(made, tmp_path):
    names, classes = ['a/1.png', 'b/2.png', 'b/3.png'], [['cat', 'kitty'], 'b']
    (tmp_path / 'l.csv').write_text('\ufeffpath,label\na/1.png,Kitty\nb/2.png,\n')
    (tmp_path / 'l.json').write_text(json.dumps({'a/1.png': 'cat', 'b/3.png': 'cow'}))
    assert report.read_labels(tmp_path / 'l.csv', names, classes).tolist() == ['cat', None, None]
    assert report.read_labels(tmp_path / 'l.json', names, classes).tolist() == ['cat', None, 'cow']
    assert report.read_labels('folders', names, classes).tolist() == ['a', 'b', 'b']
    for content, word in (('file,class\na,b\n', 'columns path and label'), ('path,label\nz.png,cat\n', 'none of'), ('path,label\na/1.png,cow\n', 'no label is a class')):
        (tmp_path / 'bad.csv').write_text(content)
        with pytest.raises(ValueError, match=word): report.read_labels(tmp_path / 'bad.csv', names, classes)
    with pytest.raises(FileNotFoundError, match='folders'): report.read_labels(tmp_path / 'no.csv', names, classes)


def test_checks_notice_what_they_should(tmp_path):
    d = report.open_run(synthetic(tmp_path / 'RUN', 400, 4))
    assert not [o for o in report.checks(d) if 'got no image' in o or 'gather' in o]
    told = ' '.join(report.checks(d._replace(table=d.table.assign(label='class 0', changed=True))))
    for word in ('3 of 4 classes got no image', 'got 100%', 'effective number 1.0', 'More than doubled', '100% of the labels changed'): assert word in told
