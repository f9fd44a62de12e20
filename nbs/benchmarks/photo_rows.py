"""Rows of a CLIP that is put together in Python: `photos_clip` of a file `photos.py`, which this script runs.

python nbs/benchmarks/photo_rows.py --models ../shared/models/photos --root ../shared/data --set pacs/photo --results R
"""

import argparse
import importlib.util
from pathlib import Path
import numpy as np
from reclip.clip import Clip
from reclip.encoded import about_model, image_source, write_features
from reclip.evaluating import evaluate_sets, open_sets
from reclip.result_rows import Asked, near_path
from reclip.scenarios import Scenario
from reclip.settings import DEFAULTS, using


def photos_clip(folder):
    "The model of a file that somebody named"
    spec = importlib.util.spec_from_file_location('photos', Path(folder) / 'photos.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return Clip(*module.photos_clip())


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
    p.add_argument('--epochs', type=int)
    p.add_argument('--results', default='results')
    p.add_argument('--overwrite', action='store_true')
    p.add_argument('--features', help='write features of whole sets to this folder, and no rows')
    return p.parse_args()


def main():
    o = words()
    clip = photos_clip(o.models)
    if o.features:
        model = about_model(clip, 'photos')
        for data in open_sets(o.set, o.root):
            print(write_features(image_source(clip, data, model), o.features))
        return
    begin = ['python', 'nbs/benchmarks/photo_rows.py', '--models', near_path(o.models), '--root', near_path(o.root)]
    begin += ['--epochs', str(o.epochs)] if o.epochs is not None else []
    usual = Asked()
    asked = Asked(
        o.method or usual.methods,
        o.seed or usual.seeds,
        Scenario(o.present, o.imbalance, o.limit),
        using(DEFAULTS, epochs=o.epochs),
        o.overwrite,
        begin,
    )

    def tell(row):
        print(row['set'], row['method'], row['seed'], np.round(100 * row['stages']['final']['top1'], 2), flush=True)

    evaluate_sets(clip, o.set, o.results, asked, 'photos', o.root, tell=tell)


if __name__ == '__main__':
    main()
