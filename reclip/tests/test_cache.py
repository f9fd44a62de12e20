"Encoded once: known again by content and settings, whatever happens to names, times, files and other processes."

import copy
import json
import logging
import os
import shutil
import subprocess
import sys
import tarfile
from functools import partial
from pathlib import Path
import pytest
import torch
from PIL import Image
from torchvision.transforms import Compose, Lambda, RandomCrop, Resize
from typer.testing import CliRunner
from reclip import demo, encode_images, run
from reclip.cache import cache_folder, cache_info, clear_cache, encode_cached, encoding_settings, image_digests
from reclip.cli import app
from reclip.digests import KnownFiles
from reclip.images import ImageFiles, encode_readable, find_images
from reclip.pictures import UnreadableImage

settings = dict(model='demo', templates='digit', device='cpu', progress=False, method='zeroshot')


class Watched:
    "A model that counts the images that its tower is asked about"

    def __init__(self, model):
        self.model, self.seen = model, 0

    def __getattr__(self, name):
        return getattr(self.model, name)

    def encode_image(self, images):
        self.seen += len(images)
        return self.model.encode_image(images)


def alike(a, b):
    return a.shape == b.shape and torch.allclose(
        a, b, atol=1e-6
    )  # rows that were encoded in other company differ in the last bits


@pytest.fixture
def folder(tmp_path):
    "40 digits as files"
    (tmp_path / 'in').mkdir()
    for i, image in enumerate(demo.demo_digits()[0][:40]):
        image.save(tmp_path / 'in' / f'{i:02}.png')
    return tmp_path / 'in'


@pytest.fixture
def plain(folder, clip):
    return encode_images(clip[0], find_images(folder)[0], clip[1])


@pytest.fixture
def ask(folder, clip, tmp_path):
    "Encodes with the cache; `(features, images that the tower saw)`"

    def asked(source=folder, model=clip[0], preprocess=clip[1], cache=tmp_path / 'cache', **more):
        watched = Watched(model)
        return encode_cached(
            watched, source if isinstance(source, ImageFiles) else find_images(source)[0], preprocess, cache, **more
        ), watched.seen

    return asked


def shards(cache):
    return sorted(cache.glob('*/*.safetensors'))


def file_of(tensor):
    "The file whose memory map a tensor is"
    for line in Path('/proc/self/maps').read_text().splitlines():
        low, high = (int(o, 16) for o in line.split()[0].split('-'))
        if low <= tensor.data_ptr() < high:
            return line.split()[-1]


def test_the_second_time_is_a_memory_map(ask, plain, tmp_path):
    first, n = ask()
    assert n == 40 and torch.equal(first, plain)
    second, n = ask()
    assert (
        n == 0
        and torch.equal(second, plain)
        and torch.equal(second @ second.T, plain @ plain.T)
        and len(shards(tmp_path / 'cache')) == 1
    )
    if Path('/proc/self/maps').exists():
        assert file_of(second) == os.path.realpath(shards(tmp_path / 'cache')[0]) and file_of(torch.ones(9)) != file_of(
            second
        )
    assert second.data_ptr() % 64 == 0  # products have the last bit that they have without the cache
    second.zero_()  # spoils a copy of the page, not the file
    assert torch.equal(ask()[0], plain)


def test_any_order_and_any_part(ask, folder, plain):
    ask(part=7)
    files = find_images(folder)[0]
    for rows in ([3, 1, 2], list(range(39, -1, -1)), [5], [0, 0, 9]):
        found, n = ask(files.keep(rows))
        assert n == 0 and alike(found, plain[rows])


def test_an_edit_in_place_is_seen_whatever_size_and_time_say(ask, folder, plain):
    ask()
    path, before = folder / '07.png', os.stat(folder / '07.png')
    smallest = min(folder.iterdir(), key=lambda o: o.stat().st_size)
    assert smallest != path and smallest.stat().st_size <= before.st_size
    path.write_bytes(smallest.read_bytes().ljust(before.st_size, b'\0'))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = os.stat(path)
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    found, n = ask()
    assert (
        n == 1
        and torch.allclose(found[7], plain[int(smallest.stem)], atol=1e-6)
        and not torch.allclose(found[7], plain[7], atol=1e-3)
    )
    assert alike(found[[i for i in range(40) if i != 7]], plain[[i for i in range(40) if i != 7]])


