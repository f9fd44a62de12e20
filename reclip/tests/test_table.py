"Rows as `reclip eval` writes them become tables; what is no row is named, and means compare the same sets"

import json
import os
import sys
from pathlib import Path
import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner
from reclip.cli import app
from reclip.found_rows import pack_rows, read_rows
from reclip.gains import gain_figure, gains, write_figure
from reclip.notes import noting
from reclip.table import beside_published, published, summarize_rows, to_markdown, write_csv, write_markdown


def row(name, method, seed=0, before=0.5, after=0.6, present=None, **changed):
    "A row of `reclip eval`; all shares alike"

    def stage(value):
        return dict(top1=value, mean_per_class=value, ece=0.1, nll=1.0)

    gain = {k: dict(value=100 * (after - before), low=-1.0, high=30.0) for k in stage(0)}
    found = dict(
        schema=1, model=dict(name='m', pretrained=None, fingerprint='0'), set=name, split='test', method=method
    )
    found |= dict(seed=seed, scenario=dict(present=present, imbalance=None, limit=None), n_images=200, n_classes=3)
    found |= dict(settings={}, stages=dict(zeroshot=stage(before), final=stage(after)), gain=gain, signals={})
    return found | dict(versions=dict(reclip='0.0.1'), command='reclip eval') | changed


def save(folder, *rows):
    folder.mkdir(exist_ok=True)
    for i, o in enumerate(rows):
        (folder / f'{i}.json').write_text(json.dumps(o))
    return folder


def named(name):
    "A model of that name"
    return dict(name=name, pretrained=None, fingerprint=name)


def table(*args):
    return CliRunner().invoke(app, ['table', *(str(o) for o in args)])


# what is read


def test_a_folder_stands_for_its_visible_rows(tmp_path):
    save(tmp_path / 'R', row('a', 'x'))
    (tmp_path / 'R' / '.half.json').write_text('{"schema')
    (tmp_path / 'R' / 'notes.txt').write_text('no row')
    save(tmp_path / 'R' / 'costs', dict(seconds=1))
    assert read_rows(tmp_path / 'R').set.tolist() == ['a']


def test_folders_and_single_rows_are_read_together(tmp_path):
    one = save(tmp_path / 'A', row('a', 'x'))
    other = save(tmp_path / 'B', row('b', 'x'), row('c', 'x'))
    rows = read_rows([one, other / '1.json', str(one / '0.json')])
    assert rows.set.tolist() == ['a', 'c'] and rows.path.tolist() == [str(one / '0.json'), str(other / '1.json')]


def test_scores_are_per_cent_and_the_likelihood_is_not(tmp_path):
    found = read_rows(save(tmp_path, row('a', 'x', before=0.25, after=0.75))).iloc[0]
    assert (found.top1_before, found.top1, found.ece, found.nll) == pytest.approx((25, 75, 10, 1))
    assert (found.top1_gain, found.top1_low, found.top1_high) == pytest.approx((50, -1, 30))


def test_no_rows_says_what_makes_them(tmp_path):
    with pytest.raises(FileNotFoundError, match='reclip eval'):
        read_rows(tmp_path)
    with pytest.raises(FileNotFoundError, match='nothing'):
        read_rows(tmp_path / 'nothing')


WRONG = {
    'half a file': ('{"schema": 1, ', 'JSON'),
    'an empty file': ('', 'JSON'),
    'a list': ('[]', 'another kind'),
    'deep': ('[' * 100_000, 'bad.json'),
    'another file': ('{"schema": 1}', "no 'model'"),
    'a later schema': (row('a', 'x', schema=9), 'schema 9'),
    'more than all': (row('a', 'x', after=7), 'top1 is 7'),
    'less than none': (row('a', 'x', before=-0.5), 'top1 is -0.5'),
    'a lost score': (row('a', 'x') | dict(stages=dict(final={}, zeroshot={})), "no 'top1'"),
    'a lost gain': (row('a', 'x') | dict(gain={}), "no 'top1'"),
    'a word for a score': (row('a', 'x', after=0.5) | dict(n_classes='ten'), 'bad.json'),
    'no images': (row('a', 'x', n_images=0), 'another kind'),
    'no name': (row(None, 'x'), 'another kind'),
    'a seed in words': (row('a', 'x', seed='one'), 'another kind'),
    'a scenario of its own': (row('a', 'x', scenario=dict(upside='down')), 'another kind'),
    'an endless score': (row('a', 'x', n_classes=float('inf')), 'bad.json'),
}


