"""The mixture, the labeller around it, and what the default recipe answers"""

import inspect
import math

import pytest
import torch
import torch.nn.functional as F

from reclip import demo, labeller, mixture
from reclip.adapt import ReCLIP
from reclip.labeller import classes_in_use, fullness, image_side, label_images, matching_scale, mixture_shares
from reclip.mixture import Model, Near, fit_mixture, near_weights, smooth
from reclip.notes import noting
from reclip.projection import center
from reclip.pseudolabel import label_features
from reclip.settings import using
from reclip.zeroshot import accuracy, text_classifier


def random_case(n=90, m=7, d=12, seed=0):
    "Clouds around words that lie beside them"
    g = torch.Generator().manual_seed(seed)
    t = F.normalize(torch.randn(m, d, generator=g), dim=1)
    labels = torch.arange(n) % m
    x = F.normalize(t[labels] + 0.4 * torch.randn(n, d, generator=g) + 0.3 * torch.randn(d, generator=g), dim=1)
    near = (x @ x.T).fill_diagonal_(-1).topk(5)
    return x, t, near_weights(near.indices, near.values)


def dense(model):
    "The two formulas in float64, with everything in memory"
    x, t = model.x.double(), model.anchors.double()
    near = model.near
    log_prior = model.prior(slice(None)).double()
    w = torch.zeros(len(x), len(x), dtype=x.dtype).scatter_(1, near.index, near.weight.double())
    r = log_prior.softmax(1)
    for _ in range(model.rounds):
        mass = r.sum(0)
        beta = (mass / (mass + model.anchor))[:, None]
        mu = F.normalize(beta * (r.T @ x) / mass[:, None] + (1 - beta) * t, dim=1)
        apart = (x[:, None] - mu) ** 2
        var = (r[:, :, None] * apart).sum((0, 1))
        var = (var + model.anchor * var.mean() / len(x)) / (len(x) + model.anchor)
        own = log_prior - model.temper / 2 * (apart / var).sum(2)
        for _ in range(model.sweeps):
            r = (own + model.pull * w @ r).softmax(1)
    return r


def shares_of(shares, m):
    return torch.zeros(len(shares.share), m).scatter_(1, shares.classes, shares.share)


@pytest.mark.parametrize('anchor, temper, pull', [(3.0, 1.0, 2.0), (20.0, 0.2, 6.0), (0.5, 2.0, 0.0)])
def test_the_streamed_mixture_is_the_naive_one(anchor, temper, pull, monkeypatch):
    x, t, near = random_case()
    monkeypatch.setattr(mixture, 'BLOCK', 32)  # several blocks, the last one smaller
    model = Model(x, ((9 * x, t),), t, near, anchor, temper, pull)
    found, _ = fit_mixture(model)
    wanted = dense(model)
    assert (shares_of(found, 7) - wanted).abs().max() < 2e-4
    assert torch.allclose(found.share.sum(1), torch.ones(90), atol=1e-5)


def test_what_is_left_out_of_many_classes_hardly_counts(monkeypatch):
    x, t, near = random_case(n=240, m=30, d=40, seed=1)
    model = Model(x, ((20 * x, t),), t, near, 2.0, 1.0, 2.0)
    whole, _ = fit_mixture(model)
    monkeypatch.setattr(mixture, 'KEPT', 8)
    some, _ = fit_mixture(model)
    assert some.share.shape == (240, 8)
    same = shares_of(whole, 30).argmax(1) == shares_of(some, 30).argmax(1)
    assert same.float().mean() > 0.98


def test_order_of_images_and_classes_does_not_matter():
    x, t, _ = random_case(n=120, m=6, d=16, seed=2)
    found = shares_of(mixture_shares(x, t, logit_scale=20.0), 6)
    g = torch.Generator().manual_seed(0)
    rows, classes = torch.randperm(120, generator=g), torch.randperm(6, generator=g)
    other = shares_of(mixture_shares(x[rows], t[classes], logit_scale=20.0), 6)
    assert (found[rows][:, classes] - other).abs().max() < 1e-3


def test_the_same_input_gives_the_same_answer():
    x, t, _ = random_case()
    one, two = (mixture_shares(x, t, logit_scale=20.0) for _ in range(2))
    assert torch.equal(one.share, two.share) and torch.equal(one.classes, two.classes)