def test_names_places_and_archives_do_not_matter(ask, folder, plain, tmp_path):
    ask()
    shutil.move(folder, tmp_path / 'elsewhere')
    for i, path in enumerate(sorted((tmp_path / 'elsewhere').iterdir())):
        path.rename(path.with_name(f'renamed-{i:02}.png'))
    assert ask(tmp_path / 'elsewhere')[1] == 0
    with tarfile.open(tmp_path / 'shard.tar', 'w') as tar:
        tar.add(tmp_path / 'elsewhere', 'pictures')
    found, n = ask(tmp_path / 'shard.tar')
    assert n == 0 and alike(found, plain)
    assert (
        ask(tmp_path / 'shard.tar', cache=tmp_path / 'other')[1] == 40
        and ask(tmp_path / 'elsewhere', cache=tmp_path / 'other')[1] == 0
    )  # and the other way round


def test_other_settings_are_another_store(ask, clip, tmp_path):
    model, preprocess, _ = clip
    ask()
    moved, deeper = copy.deepcopy(model), copy.deepcopy(model)
    with torch.no_grad():
        next(o for o in moved.visual.modules() if isinstance(o, torch.nn.LayerNorm)).weight[3] += 1e-6
    deeper.visual.ln_post.eps = 1e-3  # same weights, another function
    relu = copy.deepcopy(model)
    for block in relu.visual.transformer.resblocks:
        block.mlp.gelu = torch.nn.ReLU()
    others = [
        dict(precision='bfloat16'),
        dict(model=moved),
        dict(model=deeper),
        dict(model=relu),
        dict(preprocess=Compose([*preprocess.transforms, Lambda(lambda x: x * 0.99)])),
        dict(preprocess=lambda image: preprocess(image).flip(2)),
    ]
    for i, other in enumerate(others):
        assert ask(**other)[1] == 40 and len(list((tmp_path / 'cache').iterdir())) == i + 2
    for other in others + [dict(model=copy.deepcopy(model)), dict(batch_size=7)]:
        assert ask(**other)[1] == 0


def test_two_preprocessings_that_print_alike(clip):
    "A closure, and a class that does not tell its settings"

    class Padded:
        def __init__(self, value):
            self.value = value

        def __repr__(self):
            return 'Padded()'

        def __call__(self, image):
            return torch.nn.functional.pad(clip[1](image), (1, 1), value=self.value)

    def padded(value):
        return lambda image: torch.nn.functional.pad(clip[1](image), (1, 1), value=value)

    for make in (Padded, padded):
        assert (
            encoding_settings(clip[0], make(0))
            == encoding_settings(clip[0], make(0))
            != encoding_settings(clip[0], make(1))
        )
    assert ' at 0x' not in encoding_settings(clip[0], padded(0))['preprocess']


def test_what_has_no_fixed_row_is_not_kept(ask, clip, folder, tmp_path, caplog):
    _, n = ask(preprocess=Compose([Resize(40), RandomCrop(32), *clip[1].transforms]))
    assert n == 40 and not (tmp_path / 'cache').exists() and 'another result each time' in caplog.text

    class Mirrored(ImageFiles):
        def __getitem__(self, i):
            return super().__getitem__(i).transpose(Image.Transpose.FLIP_LEFT_RIGHT)

    files = find_images(folder)[0]
    assert ask(Mirrored(files.places, files.names))[1] == 40 and not (tmp_path / 'cache').exists()
    assert (
        encode_cached(clip[0], [folder / '00.png'], clip[1], tmp_path / 'cache').shape == (1, 64)
        and not (tmp_path / 'cache').exists()
    )
    assert ask(cache=None)[1] == 40 and not (tmp_path / 'cache').exists()
    with pytest.raises(ValueError, match='precision'):
        ask(precision='int8')
    assert not (tmp_path / 'cache').exists()


def damage(kind, path):
    data = bytearray(path.read_bytes())
    if kind == 'one bit of a row':
        data[8 + int.from_bytes(data[:8], 'little') + 5] ^= (
            1  # the first byte of rows is behind the header, which is behind its length
        )
    if kind == 'one bit of a digest':
        data[-5] ^= 1
    if kind == 'header':
        data[12] ^= 1
    if kind == 'zeros':
        data[200:] = bytes(len(data) - 200)
    path.write_bytes(
        data[: {'cut in the rows': -100, 'cut in the header': 20, 'empty': 0}.get(kind, len(data))]
        if kind != 'text'
        else b'hello'
    )


