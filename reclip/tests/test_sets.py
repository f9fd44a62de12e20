"Data sets by name: each layout is written as its library expects it, and classes are found by name"

import csv
import io
import json
import os
import pickle
import tarfile
from hashlib import md5
from pathlib import Path
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from torchvision import datasets as tv
from reclip.notes import noting
from reclip.openers import open_set
from reclip.pictures import ImageDataset, as_images
from reclip.sets import SETS, class_positions, find_set, listing, match_classes, plain_name
from reclip.zeroshot import check_class_names, check_templates

SHARED = Path(os.environ.get('RECLIP_DATA', '../shared/data'))
GREYS = (20, 90, 160, 230)  # one for each class that a layout holds; JPEG keeps them apart


def picture(grey, size=16, format='JPEG'):
    found = io.BytesIO()
    Image.new('RGB', (size, size), (grey,) * 3).save(found, format)
    return found.getvalue()


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def digest(path):
    return md5(path.read_bytes()).hexdigest()


def seen(found):
    "First name of each label -> grey of its pictures"
    assert len(found.images) == len(found.labels) and found.labels.dtype == np.int64
    result = {}
    images = as_images(found.images)
    for i, label in enumerate(found.labels):
        assert isinstance(images[i], Image.Image)  # and no label beside it
        grey = np.asarray(images[i].convert('L')).mean()
        result.setdefault(found.class_names[label][0], set()).add(min(GREYS, key=lambda o: abs(o - grey)))
    return {name: greys.pop() for name, greys in result.items() if len(greys) == 1}


# ------------------------------------------------------------------------------------------- layouts of torchvision
def eurosat(root, _):
    for folder, grey in (('SeaLake', 20), ('AnnualCrop', 90)):
        put(root / f'eurosat/2750/{folder}/{folder}_1.jpg', picture(grey))
    return {'lake or sea': 20, 'annual crop land': 90}


def dtd(root, _):
    for name, grey in (('zigzagged', 20), ('banded', 90), ('lined', 160)):
        put(root / f'dtd/dtd/images/{name}/{name}_0001.jpg', picture(grey))
    put(root / 'dtd/dtd/labels/test1.txt', 'zigzagged/zigzagged_0001.jpg\nbanded/banded_0001.jpg\n')
    put(root / 'dtd/dtd/labels/train1.txt', 'lined/lined_0001.jpg\n')
    return {'zigzagged': 20, 'banded': 90}


def fgvc_aircraft(root, _):
    data = root / 'fgvc-aircraft-2013b/data'
    put(data / 'variants.txt', 'Yak-42\n707-320\nF-16A/B\n')  # an order of its own
    put(data / 'images_variant_test.txt', '0000001 F-16A/B\n0000002 707-320\n')
    put(data / 'images/0000001.jpg', picture(20))
    put(data / 'images/0000002.jpg', picture(90))
    return {'F-16A/B': 20, '707-320': 90}


def gtsrb(root, _):
    for name, grey in (('00000', 20), ('00001', 90)):
        put(root / f'gtsrb/GTSRB/Final_Test/Images/{name}.ppm', picture(grey, format='PPM'))
    head = 'Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId\n'
    put(root / 'gtsrb/GT-final_test.csv', head + '00000.ppm;16;16;1;1;9;9;14\n00001.ppm;16;16;1;1;9;9;0\n')
    return {'stop': 20, 'red and white circle 20 kph speed limit': 90}


def sun397(root, _):
    put(root / 'SUN397/ClassName.txt', '/a/apartment_building/outdoor\n/a/abbey\n')
    put(root / 'SUN397/a/abbey/sun_1.jpg', picture(20))
    put(root / 'SUN397/a/apartment_building/outdoor/sun_2.jpg', picture(90))
    return {'abbey': 20, 'apartment building outdoor': 90}


def food101(root, _):
    put(root / 'food-101/meta/test.json', json.dumps({'waffles': ['waffles/1'], 'apple_pie': ['apple_pie/2']}))
    put(root / 'food-101/images/waffles/1.jpg', picture(20))
    put(root / 'food-101/images/apple_pie/2.jpg', picture(90))
    return {'waffles': 20, 'apple pie': 90}


