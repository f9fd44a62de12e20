"What is given as pictures, archives, lists or features is used as given, or a line says that it is not; nothing hangs."

import io
import json
import logging
import os
import re
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import time
import warnings
import zipfile
import zlib
from importlib.util import find_spec
from pathlib import Path
import numpy as np
import pandas as pd
import pytest
import torch
from braceexpand import braceexpand
from PIL import EpsImagePlugin, Image, features
from typer.testing import CliRunner
from reclip import ReCLIP, demo, encode_images, formats, run
from reclip.archives import MOST_ARCHIVES, count_names, expand_pattern, tar_members
from reclip.cache import encode_cached
from reclip.cli import app
from reclip.features import is_features, read_features
from reclip.formats import image_suffixes, openable, picture_format
from reclip.images import find_images
from reclip.notes import note, noting
from reclip.pictures import UnreadableImage, open_image, remarks

WORDS = ', '.join(demo.class_names)


def as_bytes(image, kind='PNG', **options):
    "An image file"
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.fixture(scope='module')
def digits():
    "Thirty digits, 32 x 32, that differ"
    return [o.resize((32, 32)) for o in demo.demo_digits()[0][:30]]


@pytest.fixture
def folder(tmp_path, digits):
    "Twelve digits as `00.png` to `11.png`"
    (tmp_path / 'in').mkdir()
    for i, image in enumerate(digits[:12]):
        image.save(tmp_path / 'in' / f'{i:02}.png')
    return tmp_path / 'in'


def forget():
    "What can be opened is looked up again"
    openable.cache_clear()
    image_suffixes.cache_clear()


@pytest.fixture
def bare(monkeypatch):
    "A Pillow without plugins, whatever is installed"
    monkeypatch.setattr(formats, '_plugged', lambda module: False)
    for o in ('HEIF', 'JXL'):
        monkeypatch.delitem(Image.OPEN, o, raising=False)
    forget()
    yield
    forget()


class Labelled:
    "What a command left"

    def __init__(self, found, run):
        self.code = found.exit_code
        self.output = found.output
        self.error = found.stderr
        assert found.exception is None or isinstance(found.exception, SystemExit), found.exception
        self.notes = [o.removeprefix('note: ') for o in re.split('[\r\n]', found.stderr) if o.startswith('note: ')]
        self.names, self.skipped = [], {}
        if run.is_dir():
            self.names = pd.read_csv(run / 'predictions.csv', keep_default_na=False).path.tolist()
            table = pd.read_csv(run / 'skipped.csv', keep_default_na=False)
            self.skipped = {o.path: (o.kind, o.reason) for o in table.itertuples()}

    def one_line(self):
        "The sentence of a command that was refused"
        lines = [o.strip() for o in re.split('[\r\n]', self.error) if o.strip()]
        assert self.code == 2 and [o.startswith('reclip zeroshot: ') for o in lines] == [False] * (len(lines) - 1) + [
            True
        ], self.error
        return lines[-1]


@pytest.fixture
def label(tmp_path):
    "`reclip zeroshot SOURCE` with the demo model; what it left"
    count = iter(range(1000))

    def labelled(source, *more, cache=('--no-cache',)):
        output = tmp_path / f'RUN{next(count)}'
        args = ['zeroshot', source, '-c', WORDS, '-m', 'demo', '-t', 'digit', '-o', output, *cache, *more]
        return Labelled(CliRunner().invoke(app, [str(o) for o in args]), output)

    return labelled


def pack(folder, path, kind='w'):
    "A tar archive of a folder"
    with tarfile.open(path, kind) as archive:
        archive.add(folder, '.')
    return path


def within(seconds, work):
    "What `work` gives; fails if it takes longer, as reading from a pipe does"
    found = []
    thread = threading.Thread(target=lambda: found.append(work()), daemon=True)
    thread.start()
    thread.join(seconds)
    assert found, 'it waits, or it failed'
    return found[0]


# pictures under any name

KINDS = [
    ('JPEG', 'noext'),
    ('JPEG', 'a.jpg_large'),
    ('JPEG', 'b.jpeg~'),
    ('JPEG', 'c.jfif'),
    ('JPEG', 'D.JPG'),
    ('JPEG', 'e.php'),
    ('JPEG', '7'),
    ('JPEG', 'f.HEIC'),
    ('JPEG', 'g.mp4'),
    ('JPEG', 'h.'),
    ('PNG', 'i'),
    ('GIF', 'j'),
    ('TIFF', 'k'),
    ('BMP', 'l'),
    ('PPM', 'm.data'),
    ('WEBP', 'n'),
    ('JPEG2000', 'o'),
    ('ICO', 'p'),
    ('AVIF', 'q'),
    ('TIFF', 'r.lsm'),
    ('PNG', 's.txt'),
]
BUILT = dict(WEBP='webp', JPEG2000='jpg_2000', AVIF='avif')


@pytest.mark.parametrize('packed', [False, True])
def test_a_picture_under_any_name(label, tmp_path, digits, packed):
    (tmp_path / 'in').mkdir()
    kinds = [(kind, name) for kind, name in KINDS if kind not in BUILT or features.check(BUILT[kind])]
    for (kind, name), image in zip(kinds, digits):
        (tmp_path / 'in' / name).write_bytes(as_bytes(image, kind))
    found = label(pack(tmp_path / 'in', tmp_path / 's.tar') if packed else tmp_path / 'in')
    assert found.code == 0 and not found.skipped and not found.notes
    assert sorted(found.names) == sorted(f's.tar/{o}' if packed else o for _, o in kinds)


def test_the_same_picture_has_the_same_features_under_any_name(tmp_path, digits, clip):
    for name in ('a.jpg', 'b', 'c.jpg_large'):
        (tmp_path / name).write_bytes(as_bytes(digits[0], 'JPEG'))
    rows = encode_images(clip[0], find_images(tmp_path)[0], clip[1])
    assert torch.equal(rows[0], rows[1]) and torch.equal(rows[0], rows[2])


def box(brand, *others):
    content = b'ftyp' + brand + bytes(4) + b''.join(others)
    return struct.pack('>I', len(content) + 4) + content + bytes(40)


FOREIGN = {
    'a.HEIC': (box(b'heic', b'mif1', b'heic'), 'pip install pillow-heif'),
    'b.heif': (box(b'mif1', b'mif1', b'heic'), 'pillow-heif'),
    'noext': (box(b'heix'), 'pillow-heif'),
    'c.HIF': (b'', 'pillow-heif'),
    'd.jpg_large': (box(b'msf1', b'hevc'), 'pillow-heif'),
    'e.jxl': (b'\xff\x0a', 'pip install pillow-jxl-plugin'),
    'f': (b'\0\0\0\x0cJXL \r\n\x87\n', 'pillow-jxl-plugin'),
    'raw.DNG': (b'II*\0', 'rawpy'),
    'g.cr2': (b'II*\0\x10\0\0\0CR\2\0', 'rawpy'),
    'h.NEF': (b'MM\0*', 'rawpy'),
    'i.arw': (b'II*\0', 'rawpy'),
    'j.cr3': (box(b'crx '), 'rawpy'),
    'k.raf': (b'FUJIFILMCCD-RAW', 'rawpy'),
    'l.orf': (b'IIRO', 'rawpy'),
    'm.rw2': (b'IIU\0', 'rawpy'),
    'c.svg': (b'<svg xmlns="http://www.w3.org/2000/svg"/>', 'cairosvg'),
    'n': (b'<?xml version="1.0"?>\n<!-- a > b --><svg>', 'cairosvg'),
    'o.eps': (b'%!PS-Adobe-3.0 EPSF', 'a program'),
    'p.exr': (b'v/1\x01', 'OpenEXR'),
    'q.dcm': (bytes(128) + b'DICM', 'pydicom'),
    'r.xcf': (b'gimp xcf v011', 'PNG'),
    's.emf': (b'', 'PNG'),
}