@pytest.mark.parametrize(
    'kind',
    [
        'one bit of a row',
        'one bit of a digest',
        'header',
        'zeros',
        'cut in the rows',
        'cut in the header',
        'empty',
        'text',
    ],
)
def test_a_damaged_shard_is_encoded_again(ask, plain, tmp_path, caplog, kind):
    ask(part=25)
    (large,) = (o for o in shards(tmp_path / 'cache') if o.stat().st_size > 6000)  # of 25 rows, the other of 15
    damage(kind, large)
    found, n = ask()
    assert (
        n == 25
        and torch.allclose(found, plain, atol=1e-6)
        and 'is damaged' in caplog.text
        and large.name in caplog.text
    )
    assert ask()[1] == 0


def test_a_half_written_file_is_not_seen(ask, plain, tmp_path):
    ask()
    (whole,) = shards(tmp_path / 'cache')
    whole.rename(whole.with_name(f'.{whole.name}-{"0" * 32}'))  # as a killed writer leaves it
    found, n = ask()
    assert n == 40 and alike(found, plain) and cache_info(tmp_path / 'cache')['rows'] == 40


def test_a_folder_that_cannot_be_written(ask, plain, folder, tmp_path, caplog, monkeypatch):
    (tmp_path / 'file').write_text('in the way')
    found, n = ask(cache=tmp_path / 'file' / 'cache', part=10)
    assert (
        n == 40
        and alike(found, plain)
        and len([o for o in caplog.records if o.levelno >= logging.WARNING]) == 1
        and 'going on without' in caplog.text
    )
    ask(find_images(folder)[0].keep(range(30)))
    caplog.clear()

    def full(self, data):
        raise OSError(28, 'No space left on device')

    with monkeypatch.context() as patch:
        patch.setattr(Path, 'write_bytes', full)
        found, n = ask(part=4)
        assert (
            n == 10 and torch.allclose(found, plain, atol=1e-6) and caplog.text.count('No space left') == 1
        )  # reads what is there
    assert ask()[1] == 10 and ask()[1] == 0 and not list((tmp_path / 'cache').glob('*/.*'))


def test_a_file_that_changes_while_it_is_read(folder, clip, tmp_path):
    "The row of another picture is not kept under the digest of the first"

    class Swapping(Watched):
        "Swaps a file after it was looked up and before it is opened"

        def encode_image(self, images):
            shutil.copy(folder / '39.png', folder / '05.png')
            return super().encode_image(images)

    features, kept, skipped = encode_readable(
        Swapping(clip[0]),
        find_images(folder)[0],
        clip[1],
        encode=partial(encode_cached, cache=tmp_path / 'cache'),
        batch_size=4,
    )
    assert [(o.path, o.reason) for o in skipped] == [('05.png', 'was changed while it was being read')] and len(
        features
    ) == len(kept) == 39
    watched = Watched(clip[0])
    found = encode_cached(watched, find_images(folder)[0], clip[1], tmp_path / 'cache')
    assert watched.seen == 0 and torch.equal(found[5], found[39])


def test_only_pictures_with_the_digest_are_opened(folder, tmp_path):
    "Of another file, of none and of a broken one it is said what is the matter, and nothing else is opened"
    files = find_images(folder)[0]
    known = KnownFiles(files, image_digests(files), 'another one')
    assert known.share() == 1 and known[3].tobytes() == files[3].tobytes()
    shutil.copy(folder / '39.png', folder / '05.png')
    (folder / '06.png').unlink()
    with pytest.raises(UnreadableImage, match='05.png: another one'):
        known[5]
    with pytest.raises(UnreadableImage, match='06.png: not there'):
        known[6]
    (folder / '05.png').write_bytes(b'no picture')
    with pytest.raises(UnreadableImage, match='05.png: another one'):
        known[5]
    broken = KnownFiles(files, image_digests(files)).keep([5, 6, 7])  # 06.png has no digest
    with pytest.raises(UnreadableImage, match='05.png: (?!was changed)'):
        broken[0]
    shutil.copy(folder / '39.png', folder / '06.png')
    with pytest.raises(UnreadableImage, match='06.png: was changed'):
        broken[1]
    assert broken[2].tobytes() == files[7].tobytes() and known.share() == (len(files) - 2) / len(files)