def country211(root, _):
    for code, grey in (('ZW', 20), ('AE', 90), ('XK', 160)):
        put(root / f'country211/test/{code}/1.jpg', picture(grey))
    put(root / 'country211/train/AD/1.jpg', picture(230))
    return {'Zimbabwe': 20, 'United Arab Emirates': 90, 'Kosovo': 160}


def rendered_sst2(root, _):
    for name, grey in (('positive', 20), ('negative', 90)):
        put(root / f'rendered-sst2/test/{name}/1.png', picture(grey, format='PNG'))
    return {'positive': 20, 'negative': 90}


def stanford_cars(root, _):
    base = root / 'stanford_cars'
    (base / 'devkit').mkdir(parents=True)
    names = np.array(['smart fortwo Convertible 2012', 'Acura RL Sedan 2012'], object)
    savemat(base / 'devkit/cars_meta.mat', dict(class_names=names))
    kind = [('fname', object), ('class', np.uint8)]
    rows = np.array([('1.jpg', 2), ('2.jpg', 1)], kind)
    savemat(base / 'cars_test_annos_withlabels.mat', dict(annotations=rows))
    put(base / 'cars_test/1.jpg', picture(20))
    put(base / 'cars_test/2.jpg', picture(90))
    return {'Acura RL Sedan 2012': 20, 'smart fortwo Convertible 2012': 90}


def oxford_pets(root, _):
    base = root / 'oxford-iiit-pet'
    put(base / 'annotations/test.txt', 'american_bulldog_7 2 2 1\nAbyssinian_1 1 1 1\n')
    put(base / 'images/american_bulldog_7.jpg', picture(20))
    put(base / 'images/Abyssinian_1.jpg', picture(90))
    return {'American Bulldog': 20, 'Abyssinian': 90}


def caltech101(root, _):
    base = root / 'caltech101/101_ObjectCategories'
    for name, grey in (('BACKGROUND_Google', 230), ('Faces_easy', 20), ('accordion', 90)):
        put(base / name / 'image_0001.jpg', picture(grey))
    return {'centered face': 20, 'accordion': 90}


def mnist(root, _):
    head = [np.array(o, '>i4').tobytes() for o in ([2051, 2, 28, 28], [2049, 2])]
    pixels = np.repeat(np.array([20, 90], np.uint8), 784).tobytes()
    put(root / 'MNIST/raw/t10k-images-idx3-ubyte', head[0] + pixels)
    put(root / 'MNIST/raw/t10k-labels-idx1-ubyte', head[1] + bytes([7, 0]))
    for name in ('train-images-idx3', 'train-labels-idx1'):
        put(root / f'MNIST/raw/{name}-ubyte', head[0])
    return {'7': 20, '0': 90}


def flowers102(root, patch):
    base = root / 'flowers-102'
    put(base / 'jpg/image_00001.jpg', picture(20))
    put(base / 'jpg/image_00003.jpg', picture(90))
    savemat(base / 'setid.mat', dict(tstid=[[3, 1]], trnid=[[2]], valid=[[2]]))
    savemat(base / 'imagelabels.mat', dict(labels=[[77, 5, 102]]))
    files = {k: (f, digest(base / f)) for k, f in (('label', 'imagelabels.mat'), ('setid', 'setid.mat'))}
    patch.setattr(tv.Flowers102, '_file_dict', tv.Flowers102._file_dict | files)
    return {'passion flower': 20, 'blackberry lily': 90}


def stl10(root, patch):
    base = root / 'stl10_binary'
    put(base / 'test_X.bin', np.repeat(np.array([20, 90], np.uint8), 3 * 96 * 96).tobytes())
    put(base / 'test_y.bin', bytes([10, 3]))
    put(base / 'class_names.txt', '\n'.join('airplane bird car cat deer dog horse monkey ship truck'.split()))
    patch.setattr(tv.STL10, 'train_list', [])
    patch.setattr(tv.STL10, 'test_list', [[o, digest(base / o)] for o in ('test_X.bin', 'test_y.bin')])
    return {'truck': 20, 'car': 90}


