"Stage 3 in parts: who imports what, what goes on from where, and a learning rate that is named."

import ast
import inspect
from importlib import import_module
import pytest
import torch
from typer.testing import CliRunner
from reclip import cli, demo, selftrain
from reclip.clip import Clip
from reclip.snapshots import TrainingState
from reclip.selftrain import Training, adapt
from reclip.shared import SharedTraining, training_class
from reclip.steps import OneProcess

PARTS = (
    'norms',
    'students',
    'prompts',
    'steps',
    'kept',
    'selftrain',
    'graph',
    'approximate',
    'projection',
    'pseudolabel',
    'zeroshot',
)
OLD = (
    'NORMS',
    'RECIPES',
    'norm_parameters',
    'norm_state',
    'set_norm_state',
    'borrowed',
    'tuned',
    'agreement',
    'class_centroids',
    'texts_with_gradients',
    'train_epoch',
    'KeptImages',
    'TrainingState',
    'Adapted',
    'student_logits',
    'student_labels',
    'default_epochs',
    'history_row',
    'training_state',
    'put_training_state',
    'adapt',
)


@pytest.mark.parametrize('part', PARTS)
def test_the_mathematics_knows_nothing_of_processes(part):
    tree = ast.parse(inspect.getsource(import_module(f'reclip.{part}')))
    imported = {o.module for o in ast.walk(tree) if isinstance(o, ast.ImportFrom)} | {
        a.name for o in ast.walk(tree) if isinstance(o, ast.Import) for a in o.names
    }
    assert imported and not any(o and o.split('.')[-1] in ('devices', 'shared', 'accelerate') for o in imported)


def test_names_are_where_they_were():
    from reclip import adapt as estimator

    assert not [o for o in OLD if not hasattr(selftrain, o)]
    assert estimator.fingerprint is import_module('reclip.norms').fingerprint


def test_what_several_processes_replace(monkeypatch):
    assert training_class() is Training and issubclass(SharedTraining, Training)
    hooks = [name for name, o in vars(OneProcess).items() if inspect.isfunction(o)]
    assert sorted(hooks) == ['add_up', 'gather', 'mine'] and set(hooks) | {'split'} <= set(vars(SharedTraining))
    monkeypatch.setenv('RANK', '1')
    monkeypatch.setenv('WORLD_SIZE', '3')
    assert training_class() is SharedTraining and SharedTraining.mine(7) == slice(3, 5)


@pytest.mark.parametrize(
    'rate, value', [('--lr-image', '1e30'), ('--lr-text', '1e30'), ('--lr-image', '1e38'), ('--lr-text', '1e38')]
)
def test_a_rate_that_is_too_large_is_named(rate, value, digits, tmp_path):
    "One step an epoch: no loss is there to tell afterwards"
    (tmp_path / 'in').mkdir()
    for i, image in enumerate(digits[0][:30]):
        image.save(tmp_path / 'in' / f'{i:02}.png')
    args = [
        'adapt',
        tmp_path / 'in',
        '-c',
        ','.join(demo.class_names),
        '-m',
        'demo',
        '--device',
        'cpu',
        '--epochs',
        1,
        rate,
        value,
        '-q',
        '--no-cache',
        '-o',
        tmp_path / 'R',
    ]
    found = CliRunner().invoke(cli.app, [str(o) for o in args])
    assert (
        found.exit_code == 2
        and found.stderr.strip().endswith(f": lower {rate[2:].replace('-', '_')} ({rate})")
        and len(found.stderr.splitlines()) == 1
    )
    assert not (tmp_path / 'R').exists(), found.output


def test_a_rate_that_no_float32_holds_is_refused_before_any_work(clip, digits):
    for wrong in (1e39, 1e200, float('inf')):
        with pytest.raises(ValueError, match='lr_text: expected a number of at most 3.4e38'):
            adapt(Clip(*clip), digits[0][:9], demo.class_names, lr_text=wrong)


def test_a_state_of_longer_training_is_refused_and_of_as_long_only_looked_at(clip, digits):
    states, task = [], (Clip(*clip), digits[0][:60], demo.class_names)
    whole = adapt(*task, epochs=2, keep=states.append)
    last = adapt(*task, epochs=2, state=states[1])
    assert torch.equal(whole.logits, last.logits) and [o['epoch'] for o in last.history] == [0, 1, 2]
    with pytest.raises(ValueError, match='2 epochs done already, more than the 1'):
        adapt(*task, epochs=1, state=states[1])


def test_the_state_keeps_its_format(clip, digits):
    states = []
    adapt(Clip(*clip), digits[0][:60], demo.class_names, epochs=1, keep=states.append)
    tensors, history, trained = states[0]
    assert isinstance(states[0], TrainingState) and {k.split('/')[0] for k in tensors} == {
        'text',
        'image',
        'momentum',
        'found',
        'generator',
    }
    assert {k for k in tensors if k.startswith('found/')} == {'found/centroids', 'found/before', 'found/first'}
    assert {
        'text/ln_final.weight',
        'image/visual.ln_pre.weight',
        'momentum/text/ln_final.weight',
        'momentum/image/visual.ln_pre.weight',
    } <= set(tensors)
    assert [o['epoch'] for o in history] == [0] and set(trained) == {'steps', 'loss_t', 'loss_v', 'seconds'}
