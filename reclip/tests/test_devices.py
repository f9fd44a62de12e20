"Several processes do one job: the same result as one, one voice, one writer, and a lost process costs only time."

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import time
from pathlib import Path
import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from safetensors.torch import load_file
from reclip import demo, encode_images, encode_text, load_clip
from reclip.cache import cache_info
from reclip.devices import alone, default_device, everyone, on_first, share, together
from reclip.images import find_images
from reclip.run import adapt, predict

pytest.importorskip('accelerate')
names = list(demo.class_names)
WORDS, N = ', '.join(names), 65  # two batches of 32, and one that is smaller than the number of processes
options = ['-c', WORDS, '-t', 'digit', '-m', 'demo', '--epochs', '3', '--batch-size', '32', '--device', 'cpu']
settings = dict(model='demo', templates='digit', epochs=3, batch_size=32, device='cpu', progress=False)


# ---- processes: real launchers where they matter, forks of one that has imported everything elsewhere

forks_code = '''
import json, os, sys
import torch
import reclip.cli, reclip.run, accelerate

for line in sys.stdin:
    job = json.loads(line)
    pids = []
    for rank in range(job['world']):
        if pid := os.fork():
            pids.append(pid)
            continue
        os.environ.update(
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=str(job['world']),
            LOCAL_WORLD_SIZE=str(job['world']),
            MASTER_ADDR='localhost',
            MASTER_PORT=str(job['port']),
            OMP_NUM_THREADS='1',
        )
        torch.set_num_threads(1)
        for fd, name in (1, 'out'), (2, 'err'):
            os.dup2(os.open(f"{job['folder']}/{name}{rank}", os.O_CREAT | os.O_WRONLY), fd)
        code = 1
        try:
            exec(job['code'], dict(rank=rank, job=job))
            code = 0
        except SystemExit as e:
            code = e.code or 0
        except BaseException:
            import traceback

            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        sys.__stderr__.flush()
        os._exit(code)
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]), flush=True)
'''


def free_port():
    with socket.socket() as s:
        s.bind(('localhost', 0))
        return s.getsockname()[1]