@pytest.mark.parametrize('packed', [False, True])
def test_formats_that_cannot_be_opened_are_listed_and_do_not_count(label, folder, tmp_path, bare, packed):
    for name, (content, _) in FOREIGN.items():
        (folder / name).write_bytes(content)
    found = label(pack(folder, tmp_path / 's.tar') if packed else folder, '--max-unreadable', 0)
    assert found.code == 0 and len(found.names) == 12
    skipped = {k.removeprefix('s.tar/'): v for k, v in found.skipped.items()}
    assert skipped.keys() == FOREIGN.keys() and {kind for kind, _ in skipped.values()} == {'unreadable'}
    for name, (_, word) in FOREIGN.items():
        assert word in skipped[name][1], name
    assert len(found.notes) == 1 and f'{len(FOREIGN)} of {12 + len(FOREIGN)} pictures' in found.notes[0]
    assert '5 HEIC (pip install pillow-heif)' in found.notes[0] and 'the first: ' in found.notes[0]


def test_avif_without_its_decoder(label, folder, bare, monkeypatch):
    monkeypatch.setattr(formats, '_built', lambda format, built=formats._built: format != 'AVIF' and built(format))
    forget()
    (folder / 'a.avif').write_bytes(box(b'avif'))
    (folder / 'b.jpg').write_bytes(box(b'mif1', b'avif', b'miaf'))
    found = label(folder, '--max-unreadable', 0)
    assert found.code == 0 and sorted(found.skipped) == ['a.avif', 'b.jpg']
    assert all("'pillow>=11.3'" in why for _, why in found.skipped.values()) and '2 AVIF' in found.notes[0]


def test_a_foreign_format_under_the_suffix_of_another(label, folder, bare):
    (folder / 'IMG_1.jpg').write_bytes(box(b'heic'))
    (folder / 'broken.jpg').write_bytes(b'<html>')
    found = label(folder)
    assert (
        found.code == 0
        and 'pillow-heif' in found.skipped['IMG_1.jpg'][1]
        and 'not an image' in found.skipped['broken.jpg'][1]
    )
    assert '1 of 13 pictures' in found.notes[0]
    assert label(folder, '--max-unreadable', 0.08).code == 0  # one of thirteen is damaged, the other is not
    assert '1 of 14 images cannot be opened' in label(folder, '--max-unreadable', 0.07).one_line()


def test_nothing_but_a_format_that_cannot_be_opened(label, tmp_path, bare):
    (tmp_path / 'in').mkdir()
    for i in range(3):
        (tmp_path / 'in' / f'{i}.HEIC').write_bytes(box(b'heic'))
    assert 'no images found; 3 things were skipped, the first: 0.HEIC' in (line := label(tmp_path / 'in').one_line())
    assert 'pip install pillow-heif' in line
    assert 'pip install pillow-heif' in label(tmp_path / 'in' / '0.HEIC').one_line()
    (tmp_path / 'list.txt').write_text('in/0.HEIC\nin/1.HEIC\n')
    assert 'pip install pillow-heif' in label(tmp_path / 'list.txt').one_line()


def test_a_list_names_what_it_names(label, folder, tmp_path, digits, bare):
    "A suffix that is not known is tried; a raw picture is not its thumbnail"
    (folder / 'odd.xyz').write_bytes(as_bytes(digits[20], 'JPEG'))
    (folder / 'raw.dng').write_bytes(as_bytes(digits[21], 'TIFF'))
    digits[22].save(folder / 'tagged.tif', tiffinfo={50706: b'\1\4\0\0'})
    (folder / 'list.txt').write_text('\n'.join(sorted(o.name for o in folder.iterdir())))
    for cache in (('--no-cache',), ('--cache', tmp_path / 'cache')):
        found = label(folder / 'list.txt', cache=cache)
        assert found.code == 0 and 'odd.xyz' in found.names and sorted(found.skipped) == ['raw.dng', 'tagged.tif']
        assert all('rawpy' in why for _, why in found.skipped.values())


def test_what_is_no_picture_is_counted_in_one_line(label, folder, tmp_path, digits):
    files = [
        'clip.mp4',
        'a.txt',
        'b.txt',
        'c.json',
        'noext',
        '.hidden',
        '.DS_Store',
        'Thumbs.db',
        'desktop.ini',
        'deep/d.txt',
        'x.tar',
        '@eaDir/00.png/SYNOPHOTO_THUMB_M.jpg',
        'deep/@eaDir/e.jpg',
        '__MACOSX/._00.png',
        '$RECYCLE.BIN/f.png',
        '.git/g.png',
        'lost+found/h.png',
        '.Trash-1000/i.png',
        '.thumbnails/j.png',
    ]
    for i, name in enumerate(files):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(
            as_bytes(digits[12 + i % 15]) if '/' in name and 'txt' not in name else b'words' if i else b'x'
        )
    expected = (
        '13 other files were not looked at: .txt (3), in @eaDir (2), .json (1), .mp4 (1), .tar (1), in $RECYCLE.BIN (1)'
        ', in .Trash-1000 (1), in .thumbnails (1) and 2 other kinds'
    )
    for source in (folder, pack(folder, tmp_path / 's.tar')):
        found = label(source)
        assert found.code == 0 and len(found.names) == 12 and not found.skipped and found.notes == [expected]
    (folder / 'one').mkdir()
    os.link(folder / '00.png', folder / 'one' / '00.png')
    (folder / 'one' / '00.cls').write_text('7')
    assert label(folder / 'one').notes == ['1 other file was not looked at: .cls (1)']


def test_a_folder_without_pictures_says_what_is_there(label, tmp_path):
    (tmp_path / 'in').mkdir()
    np.save(tmp_path / 'in' / 'f.npy', np.ones((3, 64)))
    (tmp_path / 'in' / 's.tar').write_bytes(bytes(1024))
    (tmp_path / 'in' / 'a.zip').write_bytes(b'PK')
    line = label(tmp_path / 'in').one_line()
    assert '.npy (1), .tar (1), .zip (1)' in line and 'FOLDER/*.tar' in line and 'name the .npy file itself' in line


def test_the_folder_of_a_phone(label, tmp_path, digits, bare):
    "13 pictures, three more under odd names, formats of a phone and a camera, a film, a thumbnail: it runs as it is"
    root = tmp_path / 'phone'
    (root / '@eaDir').mkdir(parents=True)
    names = [f'{i:02}.jpg' for i in range(13)] + ['noext', 'a.jpg_large', 'b.jpeg~', '@eaDir/thumb.jpg']
    for name, image in zip(names, digits):
        (root / name).write_bytes(as_bytes(image, 'JPEG'))
    for name in [f'IMG_{i}.HEIC' for i in range(4)]:
        (root / name).write_bytes(box(b'heic', b'mif1'))
    for name, content in {
        'raw.DNG': b'II*\0',
        'shot.jxl': b'\xff\x0a',
        'c.svg': b'<svg/>',
        'clip.mp4': box(b'isom', b'mp42'),
    }.items():
        (root / name).write_bytes(content)
    found = label(root)
    assert found.code == 0 and sorted(found.names) == sorted(names[:-1])
    assert sorted(found.skipped) == [
        'IMG_0.HEIC',
        'IMG_1.HEIC',
        'IMG_2.HEIC',
        'IMG_3.HEIC',
        'c.svg',
        'raw.DNG',
        'shot.jxl',
    ]
    assert found.notes[0] == '2 other files were not looked at: .mp4 (1), in @eaDir (1)' and len(found.notes) == 2
    assert label(root, '-q').error == ''


PLUGIN = '''
from io import BytesIO
from PIL import Image, PngImagePlugin


def register_heif_opener():
    {body}

    def factory(file, name):
        file.seek({at})
        return PngImagePlugin.PngImageFile(BytesIO(file.read()))

    Image.register_open('HEIF', factory, lambda head: head[4:12] == b'ftypheic')
    Image.register_extension('HEIF', '.heic')
'''


