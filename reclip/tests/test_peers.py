"The peers against loops written from the equations, and on inputs that are not as in the papers"

import math
from pathlib import Path
import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
import reclip
from reclip.peers import PEERS, kmeans, stata, transclip, zlap

SCALE = 20.0


def features(n, m, d, seed=0):
    "Images around their texts, unit rows"
    g = torch.Generator().manual_seed(seed)
    t = torch.nn.functional.normalize(torch.randn(m, d, generator=g), dim=1)
    x = t[torch.arange(n) % m] + 0.7 * torch.randn(n, d, generator=g) / d**0.5 * 2
    return torch.nn.functional.normalize(x, dim=1), t


def softmax(row):
    e = np.exp(np.array(row) - max(row))
    return e / e.sum()


def neighbours(x, k):
    "Lists of (neighbour, cosine), nearest first"
    cosine = x @ x.T
    found = []
    for i in range(len(x)):
        others = sorted((j for j in range(len(x)) if j != i), key=lambda j: -cosine[i, j])
        found.append([(j, max(0.0, cosine[i, j])) for j in others[:k]])
    return found


def assigned(z, zero_shot, log_p, near, rounds):
    "The update of z, image by image and class by class"
    for _ in range(rounds):
        new = []
        for i in range(len(z)):
            heard = sum((w * z[j] for j, w in near[i]), np.zeros(z.shape[1]))
            new.append(softmax([math.log(zero_shot[i, k]) + log_p[i, k] + heard[k] for k in range(z.shape[1])]))
        z = np.array(new)
    return z


def log_gauss(f, mean, variance):
    return sum(-0.5 * math.log(2 * math.pi * v) - 0.5 * (a - b) ** 2 / v for a, b, v in zip(f, mean, variance))


def densities(x, means, variances):
    return np.array([[log_gauss(f, mean, v) for mean, v in zip(means, variances)] for f in x])


def zero_shots(x, t):
    return np.array([softmax([SCALE * f @ w for w in t]) for f in x])


def naive_transclip(x, t, outer):
    (n, d), m = x.shape, len(t)
    y, near = zero_shots(x, t), neighbours(x, 3)
    z = y.copy()
    means = [np.mean([x[i] for i in sorted(range(n), key=lambda i: -y[i, k])[:8]], axis=0) for k in range(m)]
    variance = np.full(d, 1 / d)
    for _ in range(outer):
        z = assigned(z, y, densities(x, means, [variance] * m), near, 5)
        means = [sum(z[i, k] * x[i] for i in range(n)) / sum(z[i, k] for i in range(n)) for k in range(m)]
        variance = sum(z[i, k] * (x[i] - means[k]) ** 2 for i in range(n) for k in range(m)) / n
    return z


def naive_stata(x, t, outer, alpha=1.0):
    n, m = len(x), len(t)
    y, near = zero_shots(x, t), neighbours(x, 3)
    z = y.copy()
    spread = sum(y[i, k] * (x[i] - t[k]) ** 2 for i in range(n) for k in range(m)) / n
    means, variances = list(t), [spread] * m
    for _ in range(outer):
        z = assigned(z, y, densities(x, means, variances), near, 5)
        for k in range(m):
            count = sum(z[:, k])
            beta = count / (count + alpha)
            mean = beta * sum(z[i, k] * x[i] for i in range(n)) / count + (1 - beta) * t[k]
            own = sum(z[i, k] * (x[i] - mean) ** 2 for i in range(n)) / count
            means[k], variances[k] = mean, beta * own + (1 - beta) * (spread + (t[k] - mean) ** 2)
    return z


def naive_zlap(x, t, k=5, gamma=5.0, alpha=0.3):
    n, m = len(x), len(t)
    A = np.zeros((m + n, m + n))
    for i, row in enumerate(neighbours(x, k)):
        for j, w in row:
            A[m + i, m + j] = w**gamma
        for c in sorted(range(m), key=lambda c: -(x[i] @ t[c]))[:k]:
            A[m + i, c] = max(0.0, x[i] @ t[c]) ** gamma
    W = (A + A.T) / 2
    degree = W.sum(1)
    S = W / np.sqrt(np.outer(degree, degree))
    Z = np.linalg.inv(np.eye(m + n) - alpha * S)[m:, :m]
    return Z / Z.sum(1, keepdims=True)


@pytest.mark.parametrize('seed', [0, 1])
@pytest.mark.parametrize('rounds', [1, 3])
@pytest.mark.parametrize('peer, naive', [(transclip, naive_transclip), (stata, naive_stata)])
def test_mixtures_are_the_loops_of_their_equations(peer, naive, rounds, seed):
    x, t = features(24, 3, 16, seed)
    expected = naive(x.double().numpy(), t.double().numpy(), rounds)
    assert np.abs(peer(x, t, SCALE, n_outer=rounds).numpy() - expected).max() < 1e-4


