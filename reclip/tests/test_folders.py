"Whole folders, one process at a time, a run goes on only with what it was begun with; at the command line's border."

import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from hashlib import blake2b
from importlib import import_module
from pathlib import Path
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner
from reclip import ReCLIP, demo, files, folders, found as found_page, kept, places, run
from reclip.cli import app
from reclip.notes import note
from reclip.report import open_run

names = list(demo.class_names)
WORDS = ['-c', ', '.join(names), '-t', 'digit', '-m', 'demo', '--device', 'cpu']
HOST = socket.gethostname()


# ---- what the tests share


def call(*args):
    return CliRunner().invoke(app, [str(o) for o in args])


def entries(folder):
    return sorted(o.name for o in Path(folder).iterdir())


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).rglob('*')) if p.is_file()}


def results(folder):
    return {
        o: (Path(folder) / o).read_bytes()
        for o in ('predictions.csv', 'adapted.safetensors', 'features.safetensors', 'skipped.csv')
    }


def refused(found, *words):
    "One sentence, exit code 2"
    lines = [o for o in found.stderr.splitlines() if o]
    assert found.exit_code == 2 and len(lines) == 1, (found.output, found.exception)
    for word in words:
        assert word in lines[0], lines[0]


def fine(found):
    assert found.exit_code == 0, (found.output, found.exception)


@pytest.fixture
def scans(tmp_path):
    "A folder of 20 digits that a test may change"
    (tmp_path / 'in').mkdir()
    for i, image in enumerate(demo.demo_digits()[0][:20]):
        image.save(tmp_path / 'in' / f'{i:02}.png')
    return tmp_path / 'in'


@pytest.fixture(scope='module')
def toy(tmp_path_factory):
    "Folder of a whole model, as open_clip writes them"
    root = tmp_path_factory.mktemp('toy')
    np.save(
        root / 'rows.npy',
        torch.nn.functional.normalize(torch.randn(30, 64, generator=torch.Generator().manual_seed(0)), dim=1).numpy(),
    )
    run.adapt(root / 'rows.npy', names, root / 'run', 'demo', method='zeroshot', device='cpu', progress=False)
    return run.export(root / 'run', root / 'model')


class PowerCut(Exception):
    "Ends a command as a kill would, but for what `finally` does"


def stop(*args, **more):
    raise PowerCut


def cut(at, *args):
    "A command that ends when it comes to a function"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(at, stop)
        found = call(*args)
    assert isinstance(found.exception, PowerCut), (found.output, found.exception)


code = '''
import json, os, sys
import torch

torch.set_num_threads(1)
import reclip.cli, reclip.run, reclip.report

for line in sys.stdin:
    job = json.loads(line)
    if pid := job.get('wait'):
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
        continue
    if pid := os.fork():
        print(pid, flush=True)
        continue
    os.setpgid(0, 0)
    for fd, name in (1, 'out'), (2, 'err'):
        os.dup2(os.open(f"{job['folder']}/{name}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC), fd)
    sys.argv = ['reclip', *job['args']]
    try:
        exec(job['first'])
        reclip.cli.main()
        code = 0
    except SystemExit as e:
        code = e.code or 0
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
'''


