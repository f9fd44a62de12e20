"Stage 3 against a literal transcription of the released loop, and what it may and may not touch."

import copy
import pytest
import torch
from torch.utils.data import Dataset, TensorDataset
from reclip import ReCLIP, accuracy, demo, released
from reclip.clip import Clip
from reclip.selftrain import adapt, default_epochs, norm_parameters


@pytest.mark.parametrize('recipe', ['paper', 'official'])
def test_equals_the_released_loop(clip, digits, recipe):
    model, preprocess, tokenizer = clip
    pixels = torch.stack([preprocess(o) for o in digits[0]])
    logits, losses, _ = released.run(Clip(*clip), pixels, demo.class_names, demo.templates[:2], epochs=2, recipe=recipe)
    history, seen = [], []
    for epochs in (0, 1, 2):
        found = adapt(
            Clip(model, None, tokenizer),
            pixels,
            demo.class_names,
            demo.templates[:2],
            epochs=epochs,
            recipe=recipe,
            max_dim=768,
            max_iter=20,
        )
        seen.append(found.logits.mean(0))
        history = found.history
    for ours, theirs in zip(seen, logits):
        assert torch.allclose(ours, theirs, atol=5e-3)  # logits up to 100, float32, two epochs of steps
        assert (ours.argmax(1) == theirs.argmax(1)).all()
    for row, (loss_t, loss_v) in zip(history[1:], losses):
        assert row['loss_t'] == pytest.approx(loss_t, rel=1e-3) and row['loss_v'] == pytest.approx(loss_v, rel=1e-3)


class Labelled(Dataset):
    "Images with labels, as torchvision's datasets give them"

    def __init__(self, images, labels):
        self.images, self.labels = images, labels

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return self.images[i], int(self.labels[i])


def result_of(images, clip, **settings):
    return adapt(Clip(*clip), images, demo.class_names, demo.templates[:2], epochs=1, **settings)


def same(a, b):
    tensors = [o for o in a if isinstance(o, torch.Tensor)], [o for o in b if isinstance(o, torch.Tensor)]
    states = [a.text_state, a.image_state], [b.text_state, b.image_state]
    return all(torch.equal(x, y) for x, y in zip(*tensors)) and all(
        torch.equal(x[k], y[k]) for x, y in zip(*states) for k in x
    )


def test_no_label_can_reach_adaptation(clip, digits):
    images, labels = digits[0][:120], digits[1][:120]
    plain = result_of(images, clip)
    shuffled = labels[torch.randperm(120, generator=torch.Generator().manual_seed(1))]
    assert not torch.equal(shuffled, labels)
    for other in (
        Labelled(images, labels),
        Labelled(images, shuffled),
        Labelled(images, torch.full((120,), -7)),
        [dict(image=o, label=int(l)) for o, l in zip(images, labels)],
    ):
        assert same(plain, result_of(other, clip))
    pixels = torch.stack([clip[1](o) for o in images])
    assert same(plain, result_of(TensorDataset(pixels, labels), clip)) and same(plain, result_of(pixels, clip))


def test_a_scorer_is_read_by_nobody(clip, digits):
    images, labels = digits[0][:120], digits[1][:120]

    def vandal(predicted):
        "Scores, then spoils what it was given"
        score = accuracy(predicted, labels)
        predicted.fill_(3)
        return score

    plain, scored = result_of(images, clip), result_of(images, clip, scorer=vandal)
    assert same(plain, scored)
    assert 'accuracy' not in plain.history[0] and 0 < scored.history[0]['accuracy'] < 1
    for with_scores, without in zip(scored.history, plain.history):
        assert all(with_scores[k] == v for k, v in without.items() if k != 'seconds')


def test_no_public_function_that_adapts_takes_labels():
    import inspect
    from reclip import label_features, neighbor_graph, projection_basis, propagate

    for f in (adapt, ReCLIP.fit, ReCLIP.__init__, label_features, propagate, projection_basis, neighbor_graph):
        named = {'labels', 'y', 'target', 'targets'} & set(inspect.signature(f).parameters)
        assert named == ({'y'} if f is ReCLIP.fit else set())  # scikit-learn passes it; see below


def test_y_is_ignored(clip, digits):
    class Vandal:
        "Must not be looked at"

        def __getattr__(self, name):
            raise AssertionError(name)

        def __bool__(self):
            raise AssertionError

        def __len__(self):
            raise AssertionError

        def __iter__(self):
            raise AssertionError

    made = [ReCLIP.from_model(*clip, demo.class_names, templates=demo.templates[:1], epochs=1) for _ in range(3)]
    plain, spoiled, labelled = (o.fit(digits[0][:60], *y) for o, y in zip(made, ((), (Vandal(),), (digits[1][:60],))))
    for other in (spoiled, labelled):
        assert torch.equal(plain.probability_, other.probability_) and torch.equal(plain.centroids_, other.centroids_)
        assert all(torch.equal(v, other.text_state_[k]) for k, v in plain.text_state_.items())
    x = plain.image_features_
    assert torch.equal(made[0].fit(x).probability_, made[1].fit(x, Vandal()).probability_)


