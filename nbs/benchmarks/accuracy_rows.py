"""All rows of the page `accuracy`, and the one file that it draws; what is there already is kept.

python nbs/benchmarks/accuracy_rows.py --models ../shared/models/photos --root ../shared/data --results RESULTS \\
    --pack nbs/benchmarks/rows/accuracy.jsonl

The methods that train: the same with `--method reclip --method reclip-official`.
"""

import argparse
from functools import cache
import numpy as np
from photo_rows import command_words, part_of, photos_clip
from reclip.clip import load_clip
from reclip.encoded import about_model, image_source
from reclip.evaluating import evaluate_sources, open_sets
from reclip.found_rows import pack_rows
from reclip.result_rows import Asked, near_path
from reclip.scenarios import Scenario, choose_images
from reclip.settings import DEFAULTS, using

SETS = {  # by model; small ones first
    'demo': ('digits', 'mnist'),
    'photos': (
        *('pacs/photo', 'pacs/cartoon', 'caltech101', 'cifar10', 'tiny_imagenet'),
        *('aid', 'gtsrb', 'fer2013', 'rendered_sst2', 'mnist'),
    ),
}
METHODS = ('zeroshot', 'propagation', 'kmeans', 'transclip', 'stata', 'zlap')  # on features: seconds each
SCENARIOS = (Scenario(), Scenario(present=2), Scenario(present=4), Scenario(imbalance=50.0))


def words():
    "What can be asked for"
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--models', required=True, help='folder with photos.py')
    p.add_argument('--root', required=True, help='folder that holds the sets')
    p.add_argument('--model', action='append', choices=tuple(SETS), help='default: all')
    p.add_argument('--set', action='append', help='default: all of a model')
    p.add_argument('--method', action='append', help=f"default: {', '.join(METHODS)}")
    p.add_argument('--seed', action='append', type=int, help='default: 0, 1, 2')
    p.add_argument('--scenario', action='append', choices=[o.name for o in SCENARIOS], help='default: all')
    p.add_argument('--part', type=int, default=2000, help='at most so many images of a set of photos, drawn once')
    p.add_argument('--epochs', type=int)
    p.add_argument('--results', default='results')
    p.add_argument('--overwrite', action='store_true')
    p.add_argument('--pack', help='write all rows of the results to this file, `.jsonl`')
    return p.parse_args()


def encoded_once(source):
    "The same source, whose images are encoded together when the first row needs some"
    whole = cache(lambda: source.sample(np.arange(len(source.labels))))
    return source._replace(sample=lambda rows: whole().take(rows))


def possible(source, scenario, seeds):
    "Whether a set has enough classes and images; if not, why is printed"
    try:
        for seed in seeds:
            choose_images(source.labels, scenario, seed)
    except ValueError as e:
        print(f'{source.name}: left out of {scenario.name}: {e}', flush=True)
        return False
    return True


def tell(row):
    "A line about a row"
    before, after = (100 * row['stages'][o]['top1'] for o in ('zeroshot', 'final'))
    name = Scenario(**row['scenario']).name
    line = f"{row['model']['name']} {row['set']} {name} {row['method']} seed {row['seed']}"
    print(f'{line}: {before:.2f} -> {after:.2f}', flush=True)


def opened(o, name, clip):
    "The sets of a model, one after the other"
    model = about_model(clip, name)
    for one in o.set or SETS[name]:
        if one in SETS[name]:
            for data in open_sets([one], o.root):
                yield encoded_once(image_source(clip, part_of(data, o.part if name == 'photos' else None), model))


def main():
    o = words()
    seeds = o.seed or (0, 1, 2)
    for name in o.model or SETS:
        clip = load_clip('demo') if name == 'demo' else photos_clip(o.models)
        begin = ['reclip', 'eval', '--model', 'demo', '--root', near_path(o.root)]
        begin += ['--epochs', str(o.epochs)] if o.epochs is not None else []
        begin = begin if name == 'demo' else command_words(o)
        settings = using(DEFAULTS, epochs=o.epochs)
        for source in opened(o, name, clip):
            for s in SCENARIOS:
                if (not o.scenario or s.name in o.scenario) and possible(source, s, seeds):
                    asked = Asked(o.method or METHODS, seeds, s, settings, o.overwrite, begin)
                    evaluate_sources([source], o.results, asked, tell)
    if o.pack:
        print(pack_rows(o.results, o.pack))


if __name__ == '__main__':
    main()
