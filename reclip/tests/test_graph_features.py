"Another encoder says who is whose neighbour: in the estimator, in a run, and on the command line"

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from reclip import demo, run
from reclip.adapt import ReCLIP
from reclip.cli import app
from reclip.kept import CannotGoOn
from reclip.labeller import label_images
from reclip.notes import noting

WORDS = list(demo.class_names)
HOW = dict(model='demo', templates='digit', progress=False)


@pytest.fixture(scope='module')
def digits():
    "120 digits, and their grey values as another encoder's features"
    images = demo.demo_digits()[0][:120]
    return images, np.stack([np.asarray(o.convert('L'), np.float32).ravel() for o in images])


@pytest.fixture(scope='module')
def scans(digits, tmp_path_factory):
    "The first 60 as files, with a file of features beside the folder"
    here = tmp_path_factory.mktemp('graph')
    (here / 'scans').mkdir()
    for i, image in enumerate(digits[0][:60]):
        image.save(here / 'scans' / f'{i:02}.png')
    np.save(here / 'other.npy', digits[1][:60])
    return here


def plain(**settings):
    return ReCLIP('demo', class_names=WORDS, templates=demo.templates, **settings)


def test_features_are_labelled_with_the_neighbours_of_another_encoder(digits):
    clip = plain()
    x, text = clip.loaded().images(digits[0]), clip.zero_shot_texts()
    expected = label_images(x, text, logit_scale=clip.loaded().logit_scale, graph_features=torch.tensor(digits[1]))
    found = clip.fit(x, graph_features=digits[1]).labels_
    assert torch.equal(found, expected.pseudo_labels) and not torch.equal(found, plain().fit(x).labels_)
    assert torch.equal(found, plain().fit_features(x, graph_features=digits[1]).labels_)
    with pytest.raises(ValueError, match='expected a row for each of 120 images'):
        clip.fit(x, graph_features=digits[1][:7])


def test_every_look_of_a_training_has_the_same_neighbours(digits, monkeypatch):
    from reclip import selftrain

    seen = []

    def spy(x, text, settings, **how):
        seen.append(how['graph_features'])
        return label_images(x, text, settings, **how)

    monkeypatch.setattr(selftrain, 'label_images', spy)
    clip = plain(epochs=2, lr_image=1e-2, lr_text=1e-2).fit(digits[0], graph_features=digits[1])
    assert len(seen) == 5 and all(torch.equal(o, seen[0]) for o in seen)  # one look before, then two a look
    assert torch.allclose(seen[0], torch.nn.functional.normalize(torch.tensor(digits[1]), dim=1))
    free = plain().fit(clip.loaded().images(digits[0]), graph_features=digits[1])
    assert torch.equal(clip.first_pseudo_labels_, free.labels_)


@pytest.mark.parametrize(
    'change, says',
    [
        (lambda g: g[:-1], 'graph_features: expected a row for each of 120 images, in their order, got 119 rows'),
        (lambda g: np.where(g > 200, np.nan, g), 'graph_features: .* rows hold NaN or infinity'),
        (lambda g: g[0], r'graph_features: expected a non-empty \(rows, width\) matrix'),
        (lambda g: g * (np.arange(len(g)) != 5)[:, None], 'graph_features: row 5 is all zeros'),
        (lambda g: g.astype(int), 'graph_features: expected floating point values'),
    ],
)
@pytest.mark.parametrize('epochs', [0, 1])
def test_what_cannot_be_neighbours_is_refused_before_any_work(digits, change, says, epochs, monkeypatch):
    monkeypatch.setattr('reclip.selftrain.train_epoch', lambda *_: pytest.fail('trained'))
    with pytest.raises(ValueError, match=says):
        plain(epochs=epochs).fit(digits[0], graph_features=change(digits[1]))


@pytest.mark.parametrize('settings', [dict(recipe='paper'), dict(labeller='propagation')])
def test_propagation_has_one_graph(digits, settings):
    with pytest.raises(ValueError, match="graph_features: label propagation .* give labeller='mixture'"):
        plain(epochs=0, **settings).fit(digits[0], graph_features=digits[1])


