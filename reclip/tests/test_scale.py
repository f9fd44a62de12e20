"Large and small: approximate neighbours, memory that does not grow as images times classes, training in chunks."

import builtins
import copy
import os
import subprocess
import sys
import warnings
import pytest
import torch
import torch.nn.functional as F
from reclip import ReCLIP, demo, label_features, neighbor_graph
from reclip.approximate import approximate_neighbors
from reclip.clip import Clip, cut_tokens, encode_text, placer
from reclip.graph import affinity_graph, nearest_neighbors
from reclip.pseudolabel import propagate, propagate_labels
from reclip.selftrain import adapt, borrowed, norm_parameters, texts_with_gradients, tuned
from reclip.tests.conftest import blobs
import reclip.blocks
import reclip.graph
import reclip.selftrain


def same_rows(a, b):
    return torch.tensor([len(set(x.tolist()) & set(y.tolist())) / len(x) for x, y in zip(a, b)]).mean().item()


def test_approximate_neighbors_reach_the_recall_and_full_recall_is_exact():
    images, texts, _ = blobs(6000, 30, d=29, spread=1.0, dtype=torch.float32)
    nodes = torch.cat([texts, images])
    exact, cosine = nearest_neighbors(nodes, 15)
    for recall in (0.5, 0.95, 1.0):
        index, found, hit = approximate_neighbors(nodes, 15, recall=recall, sample=2000)
        assert hit >= recall and abs(same_rows(index, exact) - hit) < 0.02
        assert (
            not (index == torch.arange(len(nodes))[:, None]).any() and (found.diff(dim=1) <= 1e-6).all()
        )  # not itself, nearest first
    assert torch.equal(index.sort(1).values, exact.sort(1).values) and torch.allclose(found, cosine, atol=1e-5)


@pytest.mark.parametrize('n,k', [(2, 20), (5, 2), (41, 40), (100, 200)])
def test_approximate_neighbors_of_few(n, k):
    nodes = F.normalize(torch.randn(n, 6, generator=torch.Generator().manual_seed(n)), dim=1)
    index, cosine, hit = approximate_neighbors(nodes, k)
    assert index.shape == (n, min(k, n - 1)) and hit == 1
    assert torch.allclose(cosine, nearest_neighbors(nodes, k)[1], atol=1e-6)


def test_twins_and_cells_with_too_few():
    "Identical rows crowd one cell; a place that stays empty is the node itself at cosine -1, which is no edge"
    g = torch.Generator().manual_seed(0)
    nodes = torch.cat(
        [
            F.normalize(torch.randn(1, 8, generator=g), dim=1).expand(3000, -1),
            F.normalize(torch.randn(400, 8, generator=g), dim=1),
        ]
    )
    index, cosine, _ = approximate_neighbors(nodes, 20, recall=0.01)
    own = index == torch.arange(len(nodes))[:, None]
    assert (cosine[own] == -1).all() and (cosine[~own] > -1).all()
    W = affinity_graph(index, cosine).to_dense()
    assert torch.equal(W, W.T) and (W.diagonal() == 0).all() and W.min() >= 0


def test_which_way_is_taken(monkeypatch):
    seen = []
    monkeypatch.setattr(
        'reclip.approximate.approximate_neighbors',
        lambda nodes, k, **_: seen.append(len(nodes)) or (*nearest_neighbors(nodes, k), 1.0),
    )
    monkeypatch.setattr(reclip.graph, 'EXACT_UP_TO', 100)
    small, large = (blobs(n, 4)[0].float() for n in (100, 101))
    neighbor_graph(small, n_neighbors=5)
    assert not seen
    neighbor_graph(large, n_neighbors=5)
    assert seen == [101]
    neighbor_graph(large, n_neighbors=5, search='exact')
    assert seen == [101]
    neighbor_graph(small, n_neighbors=5, search='approximate')
    assert seen == [101, 100]
    monkeypatch.setattr(reclip.graph, 'find_spec', lambda name: None)
    neighbor_graph(large, n_neighbors=5)
    assert seen == [101, 100]  # without faiss: all pairs
    for call in (
        lambda: neighbor_graph(small, search='fast'),
        lambda: label_features(*blobs(50, 4)[:2], search='fast'),
    ):
        with pytest.raises(ValueError, match="auto, exact, approximate"):
            call()


def test_without_faiss_one_sentence(monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name == 'faiss':
            raise ModuleNotFoundError("No module named 'faiss'", name='faiss')
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, '__import__', missing)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'reclip-torch\[faiss\]'"):
        approximate_neighbors(blobs(50, 4)[0].float())


@pytest.mark.parametrize(
    'settings,says', [(dict(recall=0), 'recall'), (dict(recall=1.1), 'recall'), (dict(n_neighbors=0), 'n_neighbors')]
)
def test_approximate_refuses(settings, says):
    with pytest.raises(ValueError, match=says):
        approximate_neighbors(blobs(50, 4)[0].float(), **settings)
    with pytest.raises(ValueError, match='at least two'):
        approximate_neighbors(torch.ones(1, 3))