def cifar10(root, patch):
    base = root / 'cifar-10-batches-py'
    pixels = np.repeat(np.array([[20], [90]], np.uint8), 3072, 1)
    put(base / 'test_batch', pickle.dumps(dict(data=pixels, labels=[1, 0])))
    put(base / 'batches.meta', pickle.dumps(dict(label_names=['truck', 'automobile'])))
    patch.setattr(tv.CIFAR10, 'train_list', [])
    patch.setattr(tv.CIFAR10, 'test_list', [['test_batch', digest(base / 'test_batch')]])
    patch.setattr(tv.CIFAR10, 'meta', tv.CIFAR10.meta | dict(md5=digest(base / 'batches.meta')))
    return {'automobile': 20, 'truck': 90}


def cifar100(root, patch):
    base = root / 'cifar-100-python'
    pixels = np.repeat(np.array([[20], [90]], np.uint8), 3072, 1)
    put(base / 'test', pickle.dumps(dict(data=pixels, fine_labels=[1, 0], coarse_labels=[0, 0])))
    put(base / 'meta', pickle.dumps(dict(fine_label_names=['worm', 'aquarium_fish'])))
    patch.setattr(tv.CIFAR100, 'train_list', [])
    patch.setattr(tv.CIFAR100, 'test_list', [['test', digest(base / 'test')]])
    patch.setattr(tv.CIFAR100, 'meta', tv.CIFAR100.meta | dict(md5=digest(base / 'meta')))
    return {'aquarium fish': 20, 'worm': 90}


def imagenet(root, _):
    names = {'n04008634': ('projectile', 'missile'), 'n01440764': ('tench', 'Tinca tinca')}
    (root / 'imagenet').mkdir()
    torch.save((names, list(names)), root / 'imagenet/meta.bin')
    put(root / 'imagenet/val/n04008634/ILSVRC2012_val_00000001.JPEG', picture(20))
    put(root / 'imagenet/val/n01440764/ILSVRC2012_val_00000002.JPEG', picture(90))
    return {'projectile': 20, 'tench': 90}


def fer2013(root, patch):
    table = io.StringIO()
    of = ((6, 20, 'PrivateTest'), (3, 230, 'Training'), (4, 90, 'PublicTest'))
    rows = [(emotion, ' '.join([str(grey)] * 2304), usage) for emotion, grey, usage in of]
    csv.writer(table).writerows([('emotion', 'pixels', 'Usage'), *rows])
    put(root / 'fer2013/fer2013.csv', table.getvalue())
    files = dict(fer=('fer2013.csv', digest(root / 'fer2013/fer2013.csv')))
    patch.setattr(tv.FER2013, '_RESOURCES', tv.FER2013._RESOURCES | files)
    return {'neutral': 20, 'sad': 90}


def pcam(root, _):
    h5py = pytest.importorskip('h5py')
    (root / 'pcam').mkdir()
    start = root / 'pcam/camelyonpatch_level_2_split_test'
    with h5py.File(f'{start}_x.h5', 'w') as file:
        file['x'] = np.stack([np.full((96, 96, 3), g, np.uint8) for g in (20, 90)])
    with h5py.File(f'{start}_y.h5', 'w') as file:
        file['y'] = np.array([1, 0], np.uint8).reshape(2, 1, 1, 1)
    return {'lymph node containing metastatic tumor tissue': 20, 'lymph node': 90}


LAYOUTS = [
    eurosat,
    dtd,
    fgvc_aircraft,
    gtsrb,
    sun397,
    food101,
    country211,
    rendered_sst2,
    stanford_cars,
    oxford_pets,
    caltech101,
    mnist,
    flowers102,
    stl10,
    cifar10,
    cifar100,
    imagenet,
    fer2013,
    pcam,
]


@pytest.mark.parametrize('layout', LAYOUTS, ids=lambda o: o.__name__)
def test_torchvision_layout(layout, tmp_path, monkeypatch):
    expected = layout(tmp_path, monkeypatch)
    with noting() as notes:
        found = open_set(layout.__name__, tmp_path)
    assert found.found_as.startswith('torchvision ')
    assert seen(found) == expected and len(found.labels) == len(expected)
    assert any('the split' in o and f'{len(expected)} images' in o for o in notes)
    assert found.class_names == SETS[layout.__name__].class_names and found.split == SETS[layout.__name__].split