def test_smoothing_features_is_smoothing_logits():
    x, t, near = random_case()
    assert torch.allclose(smooth(near, x, 3) @ t.T, smooth(near, x @ t.T, 3), atol=1e-5)
    assert torch.equal(smooth(near, x, 0), x)


def test_negative_cosines_do_not_count():
    near = near_weights(torch.tensor([[1, 2]]), torch.tensor([[-0.5, -0.1]]))
    assert isinstance(near, Near) and near.weight.tolist() == [[0, 0]]


def test_classes_in_use_and_what_follows():
    eye = torch.eye(8)
    assert classes_in_use(eye, eye) == pytest.approx(1)
    assert classes_in_use(eye[:2].repeat(5, 1), eye) == pytest.approx(2 / 8)
    assert [fullness(o) for o in (0.1, 0.5, 0.675, 0.85, 1)] == pytest.approx([0, 0, 0.5, 1, 1])


def test_few_classes_are_told_from_all():
    g = torch.Generator().manual_seed(0)
    t = F.normalize(torch.randn(40, 64, generator=g), dim=1)

    def in_use(labels):
        x = center(F.normalize(t[labels] + 0.1 * torch.randn(len(labels), 64, generator=g), dim=1))
        return classes_in_use(x, center(t))

    assert in_use(torch.arange(400) % 40) > 0.85 > 0.5 > in_use(torch.arange(400) % 3)


def test_a_direction_without_images_leaves_the_anchors():
    x = torch.cat([torch.eye(3)[:2], -torch.eye(3)[:2]])
    seen, dimension = image_side(x, F.normalize(torch.ones(1, 3), dim=1))
    assert torch.allclose(seen, F.normalize(torch.tensor([[1.0, 1.0, 0.0]]), dim=1), atol=1e-6)
    assert dimension == pytest.approx(2)


@pytest.mark.parametrize('target', [0.15, 0.5, 0.97])
def test_the_temperature_gives_the_mean_that_is_wanted(target):
    score = 40 * torch.randn(300, 10, generator=torch.Generator().manual_seed(0))
    assert (matching_scale(score, target) * score).softmax(1).amax(1).mean().item() == pytest.approx(target, abs=1e-4)


def test_probabilities_are_what_the_texts_expect_of_the_labels():
    x, t, _ = random_case(n=200, m=5, d=16, seed=3)
    found = label_images(x, t, logit_scale=20.0)
    told = (20 * center(x) @ center(t).T).softmax(1)
    expected = told.gather(1, found.pseudo_labels[:, None]).mean()
    assert found.probability.mean().item() == pytest.approx(max(expected.item(), 1 / 5), abs=1e-3)
    assert torch.equal(found.confidence, found.probability)


@pytest.mark.parametrize('n', [1, 2, 3])
def test_hardly_any_images(n):
    x, t, _ = random_case()
    found = label_images(x[:n], t, logit_scale=20.0)
    assert found.pseudo_labels.shape == (n,) and found.probability.isfinite().all()


def test_images_that_are_all_the_same():
    x, t, _ = random_case()
    found = label_images(x[:1].expand(30, -1).contiguous(), t, logit_scale=20.0)
    assert len(found.pseudo_labels.unique()) == 1 and found.probability.isfinite().all()


def test_another_encoder_says_who_is_whose_neighbour():
    x, t, _ = random_case(n=140, m=7, d=12, seed=4)
    labels = torch.arange(140) % 7
    other = F.normalize(F.one_hot(labels, 7).float() + 0.01, dim=1)  # an encoder that sees the classes
    own = label_images(x, t, logit_scale=5.0)
    helped = label_images(x, t, logit_scale=5.0, graph_features=other)
    same = [(o.pseudo_labels.view(20, 7) == o.pseudo_labels.view(20, 7)[:1]).float().mean() for o in (own, helped)]
    assert same[1] > same[0] + 0.1
    with pytest.raises(ValueError, match="labeller='mixture'"):
        label_images(x, t, using(labeller='propagation'), logit_scale=5.0, graph_features=other)


def test_settings_of_the_other_labeller_are_said_to_be_idle():
    x, t, _ = random_case()
    with noting() as said:
        label_images(x, t, using(alpha=0.5, projection='P1'), logit_scale=20.0)
    assert [o for o in said if 'not used: projection, alpha' in o and "labeller='propagation'" in o]
    with noting() as said:
        label_images(x, t, logit_scale=20.0)
    assert list(said) == []


