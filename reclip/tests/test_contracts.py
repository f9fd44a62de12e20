"Bad input, odd input, small input: the right result or a clear error."

import pickle
import warnings
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from reclip import (
    ReCLIP,
    demo,
    encode_images,
    label_features,
    load_clip,
    neighbor_graph,
    project,
    projection_basis,
    propagate,
    text_classifier,
    zero_shot_logits,
)
from reclip.clip import Clip, unit_rows
from reclip.encode import Encoding
from reclip.pictures import ImageDataset
from reclip.pseudolabel import scores_to_confidence, scores_to_labels
from reclip.tests.conftest import blobs
from reclip.zeroshot import check_class_names, check_templates, same_text
import reclip.adapt
import reclip.approximate


# --- class names and templates


@pytest.mark.parametrize(
    'names,says',
    [
        (['cat'], 'two or more'),
        ([], 'two or more'),
        ('cat', 'list of names'),
        (['cat', 'cat'], 'stands already at'),
        (['cat', ' Cat '], 'stands already at'),
        (['cat', ''], 'non-empty'),
        (['cat', []], 'at least one name'),
        (['cat', None], 'list|non-empty|iterable'),
        (['cat', ['dog', 'cat']], 'stands already'),
    ],
)
def test_bad_class_names(names, says):
    with pytest.raises((ValueError, TypeError), match=says):
        check_class_names(names)


@pytest.mark.parametrize(
    'templates,says',
    [
        (['a photo.'], 'exactly one {}'),
        ([], 'at least one'),
        (['{} and {}'], 'exactly one {}'),
        ([3], 'exactly one {}'),
    ],
)
def test_bad_templates(templates, says):
    with pytest.raises(ValueError, match=says):
        check_templates(templates)


def test_one_class_is_refused_everywhere(clip, digits, features):
    model, preprocess, tokenizer = clip
    with pytest.raises(ValueError, match='two or more'):
        ReCLIP.from_model(model, preprocess, tokenizer, ['digit']).fit(digits[0])
    with pytest.raises(ValueError, match='two or more'):
        label_features(features[0], features[1][:1])


def test_aliases_are_averaged(clip):
    model, _, tokenizer = clip
    both = text_classifier(Clip(*clip), [['one', 'number 1'], 'two'], ['a {}.'])
    one, other, two = text_classifier(Clip(*clip), ['one', 'number 1', 'two'], ['a {}.'])
    assert torch.allclose(both[0], torch.nn.functional.normalize(one + other, dim=0), atol=1e-6) and torch.allclose(
        both[1], two, atol=1e-6
    )


def test_aliases_can_be_trained_with(clip, digits):
    model, preprocess, tokenizer = clip
    names = [['zero', 'number 0'], *demo.class_names[1:]]
    found = ReCLIP.from_model(model, preprocess, tokenizer, names, epochs=1).fit(digits[0][:80])
    assert found.labels_.shape == (80,)


# --- features


@pytest.mark.parametrize(
    'bad,says', [(float('nan'), 'NaN or infinity, first in row 7'), (float('inf'), 'NaN or infinity, first in row 7')]
)
def test_not_finite(features, bad, says):
    x = features[0].clone()
    x[7, 3] = bad
    with pytest.raises(ValueError, match=f'image_features.*{says}'):
        label_features(x, features[1])
    with pytest.raises(ValueError, match='text_features'):
        label_features(features[0], x[:10])


@pytest.mark.parametrize('shape,says', [((0, 64), 'non-empty'), ((5,), 'matrix'), ((5, 4, 3), 'matrix')])
def test_wrong_shapes(features, shape, says):
    with pytest.raises(ValueError, match=says):
        label_features(torch.ones(shape), features[1])


