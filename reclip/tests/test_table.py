"Rows as `reclip eval` writes them become tables; what is no row is named, and means compare the same sets"
import json
import numpy as np
import pandas as pd
import pytest
from reclip.gains import gain_figure, gains, write_figure
from reclip.table import published, read_rows, summarize_rows, write_csv, write_markdown


def row(name, method, seed=0, before=0.5, after=0.6, present=None):
    stage = lambda v: dict(top1=v, mean_per_class=v, ece=0.1, nll=1.0)  # noqa: E731
    gain = {k: dict(value=100 * (after - before), low=-1.0, high=30.0) for k in stage(0)}
    return dict(
        schema=1, model=dict(name='m', pretrained=None, fingerprint='0'), set=name, split='test', method=method,
        seed=seed, scenario=dict(present=present, imbalance=None, limit=None), n_images=9, n_classes=3, settings={},
        stages=dict(zeroshot=stage(before), final=stage(after)), gain=gain, signals={}, versions={}, command='reclip',
    )  # fmt: skip


def save(folder, *rows):
    for i, o in enumerate(rows):
        (folder / f'{i}.json').write_text(json.dumps(o))
    return folder


def test_mean_is_over_sets_of_all_methods_and_seeds_are_averaged(tmp_path):
    save(tmp_path, row('a', 'x', 0, after=0.6), row('a', 'x', 1, after=0.8), row('a', 'y'), row('b', 'x', after=0.9))
    found = summarize_rows(read_rows(tmp_path))['m', 'full']
    assert found.common == ['a'] and 'b (no y)' in found.note
    assert found.mean.loc['mean of 1 set'].to_dict() == pytest.approx(dict(zeroshot=50, x=70, y=60))
    assert found.spread.loc['a', 'x'] == pytest.approx(20 / 2**0.5) and np.isnan(found.mean.loc['b', 'y'])


def test_no_row_is_named_with_its_file(tmp_path):
    for wrong, word in ((dict(schema=1), 'model'), ([], 'another kind'), (row('a', 'x', after=7), 'top1'),
                        (row('a', 'x') | dict(schema=9), 'schema 9')):  # fmt: skip
        (tmp_path / 'bad.json').write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match=rf'bad\.json.*{word}'):
            read_rows(tmp_path)
    (tmp_path / 'bad.json').unlink()
    with pytest.raises(FileNotFoundError, match='reclip eval'):
        read_rows(tmp_path)
    with pytest.raises(ValueError, match='same run'):
        read_rows(save(tmp_path, row('a', 'x'), row('a', 'x')))


def test_files(tmp_path):
    rows = read_rows(save(tmp_path, row('a|b', 'x'), row('c', 'x', present=2)))
    text = write_markdown(rows, tmp_path / 't.md', paper=True).read_text()
    assert r'a\|b' in text and 'm, present2' in text and 'the authors' in text and '74.94' in text
    assert set(pd.read_csv(write_csv(rows, tmp_path / 't.csv')).scenario) == {'full', 'present2'}
    with pytest.raises(ValueError, match='scenario'):
        gain_figure(rows)
    fig = gain_figure(rows, scenario='full')
    assert 'x +10.0' in fig.alt and write_figure(fig, tmp_path / 'g.svg').stat().st_size > 1000
    assert len(gains(rows[rows.scenario == 'full'])['x']) == 2 and set(published().whose) == {'the authors'}