@pytest.mark.parametrize('broken', [False, True])
def test_a_plugin_that_is_installed_is_used(label, folder, tmp_path, digits, monkeypatch, broken):
    head = box(b'heic')
    (tmp_path / 'plugins').mkdir()
    body = "raise ImportError('built for another Pillow')" if broken else 'pass'
    (tmp_path / 'plugins' / 'pillow_heif.py').write_text(PLUGIN.format(at=len(head), body=body))
    monkeypatch.syspath_prepend(tmp_path / 'plugins')
    monkeypatch.delitem(sys.modules, 'pillow_heif', raising=False)
    for o in (Image.OPEN, Image.EXTENSION):
        monkeypatch.setattr(
            Image, 'OPEN' if o is Image.OPEN else 'EXTENSION', {k: v for k, v in o.items() if 'HEI' not in k.upper()}
        )
    monkeypatch.setattr(Image, 'ID', [o for o in Image.ID if o != 'HEIF'])
    for i in range(3):
        (folder / f'{i}.heic').write_bytes(head + as_bytes(digits[20 + i]))
    forget()
    try:
        found = label(folder)
    finally:
        forget()
        sys.modules.pop('pillow_heif', None)
    assert found.code == 0 and len(found.names) == (12 if broken else 15) and len(found.skipped) == (3 if broken else 0)
    assert [('pillow_heif is installed and does not work' in o) for o in found.notes] == (
        [True, False] if broken else []
    )


@pytest.mark.skipif(find_spec('pillow_heif') is None, reason='needs pillow-heif')
def test_heic(label, folder, digits):
    import pillow_heif

    pillow_heif.register_heif_opener()
    (folder / 'a.HEIC').write_bytes(as_bytes(digits[20].convert('RGB'), 'HEIF'))
    found = label(folder)
    assert found.code == 0 and len(found.names) == 13 and not found.skipped


def test_no_program_is_run_to_see_a_picture(label, folder, monkeypatch):
    "Pillow has PostScript run by Ghostscript, whatever the file is called"
    monkeypatch.setattr(EpsImagePlugin, 'Ghostscript', lambda *args, **more: pytest.fail('it was run'))
    eps = as_bytes(Image.new('RGB', (8, 8)), 'EPS')
    for name in ('a.eps', 'b.jpg', 'c.ps', 'd'):
        (folder / name).write_bytes(eps)
    found = label(folder, '--max-unreadable', 0)
    assert found.code == 0 and sorted(found.skipped) == ['a.eps', 'b.jpg', 'c.ps', 'd']
    assert all('which is a program' in why for _, why in found.skipped.values())


@pytest.mark.parametrize(
    'content',
    [
        b'<!---->' * 146,
        b'P1 ' + b'# ' * 500,
        b'P5\n' + b'#\n' * 500,
        b'<?xml ' * 200,
        b' ' * 1024,
        bytes(1024),
        b'\xff' * 1024,
    ],
)
def test_telling_a_format_is_quick(content):
    begun = time.perf_counter()
    assert picture_format(content) is None
    assert time.perf_counter() - begun < 0.1


@pytest.mark.parametrize('seed', range(3))
def test_words_and_noise_are_no_pictures(seed):
    rng = np.random.default_rng(seed)
    words = [
        b'BM is a company',
        b'P1 is a prime',
        b'GIF and PNG',
        b'II*',
        b'MM',
        b'8BPS',
        b'<html><svg></svg></html>',
        b'RIFF....WAVE',
        b'%PDF-1.7',
        b'PK\3\4',
        b'\x7fELF',
        b'{"a": 1}',
        b'icn',
        box(b'isom'),
        box(b'qt  '),
        box(b'M4A '),
        b'\xff\xfeh\0i\0',
    ]
    assert all(picture_format(o, 'x.dat') is None for o in words)
    assert (
        sum(picture_format(rng.bytes(1024)) is not None for _ in range(500)) <= 1
    )  # two bytes of a JPEG XL, by chance


# pipes, devices, sockets

SOURCES = [
    'p.txt',
    'p.lst',
    'p.csv',
    'p.tar',
    'p.png',
    'p.npy',
    'p.npz',
    'p.safetensors',
    'p.parquet',
    'p.pt',
    'p',
    'p.HEIC',
]


@pytest.mark.parametrize('name', SOURCES)
def test_a_pipe_is_not_waited_for(label, tmp_path, name):
    os.mkfifo(tmp_path / name)
    assert 'is a pipe, expected a file' in within(30, lambda: label(tmp_path / name)).one_line()


