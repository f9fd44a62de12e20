"What several tests need: the demo model and its digits, loaded once."

import copy
import logging
import os
import warnings

if 'PYTEST_XDIST_WORKER' in os.environ:
    os.environ.setdefault('OMP_NUM_THREADS', '1')  # several workers, one thread each; before torch counts the cores
import pytest
import torch
from reclip import demo, encode_images, text_classifier
from reclip.clip import Clip


@pytest.fixture(scope='session', autouse=True)
def cache(tmp_path_factory):
    "Features that a run keeps: in a folder of the tests, not in the user's"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('RECLIP_CACHE', str(folder := tmp_path_factory.mktemp('cache')))
        yield folder


def _messages():
    "How the library speaks, before any command has set it up"
    log, root = logging.getLogger('reclip'), logging.getLogger()
    return log.handlers[:], log.propagate, log.level, root.level, warnings.showwarning


QUIET = _messages()


def _restore():
    log, root = logging.getLogger('reclip'), logging.getLogger()
    log.handlers[:], log.propagate, log.level = QUIET[:3]
    root.setLevel(QUIET[3])


@pytest.fixture(autouse=True)
def messages():
    "Commands that a test, or a fixture of its module, calls in this process set up messages; each test begins afresh"
    _restore()
    before = warnings.showwarning
    yield
    _restore()
    warnings.showwarning = before


@pytest.fixture(scope='session')
def clip():
    "`(model, preprocess, tokenizer)` of the demo; tests must leave the model as it is"
    return demo.demo_clip()


@pytest.fixture
def own_clip(clip):
    "A copy of the demo model that a test may change"
    return copy.deepcopy(clip[0]), *clip[1:]


@pytest.fixture(scope='session')
def digits():
    "240 images, mixed classes, and their labels"
    images, labels = demo.demo_digits()
    return images[:240], labels[:240]


@pytest.fixture(scope='session')
def features(clip, digits):
    "`(image_features, text_features)` of the digits"
    model, preprocess, tokenizer = clip
    return encode_images(model, digits[0], preprocess), text_classifier(Clip(*clip), demo.class_names, demo.templates)


def blobs(n, m, d=16, seed=0, spread=0.5, dtype=torch.float64):
    "n image rows around m text rows, as a stand-in for features; `(images, texts, class of each image)`"
    g = torch.Generator().manual_seed(seed)
    texts = torch.nn.functional.normalize(torch.randn(m, d, generator=g, dtype=dtype), dim=1)
    owner = torch.randint(m, (n,), generator=g)
    images = torch.nn.functional.normalize(
        texts[owner] + spread * torch.randn(n, d, generator=g, dtype=dtype) / d**0.5 * 2, dim=1
    )
    return images, texts, owner
