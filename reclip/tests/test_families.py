"Every family of open_clip at toy size, through the real loading code: from files, from a folder and from a hub"

import copy
import json
import os
import pickle
import re
import subprocess
import sys
from collections import OrderedDict
from importlib.util import find_spec
from pathlib import Path
import numpy as np
import open_clip
import pytest
import torch
from open_clip import factory
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.models import convnext, eva, register_model, vision_transformer
from torch import nn
from reclip import ReCLIP, encode_images, load_clip
from reclip.clip import encode_text
from reclip.tests.hub_server import hub

names, prompts = ['red', 'green', 'blue', 'grey'], ['a photo of a red.', 'a photo of a grey thing.']
half, openai = (0.5,) * 3, (0.48145466, 0.4578275, 0.40821073)


@register_model
def toy_convnext(pretrained=False, **kwargs):
    "timm's ConvNeXt, as in open_clip's convnext_base, with less of everything"
    return convnext.convnext_base(depths=(1, 1, 1, 1), dims=(16, 16, 24, 32), **kwargs)


@register_model
def toy_siglip(pretrained=False, **kwargs):
    "timm's vision tower of SigLIP with less of everything"
    return vision_transformer.vit_base_patch16_siglip_224(img_size=32, embed_dim=64, depth=2, num_heads=2, **kwargs)


@register_model
def toy_eva02(pretrained=False, **kwargs):
    "timm's vision tower of EVA02-CLIP with less of everything"
    return eva.eva02_base_patch16_clip_224(img_size=32, embed_dim=64, depth=2, num_heads=2, **kwargs)


def tower(name, pool, proj, size=32):
    return dict(image_size=size, timm_model_name=name, timm_model_pretrained=False, timm_pool=pool, timm_proj=proj)


vision, text = (
    dict(image_size=32, patch_size=8, layers=1, width=64),
    dict(context_length=16, vocab_size=49408, width=32, heads=2, layers=1),
)
siglip_text = dict(
    context_length=16,
    vocab_size=32,
    hf_tokenizer_name='toy/siglip',
    tokenizer_kwargs=dict(clean='canonicalize'),
    width=64,
    heads=2,
    layers=1,
    no_causal_mask=True,
    proj_bias=True,
    pool_type='last',
    norm_kwargs=dict(eps=1e-6),
)
configs = {
    'toy-vit': dict(embed_dim=32, vision_cfg=vision, text_cfg=text),
    'toy-resnet': dict(embed_dim=32, vision_cfg=vision | dict(layers=[1, 1, 1, 1], width=8), text_cfg=text),
    'toy-convnext': dict(
        embed_dim=32,
        vision_cfg=tower('toy_convnext', '', 'linear', 64) | dict(timm_drop=0.0, timm_drop_path=0.1),
        text_cfg=text,
    ),
    'toy-siglip': dict(
        embed_dim=64,
        init_logit_bias=-10,
        custom_text=True,
        vision_cfg=tower('toy_siglip', 'map', 'none'),
        text_cfg=siglip_text,
    ),
    'toy-eva02': dict(embed_dim=32, custom_text=True, vision_cfg=tower('toy_eva02', 'token', None), text_cfg=text),
    'toy-coca': dict(
        embed_dim=32,
        custom_text=True,
        vision_cfg=vision | dict(attentional_pool=True, attn_pooler_queries=4, attn_pooler_heads=2, output_tokens=True),
        text_cfg=text | dict(embed_cls=True, output_tokens=True),
        multimodal_cfg=dict(context_length=16, vocab_size=49408, width=32, heads=2, layers=1, attn_pooler_heads=2),
    ),
}
kinds = sorted(configs)


