"Each stage against an independent solution, written from the formulas or taken from a well-known library."

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from scipy.sparse.linalg import cg
from sklearn.semi_supervised import LabelSpreading
from reclip import demo, label_features, neighbor_graph, projection_basis, propagate, project, text_classifier
from reclip.clip import Clip, encode_text
from reclip.graph import affinity_graph, nearest_neighbors
from reclip.pseudolabel import scores_to_labels
from reclip.tests.conftest import blobs


def dense_S(v, k):
    "Paper, section 3.2, with n x n matrices"
    A = (v @ v.T + 1) / 2
    A.fill_diagonal_(0)
    top = A.topk(k, dim=1)
    A = torch.zeros_like(A).scatter_(1, top.indices, top.values)
    W = (A + A.T) / 2
    return torch.diag(W.sum(1) ** -0.5) @ W @ torch.diag(W.sum(1) ** -0.5)


def dense_scores(S, m, alpha=0.99):
    "The closed form, image rows"
    n = len(S)
    return torch.linalg.solve(torch.eye(n, dtype=S.dtype) - alpha * S, torch.eye(n, m, dtype=S.dtype))[m:]


@pytest.mark.parametrize('n,d,k', [(30, 4, 5), (200, 9, 20), (700, 32, 20)])
@pytest.mark.parametrize('block', [None, 1, 37])
def test_graph_is_the_dense_graph(n, d, k, block):
    v = F.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(n), dtype=torch.float64), dim=1)
    S = neighbor_graph(v, n_neighbors=k, block_size=block)
    assert torch.allclose(S.to_dense(), dense_S(v, k), atol=1e-12)
    assert torch.allclose(S.to_dense(), S.to_dense().T, atol=0)
    eigenvalues = torch.linalg.eigvalsh(S.to_dense())
    assert eigenvalues.min() >= -1 - 1e-12 and abs(eigenvalues.max() - 1) < 1e-9


SIZES = pytest.mark.parametrize('n,m', [(300, 3), (1000, 10), (1000, 50), (2500, 100)])


# spread .3: tight clusters, the hardest case for conjugate gradients, because each cluster adds an eigenvalue near 1;
# spread 2: hardly any clusters
@SIZES
@pytest.mark.parametrize('seed', [0, 1])
@pytest.mark.parametrize('spread', [0.3, 0.5, 2.0])
def test_propagate_is_the_dense_solve(n, m, seed, spread):
    images, texts, _ = blobs(n, m, d=32, seed=seed, spread=spread)
    S = neighbor_graph(torch.cat([texts, images]), n_neighbors=20)
    exact = dense_scores(S.to_dense(), m)
    converged = propagate(S, m, max_iter=2000, tol=1e-12)
    assert (converged - exact).abs().max() < 1e-6
    twenty = propagate(S, m, max_iter=20)
    if spread == 2.0:
        assert (
            twenty - exact
        ).abs().max() < 1e-4  # with tight clusters 20 iterations leave up to 1e-2, and the same labels
    assert (twenty.argmax(1) == exact.argmax(1)).double().mean() >= 0.999
    single = propagate(neighbor_graph(torch.cat([texts, images]).float(), n_neighbors=20), m)
    assert (single.argmax(1) == exact.argmax(1)).double().mean() >= 0.999


@SIZES
@pytest.mark.parametrize('max_iter', [1, 5, 20])
def test_propagate_is_scipys_cg_class_by_class(n, m, max_iter):
    images, texts, _ = blobs(n, m, d=32)
    S = neighbor_graph(torch.cat([texts, images]), n_neighbors=20)
    system = np.eye(n + m) - 0.99 * S.to_dense().numpy()
    theirs = np.stack([cg(system, np.eye(n + m)[c], rtol=1e-6, atol=0, maxiter=max_iter)[0] for c in range(m)], axis=1)[
        m:
    ]
    assert np.abs(propagate(S, m, max_iter=max_iter).numpy() - theirs).max() < 1e-8


def test_propagate_on_real_features(features):
    images, texts = (o.double() for o in features)
    basis = projection_basis(texts)
    S = neighbor_graph(torch.cat([project(texts, basis), project(images, basis)]), n_neighbors=20)
    exact = dense_scores(dense_S(torch.cat([project(texts, basis), project(images, basis)]), 20), 10)
    assert (propagate(S, 10).argmax(1) == exact.argmax(1)).double().mean() >= 0.999
    assert (propagate(S, 10, max_iter=1000, tol=1e-12) - exact).abs().max() < 1e-6