def test_every_torchvision_class_has_a_layout_here():
    specs = [o for o in SETS.values() if o.torchvision]
    assert len(specs) >= 18
    for o in specs:
        assert hasattr(tv, o.torchvision['dataset'])
    assert {o.__name__ for o in LAYOUTS} == {o.name for o in specs}


def test_another_split_of_torchvision(tmp_path, monkeypatch):
    dtd(tmp_path, monkeypatch)
    assert seen(open_set('dtd', tmp_path, split='train')) == {'lined': 160}
    with pytest.raises(FileNotFoundError, match='dtd: torchvision cannot read it.*val1.txt'):
        open_set('dtd', tmp_path, split='val')


def test_torchvision_files_that_are_missing_or_damaged(tmp_path, monkeypatch):
    fgvc_aircraft(tmp_path, monkeypatch)
    (tmp_path / 'fgvc-aircraft-2013b/data/images/0000002.jpg').unlink()
    with noting() as notes:
        assert seen(open_set('fgvc', tmp_path)) == {'F-16A/B': 20}
    assert any('1 of 2 images are not there, the first: ' in o and '0000002.jpg' in o for o in notes)
    put(tmp_path / 'fgvc-aircraft-2013b/data/variants.txt', 'Yak-43\n707-320\nF-16A/B\n')
    with pytest.raises(ValueError, match="'Yak-43', which is none of its 100 classes; the nearest is 'Yak-42'"):
        open_set('fgvc', tmp_path)
    put(tmp_path / 'fgvc-aircraft-2013b/data/images_variant_test.txt', 'nonsense\n')
    with pytest.raises(ValueError, match='torchvision cannot read it'):
        open_set('fgvc', tmp_path)


def test_pickles_of_another_digest_are_not_loaded(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / 'executed'),)

    put(tmp_path / 'cifar-10-batches-py/test_batch', pickle.dumps(Trap()))
    with pytest.raises(ValueError, match='torchvision cannot read it'):
        open_set('cifar10', tmp_path)
    assert not (tmp_path / 'executed').exists()


def test_torchvision_knows_the_same_order():
    flowers = SETS['flowers102']
    assert match_classes(flowers, tv.Flowers102.classes, 'torchvision') == list(range(102))
    assert match_classes(SETS['mnist'], tv.MNIST.classes, 'torchvision') == list(range(10))


# ------------------------------------------------------------------------------------------------------ the registry
def test_registry():
    table = listing()
    assert (table.group == 'paper').sum() == 22 and table.set.is_unique
    families = {o.family for o in SETS.values() if o.group == 'domains'}
    assert families == {'office31', 'officehome', 'pacs', 'visda', 'domainnet'}
    sizes = dict(
        aid=30,
        birdsnap=500,
        caltech101=102,
        cifar100=100,
        country211=211,
        dtd=47,
        fgvc_aircraft=100,
        food101=101,
        gtsrb=43,
        imagenet=1000,
        oxford_pets=37,
        resisc45=45,
        stanford_cars=196,
        sun397=397,
    )
    for name, n in sizes.items():
        assert len(SETS[name].class_names) == n
    for o in SETS.values():
        assert len(check_class_names(o.class_names)) == len(o.folders) and check_templates(o.templates)
        assert match_classes(o, o.folders, 'its folders') == list(range(len(o.folders)))
        own = [min(p) for p in map(class_positions(o).get, map(plain_name, o.folders))]
        assert own == list(range(len(o.folders)))  # no two folders are spelled alike
        assert o.names_from and o.templates_from and o.link.startswith('http')


def test_names_in_any_spelling():
    for given, name in {
        'CIFAR-10': 'cifar10',
        'Oxford Pets': 'oxford_pets',
        'PACS/Art': 'pacs/art_painting',
        'office-home/Real World': 'officehome/real_world',
        'wds/mnist': 'mnist',
        'wds/vtab/pets': 'oxford_pets',
    }.items():
        assert find_set(given).name == name
    with pytest.raises(ValueError, match='cifar10'):
        find_set('cifar')
    with pytest.raises(ValueError, match='several domains.*officehome/clipart'):
        find_set('Office-Home')
    with pytest.raises(ValueError, match='`reclip eval --list`'):
        find_set('xyzzy')