@torch.no_grad()
def random_model(name):
    "open_clip's own class with random weights that tell images and words apart"
    cfg = copy.deepcopy(configs[name])
    custom = cfg.pop('custom_text', False)
    kind = open_clip.CoCa if 'multimodal_cfg' in cfg else open_clip.CustomTextCLIP if custom else open_clip.CLIP
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(**cfg)
    for key, value in model.state_dict().items():
        if key.endswith('token_embedding.weight'):
            value.mul_(50)
        if key.startswith('visual.') and key.endswith(('positional_embedding', 'class_embedding')):
            value.zero_()
        if key.endswith('bn3.weight'):
            value.fill_(1)
        if key == 'text_decoder.text_projection':
            value.zero_()  # open_clip leaves it as the memory was
    if name == 'toy-resnet':
        for o in model.modules():
            if isinstance(o, nn.BatchNorm2d):
                o.momentum = 1.0
        pixels = torch.stack([open_clip.image_transform(32, is_train=False)(o) for o in noisy_images()])
        model.train().encode_image(pixels)  # running statistics of images like ours
        model.visual.attnpool.c_proj.bias.sub_(model.eval().encode_image(pixels).mean(0))
    return model.eval()


def write_tokenizer(folder):
    "A tokenizer of whole words in the hub's files"
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ['<unk>', '</s>', 'a', 'photo', 'of', 'thing', *names]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token='<unk>'))
    tokenizer.pre_tokenizer, tokenizer.post_processor = (
        pre_tokenizers.Whitespace(),
        processors.TemplateProcessing(single='$A </s>', special_tokens=[('</s>', 1)]),
    )
    tokenizer.save(str(folder / 'tokenizer.json'))
    (folder / 'tokenizer_config.json').write_text(
        json.dumps(
            dict(
                tokenizer_class='PreTrainedTokenizerFast',
                model_max_length=16,
                pad_token='</s>',
                eos_token='</s>',
                unk_token='<unk>',
            )
        )
    )


def write_repo(folder, name, weights=True, **preprocess):
    "A model as open_clip pushes it to the hub"
    folder.mkdir(parents=True)
    (folder / 'open_clip_config.json').write_text(json.dumps(dict(model_cfg=configs[name], preprocess_cfg=preprocess)))
    if weights:
        save_file(random_model(name).state_dict(), folder / 'open_clip_model.safetensors')
    if name == 'toy-siglip':
        write_tokenizer(folder)


@pytest.fixture(scope='module')
def toys(tmp_path_factory):
    "Folder with a checkpoint of each family; the families are known to open_clip while these tests run"
    root = tmp_path_factory.mktemp('toys')
    for folder in ('configs', 'tokenizer'):
        (root / folder).mkdir()
    for name, cfg in configs.items():
        if name == 'toy-siglip':
            cfg = cfg | dict(text_cfg=siglip_text | dict(hf_tokenizer_name=str(root / 'tokenizer')))
        (root / 'configs' / f'{name}.json').write_text(json.dumps(cfg))
        state = random_model(name).state_dict()
        save_file(state, root / f'{name}.safetensors')
        torch.save(state, root / f'{name}.pt')
    if has_tokenizers:
        write_tokenizer(root / 'tokenizer')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(factory, '_MODEL_CONFIGS', dict(factory._MODEL_CONFIGS))
        patch.setattr(factory, '_MODEL_CONFIG_PATHS', list(factory._MODEL_CONFIG_PATHS))
        open_clip.add_model_config(root / 'configs')
        yield root


@pytest.fixture(scope='module')
def images():
    return noisy_images()


def noisy_images(n=48):
    "Noise with a cast of one of four colours, larger than any toy model's input"
    rng, casts = (
        np.random.default_rng(0),
        128 + 40 * np.array([(1, -0.5, -0.5), (-0.5, 1, -0.5), (-0.5, -0.5, 1), (0, 0, 0)]),
    )
    noise = [casts[i % 4] + rng.normal(0, 60, (48, 72, 3)) + rng.normal(0, 30, 3) for i in range(n)]
    return [Image.fromarray(o.clip(0, 255).astype(np.uint8)) for o in noise]


has_tokenizers = all(find_spec(o) for o in ('transformers', 'tokenizers'))


def needs_transformers(name):
    if name == 'toy-siglip' and not has_tokenizers:
        pytest.skip('its tokenizer needs transformers')


