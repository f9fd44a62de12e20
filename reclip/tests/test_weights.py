"Weights are read as weights, code that comes with a model or a result never runs, and what is not told is noted."

import argparse
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import zipfile
from collections import defaultdict
from functools import cache
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
import numpy as np
import open_clip
import pytest
import torch
from open_clip import factory, pretrained
from open_clip.transformer import QuickGELU
from safetensors.torch import load_file, save, save_file
from typer.testing import CliRunner
from reclip import ReCLIP, demo, run, text_classifier, trust, weights
from reclip.cli import app
from reclip.clip import encode_text, load_clip, prompt_tokens, unit_rows
from reclip.notes import noting
from reclip.tests.hub_server import hub
from reclip.trust import check_config, check_configs, model_digest, no_code_of_others
from reclip.weights import UnusableModel, checkpoint_settings, read_weights

NAMES = ['red', 'green', 'blue', 'grey']
CONFIG = dict(
    embed_dim=32,
    vision_cfg=dict(image_size=32, patch_size=16, layers=1, width=64),
    text_cfg=dict(context_length=16, vocab_size=49408, width=32, heads=2, layers=1),
)
has_transformers = all(find_spec(o) for o in ('transformers', 'tokenizers'))
needs_transformers = pytest.mark.skipif(not has_transformers, reason='transformers is not installed')


def call(*args):
    return CliRunner().invoke(app, [str(o) for o in args])


def refused(*args):
    "The one line that a command ends with; exit code 2 and no traceback"
    found = call(*args)
    assert found.exit_code == 2, found.output
    lines = [o for o in found.stderr.splitlines() if o.startswith(f'reclip {args[0]}: ')]
    assert len(lines) == 1 and 'Traceback' not in found.output, found.output
    return lines[0]


@pytest.fixture(scope='module', autouse=True)
def one_vocabulary():
    "open_clip reads its vocabulary anew for each tokenizer; once a kind is enough here"
    with pytest.MonkeyPatch.context() as patch:
        made = cache(open_clip.SimpleTokenizer)
        for module in (open_clip, factory):
            patch.setattr(module, 'SimpleTokenizer', made)
        yield


@cache
def toy(seed=0, **more):
    "A small CLIP whose norm parameters depend on the seed; tests leave it as it is"
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = open_clip.CLIP(**CONFIG, **more).eval()
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.mul_(30) if 'token_embedding' in name else p.add_(torch.randn_like(p) * 0.02)
    return model


def write_folder(folder, model=None, model_cfg=CONFIG, file='open_clip_model.safetensors', **configs):
    "A model as open_clip reads it from a folder"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'open_clip_config.json').write_text(json.dumps(dict(model_cfg=model_cfg, preprocess_cfg={})))
    state = (model or toy()).state_dict()
    save_file(state, folder / file) if file.endswith('.safetensors') else torch.save(state, folder / file)
    for name, content in configs.items():
        (folder / f'{name}.json').write_text(json.dumps(content))
    return f'local-dir:{folder}'


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    "A folder with 12 digits"
    folder = tmp_path_factory.mktemp('pictures')
    for i, image in enumerate(demo.demo_digits()[0][:12]):
        image.save(folder / f'{i:02}.png')
    return folder


@pytest.fixture
def known(tmp_path, monkeypatch):
    "open_clip knows the architectures `toy` and `toy-quickgelu` while a test runs; weights as in the returned folder"
    monkeypatch.setattr(
        factory,
        '_MODEL_CONFIGS',
        factory._MODEL_CONFIGS | {'toy': CONFIG, 'toy-quickgelu': CONFIG | dict(quick_gelu=True)},
    )
    monkeypatch.setattr(pretrained, '_PRETRAINED', dict(pretrained._PRETRAINED))
    save_file(toy().state_dict(), tmp_path / 'toy.safetensors')
    return tmp_path


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    "A machine on which nobody has named a model"
    monkeypatch.setenv('RECLIP_CACHE', str(tmp_path / 'own cache'))
    return tmp_path / 'own cache'


def zeroshot(pictures, output, *more):
    return 'zeroshot', pictures, '-c', ','.join(NAMES), '-o', output, *more


# --- checkpoints, in all the forms in which people save them


def prefixed(prefix, state):
    return {prefix + k: v for k, v in state.items()}


def forms(state):
    "Contents of files that hold these weights"
    average = {k: v + 1 if v.is_floating_point() else v for k, v in state.items()}
    optimizer = dict(
        state={0: dict(step=torch.ones(1), exp_avg=torch.ones(3))}, param_groups=[dict(lr=1e-3, params=[0])]
    )
    return {
        'plain': state,
        'compiled': prefixed('_orig_mod.', state),
        'distributed': prefixed('module.', state),
        'lightning': {'state_dict': prefixed('model.', state), 'epoch': 1},
        'all three': prefixed('module._orig_mod.model.', state),
        'twice': prefixed('module.module.', state),
        'own name': prefixed('clip_model.', state),
        'with a loss': prefixed('model.', state) | {'loss.logit_scale': torch.ones(()), 'loss.weight': torch.ones(3)},
        'open_clip': dict(epoch=3, name='x', state_dict=prefixed('module.', state), optimizer=optimizer),
        'distributed and compiled': dict(state_dict=prefixed('module._orig_mod.', state)),
        'model': dict(model=state),
        'model_state_dict': dict(model_state_dict=state, optimizer_state_dict=optimizer, loss=0.3),
        'nested': dict(checkpoint=dict(model=dict(state_dict=state))),
        'only an average': dict(state_dict_ema=state),
        'averaged model': {'n_averaged': torch.ones(1)} | prefixed('module.', state),
        'average beside': dict(model_ema=average, model=state),
        'average among': prefixed('ema.', average) | prefixed('model.', state),
        'image tower compiled': {k.replace('visual.', 'visual._orig_mod.'): v for k, v in state.items()},
        'sharded': {
            k.replace(
                'transformer.resblocks.0.', 'transformer.resblocks.0._fsdp_wrapped_module._checkpoint_wrapped_module.'
            ): v
            for k, v in state.items()
        },
        "OpenAI's numbers": state
        | dict(input_resolution=torch.tensor(32), context_length=torch.tensor(16), vocab_size=torch.tensor(49408)),
        'numbers beside': state | dict(epoch=3),
    }


KINDS = sorted(forms({}))


@pytest.mark.parametrize('ending', ['.pt', '.ckpt', ' old.bin', '.safetensors'])
@pytest.mark.parametrize('kind', KINDS)
def test_every_form_is_the_same_model(kind, ending, tmp_path):
    state = toy().state_dict()
    content = forms(state)[kind]
    if ending == '.safetensors' and not all(isinstance(o, torch.Tensor) for o in content.values()):
        pytest.skip('safetensors hold tensors only')
    file = tmp_path / f'x{ending}'
    if ending == '.safetensors':
        file.write_bytes(save({k: v.clone() for k, v in content.items()}))
    else:
        torch.save(content, file, _use_new_zipfile_serialization='old' not in ending)
    with noting() as notes:
        found = read_weights(file)
    assert found.keys() == state.keys() and all(torch.equal(found[k], v) for k, v in state.items())
    assert len(notes) == ('beside' in kind and 'average' in kind or kind == 'average among')
    assert not notes or 'was taken' in notes[0] and 'ema' in notes[0]


