"""Killed before every rename, write, fsync, mkdir and unlink, and in the middle of every write: nothing lost or mixed.

A process that has imported everything forks a child for each attempt. In the child every call of the system that
changes something below the sandbox is counted, whoever makes it, and at the n-th it is killed with SIGKILL. Then the
next command runs, and what it must find and leave is checked. n goes from the first call to the last.
"""

import json
import os
import subprocess
import sys
import pytest

if not os.path.isdir('/proc/self/fd'):
    pytest.skip('needs /proc to know which file is written', allow_module_level=True)

worker_code = r'''
import builtins, gc, io, json, os, shutil, signal, sys, tempfile, traceback
from pathlib import Path
import torch

torch.set_num_threads(1)
import reclip.adapt, reclip.cache, reclip.folders, reclip.kept, reclip.report, reclip.run as run
from reclip import demo

root, names = Path(sys.argv[1]), list(demo.class_names)
(root / 'in').mkdir()
for i, image in enumerate(demo.demo_digits()[0][:8]):
    image.save(root / 'in' / f'{i}.png')

# what is slow and touches no file is done once
model = reclip.adapt.load_clip('demo', None, 'cpu')
text = reclip.adapt.ReCLIP('demo', None, names, device='cpu').zero_shot_texts()
reclip.adapt.load_clip = lambda *args: model
reclip.adapt.ReCLIP.zero_shot_texts = lambda self: text.clone()
weights, about = (
    run._weights(reclip.adapt.ReCLIP('demo', None, names, device='cpu')),
    reclip.cache.encoding_settings(*tuple(model)[:2]),
)
run._weights, reclip.cache.encoding_settings = lambda clip: weights, lambda *args: about
reclip.report.parts_for = lambda d: []
reclip.report._page = lambda *args: '<html>' + 'x' * 1000 + '</html>'


# ---- points: calls that change something below the sandbox


class Points:
    "Counts calls; kills the process at one of them"

    def __init__(self, sandbox, last=None):
        self.sandbox, self.last, self.seen = str(sandbox), last, []

    def at(self, what, path, half=None):
        path = os.fsdecode(path)
        if not path.startswith(self.sandbox):
            return
        self.seen.append(f'{what} {path.removeprefix(self.sandbox)}')
        if self.last == len(self.seen) - 1:
            if half:
                half()
            os.kill(os.getpid(), signal.SIGKILL)


class Written:
    "An open file, with a point before its first write and one in the middle of each"

    def __init__(self, file, path, points):
        self.__dict__.update(file=file, path=path, points=points, begun=False)

    def write(self, data):
        def half():
            self.file.write(data[: len(data) // 2])
            self.file.flush()

        if not self.begun:
            self.points.at('before write', self.path)
        self.__dict__['begun'] = True
        self.points.at('inside write', self.path, half)
        return self.file.write(data)

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __setattr__(self, name, value):
        setattr(self.file, name, value)

    def __enter__(self):
        self.file.__enter__()
        return self

    def __exit__(self, *args):
        return self.file.__exit__(*args)

    def __iter__(self):
        return iter(self.file)


def place(path, dir_fd=None):
    if isinstance(path, int):
        return os.readlink(f'/proc/self/fd/{path}')
    return os.path.join(os.readlink(f'/proc/self/fd/{dir_fd}'), path) if dir_fd is not None else os.path.abspath(path)


def watch(points, exchange):
    "Every call of the system that changes something becomes a point"

    def patch(name, of=lambda path, *args, dir_fd=None, **more: place(path, dir_fd)):
        real = getattr(os, name)

        def call(*args, **more):
            points.at(name, of(*args, **more))
            return real(*args, **more)

        setattr(os, name, call)

    for name in ('mkdir', 'rmdir', 'unlink', 'remove', 'truncate', 'ftruncate'):
        patch(name)
    for name in ('replace', 'rename'):
        patch(name, lambda a, b, **more: place(b))
    real_fsync, real_open, real_file = os.fsync, os.open, io.open

    def fsync(handle):
        points.at('fsync', place(handle))  # the disk itself is not at stake here

    def opened(path, flags, *args, dir_fd=None, **more):
        if flags & os.O_CREAT:
            points.at('open', place(path, dir_fd))
        return real_open(path, flags, *args, dir_fd=dir_fd, **more)

    def wrote(handle, data):
        points.at('before write', place(handle))
        points.at('inside write', place(handle), lambda: real_write(handle, data[: len(data) // 2]))
        return real_write(handle, data)

    def file(path, mode='r', *args, **more):
        if isinstance(path, int) or not set(mode) & set('wax+'):
            return real_file(path, mode, *args, **more)
        return Written(real_file(path, mode, *args, **more), place(path), points)

    real_write = os.write
    os.fsync, os.open, os.write, io.open, builtins.open = fsync, opened, wrote, file, file
    swap = reclip.folders._system_exchange() if exchange else None

    def swapped(a, b):
        points.at('exchange', b)
        return swap(a, b)

    reclip.folders._system_exchange = lambda: swap and swapped


# ---- what is done


def adapt(folder, **more):
    return run.adapt(
        root / 'in',
        names,
        folder / 'RUN',
        'demo',
        templates='digit',
        device='cpu',
        progress=False,
        **dict(method='zeroshot', cache=root / 'cache') | more,
    )


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob('*')) if p.is_file()}


def entries(folder):
    return sorted(o.name for o in folder.iterdir())


def results(folder):
    return {
        k: v for k, v in contents(folder).items() if k not in ('config.json', 'history.csv', 'digests.safetensors')
    } | dict(files=entries(folder))


def check(truth, what):
    assert truth, what


def same(folder, *expected):
    check(results(folder) in expected, f'{folder} is another: {entries(folder)}')
    check(
        run.read_run(folder)['run']['id'] == reclip.kept.read_tensors(folder / 'digests.safetensors')[1]['run_id'],
        'files of two runs',
    )


def clean(folder, *names):
    check(entries(folder) == sorted(names), f'{entries(folder)} instead of {names}')


def fails(kind, function, *words):
    try:
        function()
    except kind as e:
        check(any(o in str(e) for o in words), f'it says {e}')
        return True


def fresh(folder):
    pass


def earlier(folder):
    shutil.copytree(root / 'earlier', folder / 'RUN')


def half(folder):
    shutil.copytree(root / 'half', folder / 'RUN.partial')


def with_report(folder):
    shutil.copytree(root / 'reported', folder / 'RUN')
    (folder / 'tmp').mkdir()


def absent_or_whole(folder):
    not (folder / 'RUN').exists() or (check(run.is_run(folder / 'RUN'), 'half a run'))


def resumed(folder):
    adapt(folder, resume=True)
    same(folder / 'RUN', later)
    clean(folder, 'RUN')


def plain(folder):
    if fails(FileExistsError, lambda: adapt(folder), 'RUN exists', 'holds an unfinished run'):
        adapt(folder, overwrite=True)
    same(folder / 'RUN', later)
    clean(folder, 'RUN')


def one_of_both(folder):
    "Without any help"
    check(run.is_run(folder / 'RUN'), 'the earlier run is hidden')
    kept = entries(folder / 'RUN')
    check(
        {k: v for k, v in results(folder / 'RUN').items() if k in before} | dict(files=before['files'])
        in (before, later),
        'a mixture',
    )


def after_a_look(folder):
    run.info(folder / 'RUN')
    same(folder / 'RUN', before, later)
    check(set(entries(folder)) <= {'RUN', 'RUN.partial'}, entries(folder))


def replaced(folder):
    after_a_look(folder)
    adapt(folder, overwrite=True, resume=True)
    same(folder / 'RUN', later)
    clean(folder, 'RUN')


def replaced_at_once(folder):
    adapt(folder, overwrite=True)
    same(folder / 'RUN', later)
    clean(folder, 'RUN')


def trained(folder, **more):
    adapt(folder, method='adapt', epochs=1, **more)


def trained_on(folder):
    trained(folder, resume=True)
    same(folder / 'RUN', learned)
    clean(folder, 'RUN')


def cold(folder, **more):
    adapt(folder, cache=folder / 'cache', **more)


def cold_again(folder):
    cold(folder, resume=True)
    same(folder / 'RUN', later)
    clean(folder, 'RUN', 'cache')
    (folder / 'cache').exists() and check(not [o for o in (folder / 'cache').rglob('.*')], 'litter in the cache')
    cold(folder, overwrite=True)
    check(not [o for o in (folder / 'cache').rglob('.*')], 'litter in the cache')


def report(folder):
    tempfile.tempdir = str(folder / 'tmp')
    reclip.report.write_report(folder / 'RUN', notebook=True, progress=False)


def whole_page(folder):
    page = (folder / 'RUN' / 'report.html').read_text()
    check(
        page.startswith('<') and page.endswith('</html>') and json.loads((folder / 'RUN' / 'report.ipynb').read_text()),
        'half a report',
    )


def reported_again(folder):
    report(folder)
    whole_page(folder)
    clean(folder, 'RUN', 'tmp')
    clean(folder / 'tmp')
    check(entries(folder / 'RUN') == sorted([*before['files'], 'report.html', 'report.ipynb']), entries(folder / 'RUN'))


def export(folder):
    run.export(root / 'earlier', folder / 'X')


def exported_or_absent(folder):
    not (folder / 'X').exists() or check(contents(folder / 'X') == exported, 'half an export')


def exported_again(folder):
    fails(FileExistsError, lambda: export(folder), 'X exists')
    check(contents(folder / 'X') == exported, 'another export')
    clean(folder, 'X')


def save(folder):
    two.save(folder / 'S', overwrite=True)


def saved_before(folder):
    one.save(folder / 'S')


def either(folder):
    check(
        torch.equal(reclip.adapt.ReCLIP.load(folder / 'S').probability_, two.probability_)
        or torch.equal(reclip.adapt.ReCLIP.load(folder / 'S').probability_, one.probability_),
        'a mixture',
    )


def saved_again(folder):
    either(folder)
    save(folder)
    check(torch.equal(reclip.adapt.ReCLIP.load(folder / 'S').probability_, two.probability_), 'not saved')
    clean(folder, 'S')


def table(folder):
    run.write_table(frame, folder / 'new.csv')


def table_before(folder):
    run.write_table(frame[:3], folder / 'new.csv')


def whole_table(folder):
    check(len(run.pd.read_csv(folder / 'new.csv')) in (3, 8), 'half a table')


def table_again(folder):
    table(folder)
    check(len(run.pd.read_csv(folder / 'new.csv')) == 8, 'not written')
    clean(folder, 'new.csv')


# the state before, what is killed, what must hold at once, and what may come next, each on a copy of what the kill left
scenarios = dict(
    fresh=(fresh, adapt, absent_or_whole, resumed, plain),
    overwrite=(earlier, lambda o: adapt(o, overwrite=True), one_of_both, replaced, replaced_at_once),
    overwrite_by_two_renames=(earlier, lambda o: adapt(o, overwrite=True), None, replaced, replaced_at_once),
    resume=(half, lambda o: adapt(o, resume=True), absent_or_whole, resumed),
    anew=(half, lambda o: adapt(o, overwrite=True), absent_or_whole, resumed, plain),
    checkpoint=(fresh, trained, absent_or_whole, trained_on),
    cache=(fresh, cold, absent_or_whole, cold_again),
    report=(with_report, report, whole_page, reported_again),
    export=(fresh, export, exported_or_absent, exported_again),
    save=(saved_before, save, either, saved_again),
    save_by_two_renames=(saved_before, save, None, saved_again),
    table=(table_before, table, whole_table, table_again),
)
only = dict(anew='/.RUN.partial.', checkpoint='checkpoint', cache='/cache/')  # points of the others have had their turn


# ---- attempts


def fork(function):
    "Whether it ended well, was killed, or else what was wrong"
    read, write = os.pipe()
    if pid := os.fork():
        os.close(write)
        with os.fdopen(read) as file:
            said = file.read()
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        return json.loads(said) if said else 'killed' if code == -signal.SIGKILL else f'exit code {code}'
    os.close(read)
    try:
        said = function()
    except BaseException:
        said = dict(wrong=traceback.format_exc(limit=-6))
    with os.fdopen(write, 'w') as file:
        file.write(json.dumps(said))
    os._exit(0)


def attempt(name, last, sandbox):
    "Calls that were seen, or what was wrong after a kill at one of them"
    begin, do, at_once, *then = scenarios[name]
    for folder in (sandbox, root / 'copy'):
        shutil.rmtree(folder, ignore_errors=True)
    sandbox.mkdir()
    begin(sandbox)

    def killed():
        points = Points(sandbox, last)
        watch(points, 'two_renames' not in name)
        do(sandbox)
        return points.seen

    seen = fork(killed)
    if last is None or seen != 'killed':
        return seen
    real = reclip.folders._system_exchange
    if 'two_renames' in name:
        reclip.folders._system_exchange = lambda: None
    try:
        if at_once:
            at_once(sandbox)
        for following in then[1:]:
            shutil.rmtree(root / 'copy', ignore_errors=True)
            shutil.copytree(sandbox, root / 'copy')
            following(root / 'copy')
        then[0](sandbox)
    except Exception:
        return traceback.format_exc(limit=-6)
    finally:
        reclip.folders._system_exchange = real


def everywhere(name, sandbox):
    "How many points there are, and what was wrong at which of them"
    seen = attempt(name, None, sandbox)
    if not isinstance(seen, list):
        return 0, [['without a kill', seen]]
    points = [i for i, o in enumerate(seen) if only.get(name, '') in o]
    wrong = [[seen[i], found] for i in points if (found := attempt(name, i, sandbox)) is not None]
    return len(points), wrong


start = root / 'start'
start.mkdir()
os.environ['RECLIP_CACHE'] = str(root / 'cache')
real_fsync, os.fsync = os.fsync, lambda handle: None
adapt(start)
later = results(start / 'RUN')
adapt(start, overwrite=True, method='training-free', alpha=0.5)
before = results(start / 'RUN')
os.rename(start / 'RUN', root / 'earlier')
trained(start, overwrite=True)
learned = results(start / 'RUN')
shutil.copytree(root / 'earlier', root / 'reported')
reclip.report.write_report(root / 'reported', notebook=True, progress=False)
real, run._fit = run._fit, lambda *args: sys.exit()
(start / 'half').mkdir()
try:
    adapt(start / 'half')
except SystemExit:
    run._fit = real
os.rename(start / 'half' / 'RUN.partial', root / 'half')
export(root)
exported = contents(root / 'X')
features = reclip.images.find_images(root / 'in')[0]
one, two = (
    reclip.adapt.ReCLIP('demo', None, names, device='cpu', alpha=a).fit_features(
        torch.nn.functional.normalize(torch.randn(9, 64, generator=torch.Generator().manual_seed(3)), dim=1)
    )
    for a in (0.5, 0.99)
)
frame = run.read_predictions(start / 'RUN')
gc.freeze()
for name in sys.argv[2:]:
    print(json.dumps([name, *everywhere(name, root / 'sandbox')]), flush=True)
'''

groups = [
    dict(fresh=80, anew=10, checkpoint=5, cache=10, report=15, export=25, save=15, save_by_two_renames=15, table=8),
    dict(overwrite=80, overwrite_by_two_renames=80, resume=60),
]


@pytest.mark.parametrize('least', groups, ids=lambda least: ' '.join(least))
def test_killed_at_every_point(least, tmp_path):
    "`least` is how many points each must have: that the calls are seen at all"
    done = subprocess.run([sys.executable, '-c', worker_code, str(tmp_path), *least], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = {name: (points, wrong) for name, points, wrong in map(json.loads, done.stdout.splitlines())}
    for name, (points, wrong) in found.items():
        assert not wrong, f'{name}, {len(wrong)} of {points}: {json.dumps(wrong[:3], indent=1)}'
    assert found.keys() == least.keys() and all(found[name][0] >= n for name, n in least.items()), found