def test_pipes_sockets_and_devices_wherever_they_are(label, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the name of a socket is short
    own = socket.socket(socket.AF_UNIX)
    own.bind('s.txt')
    os.mkfifo('p.tar')
    os.mkfifo(folder / 'p')
    os.mkfifo(folder / 'q.jpg')
    pack(folder, tmp_path / 'good.tar')
    assert 'is a socket' in within(30, lambda: label('s.txt')).one_line()
    assert 'is a device' in within(30, lambda: label('/dev/zero')).one_line()
    assert 'p.tar is a pipe' in within(30, lambda: label('{good,p}.tar')).one_line()
    (tmp_path / 'list.txt').write_text(
        '\n'.join([*(f'in/{i:02}.png' for i in range(12)), 'p.tar', 's.txt', '/dev/zero', 'in'])
    )
    found = within(30, lambda: label('list.txt', '--max-unreadable', 0.5))
    assert found.code == 0 and set(found.skipped.values()) == {('unreadable', 'not a file')} and len(found.skipped) == 4
    for source in (folder, 'good.tar'):
        found = within(30, lambda: label(source))
        assert found.code == 0 and len(found.names) == 12 and [k.rpartition('/')[2] for k in found.skipped] == ['q.jpg']
        ((name, (_, why)),) = found.skipped.items()
        assert found.notes == [
            '1 other file was not looked at: without suffix (1)',
            f'1 of 13 pictures without a label, as they cannot be opened; the first: {name}: {why}',
        ]


# patterns


@pytest.mark.parametrize(
    'pattern, n',
    [
        ('s-{0..9999999999}.tar', '10,000,000,000'),
        ('{a,b}' * 40 + '.tar', '1,099,511,627,776'),
        ('s-{000000..999999}.tar', '1,000,000'),
        ('s-{0..' + '9' * 30 + '}.tar', 'endlessly many'),
        ('{x,{0..99999},{0..9}{0..9}}.tar', '100,101'),
        ('s-{1..' + '9' * 5000 + '}.tar', 'endlessly many'),
    ],
)
def test_a_pattern_of_too_many_names(label, pattern, n):
    line = within(20, lambda: label(pattern)).one_line()
    assert f'names {n} archives, and {MOST_ARCHIVES:,} is the limit' in line and len(line) < 400


@pytest.mark.parametrize(
    'pattern', ['{' * 3000 + '}' * 3000 + '.tar', '{a,' * 2000 + 'b' + '}' * 2000, '{a', 'a}', '{0..}', '{..5}.tar']
)
def test_braces_that_make_no_sense(label, pattern):
    assert len(within(20, lambda: label(pattern)).one_line()) < 15_000


def test_names_are_counted_as_they_are_made():
    rng = np.random.default_rng(0)
    pieces = [
        'a',
        '-',
        '.tar',
        '\\{',
        ',',
        '{1..5}',
        '{05..1}',
        '{a..e}',
        '{e..a..2}',
        '{1..9..3}',
        '{-3..3}',
        '{1..3..0}',
        '{Z..c}',
        '{a..3}',
        '{x}',
        '{}',
        '{a,b}',
        '{,b}',
        '{p{1..3},q,{r,s{a,b}}}',
        '{{1,2}}',
        '{1..2,3..4}',
    ]
    for _ in range(300):
        pattern = ''.join(rng.choice(pieces, rng.integers(1, 6)))
        assert count_names(pattern) == len(list(braceexpand(pattern))), pattern


def test_a_pattern_may_name_capitals(folder, tmp_path):
    pack(folder, tmp_path / 's-1.TAR')
    assert (
        expand_pattern(f'{tmp_path}/s-*.TAR') == [f'{tmp_path}/s-1.TAR']
        and len(find_images(tmp_path / 's-{1..1}.TAR')[0]) == 12
    )


# damaged archives


def member(name, content, kind=tarfile.REGTYPE, size=None):
    "A header and its data; `size` is what it claims, bytes for a field that is no number"
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(content) if not isinstance(size, int) else size
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    if isinstance(size, bytes):
        header[124:136] = size
        header[148:156] = b' ' * 8
        header[148:156] = b'%06o\0 ' % sum(header)
    return bytes(header) + content + bytes(-len(content) % 512)


def pax(record, kind=tarfile.XHDTYPE):
    return member('pax', record, kind)


DAMAGE = {
    'no checksum': lambda name, data: b'\1' + member(name, data)[1:],
    'noise': lambda name, data: np.random.default_rng(0).bytes(512) + member(name, data)[512:],
    'size beyond the end': lambda name, data: member(name, data, size=8**11 - 1),
    'size of exabytes': lambda name, data: member(name, data, size=b'\x80\0\0\0' + b'\x7f' + b'\xff' * 7),
    'size beyond any integer': lambda name, data: member(name, data, size=b'\x80' + b'\xff' * 11),
    'negative size': lambda name, data: member(name, data, size=b'\xff' * 10 + b'\xf0\0'),
    'size within the next files': lambda name, data: member(name, data, size=len(data) + 700),
    'size is no number': lambda name, data: member(name, data, size=b'no number...'),
    'pax length': lambda name, data: pax(b'99999999999999999999999 path=x\n') + member(name, data),
    'pax length of 5,000 digits': lambda name, data: pax(b'9' * 5000 + b' path=x\n') + member(name, data),
    'pax length zero': lambda name, data: pax(b'0 path=x\n') + member(name, data),
    'pax sparse map': lambda name, data: pax(b'25 GNU.sparse.map=a,b,c,d\n') + member(name, data),
    'pax sparse size': lambda name, data: (
        pax(b'22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n') + member(name, b'no number\n' + data)
    ),
    'pax negative size': lambda name, data: pax(b'13 size=-5000\n'.replace(b'13', b'14')) + member(name, data),
    'pax of nothing': lambda name, data: (
        pax(b'', tarfile.XGLTYPE) + pax(b'\0' * 512) + b'\1' * 512 + member(name, data)
    ),
    'a thousand pax headers': lambda name, data: pax(b'9 a=b...\n') * 1500 + member(name, data),
    'a name of gigabytes': lambda name, data: (
        member('././@LongLink', b'x', tarfile.GNUTYPE_LONGNAME, 8**11 - 1) + member(name, data)
    ),
    'a negative name': lambda name, data: (
        member('././@LongLink', b'x', tarfile.GNUTYPE_LONGNAME, b'\xff' * 11 + b'\x10') + member(name, data)
    ),
}


@pytest.mark.parametrize('kind', DAMAGE)
def test_a_damage_costs_what_it_hits(label, tmp_path, digits, kind):
    parts = [member(f'{i:02}.png', as_bytes(image)) for i, image in enumerate(digits)]
    parts[11] = DAMAGE[kind]('11.png', as_bytes(digits[11]))
    (tmp_path / 's.tar').write_bytes(b''.join(parts) + bytes(1024))
    found = within(30, lambda: label(tmp_path / 's.tar'))
    lost = {f'{i:02}.png' for i in range(30)} - {o.removeprefix('s.tar/') for o in found.names}
    assert found.code == 0 and lost <= {'11.png', '12.png'}, (lost, found.error)
    quiet = kind in (
        'size within the next files',
        'pax of nothing',
        'pax negative size',
    )  # may be read, or lost with a word
    if lost or not quiet:
        assert str(tmp_path / 's.tar') in found.skipped, found.skipped
        where = len(b''.join(parts[:11]))
        assert re.search(rf'is damaged at byte ({where:,}|\d+,\d+)', found.skipped[str(tmp_path / 's.tar')][1])
        assert (
            len(found.notes) == 1 + any(k.endswith('.png') for k in found.skipped)
            and f'1 damaged archive, of which what can be found is used; the first: {tmp_path}/s.tar' in found.notes[0]
        )
    assert label(tmp_path / 's.tar', '--max-unreadable', 0).code == (
        2 if any(k.endswith('.png') for k in found.skipped) else 0
    )


def test_a_damage_is_named_with_its_place(tmp_path, digits):
    parts = [member(f'{i:02}.png', as_bytes(image)) for i, image in enumerate(digits)]
    parts[3] = b'\1' + parts[3][1:]
    (tmp_path / 's.tar').write_bytes(b''.join(parts))
    members, damage = tar_members(tmp_path / 's.tar')
    assert [o.name for o in members] == [f'{i:02}.png' for i in range(30) if i != 3]
    assert damage == [f'damaged at byte {sum(map(len, parts[:3])):,}, behind 02.png: bad checksum']


@pytest.mark.parametrize('share', [0.31, 0.52, 0.77])
def test_an_archive_that_is_cut_off(label, tmp_path, digits, share):
    parts = [member(f'{i:02}.png', as_bytes(image)) for i, image in enumerate(digits)]
    content = b''.join(parts)
    (tmp_path / 's.tar').write_bytes(content[: int(share * len(content))])
    found = label(tmp_path / 's.tar', '--max-unreadable', 0.2)
    whole = sum(sum(map(len, parts[: i + 1])) <= share * len(content) for i in range(30))
    assert found.code == 0 and len(found.names) == whole and str(tmp_path / 's.tar') in found.skipped


def test_archives_behind_one_another_and_in_one_another(folder, tmp_path, digits):
    pack(folder, tmp_path / 'one.tar')
    more = b''.join(member(f'x{i}.png', as_bytes(o)) for i, o in enumerate(digits[20:23]))
    (tmp_path / 'two.tar').write_bytes((tmp_path / 'one.tar').read_bytes() + more + bytes(1024))
    assert len(find_images(tmp_path / 'two.tar')[0]) == 15
    inner = (tmp_path / 'one.tar').read_bytes()
    (tmp_path / 'nested.tar').write_bytes(member('inner.tar', inner) + b'\1' + more[1:])
    files, skipped = find_images(tmp_path / 'nested.tar')
    assert (
        files.names == ['nested.tar/x1.png', 'nested.tar/x2.png'] and len(skipped) == 1
    )  # not the pictures of the inner one


def test_an_archive_that_is_mostly_a_hole(label, folder, tmp_path):
    pack(folder, tmp_path / 's.tar')
    with open(tmp_path / 'hole.tar', 'wb') as file:
        file.truncate(2**40)
    with open(tmp_path / 's.tar', 'r+b') as file:
        file.truncate(2**40)
    if os.stat(tmp_path / 's.tar').st_blocks > 10**6:
        pytest.skip('this disk has no holes')
    found = within(30, lambda: label(tmp_path / 's.tar'))
    assert found.code == 0 and len(found.names) == 12
    assert 'hole.tar: no images found' in within(30, lambda: label(tmp_path / 'hole.tar')).one_line()


def test_one_archive_of_several_is_none(label, folder, tmp_path):
    pack(folder, tmp_path / 's-0.tar')
    for i, content in enumerate((b'', b'<html>404</html>' * 100, b'PK\3\4' + bytes(600)), 1):
        (tmp_path / f's-{i}.tar').write_bytes(content)
    pack(folder, tmp_path / 's-4.tar', 'w:gz')
    found = label(tmp_path / 's-{0..4}.tar', '--max-unreadable', 0)
    assert (
        found.code == 0
        and len(found.names) == 12
        and [Path(o).name for o in found.skipped] == [f's-{i}.tar' for i in range(1, 5)]
    )
    assert len(found.notes) == 1 and found.notes[0].startswith('4 damaged archives')
    for i, word in (
        (1, 'it is empty'),
        (2, 'damaged at byte 0'),
        (3, 'compressed with zip'),
        (4, 'compressed with gzip'),
    ):
        assert word in found.skipped[str(tmp_path / f's-{i}.tar')][1]
        assert 'is not a plain tar archive' in label(tmp_path / f's-{i}.tar').one_line()


def test_what_has_no_bytes_of_its_own_in_an_archive(label, folder, tmp_path):
    parts = [member(o.name, o.read_bytes()) for o in sorted(folder.iterdir())]
    for name, kind in (
        ('link.png', tarfile.SYMTYPE),
        ('pipe.png', tarfile.FIFOTYPE),
        ('device.jpg', tarfile.CHRTYPE),
        ('unknown.gif', b'Z'),
    ):
        parts.append(member(name, b'', kind))
    (tmp_path / 's.tar').write_bytes(b''.join(parts) + bytes(1024))
    found = label(tmp_path / 's.tar', '--max-unreadable', 0.5)
    assert {k: kind for k, (kind, _) in found.skipped.items()} == {
        's.tar/link.png': 'duplicate',
        's.tar/pipe.png': 'unreadable',
        's.tar/device.jpg': 'unreadable',
        's.tar/unknown.gif': 'unreadable',
    }


# few values


def png48(array):
    "A colour PNG of 16 bits, which Pillow can read and not write"

    def chunk(kind, data):
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

    height, width, _ = array.shape
    rows = b''.join(b'\0' + o.astype('>u2').tobytes() for o in array)
    return (
        b'\x89PNG\r\n\x1a\n'
        + chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 16, 2, 0, 0, 0))
        + chunk(b'IDAT', zlib.compress(rows))
        + chunk(b'IEND', b'')
    )


