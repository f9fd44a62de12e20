__version__ = "0.0.1"

from reclip.adapt import ReCLIP
from reclip.clip import encode_images, encode_text, load_clip
from reclip.graph import neighbor_graph
from reclip.projection import project, projection_basis
from reclip.pseudolabel import PseudoLabels, label_features, propagate
from reclip.selftrain import adapt as self_train
from reclip.zeroshot import accuracy, text_classifier, zero_shot_logits
from reclip import demo

__all__ = ['ReCLIP', 'PseudoLabels', 'accuracy', 'demo', 'encode_images', 'encode_text', 'label_features', 'load_clip', 'neighbor_graph', 'project', 'projection_basis', 'propagate',
           'self_train', 'text_classifier', 'zero_shot_logits']