@pytest.mark.parametrize('num_workers', [0, 2])
def test_what_cannot_be_opened_is_told_every_time(folder, clip, tmp_path, num_workers):
    (folder / '03.png').write_bytes((folder / '03.png').read_bytes()[:60])
    (folder / '07.png').write_bytes(b'')
    (folder / '39.png').write_text('<html>')
    os.mkfifo(tmp_path / 'pipe.png')
    files, skipped = find_images(folder)
    files = ImageFiles(
        [
            *files.places,
            files.places[0]._replace(file=str(tmp_path / 'gone.png')),
            files.places[0]._replace(file=str(tmp_path / 'pipe.png')),
        ],
        [*files.names, 'gone.png', 'pipe.png'],
    )
    expected = encode_readable(clip[0], files, clip[1], skipped, 0.2)
    assert len(expected[0]) == 37 and len(expected[2]) == 5
    for part in (8192, 1, 3):
        for _ in range(2):
            found = encode_readable(
                clip[0],
                files,
                clip[1],
                skipped,
                0.2,
                partial(encode_cached, cache=tmp_path / str(part), part=part),
                num_workers=num_workers if part == 8192 else 0,
            )
            assert (
                torch.allclose(found[0], expected[0], atol=1e-6)
                and found[1].names == expected[1].names
                and found[2] == expected[2]
            )
    with pytest.raises(ValueError, match='5 of 42 images cannot be opened'):
        encode_readable(clip[0], files, clip[1], skipped, 0.1, partial(encode_cached, cache=tmp_path / '3'))
    with pytest.raises(ValueError, match='none of 2 images can be opened'):
        encode_readable(clip[0], files.keep([3, 7]), clip[1], (), 1.0, partial(encode_cached, cache=tmp_path / '3'))
    with pytest.raises(ValueError, match='03.png'):
        encode_cached(clip[0], files, clip[1], tmp_path / '3')  # nobody to tell


processes_code = """
import json, os, signal, sys, time
from pathlib import Path
import torch
from reclip import demo
from reclip.cache import encode_cached
from reclip.images import find_images

folder, cache, out = map(Path, sys.argv[1:])
model, preprocess, _ = demo.demo_clip()
real, calls = model.encode_image, []


def encode(name, cache, die_at=None):
    def counted(images):
        calls.append(len(images))
        (out / f'{name}.ready').touch()
        while name[0] == 'b' and len(list(out.glob('b*.ready'))) < 2:
            time.sleep(0.001)  # both have looked, and begin to encode at once
        if len(calls) == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.01)
        return real(images)

    model.encode_image = counted
    found = encode_cached(model, find_images(folder)[0], preprocess, cache, part=4)
    torch.save(dict(found=found, calls=sum(calls)), out / name)


def fork(*args):
    if pid := os.fork():
        return pid
    try:
        encode(*args)
        os._exit(0)
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)


def end(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


torch.set_num_threads(1)
killed = end(fork('a', cache / 'killed', 5))
after = end(fork('c', cache / 'killed'))
both = [fork('b1', cache / 'both'), fork('b2', cache / 'both')]
print(json.dumps([killed, after, *map(end, both)]))
"""


def test_two_processes_at_once_and_one_that_is_killed(folder, plain, tmp_path):
    (tmp_path / 'out').mkdir()
    done = subprocess.run(
        [sys.executable, '-c', processes_code, folder, tmp_path / 'cache', tmp_path / 'out'],
        capture_output=True,
        text=True,
    )
    assert json.loads(done.stdout or 'null') == [-9, 0, 0, 0], done.stderr
    c, b1, b2 = (torch.load(tmp_path / 'out' / name, weights_only=True) for name in ('c', 'b1', 'b2'))
    assert (
        c['calls'] == 40 - 4 * 4 and len(shards(tmp_path / 'cache' / 'killed')) == 10
    )  # four parts were written before the fifth was killed
    for o in (c, b1, b2):
        assert torch.allclose(o['found'], plain, atol=1e-6)
    assert (
        b1['calls'] == b2['calls'] == 40 and len(shards(tmp_path / 'cache' / 'both')) == 20
    )  # neither waited, neither was in the way


def test_it_is_read_after_two_processes(ask, plain, tmp_path):
    "Rows that are there twice are found once"
    ask(part=9)
    shutil.copytree(tmp_path / 'cache', tmp_path / 'copy')
    for path in shards(tmp_path / 'copy'):
        shutil.copy(path, next((tmp_path / 'cache').iterdir()) / f'{path.stem[::-1]}.safetensors')
    found, n = ask()
    assert n == 0 and alike(found, plain) and cache_info(tmp_path / 'cache')['rows'] == 80