def test_half_precision_only_nominates():
    nodes = F.normalize(torch.randn(1500, 40, generator=torch.Generator().manual_seed(0)), dim=1)
    (a, ca), (b, cb) = nearest_neighbors(nodes, 20), nearest_neighbors(nodes, 20, half=True)
    assert same_rows(a, b) > 0.9999 and torch.allclose(ca, cb, atol=1e-6)
    plain = (nodes.half() @ nodes.half().T).float().fill_diagonal_(-1).topk(20).indices
    assert same_rows(a, plain) < same_rows(a, b)  # what ranking in half precision alone would have done


def test_renumbering_and_the_embedding_bag_change_nothing(monkeypatch):
    images, texts, _ = blobs(900, 40, d=24)
    S = neighbor_graph(torch.cat([texts, images]))
    exact = propagate(S, 40, tol=1e-10, max_iter=500)
    monkeypatch.setattr(reclip.blocks, '_renumbered', lambda S, least=1, real=reclip.blocks._renumbered: real(S, least))
    T, number = reclip.blocks._renumbered(S)
    assert not torch.equal(number, torch.arange(940)) and torch.equal(T.to_dense()[number][:, number], S.to_dense())
    assert torch.allclose(propagate(S, 40, tol=1e-10, max_iter=500), exact, atol=1e-9)
    single = neighbor_graph(torch.cat([texts, images]).float())
    assert (
        torch.allclose(propagate(single, 40).double(), exact, atol=1e-4)
        and (propagate(single, 40).argmax(1) == exact.argmax(1)).all()
    )


def test_labels_in_a_stream_are_the_labels_of_all_scores():
    images, texts, _ = blobs(500, 70, d=24)
    found, full = propagate_labels(images, texts, None), label_features(images, texts, projection='none')
    assert torch.equal(found.pseudo_labels, full.pseudo_labels) and torch.allclose(
        found.confidence, full.confidence, atol=1e-5
    )
    positive = full.scores.clamp(min=0)
    assert torch.allclose(found.probability, (positive / positive.sum(1, keepdim=True)).amax(1))


MEMORY = '''
import resource, torch
from reclip.pseudolabel import propagate_labels
from reclip.tests.conftest import blobs

images, texts, _ = blobs({n}, {m}, d=8, dtype=torch.float32)
propagate_labels(
    images, texts[:50], None, max_iter=3
)  # what does not depend on the classes: cosines by blocks, the libraries themselves
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
propagate_labels(images, texts, None, max_iter=3)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
'''