@pytest.fixture(scope='module', autouse=True)
def warm():
    "A process that has imported everything, and forks"
    process = subprocess.Popen([sys.executable, '-c', code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    yield process
    process.kill()
    process.communicate()


@pytest.fixture
def begin(warm, tmp_path_factory):
    """Starts a command in a process of its own, after some code

    Gives its id, a function that waits for (exit status, stderr), and where it says that it has come to a point.
    """

    def start(*args, first='pass'):
        folder = tmp_path_factory.mktemp('process')

        def ask(**job):
            warm.stdin.write(json.dumps(job) + '\n')
            warm.stdin.flush()
            return int(warm.stdout.readline())

        pid = ask(
            args=[str(o) for o in args],
            folder=str(folder),
            first=first.replace('READY', repr(str(folder / 'ready'))).replace('GO', repr(str(folder / 'go'))),
        )

        def wait():
            return ask(wait=pid), (folder / 'err').read_text()

        return pid, wait, folder

    return start


# a process that has come to a function says so, and waits
PAUSE = '''
import time, pathlib, reclip.adapt
def pausing(real):
    def function(*args, **more):
        pathlib.Path(READY).touch()
        while not os.path.exists(GO): time.sleep(.01)
        return real(*args, **more)
    return function
reclip.run.{0} = pausing(reclip.run.{0})
'''


def until(path, seconds=60):
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end
        time.sleep(0.01)


# ---- one process at a time


def test_a_second_process_says_who_is_there(begin, scans, tmp_path, monkeypatch):
    out = tmp_path / 'RUN'
    fine(call('zeroshot', scans, *WORDS, '-o', out, '-q'))
    before = contents(out)
    pid, wait, told = begin(
        'adapt', scans, *WORDS, '-o', out, '--overwrite', '--epochs', 0, first=PAUSE.format('prepare')
    )
    until(told / 'ready')
    with monkeypatch.context() as patch:
        patch.setattr('reclip.adapt.load_clip', lambda *args: pytest.fail('it loaded the model'))
        for command, *flags in (
            ('adapt', '--overwrite'),
            ('adapt', '--resume', '--overwrite'),
            ('zeroshot', '--overwrite'),
            ('zeroshot', '--resume'),
        ):
            refused(
                call(command, scans, *WORDS, '-o', out, *flags, '-q'),
                f'in use by process {pid} on {HOST}, since 20',
                'wait until it has ended',
            )
        refused(call('report', out, '-q'), f'in use by process {pid}')
    fine(call('info', out))  # who reads need not wait
    assert contents(out) == before
    (told / 'go').touch()
    assert wait()[0] == 0
    assert run.read_run(out)['run']['method'] == 'adapt' and entries(tmp_path) == ['RUN', 'in']


def test_resume_twice_at_once(begin, scans, tmp_path):
    options = [*WORDS, '--epochs', 1, '-q']
    fine(call('adapt', scans, *options, '-o', tmp_path / 'whole'))
    cut('reclip.run._fit', 'adapt', scans, *options, '-o', tmp_path / 'RUN')
    pid, wait, told = begin('adapt', scans, *options, '-o', tmp_path / 'RUN', '--resume', first=PAUSE.format('_fit'))
    until(told / 'ready')
    refused(call('adapt', scans, *options, '-o', tmp_path / 'RUN', '--resume'), f'in use by process {pid}')
    (told / 'go').touch()
    assert wait() == (0, '')
    assert results(tmp_path / 'RUN') == results(tmp_path / 'whole') and entries(tmp_path) == ['RUN', 'in', 'whole']


@pytest.mark.parametrize('sign', [signal.SIGKILL, signal.SIGTERM])
def test_a_dead_process_holds_nothing(begin, scans, tmp_path, sign):
    out = tmp_path / 'deep' / 'RUN'
    forking = (
        PAUSE.format('_fit')
        + '\nreal = reclip.run._fit\ndef forked(*args):\n    if not os.fork():\n'
        + '        time.sleep(60)\n        os._exit(0)\n    return real(*args)\nreclip.run._fit = forked'
    )
    pid, wait, told = begin(
        'zeroshot', scans, *WORDS, '-o', out, '-q', first=forking
    )  # its child lives on, as a process that opens images may
    until(told / 'ready')
    os.kill(pid, sign)
    assert wait()[0] != 0
    refused(call('zeroshot', scans, *WORDS, '-o', out, '-q'), 'holds an unfinished run', '--resume')
    fine(call('zeroshot', scans, *WORDS, '-o', out, '--resume', '-q'))
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        assert sign == signal.SIGTERM
    assert entries(tmp_path / 'deep') == ['RUN'] and run.is_run(out)


def test_locks_in_one_process(tmp_path):
    with places.hold(tmp_path / 'a' / 'b' / 'x'):
        with (
            pytest.raises(BlockingIOError, match=f'x is in use by process {os.getpid()} on '),
            places.hold(tmp_path / 'a' / 'b' / 'x', patience=0),
        ):
            pass
        with places.hold(tmp_path / 'a' / 'b' / 'y'):
            assert len(entries(tmp_path / 'a' / 'b')) == 2
    assert not entries(tmp_path)  # nor the folders that it made
    with places.hold(tmp_path / 'x' / 'y'):
        (tmp_path / 'x' / 'mine').touch()
    assert contents(tmp_path) == {'x/mine': b''}


@pytest.mark.parametrize('content', ['', '{"pid": 3', 'null', '{"pid": 3, "host": "h", "since": "s"}'])
def test_a_lock_of_a_dead_process_is_taken(tmp_path, content):
    (tmp_path / '.x.reclip-lock').write_text(content)
    with places.hold(tmp_path / 'x', patience=0):
        pass
    assert not entries(tmp_path)


def test_many_want_one_place(tmp_path):
    "One at a time, whoever removes the file while others wait for it"
    code = (
        'import os, sys\nfrom reclip.places import hold\nfor _ in range(20):\n    with hold(sys.argv[1], 60):\n'
        '        os.mkdir(sys.argv[2])\n        os.rmdir(sys.argv[2])'
    )
    started = [
        subprocess.Popen(
            [sys.executable, '-c', code, tmp_path / 'x', tmp_path / 'y'], stderr=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    for process in started:
        assert not process.communicate()[1]
    assert not entries(tmp_path)


def test_a_disk_without_locks_is_noted(scans, tmp_path, monkeypatch):
    monkeypatch.setattr('reclip.places.lock', lambda handle: None)
    monkeypatch.setattr('reclip.folders.lock', lambda handle: None)
    monkeypatch.setattr('reclip.files.lock', lambda handle: None)
    (tmp_path / '.RUN.reclip-dead0000').mkdir()
    (tmp_path / '.RUN.reclip-young000').mkdir()
    os.utime(tmp_path / '.RUN.reclip-dead0000', (0, time.time() - 4000))
    found = call('zeroshot', scans, *WORDS, '-o', tmp_path / 'RUN')
    fine(found)
    told = f'{tmp_path} has no locks for us; let only one process at a time write to RUN'
    assert f'note: {told}' in found.stderr and run.read_run(tmp_path / 'RUN')['notes'] == [told]
    assert entries(tmp_path) == ['.RUN.reclip-young000', 'RUN', 'in']  # who knows whether somebody is at work there
    os.replace(tmp_path / 'RUN', tmp_path / '.RUN.reclip-young000' / 'old')  # killed between two renames
    found = call('info', tmp_path / 'RUN')
    assert found.exit_code == 2 and 'not a finished run' in found.stderr
    os.utime(tmp_path / '.RUN.reclip-young000', (0, time.time() - 20))
    fine(call('info', tmp_path / 'RUN'))
    assert run.is_run(tmp_path / 'RUN')


# ---- what a run was begun with

WHEN = dict(encoded='reclip.run._fit', trained='reclip.run.write_results', finished=None)


def stopped(when, scans, out, *options):
    "A run that was stopped when its features were known, when it had trained, or on its last step"
    if when == 'placing':
        cut('reclip.run.finish', 'adapt', scans, *WORDS, '--epochs', 1, '-o', out, '-q', *options)
    else:
        cut(WHEN[when], 'adapt', scans, *WORDS, '--epochs', 1, '-o', out, '-q', *options)


@pytest.mark.parametrize('when', ['encoded', 'trained', 'placing'])
@pytest.mark.parametrize('cache', [[], ['--no-cache']])
def test_pictures_that_changed_before_a_resume(scans, tmp_path, when, cache):
    stopped(when, scans, tmp_path / 'RUN', *cache)
    other = demo.demo_digits()[0]
    for i in (3, 5):
        times = (scans / f'{i:02}.png').stat()
        other[100 + i].save(scans / f'{i:02}.png')
        os.utime(scans / f'{i:02}.png', ns=(times.st_atime_ns, times.st_mtime_ns))
    again = ['adapt', scans, *WORDS, '--epochs', 1, '-q', *cache]
    before = contents(tmp_path / 'RUN.partial')
    refused(
        call(*again, '-o', tmp_path / 'RUN', '--resume'),
        '2 of 20 images have changed',
        'the first: 03.png',
        '--overwrite',
    )
    assert contents(tmp_path / 'RUN.partial') == before and entries(tmp_path) == ['RUN.partial', 'in']
    fine(call(*again, '-o', tmp_path / 'RUN', '--resume', '--overwrite'))
    fine(call(*again, '-o', tmp_path / 'clean'))
    assert results(tmp_path / 'RUN') == results(tmp_path / 'clean') and entries(tmp_path) == ['RUN', 'clean', 'in']


def test_pictures_that_were_only_touched(scans, tmp_path):
    stopped('encoded', scans, tmp_path / 'RUN')
    for path in scans.iterdir():
        shutil.copy(path, tmp_path / 'x')
        os.replace(tmp_path / 'x', path)
        os.utime(path)
    fine(call('adapt', scans, *WORDS, '--epochs', 1, '-q', '-o', tmp_path / 'RUN', '--resume'))


@pytest.mark.parametrize(
    'change, says',
    [
        ('mended', '1 of 20 images has changed'),
        ('gone', '2 images of the unfinished run are gone, such as 07.png'),
        ('come', '1 image has come'),
        ('unreadable', '1 of 20 images has changed'),
    ],
)
def test_pictures_that_were_mended_or_moved_before_a_resume(scans, tmp_path, change, says):
    whole = (scans / '04.png').read_bytes()
    if change == 'mended':
        (scans / '04.png').write_bytes(whole[:60])
    stopped('encoded', scans, tmp_path / 'RUN', '--max-unreadable', '.2')
    if change == 'mended':
        (scans / '04.png').write_bytes(whole)
    if change == 'gone':
        (scans / '07.png').unlink()
        (scans / '09.png').unlink()
    if change == 'come':
        (scans / 'new.png').write_bytes(whole)
    if change == 'unreadable':
        (scans / '04.png').write_bytes(b'')
    refused(
        call('adapt', scans, *WORDS, '--epochs', 1, '-q', '--max-unreadable', '.2', '-o', tmp_path / 'RUN', '--resume'),
        says,
    )


def test_members_of_an_archive_that_changed(scans, tmp_path):
    import tarfile

    def pack():
        with tarfile.open(tmp_path / 'in.tar', 'w') as archive:
            for path in sorted(scans.iterdir()):
                archive.add(path, path.name)

    pack()
    stopped('encoded', tmp_path / 'in.tar', tmp_path / 'RUN')
    shutil.copy(scans / '08.png', scans / '02.png')
    pack()
    refused(
        call('adapt', tmp_path / 'in.tar', *WORDS, '--epochs', 1, '-q', '-o', tmp_path / 'RUN', '--resume'),
        '1 of 20 images has changed',
        'in.tar/02.png',
    )


def tamper(model, part):
    "Change one number of a model, or what is done to a picture"
    config, weights = model / 'open_clip_config.json', model / 'open_clip_model.safetensors'
    if part == 'preprocessing':
        about = json.loads(config.read_text())
        config.write_text(json.dumps(about | dict(preprocess_cfg=about['preprocess_cfg'] | dict(mean=[0.4, 0.5, 0.5]))))
        return
    tensors = load_file(weights)
    key = dict(image='visual.transformer.resblocks.0.mlp.c_fc.weight', text='transformer.resblocks.0.mlp.c_fc.weight')[
        part
    ]
    tensors[key].view(-1)[0] += 1e-3
    save_file(tensors, weights)


@pytest.mark.parametrize(
    'part, says',
    [
        ('image', 'other weights of the image tower'),
        ('text', 'other weights of the text tower'),
        ('preprocessing', 'other preprocessing'),
    ],
)
def test_a_model_that_changed_before_a_resume(scans, toy, tmp_path, part, says):
    model = shutil.copytree(toy, tmp_path / 'model')
    job = ['zeroshot', scans, *WORDS, '-m', f'local-dir:{model}', '-q', '-o', tmp_path / 'RUN']
    cut('reclip.run._fit', *job)
    tamper(model, part)
    refused(call(*job, '--resume'), 'the model has changed since the unfinished run was begun', says)
    fine(call(*job, '--resume', '--overwrite'))
    fine(call(*job, '--resume'))
    tamper(model, part) if part != 'preprocessing' else shutil.copy(toy / 'open_clip_config.json', model)
    refused(call(*job, '--resume'), 'the model has changed since the run in', says)


@pytest.mark.parametrize('words', [['-c', 'cat, dog'], ['-t', 'photo'], ['-c', '{0}/descriptions.json']])
def test_words_that_changed_before_a_resume(scans, tmp_path, words):
    (tmp_path / 'descriptions.json').write_text(json.dumps({o: [f'the digit {o}.'] for o in names}))
    stopped('encoded', scans, tmp_path / 'RUN')
    refused(
        call(
            'adapt',
            scans,
            *WORDS,
            *(o.format(tmp_path) for o in words),
            '--epochs',
            1,
            '-q',
            '-o',
            tmp_path / 'RUN',
            '--resume',
        ),
        'cannot tell' if 'cat, dog' in words else 'begun with other settings',
    )


@pytest.mark.parametrize(
    'change, says',
    [
        (None, ''),
        ('changed', '1 of 20 images has changed since the run in'),
        ('gone', '1 image of the run in'),
        ('come', '1 image has come since the run in'),
    ],
)
def test_a_finished_run_whose_pictures_changed(scans, tmp_path, change, says):
    job = ['zeroshot', scans, *WORDS, '-o', tmp_path / 'RUN', '--resume']
    fine(call(*job, '-q'))
    before = contents(tmp_path / 'RUN')
    if change == 'changed':
        shutil.copy(scans / '08.png', scans / '02.png')
    if change == 'gone':
        (scans / '02.png').unlink()
    if change == 'come':
        shutil.copy(scans / '08.png', scans / 'new.png')
    found = call(*job) if change is None else call(*job, '-q')
    if change is None:
        fine(found)
        assert 'is finished already' in found.stderr
    else:
        refused(found, says)
    assert contents(tmp_path / 'RUN') == before


def test_features_that_changed(toy, tmp_path):
    rows = np.load(toy.parent / 'rows.npy')
    np.save(tmp_path / 'rows.npy', rows)
    job = ['adapt', tmp_path / 'rows.npy', *WORDS, '-q', '-o', tmp_path / 'RUN', '--resume']
    fine(call(*job))
    fine(call(*job))
    np.save(tmp_path / 'rows.npy', rows[::-1])
    refused(call(*job), '30 of 30 images have changed since the run in', 'the first: 0')
    cut(
        'reclip.run._fit', *job[:-3], '-o', tmp_path / 'other'
    )  # nothing of the rows was kept, so it begins with those that are there
    np.save(tmp_path / 'rows.npy', rows)
    fine(call(*job[:-3], '-o', tmp_path / 'other', '--resume'))
    assert results(tmp_path / 'other') == results(tmp_path / 'RUN')


def test_a_picture_that_changes_while_it_is_read(scans, tmp_path, monkeypatch):
    "The digest that a run keeps is that of what was encoded, also without a cache"
    real = found_page.encode_readable

    def swap(*args, **more):
        shutil.copy(scans / '08.png', scans / '02.png')
        return real(*args, **more)

    monkeypatch.setattr(found_page, 'encode_readable', swap)
    fine(call('zeroshot', scans, *WORDS, '-q', '-o', tmp_path / 'RUN', '--no-cache'))
    skipped = pd.read_csv(tmp_path / 'RUN' / 'skipped.csv')
    assert skipped.path.tolist() == ['02.png'] and 'changed while it was being read' in skipped.reason[0]


def test_digests_stay_with_the_run(scans, toy, tmp_path):
    (scans / '04.png').write_bytes(b'no picture')
    fine(call('zeroshot', scans, *WORDS, '-q', '-o', tmp_path / 'RUN'))
    table = run.read_predictions(tmp_path / 'RUN')
    assert (
        run.read_digests(tmp_path / 'RUN')
        == [blake2b((scans / o).read_bytes(), digest_size=16).digest() for o in table.path]
        and len(table) == 19
    )
    (tmp_path / 'RUN' / 'digests.safetensors').write_bytes(b'half')
    with pytest.raises(ValueError, match='digests.safetensors is damaged'):
        run.read_digests(tmp_path / 'RUN')
    save_file(dict(digests=torch.zeros(19, 8, dtype=torch.uint8)), tmp_path / 'RUN' / 'digests.safetensors')
    with pytest.raises(ValueError, match='digests.safetensors is damaged'):
        run.read_digests(tmp_path / 'RUN')


def test_a_run_of_the_first_version(scans, tmp_path):
    "It had no digests, no id and no notes"
    job = ['zeroshot', scans, *WORDS, '-o', tmp_path / 'RUN']
    fine(call(*job, '-q'))
    (tmp_path / 'RUN' / 'digests.safetensors').unlink()
    config = json.loads((tmp_path / 'RUN' / 'config.json').read_text())
    del config['notes'], config['run']['id'], config['run']['weights']
    (tmp_path / 'RUN' / 'config.json').write_text(json.dumps(config))
    assert (
        run.read_digests(tmp_path / 'RUN') is None
        and run.read_run(tmp_path / 'RUN')['notes'] == []
        and len(open_run(tmp_path / 'RUN').table) == 20
    )
    fine(call('info', tmp_path / 'RUN'))
    fine(call('predict', tmp_path / 'RUN', scans, '-o', tmp_path / 'p.csv', '-q'))
    found = call(*job, '--resume')
    fine(found)
    assert (
        'note: ' in found.stderr and 'which kept no digests' in found.stderr and 'is finished already' in found.stderr
    )
    fine(call(*job, '--overwrite', '-q'))


@pytest.mark.parametrize('notes', ['one', [3], {}])
def test_notes_that_are_no_notes(scans, tmp_path, notes):
    fine(call('zeroshot', scans, *WORDS, '-o', tmp_path / 'RUN', '-q'))
    config = json.loads((tmp_path / 'RUN' / 'config.json').read_text())
    (tmp_path / 'RUN' / 'config.json').write_text(json.dumps(config | dict(notes=notes)))
    refused(call('info', tmp_path / 'RUN'), 'notes are not sentences')


@pytest.mark.parametrize('name', ['frozen.safetensors', 'checkpoint.safetensors'])
def test_files_of_two_runs_are_not_mixed(scans, tmp_path, name):
    for o in ('RUN', 'other'):
        stopped('trained', scans, tmp_path / o)
    assert run.read_begun(tmp_path / 'RUN.partial')['run_id'] != run.read_begun(tmp_path / 'other.partial')['run_id']
    os.replace(tmp_path / 'other.partial' / name, tmp_path / 'RUN.partial' / name)
    job = ['adapt', scans, *WORDS, '--epochs', 1, '-q', '-o', tmp_path / 'RUN', '--resume']
    refused(call(*job), f'{name} belongs to another run', '--overwrite')
    if name == 'frozen.safetensors':
        fine(call(*job, '--overwrite'))
        about = run.read_run(tmp_path / 'RUN')['run']
        assert about['id'] == kept.read_tensors(tmp_path / 'RUN' / 'digests.safetensors')[1]['run_id']


@pytest.mark.parametrize(
    'name, content',
    [('begun.json', '{'), ('begun.json', '[]'), ('begun.json', '{"method": "adapt"}'), ('frozen.safetensors', 'half')],
)
def test_what_is_damaged_can_be_begun_anew_at_once(scans, tmp_path, name, content):
    stopped('encoded', scans, tmp_path / 'RUN')
    (tmp_path / 'RUN.partial' / name).write_text(content)
    job = ['adapt', scans, *WORDS, '--epochs', 1, '-q', '-o', tmp_path / 'RUN', '--resume']
    refused(call(*job), name, '--overwrite')
    fine(call(*job, '--overwrite'))
    assert entries(tmp_path) == ['RUN', 'in']


# ---- notes


def test_notes_of_all_stages_survive_a_kill(scans, tmp_path, monkeypatch):
    real = found_page.encode_readable

    def encode(*args, **more):
        note('said while encoding')
        return real(*args, **more)

    def training(self, *args, keep, **more):
        note('said in the first epoch')

        def stop_then(state):
            keep(state)
            raise PowerCut

        return fit(self, *args, keep=stop_then, **more)

    fit, job = ReCLIP.fit, ['adapt', scans, *WORDS, '--epochs', 1, '-o', tmp_path / 'in' / 'RUN']
    with monkeypatch.context() as patch:
        patch.setattr(found_page, 'encode_readable', encode)
        patch.setattr(ReCLIP, 'fit', training)
        found = call(*job)
    assert isinstance(found.exception, PowerCut) and found.stderr.count('said while encoding') == 1
    again = call(*job, '--resume')
    fine(again)
    said = run.read_run(tmp_path / 'in' / 'RUN')['notes']
    first, *rest = [o for o in said if 'other file' not in o]  # of the unfinished run among them
    assert 'lies in the folder of the images' in first and rest == ['said while encoding', 'said in the first epoch']
    assert f'note: {first}' in again.stderr
    fine(call('predict', tmp_path / 'in' / 'RUN', scans, '-o', tmp_path / 'p.csv', '-q'))
    assert len(pd.read_csv(tmp_path / 'p.csv')) == 20  # the run among them is no picture


# ---- what is wrong with the place is said before the work


@pytest.fixture
def no_work(monkeypatch):
    monkeypatch.setattr('reclip.adapt.load_clip', lambda *args: pytest.fail('it loaded the model'))


def test_names_that_are_too_long(scans, tmp_path, no_work, toy):
    for flags in ([], ['--overwrite'], ['--resume']):
        refused(
            call('zeroshot', scans, *WORDS, '-q', '-o', tmp_path / ('x' * 250), *flags),
            'too long by 3 bytes',
            '.partial',
        )
        refused(
            call('zeroshot', scans, *WORDS, '-q', '-o', tmp_path / ('é' * 200) / 'RUN', *flags), 'too long by 145 bytes'
        )
    refused(call('export', toy.parent / 'run', tmp_path / ('x' * 256)), 'too long by 1 bytes')
    assert entries(tmp_path) == ['in']


def test_long_names_that_are_not_too_long(scans, tmp_path):
    name = 'é' * 123  # 246 bytes
    fine(call('zeroshot', scans, *WORDS, '-q', '-o', tmp_path / name))
    fine(call('zeroshot', scans, *WORDS, '-q', '-o', tmp_path / name, '--overwrite'))
    table = 'y' * 251 + '.csv'
    fine(call('predict', tmp_path / name, scans, '-o', tmp_path / table, '-q'))
    fine(call('export', tmp_path / name, tmp_path / ('z' * 255)))
    assert sorted(entries(tmp_path)) == sorted(['in', name, table, 'z' * 255])


def test_links_as_output(scans, tmp_path, no_work, monkeypatch):
    (tmp_path / 'gone').symlink_to('nowhere')
    (tmp_path / 'round').symlink_to('round')
    (tmp_path / 'file').write_text('x')
    for flags in ([], ['--overwrite'], ['--resume']):
        for name, says in (
            ('gone', 'a link to nowhere, which is not there'),
            ('round', 'a link to round'),
            ('gone/RUN', 'is not a folder'),
            ('file/RUN', 'is not a folder'),
        ):
            refused(call('zeroshot', scans, *WORDS, '-q', '-o', tmp_path / name, *flags), says)
    assert entries(tmp_path) == ['file', 'gone', 'in', 'round']
    monkeypatch.undo()
    (tmp_path / 'latest').symlink_to('runs/1')
    (tmp_path / 'runs').mkdir()
    for method in ('zeroshot', 'adapt'):
        fine(
            call(
                method,
                scans,
                *WORDS,
                '-q',
                '-o',
                tmp_path / 'runs' / '1' if method == 'zeroshot' else tmp_path / 'latest',
                '--overwrite',
            )
        )
    assert (
        (tmp_path / 'latest').is_symlink()
        and run.read_run(tmp_path / 'latest')['run']['method'] == 'adapt'
        and entries(tmp_path / 'runs') == ['1']
    )  # the run that the link names


def test_a_place_that_cannot_be_written(scans, tmp_path, no_work, monkeypatch):
    if Path('/proc/self').is_dir():
        refused(
            call('zeroshot', scans, *WORDS, '-q', '-o', '/proc/RUN'), '/proc cannot be written to'
        )  # not even by root

    def refuse(*args, **more):
        raise OSError(30, 'Read-only file system')

    monkeypatch.setattr('reclip.places.tempfile.TemporaryFile', refuse)
    refused(
        call('zeroshot', scans, *WORDS, '-q', '-o', tmp_path / 'a' / 'RUN'),
        f'{tmp_path} cannot be written to (Read-only file system)',
    )
    refused(call('export', tmp_path, tmp_path / 'X'), 'not a finished run')


def test_what_is_read_is_not_replaced(scans, tmp_path):
    job = ['zeroshot', scans, *WORDS, '-q', '-o', tmp_path / 'RUN']
    fine(call(*job))
    shutil.copytree(scans, tmp_path / 'RUN' / 'photos')
    (tmp_path / 'RUN' / 'words.txt').write_text('\n'.join(names))
    before = contents(tmp_path / 'RUN')
    refused(
        call('zeroshot', tmp_path / 'RUN' / 'photos', *WORDS, '-q', '-o', tmp_path / 'RUN', '--overwrite'),
        'photos lies in',
        'would be replaced',
    )
    refused(call(*job, '-c', tmp_path / 'RUN' / 'words.txt', '--overwrite'), 'words.txt lies in', 'would be replaced')
    assert contents(tmp_path / 'RUN') == before


def test_nothing_stays_when_a_setting_is_wrong(scans, tmp_path):
    for wrong in (['--alpha', '2'], ['-m', 'nothing'], ['-t', 'no hole']):
        refused(call('adapt', scans, *WORDS, '-q', '-o', tmp_path / 'a' / 'b' / 'RUN', *wrong))
    assert entries(tmp_path) == ['in']


# ---- ends that are no ends


def test_a_full_disk_says_where_and_how_to_go_on(begin, scans, tmp_path):
    fine(call('adapt', scans, *WORDS, '--epochs', 1, '-q', '-o', tmp_path / 'whole'))
    for limit, name in (700, 'begun.json'), (4000, 'frozen.safetensors'), (20_000, 'checkpoint.safetensors'):
        job = ['adapt', scans, *WORDS, '--epochs', 1, '-q', '--no-cache', '-o', tmp_path / 'RUN']
        _, wait, _ = begin(
            *job,
            *(['--resume'] if limit > 700 else []),
            first=f'import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {resource.RLIM_INFINITY}))',
        )
        status, said = wait()
        assert (
            status == 2
            and said.count('\n') == 1
            and name in said
            and 'cannot be written (File too large)' in said
            and '--resume' in said
        ), said
    fine(call(*job, '--resume'))
    assert results(tmp_path / 'RUN') == results(tmp_path / 'whole') and entries(tmp_path) == ['RUN', 'in', 'whole']


def test_a_full_disk_for_a_table(scans, tmp_path, begin):
    fine(call('zeroshot', scans, *WORDS, '-q', '-o', tmp_path / 'RUN'))
    _, wait, _ = begin(
        'predict',
        tmp_path / 'RUN',
        scans,
        '-o',
        tmp_path / 'new.csv',
        '-q',
        '--no-cache',
        first=f'import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (700, {resource.RLIM_INFINITY}))',
    )
    status, said = wait()
    assert status == 2 and said.count('\n') == 1 and 'new.csv' in said and entries(tmp_path) == ['RUN', 'in'], said


@pytest.mark.parametrize('wrong', [['--lr-text', '1e30', '--lr-image', '1e30']])
def test_a_fit_that_fails_blocks_nothing(scans, tmp_path, wrong):
    job = ['adapt', scans, *WORDS, '--epochs', 2, '-q', '-o', tmp_path / 'RUN']
    assert call(*job, *wrong).exit_code == 2 and entries(tmp_path) == ['in']
    fine(call(*job))


def test_a_fit_that_fails_on_its_features_blocks_nothing(toy, tmp_path, monkeypatch):
    shutil.copy(toy.parent / 'rows.npy', tmp_path)
    job = ['adapt', tmp_path / 'rows.npy', *WORDS, '-q', '-o', tmp_path / 'RUN']

    def fail(*args, **more):
        raise ValueError('these features do not do')

    with monkeypatch.context() as patch:
        patch.setattr(ReCLIP, 'fit_features', fail)
        refused(call(*job), 'do not do')
    assert entries(tmp_path) == ['rows.npy']
    fine(call(*job))


def test_pictures_that_go_away_in_training_cost_no_epoch(scans, tmp_path, monkeypatch):
    real = ReCLIP.fit

    def fit(self, images, keep, **more):
        def keep_then(state):
            keep(state)
            [path.unlink() for path in scans.iterdir()]

        return real(self.set_params(keep_images=0), images, keep=keep_then, **more)

    job = ['adapt', scans, *WORDS, '--epochs', 2, '-q', '-o', tmp_path / 'RUN']
    shutil.copytree(scans, tmp_path / 'copy')
    with monkeypatch.context() as patch:
        patch.setattr(ReCLIP, 'fit', fit)
        assert call(*job).exit_code == 2
    assert entries(tmp_path / 'RUN.partial') == ['begun.json', 'checkpoint.safetensors', 'frozen.safetensors']
    shutil.copytree(tmp_path / 'copy', scans, dirs_exist_ok=True)
    fine(call(*job, '--resume'))


STAGES = [
    'run.claim',
    'run.prepare',
    'run._weights',
    'run.open_output',
    'claim.begin',
    'run.find_again',
    'found.find_images',
    'found.encode_readable',
    'results.write_tensors',
    'run._fit',
    'results.write_table',
    'run.write_results',
    'results.write_json',
    'run.finish',
]


@pytest.mark.parametrize('after', [False, True])
@pytest.mark.parametrize('stage', STAGES)
def test_ctrl_c_anywhere(stage, after, scans, tmp_path, monkeypatch):
    job = ['zeroshot', scans, *WORDS, '-o', tmp_path / 'RUN', '-q']
    module, name = stage.split('.')
    module, calls = import_module(f'reclip.{module}'), []
    real = getattr(module, name)

    def press(*args, **more):
        calls.append(1)
        if after:
            real(*args, **more)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, name, press)
        found = call(*job)
    assert found.exit_code == 130 and calls, (found.output, found.exception)
    assert set(entries(tmp_path)) - {'in'} in (set(), {'RUN.partial'}, {'RUN'})
    fine(call(*job, '--resume'))
    assert (
        entries(tmp_path) == ['RUN', 'in']
        and 'digests.safetensors' in entries(tmp_path / 'RUN')
        and 'begun.json' not in entries(tmp_path / 'RUN')
    )


# ---- folders


@pytest.mark.parametrize('possible', [True, False])
def test_a_folder_replaces_another(tmp_path, monkeypatch, possible):
    if not possible:
        monkeypatch.setattr(folders, '_system_exchange', lambda: None)
    for word in 'abc':
        with folders.whole_folder(tmp_path / 'x') as new:
            (new / word).touch()
            (new / 'deep').mkdir()
            (new / 'deep' / word).touch()
        assert contents(tmp_path).keys() == {f'x/{word}', f'x/deep/{word}'}
    with pytest.raises(ZeroDivisionError), folders.whole_folder(tmp_path / 'x') as new:
        (new / 'd').touch()
        1 / 0
    assert sorted(contents(tmp_path)) == ['x/c', 'x/deep/c'] and entries(tmp_path) == ['x']


@pytest.mark.skipif(sys.platform != 'linux', reason='other systems may have no exchange')
def test_exchange_is_one_step(tmp_path):
    "Whoever looks sees one of the two, while they change places a thousand times"
    for name in 'ab':
        (tmp_path / name).mkdir()
        (tmp_path / name / 'word').write_text(name)
    if not folders.exchange(tmp_path / 'a', tmp_path / 'b'):
        pytest.skip('this disk cannot exchange')
    pid = os.fork()
    if not pid:
        for _ in range(1000):
            folders.exchange(tmp_path / 'a', tmp_path / 'b')
        os._exit(0)
    seen = set()
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        seen.add((tmp_path / 'a' / 'word').read_text())  # FileNotFoundError if there were a moment between
    assert seen <= {'a', 'b'}
    assert not folders.exchange(tmp_path / 'a', tmp_path / 'nowhere') and entries(tmp_path) == ['a', 'b']


def test_the_earlier_folder_is_never_lost_when_a_rename_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, '_system_exchange', lambda: None)
    (tmp_path / 'x').mkdir()
    (tmp_path / 'x' / 'mine').touch()
    real, failing = os.replace, []

    def replace(a, b):
        if Path(b) == tmp_path / 'x':
            failing.append(b)
            raise OSError(5, 'Input/output error')
        real(a, b)

    with monkeypatch.context() as patch, pytest.raises(OSError, match='Input'):
        patch.setattr(os, 'replace', replace)
        with folders.whole_folder(tmp_path / 'x') as new:
            (new / 'other').touch()
    assert len(failing) == 2 and not (tmp_path / 'x').exists()  # neither went to its place, nor the earlier one back
    folders.recover(tmp_path / 'x')
    assert list(contents(tmp_path)) == ['x/mine'] and entries(tmp_path) == ['x']


def test_what_is_not_ours_stays(tmp_path):
    "Names that are nearly ours, and what a live process has in the making"
    theirs = [
        '.x-12345678',
        '.x.reclip-short',
        '.x.reclip-toolong00',
        '.x.reclip-UPPER000',
        '.xy.reclip-abcdefgh',
        'x.reclip-abcdefgh',
        '.y.reclip-abcdefgh',
        '.x.csv.reclip-abcdefgh.csv.bak',
    ]
    for name in theirs:
        (tmp_path / name).mkdir()
        (tmp_path / name / 'mine').touch()
    (tmp_path / '.x.reclip-linkfile').symlink_to(tmp_path / '.x-12345678')
    (tmp_path / '.x.reclip-alive000').mkdir()
    (tmp_path / '.x.reclip-dead0000' / 'new').mkdir(parents=True)
    handle = os.open(tmp_path / '.x.reclip-alive000', os.O_RDONLY)
    assert files.lock(handle)
    folders.recover(tmp_path / 'x')
    files.sweep(tmp_path, 'x')
    files.sweep(tmp_path)
    assert entries(tmp_path) == sorted([*theirs, '.x.reclip-alive000', '.x.reclip-linkfile']) and all(
        (tmp_path / o / 'mine').exists() for o in theirs
    )
    os.close(handle)
    folders.recover(tmp_path / 'x')
    assert not (tmp_path / '.x.reclip-alive000').exists()


def test_a_file_that_is_being_written_stays(tmp_path):
    with files.whole_file(tmp_path / 'x.csv') as p:
        p.write_text('one')
        files.sweep(tmp_path)
        with files.whole_file(tmp_path / 'x.csv') as q:
            q.write_text('two')  # a second writer takes nothing from the first
        assert (tmp_path / 'x.csv').read_text() == 'two'
    assert contents(tmp_path) == {'x.csv': b'one'}


@pytest.mark.parametrize('command', ['info', 'report', 'predict', 'export', 'adapt', 'overwrite', 'resume'])
@pytest.mark.parametrize('state', ['hidden', 'exchanged'])
def test_each_command_recovers_the_run(scans, tmp_path, command, state, monkeypatch):
    "`hidden`: killed between two renames; `exchanged`: killed right after the exchange"
    job = ['zeroshot', scans, *WORDS, '-q', '-o', tmp_path / 'RUN']
    fine(call(*job))
    if state == 'hidden':
        (tmp_path / '.RUN.reclip-abcdefgh').mkdir()
        os.replace(tmp_path / 'RUN', tmp_path / '.RUN.reclip-abcdefgh' / 'old')
    else:
        shutil.copytree(tmp_path / 'RUN', tmp_path / 'RUN.partial')
        (tmp_path / 'RUN' / 'begun.json').write_text('{}')
        (tmp_path / '.RUN.reclip-abcdefgh').mkdir()
    (tmp_path / '.RUN.reclip-lock').touch()
    monkeypatch.setattr('reclip.report.parts_for', lambda d: [])
    if command == 'info':
        fine(call('info', tmp_path / 'RUN'))
    if command == 'report':
        fine(call('report', tmp_path / 'RUN', '-q'))
    if command == 'predict':
        fine(call('predict', tmp_path / 'RUN', scans, '-o', tmp_path / 'in' / 'p.csv', '-q'))
    if command == 'export':
        fine(call('export', tmp_path / 'RUN', tmp_path / 'in' / 'X'))
    if command == 'adapt':
        refused(call(*job), 'RUN exists')
    if command == 'overwrite':
        fine(call(*job, '--overwrite'))
    if command == 'resume':
        fine(call(*job, '--resume'))
    assert (
        entries(tmp_path) == ['RUN', 'in']
        and run.is_run(tmp_path / 'RUN')
        and 'begun.json' not in entries(tmp_path / 'RUN')
    )


def test_a_cache_is_swept(scans, tmp_path):
    job = ['zeroshot', scans, *WORDS, '-q', '--cache', tmp_path / 'cache', '--overwrite', '-o', tmp_path / 'RUN']
    fine(call(*job))
    (store,) = (tmp_path / 'cache').iterdir()
    for command in (job, ['cache', '--cache', tmp_path / 'cache', '--clear']):
        (store / f'.{"1" * 32}.safetensors.reclip-abcdefgh.safetensors').write_bytes(b'half of a shard')
        found = call(*command)
        fine(found)
        assert 'damaged' not in found.output and not list((tmp_path / 'cache').rglob('.*'))