def test_a_run_and_its_predictions_use_it(folder, tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.INFO, 'reclip')
    monkeypatch.setenv('RECLIP_CACHE', str(tmp_path / 'env'))
    (folder / 'torn.png').write_bytes(b'no')

    def begin(name, **more):
        caplog.clear()
        table = run.adapt(folder, list(demo.class_names), tmp_path / name, **settings | more)
        return table, '40 of 41 images were encoded before' in caplog.text

    first = begin('a', cache=None)
    second = begin('b')
    third = begin('c')
    assert (
        [o[1] for o in (first, second, third)] == [False, False, True]
        and first[0].equals(second[0])
        and first[0].equals(third[0])
    )
    assert (tmp_path / 'a' / 'skipped.csv').read_bytes() == (tmp_path / 'c' / 'skipped.csv').read_bytes() and (
        tmp_path / 'b' / 'features.safetensors'
    ).read_bytes() == (tmp_path / 'c' / 'features.safetensors').read_bytes()
    assert (
        begin('d', method='training-free')[1]
        and begin('e', templates='photo')[1]
        and not begin('f', precision='bfloat16')[1]
        and not begin('g', cache=tmp_path / 'own')[1]
    )
    caplog.clear()
    new, _, skipped = run.predict(tmp_path / 'a', folder, progress=False)
    assert new.label.tolist() == first[0].label.tolist() and '40 of 41' in caplog.text and len(skipped) == 1
    caplog.clear()
    run.predict(tmp_path / 'a', folder, progress=False, cache=None)
    assert 'encoded before' not in caplog.text


def test_where_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv('RECLIP_CACHE', str(tmp_path / 'env'))
    assert cache_folder() == tmp_path / 'env' and cache_folder(tmp_path) == tmp_path and cache_folder(None) is None
    monkeypatch.delenv('RECLIP_CACHE')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'xdg'))
    monkeypatch.setenv('HOME', str(tmp_path))
    if sys.platform == 'linux':
        assert cache_folder() == tmp_path / 'xdg' / 'reclip'
    monkeypatch.setenv('RECLIP_CACHE', '~/mine')
    assert cache_folder() == tmp_path / 'mine' and cache_folder('~/other') == tmp_path / 'other'


def test_clearing_leaves_what_is_not_ours(ask, folder, tmp_path):
    cache = tmp_path / 'cache'
    ask()
    ask(precision='bfloat16')
    first, second = sorted(o for o in cache.iterdir())
    mine = [cache / 'photo.jpg', cache / 'deep' / 'settings.json', first / 'notes.txt', first / 'weights.safetensors']
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        path.write_text('mine')
    (second / f'.{"1" * 32}.safetensors-{"2" * 32}').write_text('left over')
    assert {o['precision'] for o in cache_info(cache)['stores']} == {'float32', 'bfloat16'} and cache_info(cache)[
        'rows'
    ] == 80
    clear_cache(cache)
    clear_cache(None)
    clear_cache(tmp_path / 'nowhere')
    assert (
        sorted(o for o in cache.rglob('*') if o.is_file()) == sorted(mine)
        and not second.exists()
        and cache_info(tmp_path / 'nowhere')['stores'] == []
    )
    assert ask()[1] == 40


def test_the_command_line(folder, tmp_path):
    def call(*args):
        return CliRunner().invoke(app, [str(o) for o in args])

    words, cache = ', '.join(demo.class_names), tmp_path / 'cache'

    def label(name, *args):
        found = call('zeroshot', folder, '-c', words, '-t', 'digit', '-m', 'demo', '-o', tmp_path / name, *args)
        assert found.exit_code == 0, found.output
        return found.output

    assert 'encoded before' not in label('a', '--no-cache')
    assert '0 of 40 images were encoded before' in label(
        'b', '--cache', cache
    ) and '40 of 40 images were encoded before' in label('c', '--cache', cache)
    assert '40 of 40' in call('predict', tmp_path / 'a', folder, '-o', tmp_path / 'p.csv', '--cache', cache).output
    both = call('zeroshot', folder, '-c', words, '-m', 'demo', '-o', tmp_path / 'x', '--cache', cache, '--no-cache')
    assert both.exit_code == 2 and 'give one of them' in both.output and not (tmp_path / 'x').exists()
    told = call('cache', '--cache', cache)
    assert (
        told.exit_code == 0
        and f'{cache}: 40 images' in told.output
        and 'VisionTransformer of 211,584 parameters, float32, cpu' in told.output
    )
    assert (
        'removed' in call('cache', '--cache', cache, '--clear').output
        and not list(cache.iterdir())
        and ': 0 images' in call('cache', '--cache', cache).output
    )
    assert call('cache').exit_code == 0