def test_the_model_comes_back_as_it_was(own_clip, digits):
    model, preprocess, tokenizer = own_clip
    model.train()
    model.visual.ln_pre.eval()
    model.ln_final.weight.requires_grad_(False)
    model.ln_final.bias.grad = torch.ones(64)
    values = copy.deepcopy(model.state_dict())
    flags = [p.requires_grad for p in model.parameters()]
    modes = [m.training for m in model.modules()]
    ReCLIP.from_model(model, preprocess, tokenizer, demo.class_names, epochs=1).fit(digits[0][:100])
    assert all(torch.equal(v, values[k]) for k, v in model.state_dict().items())
    assert flags == [p.requires_grad for p in model.parameters()] and modes == [m.training for m in model.modules()]
    assert torch.equal(model.ln_final.bias.grad, torch.ones(64))


def test_it_comes_back_after_an_error(own_clip, digits):
    model, preprocess, tokenizer = own_clip
    values = copy.deepcopy(model.state_dict())
    with pytest.raises(FloatingPointError, match='lower lr_(text|image)'):
        ReCLIP.from_model(model, preprocess, tokenizer, demo.class_names, epochs=2, lr_image=1e30).fit(digits[0][:100])
    assert all(torch.equal(v, values[k]) for k, v in model.state_dict().items())


def test_only_norm_parameters_move(clip, digits):
    found = result_of(digits[0][:100], clip)
    for tower, state in (('text', found.text_state), ('image', found.image_state)):
        start = norm_parameters(clip[0], tower)
        assert set(state) == set(start) and any(not torch.equal(state[k], start[k]) for k in state)


def test_a_seed_gives_the_same_twice_and_another_does_not(clip, digits):
    a, b, c = (result_of(digits[0][:100], clip, seed=s) for s in (3, 3, 4))
    assert same(a, b) and not torch.equal(a.logits, c.logits)


def test_the_global_generator_is_left_alone(clip, digits):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    demo.demo_clip()
    result_of(digits[0][:70], clip)
    assert torch.equal(state, torch.get_rng_state())


def test_epochs_of_the_released_code():
    assert [default_epochs(n) for n in (1, 4_999, 5_000, 1_000_000)] == [2, 2, 3, 100]


def tiny(kind):
    "Other families of open_clip at toy size, with random weights"
    import open_clip

    vision, text = (
        dict(image_size=32, patch_size=8, layers=1, width=64),
        dict(context_length=16, vocab_size=49408, width=32, heads=2, layers=1),
    )
    torch.manual_seed(0)
    if kind == 'resnet':
        return open_clip.CLIP(32, vision | dict(layers=(1, 1, 1, 1), width=8), text)
    if kind == 'own text tower':
        return open_clip.CustomTextCLIP(32, vision, text)
    if kind == 'both ways':
        return open_clip.CustomTextCLIP(32, vision, text | dict(no_causal_mask=True, pool_type='last'))


@pytest.mark.parametrize('kind', ['resnet', 'own text tower', 'both ways'])
def test_other_towers(kind):
    import open_clip
    from reclip.clip import can_cut, encode_text

    model, tokenizer = tiny(kind).eval(), open_clip.SimpleTokenizer(context_length=16)
    tokens = tokenizer(['a cat', 'a photo of a dog.'])
    with torch.no_grad():
        theirs = model.encode_text(tokens, normalize=True)
    assert can_cut(model) == (kind != 'both ways') and torch.allclose(encode_text(model, tokens), theirs, atol=1e-6)
    before = copy.deepcopy(model.state_dict())
    pixels = torch.randn(60, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    found = ReCLIP.from_model(model, None, tokenizer, ['cat', 'dog', 'cow', 'hen'], epochs=1).fit(pixels)
    assert torch.equal(found.predict(pixels), found.labels_)
    assert all(
        torch.equal(v, before[k]) for k, v in model.state_dict().items()
    )  # BatchNorm's running statistics among them
    assert any(not torch.equal(v, before[k]) for k, v in found.image_state_.items()) and any(
        not torch.equal(v, before[k]) for k, v in found.text_state_.items()
    )
    if kind == 'resnet':
        assert any('bn1' in k for k in found.image_state_) and not any('running' in k for k in found.image_state_)
