"The scripts beside the benchmark pages: parts of sets, and commands that make a row again"

import json
import sys
from argparse import Namespace
from importlib import import_module
from pathlib import Path
import numpy as np
import pytest
import torch
from reclip.openers import LabelledSet

FOLDER = Path(__file__).parents[2] / 'nbs' / 'benchmarks'
pytestmark = pytest.mark.skipif(not (FOLDER / 'photo_rows.py').exists(), reason='the pages are not beside the package')


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    yield import_module('photo_rows'), import_module('accuracy_rows')
    for name in ('photo_rows', 'accuracy_rows'):
        sys.modules.pop(name)


def made_up(n):
    paths = [f'{i}.png' for i in range(n)]
    return LabelledSet('x', paths, np.arange(n) % 3, [['a'], ['b'], ['c']], ['a {}'], 'test', 'paths')


def test_a_part_keeps_images_and_labels_together_and_says_so_in_its_split(scripts):
    part_of = scripts[0].part_of
    part = part_of(made_up(1500), 30)
    assert part.split == 'test, 30 of 1,500 images' and len(part.images) == len(part.labels) == 30
    assert [int(Path(o).stem) % 3 for o in part.images] == part.labels.tolist()
    assert part.images == part_of(made_up(1500), 30).images != part.images[::-1]


def test_a_set_that_is_small_enough_stays_whole(scripts):
    data = made_up(30)
    assert scripts[0].part_of(data, 30) is data is scripts[0].part_of(data, None)


def test_the_command_names_the_part_and_paths_from_here(scripts, tmp_path, monkeypatch):
    (tmp_path / 'here').mkdir()
    monkeypatch.chdir(tmp_path / 'here')
    found = scripts[0].command_words(Namespace(models=str(tmp_path / 'm'), root='../d', part=9, epochs=None))
    assert found[2:] == ['--models', '../m', '--root', '../d', '--part', '9']


def test_the_scenarios_are_written_as_the_command_line_has_them(scripts):
    assert [o.name for o in scripts[1].SCENARIOS] == ['full', 'present2', 'present4', 'imbalance50']
    assert all(isinstance(o.imbalance, float | None) for o in scripts[1].SCENARIOS)


def test_rows_of_the_ablation_that_are_there_are_kept(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(FOLDER))
    script = import_module('ablation_rows')
    sys.modules.pop('ablation_rows')
    asked = []

    def measured(clip, name, root, seed):
        asked.append((name, seed))
        return dict(set=name, seed=seed, accuracy={})

    monkeypatch.setattr(script, 'measured', measured)
    monkeypatch.setattr(script, 'load_clip', lambda *a, **k: None)
    monkeypatch.setattr(
        sys, 'argv', ['ablation_rows', '--root', '.', '--rows', str(tmp_path / 'a.jsonl'), '--seed', '1']
    )
    script.main()
    monkeypatch.setattr(sys, 'argv', sys.argv[:-2])
    script.main()
    assert asked == [(o, 1) for o in ('digits', 'mnist')] + [(o, seed) for o in ('digits', 'mnist') for seed in (0, 2)]
    rows = [json.loads(o) for o in (tmp_path / 'a.jsonl').read_text('utf-8').splitlines()]
    assert [(o['set'], o['seed']) for o in rows] == asked


def test_the_ablation_draws_another_part_of_mnist_for_each_seed(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    script = import_module('ablation_rows')
    sys.modules.pop('ablation_rows')
    monkeypatch.setattr(script.demo, 'demo_mnist', lambda root: ([*range(3000)], torch.arange(3000)))
    parts = [script.images_of('mnist', '.', seed) for seed in (0, 1, 0)]
    assert all(images == labels.tolist() and len(set(images)) == script.PART for images, labels in parts)
    assert parts[0][0] == parts[2][0] != parts[1][0]
