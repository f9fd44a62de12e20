"The shipped weights behave as the page says, and the command line runs."

import csv
import random
import re
import subprocess
import sys
import pytest
import torch
from typer.testing import CliRunner
from reclip import ReCLIP, accuracy, demo, encode_images, text_classifier, zero_shot_logits
from reclip.clip import Clip
from reclip.cli import app


def test_weights_behave_as_the_page_says(clip):
    model, preprocess, tokenizer = clip
    texts = text_classifier(Clip(model, preprocess, tokenizer), demo.class_names, demo.templates)

    def score(images, labels):
        return accuracy(zero_shot_logits(encode_images(model, images, preprocess), texts), labels)

    assert score(*demo.typeset(1000, demo.held_out_fonts(), seed=11)) >= 0.95  # a seed that the page does not use
    assert 0.45 <= score(*demo.demo_digits()) <= 0.75
    assert demo.WEIGHTS.stat().st_size < 8 * 2**20


def test_it_is_a_real_open_clip_model(clip):
    import open_clip

    large = open_clip.create_model('ViT-B-32', pretrained=None)
    assert type(clip[0]) is type(large)

    def names(model):
        return {re.sub(r'\.\d+\.', '.N.', n) for n, _ in model.named_parameters()}

    assert names(clip[0]) == names(large)
    assert torch.equal(clip[2](['a photo of a seven.']), open_clip.get_tokenizer('ViT-B-32')(['a photo of a seven.']))


def test_type_is_deterministic():
    a, b = (demo.typeset(5, demo.held_out_fonts(), seed=3) for _ in range(2))
    assert all(x.tobytes() == y.tobytes() for x, y in zip(a[0], b[0])) and torch.equal(a[1], b[1])
    assert demo.render('7', demo.held_out_fonts()[0], random.Random(0))[0].size == (32, 32)


def test_mnist_where_it_is_present(clip):
    try:
        images, labels = demo.demo_mnist()
    except FileNotFoundError as e:
        pytest.skip(str(e))
    model, preprocess, tokenizer = clip
    found = ReCLIP('demo', class_names=demo.class_names, templates=demo.templates, epochs=0).fit(images[::10])
    assert images[0].size == (28, 28) and 0.3 < accuracy(found.labels_, labels[::10]) < 0.9  # they are sorted by class


def test_mnist_says_where_it_looked(tmp_path):
    with pytest.raises(FileNotFoundError, match='RECLIP_DATA'):
        demo.demo_mnist(tmp_path)


def test_demo_command(tmp_path):
    run = subprocess.run(
        [sys.executable, '-m', 'reclip', 'demo', '-o', 'out', '--epochs', '1', '--quiet', '--no-report'],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert [line.split('  ')[1].strip() for line in run.stdout.splitlines() if '%' in line] == [
        'zero-shot',
        'first pseudo-labels',
        'T (text student)',
        'V (image student)',
        'final',
    ]
    assert sorted(p.name for p in (tmp_path / 'out').iterdir()) == ['figure.png', 'images', 'labels.csv', 'run'] and [
        p.name for p in tmp_path.iterdir()
    ] == ['out']
    rows = list(csv.DictReader((tmp_path / 'out' / 'run' / 'predictions.csv').open()))
    back = ReCLIP.load(tmp_path / 'out' / 'run')
    assert [r['label'] for r in rows] == [demo.class_names[i] for i in back.labels_.tolist()] and len(rows) == 1797


def test_demo_command_refuses(tmp_path):
    (tmp_path / 'mine').mkdir()
    found = CliRunner().invoke(app, ['demo', '-o', str(tmp_path / 'mine')])
    assert found.exit_code == 2 and 'exists' in found.stderr and not list((tmp_path / 'mine').iterdir())
    assert CliRunner().invoke(app, ['demo', '-o', str(tmp_path / 'new'), '--epochs', '-1', '-q']).exit_code == 2
    assert [p.name for p in tmp_path.iterdir()] == ['mine']