@pytest.mark.parametrize('suffix', ['.pt', '.safetensors', '.ckpt', ''])
@pytest.mark.parametrize('content', ['torch', 'safetensors'])
def test_a_suffix_decides_nothing(content, suffix, tmp_path):
    state, file = toy().state_dict(), tmp_path / f'x{suffix}'
    torch.save(state, tmp_path / 'real') if content == 'torch' else save_file(state, tmp_path / 'real')
    (tmp_path / 'real').rename(file)
    assert all(torch.equal(v, state[k]) for k, v in read_weights(file).items())


@pytest.mark.parametrize('kind', ['compiled', 'lightning', 'distributed and compiled', 'average beside', 'half'])
def test_the_command_takes_them(kind, known, pictures):
    state = toy().state_dict()
    content = {k: v.half() for k, v in state.items()} if kind == 'half' else forms(state)[kind]
    torch.save(content, known / 'x.pt')
    for name, file in dict(A='toy.safetensors', B='x.pt').items():
        found = call(*zeroshot(pictures, known / name, '-m', 'toy', '-p', known / file, '--no-cache'))
        assert found.exit_code == 0, found.output
    assert ('was taken' in found.stderr) == (kind == 'average beside')
    a, b = (run.read_predictions(known / o) for o in 'AB')
    assert a.label.equals(b.label) and (a.confidence - b.confidence).abs().max() < (0.02 if kind == 'half' else 1e-9)


class Makes:
    "Makes a folder when it is unpickled"

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


class Evaluates(Makes):
    def __reduce__(self):
        return eval, (f'__import__("os").mkdir({self.marker!r})',)


class Reads(Makes):
    "Through a name that no list of bad names has"

    def __reduce__(self):
        return zipfile.ZipFile, (f'{self.marker}.zip', 'w')