def test_classes_by_name_only():
    info = SETS['cifar10']
    shuffled = [o[0] for o in info.class_names][::-1]
    assert match_classes(info, shuffled, 'a list') == list(range(9, -1, -1))
    with pytest.raises(ValueError, match="'kitten', which is none of its 10 classes"):
        match_classes(info, ['kitten'], 'a list')
    with pytest.raises(ValueError, match='which are one class'):
        match_classes(info, ['cat', 'Cat'], 'a list')
    names = [o[0] for o in SETS['imagenet'].class_names]
    names[744], names[836] = 'missile', 'sunglasses'  # as published: twice
    assert match_classes(SETS['imagenet'], names, 'a list') == list(range(1000))
    with pytest.raises(ValueError, match="'sunglasses', which several of its classes are called"):
        match_classes(SETS['imagenet'], names[::-1], 'a list')  # cannot be told apart by name


# ------------------------------------------------------------------------------------------------- folders, archives
def folders(root):
    for name, grey in (('truck', 20), ('Airplane', 90)):
        put(root / name / '1.png', picture(grey, format='PNG'))
    return {'truck': 20, 'airplane': 90}


def test_folder_archive_and_arrays(tmp_path):
    expected = folders(tmp_path / 'a/cifar10')
    found = open_set('CIFAR10', tmp_path / 'a')
    assert seen(found) == expected and found.found_as == 'folder cifar10'
    (tmp_path / 'b').mkdir()
    with tarfile.open(tmp_path / 'b/CIFAR-10_test.tar', 'w') as archive:
        archive.add(tmp_path / 'a/cifar10', 'cifar10_test')
    found = open_set('cifar10', tmp_path / 'b')
    assert seen(found) == expected and found.found_as == 'archive CIFAR-10_test.tar'
    assert sorted(os.listdir(tmp_path / 'b')) == ['CIFAR-10_test.tar']  # nothing was unpacked
    (tmp_path / 'c').mkdir()
    pixels = np.stack([np.full((8, 8, 3), g, np.uint8) for g in (20, 90)])
    np.savez(tmp_path / 'c/cifar10.npz', images=pixels, labels=[1, 0], classnames=['airplane', 'truck'])
    assert seen(open_set('cifar10', tmp_path / 'c')) == expected
    np.savez(tmp_path / 'c/cifar10.npz', images=pixels, labels=[9, 10])
    with pytest.raises(ValueError, match='1 of 2 labels count none of 10 classes, the first: 10'):
        open_set('cifar10', tmp_path / 'c')
    np.savez(tmp_path / 'c/cifar10.npz', images=pixels, labels=np.array([9, {}], object))
    with pytest.raises(ValueError, match='cannot be read'):
        open_set('cifar10', tmp_path / 'c')


def test_readable_names_of_a_folder(tmp_path):
    put(tmp_path / 'mnist/first/1.jpg', picture(20))
    put(tmp_path / 'mnist/second/1.jpg', picture(90))
    put(tmp_path / 'mnist/classes.json', json.dumps(dict(classes=[['first', 'seven'], ['second', '0']])))
    assert seen(open_set('mnist', tmp_path)) == {'7': 20, '0': 90}
    put(tmp_path / 'mnist/classes.json', json.dumps(dict(classes=[['first', 'seven'], ['second', 'dozen']])))
    with pytest.raises(ValueError, match="'dozen', which is none of its 10 classes"):
        open_set('mnist', tmp_path)
    put(tmp_path / 'mnist/classes.json', '[1]')
    with pytest.raises(ValueError, match='readable name'):
        open_set('mnist', tmp_path)


