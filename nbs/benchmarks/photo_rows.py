"""Rows of a CLIP that is put together in Python: `photos_clip` of a file `photos.py`, which this script runs.

python nbs/benchmarks/photo_rows.py --models ../shared/models/photos --root ../shared/data --set pacs/photo --results R
"""

import argparse
import importlib.util
from pathlib import Path
import numpy as np
from reclip.clip import Clip
from reclip.encoded import about_model, image_source, write_features
from reclip.evaluate import some_images
from reclip.evaluating import evaluate_sets, open_sets
from reclip.pictures import as_images
from reclip.result_rows import Asked, near_path
from reclip.scenarios import Scenario, choose_images
from reclip.settings import DEFAULTS, using


def photos_clip(folder):
    "The model of a file that somebody named"
    spec = importlib.util.spec_from_file_location('photos', Path(folder) / 'photos.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return Clip(*module.photos_clip())


def part_of(data, n):
    "At most `n` images of a set, drawn once, so that all methods and seeds have the same; its split says so"
    if n is None or len(data.labels) <= n:
        return data
    rows = choose_images(data.labels, Scenario(limit=n))
    split = f'{data.split}, {n:,} of {len(data.labels):,} images'
    return data._replace(images=some_images(as_images(data.images), rows), labels=data.labels[rows], split=split)


def command_words(o):
    "How the command begins that makes a row again"
    found = ['python', 'nbs/benchmarks/photo_rows.py', '--models', near_path(o.models), '--root', near_path(o.root)]
    found += ['--part', str(o.part)] if o.part is not None else []
    return found + (['--epochs', str(o.epochs)] if o.epochs is not None else [])


def words():
    "What can be asked for, as in `reclip eval`"
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--models', required=True, help='folder with photos.py')
    p.add_argument('--root', required=True, help='folder that holds the sets')
    p.add_argument('--set', action='append', required=True)
    p.add_argument('--method', action='append')
    p.add_argument('--seed', action='append', type=int)
    for name, kind in Scenario.__annotations__.items():
        p.add_argument(f'--{name}', type=float if name == 'imbalance' else int)
    p.add_argument('--part', type=int, help='at most so many images of each set, drawn once')
    p.add_argument('--epochs', type=int)
    p.add_argument('--results', default='results')
    p.add_argument('--overwrite', action='store_true')
    p.add_argument('--features', help='write features of whole sets to this folder, and no rows')
    return p.parse_args()


def main():
    o = words()
    clip = photos_clip(o.models)
    opened = [part_of(data, o.part) for data in open_sets(o.set, o.root)]
    if o.features:
        model = about_model(clip, 'photos')
        for data in opened:
            print(write_features(image_source(clip, data, model), o.features))
        return
    usual = Asked()
    asked = Asked(
        o.method or usual.methods,
        o.seed or usual.seeds,
        Scenario(o.present, o.imbalance, o.limit),
        using(DEFAULTS, epochs=o.epochs),
        o.overwrite,
        command_words(o),
    )

    def tell(row):
        print(row['set'], row['method'], row['seed'], np.round(100 * row['stages']['final']['top1'], 2), flush=True)

    evaluate_sets(clip, opened, o.results, asked, 'photos', tell=tell)


if __name__ == '__main__':
    main()