def page(folder):
    "Files that are no checkpoints, and a word of the sentence about each"
    state = toy().state_dict()
    whole = BytesIO()
    torch.save(state, whole)
    torch.save(torch.nn.Linear(2, 2), folder / 'whole module.pt')
    torch.save(dict(state_dict=state, args=argparse.Namespace(lr=1)), folder / 'namespace.pt')
    torch.save(dict(state_dict=state, loss=np.float64(0.3)), folder / 'numpy scalar.pt')
    torch.save(dict(model=state, options=Path('x'), more=defaultdict(list)), folder / 'path.pt')
    torch.save(
        dict(state_dict=state, args=argparse.Namespace(lr=1)),
        folder / 'old namespace.pt',
        _use_new_zipfile_serialization=False,
    )
    torch.save(dict(state_dict=state, x=Makes(folder / 'marker')), folder / 'evil.pt')
    torch.save(dict(state_dict=state, x=Evaluates(folder / 'marker')), folder / 'eval.pt')
    torch.save(
        dict(state_dict=state, x=Makes(folder / 'marker')), folder / 'old evil.pt', _use_new_zipfile_serialization=False
    )
    torch.save(dict(state_dict=state, x=Reads(folder / 'marker')), folder / 'unlisted.pt')
    (folder / 'evil.pickle.pt').write_bytes(pickle.dumps(Makes(folder / 'marker')))
    (folder / 'pickle.pt').write_bytes(pickle.dumps({k: v.numpy() for k, v in list(state.items())[:3]}))
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), folder / 'script.pt')
    for name, n in {'cut.pt': 5000, 'cut late.pt': len(whole.getvalue()) - 100}.items():
        (folder / name).write_bytes(whole.getvalue()[:n])
    (folder / 'cut.safetensors').write_bytes(save(state)[:5000])
    np.savez(folder / 'arrays.npz', **{k: v.numpy() for k, v in list(state.items())[:3]})
    np.savez(folder / 'objects.npz', a=np.array([Makes(folder / 'marker')], dtype=object))
    np.save(folder / 'array.npy', np.zeros(3))
    np.save(folder / 'objects.npy', np.array([Makes(folder / 'marker')], dtype=object), allow_pickle=True)
    (folder / 'renamed.npz').write_bytes(whole.getvalue())
    with zipfile.ZipFile(folder / 'archive.pt', 'w') as file:
        file.writestr('model.txt', 'x')
    texts = {
        'pointer.pt': 'version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 123\n',
        'pointer.safetensors': 'version https://git-lfs.github.com/spec/v1\n',
        'page.pt': '<!DOCTYPE html><title>404</title>',
        'page.safetensors': '\n<html></html>',
        'denied.pt': '<?xml version="1.0"?><Error/>',
        'index.bin': '{"metadata": {}, "weight_map": {}}',
        'hello.pt': 'hello world',
        'empty.pt': '',
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    for name, head in {
        'h5.pt': b'\x89HDF\r\n\x1a\n',
        'x.gguf': b'GGUF\3\0\0\0',
        'packed.pt': b'\x1f\x8b\x08\0',
        'zst.pt': b'\x28\xb5\x2f\xfd',
    }.items():
        (folder / name).write_bytes(head + bytes(600))
    save_file(
        {'vision_model.x': torch.ones(2), 'text_model.x': torch.ones(2), 'logit_scale': torch.ones(())},
        folder / 'transformers.safetensors',
    )
    torch.save([1, 2], folder / 'list.pt')
    return {
        'whole module.pt': 'whole model',
        'namespace.pt': 'argparse.Namespace',
        'numpy scalar.pt': 'numpy',
        'path.pt': 'pathlib',
        'old namespace.pt': 'argparse.Namespace',
        'evil.pt': '.mkdir when it is opened',
        'eval.pt': 'eval when it is opened',
        'old evil.pt': '.mkdir when it is opened',
        'unlisted.pt': 'zipfile.ZipFile',
        'evil.pickle.pt': '.mkdir when it is opened',
        'pickle.pt': 'plain pickle',
        'script.pt': 'TorchScript',
        'cut.pt': 'cut off',
        'cut late.pt': 'cut off',
        'cut.safetensors': 'cut off',
        'arrays.npz': 'NumPy arrays',
        'objects.npz': 'NumPy arrays',
        'array.npy': 'NumPy array',
        'objects.npy': 'NumPy array',
        'renamed.npz': 'wrong suffix',
        'archive.pt': 'zip archive',
        'pointer.pt': 'git lfs pull',
        'pointer.safetensors': 'git lfs pull',
        'page.pt': 'web page',
        'page.safetensors': 'web page',
        'denied.pt': 'web page',
        'index.bin': 'JSON',
        'hello.pt': "begins with b'hello world'",
        'empty.pt': 'is empty',
        'h5.pt': 'HDF5',
        'x.gguf': 'GGUF',
        'packed.pt': 'compressed',
        'zst.pt': 'compressed',
        'transformers.safetensors': "transformers' CLIP",
        'list.pt': 'holds no tensors with names, but list',
    }


@pytest.fixture(scope='module')
def no_checkpoints(tmp_path_factory):
    "`(folder, words)`: files that are no checkpoints, and a word of the sentence about each"
    folder = tmp_path_factory.mktemp('no checkpoints')
    return folder, page(folder)


@pytest.mark.filterwarnings('ignore')
def test_what_is_no_checkpoint_says_what_it_is(no_checkpoints, known, pictures):
    folder, words = no_checkpoints
    said = {name: refused(*zeroshot(pictures, known / 'R', '-m', 'toy', '-p', folder / name)) for name in words}
    assert {name: word for name, word in words.items() if word not in said[name]} == {}, said
    assert all('checkpoint' in o and name in o and 'weights_only=True' not in o for name, o in said.items())
    assert len({re.sub(r'no checkpoints/\S*( \S+)?', '', o) for o in said.values()}) > 20 and not (known / 'R').exists()
    assert not list(folder.glob('marker*'))
    torch.load(folder / 'evil.pt', weights_only=False)
    assert (folder / 'marker').is_dir()  # it would have
    (folder / 'marker').rmdir()


@pytest.mark.parametrize('name', ['namespace.pt', 'numpy scalar.pt', 'path.pt', 'old namespace.pt', 'arrays.npz'])
def test_the_line_that_is_given_works(name, no_checkpoints):
    folder, _ = no_checkpoints
    with pytest.raises(UnusableModel) as e:
        weights._check_arrays(folder / name) if name.endswith('.npz') else read_weights(folder / name)
    code = re.search(r'python -c "(.*?)"(;|$)', str(e.value))[1]
    exec(code, {})
    found = read_weights(folder / f'{Path(name).stem}-weights.pt')
    state = toy().state_dict()
    assert all(torch.equal(v, state[k]) for k, v in found.items()) and len(found) == (
        3 if name == 'arrays.npz' else len(state)
    )


@pytest.mark.filterwarnings('ignore')
def test_the_lines_for_programs_work(tmp_path):
    model = torch.nn.Linear(2, 2)
    torch.jit.save(torch.jit.script(model), tmp_path / 'script.pt')
    torch.save(model, tmp_path / 'module.pt')
    for name in ('script', 'module'):
        with pytest.raises(UnusableModel) as e:
            read_weights(tmp_path / f'{name}.pt')
        exec(re.search(r'python -c "(.*?)";', str(e.value))[1], {})
        found = read_weights(tmp_path / f'{name}-weights.pt')
        assert torch.equal(found['weight'], model.weight)


def test_a_pipe_is_no_checkpoint(tmp_path):
    os.mkfifo(tmp_path / 'pipe.pt')
    with pytest.raises(ValueError, match='a pipe'):
        read_weights(tmp_path / 'pipe.pt')


def test_a_folder_of_weights(tmp_path, pictures):
    model = write_folder(tmp_path / 'm', file='open_clip_pytorch_model.bin')
    (tmp_path / 'm' / 'open_clip_pytorch_model.bin').rename(tmp_path / 'm' / 'epoch_9.pt')
    assert 'no weights' in refused(*zeroshot(pictures, tmp_path / 'R', '-m', model))
    for name, seed in (('a.pth', 1), ('b.pth', 2)):
        torch.save(toy(seed).state_dict(), tmp_path / 'm' / name)
    with noting() as notes:
        net = load_clip(model, device='cpu').model
    assert len(notes) == 1 and 'a.pth was taken' in notes[0]
    assert torch.equal(net.ln_final.weight, toy(1).ln_final.weight)


# --- what a checkpoint does not tell


def publish(**tags):
    "Weights that open_clip says are published"
    pretrained._PRETRAINED['toy'] = pretrained._PRETRAINED['toy-quickgelu'] = {
        k: dict(hf_hub='none/none/', mean=(0.4,) * 3, std=(0.3,) * 3, interpolation='bicubic', resize_mode='shortest')
        | v
        for k, v in tags.items()
    }


def n_quick(model):
    return sum(isinstance(o, QuickGELU) for o in model.modules())


def test_the_activation_that_all_published_weights_have(known, pictures):
    publish(a=dict(quick_gelu=True), b=dict(quick_gelu=True))
    model = toy(quick_gelu=True)
    with noting() as notes:
        net, preprocess, tokenizer = load_clip('toy', str(known / 'toy.safetensors'), 'cpu')
    tokens = tokenizer(['a red.', 'a blue thing.'])
    assert notes == [] and n_quick(net) == n_quick(model) == 2
    with torch.no_grad():
        assert torch.allclose(encode_text(net, tokens), model.encode_text(tokens, normalize=True), atol=1e-6)
    assert net.visual.preprocess_cfg['mean'] == (0.4,) * 3
    found = call(*zeroshot(pictures, known / 'R', '-m', 'toy', '-p', known / 'toy.safetensors'))
    assert found.exit_code == 0 and 'QuickGELU' not in found.stderr
    assert call('export', known / 'R', known / 'X').exit_code == 0
    assert json.loads((known / 'X' / 'open_clip_config.json').read_text())['model_cfg']['quick_gelu'] is True


def test_where_published_weights_differ(known, pictures):
    publish(a=dict(quick_gelu=True), b=dict(mean=(0.5,) * 3, resize_mode='squash'), c={})
    found = call(*zeroshot(pictures, known / 'R', '-m', 'toy', '-p', known / 'toy.safetensors'))
    notes = [o for o in found.stderr.splitlines() if o.startswith('note: ')]
    assert found.exit_code == 0 and len(notes) == 2
    assert (
        sum(
            '1 of the 3 published weights use QuickGELU' in o and 'toy-quickgelu' in o and 'GELU was taken' in o
            for o in notes
        )
        == 1
    )
    assert (
        sum(
            'mean and resize_mode' in o
            and 'taken: mean (0.48' in o
            and 'resize_mode shortest' in o
            and 'std (' not in o
            for o in notes
        )
        == 1
    )
    net = load_clip('toy', str(known / 'toy.safetensors'), 'cpu').model
    assert n_quick(net) == 0 and net.visual.preprocess_cfg['std'] == (0.3,) * 3


def test_a_name_that_says_quickgelu(known):
    publish(a={}, b={})
    with noting() as notes:
        net = load_clip('toy-quickgelu', str(known / 'toy.safetensors'), 'cpu').model
    assert notes == [] and n_quick(net) == 2


def test_published_weights_have_their_own_activation(known, monkeypatch):
    publish(quick=dict(quick_gelu=True), plain={})
    monkeypatch.setattr(factory, 'download_pretrained', lambda *_, **__: str(known / 'toy.safetensors'))
    with noting() as notes:
        assert [n_quick(load_clip('toy', o, 'cpu').model) for o in ('quick', 'plain')] == [2, 0]
    assert notes == []


def test_a_file_with_the_name_of_published_weights(known, monkeypatch):
    publish(plain={})
    monkeypatch.chdir(known)
    (known / 'plain').write_text('not these')
    monkeypatch.setattr(factory, 'download_pretrained', lambda *_, **__: str(known / 'toy.safetensors'))
    assert torch.equal(load_clip('toy', 'plain', 'cpu').model.ln_final.weight, toy().ln_final.weight)


def test_all_architectures_of_open_clip(tmp_path):
    (tmp_path / 'x.pt').write_text('x')
    quick, noted = set(), {}
    for model in open_clip.list_models():
        if open_clip.list_pretrained_tags_by_model(model):
            with noting() as notes:
                if checkpoint_settings(model, tmp_path / 'x.pt')['force_quick_gelu']:
                    quick.add(model)
            noted |= {model: notes} if notes else {}
    assert {
        'RN50',
        'RN101',
        'RN50x4',
        'RN50x16',
        'RN50x64',
        'ViT-L-14-336',
        'ViT-H-14-378',
        'ViT-H-14-worldwide',
    } <= quick
    assert {'ViT-B-32', 'ViT-B-16', 'ViT-L-14', 'ViT-H-14'} <= set(noted) and not any(
        '-quickgelu' in o and any('GELU' in n for n in notes) for o, notes in noted.items()
    )
    assert all(f'{o}-quickgelu' in notes[-1] for o, notes in noted.items() if any('GELU' in n for n in notes)) and all(
        len(o) <= 2 for o in noted.values()
    )


# --- configurations that ask for code


EVIL = """import os
os.mkdir({marker!r})
from transformers import PreTrainedTokenizer, PretrainedConfig, PreTrainedModel
class Evil(PreTrainedTokenizer): pass
class EvilConfig(PretrainedConfig): model_type = "evil"
class EvilModel(PreTrainedModel): config_class = EvilConfig
"""


def plant(folder, marker, auto_map=True, **configs):
    "A folder with a tokenizer and a text tower of its own Python, each of which makes the marker"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'evil.py').write_text(EVIL.format(marker=str(marker)))
    (folder / 'tokenizer_config.json').write_text(
        json.dumps(
            dict(tokenizer_class='Evil') | (dict(auto_map=dict(AutoTokenizer=['evil.Evil', None])) if auto_map else {})
        )
    )
    (folder / 'config.json').write_text(
        json.dumps(
            dict(model_type='evil')
            | (dict(auto_map=dict(AutoConfig='evil.EvilConfig', AutoModel='evil.EvilModel')) if auto_map else {})
        )
    )
    return folder


