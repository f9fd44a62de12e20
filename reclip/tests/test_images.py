"Images of every kind open with the right pixels, all else is named and counted, and every source gives the same rows."

import gzip
import io
import os
import pickle
import re
import shutil
import struct
import tarfile
import threading
import zipfile
import zlib
from pathlib import Path
import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from safetensors.torch import save_file
from reclip import encode_images
from reclip.archives import expand_pattern
from reclip.features import read_features
from reclip.images import Skipped, encode_readable, find_images, read_path, show_path
from reclip.pictures import ImageDataset, UnreadableImage, open_image, to_rgb


def as_file(image, kind='PNG', **options):
    "An image file in memory"
    file = io.BytesIO()
    image.save(file, kind, **options)
    file.seek(0)
    return file


def pixels(image):
    return np.asarray(image).tolist()


def grey(*values):
    return [[[v] * 3 for v in values]]


def flat(mode, color):
    return Image.new(mode, (16, 16), color)


def picture(array, **options):
    return as_file(Image.fromarray(array), **options)


def row(image, *values):
    "The same image, one pixel high, with these values"
    image = image.resize((len(values), 1))
    for x, v in enumerate(values):
        image.putpixel((x, 0), v)
    return image


def palette(**options):
    "Red, green and blue by palette"
    image = Image.new('P', (3, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    return as_file(row(image, 0, 1, 2), **options)


red = [255, 0, 0]
green = [0, 255, 0]
blue = [0, 0, 255]
white = [255] * 3


@pytest.mark.parametrize(
    'file, expected',
    [
        (as_file(row(Image.new('L', (1, 1)), 0, 100, 255)), grey(0, 100, 255)),
        (as_file(row(Image.new('RGB', (1, 1)), (1, 2, 3), (200, 100, 50))), [[[1, 2, 3], [200, 100, 50]]]),
        (as_file(row(Image.new('1', (1, 1)), 0, 255)), grey(0, 255)),
        (palette(), [[red, green, blue]]),
        (palette(transparency=1), [[red, white, blue]]),
        (palette(transparency=bytes([255, 255, 0])), [[red, green, white]]),
        (palette(kind='GIF'), [[red, green, blue]]),
        (palette(kind='GIF', transparency=0), [[white, green, blue]]),
        (as_file(row(Image.new('LA', (1, 1)), (0, 255), (0, 0), (100, 255))), grey(0, 255, 100)),
        (
            as_file(row(Image.new('RGBA', (1, 1)), (255, 0, 0, 255), (255, 0, 0, 0), (0, 0, 0, 51))),
            [[red, white, [204] * 3]],
        ),
        (as_file(row(Image.new('L', (1, 1)), 0, 77), transparency=77), grey(0, 255)),
        (as_file(row(Image.new('RGB', (1, 1)), (1, 2, 3), (9, 9, 9)), transparency=(9, 9, 9)), [[[1, 2, 3], white]]),
        (as_file(row(Image.new('1', (1, 1)), 0, 255), transparency=0), grey(255, 255)),
        (picture(np.array([[0, 257, 32896, 65535]], np.uint16)), grey(0, 1, 128, 255)),
        (picture(np.array([[0, 257, 32896, 65535]], np.uint16), kind='TIFF'), grey(0, 1, 128, 255)),
        (picture(np.array([[0, 100, 255]], np.int32), kind='TIFF'), grey(0, 100, 255)),
        (picture(np.array([[0, 257, 32896, 65535]], np.int32), kind='TIFF'), grey(0, 1, 128, 255)),
        (picture(np.array([[-5, 0, 1 << 29, 1 << 30]], np.int32), kind='TIFF'), grey(0, 0, 128, 255)),
        (picture(np.array([[0, 0.5, 1]], np.float32), kind='TIFF'), grey(0, 128, 255)),
        (picture(np.array([[0, 100, 255]], np.float32), kind='TIFF'), grey(0, 100, 255)),
        (picture(np.array([[0, 257, 65535]], np.float32), kind='TIFF'), grey(0, 1, 255)),
        (picture(np.array([[-1, np.nan, 0.2, 1]], np.float32), kind='TIFF'), grey(0, 0, 51, 255)),
        (picture(np.array([[np.inf, -np.inf, 0.2, 1]], np.float32), kind='TIFF'), grey(255, 0, 51, 255)),
        (picture(np.zeros((1, 2), np.float32), kind='TIFF'), grey(0, 0)),
    ],
    ids=(
        'grey rgb 1-bit palette palette-index palette-alpha gif gif-transparent LA RGBA grey-key rgb-key 1-bit-key '
        '16-bit 16-bit-tiff int-8 int-16 int-32 float-1 float-255 float-65535 float-nan float-inf float-black'
    ).split(),
)
def test_every_mode_gives_its_pixels(file, expected):
    file.seek(0)
    found = open_image(file)
    assert found.mode == 'RGB' and pixels(found) == expected


def lab(rgb):
    return ImageCms.profileToProfile(
        flat('RGB', rgb), ImageCms.createProfile('sRGB'), ImageCms.createProfile('LAB'), outputMode='LAB'
    )


@pytest.mark.parametrize(
    'image, kind, options',
    [
        (flat('RGB', (200, 100, 50)).convert('CMYK'), 'JPEG', dict(quality=100)),
        (flat('RGB', (200, 100, 50)).convert('CMYK'), 'TIFF', {}),
        (flat('RGB', (200, 100, 50)).convert('YCbCr'), 'JPEG', dict(quality=100)),
        (flat('RGB', (200, 100, 50)).convert('YCbCr'), 'TIFF', {}),
        (lab((200, 100, 50)), 'TIFF', {}),
        (flat('RGB', (200, 100, 50)), 'WEBP', dict(lossless=True)),
        (flat('RGB', (200, 100, 50)), 'BMP', {}),
        (flat('RGB', (200, 100, 50)), 'PPM', {}),
        (flat('RGB', (200, 100, 50)), 'JPEG2000', {}),
    ],
    ids='cmyk-jpeg cmyk-tiff ycbcr-jpeg ycbcr-tiff lab-tiff webp bmp ppm jpeg2000'.split(),
)
def test_every_colour_space_gives_its_colour(image, kind, options):
    found = open_image(as_file(image, kind, **options))
    assert found.mode == 'RGB' and np.abs(np.asarray(found, int) - (200, 100, 50)).max() <= 3


@pytest.mark.parametrize(
    'mode',
    [
        '1',
        'L',
        'P',
        'RGB',
        'RGBA',
        'LA',
        'PA',
        'RGBX',
        'RGBa',
        'CMYK',
        'YCbCr',
        'HSV',
        'I',
        'F',
        'I;16',
        'I;16B',
        'I;16L',
    ],
)
def test_every_mode_in_memory(mode):
    image = (
        Image.new(mode, (2, 2), 65535 if mode.startswith('I') else 255)
        if mode in ('1', 'L', 'F') or mode.startswith('I')
        else Image.new('RGBA', (2, 2), 'white').convert('RGBa')
        if mode == 'RGBa'
        else Image.new('RGB', (2, 2), 'white').convert(mode)
    )
    assert pixels(to_rgb(image)) == [[white] * 2] * 2
    assert ImageDataset([image], lambda o: torch.from_numpy(np.asarray(o.convert('RGB')).copy()))[0].eq(255).all()


@pytest.mark.parametrize('kind', ['GIF', 'PNG', 'WEBP', 'TIFF'])
def test_an_animation_gives_its_first_frame(kind):
    frames = [flat('RGB', o) for o in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    file = as_file(
        frames[0], kind, save_all=True, append_images=frames[1:], **(dict(lossless=True) if kind == 'WEBP' else {})
    )
    assert Image.open(file).n_frames == 3 and np.abs(np.asarray(open_image(file), int) - red).max() <= 2


upright = {
    1: lambda s: s,
    2: lambda s: s[:, ::-1],
    3: lambda s: s[::-1, ::-1],
    4: lambda s: s[::-1],
    5: lambda s: s.swapaxes(0, 1),
    6: lambda s: s.swapaxes(0, 1)[:, ::-1],
    7: lambda s: s.swapaxes(0, 1)[::-1, ::-1],
    8: lambda s: s.swapaxes(0, 1)[::-1],
}


@pytest.mark.parametrize('kind', ['PNG', 'JPEG', 'WEBP', 'grey16'])
@pytest.mark.parametrize('orientation', sorted(upright))
def test_photos_are_upright(orientation, kind, tmp_path):
    stored = (
        np.random.default_rng(0).integers(256, size=(2, 3, 3), dtype=np.uint8)
        if kind != 'JPEG'
        else np.repeat(np.arange(30, 210, 30, np.uint8).reshape(2, 3), 16, 0).repeat(16, 1)[..., None].repeat(3, 2)
    )
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(stored[..., 0].astype(np.uint16) * 257 if kind == 'grey16' else stored)
    if kind == 'grey16':
        stored = stored[..., :1].repeat(3, 2)
    path = tmp_path / 'photo'
    image.save(
        path,
        'PNG' if kind == 'grey16' else kind,
        exif=exif,
        **(dict(lossless=True) if kind == 'WEBP' else dict(quality=100) if kind == 'JPEG' else {}),
    )
    found, expected = np.asarray(open_image(path), int), upright[orientation](stored).astype(int)
    assert found.shape == expected.shape and np.abs(found - expected).max() <= (3 if kind == 'JPEG' else 0)


@pytest.mark.parametrize('size', [(1, 200_000), (200_000, 1), (40_000, 3), (2, 3000)])
@pytest.mark.parametrize('in_memory', [False, True])
def test_a_long_strip_is_cut_to_its_middle(size, in_memory, clip, tmp_path):
    strip = np.zeros(size[::-1], np.uint8)
    middle = [
        slice(n // 2 - 40 * min(size), n // 2 + 40 * min(size)) if n == max(size) else slice(None) for n in size[::-1]
    ]
    strip[tuple(middle)] = 255
    Image.fromarray(strip).save(tmp_path / 'strip.png')
    seen = []

    def preprocess(image):
        seen.append(image.size)
        return clip[1](image)

    source = Image.fromarray(strip) if in_memory else tmp_path / 'strip.png'
    assert ImageDataset([source], preprocess)[0].eq(1).all()  # the white middle, not the black ends
    assert max(seen[0]) <= 50 * min(seen[0]) and min(seen[0]) == min(size)


def test_other_shapes_are_left_alone():
    seen = []

    def preprocess(image):
        seen.append(image.size)
        return torch.zeros(3, 2, 2)

    for size in ((1, 1), (1, 50), (50, 1), (640, 480)):
        ImageDataset([Image.new('RGB', size)], preprocess)[0]
    assert seen == [(1, 1), (1, 50), (50, 1), (640, 480)]


def bomb(width, height):
    "A PNG file of a few bytes that claims to be large"

    def chunk(kind, data):
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

    return (
        b'\x89PNG\r\n\x1a\n'
        + chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0))
        + chunk(b'IDAT', zlib.compress(b'\0' * 100))
        + chunk(b'IEND', b'')
    )


def noise(i=0, size=(24, 32, 3)):
    return Image.fromarray(np.random.default_rng(i).integers(256, size=size, dtype=np.uint8))


@pytest.mark.filterwarnings('ignore::UserWarning')
@pytest.mark.parametrize('kind', ['PNG', 'JPEG', 'GIF', 'BMP', 'TIFF', 'WEBP', 'PPM', 'JPEG2000', 'ICO'])
@pytest.mark.parametrize('share', [0.02, 0.3, 0.7])
def test_truncated_files_are_unreadable(kind, share, tmp_path):
    whole = as_file(noise(), kind).getvalue()
    (tmp_path / 'cut').write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UnreadableImage, match='cut: .'):
        open_image(tmp_path / 'cut')


@pytest.mark.filterwarnings('ignore::UserWarning')
@pytest.mark.parametrize('seed', range(40))
def test_damaged_files_open_or_are_unreadable(seed, tmp_path):
    rng, kinds = np.random.default_rng(seed), ['PNG', 'JPEG', 'GIF', 'BMP', 'TIFF', 'WEBP', 'JPEG2000', 'PPM']
    content = np.frombuffer(as_file(noise(seed), kinds[seed % 8]).getvalue(), np.uint8).copy()
    content[rng.integers(len(content) // (1 if seed % 3 else 20), size=8)] = rng.integers(256, size=8)
    (tmp_path / 'damaged').write_bytes(content)
    try:
        assert open_image(tmp_path / 'damaged').mode == 'RGB'
    except UnreadableImage as e:
        assert str(e).startswith(f'{tmp_path}/damaged: ')


def link(path, to):
    try:
        path.symlink_to(to)
    except OSError:
        pytest.skip('no links on this disk')


bad = {
    'cut.png': '(?i)truncated',
    'cut.jpg': '(?i)truncated',
    'empty.jpg': 'empty file',
    'page.jpg': 'not an image',
    'text.png': 'not an image',
    'zip.webp': 'not an image',
    'noise.png': '.',
    'bomb.png': 'too many pixels',
    'wide.png': 'too many pixels',
    'gone.png': 'broken link',
    'itself.png': 'broken link',
    'ping.png': 'broken link',
    'pong.png': 'broken link',
    'pipe.png': 'not a file',
}


@pytest.fixture
def mess(tmp_path):
    "Three good images and one of each kind of bad ones; the path as a folder"
    root = tmp_path / 'mess'
    (root / 'deep' / 'er').mkdir(parents=True)
    for i, name in enumerate(('a.png', 'deep/b.jpg', 'deep/er/c.png')):
        noise(i).save(root / name)
    for name in ('cut.png', 'cut.jpg'):
        content = as_file(noise(), 'PNG' if name.endswith('png') else 'JPEG').getvalue()
        (root / name).write_bytes(content[: len(content) // 2])
    (root / 'empty.jpg').write_bytes(b'')
    (root / 'page.jpg').write_text('<html>404</html>')
    (root / 'text.png').write_text('hello')
    with zipfile.ZipFile(root / 'zip.webp', 'w') as archive:
        archive.writestr('a.png', as_file(noise()).getvalue())
    (root / 'noise.png').write_bytes(b'\x89PNG\r\n\x1a\n' + np.random.default_rng(0).bytes(500))
    (root / 'bomb.png').write_bytes(bomb(60_000, 60_000))
    (root / 'wide.png').write_bytes(bomb(2_000_000_000, 1))
    link(root / 'gone.png', root / 'nowhere.png')
    link(root / 'itself.png', root / 'itself.png')
    link(root / 'ping.png', root / 'pong.png')
    link(root / 'pong.png', root / 'ping.png')
    os.mkfifo(root / 'pipe.png')
    return root


@pytest.mark.parametrize('num_workers', [0, 2])
def test_every_bad_file_is_named_and_counted_once(mess, clip, num_workers):
    files, skipped = find_images(mess)
    features, readable, skipped = encode_readable(clip[0], files, clip[1], skipped, 1.0, num_workers=num_workers)
    assert readable.names == ['a.png', 'deep/b.jpg', 'deep/er/c.png'] and torch.equal(
        features, encode_images(clip[0], [mess / o for o in readable.names], clip[1])
    )
    assert sorted(o.path for o in skipped) == sorted(bad) and {o.kind for o in skipped} == {'unreadable'}
    for path, _, reason in skipped:
        assert re.search(bad[path], reason) and str(mess) not in reason, (path, reason)
    with pytest.raises(ValueError, match='14 of 17 images cannot be opened, more than max_unreadable=80%'):
        encode_readable(clip[0], *find_images(mess)[:1], clip[1], find_images(mess)[1], 0.8)


def test_a_fixed_limit_of_pixels_is_kept(tmp_path, monkeypatch):
    noise(size=(100, 100)).save(tmp_path / 'a.png')
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 4999)
    with pytest.raises(UnreadableImage, match='too many pixels'):
        open_image(tmp_path / 'a.png')


@pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid() == 0, reason='root may read everything')
def test_files_without_permission(tmp_path, clip):
    for name in ('a.png', 'b.png', 'c/d.png'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        noise().save(tmp_path / name)
    (tmp_path / 'b.png').chmod(0)
    (tmp_path / 'c').chmod(0)
    try:
        features, files, skipped = encode_readable(
            clip[0], *find_images(tmp_path)[:1], clip[1], find_images(tmp_path)[1], 1.0
        )
    finally:
        (tmp_path / 'c').chmod(0o755)
    assert (
        files.names == ['a.png']
        and [(Path(o.path).name, o.kind) for o in skipped] == [('c', 'unreadable'), ('b.png', 'unreadable')]
        and 'permission' in skipped[1].reason
    )


def test_files_and_folders_that_the_system_refuses(tmp_path, clip, monkeypatch):
    for name in ('a.png', 'b.png', 'c.png', 'closed/d.png'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        noise(ord(name[0])).save(tmp_path / name)
    real_open, real_list = Image.open, os.scandir

    def refuse(file, *args, **kwargs):
        if str(file).endswith('b.png'):
            raise PermissionError(13, 'Permission denied', str(file))
        if str(file).endswith('c.png'):
            raise OSError(5, 'Input/output error', str(file))
        return real_open(file, *args, **kwargs)

    def refuse_list(path):
        if str(path).endswith('closed'):
            raise PermissionError(13, 'Permission denied', str(path))
        return real_list(path)

    monkeypatch.setattr('reclip.pictures.Image.open', refuse)
    monkeypatch.setattr(os, 'scandir', refuse_list)
    files, skipped = find_images(tmp_path)
    _, files, skipped = encode_readable(clip[0], files, clip[1], skipped, 1.0)
    assert files.names == ['a.png'] and [Path(o.path).name for o in skipped] == ['closed', 'b.png', 'c.png']
    assert (
        'cannot be listed' in skipped[0].reason
        and skipped[1].reason == 'no permission to read it'
        and 'Input/output' in skipped[2].reason
    )


def test_a_file_that_goes_away_after_it_was_found(tmp_path, clip):
    for name in ('a.png', 'b.png'):
        noise(ord(name[0])).save(tmp_path / name)
    pack(tmp_path, tmp_path / 's.tar', ['a.png', 'b.png'])
    for source in (tmp_path, tmp_path / 's.tar'):
        files, skipped = find_images(source)
        (tmp_path / 'b.png').unlink() if source == tmp_path else source.unlink()
        if source == tmp_path:
            _, files, skipped = encode_readable(clip[0], files, clip[1], skipped, 1.0)
            assert files.names == ['a.png'] and skipped == [Skipped('b.png', 'unreadable', 'not there')]
        else:
            with pytest.raises(ValueError, match='none of 2 images'):
                encode_readable(clip[0], files, clip[1], skipped, 1.0)


def test_opening_a_pipe_does_not_wait(tmp_path):
    os.mkfifo(tmp_path / 'pipe.png')
    found = []

    def attempt():
        try:
            found.append(open_image(tmp_path / 'pipe.png'))
        except UnreadableImage as e:
            found.append(str(e))

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(2)
    waited = thread.is_alive()
    if waited:
        os.close(os.open(tmp_path / 'pipe.png', os.O_WRONLY | os.O_NONBLOCK))
        thread.join(2)
    assert not waited and 'not a file' in found[0]


odd_names = [
    'new\nline.png',
    'car\rriage.png',
    'com,ma.png',
    'quo"te.png',
    "apo'strophe.png",
    'tab\t.png',
    ' space .png',
    '-dash.png',
    '#hash.png',
    '100%.png',
    'back\\slash.png',
    'caf\u00e9.png',
    'cafe\u0301.png',
    '\u732b.png',
    '\U0001f408.png',
    '{brace}.png',
    '[box].png',
    'star*.png',
    'semi;colon.PNG',
    os.fsdecode(b'caf\xe9.png'),
    os.fsdecode(b'\xff\xfe\x80.png'),
]


@pytest.fixture
def odd(tmp_path):
    "Folder of images with odd names"
    root = tmp_path / 'odd'
    root.mkdir()
    for i, name in enumerate(odd_names):
        try:
            (root / name).write_bytes(as_file(noise(i)).getvalue())
        except OSError:
            pytest.skip(f'this disk has no name {name!r}')
    return root


def test_odd_names_are_found_and_shown(odd, clip):
    files, skipped = find_images(odd)
    assert files.names == sorted(odd_names) and not skipped
    for name in files.names:
        shown = show_path(name)
        assert read_path(shown) == name and shown.encode('utf-8').decode() == shown
    assert [pixels(files[i]) for i in range(len(files))] == [pixels(noise(odd_names.index(o))) for o in files.names]
    for name in odd_names:
        (odd / name).write_bytes(b'')
    (odd / 'good.png').write_bytes(as_file(noise()).getvalue())
    _, files, skipped = encode_readable(clip[0], *find_images(odd)[:1], clip[1], (), 1.0)
    assert (
        files.names == ['good.png']
        and [read_path(o.path) for o in skipped] == sorted(odd_names)
        and {o.reason for o in skipped} == {'empty file'}
    )


def test_odd_names_in_a_list_file_and_a_tar(odd):
    lines = [o for o in odd_names if not set('\r\n') & set(o) and o == o.strip()]
    (odd / 'list.txt').write_bytes(b'\n'.join(os.fsencode(o) for o in lines))
    files, skipped = find_images(odd / 'list.txt')
    assert files.names == lines and not skipped
    pack(odd, odd.parent / 's.tar', odd_names)
    files, skipped = find_images(odd.parent / 's.tar')
    assert (
        files.names == [f's.tar/{o}' for o in odd_names]
        and not skipped
        and all(read_path(show_path(o)) == o for o in files.names)
    )


def test_a_name_that_looks_like_an_escape():
    assert read_path(show_path('\\udce9.png')) == '\\udce9.png'


@pytest.fixture
def four(tmp_path):
    "Folder of four images, `a.png` to `d.png`"
    root = tmp_path / 'four'
    root.mkdir()
    for i, o in enumerate('abcd'):
        noise(i).save(root / f'{o}.png')
    return root


def test_the_same_file_twice_in_a_list(four, monkeypatch):
    link(four / 'z.png', four / 'a.png')
    monkeypatch.chdir(four)
    files, skipped = find_images(
        ['b.png', four / 'a.png', 'b.png', './b.png', str(four / 'b.png'), four / 'z.png', '../four/a.png']
    )
    assert (
        [os.path.basename(o) for o in files.names] == ['b.png', 'a.png']
        and len(skipped) == 5
        and {o.kind for o in skipped} == {'duplicate'}
    )
    assert (
        skipped[0] == ('b.png', 'duplicate', 'the same file as b.png')
        and skipped[3].reason == f'the same file as {four}/a.png'
    )


def test_the_same_file_through_links(four, clip):
    link(four / 'again.png', four / 'b.png')
    (four / 'sub').mkdir()
    link(four / 'sub' / 'up', four)
    link(four / 'other', four / 'sub')
    files, skipped = find_images(four)
    assert files.names == ['a.png', 'again.png', 'c.png', 'd.png'] and {(o.path, o.kind) for o in skipped} == {
        ('b.png', 'duplicate'),
        ('sub', 'duplicate'),
        ('other/up', 'duplicate'),
    }
    assert len(encode_readable(clip[0], files, clip[1], skipped, 0.0)[0]) == 4  # duplicates are no faults


@pytest.mark.parametrize(
    'content',
    [
        b'a.png\nb.png\nc.png',
        b'\xef\xbb\xbfa.png\r\n\r\nb.png\r\n  \r\nc.png\r\n\r\n',
        b'  a.png  \n\t\nb.png\n./c.png\n',
        b'a.png\rb.png\rc.png\r',
    ],
    ids=['plain', 'windows', 'spaces', 'mac'],
)
def test_list_files(four, content):
    (four / 'list.txt').write_bytes(content)
    files, skipped = find_images(four / 'list.txt')
    assert (
        [os.path.normpath(o) for o in files.names] == ['a.png', 'b.png', 'c.png']
        and not skipped
        and pixels(files[2]) == pixels(noise(2))
    )


def test_a_list_file_of_another_folder(four, tmp_path, monkeypatch):
    (tmp_path / 'deep').mkdir()
    (tmp_path / 'deep' / 'list.LST').write_text(f'../four/a.png\n{four}/b.png\n~/c.png\n')
    monkeypatch.setenv('HOME', str(four))
    monkeypatch.chdir('/')
    files, skipped = find_images(tmp_path / 'deep' / 'list.LST')
    assert not skipped and [pixels(files[i]) for i in range(3)] == [pixels(noise(i)) for i in range(3)]
    assert find_images('~')[0].names == ['a.png', 'b.png', 'c.png', 'd.png']


def test_missing_entries_of_a_list(four):
    entries = ['a.png', 'nowhere.png', os.fsdecode(b'ge\xe9n.png'), '.', 'b.png', 'x' * 300, 'nul\0.png']
    expected = [
        (show_path(o), 'unreadable', 'not a file' if o == '.' else 'not there')
        for o in entries
        if o not in ('a.png', 'b.png')
    ]
    (four / 'list.txt').write_bytes(b'\n'.join(os.fsencode(o) for o in entries))
    files, skipped = find_images(four / 'list.txt')
    assert files.names == ['a.png', 'b.png'] and skipped == expected
    files, skipped = find_images([four / 'a.png', *entries[1:4], *entries[5:]])
    assert len(files) == 1 and skipped == expected
    (four / 'list.txt').write_text('nowhere.png\nneither.png\n')
    with pytest.raises(
        ValueError, match=r'list.txt: no images found; 2 things were skipped, the first: nowhere.png: not there'
    ):
        find_images(four / 'list.txt')


@pytest.mark.parametrize('content', [b'', b'\n\r\n  \n', b'\xef\xbb\xbf'])
def test_an_empty_list(tmp_path, content):
    (tmp_path / 'list.txt').write_bytes(content)
    with pytest.raises(ValueError, match='no images found'):
        find_images(tmp_path / 'list.txt')
    with pytest.raises(ValueError, match='no images found'):
        find_images([])


def test_folders_without_images(tmp_path, clip):
    with pytest.raises(ValueError, match='no images found; looked for .*jpg'):
        find_images(tmp_path)
    (tmp_path / 'notes.txt').write_text('hello')
    with pytest.raises(ValueError, match='no images found; looked for .*jpg'):
        find_images(tmp_path)
    link(tmp_path / 'gone.png', tmp_path / 'nowhere.png')
    with pytest.raises(ValueError, match='no images found; 1 things? w.* skipped, the first: gone.png: broken link'):
        find_images(tmp_path)
    for i in range(3):
        (tmp_path / f'{i}.png').write_bytes(b'')
    for share in (1.0, 0.1):
        with pytest.raises(
            ValueError, match=r'(none of 3 images can be opened|images cannot be opened).*the first: (0|gone).png: '
        ):
            encode_readable(clip[0], *find_images(tmp_path)[:1], clip[1], find_images(tmp_path)[1], share)


@pytest.mark.parametrize('name', ['nowhere', 'nowhere.tar', 'nowhere.txt', 'nowhere.png'])
def test_a_source_that_is_not_there(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=name):
        find_images(tmp_path / name)


@pytest.mark.parametrize('name', ['table.csv', 'photos.zip', 'photos.tar.gz', 'photos.tgz', 'noend'])
def test_a_source_of_another_kind(tmp_path, name):
    (tmp_path / name).write_bytes(b'1234')
    with pytest.raises(ValueError, match=f'{name}: expected a folder.*' + ('unpack' if 'photos' in name else '')):
        find_images(tmp_path / name)


def test_a_single_image_is_a_source(four):
    files, skipped = find_images(four / 'b.png')
    assert files.names == ['b.png'] and not skipped and pixels(files[0]) == pixels(noise(1))
    os.mkfifo(four / 'pipe.png')
    with pytest.raises(ValueError, match='pipe.png is a pipe, expected a file'):
        find_images(four / 'pipe.png')


@pytest.mark.parametrize(
    'n_bad, share, stops', [(2, 0.2, False), (2, 0.19, True), (0, 0, False), (1, 0, True), (9, 0.9, False)]
)
def test_the_share_of_unreadable_files(tmp_path, clip, n_bad, share, stops):
    for i in range(10):
        (tmp_path / f'{i}.png').write_bytes(b'' if i < n_bad else as_file(noise(i)).getvalue())
    if stops:
        with pytest.raises(
            ValueError,
            match=f'{n_bad} of 10 images cannot be opened, more than max_unreadable=.*the first: 0.png: empty file',
        ):
            encode_readable(clip[0], *find_images(tmp_path)[:1], clip[1], (), share)
    else:
        assert len(encode_readable(clip[0], *find_images(tmp_path)[:1], clip[1], (), share)[0]) == 10 - n_bad


@pytest.mark.parametrize('share', [-0.1, 1.1, float('nan'), 10])
def test_a_share_is_between_0_and_1(four, clip, share):
    with pytest.raises(ValueError, match='max_unreadable: expected a share'):
        encode_readable(clip[0], find_images(four)[0], clip[1], (), share)


def test_it_stops_early_where_most_files_are_bad(tmp_path, clip):
    for i in range(20):
        noise(i).save(tmp_path / f'{i:03}.png')
    for i in range(20, 420):
        (tmp_path / f'{i:03}.png').write_bytes(b'')
    files, opened = find_images(tmp_path)[0], []

    class Watched(type(files)):
        def __getitem__(self, i):
            opened.append(i)
            return super().__getitem__(i)

    with pytest.raises(ValueError, match='1.. of 420 images cannot be opened'):
        encode_readable(clip[0], Watched(files.places, files.names), clip[1], (), 0.1, batch_size=16)
    assert len(opened) < 160


def test_hidden_files_are_ignored(four):
    for name in ('.e.png', '._a.png', '.thumbs/f.png', 'sub/.g.png', 'sub/.h/i.png'):
        (four / name).parent.mkdir(exist_ok=True)
        noise().save(four / name)
    (four / 'Thumbs.db').write_bytes(b'1')
    (four / 'a.png.part').write_bytes(b'1')
    files, skipped = find_images(four)
    assert files.names == ['a.png', 'b.png', 'c.png', 'd.png'] and not skipped


def test_folders_come_in_sorted_order(tmp_path, monkeypatch):
    names = [
        '10.png',
        '2.png',
        'B.png',
        'a.png',
        'sub/1.png',
        'sub-2/1.png',
        'sub/deep/0.JPG',
        'z/a.png',
        '\u00e4.png',
        'a/b.jpeg',
    ]
    for name in reversed(names):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        noise().save(tmp_path / name)
    assert find_images(tmp_path)[0].names == sorted(names) == find_images(f'{tmp_path}/')[0].names
    real = os.scandir

    class Backwards:
        def __init__(self, path):
            self.found = sorted(real(path), key=lambda o: o.name, reverse=True)

        def __iter__(self):
            return iter(self.found)

        def __next__(self):
            return self.found.pop(0) if self.found else next(iter(()))

        def __enter__(self):
            return self

        def __exit__(self, *args):
            pass

        def close(self):
            pass

    monkeypatch.setattr(os, 'scandir', Backwards)
    assert find_images(tmp_path)[0].names == sorted(names)


def test_a_folder_whose_name_looks_like_a_pattern_or_a_file(tmp_path):
    for name in ('{a,b}', 'what*', 'is[1]?', 'photos.txt', 'photos.png', 'photos.tar'):
        (tmp_path / name).mkdir()
        noise().save(tmp_path / name / 'a.png')
        assert find_images(tmp_path / name)[0].names == ['a.png'], name


def add(archive, name, content):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


def pack(folder, path, names, label=b'7', kind='w', format=tarfile.PAX_FORMAT):
    "A tar archive of some files of a folder, with a label beside each; names stay as they are"
    with tarfile.open(path, kind, format=format, errors='surrogateescape') as archive:
        for name in names:
            add(archive, name, (folder / name).read_bytes())
            for suffix in ('.cls', '.json', '.txt'):
                add(archive, str(Path(name).with_suffix(suffix)), label)
    return path


@pytest.mark.parametrize('format', [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_an_archive_gives_the_rows_of_its_folder(four, tmp_path, clip, format):
    (four / 'deep').mkdir()
    noise(7).save(four / 'deep' / 'e.JPG')
    (four / 'bad.png').write_bytes(b'')
    files, skipped = find_images(four)
    expected, readable, skipped = encode_readable(clip[0], files, clip[1], skipped, 0.5)
    pack(four, tmp_path / 's.tar', files.names, format=format)
    for num_workers in (0, 2):
        packed, none = find_images(tmp_path / 's.tar')
        assert packed.names == [f's.tar/{o}' for o in files.names] and not none
        found, kept, bad = encode_readable(clip[0], packed, clip[1], none, 0.5, num_workers=num_workers)
        assert torch.equal(found, expected) and kept.names == [f's.tar/{o}' for o in readable.names]
        assert (
            [o.path for o in bad] == ['s.tar/bad.png']
            and 'BytesIO' not in bad[0].reason
            and skipped[0].path == 'bad.png'
        )


def test_workers_give_the_same_features(four, clip):
    files = find_images(four)[0]
    assert torch.equal(
        encode_images(clip[0], files, clip[1], num_workers=2, batch_size=3),
        encode_images(clip[0], files, clip[1], batch_size=3),
    )
    assert torch.equal(
        encode_images(clip[0], files.keep([2, 0]), clip[1]),
        encode_images(clip[0], [four / 'c.png', four / 'a.png'], clip[1]),
    )


def test_an_archive_packed_from_a_folder_has_the_same_names(four, tmp_path):
    for name in ('.e.png', '._a.png', '.thumbs/f.png', 'sub/g.png', 'sub/.h/i.png'):
        (four / name).parent.mkdir(exist_ok=True)
        noise(len(name)).save(four / name)
    with tarfile.open(tmp_path / 's.tar', 'w') as archive:
        archive.add(four, '.')
    assert (
        sorted(find_images(tmp_path / 's.tar')[0].names)
        == [f's.tar/{o}' for o in find_images(four)[0].names]
        == [f's.tar/{o}' for o in ('a.png', 'b.png', 'c.png', 'd.png', 'sub/g.png')]
    )


def test_links_in_an_archive_are_named(four, tmp_path):
    os.link(four / 'a.png', four / 'x.png')
    link(four / 'y.png', 'b.png')
    with tarfile.open(tmp_path / 's.tar', 'w') as archive:
        for name in ('a.png', 'b.png', 'x.png', 'y.png'):
            archive.add(four / name, name)
    files, skipped = find_images(tmp_path / 's.tar')
    assert sorted(files.names + [o.path for o in skipped]) == [
        's.tar/a.png',
        's.tar/b.png',
        's.tar/x.png',
        's.tar/y.png',
    ]


def test_a_name_twice_in_an_archive(four, tmp_path):
    with tarfile.open(tmp_path / 's.tar', 'w') as archive:
        for name in ('a.png', 'b.png'):
            add(archive, 'same.png', (four / name).read_bytes())
    files, skipped = find_images(tmp_path / 's.tar')
    assert len(set(files.names)) == len(files) and len(files) + len(skipped) == 2


def test_patterns_of_archives(four, tmp_path):
    for i, name in enumerate(('a.png', 'b.png', 'c.png')):
        pack(four, tmp_path / f's-{i:03}.tar', [name])
    everything = ['s-000.tar/a.png', 's-001.tar/b.png', 's-002.tar/c.png']
    for pattern in ('s-{000..002}.tar', 's-*.tar', 's-00?.tar', '{s-000,s-001,s-002}.tar', 's-{00[01],002}.tar'):
        assert find_images(tmp_path / pattern)[0].names == everything, pattern
    assert find_images(tmp_path / 's-{002,000}.tar')[0].names == [everything[2], everything[0]]
    files, skipped = find_images(tmp_path / 's-{000..001}*.tar')
    assert files.names == everything[:2] and not skipped
    files, skipped = find_images(tmp_path / '{s-*,s-000}.tar')
    assert files.names == everything and [(o.path, o.kind) for o in skipped] == [('s-000.tar/a.png', 'duplicate')]


def test_missing_shards_are_named(four, tmp_path):
    for i in (0, 2):
        pack(four, tmp_path / f's-{i:03}.tar', ['a.png'])
    with pytest.raises(FileNotFoundError, match='s-001.tar: not there'):
        find_images(tmp_path / 's-{000..002}.tar')
    with pytest.raises(FileNotFoundError, match=r't-\*.tar: not there'):
        find_images(tmp_path / 't-*.tar')
    with pytest.raises(FileNotFoundError, match=r't-\*.tar: not there'):
        find_images(tmp_path / '{s,t}-*.tar')
    with pytest.raises(ValueError, match='[Uu]nbalanced'):
        find_images(tmp_path / 's-{000..002.tar')
    for address in (
        'https://example.org/s-{000..002}.tar',
        's3://bucket/s-{000..002}.tar',
        'pipe:cat s-{000..002}.tar',
    ):
        with pytest.raises(ValueError, match='download'):
            find_images(address)


def test_a_pattern_in_a_folder_with_brackets(four, tmp_path):
    (tmp_path / 'shards [1]').mkdir()
    for i in range(2):
        pack(four, tmp_path / 'shards [1]' / f's-{i}.tar', ['ab'[i] + '.png'])
    assert expand_pattern(f'{tmp_path}/shards [1]/s-{{0..1}}.tar') == [
        f'{tmp_path}/shards [1]/s-{i}.tar' for i in range(2)
    ]


def test_archives_of_one_name_in_two_folders(four, tmp_path, clip):
    for i, folder in enumerate(('x', 'y')):
        (tmp_path / folder).mkdir()
        shutil.copy(four / f'{"ab"[i]}.png', tmp_path / folder / 'same.png')
        pack(tmp_path / folder, tmp_path / folder / 's.tar', ['same.png'])
    files, skipped = find_images(tmp_path / '{x,y}' / 's.tar')
    assert (
        not skipped
        and len(set(files.names)) == 2
        and [pixels(files[i]) for i in range(2)] == [pixels(noise(i)) for i in range(2)]
    )
    assert ['/x/' in files.names[0], '/y/' in files.names[1]] == [True, True]


def headers(path):
    "Offset of the header and of the data of each image of an archive"
    with tarfile.open(path) as archive:
        return [(m.offset, m.offset_data) for m in archive if m.name.endswith('.png')]


@pytest.mark.parametrize(
    'where, whole', [('data', 'ab'), ('header', 'ab'), ('damaged header', 'abd'), ('no end', 'abcd')]
)
def test_an_archive_that_is_cut_off(four, tmp_path, clip, where, whole):
    with tarfile.open(tmp_path / 's.tar', 'w') as archive:
        for name in ('a.png', 'b.png', 'c.png', 'd.png'):
            add(archive, name, (four / name).read_bytes())
    (at, data), content = headers(tmp_path / 's.tar')[2], bytearray((tmp_path / 's.tar').read_bytes())
    if where == 'damaged header':
        content[at : at + 200] = np.random.default_rng(0).bytes(200)
    if where == 'header':
        content = content[: at + 100]
    if where == 'data':
        content = content[: data + 100]
    if where == 'no end':
        content = content.rstrip(b'\0')
        content += bytes(-len(content) % 512)
    (tmp_path / 's.tar').write_bytes(content)
    files, skipped = find_images(tmp_path / 's.tar')
    found, files, skipped = encode_readable(clip[0], files, clip[1], skipped, 1.0)
    assert files.names == [f's.tar/{o}.png' for o in whole]
    if where != 'no end':
        assert [o.kind for o in skipped if o.path == str(tmp_path / 's.tar')] == [
            'unreadable'
        ]  # the loss of `c.png` is not silent
    if where == 'data':
        assert 's.tar/c.png' in [o.path for o in skipped]


@pytest.mark.parametrize('content', ['nothing', 'gzip', 'zip', 'text', 'image', 'first header', 'zeros', 'no images'])
def test_what_is_no_archive(four, tmp_path, content):
    pack(four, tmp_path / 'whole.tar', ['a.png'])
    whole = (tmp_path / 'whole.tar').read_bytes()
    with zipfile.ZipFile(tmp_path / 'z', 'w') as archive:
        archive.write(four / 'a.png', 'a.png')
    with tarfile.open(tmp_path / 'empty.tar', 'w') as archive:
        add(archive, 'a.txt', b'1')
    (tmp_path / 's.tar').write_bytes(
        {
            'nothing': b'',
            'gzip': gzip.compress(whole),
            'zip': (tmp_path / 'z').read_bytes(),
            'text': b'hello' * 500,
            'image': (four / 'a.png').read_bytes(),
            'first header': whole[:100],
            'zeros': bytes(10240),
            'no images': (tmp_path / 'empty.tar').read_bytes(),
        }[content]
    )
    with pytest.raises(
        ValueError,
        match='s.tar: no images' if content in ('zeros', 'no images') else 's.tar is not a plain tar archive',
    ):
        find_images(tmp_path / 's.tar')


@pytest.mark.parametrize('suffix', ['npy', 'safetensors'])
@pytest.mark.parametrize('kind', [torch.float16, torch.float32, torch.float64, torch.bfloat16])
def test_features_of_every_precision(features, tmp_path, suffix, kind):
    rows = (3 * features[0][:20]).to(kind)
    if suffix == 'npy' and kind == torch.bfloat16:
        pytest.skip('NumPy has none')
    path = tmp_path / f'f.{suffix}'
    np.save(path, rows.numpy()) if suffix == 'npy' else save_file(dict(anything=rows), path)
    found = read_features(path)
    assert (
        found.dtype == torch.float32
        and torch.allclose(
            found, features[0][:20], atol=1e-2 if kind == torch.bfloat16 else 1e-3 if kind == torch.float16 else 1e-6
        )
        and torch.allclose(found.norm(dim=1), torch.ones(20), atol=1e-5)
    )
    assert torch.equal(read_features(str(path)), found)


def test_layouts_of_features(features, tmp_path):
    rows = features[0][:20].numpy()
    for i, o in enumerate((np.asfortranarray(rows), rows.astype('>f4'), rows.repeat(2, 1)[:, ::2])):
        np.save(tmp_path / f'{i}.npy', o)
        assert torch.allclose(read_features(tmp_path / f'{i}.npy'), features[0][:20], atol=1e-6)
    (tmp_path / '0.npy').rename(tmp_path / 'F.NPY')
    assert len(read_features(tmp_path / 'F.NPY')) == 20


def test_which_tensor_of_several(tmp_path):
    save_file(dict(a=torch.eye(3), image_features=torch.ones(2, 4)), tmp_path / 'f.safetensors')
    assert read_features(tmp_path / 'f.safetensors').shape == (2, 4)
    save_file(dict(a=torch.eye(3), b=torch.ones(2, 4)), tmp_path / 'f.safetensors')
    with pytest.raises(ValueError, match='holds 2 tensors .*a, b.*image_features'):
        read_features(tmp_path / 'f.safetensors')
    save_file({}, tmp_path / 'f.safetensors')
    with pytest.raises(ValueError, match='0 tensors'):
        read_features(tmp_path / 'f.safetensors')


@pytest.mark.parametrize('suffix', ['npy', 'safetensors'])
@pytest.mark.parametrize(
    'rows, says',
    [
        (
            np.array([[1.0, 2], [np.nan, 1], [np.inf, 1]], np.float32),
            '2 of 3 rows hold NaN or infinity, first in row 1',
        ),
        (np.array([[1.0, 2], [0, 0]], np.float32), 'row 1 is all zeros'),
        (np.ones(5, np.float32), 'shape'),
        (np.ones((2, 3, 4), np.float32), 'shape'),
        (np.float32(1), 'shape'),
        (np.ones((0, 4), np.float32), 'non-empty'),
        (np.ones((4, 0), np.float32), 'non-empty'),
        (np.ones((4, 8), np.int64), 'floating point'),
        (np.ones((4, 8), np.uint8), 'floating point'),
        (np.ones((4, 8), bool), 'floating point'),
    ],
    ids='nan zeros 1-D 3-D 0-D no-rows no-width int uint8 bool'.split(),
)
def test_features_that_cannot_be_meant(tmp_path, suffix, rows, says):
    path = tmp_path / f'f.{suffix}'
    np.save(path, rows) if suffix == 'npy' else save_file(dict(f=torch.from_numpy(np.asarray(rows))), path)
    with pytest.raises(ValueError, match=f'f.{suffix}.*{says}'):
        read_features(path)


class Opens:
    "Creates a file when it is unpickled"

    def __init__(self, file):
        self.file = str(file)

    def __reduce__(self):
        return open, (self.file, 'w')


def as_npz(path):
    np.savez(path, a=np.ones((2, 3), np.float32))
    return path.with_suffix('.npz').read_bytes()


def lying(shape):
    "A `.npy` header without the data that it promises"
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, dict(descr='<f4', fortran_order=False, shape=shape))
    return file.getvalue() + bytes(64)


@pytest.mark.parametrize('suffix', ['npy', 'safetensors'])
@pytest.mark.parametrize(
    'content',
    [
        'nothing',
        'text',
        'image',
        'pickle',
        'object array',
        'torch',
        'npz',
        'npy',
        'safetensors',
        'cut',
        'lying',
        'lying much',
        'strings',
        'records',
        'long header',
    ],
)
def test_files_that_hold_no_features(tmp_path, suffix, content):
    if content == suffix:
        pytest.skip('that one is right')
    path = tmp_path / f'f.{suffix}'
    marker = tmp_path / 'marker'
    good = np.ones((30, 8), np.float32)

    def saved(array, **options):
        file = io.BytesIO()
        np.save(file, array, **options)
        return file.getvalue()

    save_file(dict(f=torch.from_numpy(good)), tmp_path / 'g')
    torch.save(Opens(marker), tmp_path / 't')
    whole = saved(good) if suffix == 'npy' else (tmp_path / 'g').read_bytes()
    contents = {
        'nothing': b'',
        'text': b'1 2 3\n4 5 6\n',
        'image': as_file(noise()).getvalue(),
        'pickle': pickle.dumps(Opens(marker)),
        'torch': (tmp_path / 't').read_bytes(),
        'npz': as_npz(tmp_path / 'z'),
        'npy': saved(good),
        'safetensors': (tmp_path / 'g').read_bytes(),
        'cut': whole[: len(whole) // 2],
        'lying': lying((1000, 64)),
        'lying much': lying((1 << 40, 512)),
        'strings': saved(np.array([['a', 'b']])),
        'records': saved(np.zeros(3, dtype=[('a', 'f4'), ('b', 'f4')])),
        'object array': saved(np.array([[Opens(marker)]], dtype=object), allow_pickle=True),
        'long header': struct.pack('<Q', 1 << 60) + b'{}',
    }
    path.write_bytes(contents[content])
    with pytest.raises(ValueError, match=rf'f.{suffix} holds no features that can be read'):
        read_features(path)
    assert not marker.exists()


def test_the_marker_would_have_been_made(tmp_path):
    pickle.loads(pickle.dumps(Opens(tmp_path / 'marker')))
    assert (tmp_path / 'marker').exists()


def test_features_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match='nowhere.npy is not there'):
        read_features(tmp_path / 'nowhere.npy')
