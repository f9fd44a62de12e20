"Images of no class: rejected by probability, and every reader of labels knows what to do with them"

import inspect

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from reclip import demo, report, run
from reclip.adapt import ReCLIP
from reclip.answers import decided, likeliest
from reclip.cli import app
from reclip.kept import CannotGoOn
from reclip.notes import noting
from reclip.report_glance import checks
from reclip.report_parts import parts_for
from reclip.report_scores import accuracies, calibration, confusion, scores
from reclip.run_folder import NONE, unclassed
from reclip.settings import using

WORDS = list(demo.class_names)
LEAST = 0.7


@pytest.fixture(scope='module')
def scans(tmp_path_factory):
    "A folder with 80 digits as files, and their names"
    here = tmp_path_factory.mktemp('scans')
    images, labels = demo.demo_digits()
    for i, image in enumerate(images[:80]):
        image.save(here / f'{i:02}.png')
    return here, [WORDS[i] for i in labels[:80]]


@pytest.fixture(scope='module')
def done(scans, tmp_path_factory):
    "A run that rejects, and the same run that does not"
    here = tmp_path_factory.mktemp('runs')
    how = dict(model='demo', templates='digit', progress=False, epochs=1)
    table = run.adapt(scans[0], WORDS, here / 'some', none_of_these=LEAST, **how)
    return here / 'some', table, run.adapt(scans[0], WORDS, here / 'all', **how)


def test_a_label_is_kept_from_its_threshold_up():
    p = torch.tensor([[0.7, 0.3], [0.45, 0.55], [0.2, 0.8], [0.4, 0.6]])
    s = using(none_of_these=0.6)
    assert likeliest(p).tolist() == [0, 1, 1, 1] and likeliest(p, s).tolist() == [0, -1, 1, 1]
    assert isinstance(found := likeliest(p.numpy(), s), np.ndarray) and found.tolist() == [0, -1, 1, 1]
    kept = decided(dict(labels=p.argmax(1), probability=p.amax(1), other=3), s)
    assert kept['labels'].tolist() == [0, -1, 1, 1] and kept['best_labels'].tolist() == [0, 1, 1, 1]
    assert kept['other'] == 3


@pytest.mark.parametrize('wrong', [0, 1, -0.1, 1.5, True, 'half'])
def test_a_threshold_is_between_0_and_1(wrong):
    with pytest.raises(ValueError, match='none_of_these: expected a number between 0 and 1, both excluded'):
        using(none_of_these=wrong)


def test_probabilities_of_the_paper_are_not_calibrated_and_that_is_noted():
    with noting() as notes:
        likeliest(torch.eye(2), using(none_of_these=0.5))
        assert notes == []
        likeliest(torch.eye(2), using(none_of_these=0.5, recipe='paper'))
    assert len(notes) == 1 and 'not calibrated' in notes[0]


@pytest.mark.parametrize('trained', [True, False])
def test_the_estimator_rejects_in_fit_and_in_predict(trained, tmp_path):
    images, _ = demo.demo_digits()
    clip = ReCLIP('demo', class_names=WORDS, templates=demo.templates, epochs=1, none_of_these=LEAST)
    x = images[:120] if trained else clip.loaded().images(images[:120])
    clip.fit(x)
    none = clip.labels_ == -1
    assert 0 < none.sum() < len(none) and torch.equal(none, clip.probability_ < LEAST)
    assert torch.equal(clip.labels_[~none], clip.best_labels_[~none]) and (clip.best_labels_ >= 0).all()
    plain = ReCLIP('demo', class_names=WORDS, templates=demo.templates, epochs=1).fit(x)
    assert torch.equal(plain.labels_, clip.best_labels_) and torch.equal(plain.probability_, clip.probability_)
    assert plain.history_[-1]['changed'] == clip.history_[-1]['changed']  # a rejection is no change of mind
    p = clip.predict_proba(x)
    assert torch.equal(clip.predict(x), torch.where(p.amax(1) < LEAST, -1, p.argmax(1)))
    clip.save(tmp_path / 'S')
    again = ReCLIP.load(tmp_path / 'S')
    assert again.none_of_these == LEAST and torch.equal(again.best_labels_, clip.best_labels_)
    assert torch.equal(again.predict(x), clip.predict(x))


def test_a_folder_of_an_earlier_version_has_its_labels_as_the_best(tmp_path):
    from safetensors.torch import load_file, save_file

    clip = ReCLIP('demo', class_names=WORDS, templates=demo.templates)
    clip.fit(clip.loaded().images(demo.demo_digits()[0][:20])).save(tmp_path / 'S')
    path = tmp_path / 'S' / 'adapted.safetensors'
    tensors = load_file(path)
    del tensors['best_labels_']
    save_file(tensors, path)
    assert torch.equal(ReCLIP.load(tmp_path / 'S').best_labels_, clip.labels_)


def test_tables_keep_the_best_class_beside(done):
    folder, table, plain = done
    none = table.probability < LEAST
    assert 0 < none.sum() < len(table) and unclassed(table).equals(none)
    assert (table.label[none] == NONE).all() and (table.label[~none] == table.best_label[~none]).all()
    assert table.best_label.equals(plain.label.rename('best_label')) and 'best_label' not in plain
    assert table.changed.equals(table.label != table.zero_shot_label)
    back = run.read_predictions(folder)
    assert back.equals(table) and list(back) == list(table)