def with_text(**more):
    return CONFIG | dict(text_cfg=CONFIG['text_cfg'] | more)


ASKING = {
    'kwargs': (with_text(hf_tokenizer_name='x', tokenizer_kwargs=dict(trust_remote_code=True)), {}),
    'a word': (with_text(hf_tokenizer_name='x', tokenizer_kwargs=dict(trust_remote_code='no')), {}),
    'text tower': (with_text(trust_remote_code=1), {}),
    'image tower': (
        CONFIG | dict(vision_cfg=CONFIG['vision_cfg'] | dict(timm_kwargs=dict(deep=[dict(trust_remote_code=True)]))),
        {},
    ),
    'deep': (CONFIG | dict(a=[[dict(b=dict(c=[dict(auto_map=dict(x='y.Z'))]))]]), {}),
    'tokenizer': (
        with_text(hf_tokenizer_name='x'),
        dict(tokenizer_config=dict(auto_map=dict(AutoTokenizer=['evil.Evil', None]))),
    ),
    'config': (CONFIG, dict(config=dict(auto_map=dict(AutoConfig='evil.EvilConfig')))),
    'processor': (CONFIG, dict(preprocessor_config=dict(auto_map=dict(AutoProcessor='evil.Evil')))),
    'processor too': (CONFIG, dict(processor_config=dict(trust_remote_code=True))),
    'kernel': (CONFIG, dict(config=dict(attn_implementation='somebody/kernel'))),
}


@pytest.mark.parametrize('kind', sorted(ASKING))
def test_a_folder_that_asks_for_code(kind, tmp_path, pictures):
    config, configs = ASKING[kind]
    plant(tmp_path / 'm', tmp_path / 'marker', auto_map=False)
    model = write_folder(tmp_path / 'm', model_cfg=config, **configs)
    if kind not in ('tokenizer', 'config', 'kernel'):
        (tmp_path / 'm' / 'tokenizer_config.json').unlink()
    said = refused(*zeroshot(pictures, tmp_path / 'R', '-m', model))
    assert 'asks for Python code' in said and str(tmp_path / 'm') in said
    assert not (tmp_path / 'marker').exists() and not (tmp_path / 'R').exists()


@pytest.mark.parametrize('key', ['hf_tokenizer_name', 'hf_model_name', 'timm_model_name'])
@pytest.mark.parametrize('seen_from', ['here', 'the model', 'the root'])
@pytest.mark.parametrize('model', ['folder', 'architecture'])
def test_code_in_another_folder(key, seen_from, model, known, tmp_path, pictures, monkeypatch):
    if model == 'architecture' and seen_from == 'the model':
        pytest.skip('an architecture lies nowhere')
    place = tmp_path / ('m' if seen_from == 'the model' else 'w') / 'elsewhere'
    plant(place, tmp_path / 'marker')
    monkeypatch.chdir(tmp_path / 'w' if seen_from == 'here' else '/')
    name = str(place) if seen_from == 'the root' else 'elsewhere'
    name = f'local-dir:{name}' if key == 'timm_model_name' else name
    part = 'vision_cfg' if key == 'timm_model_name' else 'text_cfg'
    config = CONFIG | {part: CONFIG[part] | {key: name}}
    if model == 'folder':
        named = ['-m', write_folder(tmp_path / 'm', model_cfg=config)]
    else:
        factory._MODEL_CONFIGS['toy'] = config
        named = ['-m', 'toy', '-p', known / 'toy.safetensors']
    said = refused(*zeroshot(pictures, tmp_path / 'R', *named))
    assert 'asks for Python code' in said and 'elsewhere' in said and not (tmp_path / 'marker').exists()


@needs_transformers
@pytest.mark.parametrize('kind', ['tokenizer', 'tokenizer without a word', 'text tower', 'architecture'])
def test_code_does_not_run_even_if_nobody_looks(kind, known, tmp_path, monkeypatch):
    from transformers import AutoTokenizer, dynamic_module_utils

    asked = []
    monkeypatch.setattr('builtins.input', lambda *_: asked.append(1) or 'y')
    monkeypatch.setattr(dynamic_module_utils, 'HF_MODULES_CACHE', str(tmp_path / 'modules'))
    monkeypatch.setattr('reclip.clip.check_configs', lambda model: None)
    folder = plant(tmp_path / 'm', tmp_path / 'marker')
    allowed = dict(tokenizer_kwargs=dict(trust_remote_code=True)) if kind == 'tokenizer' else {}
    config = (
        with_text(hf_tokenizer_name=str(folder), **allowed)
        if kind != 'text tower'
        else with_text(hf_model_name=str(folder), hf_proj_type='linear')
    )
    model = write_folder(folder, model_cfg=config)
    if kind == 'architecture':
        factory._MODEL_CONFIGS['toy'] = with_text(
            hf_tokenizer_name=str(folder), tokenizer_kwargs=dict(trust_remote_code=True)
        )
        model = 'toy'
    with pytest.raises(ValueError) as e:
        load_clip(model, str(known / 'toy.safetensors'), 'cpu')
    assert '\n' not in str(e.value) and not (tmp_path / 'marker').exists() and not asked
    try:
        AutoTokenizer.from_pretrained(str(folder), trust_remote_code=True)  # outside, transformers is what it was
    except Exception:
        pass
    assert (tmp_path / 'marker').is_dir()  # it would have


@needs_transformers
def test_transformers_whose_doors_are_not_known(monkeypatch, tmp_path):
    from transformers import dynamic_module_utils

    for name in trust._DOORS['transformers.dynamic_module_utils']:
        monkeypatch.delattr(dynamic_module_utils, name)
    with pytest.raises(ValueError, match='this version of transformers is not known'):
        load_clip(write_folder(tmp_path / 'm'), device='cpu')


@needs_transformers
def test_transformers_without_kernels(monkeypatch, tmp_path):
    monkeypatch.setitem(trust._DOORS, 'transformers.integrations.hub_kernels', ('no such function',))
    monkeypatch.setitem(trust._DOORS, 'transformers.no_such_module', ('x',))
    assert load_clip(write_folder(tmp_path / 'm'), device='cpu').model.ln_final.weight.shape == (32,)