@pytest.mark.parametrize('method', ['adapt', 'training-free'])
def test_a_run_is_the_estimator(scans, digits, tmp_path, method):
    free = method != 'adapt'
    table = run.adapt(
        scans / 'scans', WORDS, tmp_path / 'R', method=method, epochs=1, graph_features=scans / 'other.npy', **HOW
    )
    clip = ReCLIP('demo', class_names=WORDS, templates=run.ReCLIP.load(tmp_path / 'R').templates, epochs=1)
    x = clip.loaded().images(digits[0][:60]) if free else digits[0][:60]
    clip.fit(x, graph_features=digits[1][:60])
    assert table.label.tolist() == [WORDS[i] for i in clip.labels_]
    about = json.loads((tmp_path / 'R' / 'config.json').read_text())['run']
    assert about['graph_features'] == str(scans / 'other.npy') and len(about['begun']['graph_features']) == 32
    array = run.adapt(
        scans / 'scans', WORDS, tmp_path / 'A', method=method, epochs=1, graph_features=digits[1][:60], **HOW
    )
    assert array.equals(table)


def test_a_run_goes_on_with_the_same_rows_only(scans, digits, tmp_path, monkeypatch):
    def begin(rows, **more):
        return run.adapt(scans / 'scans', WORDS, tmp_path / 'R', epochs=1, graph_features=rows, **HOW, **more)

    def killed(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr('reclip.run._write', killed)
        with pytest.raises(KeyboardInterrupt):
            begin(digits[1][:60])
    with pytest.raises(CannotGoOn, match='graph_features was'):
        begin(digits[1][60:], resume=True)
    with pytest.raises(CannotGoOn, match='was begun with other settings: graph_features'):
        begin(None, resume=True)
    table = begin(scans / 'other.npy', resume=True)  # the same contents, from a file
    assert begin(scans / 'other.npy', resume=True).equals(table)  # finished
    with pytest.raises(FileExistsError):
        begin(digits[1][60:], resume=True)


def test_images_that_cannot_be_opened_have_a_row_or_have_none(scans, digits, tmp_path):
    folder = tmp_path / 'scans'
    folder.mkdir()
    for i, image in enumerate(digits[0][:60]):
        image.save(folder / f'{i:02}.png')
    (folder / '07.png').write_bytes(b'no picture')
    how = dict(max_unreadable=0.2, method='training-free', cache=None) | HOW
    every, read = digits[1][:60], np.delete(digits[1][:60], 7, axis=0)
    found = len(run.adapt(folder, WORDS, tmp_path / 'Z', **how | dict(method='zeroshot')))
    assert found == 59
    one = run.adapt(folder, WORDS, tmp_path / 'A', graph_features=read, **how)
    with noting() as notes:
        two = run.adapt(folder, WORDS, tmp_path / 'B', graph_features=every, **how)
    assert one.equals(two) and any('could not be opened are left out' in o for o in notes)
    with pytest.raises(
        ValueError, match=r'has 57 rows, expected .* \(with those that cannot be opened\) or 59, one for'
    ):
        run.adapt(folder, WORDS, tmp_path / 'C', graph_features=every[:57], **how)
    assert not list(tmp_path.glob('C*'))


def test_too_many_rows_are_refused_before_anything_is_encoded(scans, digits, tmp_path, monkeypatch):
    monkeypatch.setattr('reclip.run.encode_found', lambda *_: pytest.fail('encoded'))
    with pytest.raises(ValueError, match='graph_features: an array has 120 rows, expected 60, one for each image'):
        run.adapt(scans / 'scans', WORDS, tmp_path / 'R', graph_features=digits[1], **HOW)
    assert not list(tmp_path.glob('R*'))


def test_features_and_their_neighbours(scans, digits, tmp_path):
    x = plain().loaded().images(digits[0][:60])
    np.save(tmp_path / 'x.npy', x.numpy())
    table = run.adapt(tmp_path / 'x.npy', WORDS, tmp_path / 'R', graph_features=scans / 'other.npy', **HOW)
    templates = ReCLIP.load(tmp_path / 'R').templates
    clip = ReCLIP('demo', class_names=WORDS, templates=templates).fit(x, graph_features=digits[1][:60])
    assert table.label.tolist() == [WORDS[i] for i in clip.labels_]


def test_the_command_line(scans, tmp_path):
    words = ['-c', ','.join(WORDS), '-t', 'digit', '-m', 'demo', '--training-free']
    made = CliRunner().invoke(
        app,
        [
            'adapt',
            str(scans / 'scans'),
            *words,
            '--graph-features',
            str(scans / 'other.npy'),
            '-o',
            str(tmp_path / 'R'),
        ],
    )
    assert made.exit_code == 0, made.output
    table = run.adapt(
        scans / 'scans', WORDS, tmp_path / 'S', method='training-free', graph_features=scans / 'other.npy', **HOW
    )
    assert run.read_predictions(tmp_path / 'R').label.tolist() == table.label.tolist()
    for more, says in [
        (['--graph-features', str(scans / 'gone.npy')], 'gone.npy'),
        (['--preset', 'paper', '--graph-features', str(scans / 'other.npy')], "give labeller='mixture'"),
    ]:
        bad = CliRunner().invoke(app, ['adapt', str(scans / 'scans'), *words, *more, '-o', str(tmp_path / 'T')])
        assert bad.exit_code == 2 and says in bad.output and 'Traceback' not in bad.output
    assert not list(tmp_path.glob('T*'))


def test_zero_shot_has_no_use_for_it(scans, tmp_path):
    run.adapt(scans / 'scans', WORDS, tmp_path / 'R', method='zeroshot', graph_features=scans / 'other.npy', **HOW)
    assert any('not used: graph_features' in o for o in run.info(tmp_path / 'R')['notes'])


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    "Weights of a small model of timm, as a file"
    timm = pytest.importorskip('timm')
    from safetensors.torch import save_file

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp('timm') / 'weights.safetensors'
    save_file(timm.create_model('test_vit', pretrained=False).state_dict(), path)
    return path


def test_a_model_of_timm_makes_the_rows(scans, digits, weights, tmp_path):
    from reclip.second_encoder import load_encoder

    encoder = load_encoder('test_vit', weights)
    with torch.no_grad():
        rows = encoder.visual(torch.stack([encoder.preprocess(o.convert('RGB')) for o in digits[0][:60]]))
    how = dict(method='training-free') | HOW
    given = run.adapt(scans / 'scans', WORDS, tmp_path / 'A', graph_features=rows, **how)
    words = ['-c', ','.join(WORDS), '-t', 'digit', '-m', 'demo', '--training-free', '-q']
    more = ['--graph-model', 'test_vit', '--graph-weights', str(weights), '-o', str(tmp_path / 'B')]
    made = CliRunner().invoke(app, ['adapt', str(scans / 'scans'), *words, *more])
    assert made.exit_code == 0, made.output
    assert run.read_predictions(tmp_path / 'B').label.tolist() == given.label.tolist()
    about = json.loads((tmp_path / 'B' / 'config.json').read_text())['run']
    assert about['graph_features'] == f'test_vit ({weights})' and about['begun']['graph_features'] == encoder.digest()
    for wrong in (['--graph-features', str(scans / 'other.npy'), *more], more[2:]):
        bad = CliRunner().invoke(app, ['adapt', str(scans / 'scans'), *words, *wrong[:-1], str(tmp_path / 'C')])
        assert bad.exit_code == 2 and 'graph-' in bad.output and not (tmp_path / 'C').exists()


def test_an_untrained_model_is_refused(weights, monkeypatch, tmp_path):
    from safetensors.torch import load_file, save_file

    from reclip import second_encoder
    from reclip.second_encoder import load_encoder

    with pytest.raises(ValueError, match='timm knows no model .*did you mean'):
        load_encoder('test_vitt')
    monkeypatch.setattr(second_encoder.timm, 'is_model_pretrained', lambda name: False)
    with pytest.raises(ValueError, match='nobody has published weights of test_vit'):
        load_encoder('test_vit')
    part = {k: v for k, v in load_file(weights).items() if not k.startswith('blocks.1')}
    save_file(part, tmp_path / 'part.safetensors')
    with pytest.raises(ValueError, match=r'lacks \d+ weights of test_vit, such as blocks.1'):
        load_encoder('test_vit', tmp_path / 'part.safetensors')
    with pytest.raises(ValueError, match='other weights than those of|lacks'):
        load_encoder('test_vit2', weights)