def norm_names(model):
    "Parameters of every layer whose class calls itself a norm, by tower"
    found = [
        f'{prefix}.{name}'
        for prefix, module in model.named_modules()
        if 'norm' in type(module).__name__.lower()
        for name, _ in module.named_parameters(recurse=False)
    ]
    return [o for o in found if not o.startswith('visual.')], [o for o in found if o.startswith('visual.')]


@pytest.mark.parametrize('ending', ['safetensors', 'pt'])
@pytest.mark.parametrize('name', kinds)
def test_loads_a_checkpoint(name, ending, toys, images):
    needs_transformers(name)
    model, preprocess, tokenizer = load_clip(name, str(toys / f'{name}.{ending}'), 'cpu')
    original, size = random_model(name), configs[name]['vision_cfg']['image_size']
    assert not model.training and {k: v.shape for k, v in model.state_dict().items()} == {
        k: v.shape for k, v in original.state_dict().items()
    }
    assert all(torch.equal(v, original.state_dict()[k]) for k, v in model.state_dict().items())
    tokens, pixels = tokenizer(prompts), torch.stack([preprocess(o) for o in images[:4]])
    assert tokens.shape == (2, 16) and not torch.equal(*tokens) and pixels.shape == (4, 3, size, size)
    with torch.no_grad():
        texts, seen = original.encode_text(tokens, normalize=True), original.encode_image(pixels, normalize=True)
    assert torch.allclose(encode_text(model, tokens), texts, atol=1e-5) and torch.allclose(
        encode_images(model, images[:4], preprocess), seen, atol=1e-5
    )


@pytest.mark.parametrize('name', kinds)
def test_adapts_by_name(name, toys, images, tmp_path):
    needs_transformers(name)
    checkpoint = load_file(toys / f'{name}.safetensors')
    found = ReCLIP(name, str(toys / f'{name}.safetensors'), names, epochs=1, device='cpu').fit(images)
    model = found.loaded().model
    assert all(torch.equal(v, checkpoint[k]) for k, v in model.state_dict().items())
    assert found.history_[1]['steps'] == 1 and min(found.history_[1]['loss_t'], found.history_[1]['loss_v']) > 0.001
    for state, norms in zip((found.text_state_, found.image_state_), norm_names(model)):
        assert (
            set(state) == set(norms) and max((v - checkpoint[k]).abs().max() for k, v in state.items()) > 1e-5
        )  # weight decay alone: 1e-7
    assert torch.equal(found.predict(images), found.labels_)
    again = ReCLIP.load(found.save(tmp_path / 'saved'), device='cpu')
    assert torch.equal(again.predict_proba(images), found.predict_proba(images))
    pixels = torch.stack([found.loaded().preprocess(o) for o in images])
    assert torch.equal(again.predict_proba(pixels), found.predict_proba(images))