def test_splits_and_domains(tmp_path):
    for part, name, grey in (('test', 'zebra', 20), ('train', 'apple', 90)):
        put(tmp_path / f'domainnet/quickdraw/{part}/{name}/1.jpg', picture(grey))
    put(tmp_path / 'domainnet/real/zebra/1.jpg', picture(160))
    assert seen(open_set('domainnet/quickdraw', tmp_path)) == {'zebra': 20, 'apple': 90}  # the split is: all
    assert seen(open_set('domainnet/quickdraw', tmp_path, split='train')) == {'apple': 90}
    assert seen(open_set('domainnet/real', tmp_path)) == {'zebra': 160}
    with pytest.raises(FileNotFoundError, match='domainnet is there, and has no images of the domain sketch'):
        open_set('domainnet/sketch', tmp_path)
    put(tmp_path / 'OfficeHomeDataset_10072016/Real World/Alarm_Clock/1.jpg', picture(20))
    assert seen(open_set('officehome/real_world', tmp_path)) == {'alarm clock': 20}
    put(tmp_path / 'office31/amazon/images/back_pack/1.jpg', picture(20))
    assert seen(open_set('office31/amazon', tmp_path)) == {'back pack': 20}
    put(tmp_path / 'stl10/train/car/1.jpg', picture(20))
    with pytest.raises(FileNotFoundError, match='stl10 is there, and has no images of the split test'):
        open_set('stl10', tmp_path)


def test_a_split_is_told_from_a_class_of_its_name(tmp_path):
    for folder, grey in {'validation/train': 20, 'validation/bus': 90, 'train/train': 160, 'train/car': 160}.items():
        put(tmp_path / f'visda/{folder}/1.png', picture(grey, format='PNG'))
    assert seen(open_set('visda', tmp_path)) == {'train': 20, 'bus': 90}
    assert seen(open_set('visda', tmp_path, split='train')) == {'train': 160, 'car': 160}
    put(tmp_path / 'gtsrb/GTSRB/Training/00014/1.ppm', picture(20, format='PPM'))  # only what it would be trained with
    with pytest.raises(FileNotFoundError, match='gtsrb is there, and has no images of the split test'):
        open_set('gtsrb', tmp_path)
    (tmp_path / 'dtd/dtd').mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match='dtd is there, and has no images'):
        open_set('dtd', tmp_path)


def test_wrong_folders(tmp_path):
    folders(tmp_path / 'cifar10')
    put(tmp_path / 'cifar10/frogg/1.jpg', picture(20))
    with pytest.raises(ValueError, match="'frogg', which is none of its 10 classes; the nearest is 'frog'; 1 image"):
        open_set('cifar10', tmp_path)
    put(tmp_path / 'stl10/1.jpg', picture(20))
    with pytest.raises(ValueError, match='lie in no class folder'):
        open_set('stl10', tmp_path)


@pytest.mark.parametrize('name', [o.name for o in SETS.values()])
def test_missing_set_says_where_to_get_it(name, tmp_path):
    with pytest.raises(FileNotFoundError) as e:
        open_set(name, tmp_path / 'nowhere')
    text = str(e.value)
    assert SETS[name].link in text and str(tmp_path / 'nowhere' / name) in text and '\n' not in text
    spec = SETS[name].torchvision
    assert ('--download' in text) == bool(spec and spec['download'] or SETS[name].hub)


def test_nothing_is_fetched_unless_allowed(tmp_path, monkeypatch):
    asked = []

    def fetch(self):
        asked.append(type(self).__name__)
        raise OSError('no network')

    monkeypatch.setattr(tv.DTD, '_download', fetch)
    with pytest.raises(FileNotFoundError):
        open_set('dtd', tmp_path)
    assert not asked
    with pytest.raises(FileNotFoundError, match='dtd could not be fetched.*no network.*; get it from https'):
        open_set('dtd', tmp_path, download=True)
    assert asked == ['DTD']
    with pytest.raises(FileNotFoundError, match='aid is not in.*nothing here can fetch it'):
        open_set('aid', tmp_path, download=True)


@pytest.mark.parametrize('layout', [mnist, caltech101], ids=lambda o: o.__name__)
def test_no_label_comes_with_the_pictures(layout, tmp_path, monkeypatch):
    layout(tmp_path, monkeypatch)
    found = open_set(layout.__name__, tmp_path)
    assert isinstance(found.images[0], Image.Image)
    data = ImageDataset(found.images, lambda image: np.asarray(image).mean())
    assert len(data) == 2 and np.ndim(data[0]) == 0