@pytest.mark.parametrize('text, told', WRONG.values(), ids=WRONG)
def test_a_damaged_row_is_named(text, told, tmp_path):
    save(tmp_path, row('b', 'x'))
    (tmp_path / 'bad.json').write_text(text if isinstance(text, str) else json.dumps(text))
    with pytest.raises(ValueError, match=rf'bad\.json[\s\S]*{told}' if told != 'bad.json' else 'bad.json'):
        read_rows(tmp_path)
    done = table(tmp_path)
    assert done.exit_code == 2 and 'bad.json' in done.output and len(done.output.strip().splitlines()) == 1


def test_two_rows_of_one_run_cannot_both_count(tmp_path):
    with pytest.raises(ValueError, match=r'0\.json and .*1\.json are rows of the same run'):
        read_rows(save(tmp_path, row('a', 'x'), row('a', 'x', after=0.7)))
    copy = save(tmp_path / 'copy', row('a', 'x'))
    link = tmp_path / 'link'
    if sys.platform != 'win32':
        os.symlink(copy, link)
        assert len(read_rows([copy, link])) == 1  # the same file twice is one


@pytest.mark.parametrize(
    'changed, told',
    [(dict(n_images=199), 'numbers of images differ: 199 and 200'), (dict(before=0.4), 'zero-shot scores differ')],
)
def test_methods_that_began_elsewhere_do_not_stand_side_by_side(changed, told, tmp_path):
    with pytest.raises(ValueError, match=told):
        read_rows(save(tmp_path, row('a', 'x'), row('a', 'y', **changed)))
    read_rows(save(tmp_path, row('a', 'x'), row('a', 'y', seed=1, **changed)))  # of another seed, so other images


def test_one_tie_that_falls_the_other_way_is_no_other_model(tmp_path):
    assert len(read_rows(save(tmp_path, row('a', 'x'), row('a', 'y', before=0.505)))) == 2


def test_versions_and_settings_that_differ_are_noted(tmp_path):
    same = [row('a', 'x', settings=dict(alpha=0.99)), row('a', 'y', settings=dict(k=3))]
    with noting() as notes:
        read_rows(save(tmp_path, *same))
    assert notes == []
    mixed = [row('b', 'x', settings=dict(alpha=0.5)), row('b', 'y', settings=dict(k=3), versions=dict(reclip='0.0.2'))]
    with noting() as notes:
        read_rows(save(tmp_path, *same, *mixed))
    assert notes == [
        'rows of 2 versions of reclip stand side by side: 0.0.1, 0.0.2',
        'rows of x were made with different settings and stand side by side',
    ]


# what is computed


def test_mean_is_over_sets_of_all_methods_and_seeds_are_averaged(tmp_path):
    save(tmp_path, row('a', 'x', 0, after=0.6), row('a', 'x', 1, after=0.8), row('a', 'y'), row('b', 'x', after=0.9))
    found = summarize_rows(read_rows(tmp_path))['m', 'full']
    assert found.common == ['a'] and 'b (no y)' in found.note
    assert found.mean.loc['mean of 1 set'].to_dict() == pytest.approx(dict(zeroshot=50, x=70, y=60))
    assert found.spread.loc['a', 'x'] == pytest.approx(20 / 2**0.5) and np.isnan(found.mean.loc['b', 'y'])


def test_zero_shot_is_a_stage_of_others_where_nobody_ran_it(tmp_path):
    rows = read_rows(save(tmp_path, row('a', 'x', before=0.3), row('b', 'x', before=0.5)))
    assert summarize_rows(rows)['m', 'full'].mean.zeroshot.tolist() == pytest.approx([30, 50, 40])
    own = read_rows(save(tmp_path, row('a', 'x', before=0.3), row('a', 'zeroshot', before=0.3, after=0.3)))
    found = summarize_rows(own)['m', 'full']
    assert found.mean.zeroshot.tolist() == pytest.approx([30, 30]) and 'seeds a cell: 1.' in found.note


