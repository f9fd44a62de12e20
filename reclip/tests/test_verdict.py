"Shares of classes with an interval, where a run and its report have them, and that no rule calls itself sure"

import json
from pathlib import Path
import numpy as np
import pytest
import torch
from scipy.stats import norm
from reclip import demo, report, run
from reclip.class_shares import LUCK, TOGETHER, class_shares
from reclip import mixture
from reclip.mixture import parts

PAGES = Path(__file__).parents[2] / 'nbs'


def some_probabilities(n=50, m=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(n, m, generator=g)).softmax(1)


def naive(p, together, f):
    "The formula, as it stands on the page"
    p = p.double().numpy()
    return norm.cdf((norm.ppf(p) + together**0.5 * f) / (1 - together) ** 0.5).mean(0)


def test_the_interval_is_the_formula_in_blocks_too(monkeypatch):
    p = some_probabilities()
    monkeypatch.setattr(mixture, 'BLOCK', 16)
    assert len(parts(50)) == 4
    found = class_shares(p, 0.5)
    low, high = (naive(p, 0.5, f) for f in (-LUCK, LUCK))
    assert np.allclose(found.share, p.double().mean(0), atol=1e-12) and np.allclose(found.high, high, atol=1e-9)
    assert np.allclose(found.low, np.where(50 * low >= 1, low, 0), atol=1e-9)


def test_luck_in_common_has_the_coverage_that_it_states():
    p = some_probabilities(400, 3, seed=1)
    found = class_shares(p)
    f, e = np.random.default_rng(0).standard_normal(2000), np.random.default_rng(1).standard_normal((2000, 400))
    is_first = TOGETHER**0.5 * f[:, None] + (1 - TOGETHER) ** 0.5 * e < norm.ppf(p[:, 0].double().numpy())
    true = is_first.mean(1)
    inside = (true >= found.low[0].item()) & (true <= found.high[0].item())
    assert abs(true.mean() - found.share[0].item()) < 0.02 and 0.86 < inside.mean() < 0.93


def test_nothing_in_common_leaves_no_interval_and_more_in_common_a_wider_one():
    p = some_probabilities(500)
    widths = [(o.high - o.low).sum().item() for o in (class_shares(p, r) for r in (0.0, 0.3, 0.6, 0.9))]
    assert widths[0] < 1e-9 and widths == sorted(widths)


def test_words_follow_from_the_interval():
    p = torch.zeros(300, 4)
    p[:100, 0] = 1  # certain
    p[100:, 1:3] = 0.5  # one or the other
    found = class_shares(p)
    assert found.evidence == ['occurs', 'occurs', 'occurs', 'not seen']
    assert found.low[0] == found.high[0] == found.share[0] == 100 / 300 and found.high[3] == 0
    assert class_shares(p[100:103]).evidence == ['not seen', 'may occur', 'may occur', 'not seen']


def test_arrays_of_half_precision_and_rounding_above_one_are_taken():
    p = some_probabilities().half().numpy()
    assert np.allclose(class_shares(p).share, p.astype(float).mean(0), atol=1e-6)
    assert class_shares(torch.tensor([[1.0000002, 0.0]])).high.tolist() == [1, 0]


@pytest.mark.parametrize(
    'given, together, word',
    [
        (torch.randn(5, 3), 0.7, 'probability'),
        (torch.ones(3) / 3, 0.7, 'probability'),
        (torch.full((2, 2), float('nan')), 0.7, 'probability'),
        (torch.zeros(0, 3), 0.7, 'probability'),
        (torch.tensor([[1.5, -0.5]]), 0.7, 'probability'),
        (torch.ones(2, 1), 1.0, 'together'),
        (torch.ones(2, 1), -0.1, 'together'),
    ],
)
def test_what_is_no_probability_is_refused(given, together, word):
    with pytest.raises(ValueError, match=f'{word}: expected'):
        class_shares(given, together)


@pytest.fixture(scope='module')
def digits():
    "Features of some digits, as an array"
    from reclip import encode_images

    model, preprocess, _ = demo.demo_clip()
    return encode_images(model, demo.demo_digits()[0][:120], preprocess).numpy()


def made(folder, features, **how):
    np.save(folder / 'x.npy', features)
    settings = dict(model='demo', templates='digit', method='training-free', device='cpu', progress=False)
    run.adapt(folder / 'x.npy', list(demo.class_names), folder / 'RUN', **settings | how)
    return folder / 'RUN'


def test_a_run_keeps_the_shares_that_its_own_probabilities_give_and_the_report_shows_them(tmp_path, digits):
    folder = made(tmp_path, digits)
    kept = run.read_run(folder)['run']['class_shares']
    wanted = class_shares(run.predict(folder, tmp_path / 'x.npy', progress=False, device='cpu')[1])
    assert np.allclose(kept['share'], wanted.share, atol=2e-3) and sum(kept['share']) == pytest.approx(1, abs=1e-4)
    assert np.allclose(kept['high'], wanted.high, atol=5e-3) and kept['evidence'] == wanted.evidence
    d = report.open_run(folder)
    text = report.shares_table(d, 3)
    largest = demo.class_names[int(np.argmax(kept['share']))]
    assert text.count('<tr>') == 4 and largest in text and '3 of 10 classes' in text
    assert 'shares' in [o.name for o in report.parts_for(d)]


@pytest.mark.parametrize('how', [dict(method='zeroshot'), dict(labeller='propagation')])
def test_shares_that_nobody_has_measured_are_not_stated(tmp_path, digits, how):
    folder = made(tmp_path, digits, **how)
    assert 'class_shares' not in run.read_run(folder)['run']
    assert 'shares' not in [o.name for o in report.parts_for(report.open_run(folder))]


@pytest.mark.skipif(not PAGES.is_dir(), reason='the pages are not beside the package')
def test_the_rows_have_a_share_for_each_class_and_fix_the_default():
    rows = [
        json.loads(o) for o in (PAGES / 'benchmarks' / 'rows' / 'eval' / 'shares.jsonl').read_text('utf-8').splitlines()
    ]
    for row in rows:
        for kind in ('occurring', 'absent'):
            o = row[kind]
            assert o['occurs'] + o['may occur'] + o['not seen'] == o['classes'] >= o['inside']
    for of in ('labeller', 'answers'):
        fixed = [o for o in rows if o['of'] == of and o['set'] in ('cifar10', 'pacs/cartoon')]
        enough = []
        for together in (0.5, 0.6, 0.7):
            these = [o for o in fixed if o['together'] == together]
            kinds = [[o[kind] for o in these] for kind in ('occurring', 'absent')]
            enough.append(all(sum(o['inside'] for o in k) >= 0.9 * sum(o['classes'] for o in k) for k in kinds))
        assert enough == [False, False, True] and TOGETHER == 0.7
