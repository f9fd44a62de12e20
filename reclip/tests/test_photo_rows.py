"The scripts beside the benchmark pages: parts of sets, and commands that make a row again"

import sys
from argparse import Namespace
from importlib import import_module
from pathlib import Path
import numpy as np
import pytest
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
