__version__ = "0.1.0"

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what editors and type checkers read; at run time a name is imported when it is first used
    from . import demo, report, run
    from .adapt import ReCLIP
    from .clip import Clip, encode_images, encode_text, load_clip
    from .graph import neighbor_graph
    from .images import find_images
    from .projection import project, projection_basis
    from .pseudolabel import PseudoLabels, label_features, propagate
    from .selftrain import adapt as self_train
    from .settings import Settings
    from .zeroshot import accuracy, text_classifier, zero_shot_logits

_HOME = dict(
    Clip='clip', PseudoLabels='pseudolabel', ReCLIP='adapt', Settings='settings', accuracy='zeroshot',
    encode_images='clip', encode_text='clip', find_images='images', label_features='pseudolabel', load_clip='clip',
    neighbor_graph='graph', project='projection', projection_basis='projection', propagate='pseudolabel',
    text_classifier='zeroshot', zero_shot_logits='zeroshot',
)  # fmt: skip
_MODULES = ('demo', 'report', 'run')

__all__ = [*_HOME, *_MODULES, 'self_train']


def __getattr__(name):
    "A name is imported when it is first used, so that `reclip --help` need not wait for PyTorch"
    if name in _MODULES:
        return import_module(f'reclip.{name}')
    if name == 'self_train':
        value = import_module('reclip.selftrain').adapt
    elif name in _HOME:
        value = getattr(import_module(f'reclip.{_HOME[name]}'), name)
    else:
        raise AttributeError(f"module 'reclip' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__():
    return sorted([*globals(), *__all__])