def test_recipes_choose_the_labeller_and_a_word_overrules_them():
    assert [using(recipe=o).labels_by() for o in ('auto', 'paper', 'official')] == ['mixture'] + 2 * ['propagation']
    assert using(labeller='propagation').labels_by() == 'propagation'
    assert using(recipe='paper', labeller='mixture').labels_by() == 'mixture'
    assert using().rates() == dict(text=3e-4, image=3e-4) and using(recipe='paper', lr_text=0.1).rates()['text'] == 0.1
    assert (
        using().scale(26.0) == 26
        and using(recipe='paper').scale(26.0) == 100
        and using(logit_scale=7.0).scale(26.0) == 7
    )


def test_labels_are_no_argument_of_a_labeller():
    for module in (mixture, labeller):
        for name, o in inspect.getmembers(module, inspect.isfunction):
            if o.__module__ == module.__name__:
                assert not {'labels', 'y', 'truth'} & {*inspect.signature(o).parameters}, name


def test_centring_takes_the_mean_of_its_kind():
    x, t, _ = random_case()
    found = center(x)
    assert torch.allclose(found, F.normalize(x - x.mean(0), dim=1), atol=1e-6)
    gap = torch.ones(12) / math.sqrt(12)
    apart = F.normalize(x + gap, dim=1)
    assert (apart @ t.T).mean() != pytest.approx((x @ t.T).mean().item(), abs=0.01)
    kept = [(center(o) @ center(t).T).argmax(1) for o in (x, apart)]
    assert (kept[0] == kept[1]).float().mean() > 0.9 > ((apart @ t.T).argmax(1) == kept[0]).float().mean()


@pytest.fixture(scope='module')
def digits():
    images, labels = demo.demo_digits()
    return images[:600], torch.as_tensor(labels[:600])


@pytest.fixture(scope='module')
def fitted(digits):
    return ReCLIP('demo', class_names=demo.class_names, templates=demo.templates, device='cpu').fit(digits[0])


def test_the_default_ends_above_zero_shot_and_above_the_paper(fitted, digits):
    paper = ReCLIP('demo', class_names=demo.class_names, templates=demo.templates, device='cpu', recipe='paper')
    paper.fit(digits[0])
    before, first, last = (
        accuracy(o, digits[1]) for o in (fitted.zero_shot_labels_, fitted.first_pseudo_labels_, fitted.labels_)
    )
    assert min(first, last) > before + 0.05 and abs(last - first) < 0.03  # on 600 images training may cost a point
    assert last > accuracy(paper.labels_, digits[1])


def test_the_image_student_answers_and_fit_and_predict_agree(fitted, digits):
    assert torch.equal(fitted.labels_, fitted.v_labels_)
    p = fitted.predict_proba(digits[0])
    assert torch.equal(p.argmax(1), fitted.labels_)
    assert torch.allclose(p.amax(1), fitted.probability_, atol=1e-4)
    assert torch.equal(fitted.confidence_, fitted.probability_)


def test_certainty_is_near_the_share_of_right_answers(fitted, digits):
    right = accuracy(fitted.labels_, digits[1])
    assert abs(fitted.probability_.mean().item() - right) < 0.1  # one scale of 100 for all says .97 or .08


def test_the_scale_of_the_answers_is_saved(fitted, digits, tmp_path):
    fitted.save(tmp_path / 'saved')
    back = ReCLIP.load(tmp_path / 'saved')
    assert back.logit_scale_ == fitted.logit_scale_
    assert torch.equal(back.predict_proba(digits[0][:50]), fitted.predict_proba(digits[0][:50]))


def test_without_an_epoch_the_labels_still_count(digits):
    none = ReCLIP('demo', class_names=demo.class_names, templates=demo.templates, device='cpu', epochs=0)
    none.fit(digits[0])
    assert accuracy(none.labels_, digits[1]) > accuracy(none.zero_shot_labels_, digits[1]) + 0.05


def test_training_free_with_the_paper_is_label_features(digits):
    clip = ReCLIP('demo', class_names=demo.class_names, device='cpu').loaded()
    x = clip.images(digits[0][:200])
    t = text_classifier(clip, demo.class_names)
    paper = ReCLIP('demo', class_names=demo.class_names, device='cpu', recipe='paper').fit_features(x)
    assert torch.equal(paper.labels_, label_features(x, t).pseudo_labels)