def test_no_set_that_all_have_leaves_the_mean_empty(tmp_path):
    rows = read_rows(save(tmp_path, row('a', 'x'), row('b', 'y')))
    found = summarize_rows(rows)['m', 'full']
    assert found.common == [] and found.mean.loc['mean of 0 sets'].isna().all() and '0 of 2 sets' in found.note
    assert 'a' in to_markdown(rows, paper=True) and gain_figure(rows).alt


def test_models_and_scenarios_are_tables_of_their_own(tmp_path):
    rows = [row('a', 'x', after=0.7), row('a', 'x', after=0.9, model=named('n')), row('a', 'x', after=0.8, present=2)]
    found = summarize_rows(read_rows(save(tmp_path, *rows)))
    means = {k: o.mean.loc['a', 'x'] for k, o in found.items()}
    assert means == pytest.approx({('m', 'full'): 70, ('m', 'present2'): 80, ('n', 'full'): 90})


def test_methods_stand_in_one_order(tmp_path):
    names = ['zlap', 'reclip-official', 'reclip', 'kmeans', 'propagation']
    found = summarize_rows(read_rows(save(tmp_path, *(row('a', o) for o in names))))['m', 'full']
    assert list(found.mean) == ['zeroshot', 'propagation', 'reclip', 'reclip-official', 'kmeans', 'zlap']


def test_an_unknown_score_is_refused(tmp_path):
    rows = read_rows(save(tmp_path, row('a', 'x')))
    for call in (summarize_rows, to_markdown, gains):
        with pytest.raises(ValueError, match="top1, mean_per_class, ece, nll, got 'f1'"):
            call(rows, 'f1')


# files


def test_csv_has_means_and_deviations_by_model_and_scenario(tmp_path):
    rows = [row('a', 'x', 0), row('a', 'x', 1, after=0.8), row('a', 'x', present=2), row('=b', 'x', model=named('n'))]
    found = pd.read_csv(write_csv(read_rows(save(tmp_path, *rows)), tmp_path / 't.csv'))
    assert list(found) == ['model', 'scenario', 'set', 'zeroshot', 'zeroshot sd', 'x', 'x sd']
    one = found[(found.scenario == 'full') & (found.set == 'a')].iloc[0]
    assert (one.x, one['x sd']) == pytest.approx((70, 20 / 2**0.5), abs=1e-4)
    assert "'=b" in set(found.set) and len(found) == 6  # a spreadsheet does not run it
    with pytest.raises(ValueError, match='.csv'):
        write_csv(read_rows(tmp_path), tmp_path / 't.txt')


def test_markdown_has_the_best_in_bold_and_cells_that_hold(tmp_path):
    rows = read_rows(save(tmp_path, row('a|b', 'x', after=0.7), row('a|b', 'y', after=0.6)))
    text = write_markdown(rows, tmp_path / 't.md').read_text()
    assert r'| a\|b | 50.00 | **70.00** | 60.00 |' in text and '## m, full: top-1, %' in text
    assert 'the authors' not in text
    lines = [o.replace(r'\|', '') for o in text.splitlines() if o.startswith('|')]
    assert {o.count('|') for o in lines} == {5}
    errors = to_markdown(rows, 'ece')
    assert '| **10.00** | **10.00** | **10.00** |' in errors  # less is better, and all are the same


def test_paper_puts_the_authors_numbers_below_ours(tmp_path):
    rows = read_rows(save(tmp_path, row('a', 'reclip', after=0.8)))
    text = to_markdown(rows, paper=True)
    assert '| the authors | ViT-L/14 | ReCLIP\'s 22 sets | ReCLIP | 69.83 | 74.94 | 5.11 |' in text
    assert '| ours | m | 1 sets, full | reclip | 50.00 | 80.00 | 30.00 |' in text and 'none was measured here' in text
    both = beside_published(rows)
    assert both.whose.tolist() == ['ours'] + ['the authors'] * len(published())
    assert np.allclose(published().gain, published().accuracy - published().zeroshot)
    only = read_rows(save(tmp_path / 'z', row('a', 'zeroshot', after=0.5)))
    assert set(beside_published(only).whose) == {'the authors'}