@pytest.mark.parametrize(
    'name, mean, std, mode',
    [('toy-siglip', half, half, 'squash'), ('toy-vit', openai, (0.26862954, 0.26130258, 0.27577711), 'shortest')],
)
def test_preprocessing_is_the_models_own(name, mean, std, mode, tmp_path):
    needs_transformers(name)
    write_repo(tmp_path / 'repo', name, mean=mean, std=std, interpolation='bicubic', resize_mode=mode)
    model, preprocess, _ = load_clip(f'local-dir:{tmp_path / "repo"}', None, 'cpu')
    white = preprocess(Image.new('RGB', (50, 40), 'white'))
    mean = torch.tensor(mean)
    std = torch.tensor(std)
    assert white.shape == (3, 32, 32) and torch.allclose(
        white, ((1 - mean) / std)[:, None, None].expand(3, 32, 32), atol=1e-5
    )
    wide = Image.new('RGB', (96, 32), 'white')
    wide.paste('black', (0, 0, 16, 32))
    assert (preprocess(wide)[:, :, 0] < 0).all() == (mode == 'squash')
    assert all(torch.equal(v, random_model(name).state_dict()[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize('ending', ['safetensors', 'pt'])
@pytest.mark.parametrize('name', ['toy-resnet', 'toy-eva02'])
def test_a_checkpoint_of_another_model(name, ending, toys):
    with pytest.raises(ValueError, match='another model|does not fit'):
        load_clip(name, str(toys / f'toy-vit.{ending}'), 'cpu')


def damaged(kind, file, whole):
    "Write what is no checkpoint"
    if kind == 'noise':
        file.write_bytes(np.random.default_rng(0).bytes(4096))
    if kind == 'nothing':
        file.write_bytes(b'')
    if kind == 'text':
        file.write_text('hello world')
    if kind == 'page':
        file.write_text('<!DOCTYPE html><title>404</title>')
    if kind == 'half':
        file.write_bytes(whole[: len(whole) // 2])
    if kind == 'list':
        torch.save([1, 2], file)
    if kind == 'tensor':
        torch.save(torch.zeros(3), file)
    if kind == 'numbers':
        torch.save({1: 2}, file)
    if kind == 'empty':
        torch.save({}, file)


@pytest.mark.parametrize(
    'kind, ending',
    [(k, e) for e in ('pt', 'safetensors') for k in ('noise', 'nothing', 'text', 'page', 'half')]
    + [(k, 'pt') for k in ('list', 'tensor', 'numbers', 'empty')],
)
def test_what_is_no_checkpoint(kind, ending, toys, tmp_path):
    file = tmp_path / f'toy.{ending}'
    damaged(kind, file, (toys / f'toy-vit.{ending}').read_bytes())
    with pytest.raises(ValueError, match='checkpoint') as e:
        load_clip('toy-vit', str(file), 'cpu')
    assert 'weights_only' not in str(e.value) and '\n' not in str(e.value)


class Opens:
    "Creates a file when it is unpickled"

    def __init__(self, file):
        self.file = str(file)

    def __reduce__(self):
        return open, (self.file, 'w')


class Trips:
    "A plain pickle takes it, a loader of weights only raises TypeError at it"

    def __reduce__(self):
        return OrderedDict, (), (None, {})


@pytest.mark.parametrize('kind', ['torch', 'old torch', 'pickle', 'trips', 'named safetensors'])
def test_a_checkpoint_runs_no_code(kind, toys, tmp_path, monkeypatch):
    file, marker = tmp_path / ('toy.safetensors' if kind == 'named safetensors' else 'toy.pt'), tmp_path / 'marker'
    content = dict(a=Trips(), b=Opens(marker)) if kind == 'trips' else dict(a=Opens(marker))
    if kind == 'pickle':
        file.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=kind != 'old torch')
    monkeypatch.setenv(
        'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1'
    )  # torch before 2.6: weights_only is off unless it is asked for
    with pytest.raises(ValueError):
        load_clip('toy-vit', str(file), 'cpu')
    assert not marker.exists()
    torch.load(file, weights_only=False) if kind != 'named safetensors' and kind != 'pickle' else pickle.loads(
        pickle.dumps(content)
    )
    assert marker.exists()  # it would have


def test_a_folder_without_weights_is_refused(tmp_path):
    write_repo(tmp_path / 'repo', 'toy-vit', weights=False)
    with pytest.raises(ValueError, match='weights'):
        load_clip(f'local-dir:{tmp_path / "repo"}', None, 'cpu')


def test_a_tokenizer_needs_transformers(toys, monkeypatch):
    monkeypatch.setitem(sys.modules, 'transformers', None)
    with pytest.raises((ImportError, ValueError), match='transformers'):
        load_clip('toy-siglip', str(toys / 'toy-siglip.safetensors'), 'cpu')


def child(folder, with_siglip):
    "What a process with nothing but an address of a hub sees; its findings go into the folder"
    images = noisy_images()
    tensors = {}
    errors = {}
    for name in ['clip', 'siglip'] if with_siglip else ['clip']:
        model, preprocess, tokenizer = load_clip(f'hf-hub:toy/{name}', device='cpu')
        found = ReCLIP(f'hf-hub:toy/{name}', None, names, epochs=1, device='cpu').fit(images)
        tensors |= {
            f'{name}/texts': encode_text(model, tokenizer(prompts)),
            f'{name}/images': encode_images(model, images, preprocess),
            f'{name}/tokens': tokenizer(prompts),
            f'{name}/white': preprocess(Image.new('RGB', (50, 40), 'white')),
            f'{name}/probabilities': found.predict_proba(images),
        }
    for name in ('unknown', 'weightless', 'configless', 'other'):
        try:
            load_clip(f'hf-hub:toy/{name}', device='cpu')
        except Exception as e:
            errors[name] = type(e).__name__, str(e)
    save_file({k: v.contiguous() for k, v in tensors.items()}, Path(folder, 'found.safetensors'))
    Path(folder, 'errors.json').write_text(json.dumps(errors))


@pytest.fixture(scope='module')
def from_hub(tmp_path_factory):
    "`(tensors, errors, requests)` of a process that loads models from a hub of toys"
    root, home, out = (tmp_path_factory.mktemp(o) for o in ('hub', 'home', 'out'))
    write_repo(root / 'toy' / 'clip', 'toy-vit')
    if has_tokenizers:
        write_repo(root / 'toy' / 'siglip', 'toy-siglip', mean=half, std=half, resize_mode='squash')
    write_repo(root / 'toy' / 'weightless', 'toy-vit', weights=False)
    write_repo(root / 'toy' / 'other', 'toy-vit', weights=False)
    save_file(random_model('toy-resnet').state_dict(), root / 'toy' / 'other' / 'open_clip_model.safetensors')
    (root / 'toy' / 'configless').mkdir()
    (root / 'toy' / 'configless' / 'README.md').write_text('# nothing here')
    with hub(root) as (address, seen):
        unwanted = ('hf_', 'huggingface', 'transformers_')
        env = {
            k: v
            for k, v in os.environ.items()
            if not k.lower().startswith(unwanted) and not k.lower().endswith('_proxy')
        }
        env |= dict(HF_ENDPOINT=address, HF_HOME=str(home), HF_HUB_DISABLE_TELEMETRY='1', OMP_NUM_THREADS='1')
        code = f'from reclip.tests import test_families; test_families.child({str(out)!r}, {has_tokenizers})'
        done = subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(out / 'found.safetensors'), json.loads((out / 'errors.json').read_text()), seen


@pytest.mark.parametrize('repo, name', [('clip', 'toy-vit'), ('siglip', 'toy-siglip')])
def test_a_model_of_the_hub(repo, name, from_hub, images):
    needs_transformers(name)
    tensors, _, seen = from_hub
    got = [
        path.rpartition('/')[2]
        for method, path, status in seen
        if method == 'GET' and status == 200 and path.startswith(f'/toy/{repo}/resolve/')
    ]
    assert {'open_clip_config.json', 'open_clip_model.safetensors'} <= set(got) and got.count(
        'open_clip_model.safetensors'
    ) == 1
    model, tokens = random_model(name), tensors[f'{repo}/tokens']
    preprocess = open_clip.image_transform(
        32, is_train=False, **(dict(mean=half, std=half, resize_mode='squash') if repo == 'siglip' else {})
    )
    with torch.no_grad():
        texts, rows = (
            model.encode_text(tokens, normalize=True),
            model.encode_image(torch.stack([preprocess(o) for o in images]), normalize=True),
        )
    assert torch.allclose(tensors[f'{repo}/texts'], texts, atol=1e-5) and torch.allclose(
        tensors[f'{repo}/images'], rows, atol=1e-5
    )
    assert torch.equal(tensors[f'{repo}/white'], preprocess(Image.new('RGB', (50, 40), 'white')))
    if repo == 'siglip':
        assert tokens[0].tolist() == [2, 3, 4, 2, 6] + [1] * 11
    else:
        assert torch.equal(tokens, open_clip.SimpleTokenizer(context_length=16)(prompts))
    assert tensors[f'{repo}/probabilities'].shape == (48, 4)


@pytest.mark.parametrize(
    'repo, why',
    [('unknown', 'hub'), ('configless', 'hub'), ('weightless', 'weights'), ('other', 'another model|does not fit')],
)
def test_what_the_hub_does_not_have(repo, why, from_hub):
    kind, message = from_hub[1].get(repo, ('nothing', 'nothing was raised'))
    assert kind == 'ValueError' and re.search(why, message) and '\n' not in message, f'{kind}: {message}'