def test_wrong_width_and_type(features):
    for f in (label_features, zero_shot_logits):
        with pytest.raises(ValueError, match='64 wide and text_features 32'):
            f(features[0], features[1][:, :32])
    with pytest.raises(ValueError, match='the basis is for 64'):
        project(features[0][:, :32], projection_basis(features[1]))
    with pytest.raises(ValueError, match='floating point'):
        label_features(torch.ones(5, 64, dtype=torch.int64), features[1])
    with pytest.raises(ValueError, match='row 2 is all zeros'):
        unit_rows(torch.tensor([[1.0, 0], [0, 1], [0, 0]]))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_float_types(features, dtype):
    images, texts = features
    found, single = (
        label_features(images.to(dtype), texts.to(dtype)),
        label_features(images.to(dtype).float(), texts.to(dtype).float()),
    )
    assert found.scores.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert (found.pseudo_labels == single.pseudo_labels).float().mean() >= 0.999


def test_numpy_and_long_rows(features):
    images, texts = features
    expected = label_features(images, texts)
    found = label_features((3 * images).numpy(), (0.2 * texts).numpy())  # lengths do not matter
    assert (found.pseudo_labels == expected.pseudo_labels).float().mean() >= 0.999


@pytest.mark.parametrize('n', [1, 2, 5, 19])
@pytest.mark.parametrize('projection', ['none', 'P1', 'P2'])
def test_fewer_images_than_neighbours(features, n, projection):
    found = label_features(features[0][:n], features[1], projection=projection, n_neighbors=20)
    assert found.pseudo_labels.shape == (n,) and torch.isfinite(found.scores).all() and (found.pseudo_labels >= 0).all()


def test_one_image_near_one_class():
    texts = torch.eye(4)
    found = label_features(torch.tensor([[0.1, 0.9, 0.1, 0.05]]), texts, projection='none')
    assert found.pseudo_labels.tolist() == [1]


def test_identical_images(features):
    images, texts = features
    found = label_features(images[:1].expand(50, -1), texts)
    assert torch.isfinite(found.scores).all() and ((0 <= found.confidence) & (found.confidence <= 1)).all()
    twins = label_features(torch.cat([images, images]), texts, projection='none')
    assert torch.isfinite(twins.scores).all() and (twins.pseudo_labels >= 0).all()


def test_a_class_nobody_chooses():
    images, texts, owner = blobs(300, 5, d=32, spread=0.3, dtype=torch.float32)
    lonely = torch.nn.functional.normalize(-images.mean(0), dim=0)
    found = label_features(images, torch.cat([texts, lonely[None]]), projection='none')
    assert (
        (found.pseudo_labels == 5).sum() == 0
        and (found.pseudo_labels == owner).float().mean() > 0.95
        and torch.isfinite(found.scores).all()
    )


def test_unreached_images_have_no_label():
    S = torch.zeros(5, 5)
    S[0, 2] = S[2, 0] = S[1, 3] = S[3, 1] = 0.5  # node 4, an image, has no edge
    scores = propagate(S.to_sparse_csr(), 2)
    assert scores_to_labels(scores).tolist() == [0, 1, -1] and scores_to_confidence(scores)[2] == 0


def test_confidence_survives_tiny_negatives():
    c = scores_to_confidence(torch.tensor([[1.0, -1e-8, 0.0], [-1e-9, -1e-9, -1e-9], [1.0, 1.0, 1.0]]))
    assert c[0] == 1 and c[1] == 0 and abs(c[2]) < 1e-6


@pytest.mark.parametrize(
    'settings,says',
    [
        (dict(alpha=0.0), 'between 0 and 1'),
        (dict(alpha=1.0), 'between 0 and 1'),
        (dict(n_neighbors=0), 'from 1 up'),
        (dict(max_iter=0), 'from 1 up'),
        (dict(projection='p2'), 'expected one of none, center, P1, P2'),
        (dict(max_dim=0), 'from 1 up'),
        (dict(max_dim=1), 'leaves no direction'),
    ],
)
def test_bad_settings(features, settings, says):
    with pytest.raises(ValueError, match=says):
        label_features(*features, **settings)


def test_repeated_class_texts_add_no_direction():
    t = torch.randn(6, 16, generator=torch.Generator().manual_seed(0))
    assert projection_basis(torch.cat([t, t[:3]]), 'P1').shape == (16, 6)
    with pytest.raises(ValueError, match='leaves no direction'):
        projection_basis(t[:1].expand(4, -1), 'P2')