def test_what_a_guard_changes_comes_back(monkeypatch):
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    monkeypatch.delenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', raising=False)
    before, environment = factory.load_state_dict, dict(os.environ)
    with pytest.raises(ZeroDivisionError), no_code_of_others():
        with no_code_of_others():
            assert (
                factory.load_state_dict is read_weights
                and os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD'] == '1'
                and 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD' not in os.environ
            )
        assert factory.load_state_dict is read_weights
        1 / 0
    assert factory.load_state_dict is before and dict(os.environ) == environment


@pytest.mark.parametrize(
    'config',
    [
        dict(auto_map={}),
        dict(auto_map=None),
        dict(trust_remote_code=False),
        dict(trust_remote_code=None),
        dict(a=[dict(auto_map={})]),
        dict(attn_implementation='sdpa'),
        3,
        None,
        [],
    ],
)
def test_what_asks_for_nothing(config):
    check_config(config, 'x')


@pytest.mark.parametrize(
    'content, word',
    [
        ('{"auto_map": ', 'not valid JSON'),
        ('[' * 100_000, 'nested too deep'),
        ('{"auto_map": {}, "auto_map": {"x": "evil.Evil"}}', '2 times'),
    ],
)
def test_a_configuration_that_cannot_be_read(content, word, tmp_path, pictures):
    model = write_folder(tmp_path / 'm')
    (tmp_path / 'm' / 'tokenizer_config.json').write_text(content)
    assert word in refused(*zeroshot(pictures, tmp_path / 'R', '-m', model))


def test_nested_as_deep_as_json_may_be(tmp_path):
    value = dict(trust_remote_code=True)
    for _ in range(50_000):
        value = [value]
    with pytest.raises(UnusableModel):
        check_config(value, 'x')


def hub_child(folder, marker):
    "What a process with nothing but an address of a hub is told"
    said = {}
    for name in ('clean', 'asks', 'tokenizer', 'tower', 'timm', 'pickled', 'result'):
        try:
            if name == 'result':
                ReCLIP.load(Path(folder) / 'RUN')
            else:
                load_clip(f'hf-hub:toy/{name}', device='cpu')
            said[name] = 'loaded'
        except (ValueError, OSError) as e:
            said[name] = f'{type(e).__name__}: {e}'
    said['named'] = trust.model_of_run('RUN', ('hf-hub:toy/clean', None))[0]
    Path(folder, 'said.json').write_text(json.dumps(said))


@needs_transformers
def test_models_of_the_hub(tmp_path):
    root, marker = tmp_path / 'hub', tmp_path / 'marker'
    write_folder(root / 'toy' / 'clean')
    (root / 'toy' / 'clean' / 'config.json').write_text('{"auto_map": {"AutoModel": "evil.Evil"}}')  # nobody reads it
    write_folder(
        root / 'toy' / 'asks',
        model_cfg=with_text(hf_tokenizer_name='toy/words', tokenizer_kwargs=dict(trust_remote_code=True)),
    )
    write_folder(root / 'toy' / 'tokenizer', model_cfg=with_text(hf_tokenizer_name='toy/words'))
    write_folder(root / 'toy' / 'tower', model_cfg=with_text(hf_model_name='toy/words', hf_proj_type='linear'))
    write_folder(
        root / 'toy' / 'timm',
        model_cfg=CONFIG | dict(vision_cfg=CONFIG['vision_cfg'] | dict(timm_model_name='hf-hub:toy/words')),
    )
    plant(root / 'toy' / 'words', marker)
    write_folder(root / 'toy' / 'pickled')
    (root / 'toy' / 'pickled' / 'open_clip_model.safetensors').unlink()
    torch.save(dict(state_dict=Makes(marker)), root / 'toy' / 'pickled' / 'open_clip_pytorch_model.bin')
    ReCLIP.from_model(toy(), None, open_clip.SimpleTokenizer(context_length=16), NAMES).fit_features(
        torch.randn(8, 32), propagate=False
    ).save(tmp_path / 'RUN')
    config = json.loads((tmp_path / 'RUN' / 'config.json').read_text())
    config['settings'] |= dict(model='hf-hub:toy/asks')
    (tmp_path / 'RUN' / 'config.json').write_text(json.dumps(config))
    with hub(root) as (address, seen):
        env = {
            k: v
            for k, v in os.environ.items()
            if not k.lower().startswith(('hf_', 'huggingface', 'transformers_')) and not k.lower().endswith('_proxy')
        }
        env |= dict(
            HF_ENDPOINT=address,
            HF_HOME=str(tmp_path / 'home'),
            HF_HUB_DISABLE_TELEMETRY='1',
            OMP_NUM_THREADS='1',
            RECLIP_CACHE=str(tmp_path / 'cache'),
        )
        code = f'from reclip.tests import test_weights; test_weights.hub_child({str(tmp_path)!r}, {str(marker)!r})'
        done = subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads((tmp_path / 'said.json').read_text())
    assert said.pop('clean') == 'loaded' and said.pop('named') == 'hf-hub:toy/clean'  # named once, known by its name
    for name in ('asks', 'tokenizer', 'tower', 'timm'):
        assert 'UnusableModel' in said[name] and 'asks for Python code' in said[name] and 'hf-hub:toy/' in said[name], (
            said
        )
    assert (
        'when it is opened' in said['pickled']
        and "--model hf-hub:toy/asks" in said['result']
        and '\n' not in ''.join(said.values())
    )
    assert not marker.exists() and not any(path.endswith('evil.py') for _, path, _ in seen)


# --- the model of a result


def test_a_model_that_was_named_is_known(own_cache, tmp_path, pictures, monkeypatch):
    model = write_folder(tmp_path / 'm')
    monkeypatch.chdir(tmp_path)
    assert call(*zeroshot(pictures, 'RUN', '-m', 'local-dir:m', '-q', '--no-cache')).exit_code == 0
    monkeypatch.chdir(pictures)  # a result finds its model from any folder
    assert json.loads((tmp_path / 'RUN' / 'config.json').read_text())['settings']['model'] == model
    for i, (before, args) in enumerate(
        [(None, []), (None, ['--no-cache']), ('clear', []), ('moved', ['--model', f'local-dir:{tmp_path / "n"}'])]
    ):
        if before == 'clear':
            assert call('cache', '--clear').exit_code == 0
        if before == 'moved':
            (tmp_path / 'm').rename(tmp_path / 'n')
            assert '--model' in refused('predict', tmp_path / 'RUN', pictures, '-o', tmp_path / 'gone.csv')
        found = call('predict', tmp_path / 'RUN', pictures, '-o', tmp_path / f'{i}.csv', *args)
        assert found.exit_code == 0, found.output
        assert (
            run.read_table(tmp_path / f'{i}.csv', dict(label=str)).label.tolist()
            == run.read_predictions(tmp_path / 'RUN').label.tolist()
        )
    assert call('export', tmp_path / 'RUN', tmp_path / 'X', '-m', f'local-dir:{tmp_path / "n"}').exit_code == 0
    assert (tmp_path / 'X' / 'open_clip_model.safetensors').is_file()
    assert call('info', tmp_path / 'RUN').exit_code == 0