def test_memory_does_not_grow_with_images_times_classes():
    if not sys.platform.startswith('linux'):
        pytest.skip('ru_maxrss has other units elsewhere')
    n, m = 6_000, 3_000
    done = subprocess.run(
        [sys.executable, '-c', MEMORY.format(n=n, m=m)],
        capture_output=True,
        text=True,
        env=os.environ | dict(OMP_NUM_THREADS='1'),
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 30e6 < 4 * n * m / 2  # all scores together would be 72 MB


def test_prompts_are_encoded_once_and_in_company_of_their_length(clip):
    model, _, tokenizer = clip
    prompts = [
        'a seven.',
        'a photo of the number seven, seen from very far away in bad light.',
        'a seven.',
        'an eight.',
        'a seven.',
    ]
    widths, counts = [], []

    def note(module, inputs, output):
        counts.append(output.shape[0])
        widths.append(output.shape[1])

    hook = model.transformer.register_forward_hook(note)
    try:
        rows = encode_text(model, tokenizer(prompts), batch_size=2)
    finally:
        hook.remove()
    assert sum(counts) == 3 and min(widths) < 8 < max(widths) < 77
    with torch.no_grad():
        assert torch.allclose(rows, model.encode_text(tokenizer(prompts), normalize=True), atol=1e-6)


def gradients(model, chunk, tokens, owner, m):
    "Gradients of the text norms, and the bytes that wait for the way back"
    waiting = []

    def note(x):
        waiting.append(x.numel() * x.element_size())
        return x

    with borrowed(model):
        params = [p.requires_grad_() for p in norm_parameters(model, 'text').values()]
        with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
            loss = texts_with_gradients(model, tokens, owner, m, chunk).square().mul(torch.arange(64.0)).sum()
        return torch.autograd.grad(loss, params), sum(waiting)


def test_chunks_of_classes_give_the_same_gradients_in_less_memory(clip):
    model, _, tokenizer = clip
    tokens, owner = (
        cut_tokens(model, tokenizer([f'a photo of the number {i}.' for i in range(60)])),
        torch.arange(60) % 30,
    )
    (whole, much), (parts, little) = (gradients(model, c, tokens, owner, 30) for c in (256, 10))
    assert all(torch.allclose(a, b, atol=1e-5, rtol=1e-4) for a, b in zip(whole, parts))
    assert little < much / 20


def test_only_what_the_norms_need_waits_for_the_way_back(own_clip, digits):
    model, preprocess, _ = own_clip
    x = torch.stack([preprocess(o) for o in digits[0][:16]])

    def waiting():
        seen = {}

        def note(t):
            seen[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            kept = model.encode_image(x)
        del kept
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        return sum(v for k, v in seen.items() if k not in weights)

    everything = waiting()
    model.requires_grad_(False)
    for p in norm_parameters(model, 'image').values():
        p.requires_grad_()
    assert waiting() < 0.8 * everything  # the inputs of the linear layers are not kept


def test_attention_is_fused(own_clip, digits):
    model, preprocess, _ = own_clip
    x = torch.stack([preprocess(o) for o in digits[0][:4]])
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        model.encode_image(x).sum().backward()
    assert any('scaled_dot_product' in e.key for e in seen.key_averages())


def test_gradient_checkpointing_changes_memory_and_nothing_else(clip, digits):
    model, preprocess, tokenizer = clip
    plain, tight = (
        adapt(
            Clip(model, preprocess, tokenizer),
            digits[0][:100],
            demo.class_names,
            demo.templates[:1],
            epochs=1,
            grad_checkpointing=o,
        )
        for o in (False, True)
    )
    assert torch.allclose(plain.logits, tight.logits, atol=1e-3) and not model.visual.transformer.grad_checkpointing
    model = copy.deepcopy(model)
    for m in model.visual.modules():
        if hasattr(m, 'grad_checkpointing'):
            del m.grad_checkpointing
    with pytest.raises(ValueError, match='grad_checkpointing: the image tower VisionTransformer has none'):
        adapt(Clip(model, preprocess, tokenizer), digits[0][:50], demo.class_names, epochs=1, grad_checkpointing=True)


def test_compile_is_switched_on_and_off_again(clip, digits, monkeypatch):
    model, preprocess, tokenizer = clip
    used = []

    def compiler(function, **settings):
        def program(*args):
            used.append(1)
            return function(*args)

        return program

    monkeypatch.setattr(torch, 'compile', compiler)
    plain, compiled = (
        adapt(
            Clip(model, preprocess, tokenizer),
            digits[0][:70],
            demo.class_names,
            demo.templates[:1],
            epochs=1,
            compile=o,
        )
        for o in (False, True)
    )
    assert used and torch.equal(plain.logits, compiled.logits) and model.visual._compiled_call_impl is None
    with pytest.raises(KeyboardInterrupt):
        with tuned(model, True, True):
            raise KeyboardInterrupt
    assert model.visual._compiled_call_impl is None and not model.visual.transformer.grad_checkpointing


def test_convolutions_get_channels_last(clip):
    import open_clip

    torch.manual_seed(0)
    resnet = open_clip.CLIP(
        32,
        dict(image_size=32, layers=(1, 1, 1, 1), width=8),
        dict(context_length=16, vocab_size=100, width=32, heads=2, layers=1),
    ).eval()
    x = torch.randn(4, 3, 32, 32)
    assert (
        placer(resnet, 'cpu')(x).is_contiguous(memory_format=torch.channels_last)
        and placer(clip[0], 'cpu')(x).is_contiguous()
    )
    with torch.no_grad():
        assert torch.allclose(resnet.encode_image(placer(resnet, 'cpu')(x)), resnet.encode_image(x), atol=1e-5)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
def test_on_a_gpu():
    images, texts, _ = blobs(5000, 50, d=49, dtype=torch.float32)
    cpu, gpu = propagate_labels(images, texts, None), propagate_labels(images.cuda(), texts.cuda(), None)
    assert gpu.pseudo_labels.is_cuda and (cpu.pseudo_labels == gpu.pseudo_labels.cpu()).float().mean() >= 0.999
    model, preprocess, tokenizer = demo.demo_clip('cuda')
    pixels = torch.stack([preprocess(o) for o in demo.demo_digits()[0][:256]])

    def waits(batch_size):
        "How often the host waits for the device while an epoch of training runs"

        def counted(*args, real=reclip.selftrain.train_epoch, **more):
            torch.cuda.set_sync_debug_mode('warn')
            try:
                return real(*args, **more)
            finally:
                torch.cuda.set_sync_debug_mode('default')

        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter('always')
            patch.setattr(reclip.selftrain, 'train_epoch', counted)
            adapt(
                Clip(model, None, tokenizer),
                pixels,
                demo.class_names,
                demo.templates[:1],
                epochs=1,
                batch_size=batch_size,
            )
        return sum('synchroniz' in str(w.message) for w in seen)

    assert waits(16) == waits(128)  # eight times the steps, not one wait more
    plain, mixed = (
        ReCLIP.from_model(
            model, None, tokenizer, demo.class_names, templates=demo.templates, epochs=1, precision=o
        ).fit(pixels)
        for o in ('float32', 'bfloat16')
    )
    assert (plain.labels_ == mixed.labels_).float().mean() > 0.97
