"""Rows of the page `05d_class_shares`: how often true shares of classes lie in their interval, for several `together`.

python nbs/benchmarks/photo_rows.py --models ../shared/models/photos --root ../shared/data --part 2000 \\
    --set pacs/photo --set pacs/cartoon ... --features FEATURES
python nbs/benchmarks/share_rows.py --features FEATURES --root ../shared/data --write nbs/benchmarks/rows/eval/shares.jsonl
"""

import argparse
import json
from pathlib import Path
import numpy as np
import torch
from accuracy_rows import SCENARIOS, encoded_once, possible
from reclip.answers import combined, without_training
from reclip.class_shares import class_shares
from reclip.clip import load_clip
from reclip.encoded import about_model, features_source, image_source
from reclip.evaluate import mixture
from reclip.evaluating import open_sets
from reclip.files import whole_file
from reclip.labeller import label_images
from reclip.scenarios import choose_images
from reclip.settings import DEFAULTS

TOGETHER = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9)


def answers(x, t, scale):
    "The probabilities that a run without training gives for its images"
    voices = DEFAULTS.voices()
    kept = without_training(x, t, scale, label_images(x, t, logit_scale=scale), voices)
    return combined(x, x, t, kept['centroids'], kept['logit_scale'], voices)


WAYS = dict(labeller=mixture, answers=answers)


def counts(probability, true, together):
    "Classes that occur and that do not: how many, in their interval, called which; and how wide intervals are"
    found = class_shares(probability, together)
    inside = (found.low - 1e-9 <= true) & (true <= found.high + 1e-9)
    words = np.array(found.evidence)
    row = dict(together=together, width=round((found.high - found.low)[true > 0].sum().item(), 4))
    for name, which in dict(occurring=true > 0, absent=true == 0).items():
        called = words[which.numpy()]
        row[name] = dict(classes=len(called), inside=int(inside[which].sum()))
        row[name] |= {o: int((called == o).sum()) for o in ('occurs', 'may occur', 'not seen')}
    return row


def rows_of(source):
    "All rows of a set"
    for s in SCENARIOS:
        seeds = (0,) if s.name == 'full' else (0, 1, 2)
        for seed in seeds if possible(source, s, seeds) else ():
            rows = choose_images(source.labels, s, seed)
            sample = source.sample(rows)
            x, t, scale = sample.image_features, sample.text_features, sample.logit_scale
            true = torch.bincount(torch.from_numpy(source.labels[rows]), minlength=len(t)).double() / len(rows)
            about = dict(model=source.model['name'], set=source.name, scenario=s.name, seed=seed, images=len(rows))
            for way, label in WAYS.items():
                p = label(x, t, scale)
                off = round(50 * (p.mean(0) - true).abs().sum().item(), 2)
                for together in TOGETHER:
                    yield about | dict(of=way, off=off) | counts(p, true, together)


def photos(folder):
    "Sets that the photo model has encoded"
    return [features_source(path, 'photos') for path in sorted(Path(folder).glob('*.safetensors'))] if folder else []


def digits(root):
    "Sets of the demo model"
    if not root:
        return []
    clip = load_clip('demo')
    model = about_model(clip, 'demo')
    return [encoded_once(image_source(clip, data, model)) for data in open_sets(['digits', 'mnist'], root)]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--features', help='folder of features of the photo model; without it the demo model alone')
    p.add_argument('--root', help='folder that holds the sets of the demo model; without it the photo model alone')
    p.add_argument('--write', required=True, help='`.jsonl`')
    o = p.parse_args()
    lines = []
    for source in [*photos(o.features), *digits(o.root)]:
        lines += [json.dumps(row) + '\n' for row in rows_of(source)]
        print(source.model['name'], source.name, len(lines), flush=True)
    with whole_file(o.write) as path:
        path.write_text(''.join(lines), encoding='utf-8')


if __name__ == '__main__':
    main()