@pytest.mark.parametrize('kind', ['folder', 'checkpoint'])
@pytest.mark.parametrize('change', ['another machine', 'weights', 'one more file', 'config'])
def test_a_model_is_not_taken_from_a_result_unseen(kind, change, own_cache, known, tmp_path, pictures, monkeypatch):
    if kind == 'checkpoint' and change in ('one more file', 'config'):
        pytest.skip('a checkpoint is one file')
    model = write_folder(tmp_path / 'a model')
    named = ['-m', model] if kind == 'folder' else ['-m', 'toy', '-p', known / 'toy.safetensors']
    assert call(*zeroshot(pictures, tmp_path / 'RUN', *named, '-q')).exit_code == 0
    if change == 'another machine':
        monkeypatch.setenv('RECLIP_CACHE', str(tmp_path / 'other'))
    elif change == 'weights':
        file = tmp_path / 'a model' / 'open_clip_model.safetensors' if kind == 'folder' else known / 'toy.safetensors'
        state = load_file(file)
        save_file(state | {'positional_embedding': state['positional_embedding'] + 1}, file)
    else:
        (tmp_path / 'a model' / ('open_clip_config.json' if change == 'config' else 'x.json')).write_text(
            json.dumps(dict(model_cfg=CONFIG, preprocess_cfg={}, x=1))
        )

    def never(*_):
        raise AssertionError('it was loaded')

    with monkeypatch.context() as patch:
        patch.setattr('reclip.adapt.load_clip', never)
        option = ['--model', model] if kind == 'folder' else ['--pretrained', str(known / 'toy.safetensors')]
        for args in (
            ['predict', tmp_path / 'RUN', pictures, '-o', tmp_path / 'p.csv'],
            ['export', tmp_path / 'RUN', tmp_path / 'X'],
        ):
            said = refused(*args)
            assert option[0] in said and option[1] in said and 'nobody has named' in said
        for read in (
            lambda: run.predict(tmp_path / 'RUN', pictures),
            lambda: run.export(tmp_path / 'RUN', tmp_path / 'X'),
            lambda: ReCLIP.load(tmp_path / 'RUN'),
        ):
            with pytest.raises(UnusableModel, match=option[0]):
                read()
        if kind == 'folder':
            assert f"--model 'local-dir:{tmp_path / 'a model'}'" in said  # as a shell reads it
    assert not (tmp_path / 'p.csv').exists() and not (tmp_path / 'X').exists()
    assert call('info', tmp_path / 'RUN').exit_code == 0  # what loads no model is as it was
    for args in (
        ['predict', tmp_path / 'RUN', pictures, '-o', tmp_path / 'p.csv'],
        ['export', tmp_path / 'RUN', tmp_path / 'X'],
    ):
        found = call(*args, *option)
        assert found.exit_code == 0, found.output
    assert call('predict', tmp_path / 'RUN', pictures, '-o', tmp_path / 'q.csv').exit_code == 0  # it has been named now


def test_a_named_model_must_be_the_one(own_cache, known, tmp_path, pictures):
    model = write_folder(tmp_path / 'm')
    assert call(*zeroshot(pictures, tmp_path / 'RUN', '-m', model, '-q')).exit_code == 0
    other = write_folder(tmp_path / 'other', toy(1))
    for args in (
        ['predict', tmp_path / 'RUN', pictures, '-o', tmp_path / 'p.csv'],
        ['export', tmp_path / 'RUN', tmp_path / 'X'],
    ):
        assert 'fitted on another model' in refused(*args, '--model', other)
        assert 'fitted on another model' in refused(*args, '--model', 'demo')
    save_file(toy(1).state_dict(), known / 'other.safetensors')
    with pytest.raises(ValueError, match='another model'):
        ReCLIP.load(tmp_path / 'RUN', 'toy', pretrained=str(known / 'other.safetensors'))
    same = ReCLIP.load(
        tmp_path / 'RUN', 'toy', pretrained=str(known / 'toy.safetensors')
    )  # the same weights under another name
    assert torch.equal(same.text_features_, ReCLIP.load(tmp_path / 'RUN').text_features_)
    assert torch.equal(
        run.predict(tmp_path / 'RUN', pictures, model=model, progress=False)[1],
        run.predict(tmp_path / 'RUN', pictures, progress=False)[1],
    )
    assert ReCLIP.load(
        tmp_path / 'RUN', toy(), tokenizer=open_clip.SimpleTokenizer(context_length=16)
    ).centroids_.shape == (4, 32)


def test_the_store_cannot_be_written(tmp_path, pictures, monkeypatch, caplog):
    (tmp_path / 'file').write_text('')
    monkeypatch.setenv('RECLIP_CACHE', str(tmp_path / 'file'))
    model = write_folder(tmp_path / 'm')
    found = call(*zeroshot(pictures, tmp_path / 'RUN', '-m', model))
    assert found.exit_code == 0 and 'cannot be written down' in found.stderr
    assert '--model' in refused('predict', tmp_path / 'RUN', pictures, '-o', tmp_path / 'p.csv')
    assert call('predict', tmp_path / 'RUN', pictures, '-o', tmp_path / 'p.csv', '--model', model).exit_code == 0


def test_a_digest_is_of_all_files(tmp_path):
    model = write_folder(tmp_path / 'm')
    (tmp_path / 'm' / 'inner').mkdir()
    seen = [model_digest(model)]
    for name, content in (('inner/.hidden', 'x'), ('inner/.hidden', 'y'), ('z', '')):
        (tmp_path / 'm' / name).write_text(content)
        seen.append(model_digest(model))
    (tmp_path / 'm' / 'z').rename(tmp_path / 'm' / 'zz')
    seen.append(model_digest(model))
    os.mkfifo(tmp_path / 'm' / 'pipe')
    (tmp_path / 'm' / 'inner' / 'loop').symlink_to(tmp_path / 'm')
    seen.append(model_digest(model))
    assert len(set(seen)) == len(seen)
    shutil.copytree(tmp_path / 'm' / 'inner', tmp_path / 'a', symlinks=True)
    assert (
        model_digest('demo') is None
        and model_digest('ViT-B-32', 'openai') is None
        and model_digest('hf-hub:a/b') != model_digest('hf-hub:a/c')
    )


# --- prompts that are cut


def word_tokenizer(folder, right=True):
    "A tokenizer of whole words, as of the hub"
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = {w: i for i, w in enumerate(['<unk>', '</s>', '<s>', '<cls>', '<pad>', 'a', 'word', 'thing'])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token='<unk>'))
    tokenizer.pre_tokenizer, tokenizer.post_processor = (
        pre_tokenizers.Whitespace(),
        processors.TemplateProcessing(single='$A </s>', special_tokens=[('</s>', 1)]),
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token='<unk>',
        eos_token='</s>',
        bos_token='<s>',
        cls_token='<cls>',
        pad_token='<pad>',
        sep_token='</s>',
        padding_side='right' if right else 'left',
    )
    fast.save_pretrained(folder)
    return str(folder)


def tokenizers(kind, folder):
    "A tokenizer with room for 16 tokens, and how many words fit"
    if kind == 'simple':
        return open_clip.SimpleTokenizer(context_length=16), 14
    if kind == 'demo':
        return demo.demo_clip()[2], 75
    if kind == 'reduced':
        return open_clip.SimpleTokenizer(context_length=16, reduction_mask='simple'), 14
    if not has_transformers:
        pytest.skip('transformers is not installed')
    name = word_tokenizer(folder, kind != 'left')
    if kind == 'siglip':
        from transformers import AutoTokenizer

        found = open_clip.tokenizer.SigLipTokenizer.__new__(open_clip.tokenizer.SigLipTokenizer)
        found.tokenizer, found.context_length = AutoTokenizer.from_pretrained(name), 16
        return found, 15
    more = dict(
        clips=dict(tokenizer_mode='clips'), clean=dict(clean='canonicalize'), stripped=dict(strip_sep_token=True)
    ).get(kind, {})
    return open_clip.tokenizer.HFTokenizer(name, context_length=16, **more), 13 if kind == 'clips' else 15