# ------------------------------------------------------------------------------------------------------------ shards
def shards(folder, samples, names=None, n=None):
    "CLIP_benchmark's layout: one archive for each list of (class, picture)"
    for i, rows in enumerate(samples):
        path = folder / f'test/{i}.tar'
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, 'w') as archive:
            for j, (label, content, suffix) in enumerate(rows):
                for name, data in ((f's{i}{j:05}.{suffix}', content), (f's{i}{j:05}.cls', label)):
                    if data is not None:
                        entry = tarfile.TarInfo(name)
                        entry.size = len(data)
                        archive.addfile(entry, io.BytesIO(data))
    put(folder / 'test/nshards.txt', str(n or len(samples)))
    if names:
        put(folder / 'classnames.txt', '\n'.join(names))


def test_shards(tmp_path):
    samples = [
        [(b'0', picture(20), 'jpg'), (b'1\n', picture(90, format='PNG'), 'png')],
        [(b'2', picture(160, format='WEBP'), 'webp')],
    ]
    names = ['truck', 'dog', 'airplane']  # another order, and not all of them
    shards(tmp_path / 'wds/cifar10', samples, names)
    put(tmp_path / 'wds/cifar10/zeroshot_classification_templates.txt', 'a {c}.\n')
    with noting() as notes:
        found = open_set('cifar10', tmp_path)
    assert seen(found) == {'truck': 20, 'dog': 90, 'airplane': 160} and found.found_as == 'shards cifar10/test'
    assert any('templates of its own' in o for o in notes)
    for place in ('wds_vtab-dtd', 'wds/vtab/dtd', 'wds/dtd'):
        root = tmp_path / place.replace('/', '_')
        shards(root / place, [[(b'1', picture(20), 'jpg')]], ['lined', 'dotted'])
        assert seen(open_set('dtd', root)) == {'dotted': 20}


def test_shards_have_a_split_of_their_own(tmp_path):
    shards(tmp_path / 'wds/vtab/eurosat', [[(b'1', picture(20), 'jpg')]], ['forest', 'river'])
    found = open_set('eurosat', tmp_path)
    assert seen(found) == {'river': 20} and found.split == 'test'
    with pytest.raises(FileNotFoundError):
        open_set('eurosat', tmp_path, split='train')


def test_wrong_shards(tmp_path):
    at = tmp_path / 'wds/cifar10'
    shards(at, [[(b'3', picture(20), 'jpg')]], ['truck', 'dog', 'airplane'])
    with pytest.raises(ValueError, match='1 of 1 labels count none of 3 classes, the first: 3'):
        open_set('cifar10', tmp_path)
    shards(at, [[(b'0', picture(20), 'jpg')]], ['lorry'])
    with pytest.raises(ValueError, match="'lorry', which is none of its 10 classes"):
        open_set('cifar10', tmp_path)
    shards(at, [[(b'0', picture(20), 'jpg')]], ['truck'], n=2)
    with pytest.raises(FileNotFoundError, match='1.tar is not there'):
        open_set('cifar10', tmp_path)
    shards(at, [[(None, picture(20), 'jpg')]], ['truck'])
    with pytest.raises(ValueError, match='should hold the number of a class'):
        open_set('cifar10', tmp_path)
    shards(at, [[(b'9', picture(20), 'jpg')]])
    (at / 'classnames.txt').unlink()
    with noting() as notes:
        assert seen(open_set('cifar10', tmp_path)) == {'truck': 20}
    assert any('no classnames.txt' in o for o in notes)
    put(at / 'test/nshards.txt', 'many')
    with pytest.raises(ValueError, match='how many shards'):
        open_set('cifar10', tmp_path)