@pytest.mark.parametrize('suffix, begins', [('png', b'\x89PNG'), ('svg', b'<?xml'), ('pdf', b'%PDF')])
def test_figure_is_whole_and_says_what_it_shows(suffix, begins, tmp_path):
    rows = read_rows(save(tmp_path, row('a', 'x'), row('b$_', 'x', after=0.7)))
    fig = gain_figure(rows)
    path = write_figure(fig, tmp_path / f'g.{suffix}')
    written = path.read_bytes()
    assert written.startswith(begins) and len(written) > 5000 and 'x +15.0' in fig.alt
    if suffix == 'svg':
        assert b'x +15.0' in written and written.rstrip().endswith(b'</svg>')
    assert not list(tmp_path.glob('.*'))


def test_a_figure_that_fails_leaves_the_old_one(tmp_path, monkeypatch):
    fig = gain_figure(read_rows(save(tmp_path, row('a', 'x'))))
    path = tmp_path / 'g.png'
    path.write_bytes(b'old')

    def fails(p, **about):
        p.write_bytes(b'half')
        raise OSError('disk full')

    monkeypatch.setattr(fig, 'savefig', fails)
    with pytest.raises(OSError, match='disk full'):
        write_figure(fig, path)
    assert path.read_bytes() == b'old' and not list(tmp_path.glob('.*'))
    with pytest.raises(ValueError, match='.png'):
        write_figure(fig, tmp_path / 'g.jpg')


def test_gains_are_differences_and_the_mean_has_the_interval_of_independent_sets(tmp_path):
    rows = read_rows(save(tmp_path, row('a', 'x', after=0.6), row('b', 'x', after=0.8), row('c', 'y')))
    found = gains(rows[rows.method == 'x'])['x']
    assert found.gain.tolist() == pytest.approx([10, 30, 20])
    assert found.low.iloc[-1] == pytest.approx(20 - (11**2 + 31**2) ** 0.5 / 2)
    assert found.high.iloc[-1] == pytest.approx(20 + (20**2 + 0**2) ** 0.5 / 2)


def test_a_figure_shows_one_model_in_one_scenario(tmp_path):
    rows = read_rows(save(tmp_path, row('a', 'x'), row('a', 'x', present=2), row('a', 'x', model=named('n'))))
    with pytest.raises(ValueError, match='model: .* m, n'):
        gain_figure(rows)
    with pytest.raises(ValueError, match='scenario: .* full, present2'):
        gain_figure(rows, model='m')
    assert gain_figure(rows, model='m', scenario='present2').alt
    with pytest.raises(ValueError, match='only zero-shot'):
        gain_figure(read_rows(save(tmp_path / 'z', row('a', 'zeroshot', after=0.5))))


# the command line


def test_command_prints_or_writes(tmp_path):
    rows = save(tmp_path / 'R', row('a', 'x'), row('a', 'x', model=named('n'), after=0.8))
    done = table(rows, '--paper')
    assert (
        done.exit_code == 0 and '## m, full' in done.output and '## n, full' in done.output and '74.94' in done.output
    )
    names = ('--csv', tmp_path / 't.csv', '--markdown', tmp_path / 't.md', '--figure', tmp_path / 'g.png')
    done = table(rows, '--model', 'n', *names)
    assert done.exit_code == 0 and done.output.count('is written') == 3 and '74.94' not in done.output
    assert pd.read_csv(tmp_path / 't.csv').model.unique().tolist() == ['n']
    assert (tmp_path / 'g.png').read_bytes().startswith(b'\x89PNG')
    assert 'the authors' not in (tmp_path / 't.md').read_text()
    assert table(rows, '--model', 'n', *names, '--quiet').output == ''