@pytest.mark.parametrize('kind', ['simple', 'demo', 'reduced', 'words', 'left', 'clips', 'clean', 'stripped', 'siglip'])
def test_prompts_that_are_cut(kind, tmp_path):
    tokenizer, most = tokenizers(kind, tmp_path)
    full = ' '.join(['word'] * most)
    long = ' '.join(['word'] * (most + 1))
    short = 'a thing'
    with noting() as notes:
        prompt_tokens(tokenizer, [short, full, short])
    assert notes == []
    with noting() as notes:
        found = prompt_tokens(tokenizer, [short, long, full, f'{long} {long} {long}', short])
    assert (
        len(notes) == 1
        and notes[0].startswith(f'2 of 5 prompts are longer than the {found.shape[1]} tokens')
        and 'word word' in notes[0]
        and len(notes[0]) < 300
    )
    assert torch.equal(found[[0, 2]], tokenizer([short, full]))


def test_tokenizers_of_somebodys_own():
    with noting() as notes:
        assert prompt_tokens(lambda texts: torch.ones(len(texts), 5, dtype=torch.long), ['a', 'b']).shape == (2, 5)
    assert notes == []


@pytest.mark.parametrize('what', ['names', 'descriptions', 'templates'])
def test_cut_prompts_are_noted_once_in_a_run(what, tmp_path, pictures):
    long = ' '.join(['word'] * 90)
    classes = tmp_path / 'c.json'
    classes.write_text(
        json.dumps(
            {f'zero {long if what == "names" else ""}': [f'one {long}'] if what == 'descriptions' else [], 'seven': []}
        )
    )
    args = [
        pictures,
        '-c',
        classes,
        '-m',
        'demo',
        *(['-t', f'two {long} {{}}', '-t', 'a {}'] if what == 'templates' else []),
    ]
    n = dict(names='1 of 2', descriptions='1 of 3', templates='2 of 4')[what]
    for command, more in (('adapt', ['--epochs', 1, '--recipe', 'official']), ('zeroshot', [])):
        found = call(command, *args, '-o', tmp_path / command, *more)
        notes = [o for o in found.stderr.splitlines() if 'prompts are longer' in o]
        assert (
            found.exit_code == 0
            and len(notes) == 1
            and notes[0].startswith(f'note: {n} prompts are longer than the 77 tokens')
        ), found.output
        found = call('predict', tmp_path / command, pictures, '-o', tmp_path / f'{command}.csv')
        assert found.exit_code == 0 and [o for o in found.stderr.splitlines() if 'prompts are longer' in o] == notes, (
            found.output
        )


def test_cut_prompts_in_python(digits, caplog):
    names = [' '.join(['word'] * 90), 'seven']
    text_classifier(load_clip('demo'), names)
    assert sum('1 of 2 prompts' in o for o in caplog.messages) == 1
    caplog.clear()
    ReCLIP('demo', class_names=names, epochs=1).fit(digits[0][:40])
    assert sum('1 of 2 prompts' in o for o in caplog.messages) == 1 and not any(
        '1 of 1 prompts' in o for o in caplog.messages
    )


# --- rows that are very long or very short


@pytest.mark.parametrize('scale', [1e-43, 1e-30, 1e-20, 1e19, 1e30, 1e37])
def test_rows_of_any_length(scale):
    x = torch.randn(50, 64, generator=torch.Generator().manual_seed(0))
    mixed, expected = torch.cat([x * scale, x]), unit_rows(x)
    found = unit_rows(mixed)
    assert torch.equal(found[50:], expected)  # ordinary rows do not change by a bit
    direct = (x * scale).double()
    assert torch.allclose(found[:50].double(), direct / direct.norm(dim=1, keepdim=True), atol=2e-7)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_ordinary_rows_are_what_they_were(dtype):
    x = torch.randn(500, 512, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    wide = x if dtype == torch.float64 else x.float()
    assert torch.equal(unit_rows(x), wide / wide.norm(dim=1, keepdim=True))


def test_long_rows_of_float64_and_zero_rows():
    assert torch.allclose(
        unit_rows(torch.tensor([[3e300, 4e300], [3e-310, 4e-310]], dtype=torch.float64)),
        torch.tensor([[0.6, 0.8]], dtype=torch.float64),
    )
    with pytest.raises(ValueError, match='row 1 is all zeros'):
        unit_rows(torch.tensor([[1e30, 1e30], [0, 0]]))


@pytest.mark.filterwarnings('ignore')
def test_features_that_overflow_give_the_same_labels(tmp_path, features):
    rows = features[0].cpu().numpy()
    for name, scale in dict(A=1, B=1e30).items():
        np.save(tmp_path / f'{name}.npy', rows * np.float32(scale))
        found = call(
            'zeroshot', tmp_path / f'{name}.npy', '-c', ','.join(demo.class_names), '-m', 'demo', '-o', tmp_path / name
        )
        assert found.exit_code == 0, found.output
    a, b = (run.read_predictions(tmp_path / o) for o in 'AB')
    assert a.label.equals(b.label) and np.abs(a.confidence - b.confidence).max() < 1e-3


# --- code planted in every file that a result or a model may hold


def payloads(marker):
    "What runs if somebody unpickles, loads or imports it"

    def torch_file(**more):
        file = BytesIO()
        torch.save(dict(state_dict=Makes(marker)), file, **more)
        return file.getvalue()

    code = f'import os; os.mkdir({str(marker)!r})\n'.encode()
    arrays = BytesIO()
    np.save(arrays, np.array([Makes(marker)], dtype=object), allow_pickle=True)
    return dict(
        pickle=pickle.dumps(Makes(marker), 2),
        torch=torch_file(),
        old_torch=torch_file(_use_new_zipfile_serialization=False),
        python=code,
        array=arrays.getvalue(),
    )


def test_what_is_planted_would_run(tmp_path):
    ways = dict(
        pickle=pickle.loads,
        torch=lambda o: torch.load(BytesIO(o), weights_only=False),
        old_torch=lambda o: torch.load(BytesIO(o), weights_only=False),
        python=lambda o: exec(o.decode(), {}),
        array=lambda o: np.load(BytesIO(o), allow_pickle=True),
    )
    for kind, content in payloads(tmp_path / 'marker').items():
        ways[kind](content)
        (tmp_path / 'marker').rmdir()  # fails unless it has run


def quietly(*args):
    "A command that may fail, but only with a sentence"
    found = call(*args)
    assert (
        found.exit_code in (0, 2)
        and 'Traceback' not in found.output
        and (found.exception is None or isinstance(found.exception, SystemExit))
    ), (args, found.output, found.exception)
    return found.exit_code


@pytest.fixture(scope='module')
def results(tmp_path_factory, pictures):
    "`(finished, unfinished, words)`: a run, and the folder of one that was stopped at its end"
    folder, words = tmp_path_factory.mktemp('results'), ['-c', ','.join(demo.class_names), '-m', 'demo']
    settings = dict(classes=','.join(demo.class_names), model='demo', epochs=1, progress=False)

    def stop(*_, **__):
        raise OSError('no space left')

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, 'write_results', stop)
        with pytest.raises(OSError):
            run.adapt(pictures, output=folder / 'stopped', **settings)
    run.adapt(pictures, output=folder / 'RUN', **settings)
    return folder / 'RUN', folder / 'stopped.partial', words


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('kind', ['pickle', 'torch', 'python', 'array'])
def test_code_in_any_file_of_a_result(kind, results, pictures, tmp_path, monkeypatch):
    finished, _, words = results
    content = payloads(tmp_path / 'marker')[kind]
    marker = tmp_path / 'marker'
    codes = set()
    monkeypatch.setattr('reclip.report.parts_for', lambda d: [])  # what is read before is all that is read
    names = sorted(o.name for o in finished.iterdir())
    assert {
        'adapted.safetensors',
        'config.json',
        'features.safetensors',
        'history.csv',
        'predictions.csv',
        'skipped.csv',
    } <= set(names)
    for name in names if kind in ('pickle', 'python') else [o for o in names if o.endswith('.safetensors')]:
        folder = shutil.copytree(finished, tmp_path / name / 'RUN')
        (folder / name).write_bytes(content)
        here = folder.parent
        codes |= {
            quietly('predict', folder, pictures, '-o', here / 'p.csv'),
            quietly('export', folder, here / 'X'),
            quietly('info', folder),
            quietly('report', folder),
            quietly('adapt', pictures, *words, '-o', folder, '--epochs', 1, '--resume'),
        }
        assert not marker.exists(), name
    assert codes == {0, 2}  # some of it was read, and some was refused