def test_two_classes_with_P2_warn():
    with pytest.warns(UserWarning, match='one direction'):
        projection_basis(torch.randn(2, 16), 'P2')


def test_a_graph_needs_two_nodes():
    with pytest.raises(ValueError, match='at least two'):
        neighbor_graph(torch.ones(1, 3))


# --- images


@pytest.mark.parametrize(
    'images,error,says',
    [
        ([], ValueError, 'empty set'),
        ('cat.jpg', TypeError, 'pass a list'),
        (torch.zeros(3, 32, 32), ValueError, r'\(N, 3, H, W\)'),
        (torch.zeros(2, 3, 32, 32, dtype=torch.uint8), ValueError, 'floating point'),
        (iter([1]), TypeError, 'a length'),
    ],
)
def test_bad_images(clip, images, error, says):
    with pytest.raises(error, match=says):
        encode_images(clip[0], images, clip[1])


def test_images_of_every_kind(clip, digits, tmp_path):
    model, preprocess, _ = clip
    few = digits[0][:5]
    expected = encode_images(model, few, preprocess)
    paths = [tmp_path / f'{i}.png' for i in range(5)]
    for p, image in zip(paths, few):
        image.save(p)
    pixels = torch.stack([preprocess(o) for o in few])
    for images in (
        paths,
        [str(p) for p in paths],
        pixels,
        [p for p in pixels],
        list(zip(few, range(5))),
        [dict(image=o) for o in few],
        torch.utils.data.TensorDataset(pixels),
        tuple(few),
    ):
        assert torch.equal(encode_images(model, images, preprocess), expected)
    with pytest.raises(ValueError, match='preprocess'):
        encode_images(model, few)
    with pytest.raises(TypeError, match=r'images\[0\]'):
        ImageDataset([3.5], preprocess)[0]