@pytest.fixture(scope='module', autouse=True)
def forks():
    process = subprocess.Popen(
        [sys.executable, '-c', forks_code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    yield process
    process.kill()
    process.communicate()


@pytest.fixture
def job(forks, tmp_path_factory):
    "Runs code in several processes; returns exit codes, and what each wrote on stdout and stderr"

    def start(world, code, **values):
        folder = tmp_path_factory.mktemp('job')
        forks.stdin.write(
            json.dumps(dict(world=world, code=code, folder=str(folder), port=free_port()) | values) + '\n'
        )
        forks.stdin.flush()
        codes = json.loads(forks.stdout.readline())
        return codes, *([(folder / f'{name}{rank}').read_text() for rank in range(world)] for name in ('out', 'err'))

    return start


def fine(found):
    codes, _, err = found
    assert not any(codes), '\n'.join(err)


def command(job, world, *args):
    "`reclip` with these arguments in forked processes"
    return job(
        world,
        'import sys, reclip.cli\nsys.argv = ["reclip", *job["args"]]\nreclip.cli.main()',
        args=[str(o) for o in args],
    )


torchrun = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2', '-m', 'reclip']


@pytest.fixture(scope='module')
def digits_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('digits')
    for i, image in enumerate(demo.demo_digits()[0][:N]):
        image.save(folder / f'{i:02}.png')
    return folder


@pytest.fixture(scope='module')
def single(digits_folder, tmp_path_factory):
    "Folder of the run that one process makes"
    folder = tmp_path_factory.mktemp('single') / 'RUN'
    adapt(digits_folder, names, folder, **settings)
    return folder


def same(folder, other):
    "Whether two runs say the same: labels equal, numbers to what rounding and the order of a sum can do"
    a, b = (pd.read_csv(o / 'predictions.csv') for o in (folder, other))
    words = [o for o in a if o not in ('confidence', 'probability')]
    s, t = (load_file(o / 'adapted.safetensors') for o in (folder, other))
    return (
        a[words].equals(b[words])
        and np.allclose(a[['confidence', 'probability']], b[['confidence', 'probability']], atol=1.01e-4)
        and all(torch.allclose(s[k].float(), t[k].float(), atol=1e-4) for k in s)
    )


# ---- one process


def test_one_process_is_asked_nothing():
    assert (
        share(7) == slice(0, 7)
        and everyone(3) == [3]
        and on_first(lambda: 4) == together(lambda: 4) == 4
        and default_device() in ('cpu', 'cuda')
    )
    with alone():
        assert share(7) == slice(0, 7)


@pytest.mark.parametrize('world', [2, 3, 8])
def test_shares_cover_all_rows_once(monkeypatch, world):
    monkeypatch.setenv('RANK', '1')
    monkeypatch.setenv('WORLD_SIZE', str(world))
    for n in (0, 1, 2, 5, 64, 1001):
        parts = [share(n, o) for o in range(world)]
        assert [i for o in parts for i in range(n)[o]] == list(range(n)) and share(n) == parts[1]
        sizes = [o.stop - o.start for o in parts]
        assert max(sizes) - min(sizes) <= 1 and sizes[0] == max(
            sizes
        )  # the first has something wherever there is something
    with alone():
        assert share(9) == slice(0, 9) and on_first(lambda: 5) == 5


def test_more_than_one_process_needs_accelerate(monkeypatch):
    for name, value in dict(RANK='0', WORLD_SIZE='2').items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(sys.modules, 'accelerate', None)
    with pytest.raises(ValueError, match=r"pip install 'reclip-torch\[devices\]'"):
        everyone(1)


# ---- helpers

helpers = '''
import os, signal, torch
from reclip.devices import *

assert world() == 3
me = int(os.environ['RANK'])
assert everyone(me * 'a') == ['', 'a', 'aa']
for n in (0, 1, 2, 3, 7):
    for all_rows in (
        torch.arange(2.0 * n).reshape(n, 2),
        torch.arange(n),
        torch.arange(n) % 2 == 0,
        torch.arange(2 * n).reshape(n, 2).bfloat16(),
    ):
        got = gather_rows(all_rows[share(n)], n)
        assert torch.equal(got, all_rows) and got.dtype == all_rows.dtype
uneven = gather_rows(torch.full((me * 2, 3), float(me)) if me else None)  # nothing, two and four rows
assert uneven[:, 0].tolist() == [1, 1, 2, 2, 2, 2] and uneven.shape == (6, 3)
assert gather_rows(None) is None
for n in (0, 2, 7):  # split: tensors of any number of rows, one or several
    assert torch.equal(split(lambda o: torch.arange(n)[o] ** 2, n), torch.arange(n) ** 2)
    a, b = split(lambda o: (torch.arange(n)[o].double(), torch.full((1, 2), world())), n)
    assert torch.equal(a, torch.arange(n).double()) and b.tolist() == [[1, 1]] * 3  # within it each is alone
x = torch.full((share(4).stop - share(4).start, 2), me + 1.0, requires_grad=True)  # 2, 1 and 1 rows
rows = with_own(gather_rows(x, 4), x)
(rows * torch.arange(8.0).reshape(4, 2)).sum().backward()
assert (
    rows.tolist() == [[1, 1], [1, 1], [2, 2], [3, 3]] and x.grad.tolist() == [[[0, 1], [2, 3]], [[4, 5]], [[6, 7]]][me]
)
a, b = torch.full((2, 2), float(me)), torch.ones(3, dtype=torch.float64)
add_up([a, b])
assert a.tolist() == [[3, 3], [3, 3]] and b.tolist() == [3, 3, 3] and add_up([]) is None
assert torch.equal(from_first(torch.arange(3) + me), torch.arange(3)) and from_first(
    torch.tensor([True, False]) if me == 0 else None
).tolist() == [True, False]
assert on_first(lambda: (os.environ['RANK'], world())) == ('0', 1)  # by itself
with alone():
    assert everyone(1) == [1] and is_first() and share(5) == slice(0, 5)
assert is_first() == (me == 0)
assert node_first(lambda: me) == me


class Strange(Exception):
    def __init__(self, a, b):
        super().__init__('strange')


def fail(error, *ranks):
    def run():
        if me in ranks:
            raise error
        return me

    return run


for call, expected in (
    (lambda: on_first(fail(OSError(28, 'no space'), 0)), OSError),
    (lambda: together(fail(ValueError('bad'), 1, 2)), ValueError),
    (lambda: together(fail(Strange(1, 2), 2)), RuntimeError),
    (lambda: split(lambda rows: fail(ValueError('bad'), 1)(), 5), ValueError),
    (lambda: node_first(fail(ValueError('x'), 0)), ValueError),
    (lambda: node_first(fail(ValueError('x'), 1)), ValueError),
):
    try:
        call()
    except expected as e:
        assert e.alike
    else:
        raise AssertionError('no error')
assert together(lambda: me) == me and everyone(1) == [1, 1, 1]  # still in step
if me == 2:
    os.kill(os.getpid(), signal.SIGKILL)
try:
    everyone(1)
    everyone(2)
except ProcessEnded as e:
    assert 'has ended (' in str(e)
else:
    raise AssertionError('nobody missed the third process')
'''


def test_helpers(job):
    codes, _, err = job(3, helpers)
    assert codes == [0, 0, -signal.SIGKILL], '\n'.join(err)


# ---- encoding

encoding = '''
import numpy as np
import torch
from PIL import Image
from reclip import demo, encode_images, encode_text
from reclip.pictures import UnreadableImage
from reclip.cache import cache_info, encode_cached
from reclip.images import encode_readable, find_images

model, preprocess, tokenizer = demo.demo_clip('cpu')
expected = torch.load(job['expected'], weights_only=True)
files, skipped = find_images(job['tar'])
assert torch.allclose(encode_images(model, files, preprocess, batch_size=3), expected['tar'], atol=1e-5)
for n in (1, 2, 3):
    assert torch.allclose(encode_images(model, files.keep(range(n)), preprocess), expected['tar'][:n], atol=1e-5)
for n in (1, 2, 3, 11):
    assert torch.allclose(encode_text(model, tokenizer(expected['prompts'][:n]), 2), expected['text'][:n], atol=1e-5)
told, dark = [], Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8))
encode_images(
    model,
    [dark, Image.new('L', (8, 8)), Image.new('L', (8, 8)), dark, dark],
    preprocess,
    remark=lambda i, kind, detail: told.append((i, kind)),
)
assert told == [(0, 'narrow'), (3, 'narrow'), (4, 'narrow')]  # whoever has opened them
rows, kept, skipped = encode_readable(
    model, find_images(job['few'])[0], preprocess, max_unreadable=0.5
)  # three files for four processes, one holds no image
assert (
    kept.names == ['a.png', 'c.png']
    and [o.path for o in skipped] == ['b.png']
    and torch.allclose(rows, expected['few'], atol=1e-5)
)
for run, kind, word in (
    (lambda: encode_images(model, find_images(job['few'])[0], preprocess), UnreadableImage, 'b.png'),
    (lambda: encode_readable(model, find_images(job['few'])[0], preprocess), ValueError, '1 of 3'),
    (lambda: encode_readable(model, find_images(job['few'])[0].keep([1]), preprocess), ValueError, 'none of 1'),
):
    try:
        run()
    except kind as e:
        assert word in str(e) and e.alike, (str(e), vars(e))
    else:
        raise AssertionError(word)
for known in (None, 3, 7):  # an empty store, one with three of the images, one with all
    if known:
        assert cache_info(job['store'])['rows'] >= known
    took = files.keep([0, 1, 2]) if known is None else files
    assert torch.allclose(encode_cached(model, took, preprocess, job['store']), expected['tar'][: len(took)], atol=1e-5)
rows, kept, skipped = encode_readable(
    model,
    find_images(job['few'])[0],
    preprocess,
    (),
    0.5,
    lambda *args, **more: encode_cached(*args, cache=job['store'], **more),
)
assert (
    kept.names == ['a.png', 'c.png']
    and [o.path for o in skipped] == ['b.png']
    and torch.allclose(rows, expected['few'], atol=1e-5)
)
real = model.encode_image


def small(x):  # memory is short in one process alone
    if rank == 1 and len(x) > 1:
        raise MemoryError
    return real(x)


model.encode_image = small
assert torch.allclose(encode_images(model, files, preprocess), expected['tar'], atol=1e-5)
'''


def test_encoding_in_parts(job, clip, tmp_path):
    model, preprocess, tokenizer = clip
    images = demo.demo_digits()[0]
    (tmp_path / 'few').mkdir()
    images[0].save(tmp_path / 'few' / 'a.png')
    images[1].save(tmp_path / 'few' / 'c.png')
    (tmp_path / 'few' / 'b.png').write_bytes(b'not an image')
    with tarfile.open(tmp_path / 'shard.tar', 'w') as archive:
        for i in range(7):
            images[i].save(tmp_path / f'{i}.png')
            archive.add(tmp_path / f'{i}.png', f'{i}.png')
    prompts = [f'a photo of the number {o}.' for o in names[:8]] + [
        'a zero',
        'one',
        'a photo of the number one.',
    ]  # one of them twice
    torch.save(
        dict(
            tar=encode_images(model, find_images(tmp_path / 'shard.tar')[0], preprocess),
            few=encode_images(model, images[:2], preprocess),
            prompts=prompts,
            text=encode_text(model, tokenizer(prompts)),
        ),
        tmp_path / 'expected.pt',
    )
    fine(
        job(
            4,
            encoding,
            expected=str(tmp_path / 'expected.pt'),
            tar=str(tmp_path / 'shard.tar'),
            few=str(tmp_path / 'few'),
            store=str(tmp_path / 'store'),
        )
    )
    assert cache_info(tmp_path / 'store')['rows'] == 7  # a and c are two of them


# ---- propagation

propagation = '''
import torch
from reclip.pseudolabel import propagate_labels
from reclip.tests.conftest import blobs

expected = torch.load(job['expected'], weights_only=True)
for key, theirs in expected.items():
    m, search = key.split()
    images, texts, _ = blobs(1500, int(m), d=24, dtype=torch.float32)
    for ours, other in zip(propagate_labels(images, texts, None, search=search), theirs):
        assert torch.allclose(ours, other, atol=1e-5), key
'''


def test_propagation_in_parts(job, tmp_path):
    "Neighbours of a share of the nodes, colours of a share of the classes; of three processes one has no class"
    from reclip.pseudolabel import propagate_labels
    from reclip.tests.conftest import blobs

    cases = {}
    for m, search in ((2, 'exact'), (40, 'exact'), (40, 'approximate')):
        images, texts, _ = blobs(1500, m, d=24, dtype=torch.float32)
        cases[f'{m} {search}'] = list(propagate_labels(images, texts, None, search=search))
    torch.save(cases, tmp_path / 'expected.pt')
    fine(job(3, propagation, expected=str(tmp_path / 'expected.pt')))


# ---- training

training = '''
import torch
from reclip import demo, prompts
from reclip.clip import Clip
from reclip.selftrain import adapt
from reclip.shared import training_class

model, preprocess, tokenizer = demo.demo_clip('cpu')
model.requires_grad_(True)
model.visual.register_module('spare', torch.nn.LayerNorm(3))  # never reached: must stay as it is, without weight decay
images, _ = demo.demo_digits()
names = [['zero', 'null', 'nought'], 'one', 'two', ['three', 'trio'], 'four', 'five', 'six', 'seven', 'eight', 'nine'][
    : job['classes']
]
real_image, real_text = model.encode_image, prompts.encode_tokens


def short_image(x):  # memory is short, but only in one process, and only in training
    if job['short'] and rank == 1 and len(x) > 2 and torch.is_grad_enabled():
        raise MemoryError
    return real_image(x)


def short_text(model, tokens):
    if job['short'] and rank == 0 and len(tokens) > 4 and torch.is_grad_enabled():
        raise MemoryError
    return real_text(model, tokens)


model.encode_image, prompts.encode_tokens = short_image, short_text
found = adapt(
    Clip(model, preprocess, tokenizer),
    images[: job['n']],
    names,
    demo.templates[:2],
    epochs=2,
    batch_size=8,
    recipe=job['recipe'],
    lr_image=0.002,
    training=training_class(),
)
expected = torch.load(job['expected'], weights_only=True)
for name, state in (('text', found.text_state), ('image', found.image_state)):
    for k, v in state.items():
        assert torch.allclose(v, expected[name][k], atol=1e-4), (k, (v - expected[name][k]).abs().max())
assert torch.equal(found.image_state['visual.spare.weight'], torch.ones(3))
assert torch.equal(found.pseudo_labels, expected['pseudo_labels'])
for row, (loss_t, loss_v) in zip(found.history[1:], expected['losses']):
    assert abs(row['loss_t'] - loss_t) < 1e-3 * loss_t and abs(row['loss_v'] - loss_v) < 1e-3 * loss_v
'''


@pytest.mark.parametrize(
    'world, classes, n, recipe, short', [(3, 10, 33, 'paper', True), (4, 3, 17, 'official', False)]
)  # aliases; fewer classes, and images of a step, than processes
def test_training_in_parts(job, own_clip, tmp_path, world, classes, n, recipe, short):
    from reclip.clip import Clip
    from reclip.selftrain import adapt as train

    model, preprocess, tokenizer = own_clip
    model.visual.register_module('spare', torch.nn.LayerNorm(3))
    aliases = [['zero', 'null', 'nought'], 'one', 'two', ['three', 'trio'], *names[4:]][:classes]
    found = train(
        Clip(model, preprocess, tokenizer),
        demo.demo_digits()[0][:n],
        aliases,
        demo.templates[:2],
        epochs=2,
        batch_size=8,
        recipe=recipe,
        lr_image=0.002,
    )
    assert not torch.equal(
        found.image_state['visual.ln_post.weight'], dict(model.named_parameters())['visual.ln_post.weight']
    )
    torch.save(
        dict(
            text=found.text_state,
            image=found.image_state,
            pseudo_labels=found.pseudo_labels,
            losses=[(o['loss_t'], o['loss_v']) for o in found.history[1:]],
        ),
        tmp_path / 'expected.pt',
    )
    fine(job(world, training, expected=str(tmp_path / 'expected.pt'), classes=classes, n=n, recipe=recipe, short=short))


# ---- whole runs


def test_accelerate_launch(single, digits_folder, tmp_path):
    launch = [
        sys.executable,
        '-m',
        'accelerate.commands.launch',
        '--multi_gpu',
        '--num_processes',
        '2',
        '--num_machines',
        '1',
        '--mixed_precision',
        'no',
        '--dynamo_backend',
        'no',
        '--main_process_port',
        str(free_port()),
        '-m',
        'reclip',
    ]
    found = subprocess.run(
        [*launch, 'adapt', digits_folder, *options, '--no-cache', '-o', tmp_path / 'RUN'],
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    assert (
        same(tmp_path / 'RUN', single)
        and json.loads((tmp_path / 'RUN' / 'config.json').read_text())['run']['machine']['processes'] == 2
    )
    assert (
        found.stdout.count('predictions.csv has every label') == 1 and found.stderr.count('images found') == 1
    )  # one voice
    assert sorted(o.name for o in tmp_path.iterdir()) == ['RUN'] and sorted(
        o.name for o in (tmp_path / 'RUN').iterdir()
    ) == sorted(o.name for o in single.iterdir())


def test_a_killed_worker_fails_the_job_and_resume_recovers(job, single, digits_folder, tmp_path):
    "torchrun, one worker killed after the first epoch; then on with one process, and with two"
    partial = tmp_path / 'RUN.partial'
    launched = subprocess.Popen(
        [*torchrun, 'adapt', digits_folder, *options, '--cache', tmp_path / 'cache', '-o', tmp_path / 'RUN'],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (partial / 'checkpoint.safetensors').is_file():
        assert launched.poll() is None, launched.communicate()[1]
        time.sleep(0.01)
    workers = [o for o in psutil.Process(launched.pid).children() if o.environ().get('RANK') == '1']
    workers[0].kill()
    err = launched.communicate()[1]
    assert launched.returncode != 0 and not (tmp_path / 'RUN').exists() and partial.is_dir()
    said = [line for line in err.splitlines() if line.startswith('reclip adapt: ')]
    assert len(said) == 1 and 'has ended' in said[0] and '--resume' in said[0] and 'reclip/cli.py' not in err, (
        err
    )  # torchrun has a traceback of its own, but none of ours
    assert cache_info(tmp_path / 'cache')['rows'] == len(
        pd.unique(pd.Series([o.read_bytes() for o in digits_folder.iterdir()]))
    )  # each kept its share
    shutil.copytree(partial, tmp_path / 'TWO.partial')
    adapt(digits_folder, names, tmp_path / 'RUN', resume=True, **settings)
    assert same(tmp_path / 'RUN', single)
    codes, out, err = command(job, 2, 'adapt', digits_folder, *options, '-o', tmp_path / 'TWO', '--resume')
    assert (
        codes == [0, 0]
        and 'going on after epoch' in err[0]
        and err[1] == out[1] == ''
        and same(tmp_path / 'TWO', single)
    ), err
    codes, out, err = command(
        job, 2, 'adapt', digits_folder, *options, '-o', tmp_path / 'TWO', '--resume'
    )  # finished: said once, nothing done
    assert codes == [0, 0] and 'finished already' in err[0] and err[1] == ''


def test_other_methods_and_predict(job, single, digits_folder, tmp_path):
    np.save(tmp_path / 'rows.npy', load_file(single / 'features.safetensors')['frozen'].float().numpy())
    for number, args, more in (
        (2, ['zeroshot', digits_folder], {}),
        (2, ['adapt', tmp_path / 'rows.npy'], {}),
        (3, ['predict', single, digits_folder], {}),
    ):
        words = [] if args[0] == 'predict' else ['-c', WORDS, '-t', 'digit', '-m', 'demo']
        codes, out, err = command(job, number, *args, *words, '-o', tmp_path / f'{args[0]}.csv', '--device', 'cpu')
        assert not any(codes) and out[0] and not any(out[1:]) and not any(err[1:]), err
        if args[0] != 'predict':
            shutil.move(tmp_path / f'{args[0]}.csv', tmp_path / args[0])
    adapt(
        digits_folder,
        names,
        tmp_path / 'Z',
        method='zeroshot',
        **{k: v for k, v in settings.items() if k not in ('epochs', 'batch_size')},
    )
    adapt(
        tmp_path / 'rows.npy',
        names,
        tmp_path / 'F',
        **{k: v for k, v in settings.items() if k not in ('epochs', 'batch_size')},
    )
    assert same(tmp_path / 'zeroshot', tmp_path / 'Z') and same(tmp_path / 'adapt', tmp_path / 'F')
    table, _, _ = predict(single, digits_folder, device='cpu', progress=False)
    assert pd.read_csv(tmp_path / 'predict.csv').label.equals(table.label)


def test_bad_input_is_one_sentence(job, single, digits_folder, tmp_path):
    good = ['-c', WORDS, '-m', 'demo', '--device', 'cpu', '-q', '-o', tmp_path / 'R']
    bad = tmp_path / 'bad'
    bad.mkdir()
    for i in range(4):
        (bad / f'{i}.png').write_bytes(b'no image')
    for args, word in [
        (['adapt', tmp_path / 'nowhere', *good], 'not there'),
        (['adapt', digits_folder, *good, '--alpha', 1.5], 'alpha'),
        (['adapt', digits_folder, *good[:-1], single], '--overwrite'),
        (['adapt', bad, *good], 'none of 4'),
        (['adapt', digits_folder, *good, '--lr-image', '1e30', '--epochs', 1], 'lower lr_image (--lr-image)'),
        (['predict', single, digits_folder, '-o', tmp_path / 'x.txt'], '.csv'),
        (['info', tmp_path], 'not a finished run'),
    ]:
        codes, out, err = command(job, 2, *args)
        assert (codes == [2, 2] or args[0] == 'info' and codes == [2, 0]) and not any(out), (args, codes, out, err)
        assert len(err[0].splitlines()) == 1 and word in err[0] and err[1] == '', (args, err)
        shutil.rmtree(tmp_path / 'R.partial', ignore_errors=True)
    assert sorted(o.name for o in tmp_path.iterdir()) == ['bad']
    codes, out, err = command(job, 2, 'adapt', '--nonsense')
    assert codes == [2, 2] and 'nonsense' in err[0] and out[1] == err[1] == ''
    codes, out, err = command(job, 2, 'info', single)
    assert codes == [0, 0] and 'n_images' in out[0] and out[1] == err[1] == ''


def test_an_error_in_one_process_alone_is_said_by_it(job, digits_folder, tmp_path):
    "An image that vanishes during training: the process that misses it says so, the other that it cannot go on"
    code = '''
import sys, reclip.cli
from reclip import pictures

real = pictures.ImageDataset.__getitem__


def missing(self, i):
    if rank == 1 and missing.on:
        raise pictures.UnreadableImage('07.png: not there')
    return real(self, i)


missing.on = False
pictures.ImageDataset.__getitem__ = missing
from reclip import selftrain

train = selftrain.train_epoch


def train_epoch(*args):
    missing.on = True
    return train(*args)


selftrain.train_epoch = train_epoch
sys.argv = ["reclip", *job["args"]]
reclip.cli.main()
'''
    codes, out, err = job(
        2, code, args=[str(o) for o in ['adapt', digits_folder, *options, '-q', '-o', tmp_path / 'R']]
    )
    assert (
        codes == [1, 2]
        and err[1].strip() == 'reclip adapt: 07.png: not there'
        and 'another process of this job has ended' in err[0]
    ), err
    assert len(err[0].splitlines()) == 1 and not (tmp_path / 'R').exists() and (tmp_path / 'R.partial').is_dir()


@pytest.mark.cuda
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason='needs two GPUs')
def test_two_gpus(single, digits_folder, tmp_path):
    "NCCL, a GPU for each process"
    chosen = [o for o in options if o not in ('--device', 'cpu')]
    found = subprocess.run(
        [*torchrun, 'adapt', digits_folder, *chosen, '-o', tmp_path / 'RUN'], capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr
    a, b = (pd.read_csv(o / 'predictions.csv') for o in (tmp_path / 'RUN', single))
    assert (a.label == b.label).mean() > 0.99 and np.allclose(a.probability, b.probability, atol=0.01)