def test_an_account_counts_them(done):
    folder, table, _ = done
    found = run.info(folder)
    assert found['none_of_these'] == unclassed(table).sum() and NONE not in found['largest_class']
    assert found['empty_classes'] == len(WORDS) - table.label[~unclassed(table)].nunique()


def test_new_images_are_rejected_as_those_of_the_run(done, scans):
    folder, table, _ = done
    new, p, _ = run.predict(folder, scans[0], progress=False)
    assert new.label.tolist() == table.label.tolist() and new.best_label.tolist() == table.best_label.tolist()
    other, _, _ = run.predict(folder, scans[0], progress=False, none_of_these=0.3)
    assert (other.label == NONE).tolist() == (p.amax(1) < 0.3).tolist()


def test_a_report_tells_them(done, scans, tmp_path):
    folder, table, _ = done
    none = unclassed(table)
    truth = pd.DataFrame(dict(path=table.path, label=scans[1]))
    truth.loc[0, 'label'] = NONE  # whoever looked says so too
    truth.to_csv(tmp_path / 'truth.csv', index=False)
    d = report.open_run(folder, tmp_path / 'truth.csv', scans[0])
    assert not any('no class' in o for o in d.notes)
    assert accuracies(d).accuracy['final'] == (table.label == truth.label).mean()
    kept = (table.label == truth.label)[~none].mean()
    assert f'{none.mean():.1%} of them are {NONE}; of the others {kept:.1%} are right' in scores(d)
    frame, _ = calibration(d)
    assert (frame.accuracy * frame.images).sum() == pytest.approx((table.best_label == truth.label).sum())
    assert NONE in confusion(d) and any(NONE in o for o in checks(d))
    for part in parts_for(d):
        part.make(d)
    assert f'{none.sum()} images got none of the classes' in next(o for o in parts_for(d) if o.name == 'counts').make(d)


def test_nothing_breaks_where_all_are_rejected(scans, tmp_path):
    how = dict(model='demo', templates='digit', progress=False, method='training-free')
    table = run.adapt(scans[0], WORDS, tmp_path / 'R', none_of_these=0.999999, **how)
    assert unclassed(table).all()
    assert run.info(tmp_path / 'R')['largest_class'] is None
    assert any('smaller none_of_these' in o for o in checks(report.open_run(tmp_path / 'R')))
    d = report.open_run(tmp_path / 'R', images=scans[0])
    for part in parts_for(d):
        part.make(d)
    run.export(tmp_path / 'R', tmp_path / 'E')


def test_a_run_goes_on_with_the_same_threshold_only(scans, tmp_path, monkeypatch):
    how = dict(model='demo', templates='digit', progress=False, epochs=1, none_of_these=0.5)

    def killed(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr('reclip.run._write', killed)
        with pytest.raises(KeyboardInterrupt):
            run.adapt(scans[0], WORDS, tmp_path / 'R', **how)
    with pytest.raises(CannotGoOn, match='none_of_these was 0.5, now 0.6'):
        run.adapt(scans[0], WORDS, tmp_path / 'R', resume=True, **how | dict(none_of_these=0.6))
    assert (run.adapt(scans[0], WORDS, tmp_path / 'R', resume=True, **how).label == NONE).any()


def test_a_class_of_that_name(scans, tmp_path):
    words = [*WORDS[:4], 'None of  these']
    how = dict(model='demo', templates='digit', progress=False, method='zeroshot')
    with pytest.raises(ValueError, match='rename the class, or leave the setting away'):
        run.adapt(scans[0], words, tmp_path / 'R', none_of_these=0.5, **how)
    assert not (tmp_path / 'R').exists()
    table = run.adapt(scans[0], [*WORDS[:4], NONE], tmp_path / 'R', **how)
    assert (table.label == NONE).any() and not unclassed(table).any()
    assert any('a class like the others' in o for o in run.info(tmp_path / 'R')['notes'])


def test_the_command_line(scans, tmp_path):
    words = ['-c', ','.join(WORDS), '-t', 'digit', '-m', 'demo', '--none-of-these', '0.5']
    found = CliRunner().invoke(app, ['zeroshot', str(scans[0]), *words, '-o', str(tmp_path / 'R')])
    assert found.exit_code == 0, found.output
    table = run.read_predictions(tmp_path / 'R')
    assert f'{unclassed(table).sum()} are {NONE} ({unclassed(table).mean():.1%})' in found.output
    new = ['predict', str(tmp_path / 'R'), str(scans[0]), '-q', '-o', str(tmp_path / 'new.csv')]
    assert CliRunner().invoke(app, new).exit_code == 0
    assert pd.read_csv(tmp_path / 'new.csv').label.tolist() == table.label.tolist()
    bad = CliRunner().invoke(app, ['adapt', str(scans[0]), *words[:-1], '2', '-o', str(tmp_path / 'S')])
    assert bad.exit_code == 2 and 'between 0 and 1' in bad.output


def test_eval_rows_are_not_of_it():
    from reclip.evaluate import method_settings

    assert 'none_of_these' not in method_settings('reclip') and inspect.signature(ReCLIP).parameters['none_of_these']
