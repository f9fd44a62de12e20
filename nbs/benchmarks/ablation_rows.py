"""The rows of the ablation on the page `one_picture`: what each stage says of the same images; rows there are kept.

python nbs/benchmarks/ablation_rows.py --root ../shared/data --rows nbs/benchmarks/rows/eval/ablation.jsonl
"""

import argparse
import json
from pathlib import Path
import torch
from reclip import accuracy, demo
from reclip.clip import Clip, load_clip
from reclip.labeller import label_images
from reclip.projection import project, projection_basis
from reclip.rows import versions
from reclip.selftrain import adapt
from reclip.settings import DEFAULTS, using
from reclip.zeroshot import text_classifier

SETS, SEEDS = ('digits', 'mnist'), (0, 1, 2)
PART = 1000  # images of MNIST, another thousand for each seed


def words():
    "What can be asked for"
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--root', required=True, help='folder that holds mnist_test.npz')
    p.add_argument('--rows', required=True, help='file, `.jsonl`')
    p.add_argument('--set', action='append', choices=SETS, help='default: all')
    p.add_argument('--seed', action='append', type=int, help='default: 0, 1, 2')
    return p.parse_args()


def images_of(name, root, seed):
    "Images and labels: all digits, or a part of MNIST"
    if name == 'digits':
        return demo.demo_digits()
    images, labels = demo.demo_mnist(root)
    part = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))[:PART]
    return [images[i] for i in part], labels[part]


def labels_without_training(clip, x, text):
    "Labels (N,) by stage, of features alone"
    basis = projection_basis(text)
    found = {'zero-shot': (x @ text.T).argmax(1), '+ projection': (project(x, basis) @ project(text, basis).T).argmax(1)}
    for name, how in (('+ labels', {}), ('labels, not projected', dict(projection='none'))):
        s = using(DEFAULTS, recipe='paper', **how)
        found[name] = label_images(
            x, text, s, logit_scale=clip.logit_scale, basis=projection_basis(text, s.projection)
        ).pseudo_labels
    found['mixture labels'] = label_images(x, text, logit_scale=clip.logit_scale).pseudo_labels
    return found


def labels_of_students(clip, pixels, x, text, seed):
    "Labels (N,) of T, of V, of both as in the paper, and of the default"
    found = {}
    for recipe in ('paper', 'auto'):
        s = using(DEFAULTS, recipe=recipe, seed=seed)
        how = dict(frozen_features=x, text_features=text)
        logits = adapt(clip, pixels, demo.class_names, demo.templates, s, **how).logits
        if recipe == 'paper':
            found |= {'T': logits[0].argmax(1), 'V': logits[1].argmax(1)}
        found['both' if recipe == 'paper' else 'default'] = logits[s.voices()].mean(0).argmax(1)
    return found


def measured(clip: Clip, name, root, seed):
    "One row"
    images, labels = images_of(name, root, seed)
    pixels = torch.stack([clip.preprocess(o) for o in images])
    x, text = clip.images(pixels), text_classifier(clip, demo.class_names, demo.templates)
    found = labels_without_training(clip, x, text) | labels_of_students(clip, pixels, x, text, seed)
    scores = {k: round(accuracy(o, labels), 6) for k, o in found.items()}
    about = dict(set=name, seed=seed, n_images=len(labels), epochs=DEFAULTS.training_epochs(len(labels)))
    return about | dict(accuracy=scores, versions=versions())


def main():
    o = words()
    path = Path(o.rows)
    there = [json.loads(line) for line in path.read_text('utf-8').splitlines()] if path.is_file() else []
    clip = load_clip('demo', device='cpu')
    for name in o.set or SETS:
        for seed in o.seed or SEEDS:
            if (name, seed) not in {(row['set'], row['seed']) for row in there}:
                row = measured(clip, name, o.root, seed)
                there.append(row)
                path.write_text(''.join(json.dumps(one) + '\n' for one in there), 'utf-8')
                print(name, seed, row['accuracy'], flush=True)


if __name__ == '__main__':
    main()