def test_propagate_is_the_power_series():
    images, texts, _ = blobs(300, 5)
    S = neighbor_graph(torch.cat([texts, images]), n_neighbors=10)
    term = total = torch.eye(305, 5, dtype=torch.float64)
    for _ in range(200):  # 0.9**200 < 1e-9
        term = 0.9 * (S @ term)
        total = total + term
    assert (propagate(S, 5, alpha=0.9, max_iter=500, tol=1e-12) - total[5:]).abs().max() < 1e-6


def test_propagate_is_label_spreading():
    images, texts, _ = blobs(200, 6)
    nodes = torch.cat([texts, images])

    def affinity(x, _):
        return affinity_graph(*nearest_neighbors(torch.as_tensor(x), 10)).to_dense().numpy()

    theirs = LabelSpreading(kernel=affinity, alpha=0.99, max_iter=6000, tol=1e-12).fit(
        nodes.numpy(), np.r_[np.arange(6), -np.ones(200, int)]
    )
    ours = propagate(neighbor_graph(nodes, n_neighbors=10), 6, max_iter=2000, tol=1e-13)
    assert np.abs((ours / ours.sum(1, keepdim=True)).numpy() - theirs.label_distributions_[6:]).max() < 1e-8


def test_each_class_stops_on_its_own():
    "A class in a corner of its own converges early; solving it together with others must not change anybody's result"
    images, texts, _ = blobs(150, 4)
    S = neighbor_graph(torch.cat([texts, images]), n_neighbors=10).to_dense()
    alone = torch.zeros(160, 160, dtype=torch.float64)
    alone[:4, :4] = S[:4, :4]
    alone[:4, 5:155] = S[:4, 4:]
    alone[5:155, :4] = S[4:, :4]
    alone[5:155, 5:155] = S[4:, 4:]
    alone[4, 155:] = alone[155:, 4] = 0.4  # class 4 and five images of its own, a star
    scores = propagate(alone.to_sparse_csr(), 5, max_iter=500, tol=1e-12)
    assert (scores - dense_scores(alone, 5)).abs().max() < 1e-8
    assert (scores_to_labels(scores)[-5:] == 4).all() and (scores[:150, 4] == 0).all()


@pytest.mark.parametrize('kind', ['P1', 'P2'])
@pytest.mark.parametrize('m,d', [(5, 64), (64, 64), (80, 32)])
def test_projection_is_a_projection(kind, m, d):
    t = torch.randn(m, d, generator=torch.Generator().manual_seed(m)) + 1
    E = projection_basis(t, kind)
    P = E @ E.T
    assert torch.allclose(P @ P, P, atol=1e-5)  # P P = P
    assert torch.allclose(E.T @ E, torch.eye(E.shape[1]), atol=1e-5)
    U = torch.svd(F.normalize(t, dim=1).T).U[:, : min(m, d)]  # the formula, with a D x D matrix
    literal = U[:, (kind == 'P2') :] @ U[:, (kind == 'P2') :].T
    assert torch.allclose(P, literal, atol=1e-4)
    x = torch.randn(20, d)
    expected = F.normalize(x @ literal, dim=1)
    assert torch.allclose(project(x, E) @ project(x, E).T, expected @ expected.T, atol=1e-4)


def test_zero_shot_classifier_is_open_clips(clip):
    model, _, tokenizer = clip
    theirs = open_clip.build_zero_shot_classifier(model, tokenizer, demo.class_names, demo.templates)
    assert torch.allclose(text_classifier(Clip(*clip), demo.class_names, demo.templates), theirs.T, atol=1e-6)


def test_cut_prompts_are_exact(clip):
    model, _, tokenizer = clip
    tokens = tokenizer(
        ['a', 'a photo of the number nine.', ' '.join(['word'] * 200)]
    )  # the last one fills all 77 places
    with torch.no_grad():
        theirs = model.encode_text(tokens, normalize=True)
    assert torch.allclose(encode_text(model, tokens), theirs, atol=1e-6)
    assert torch.allclose(encode_text(model, tokens, batch_size=1), theirs, atol=1e-6)


def test_label_features_finds_blobs():
    images, texts, owner = blobs(600, 8, d=32, spread=0.4, dtype=torch.float32)
    for kind in ('none', 'P1'):
        found = label_features(images, texts, projection=kind)
        assert (found.pseudo_labels == owner).float().mean() > 0.95
        assert found.scores.shape == (600, 8) and 0 <= found.confidence.min() and found.confidence.max() <= 1


@pytest.mark.parametrize('block', [1, 3, 7, 64])
def test_blocks_of_classes_change_nothing(block):
    images, texts, _ = blobs(200, 7)
    S = neighbor_graph(torch.cat([texts, images]), n_neighbors=10)
    assert torch.allclose(propagate(S, 7, class_block=block), propagate(S, 7, class_block=7), atol=1e-12)
    with pytest.raises(ValueError, match='class_block'):
        propagate(S, 7, class_block=0)