@pytest.mark.parametrize('kind', ['pickle', 'torch', 'python'])
def test_code_in_any_file_of_an_unfinished_run(kind, results, pictures, tmp_path):
    _, unfinished, words = results
    names = sorted(o.name for o in unfinished.iterdir())
    assert {'begun.json', 'frozen.safetensors', 'checkpoint.safetensors'} <= set(names)
    for name in (None, *names):
        here = tmp_path / str(name)
        shutil.copytree(unfinished, here / 'R.partial')
        if name:
            (here / 'R.partial' / name).write_bytes(payloads(tmp_path / 'marker')[kind])
        code = quietly('adapt', pictures, *words, '-o', here / 'R', '--epochs', 1, '--resume')
        assert code == (2 if name else 0)
        assert not (tmp_path / 'marker').exists(), name


MODULES = (
    'sitecustomize',
    'usercustomize',
    'reclip',
    'torch',
    'numpy',
    'json',
    'ipykernel_launcher',
    'open_clip',
    'sentencepiece',
    'conftest',
    'evil',
    '__init__',
    'setup',
    'tokenization_evil',
    'modeling_evil',
)


def test_code_beside_the_files_of_a_result(results, pictures, tmp_path, monkeypatch):
    folder, marker = shutil.copytree(results[0], tmp_path / 'RUN'), tmp_path / 'marker'
    code, config = payloads(marker)['python'].decode(), json.loads((folder / 'config.json').read_text())
    for name in MODULES:
        (folder / f'{name}.py').write_text(code)
    cell = dict(
        cell_type='code', id='a', metadata=dict(tags=['parameters']), source=code, execution_count=None, outputs=[]
    )
    (folder / 'report.ipynb').write_text(json.dumps(dict(cells=[cell], metadata={}, nbformat=4, nbformat_minor=5)))
    for name in ('report.html', 'adapted.pt', 'model.pkl', 'ipython_config.py', '.partial'):
        (folder / name).write_text(code)
    inner = f"x'\"\n{code}{{{{ __import__('os').mkdir({str(marker)!r}) }}}}"
    config['settings']['templates'] = [f'{{}} {inner}'.replace('{{', '').replace('}}', '')]
    config['versions'] |= {inner: inner}
    config['run']['started'] = config['run']['machine']['system'] = inner
    (folder / 'config.json').write_text(json.dumps(config))
    monkeypatch.chdir(folder)
    assert quietly('report', folder, '-q') == quietly('info', '.') == 0
    quietly('predict', '.', pictures, '-o', tmp_path / 'p.csv')
    quietly('export', '.', tmp_path / 'X')
    assert not marker.exists() and (folder / 'report.html').read_text().startswith('<!doctype html>')


FILES = {
    'open_clip_config.json': 'jp',
    'config.json': 'jp',
    'tokenizer_config.json': 'jp',
    'tokenizer.json': 'jp',
    'special_tokens_map.json': 'jp',
    'added_tokens.json': 'jp',
    'vocab.json': 'jp',
    'preprocessor_config.json': 'jp',
    'generation_config.json': 'j',
    'adapter_config.json': 'j',
    'merges.txt': 'j',
    'vocab.txt': 'j',
    'spiece.model': 'jp',
    'tokenizer.model': 'jp',
    'chat_template.jinja': 'j',
    'vocab.pkl': 'p',
    'training_args.bin': 'pt',
    'optimizer.pt': 'pt',
    'model.ckpt': 'pt',
    'open_clip_pytorch_model.pth': 'pto',
    'open_clip_pytorch_model.bin': 'pto',
    'pytorch_model.bin': 'pt',
    'model.safetensors': 'pt',
    'open_clip_model.safetensors': 'pto',
    'weights.npz': 'a',
    'weights.npy': 'a',
} | {f'{o}.py': 'j' for o in MODULES}
LETTERS = dict(j='python', p='pickle', t='torch', o='old_torch', a='array')


@pytest.fixture(scope='module')
def plain_result(tmp_path_factory, pictures):
    "A result of a model in a folder, with a tokenizer of the hub's kind where transformers is installed"
    folder = tmp_path_factory.mktemp('plain')
    if has_transformers:
        word_tokenizer(folder / 'm')
    write_folder(folder / 'm', model_cfg=with_text(hf_tokenizer_name='x') if has_transformers else CONFIG)
    model = f'local-dir:{folder / "m"}'
    run.adapt(
        pictures, 'a,word,thing', folder / 'RUN', model, templates=['{}', 'a {}'], method='zeroshot', progress=False
    )
    return folder


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('name', sorted(FILES))
def test_code_in_any_file_of_a_model(name, plain_result, pictures, tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    for letter in FILES[name]:
        here = tmp_path / letter
        folder = shutil.copytree(plain_result / 'm', here / 'm')
        if name.startswith(('open_clip_pytorch_model', 'pytorch_model', 'model.')):
            (folder / 'open_clip_model.safetensors').unlink()  # so that these would be taken
        (folder / name).write_bytes(payloads(tmp_path / 'marker')[LETTERS[letter]])
        codes = [
            quietly(
                'zeroshot',
                pictures,
                '-c',
                'a,word,thing',
                '-t',
                '{}',
                '-t',
                'a {}',
                '-m',
                f'local-dir:{folder}',
                '-o',
                here / 'R',
            ),
            quietly('predict', plain_result / 'RUN', pictures, '-o', here / 'p.csv', '--model', f'local-dir:{folder}'),
            quietly('export', plain_result / 'RUN', here / 'X', '--model', f'local-dir:{folder}'),
        ]
        assert not (tmp_path / 'marker').exists() and len(set(codes)) == 1
        if name.endswith('.py'):
            assert codes[0] == 0  # it lies there, and nobody reads it
        if 'model.' in name and name.endswith(('.safetensors', '.bin', '.pth')):
            assert codes[0] == 2
