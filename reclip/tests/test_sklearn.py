"The estimator as scikit-learn and its users know estimators: features and pictures in every form, pipelines, searches."

import inspect
import os
import subprocess
import sys
import types
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, Normalizer
from sklearn.utils.estimator_checks import check_estimator
from torch.utils.data import Dataset, IterableDataset
import reclip
from reclip import ReCLIP, demo
from reclip.clip import Clip
from reclip.notes import noting
from reclip.pictures import ImageDataset

EXCLUDED = {
    'check_estimators_dtypes': 'integers are no features: unit_rows refuses them',
    'check_transformer_n_iter': 'max_iter bounds the steps of each block of classes; there is no one number to tell',
}


class Standing(torch.nn.Module):
    "A model that has norm layers and nothing else"

    def __init__(self):
        super().__init__()
        self.visual = torch.nn.Sequential(torch.nn.LayerNorm(4))
        self.ln_final = torch.nn.LayerNorm(4)
        self.logit_scale = torch.nn.Parameter(torch.tensor(4.6))


MODEL = Standing()


class OnFeatures(ReCLIP):
    "ReCLIP whose words have features of whatever width the images' have"

    def loaded(self):
        return Clip(MODEL, None, lambda words: torch.zeros(len(words), 4, dtype=torch.int64))

    def zero_shot_texts(self):
        g = torch.Generator().manual_seed(0)
        return torch.nn.functional.normalize(torch.randn(3, self.n_features_in_, generator=g), dim=1)


def test_scikit_learns_own_checks():
    estimator = OnFeatures(None, None, ('a', 'b', 'c'), projection='none')
    done = check_estimator(estimator, on_fail=None, on_skip=None, expected_failed_checks=EXCLUDED)
    failed = {o['check_name']: o['exception'] for o in done if o['status'] == 'failed'}
    assert not failed, failed
    assert sum(o['status'] == 'passed' for o in done) > 30
    assert {o['check_name'] for o in done if o['status'] == 'xfail'} == set(EXCLUDED)


@pytest.fixture(scope='module')
def rows(features, digits):
    return features[0], digits[1]


def fresh(**settings):
    return ReCLIP('demo', None, demo.class_names, demo.templates, device='cpu', **settings)


def test_features_in_every_form(rows, tmp_path):
    x, _ = rows
    expected = fresh().fit(x)
    assert isinstance(expected.predict(x), torch.Tensor) and expected.n_features_in_ == 64
    np.save(tmp_path / 'x.npy', x.numpy())
    forms = dict(
        array=x.numpy(),
        double=x.double().numpy(),
        table=pd.DataFrame(x.numpy()),
        rows=x.tolist(),
        mapped=np.load(tmp_path / 'x.npy', mmap_mode='r'),
    )
    for name, form in forms.items():
        found = fresh().fit(form)
        assert torch.equal(found.labels_, expected.labels_), name
        answers = found.predict(form), found.predict_proba(form), found.transform(form), fresh().fit_predict(form)
        assert all(isinstance(o, np.ndarray) for o in answers) and found.n_features_in_ == 64, name
        assert np.array_equal(answers[0], expected.predict(x).numpy()) and np.array_equal(answers[3], expected.labels_)
    assert fresh().fit_transform(x).shape == x.shape and list(expected.classes_) == list(range(10))
    with pytest.raises(ValueError, match='63 features'):
        fresh().fit(x.numpy()).predict(x.numpy()[:, :63])


def test_score_knows_positions_and_names(rows):
    x, y = rows
    found = fresh().fit(x)
    right = (found.predict(x) == y).float().mean().item()
    assert found.score(x, y) == found.score(x.numpy(), y.numpy()) == right
    assert found.score(x, [demo.class_names[i].upper() for i in y]) == right
    with pytest.raises(ValueError, match="'ten' is no class"):
        found.score(x, ['ten'] * len(y))