@pytest.mark.parametrize('m', [3, 7])
def test_zlap_is_the_dense_inverse(m):
    x, t = features(30, m, 16)
    expected = naive_zlap(x.double().numpy(), t.double().numpy())
    assert np.abs(zlap(x, t, SCALE).numpy() - expected).max() < 1e-5


def test_kmeans_gives_each_cluster_one_class():
    x, t = features(60, 4, 16)
    found = kmeans(x, t, SCALE, seed=3).argmax(1).numpy()
    clusters = KMeans(4, n_init=1, random_state=3).fit_predict(x.numpy())
    assert len(set(zip(clusters, found))) == 4 and len(set(found)) == 4


def test_anchor_of_no_weight_lets_go_and_one_of_much_weight_holds():
    x, t = features(40, 4, 16)
    held = stata(x, t, SCALE, anchor_weight=1e9, n_neighbors=0)
    x64, t64 = x.double(), t.double()
    y = torch.softmax(SCALE * x64 @ t64.T, 1)
    spread = torch.einsum('ik,ikd->d', y, (x64[:, None] - t64) ** 2) / len(x)
    log_p = -0.5 * ((x64[:, None] - t64) ** 2 / spread).sum(2)
    assert torch.allclose(held.double(), torch.softmax(y.log() + log_p, 1), atol=1e-4)
    assert not torch.allclose(stata(x, t, SCALE, anchor_weight=0.0, n_neighbors=0), held, atol=1e-2)


def equal(n, m, d):
    return torch.ones(n, d) / d**0.5, features(2, m, d)[1]


def doubled(n, m, d):
    x, t = features(n, m, d)
    return x[:3].repeat_interleave(n // 3, 0), t


def opposite(n, m, d):
    x, t = features(n, m, d)
    return -t[:1].repeat(n, 1), t[:1].repeat(m, 1)


INPUTS = {
    'one of many classes occurs': lambda: (features(40, 1, 16)[0], features(40, 12, 16)[1]),
    'more classes than images': lambda: features(5, 30, 16),
    'one image': lambda: features(1, 4, 16),
    'two images': lambda: features(2, 2, 8),
    'all images equal': lambda: equal(20, 4, 16),
    'images many times': lambda: doubled(30, 5, 16),
    'images against the only text': lambda: opposite(12, 3, 16),
    'two numbers wide': lambda: features(20, 3, 2),
    'not of length one': lambda: tuple(7 * o for o in features(20, 3, 16)),
    'arrays of float64': lambda: tuple(o.double().numpy() for o in features(20, 3, 16)),
}


@pytest.mark.parametrize('scale', [1.0, 26.4, 100.0])
@pytest.mark.parametrize('given', INPUTS)
@pytest.mark.parametrize('name', PEERS)
def test_rows_are_probabilities_whatever_is_given(name, given, scale):
    x, t = INPUTS[given]()
    found = PEERS[name](x, t, scale, 1)
    assert found.dtype == torch.float32 and found.shape == (len(x), len(t))
    assert torch.isfinite(found).all() and (found >= 0).all()
    assert torch.allclose(found.sum(1), torch.ones(len(x)), atol=1e-5)


@pytest.mark.parametrize('name', PEERS)
def test_same_seed_same_result_and_inputs_stay(name):
    x, t = features(50, 5, 16)
    kept = x.clone(), t.clone()
    assert torch.equal(PEERS[name](x, t, SCALE, 2), PEERS[name](x, t, SCALE, 2))
    assert torch.equal(x, kept[0]) and torch.equal(t, kept[1])


@pytest.mark.parametrize('name', PEERS)
def test_what_is_no_feature_is_said(name):
    x, t = features(10, 3, 16)
    with pytest.raises(ValueError, match='16 wide and text_features 8'):
        PEERS[name](x, t[:, :8], SCALE)
    with pytest.raises(ValueError, match='logit_scale'):
        PEERS[name](x, t, float('nan'))


@pytest.mark.parametrize('name', sorted({*PEERS} - {'kmeans'}))  # whose start depends on the order
def test_order_of_images_is_no_matter(name):
    x, t = features(60, 4, 16)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(PEERS[name](x[order], t, SCALE), PEERS[name](x, t, SCALE)[order], atol=1e-3)


def test_nothing_but_eval_imports_the_peers():
    package = Path(reclip.__file__).parent
    users = [p.stem for p in package.glob('*.py') if 'peers' in p.read_text(encoding='utf-8') and p.stem != '_modidx']
    assert set(users) <= {'peers', 'evaluate', 'eval_command', 'table'}