# -------------------------------------------------------------------------------------------------- Hugging Face
def test_saved_data_set(tmp_path):
    library = pytest.importorskip('datasets')
    rows = dict(img=[Image.new('RGB', (8, 8), (g,) * 3) for g in (20, 90)], label=[0, 1])
    kinds = library.Features(img=library.Image(), label=library.ClassLabel(names=['truck', 'airplane']))
    data = library.Dataset.from_dict(rows, features=kinds)
    data.save_to_disk(tmp_path / 'a/cifar10')
    found = open_set('cifar10', tmp_path / 'a')
    assert seen(found) == {'truck': 20, 'airplane': 90} and found.found_as == 'datasets, saved'
    library.DatasetDict(test=data, train=data.select([0])).save_to_disk(tmp_path / 'b/hf/CIFAR-10')
    assert len(open_set('cifar10', tmp_path / 'b').labels) == 2
    assert seen(open_set('cifar10', tmp_path / 'b', split='train')) == {'truck': 20}
    library.DatasetDict(train=data).save_to_disk(tmp_path / 'c/cifar10')
    with pytest.raises(ValueError, match='no split test, only train'):
        open_set('cifar10', tmp_path / 'c')
    words = library.Dataset.from_dict(
        dict(image=rows['img'], label=['truck', 'dog']),
        features=library.Features(image=library.Image(), label=library.Value('string')),
    )
    words.save_to_disk(tmp_path / 'd/cifar10')
    assert seen(open_set('cifar10', tmp_path / 'd')) == {'truck': 20, 'dog': 90}


def test_hub_is_asked_only_when_allowed(tmp_path, monkeypatch):
    library = pytest.importorskip('datasets')
    rows = dict(image=[Image.new('RGB', (8, 8), (g,) * 3) for g in (20, 90)], label=[1, 0])
    kinds = library.Features(image=library.Image(), label=library.ClassLabel(names=['airplane', 'wetland']))
    asked = []

    def load(name, **settings):
        asked.append((name, settings['split']))
        if len(asked) > 1:
            raise ConnectionError('no network')
        return library.Dataset.from_dict(rows, features=kinds)

    monkeypatch.setattr(library, 'load_dataset', load)
    with pytest.raises(FileNotFoundError, match='--download fetches it from the Hugging Face hub'):
        open_set('resisc45', tmp_path)
    assert not asked
    found = open_set('resisc45', tmp_path, download=True)
    assert seen(found) == {'wetland': 20, 'airplane': 90} and asked == [('tanganke/resisc45', 'test')]
    with pytest.raises(FileNotFoundError, match='resisc45 could not be fetched.*no network; get it from https'):
        open_set('resisc45', tmp_path, download=True)


def test_saved_data_set_without_the_library(tmp_path, monkeypatch):
    put(tmp_path / 'cifar10/state.json', '{}')
    monkeypatch.setitem(__import__('sys').modules, 'datasets', None)
    with pytest.raises(ValueError, match=r"pip install 'reclip-torch\[datasets\]'"):
        open_set('cifar10', tmp_path)


# -------------------------------------------------------------------------------------------------- real pictures
@pytest.mark.skipif(not (SHARED / 'aid.tar').is_file(), reason=f'no pictures in {SHARED}')
@pytest.mark.parametrize(
    'name, n, classes, most',
    [
        ('aid', 840, 30, 28),
        ('caltech101', 2244, 102, 22),
        ('cifar10', 10000, 10, 1000),
        ('fer2013', 3589, 7, 879),
        ('gtsrb', 2580, 43, 60),
        ('imagenet', 1000, 1000, 1),
        ('mnist', 10000, 10, 1135),
        ('pacs/photo', 252, 7, 36),
        ('pacs/cartoon', 252, 7, 36),
        ('rendered_sst2', 1821, 2, 912),
        ('tiny_imagenet', 10000, 200, 50),
    ],
)
def test_sets_of_the_workshop(name, n, classes, most):
    with noting() as notes:
        found = open_set(name, SHARED)
    count = np.bincount(found.labels, minlength=len(found.class_names))
    assert len(found.images) == n and len(found.class_names) == classes == (count > 0).sum() and count.max() == most
    assert any('the split' in o for o in notes) == (n != SETS[name].n_images)
    if name == 'rendered_sst2':  # not OpenAI's pictures
        assert any('rendered here' in o for o in notes)