def test_what_cannot_be_drawn_is_said_before_anything_is_written(tmp_path):
    rows = save(tmp_path / 'R', row('a', 'x'), row('a', 'x', present=2))
    done = table(rows, '--csv', tmp_path / 't.csv', '--figure', tmp_path / 'g.png')
    assert done.exit_code == 2 and 'full, present2' in done.output and not (tmp_path / 't.csv').exists()


@pytest.mark.parametrize(
    'words, told',
    [
        (['--model', 'q'], "there are m"),
        (['--scenario', 'q'], "there are full"),
        (['--score', 'q'], 'mean_per_class'),
        (['--csv', 'nowhere/t.csv'], 'nowhere'),
        (['--markdown', 't.csv'], '.md'),
        (['--figure', 'g.gif'], '.png'),
    ],
)
def test_bad_words_are_one_sentence(words, told, tmp_path):
    done = table(save(tmp_path, row('a', 'x')), *words)
    assert done.exit_code == 2 and told in done.output and len(done.output.strip().splitlines()) == 1, done.output


def test_an_empty_folder_is_one_sentence(tmp_path):
    done = table(tmp_path)
    assert done.exit_code == 2 and 'no rows there; reclip eval makes some' in done.output
    assert table(tmp_path / 'none').exit_code == 2


# packed


def test_packed_rows_are_those_of_the_folder_in_equal_bytes(tmp_path):
    rows = [row(o, 'x', seed, words='é\u2028') for o in 'ba' for seed in (10, 9)]
    one, other = save(tmp_path / 'A', *rows), save(tmp_path / 'B', *rows[::-1])
    packed = pack_rows(one, tmp_path / 'one.jsonl')
    assert packed.read_bytes() == pack_rows([other], tmp_path / 'other.jsonl').read_bytes()
    assert packed.read_text(encoding='utf-8').count('\n') == 4
    found = read_rows(packed)
    assert found.drop(columns='path').equals(read_rows(one).drop(columns='path'))
    assert found.path.tolist() == [f'{packed}, line {i}' for i in range(1, 5)] and found.seed.tolist() == [9, 10] * 2
    assert table(packed).stdout == table(one).stdout != ''


def test_packing_again_adds_rows_and_replaces_those_of_the_same_run(tmp_path):
    packed = pack_rows(save(tmp_path / 'A', row('a', 'x'), row('b', 'x')), tmp_path / 'p.jsonl')
    pack_rows(save(tmp_path / 'B', row('b', 'x', after=0.9), row('b', 'y')), packed)
    assert read_rows(packed)[['set', 'method', 'top1']].values.tolist() == [
        ['a', 'x', 60],
        ['b', 'x', 90],
        ['b', 'y', 60],
    ]


def test_a_damaged_line_is_named_and_nothing_is_packed(tmp_path):
    packed = pack_rows(save(tmp_path / 'A', row('a', 'x')), tmp_path / 'p.jsonl')
    packed.write_text(packed.read_text() + '{"schema": 1}\n')
    before = packed.read_bytes()
    with pytest.raises(ValueError, match=r"p\.jsonl, line 2 .*no 'model'"):
        read_rows(packed)
    with pytest.raises(ValueError, match='line 2'):
        pack_rows(tmp_path / 'A', packed)
    with pytest.raises(ValueError, match='same run'):
        pack_rows([tmp_path / 'A', save(tmp_path / 'B', row('a', 'x'))], packed)
    with pytest.raises(ValueError, match=r'\.jsonl'):
        pack_rows(tmp_path / 'A', tmp_path / 'p.json')
    assert packed.read_bytes() == before and not (tmp_path / 'p.json').exists()


COMMITTED = Path(__file__).parents[2] / 'nbs' / 'benchmarks' / 'rows' / 'eval' / 'accuracy.jsonl'


@pytest.mark.skipif(not COMMITTED.exists(), reason='the pages are not beside the package')
def test_committed_rows_are_small_and_as_they_would_be_packed_again(tmp_path):
    assert pack_rows(COMMITTED, tmp_path / 'again.jsonl').read_bytes() == COMMITTED.read_bytes()
    assert COMMITTED.stat().st_size < 3_000_000
    rows = read_rows(COMMITTED)
    assert rows.command.is_unique and not rows.command.str.contains(' /', regex=False).any()
