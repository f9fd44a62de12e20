"Save, load, predict: the same bits, only safetensors and JSON, whole or not at all."

import copy
import json
import os
import pytest
import torch
from sklearn.exceptions import NotFittedError
from reclip import ReCLIP, demo
from reclip.norms import norm_parameters


@pytest.fixture(scope='module')
def fitted(digits):
    return ReCLIP('demo', class_names=demo.class_names, templates=demo.templates, epochs=1).fit(digits[0][:120])


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob('*'))


def test_round_trip_to_the_last_bit(fitted, digits, tmp_path):
    fitted.save(tmp_path / 'run')
    back = ReCLIP.load(tmp_path / 'run')
    assert torch.equal(back.predict_proba(digits[0]), fitted.predict_proba(digits[0])) and torch.equal(
        back.transform(digits[0][:9]), fitted.transform(digits[0][:9])
    )
    assert (
        torch.equal(back.labels_, fitted.labels_)
        and torch.equal(back.pseudo_labels_, fitted.pseudo_labels_)
        and back.history_ == fitted.history_
    )
    assert files(tmp_path) == ['run', 'run/adapted.safetensors', 'run/config.json']
    config = json.loads((tmp_path / 'run' / 'config.json').read_text())
    assert config['settings']['class_names'] == list(demo.class_names) and torch.__version__.startswith(
        config['versions']['torch']
    )
    again = back.save(tmp_path / 'again')
    assert (again / 'adapted.safetensors').read_bytes() == (tmp_path / 'run' / 'adapted.safetensors').read_bytes()


def test_a_model_in_memory(own_clip, digits, tmp_path):
    model, preprocess, tokenizer = own_clip
    made = ReCLIP.from_model(model, preprocess, tokenizer, demo.class_names, epochs=1).fit(digits[0][:80])
    made.save(tmp_path / 'run')
    with pytest.raises(ValueError, match='model in memory'):
        ReCLIP.load(tmp_path / 'run')
    back = ReCLIP.load(tmp_path / 'run', model, preprocess, tokenizer)
    assert torch.equal(back.predict_proba(digits[0]), made.predict_proba(digits[0]))
    other = copy.deepcopy(model)
    with torch.no_grad():
        next(iter(norm_parameters(other, 'image').values())).add_(1e-3)
    with pytest.raises(ValueError, match='another model'):
        ReCLIP.load(tmp_path / 'run', other, preprocess, tokenizer)


def test_nothing_is_overwritten_by_accident(fitted, tmp_path):
    fitted.save(tmp_path / 'run')
    before = (tmp_path / 'run' / 'adapted.safetensors').read_bytes()
    with pytest.raises(FileExistsError, match='overwrite=True'):
        fitted.save(tmp_path / 'run')
    (tmp_path / 'photos').mkdir()
    (tmp_path / 'photos' / 'a.jpg').write_text('mine')
    with pytest.raises(FileExistsError, match='not a saved ReCLIP'):
        fitted.save(tmp_path / 'photos', overwrite=True)
    assert (tmp_path / 'photos' / 'a.jpg').read_text() == 'mine'
    fitted.save(tmp_path / 'run', overwrite=True)
    assert (tmp_path / 'run' / 'adapted.safetensors').read_bytes() == before and files(tmp_path) == [
        'photos',
        'photos/a.jpg',
        'run',
        'run/adapted.safetensors',
        'run/config.json',
    ]


@pytest.mark.parametrize('at', ['tensors', 'json', 'rename'])
@pytest.mark.parametrize('existing', [False, True])
def test_no_half_written_folder(fitted, tmp_path, monkeypatch, at, existing):
    if existing:
        fitted.save(tmp_path / 'run')
    before = {p: p.read_bytes() for p in tmp_path.rglob('*') if p.is_file()}

    def fail(*args, **kwargs):
        raise OSError('No space left on device')

    if at == 'tensors':
        monkeypatch.setattr('pathlib.Path.write_bytes', fail)
    if at == 'json':
        monkeypatch.setattr('pathlib.Path.write_text', fail)
    if at == 'rename':
        real = os.replace
        monkeypatch.setattr('reclip.folders.exchange', lambda a, b: False)
        monkeypatch.setattr(os, 'replace', lambda a, b: fail() if str(a).endswith('new') else real(a, b))
    with pytest.raises(OSError, match='No space'):
        fitted.save(tmp_path / 'run', overwrite=True)
    assert {p: p.read_bytes() for p in tmp_path.rglob('*') if p.is_file()} == before


def test_damaged_folders(fitted, tmp_path):
    def fresh(name):
        return fitted.save(tmp_path / name)

    with pytest.raises(FileNotFoundError, match='not a folder that ReCLIP.save wrote'):
        ReCLIP.load(tmp_path / 'nowhere')
    a = fresh('a')
    (a / 'config.json').write_text('{"settings": ')
    with pytest.raises(ValueError, match='damaged'):
        ReCLIP.load(a)
    b = fresh('b')
    (b / 'adapted.safetensors').write_bytes((b / 'adapted.safetensors').read_bytes()[:100])
    with pytest.raises(ValueError, match='damaged'):
        ReCLIP.load(b)
    c = fresh('c')
    (c / 'config.json').write_text('{}')
    with pytest.raises(ValueError, match='whole ReCLIP'):
        ReCLIP.load(c)
    d = fresh('d')
    config = json.loads((d / 'config.json').read_text())
    config['settings']['surprise'] = 1
    (d / 'config.json').write_text(json.dumps(config))
    with pytest.raises(ValueError, match='whole ReCLIP'):
        ReCLIP.load(d)
    e = fresh('e')
    (e / 'adapted.safetensors').write_bytes(b'\x80\x04cposix\nsystem\n.')  # a pickle is not read
    with pytest.raises(ValueError, match='damaged'):
        ReCLIP.load(e)


def test_unfitted_is_not_saved(tmp_path):
    with pytest.raises(NotFittedError):
        ReCLIP('demo', class_names=demo.class_names).save(tmp_path / 'run')
    assert not files(tmp_path)