RAMP = np.linspace(0, 1, 32 * 32).reshape(32, 32)
NARROW = {
    '12 bits': (as_bytes(Image.fromarray((RAMP * 4095).astype(np.uint16))), 'values 0 to 4,095, where white is 65,535'),
    '8 bits in 16': (
        as_bytes(Image.fromarray((RAMP * 255).astype(np.uint16))),
        'values 0 to 255, where white is 65,535',
    ),
    'offset': (
        as_bytes(Image.fromarray((RAMP * 4000 + 32768).astype(np.uint16))),
        'values 32,768 to 36,768, where white is 65,535',
    ),
    'tiff': (
        as_bytes(Image.fromarray((RAMP * 4095).astype(np.uint16)), 'TIFF'),
        'values 0 to 4,095, where white is 65,535',
    ),
    '32 bits': (
        as_bytes(Image.fromarray((RAMP * 4095).astype(np.int32)), 'TIFF'),
        'values 0 to 4,095, where white is 65,535',
    ),
    'signed': (
        as_bytes(Image.fromarray((RAMP * 3000 - 1000).astype(np.int32)), 'TIFF'),
        'values -1,000 to 2,000, where white is 65,535',
    ),
    'float': (as_bytes(Image.fromarray((RAMP * 12).astype(np.float32)), 'TIFF'), 'values 0 to 12, where white is 255'),
    'small float': (
        as_bytes(Image.fromarray((RAMP * 0.05).astype(np.float32)), 'TIFF'),
        'values 0 to 0.05, where white is 1',
    ),
    'colour': (png48((RAMP * 4095).astype(np.uint16)[..., None].repeat(3, 2)), 'values 0 to 15, where white is 255'),
    'four bits': (as_bytes(Image.fromarray((RAMP * 9).astype(np.uint8))), 'values 0 to 9, where white is 255'),
}
WIDE = {
    '16 bits': as_bytes(Image.fromarray((RAMP * 65535).astype(np.uint16))),
    '13 bits': as_bytes(Image.fromarray((RAMP * 8191).astype(np.uint16))),
    'black': as_bytes(Image.new('L', (8, 8))),
    'black in 16': as_bytes(Image.fromarray(np.zeros((8, 8), np.uint16))),
    'one grey': as_bytes(Image.new('L', (8, 8), 7)),
    'float': as_bytes(Image.fromarray(RAMP.astype(np.float32)), 'TIFF'),
    '8 bits': as_bytes(Image.fromarray((RAMP * 255).astype(np.uint8))),
    'white': as_bytes(Image.new('RGB', (8, 8), 'white')),
    'black and white': as_bytes(Image.new('1', (8, 8), 1)),
    'clear': as_bytes(Image.new('RGBA', (8, 8), (0, 0, 3, 0))),
    'one spark': as_bytes(Image.fromarray((np.arange(10_000) == 777).reshape(100, 100).astype(np.uint8) * 255)),
    'nan': as_bytes(Image.fromarray(np.full((4, 4), np.nan, np.float32)), 'TIFF'),
}


@pytest.mark.parametrize('kind', NARROW)
def test_values_that_span_little_of_their_range(kind):
    content, detail = NARROW[kind]
    with remarks() as found:
        open_image(io.BytesIO(content))
    assert found == dict(narrow=detail)


@pytest.mark.parametrize('kind', WIDE)
def test_values_that_are_as_they_should_be(kind):
    with remarks() as found:
        open_image(io.BytesIO(WIDE[kind]))
    assert not found


@pytest.mark.parametrize('workers', [0, 2])
def test_few_values_are_noted_whoever_opens_them_and_however_often(label, folder, tmp_path, workers):
    for name in ('dark1.png', 'dark2.png', 'zzz.png'):
        (folder / name).write_bytes(NARROW['12 bits'][0] if name != 'zzz.png' else NARROW['colour'][0])
    (folder / 'black.png').write_bytes(WIDE['black'])
    kept = '--cache', tmp_path / 'cache'
    found = [label(folder, '-w', workers, cache=o) for o in (('--no-cache',), kept, kept)]
    assert '16 of 16 images were encoded before' in found[2].error and 'encoded before' not in found[0].error
    for o in found:
        assert (
            o.code == 0
            and len(o.names) == 16
            and o.notes
            == [
                '3 of 16 pictures: values that span less than a sixteenth of the range, and are used as they are: '
                'nearly black or of one grey; stretch them to the whole range first if they were to be seen. The '
                'first: dark1.png: values 0 to 4,095, where white is 65,535'
            ]
        )
    new = CliRunner().invoke(
        app, [str(o) for o in ('predict', tmp_path / 'RUN0', folder, '-o', tmp_path / 'new.csv', *kept)]
    )
    assert new.exit_code == 0 and new.stderr.count('3 of 16 pictures') == 1
    pack(folder, tmp_path / 's.tar')
    assert '3 of 16 pictures' in label(tmp_path / 's.tar', cache=kept).notes[0]


def test_few_values_of_pictures_in_memory(caplog, clip, folder):
    dark = [Image.fromarray((RAMP * 4095).astype(np.uint16))] * 2 + [Image.fromarray((RAMP * 255).astype(np.uint8))] * 6
    encode_images(clip[0], dark, clip[1])
    assert caplog.text.count('note: 2 of 8 pictures') == 1 and 'image 0: values 0 to 4,095' in caplog.text
    caplog.clear()
    fitted = ReCLIP('demo', class_names=demo.class_names, templates=demo.templates, epochs=2, device='cpu').fit(
        dark * 5
    )
    assert caplog.text.count('note: 10 of 40 pictures') == 1 == caplog.text.count('pictures: values')
    caplog.clear()
    fitted.predict(dark)
    assert caplog.text.count('note: 2 of 8 pictures') == 1
    caplog.clear()
    (folder / 'dark.png').write_bytes(NARROW['12 bits'][0])
    encode_cached(clip[0], find_images(folder)[0], clip[1], folder / 'cache')
    assert caplog.text.count('note: 1 of 13 pictures') == 1 and 'dark.png' in caplog.text


def test_frames_and_pages_are_noted(label, folder, digits):
    frames = [o.convert('RGB') for o in digits[20:24]]
    for name, kind in (('a.gif', 'GIF'), ('b.tif', 'TIFF'), ('c.png', 'PNG')):
        (folder / name).write_bytes(as_bytes(frames[0], kind, save_all=True, append_images=frames[1:]))
    (folder / 'still.gif').write_bytes(as_bytes(frames[1], 'GIF'))
    found = label(folder)
    assert found.code == 0 and len(found.names) == 16
    assert (
        len(found.notes) == 1
        and found.notes[0].startswith('3 of 16 pictures: several frames')
        and found.notes[0].endswith('a.gif: an animation')
    )
    with remarks() as told:
        image = open_image(folder / 'b.tif')
    assert told == dict(frames='4 frames') and np.abs(np.asarray(image, int) - np.asarray(frames[0], int)).max() == 0