def test_pipelines_tables_and_searches(rows):
    x, y = (o.numpy() for o in rows)
    assert np.array_equal(make_pipeline(Normalizer(), fresh()).fit(x).predict(x), fresh().fit(x).predict(x))
    table = fresh().set_output(transform='pandas').fit_transform(pd.DataFrame(x, index=np.arange(len(x)) + 7))
    assert isinstance(table, pd.DataFrame) and table.shape == x.shape and table.columns[0] == 'reclip0'
    pca = make_pipeline(fresh(), FunctionTransformer(lambda o: o[:, :2])).fit_transform(x)
    assert pca.shape == (len(x), 2)
    search = GridSearchCV(fresh(), dict(alpha=[0.5, 0.99], n_neighbors=[5]), cv=2).fit(x, y)
    assert search.best_params_['alpha'] in (0.5, 0.99) and search.predict(x).shape == (len(x),)
    copy = clone(fresh(alpha=0.5))
    assert copy.alpha == 0.5 and copy.get_params()['seed'] == 0


def test_features_after_training_are_refused(digits, rows):
    found = fresh(epochs=1).fit(digits[0][:60])
    with pytest.raises(ValueError, match='moved its image tower'):
        found.predict(rows[0])
    with noting() as notes:
        fresh(epochs=2).fit(rows[0])
    assert notes == ['epochs=2 is not used: features have no images to train on']


class Numbered(Dataset):
    "As torchvision's ImageFolder: pictures with labels beside them"

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return self.images[i], i % 3


class Columns:
    "As a data set of Hugging Face: rows are dicts, columns have names"

    def __init__(self, images, name):
        self.images = images
        self.column_names = ['label', name]

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return {self.column_names[1]: self.images[i], 'label': 1}


def test_pictures_in_every_form(digits, tmp_path):
    images = [o.convert('RGB') for o in digits[0][:12]]
    paths = [str(tmp_path / f'{i}.png') for i in range(12)]
    for image, path in zip(images, paths):
        image.save(path)
    expected = fresh(epochs=0).fit(images)
    series = pd.Series(paths, index=range(5, 17))
    forms = dict(
        paths=paths,
        series=series,
        filtered=series[series.index > 4],
        table=pd.DataFrame(dict(n=1, path=series)),
        pictures=pd.DataFrame(dict(image=images)),
        array=np.stack([np.asarray(o) for o in images]),
        names=np.array(paths),
        folder=Numbered(images),
        columns=Columns(images, 'img'),
    )
    for name, form in forms.items():
        found = fresh(epochs=0).fit(form)
        assert torch.equal(found.labels_, expected.labels_) and torch.equal(found.predict(form), expected.labels_), name
    grey = np.stack([np.asarray(o.convert('L')) for o in images])
    assert torch.equal(fresh(epochs=0).fit(grey).labels_, expected.labels_)


class Stream(IterableDataset):
    def __iter__(self):
        return iter([Image.new('L', (8, 8))])


@pytest.mark.parametrize('images, word', [
    (Stream(), 'with a length'), (pd.DataFrame(dict(a=['x'], b=['y'])), 'columns a, b'), (np.zeros((2, 8, 8)), 'uint8'),
    (Columns(['x'], 'thing'), 'columns label, thing'), ('one.jpg', 'pass a list'),
])  # fmt: skip
def test_pictures_that_cannot_be(images, word):
    with pytest.raises((TypeError, ValueError), match=word):
        ImageDataset(images)


def test_every_parameter_is_explained():
    text = inspect.getdoc(ReCLIP)
    assert all(f'\n{name}' in text or f', {name} :' in text for name in inspect.signature(ReCLIP).parameters)


def test_static_tools_see_the_names():
    text = inspect.getsource(reclip)
    seen = types.ModuleType('seen')
    text = (
        text.replace('if TYPE_CHECKING:', 'if True:')
        .replace('from . ', 'from reclip ')
        .replace('from .', 'from reclip.')
    )
    exec(text, vars(seen))
    assert all(hasattr(seen, name) and getattr(seen, name) is getattr(reclip, name) for name in reclip.__all__)
    assert os.path.isfile(os.path.join(os.path.dirname(reclip.__file__), 'py.typed'))
    code = 'import sys, reclip; assert not {"torch", "sklearn", "pandas"} & set(sys.modules)'
    subprocess.run([sys.executable, '-c', code], check=True)
