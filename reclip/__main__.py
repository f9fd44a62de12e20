"""The command line: `reclip demo`, or `python -m reclip demo`."""
import argparse
import csv
import sys
import tempfile
import time
from pathlib import Path


def _parser():
    parser = argparse.ArgumentParser(prog='reclip', description='Adapt CLIP to your own unlabelled images.')
    commands = parser.add_subparsers(dest='command', required=True)
    demo = commands.add_parser('demo', help='adapt the CLIP that ships with this package to handwritten digits',
        description='Loads the CLIP that learned digits from typefaces, shows it 1,797 handwritten digits without labels, adapts it (projection, '
                    'pseudo-labels, self-training), and writes predictions.csv, figure.png and the adapted model. Takes less than a minute on two cores.')
    demo.add_argument('-o', '--output', type=Path, default=Path('reclip-demo'), help='folder to write; it must not exist (default: %(default)s)')
    demo.add_argument('--projection', choices=('none', 'P1', 'P2'), default='P2', help='space of the pseudo-labels (default: %(default)s, as in the paper)')
    demo.add_argument('--recipe', choices=('paper', 'official'), default='paper', help='follow the paper or the released code (default: %(default)s)')
    demo.add_argument('--epochs', type=int, help="passes over the images (default: the released code's rule, 2 for so few images)")
    demo.add_argument('--seed', type=int, default=0, help='of the order of training (default: %(default)s)')
    demo.add_argument('-q', '--quiet', action='store_true', help='no progress bars')
    return parser


def _figure(path, clip, images, names, steps):
    "Bars of the accuracies, the history, and the most confident changes"
    import matplotlib
    matplotlib.use('agg')
    import matplotlib.pyplot as plt
    fig = plt.figure(figsize=(10, 5.6), layout='constrained')
    top, bottom = fig.subfigures(2, 1, height_ratios=[1.25, 1])
    bars, lines = top.subplots(1, 2)
    shown = bars.barh(list(steps), [100 * a for a in steps.values()], color=['0.7', '0.7', 'C0', 'C0', 'C2'])
    bars.bar_label(shown, fmt='%.1f %%', padding=3)
    bars.invert_yaxis(); bars.set(xlim=(0, 108), title='accuracy (this demo has labels to score with)'); bars.spines[['top', 'right']].set_visible(False)
    rows = clip.history_
    for key, label in dict(agreement='students agree', confidence_t='confidence of T', confidence_v='confidence of V', changed='labels changed').items():
        lines.plot([r['epoch'] for r in rows], [r[key] for r in rows], 'o-', ms=4, label=label)
    lines.set_xticks([r['epoch'] for r in rows][::max(1, len(rows) // 8)])
    lines.set(xlabel='epoch', ylim=(-.03, 1.03), title='what can be seen without labels'); lines.legend(fontsize=8); lines.spines[['top', 'right']].set_visible(False)
    changed = (clip.labels_ != clip.zero_shot_labels_).nonzero()[:, 0]
    order = changed[clip.confidence_[changed].argsort(descending=True)][:20].tolist()
    bottom.suptitle('changed labels, most confident first', fontsize=11)
    for ax in (cells := bottom.subplots(2, 10)).flat: ax.axis('off')
    for ax, i in zip(cells.flat, order):
        ax.imshow(images[i], cmap='gray_r')
        ax.set_title(f'{names[int(clip.zero_shot_labels_[i])]} \u2192 {names[int(clip.labels_[i])]}', fontsize=8)
    fig.savefig(path, dpi=110)
    plt.close(fig)


def _table(path, clip, names):
    "`predictions.csv`: one row per image"
    with open(path, 'w', newline='', encoding='utf-8') as file:
        rows = csv.writer(file)
        rows.writerow(['image', 'label', 'confidence', 'zero_shot', 'changed', 't_label', 'v_label'])
        for i, (a, c, z, t, v) in enumerate(zip(*(getattr(clip, n).tolist() for n in ('labels_', 'confidence_', 'zero_shot_labels_', 't_labels_', 'v_labels_')))):
            rows.writerow([i, names[a], f'{c:.4f}', names[z], int(a != z), names[t], names[v]])


def demo(output, projection='P2', recipe='paper', epochs=None, seed=0, verbose=True):
    "Adapt the demo model to the handwritten digits and write `output`; returns the accuracies, by name"
    from reclip import ReCLIP, accuracy
    from reclip.demo import class_names, demo_digits, templates
    output, started = Path(output), time.perf_counter()
    if output.exists(): raise FileExistsError(f'{output} exists; name another folder with -o, or remove it')
    output.parent.mkdir(parents=True, exist_ok=True)
    images, labels = demo_digits()
    print(f'{len(images):,} handwritten digits, {len(class_names)} class names, no labels', flush=True)
    clip = ReCLIP('demo', class_names=class_names, templates=templates, projection=projection, recipe=recipe, epochs=epochs, seed=seed, verbose=verbose).fit(images)
    found = {'zero-shot': clip.zero_shot_labels_, 'first pseudo-labels': clip.first_pseudo_labels_, 'T (text student)': clip.t_labels_, 'V (image student)': clip.v_labels_, 'final': clip.labels_}
    steps = {name: accuracy(o, labels) for name, o in found.items()}
    with tempfile.TemporaryDirectory(prefix=f'.{output.name}-', dir=output.parent) as scratch:
        new = Path(scratch, 'new')
        new.mkdir()
        clip.save(new / 'model')
        _table(new / 'predictions.csv', clip, class_names)
        _figure(new / 'figure.png', clip, images, class_names, steps)
        new.rename(output)
    print('\naccuracy (this demo has labels to score with; the method saw none)')
    for name, value in steps.items(): print(f'  {name:20}{value:7.1%}')
    print(f'\n{output}/  predictions.csv  figure.png  model/    {time.perf_counter() - started:.0f} s')
    return steps


def main(argv=None):
    "Run the command line; 0 if all went well, 2 for bad input"
    args = _parser().parse_args(argv)
    try: demo(args.output, args.projection, args.recipe, args.epochs, args.seed, not args.quiet)
    except (ValueError, OSError) as e:
        print(f'reclip {args.command}: {e}', file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__': sys.exit(main())