# memory


def bomb(width, height, depth=8, colour=2):
    "A PNG file of a few bytes that claims to be large"

    def chunk(kind, data):
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

    head = struct.pack('>IIBBBBB', width, height, depth, colour, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', head) + chunk(b'IDAT', zlib.compress(bytes(100))) + chunk(b'IEND', b'')


def test_a_picture_takes_no_more_memory_than_is_stated(label, folder):
    (folder / 'bomb.png').write_bytes(bomb(60_000, 60_000))
    (folder / 'clear.png').write_bytes(bomb(9000, 9000, colour=6))  # 81 million pixels: few for Pillow, 16 bytes each
    (folder / 'wide.png').write_bytes(bomb(2_000_000_000, 1))
    with open(folder / 'huge.jpg', 'wb') as file:
        file.truncate(2**40)
    Image.new('L', (16_000, 13_000), 90).save(folder / 'wall.jpg', quality=10)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        found = within(100, lambda: label(folder, '--max-unreadable', 0.5))
    assert (
        found.code == 0 and len(found.names) == 13 and 'wall.jpg' in found.names and 'Decompression' not in found.output
    )
    reasons = {k: why for k, (_, why) in found.skipped.items()}
    assert '60,000 x 60,000 take 14.4 GB of memory, and 1.0 GB is the limit' in reasons['bomb.png']
    assert (
        '9,000 x 9,000 take 1.3 GB' in reasons['clear.png']
        and 'too many pixels' in reasons['wide.png']
        and 'a file of 1,099.5 GB' in reasons['huge.jpg']
    )
    assert (
        len(found.notes) == 2
        and '1 of 13 pictures: too large for the memory' in found.notes[0]
        and 'wall.jpg: 16,000 x 13,000 at 1/2' in found.notes[0]
        and found.notes[1].startswith(
            '4 of 17 pictures without a label, as they cannot be opened; the first: bomb.png:'
        )
    )


def test_a_large_picture_within_a_small_one(tmp_path):
    inner = bomb(60_000, 60_000)
    head = struct.pack('<HHH', 0, 1, 1) + struct.pack('<BBBBHHII', 16, 16, 0, 0, 1, 32, len(inner), 22)
    (tmp_path / 'a.ico').write_bytes(head + inner)
    with pytest.raises(UnreadableImage, match='too many pixels'):
        open_image(tmp_path / 'a.ico')


def test_a_large_picture_that_fits_is_opened_without_a_warning(tmp_path):
    Image.new('1', (10_000, 9500), 1).save(tmp_path / 'a.png')  # above the number of pixels at which Pillow warns
    limit = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert open_image(tmp_path / 'a.png').size == (10_000, 9500)
        with pytest.raises(UnreadableImage, match='too many pixels'):
            open_image(tmp_path / 'a.png', most_bytes=10**8)
    assert Image.MAX_IMAGE_PIXELS == limit


@pytest.mark.parametrize('limit, opens', [(None, True), (10**6, True), (1000, False)])
def test_a_limit_that_somebody_has_set_holds(tmp_path, monkeypatch, limit, opens):
    Image.new('L', (40, 40), 3).save(tmp_path / 'a.png')
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', limit)
    if opens:
        assert open_image(tmp_path / 'a.png').size == (40, 40)
    else:
        with pytest.raises(UnreadableImage, match='too many pixels: 40 x 40, and PIL.Image.MAX_IMAGE_PIXELS is 1,000'):
            open_image(tmp_path / 'a.png')
    assert Image.MAX_IMAGE_PIXELS == limit


@pytest.mark.parametrize('kind, options', [('JPEG', {}), ('JPEG', dict(progressive=True)), ('JPEG', dict(exif=True))])
def test_a_large_jpeg_is_decoded_at_a_part_of_its_size(kind, options):
    image = Image.fromarray((np.indices((600, 900)).sum(0) // 8 % 256).astype(np.uint8)).convert('RGB')
    if 'exif' in options:
        options = dict(exif=Image.Exif())
        options['exif'][0x0112] = 6
    content = as_bytes(image, kind, quality=95, **options)
    whole = open_image(io.BytesIO(content))
    for most, part in (
        (10**7, 1),
        (3 * 10**6, 2 if not options.get('progressive') else None),
        (10**6, None if options.get('progressive') else 4 if not options else 8),
        (1000, None),
    ):
        if part is None:
            continue
        with remarks() as found:
            seen = open_image(io.BytesIO(content), most_bytes=most)
        assert max(whole.size) / max(seen.size) in (1, 2, 4, 8) and ('reduced' in found) == (seen.size != whole.size)
        assert np.abs(np.asarray(seen, int) - np.asarray(whole.resize(seen.size, Image.Resampling.BOX), int)).mean() < 4
    with pytest.raises(UnreadableImage, match='too many pixels: 900 x 600'):
        open_image(io.BytesIO(content), most_bytes=1000)


MEASURE = '''
import json, sys
from PIL import Image
from reclip.formats import openable
from reclip.memory import memory_needed
from reclip.pictures import open_image

openable()


def now(key):
    return next(int(o.split()[1]) * 1024 for o in open('/proc/self/status') if o.startswith(key))


found = {}
for path in sys.argv[1:]:
    with Image.open(path, formats=openable()) as picture:
        need = memory_needed(picture)
    open('/proc/self/clear_refs', 'w').write('5')
    before = now('VmRSS')
    image = open_image(path)
    found[path] = need, now('VmHWM') - before
    del image
print(json.dumps(found))
'''


@pytest.mark.skipif(not os.access('/proc/self/clear_refs', os.W_OK), reason='memory is measured on Linux')
def test_the_memory_that_is_reckoned_is_enough(tmp_path):
    n, lying = 3000, Image.Exif()
    lying[0x0112] = 6
    grey = np.arange(n * n, dtype=np.uint32).reshape(n, n)
    images = {
        'rgb.png': Image.new('RGB', (n, n)),
        'l.png': Image.new('L', (n, n)),
        'rgba.png': Image.new('RGBA', (n, n)),
        'la.png': Image.new('LA', (n, n)),
        'deep.png': Image.fromarray(grey.astype(np.uint16)),
        'f.tif': Image.fromarray(grey.astype(np.float32)),
        'i.tif': Image.fromarray(grey.astype(np.int32)),
        'cmyk.jpg': Image.new('CMYK', (n, n)),
        'rgb.jpg': Image.new('RGB', (n, n)),
        'turned.jpg': Image.new('RGB', (n, n)),
        'p.gif': Image.new('P', (n, n)),
        'rgb.webp': Image.new('RGB', (n, n)),
    }
    for name, image in images.items():
        image.save(tmp_path / name, **(dict(exif=lying) if 'turned' in name else {}))
    done = subprocess.run(
        [sys.executable, '-c', MEASURE, *(str(tmp_path / o) for o in images)], capture_output=True, text=True
    )
    for name, (need, took) in json.loads(done.stdout).items():
        assert took <= need + 30e6 and need <= 4 * max(took, 9e6), (
            Path(name).name,
            need,
            took,
        )  # 30 MB: what libraries keep for themselves


# features


@pytest.fixture
def rows():
    return torch.randn(20, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_archives_of_arrays_are_features(label, tmp_path, rows):
    np.savez(tmp_path / 'one.npz', anything=rows.numpy())
    np.savez_compressed(
        tmp_path / 'named.npz', labels=np.arange(20), image_features=rows.float().numpy(), more=np.ones(3)
    )
    found = label(tmp_path / 'one.npz'), label(tmp_path / 'named.npz')
    assert [o.code for o in found] == [0, 0] and [len(o.names) for o in found] == [20, 20]
    own = [[o for o in run.notes if '--no-cache' not in o] for run in found]  # that option has no use here
    assert own == [[], ['named.npz: image_features was read; not used: labels, more']]
    expected = torch.nn.functional.normalize(rows).float()
    assert torch.allclose(read_features(tmp_path / 'one.npz'), expected, atol=1e-6) and torch.allclose(
        read_features(tmp_path / 'named.npz'), expected, atol=1e-6
    )


@pytest.mark.parametrize('kind', ['float16', 'float32', 'float64', 'longdouble', '>f4', '>f8', 'bfloat16'])
def test_floats_of_any_kind(tmp_path, rows, kind):
    array = rows.bfloat16().view(torch.int16).numpy().view('V2') if kind == 'bfloat16' else rows.numpy().astype(kind)
    np.save(tmp_path / 'f.npy', array)
    np.savez(tmp_path / 'f.npz', array)
    for name in ('f.npy', 'f.npz'):
        found = read_features(tmp_path / name)
        assert found.dtype == torch.float32 and torch.allclose(
            found.double(),
            torch.nn.functional.normalize(rows),
            atol=4e-3 if kind == 'bfloat16' else 1e-3 if kind == 'float16' else 1e-6,
        )


class Opens:
    "Creates a file when it is unpickled"

    def __init__(self, file):
        self.file = str(file)

    def __reduce__(self):
        return open, (self.file, 'w')


def test_features_that_cannot_be_meant(label, tmp_path, rows):
    marker, array = tmp_path / 'marker', rows.numpy()
    bad = {
        'line.npz': (array[0], 'shape (64,)'),
        'whole.npz': (array.astype(int), 'floating point'),
        'complex.npz': (array.astype(complex), 'floating point'),
        'words.npz': (array.astype(str), 'floating point'),
        'objects.npz': (np.array([[Opens(marker)]], dtype=object), 'Object arrays'),
        'none.npz': (array[:0], 'non-empty'),
        'records.npz': (np.zeros(3, dtype=[('a', 'f4'), ('b', 'f4')]), 'floating point'),
    }
    for name, (value, word) in bad.items():
        np.savez(tmp_path / name, value)
        line = label(tmp_path / name).one_line()
        assert name in line and word in line, line
    np.savez(tmp_path / 'two.npz', a=array, b=array)
    assert 'it holds 2 arrays (a, b), none of them called image_features' in label(tmp_path / 'two.npz').one_line()
    (tmp_path / 'cut.npz').write_bytes((tmp_path / 'two.npz').read_bytes()[:500])
    (tmp_path / 'text.npz').write_text('1 2 3')
    with zipfile.ZipFile(tmp_path / 'zip.npz', 'w') as archive:
        archive.writestr('a.png', b'x')
    for name in ('cut.npz', 'text.npz', 'zip.npz'):
        assert f'{name} holds no features that can be read' in label(tmp_path / name).one_line()
    assert not marker.exists()


@pytest.mark.parametrize('suffix', ['.pt', '.pth', '.bin', '.ckpt'])
def test_files_of_torch_are_refused_with_the_line_that_converts_them(label, tmp_path, rows, suffix):
    path = tmp_path / f"it's (a) fi\"le{suffix}"
    torch.save(rows.float().T.contiguous().T, path)
    line = label(path).one_line()
    exec(line.split('Convert it, in Python: ')[1], {})
    assert len(label(path.with_suffix('.safetensors')).names) == 20
    torch.save(Opens(tmp_path / 'marker'), path)
    label(path).one_line()
    assert not (tmp_path / 'marker').exists()


def test_other_files_that_are_no_features(label, tmp_path, rows):
    (tmp_path / 'f.pkl').write_bytes(b'')
    np.savetxt(tmp_path / 'f.csv', rows.numpy(), delimiter=',')
    assert 'numpy.save' in label(tmp_path / 'f.pkl').one_line() and 'numpy.save' in label(tmp_path / 'f.csv').one_line()
    (tmp_path / 'f.npy').mkdir()
    assert 'f.npy: no images found' in label(tmp_path / 'f.npy').one_line()
    np.save(tmp_path / 'narrow.npy', rows[:, :7].numpy())
    assert 'features are 7 wide, those of this model 64' in label(tmp_path / 'narrow.npy').one_line()
    for given in (rows, rows.numpy()):
        with pytest.raises(ValueError, match='fit_features takes arrays of features'):
            run.adapt(given, WORDS, tmp_path / 'R', 'demo')


def test_without_pyarrow_a_sentence_says_so(label, tmp_path, monkeypatch):
    monkeypatch.setattr('reclip.features.find_spec', lambda name: None)
    (tmp_path / 'f.parquet').write_bytes(b'PAR1')
    (tmp_path / 'set').mkdir()
    (tmp_path / 'set' / 'state.json').write_text('{"_data_files": [{"filename": "a.arrow"}]}')
    (tmp_path / 'set' / 'dataset_info.json').write_text('{}')
    (tmp_path / 'set' / 'a.arrow').touch()
    for name in ('f.parquet', 'set'):
        assert 'pip install pyarrow' in label(tmp_path / name).one_line()


@pytest.fixture
def arrow():
    return pytest.importorskip('pyarrow')


def lists(arrow, rows, kind):
    "Rows as a column of lists"
    floats = dict(half=arrow.float16(), float=arrow.float32(), double=arrow.float64())[kind.split()[1]]
    of = dict(
        fixed=lambda: arrow.list_(floats, rows.shape[1]),
        list=lambda: arrow.list_(floats),
        large=lambda: arrow.large_list(floats),
    )[kind.split()[0]]
    return arrow.array([o.astype(np.float16) if 'half' in kind else o.tolist() for o in rows.numpy()], type=of())


@pytest.mark.parametrize(
    'kind', ['fixed float', 'fixed half', 'fixed double', 'list float', 'list double', 'large float']
)
def test_a_column_of_lists_is_features(label, tmp_path, rows, arrow, kind):
    from pyarrow import parquet

    table = arrow.table(dict(label=[f'{i}' for i in range(20)], embedding=lists(arrow, rows, kind)))
    parquet.write_table(table, tmp_path / 'f.parquet', row_group_size=7)
    found = label(tmp_path / 'f.parquet')
    assert (
        found.code == 0 and len(found.names) == 20 and found.notes == ['f.parquet: embedding was read; not used: label']
    )
    assert torch.allclose(
        read_features(tmp_path / 'f.parquet').double(),
        torch.nn.functional.normalize(rows),
        atol=1e-3 if 'half' in kind else 1e-6,
    )


def test_columns_that_are_no_features(label, tmp_path, rows, arrow):
    from pyarrow import parquet

    good, whole = lists(arrow, rows, 'list float'), [[1, 2]] * 20
    bad = {
        'none': (dict(a=[1.0], b=[2.0]), 'its columns are a, b'),
        'two': (dict(a=good, b=good), '2 columns of lists'),
        'gap': (dict(a=[[1.0], None]), '1 of 2 rows are empty'),
        'lengths': (dict(a=[[1.0, 2.0], [1.0]]), 'row 1 has 1'),
        'holes': (dict(a=[[1.0, None], [1.0, 2.0]]), 'gaps'),
        'whole': (dict(a=whole), 'floating point'),
        'words': (dict(a=[['x']]), 'floating point'),
        'empty': (dict(a=good[:0]), 'no rows'),
    }
    for name, (columns, word) in bad.items():
        parquet.write_table(arrow.table(columns), tmp_path / f'{name}.parquet')
        assert word in label(tmp_path / f'{name}.parquet').one_line(), name
    parquet.write_table(arrow.table(dict(a=good, image_features=good)), tmp_path / 'named.parquet')
    assert label(tmp_path / 'named.parquet').notes == ['named.parquet: image_features was read; not used: a']
    (tmp_path / 'text.parquet').write_text('hello')
    assert 'holds no features' in label(tmp_path / 'text.parquet').one_line()


def test_a_data_set_that_was_saved_is_features(label, tmp_path, rows, arrow):
    root = tmp_path / 'set'
    root.mkdir()
    for i, part in enumerate(rows.split(12)):
        table = arrow.table(dict(features=lists(arrow, part, 'list float'), label=list(range(len(part)))))
        with (
            arrow.OSFile(str(root / f'data-{i}.arrow'), 'wb') as file,
            arrow.ipc.new_stream(file, table.schema) as stream,
        ):
            stream.write_table(table, max_chunksize=5)
    (root / 'dataset_info.json').write_text('{}')
    (root / 'state.json').write_text(
        json.dumps(dict(_data_files=[dict(filename=f'data-{i}.arrow') for i in range(2)], _format_type=None))
    )
    found = label(root)
    assert (
        is_features(root)
        and found.code == 0
        and len(found.names) == 20
        and found.notes == ['set: features was read; not used: label']
    )
    assert torch.allclose(read_features(root).double(), torch.nn.functional.normalize(rows), atol=1e-6)
    (tmp_path / 'dict').mkdir()
    (tmp_path / 'dict' / 'dataset_dict.json').write_text('{"splits": ["train"]}')
    os.symlink(root, tmp_path / 'dict' / 'train')
    assert (
        'several data sets (train)' in label(tmp_path / 'dict').one_line()
        and len(label(tmp_path / 'dict' / 'train').names) == 20
    )
    for state in (
        '[]',
        '{}',
        '{"_data_files": []}',
        '{"_data_files": [{"filename": "../one.arrow"}]}',
        '{"_data_files": [{"filename": "none.arrow"}]}',
        '[' * 10**5,
    ):
        (root / 'state.json').write_text(state)
        assert 'set holds no features that can be read' in label(root).one_line()


# lists


def test_lists_as_people_write_them(label, folder, tmp_path, digits, monkeypatch):
    for name in ('#a.png', 'b c.png', "it's.png", 'back\\slash.png', '"q".png'):
        (folder / name).write_bytes(as_bytes(digits[12 + len(name)]))
    (folder / 'deep').mkdir()
    (folder / '00.png').rename(folder / 'deep' / '00.png')
    monkeypatch.setenv('HOME', str(folder))
    lines = [
        '# made by hand',
        '',
        '  01.png  ',
        '"02.png"',
        "'b c.png'",
        '#a.png',
        '#comment',
        "it's.png",
        'back\\slash.png',
        '"q".png',
        'deep\\00.png',
        '.\\03.png',
        '~/04.png',
        str(folder / '05.png'),
    ]
    expected = [
        '01.png',
        '02.png',
        'b c.png',
        '#a.png',
        "it's.png",
        'back\\slash.png',
        '"q".png',
        'deep/00.png',
        './03.png',
        '~/04.png',
        str(folder / '05.png'),
    ]
    (folder / 'list.txt').write_text('\r\n'.join(lines))
    (folder / 'wide.lst').write_text('\n'.join(lines), encoding='utf-16')
    for name in ('list.txt', 'wide.lst'):
        found = label(folder / name)
        assert found.code == 0 and found.names == expected and not found.skipped
        assert found.notes == [
            f'{name}: 2 of 13 lines begin with # and were passed over as comments; the first: # made by hand'
        ]


def test_a_reason_for_each_name_of_a_list(label, folder):
    (folder / 'list.txt').write_text(
        '\n'.join(
            [
                *(f'{i:02}.png' for i in range(12)),
                '03.png',
                '04.png 7',
                '05.png,cat',
                '06.png\t2',
                'https://example.org/a.png',
                'C:\\Users\\a.png',
                'gone.png',
                '.',
            ]
        )
    )
    found = label(folder / 'list.txt', '--max-unreadable', 0.5)
    assert (
        found.code == 0
        and len(found.names) == 12
        and {k: why for k, (_, why) in found.skipped.items()}
        == {
            '04.png 7': 'not there, but 04.png is; expected one path a line and nothing behind it',
            '05.png,cat': 'not there, but 05.png is; expected one path a line and nothing behind it',
            '06.png\t2': 'not there, but 06.png is; expected one path a line and nothing behind it',
            'https://example.org/a.png': 'an address; download it first, and name the file',
            'C:\\Users\\a.png': 'not there; it is the name of a file on Windows',
            'gone.png': 'not there',
            '.': 'not a file',
            '03.png': 'the same file as 03.png',
        }
    )
    (folder / 'labels.txt').write_text('\n'.join(f'{i:02}.png {i}' for i in range(12)))
    assert (
        'no images found; 12 things were skipped, the first: 00.png 0: not there, but 00.png is'
        in label(folder / 'labels.txt').one_line()
    )


@pytest.mark.parametrize(
    'name, head, row',
    [
        ('t.csv', 'path', '{}'),
        ('t.csv', 'path,label', '{},3'),
        ('t.csv', 'id,Image Path,split', '7,{},train'),
        ('t.csv', 'label;file_name', '3;{}'),
        ('t.tsv', 'filename\tlabel', '{}\t3'),
        ('t.CSV', '"img_path","label"', '"{}","a, b"'),
        ('t.csv', 'label,image,mask', 'x,{},m.png'),
    ],
)
def test_a_table_with_a_column_of_paths(label, folder, name, head, row):
    (folder / name).write_text('\ufeff' + '\r\n'.join([head, *(row.format(f'{i:02}.png') for i in range(12)), '']))
    found = label(folder / name)
    assert found.code == 0 and found.names == [f'{i:02}.png' for i in range(12)] and not found.skipped
    assert [o.startswith(f'{name}: column ') and 'not used: ' in o for o in found.notes] == [True] * (
        len(re.split('[,;\t]', head)) > 1
    )


def test_tables_that_name_no_pictures(label, folder):
    tables = {
        'no.csv': ('label,score\n1,2\n', 'the columns in the first line of this one are: label, score'),
        'bare.csv': ('00.png\n01.png\n', 'of this one are: 00.png'),
        'empty.csv': ('', 'are: none'),
        'head.csv': ('path,label\n', 'no images found'),
        'gone.csv': ('path\nx.png\n', 'no images found; 1 things were skipped, the first: x.png: not there'),
    }
    for name, (text, word) in tables.items():
        (folder / name).write_text(text)
        assert word in label(folder / name).one_line(), name
    (folder / 'gaps.csv').write_text('path,label\n00.png,1\n,2\n01.png,3\n')
    found = label(folder / 'gaps.csv')
    assert (
        found.names == ['00.png', '01.png'] and 'gaps.csv: 1 of 3 rows have no path and were passed over' in found.notes
    )


def test_names_that_are_no_text_do_not_spoil_a_note(label, folder, digits):
    odd = os.fsdecode(b'dark\xe9.png')
    try:
        (folder / odd).write_bytes(NARROW['12 bits'][0])
    except OSError:
        pytest.skip('this disk has no such names')
    found = label(folder)
    assert found.code == 0 and 'The first: dark\\udce9.png: values' in found.notes[0]
    with noting() as notes:
        note(f'{odd} is odd')
    assert json.dumps(notes, ensure_ascii=False).encode('utf-8')


@pytest.mark.parametrize('source', ['https://example.org/photos.zip', 's3://bucket/photos', 'file:///tmp/photos'])
def test_an_address_is_no_source(label, source):
    assert 'download them first' in label(source).one_line()


def test_a_run_that_names_a_pipe_is_not_waited_for(label, folder, tmp_path):
    from reclip.report import open_run

    assert label(folder).code == 0
    path = tmp_path / 'RUN0' / 'config.json'
    config = json.loads(path.read_text())
    for name in ('p.txt', 'p.tar'):
        os.mkfifo(tmp_path / name)
        config['run']['images'] = str(tmp_path / name)
        path.write_text(json.dumps(config))
        assert within(30, lambda: open_run(tmp_path / 'RUN0')).files is None


def test_reports_do_not_repeat_what_the_run_has_noted(label, folder, tmp_path, caplog):
    from reclip.report import open_run

    (folder / 'notes.txt').write_text('x')
    assert label(folder).notes == ['1 other file was not looked at: .txt (1)']
    logging.getLogger('reclip').propagate = True
    data = open_run(tmp_path / 'RUN0')
    assert len(data.files) == 12 and 'not looked at' not in caplog.text