@pytest.mark.parametrize('mode', ['1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'CMYK', 'I;16'])
def test_image_modes(clip, tmp_path, mode):
    image = Image.fromarray((np.arange(1024).reshape(32, 32) % 251).astype(np.uint16 if mode == 'I;16' else np.uint8))
    image = image if mode == 'I;16' else image.convert(mode)
    image.save(path := tmp_path / ('a.tif' if mode in ('CMYK', 'I;16') else 'a.png'))
    assert encode_images(clip[0], [path], clip[1]).shape == (1, 64)


def test_batches_do_not_matter(clip, digits):
    model, preprocess, _ = clip
    whole = encode_images(model, digits[0][:50], preprocess)
    for size in (1, 7, 50):
        assert torch.allclose(encode_images(model, digits[0][:50], preprocess, batch_size=size), whole, atol=1e-5)
    seven = encode_images(model, digits[0][:50], preprocess, batch_size=7)
    assert torch.equal(encode_images(model, digits[0][:50], preprocess, Encoding(batch_size=7)), seven)
    assert torch.equal(encode_images(model, digits[0][:50], preprocess, Encoding(batch_size=50), batch_size=7), seven)
    with pytest.raises(TypeError, match='batchsize'):
        encode_images(model, digits[0][:50], preprocess, batchsize=7)


# --- loading


def test_unknown_models_are_answered_with_near_ones():
    with pytest.raises(ValueError, match='ViT-B-32'):
        load_clip('ViT-B32')
    with pytest.raises(ValueError, match='openai'):
        load_clip('ViT-B-32', 'open_ai')
    with pytest.raises(ValueError, match='random weights'):
        load_clip('ViT-B-32', None)


def test_a_local_checkpoint_goes_through_open_clips_loader(tmp_path):
    import open_clip

    model = open_clip.create_model('ViT-S-32-alt')  # random weights, the real architecture
    torch.save(model.state_dict(), tmp_path / 'weights.pt')
    loaded, preprocess, tokenizer = load_clip('ViT-S-32-alt', str(tmp_path / 'weights.pt'), device='cpu')
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in model.state_dict().items()) and not loaded.training
    assert preprocess(Image.new('L', (50, 40))).shape == (3, 224, 224) and tokenizer(['a cat']).shape == (1, 77)


# --- the estimator


def test_small_sets_can_be_fitted(clip, digits):
    model, preprocess, tokenizer = clip
    for n in (1, 3, 15):
        found = ReCLIP.from_model(model, preprocess, tokenizer, demo.class_names, epochs=1).fit(digits[0][:n])
        assert found.labels_.shape == (n,) and torch.equal(found.predict(digits[0][:n]), found.labels_)


def test_identical_images_and_two_classes_can_be_fitted(clip, digits):
    model, preprocess, tokenizer = clip
    twins = ReCLIP.from_model(model, preprocess, tokenizer, demo.class_names, epochs=1).fit(digits[0][:1] * 40)
    assert len(set(twins.labels_.tolist())) == 1
    with pytest.warns(UserWarning, match='one direction'):
        two = ReCLIP.from_model(model, preprocess, tokenizer, ['zero', 'one'], epochs=1, recipe='paper').fit(
            digits[0][:60]
        )
    assert set(two.labels_.tolist()) <= {0, 1}


def test_one_template_may_be_a_plain_string(clip, digits):
    one, listed = (
        ReCLIP.from_model(*clip, demo.class_names, templates=t, epochs=1).fit(digits[0][:60])
        for t in ('a picture of a {}.', ['a picture of a {}.'])
    )
    assert torch.equal(one.predict_proba(digits[0][:60]), listed.predict_proba(digits[0][:60]))


def test_bad_estimator_settings(clip, digits):
    model, preprocess, tokenizer = clip

    def fit(**settings):
        ReCLIP.from_model(model, preprocess, tokenizer, **dict(class_names=demo.class_names) | settings).fit(
            digits[0][:40]
        )

    for settings, says in [
        (dict(class_names=None), 'class_names'),
        (dict(recipe='mine'), 'paper, official'),
        (dict(epochs=-1), 'from 0 to 10,000'),
        (dict(templates=['digit']), 'exactly one {}'),
        (dict(alpha=2), 'between 0 and 1'),
        (dict(batch_size=0), 'batch_size'),
        (dict(projection='P3'), 'none, center, P1, P2'),
    ]:
        with pytest.raises(ValueError, match=says):
            fit(**settings)
    with pytest.raises(ValueError, match='tokenizer'):
        ReCLIP(model, class_names=demo.class_names).fit(digits[0])
    for call in ('predict', 'predict_proba', 'transform'):
        with pytest.raises(NotFittedError, match='call fit'):
            getattr(ReCLIP('demo', class_names=demo.class_names), call)(digits[0])


def test_clone_and_params(clip):
    made = ReCLIP('demo', class_names=demo.class_names, alpha=0.9, seed=7)
    copy = clone(made)
    assert copy is not made and copy.get_params() == made.get_params()
    assert copy.set_params(alpha=0.5).alpha == 0.5 and made.alpha == 0.9
    around = clone(ReCLIP.from_model(*clip, demo.class_names))
    assert around.model is not clip[0] and all(
        torch.equal(a, b) for a, b in zip(around.model.state_dict().values(), clip[0].state_dict().values())
    )


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
def test_on_a_gpu(digits):
    cpu, gpu = (
        ReCLIP('demo', class_names=demo.class_names, templates=demo.templates, device=d, epochs=1).fit(digits[0])
        for d in ('cpu', 'cuda')
    )
    assert (cpu.labels_ == gpu.labels_).float().mean() > 0.98


class Bar:
    "Stands in for tqdm: remembers what is shown"

    seen = []

    def __init__(self, items=None, desc='', total=None, disable=False, **settings):
        self.items = items
        self.desc = desc
        self.total = len(items) if items is not None else total
        self.n = 0
        self.shown = not disable
        Bar.seen.append(self)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def __iter__(self):
        for o in self.items:
            yield o
            self.n += 1

    def update(self, n=1):
        self.n += n


@pytest.mark.parametrize(
    'shown, first, search',
    [(True, True, 'exact'), (False, True, 'exact'), (True, False, 'exact'), (True, True, 'approximate')],
)
def test_each_long_stage_has_a_bar(shown, first, search, clip, features, monkeypatch):
    if search == 'approximate':
        pytest.importorskip('faiss')
    monkeypatch.setattr(Bar, 'seen', [])
    for module in ('encode', 'texts', 'graph', 'blocks', 'approximate', 'mixture'):
        monkeypatch.setattr(f'reclip.{module}.tqdm', Bar)
    for module in ('texts', 'adapt'):
        monkeypatch.setattr(f'reclip.{module}.is_first', lambda: first)
    for recipe, last, total in (('paper', 'spread labels', 100), ('auto', 'fit mixture', 10)):
        Bar.seen.clear()
        how = dict(templates=demo.templates, verbose=shown, search=search, recipe=recipe)
        ReCLIP.from_model(*clip[:3], demo.class_names, **how).fit_features(features[0])
        stages = ('encode prompts', 'find neighbours', last)
        assert [(o.desc, o.shown) for o in Bar.seen] == [(o, shown and first) for o in stages]
        assert all(o.n == o.total for o in Bar.seen) and Bar.seen[0].total == 50 and Bar.seen[2].total == total


def test_prompts_are_encoded_once(own_clip, features, monkeypatch):
    calls, real = [], reclip.adapt.text_classifier
    monkeypatch.setattr('reclip.adapt.text_classifier', lambda *args, **more: calls.append(args) or real(*args, **more))
    monkeypatch.setattr('reclip.prompts.encode_text', lambda *args: pytest.fail('the prompts were known'))
    found = ReCLIP.from_model(*own_clip, demo.class_names, epochs=0)
    first = found.zero_shot_texts()
    first.zero_()  # what a caller does to it stays with the caller
    found.fit_features(features[0]).fit([demo.demo_digits()[0][0]] * 30)
    assert len(calls) == 1 and torch.allclose(found.zero_shot_texts().norm(dim=1), torch.ones(10))
    for change in (
        dict(class_names=demo.class_names[::-1]),
        dict(templates=['a {}.']),
        dict(descriptions=[['a round stroke.']] + [[]] * 9),
    ):
        n = len(calls)
        before = found.zero_shot_texts()
        assert (
            len(calls) == n
            and not torch.allclose(found.set_params(**change).zero_shot_texts(), before)
            and len(calls) == n + 1
        )
    before = found.zero_shot_texts()
    with torch.no_grad():
        own_clip[0].ln_final.bias.add_(1)
    assert not torch.allclose(found.zero_shot_texts(), before)
    assert not hasattr(
        pickle.loads(pickle.dumps(found.set_params(model='demo', tokenizer=None, preprocess=None))), '_texts'
    )


def test_classes_that_look_alike_are_a_warning(clip, features):
    for fit in (
        lambda o: o.fit_features(features[0][:30], propagate=False),
        lambda o: o.fit([demo.demo_digits()[0][0]] * 30),
    ):
        with pytest.warns(UserWarning, match="cannot tell 'dog' from 'horse'"):
            fit(ReCLIP.from_model(*clip, ['zero', ['dog', 'hound'], 'horse', 'one'], epochs=0))
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            fit(ReCLIP.from_model(*clip, ['zero', 'one', 'two'], epochs=0))


@pytest.mark.parametrize('at', [(0, 1), (3, 1500), (1023, 1024), (2047, 2048)])
def test_same_text_at_any_place(at):
    t = F.normalize(torch.randn(2049, 32, generator=torch.Generator().manual_seed(0)), dim=1)
    assert same_text(t) is None
    t[at[1]] = F.normalize(t[at[0]] + 1e-7, dim=0)
    assert sorted(same_text(t)) == list(at)
    t[at[1]] = F.normalize(t[at[0]] + 1e-4, dim=0)
    assert same_text(t) is None
