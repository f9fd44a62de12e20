"Classes, descriptions and templates are read from every form that people keep; mistakes are named where they stand."

import json
import open_clip
import pytest
import torch
from reclip import ReCLIP, demo, text_classifier
from reclip.clip import Clip
from reclip.words import TEMPLATES, read_classes, read_templates
from reclip.zeroshot import check_templates, class_prompts


def written(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


three = [['cat'], ['car', 'automobile'], ['sailing boat']]


@pytest.mark.parametrize(
    'content',
    [
        'cat\ncar | automobile\nsailing boat\n',
        'cat\ncar|automobile\nsailing boat',
        '\ufeffcat\r\ncar | automobile\r\nsailing boat\r\n',
        '\n\n  cat  \n \t \ncar|  automobile\n\nsailing boat\n\n',
        'cat\rcar|automobile\rsailing boat\r',
    ],
    ids=['plain', 'no-end', 'windows', 'blank', 'mac'],
)
@pytest.mark.parametrize('name', ['classes.txt', 'classes', 'c, d.lst'])
def test_a_file_with_one_class_a_line(tmp_path, content, name):
    path = written(tmp_path / name, content)
    assert read_classes(path) == (three, None) == read_classes(str(path))


@pytest.mark.parametrize(
    'found', [three, [o if len(o) > 1 else o[0] for o in three], ['cat', 'car|automobile', 'sailing boat']]
)
def test_a_json_list(tmp_path, found):
    assert read_classes(written(tmp_path / 'c.json', json.dumps(found))) == (three, None)
    assert (
        read_classes(written(tmp_path / 'C.JSON', b'\xef\xbb\xbf' + json.dumps(found, indent=2).encode()))
        == (three, None)
        == read_classes(found)
        == read_classes(tuple(found))
    )


def test_a_json_object_brings_descriptions(tmp_path):
    path = written(
        tmp_path / 'c.json',
        json.dumps({'cat': ['a small animal.', 'it purrs.'], 'car | automobile': 'it has wheels.', 'boat': []}),
    )
    assert read_classes(path) == (
        [['cat'], ['car', 'automobile'], ['boat']],
        [['a small animal.', 'it purrs.'], ['it has wheels.'], []],
    )
    assert read_classes(written(path, '{"cat": [], "dog": []}')) == ([['cat'], ['dog']], None)


def test_words_with_commas_between_them():
    for text in ('cat,car|automobile,sailing boat', ' cat , car | automobile ,sailing boat, '):
        assert read_classes(text) == (three, None)


def test_names_keep_what_belongs_to_them(tmp_path):
    odd = [
        'caf\u00e9',
        '\u732b',
        'rock, paper',
        'C++',
        '50% grey',
        "cat's eye",
        'a "b"',
        '{}',
        'item [3]',
        'None',
        'NA',
        '007',
        '#1',
    ]
    assert (
        [o for (o,) in read_classes(written(tmp_path / 'c.txt', '\n'.join(odd))).class_names]
        == odd
        == [o for (o,) in read_classes(written(tmp_path / 'c.json', json.dumps(odd))).class_names]
    )


@pytest.mark.parametrize('name', ['c.txt', 'c.json'])
@pytest.mark.parametrize('content', ['', '\n\r\n  \n', '\ufeff', '\ufeff\n'])
def test_an_empty_file(tmp_path, name, content):
    with pytest.raises(ValueError, match=f'{name} (holds no class names|is not valid JSON)'):
        read_classes(written(tmp_path / name, content))


@pytest.mark.parametrize('content', ['[]', '{}'])
def test_an_empty_json_file(tmp_path, content):
    with pytest.raises(ValueError, match='c.json holds no class names'):
        read_classes(written(tmp_path / 'c.json', content))


@pytest.mark.parametrize('classes', ['', ' , ,', []])
def test_no_words(classes):
    with pytest.raises(ValueError, match='no class names'):
        read_classes(classes)


def test_one_class_is_none_to_choose(tmp_path):
    for classes in (
        written(tmp_path / 'c.txt', '\ncat\n'),
        written(tmp_path / 'c.json', '["cat"]'),
        written(tmp_path / 'd.json', '{"cat": ["it purrs."]}'),
        ['cat'],
        'cat',
        'cat,',
    ):
        with pytest.raises(ValueError, match='got 1; a classifier chooses between two or more'):
            read_classes(classes)


@pytest.mark.parametrize(
    'content, lines',
    [
        ('cat\ndog\ncat\n', (3, 1)),
        ('cat\n\ndog\n\n\nCat\n', (6, 1)),
        ('\n\ncat\ndog\n  CAT  \n', (5, 3)),
        ('sailing boat\ndog\nSailing   Boat\n', (3, 1)),
        ('cat | tom\ndog\n\ntom cat | Tom\n', (4, 1)),
        ('dog\ncat | Cat\n', (2, 2)),
        ('\ufeffcat\r\ndog\r\ncat\r\n', (3, 1)),
        ('a\nitem [7]\nITEM [7]\n', (3, 2)),
        ('a\nitem [0]\nITEM [0]\n', (3, 2)),
    ],
    ids='same blank case space alias one-line windows brackets brackets-0'.split(),
)
def test_duplicates_are_named_with_their_lines(tmp_path, content, lines):
    name = content.splitlines()[lines[0] - 1].split('|')[-1].strip()
    with pytest.raises(ValueError) as e:
        read_classes(written(tmp_path / 'c.txt', content))
    assert f'c.txt: line {lines[0]}: {name!r} stands already at line {lines[1]}; two classes' in str(e.value)


@pytest.mark.parametrize(
    'classes', [['cat', 'dog', 'Cat'], [['cat', 'tom'], 'dog', 'tom'], 'cat,dog,CAT', 'cat|tom,dog,tom']
)
def test_duplicates_without_lines(tmp_path, classes):
    with pytest.raises(ValueError, match=r'classes: class_names\[2\]: .* stands already at (class_names)?\[0\]'):
        read_classes(classes)
    if isinstance(classes, list):
        with pytest.raises(ValueError, match=r'c.json: class_names\[2\]: .* stands already'):
            read_classes(written(tmp_path / 'c.json', json.dumps(classes)))


def test_a_key_twice_in_json(tmp_path):
    with pytest.raises(ValueError, match='cat'):
        read_classes(written(tmp_path / 'c.json', '{"cat": ["it purrs."], "dog": [], "cat": ["it is small."]}'))


@pytest.mark.parametrize(
    'content, line', [('cat\n\ndog |\n', 3), ('| cat\ndog\n', 1), ('cat\ndog || hound\n', 2), ('cat\n|\ndog\n', 2)]
)
def test_an_alias_without_a_name(tmp_path, content, line):
    with pytest.raises(ValueError, match=f'c.txt: line {line}: expected a non-empty string'):
        read_classes(written(tmp_path / 'c.txt', content))


@pytest.mark.parametrize(
    'content', ['{', '["cat", "dog"', '["cat",, "dog"]', 'cat\ndog\n', '["cat", "dog"] more', '{"cat": ["a"']
)
def test_invalid_json(tmp_path, content):
    with pytest.raises(ValueError, match='c.json is not valid JSON: .*line 1'):
        read_classes(written(tmp_path / 'c.json', content))


@pytest.mark.parametrize(
    'content',
    [
        '3',
        'null',
        'true',
        '"cat,dog"',
        '[1, 2]',
        '["cat", 2]',
        '["cat", null]',
        '["cat", {"dog": []}]',
        '["cat", ["dog", 1]]',
        '["cat", ["dog", ["hound"]]]',
        '["cat", []]',
        '["cat", ""]',
        '{"cat": [1], "dog": []}',
        '{"cat": null, "dog": null}',
        '{"cat": {"a": "b"}, "dog": []}',
        '{"cat": [["a"]], "dog": []}',
        '{"": [], "dog": []}',
    ],
)
def test_json_of_another_shape(tmp_path, content):
    with pytest.raises(ValueError, match='c.json: .*(expected|empty list of aliases)'):
        read_classes(written(tmp_path / 'c.json', content))


@pytest.mark.parametrize('sentence', ['', '   '])
def test_a_description_without_words_is_refused_at_once(tmp_path, sentence):
    with pytest.raises(ValueError, match='c.json: .*(cat|sentence)'):
        read_classes(written(tmp_path / 'c.json', json.dumps({'cat': ['it purrs.', sentence], 'dog': []})))


@pytest.mark.parametrize('classes', [[1, 2], ['cat', None], [['cat'], [1]], ['cat', b'dog'], ['cat', '']])
def test_names_that_are_no_words(classes):
    with pytest.raises(ValueError, match='string|names'):
        read_classes(classes)


def test_an_object_in_memory_means_the_same_or_is_refused():
    try:
        words = read_classes({'cat': ['it purrs.'], 'dog': []})
    except (TypeError, ValueError):
        return
    assert words == ([['cat'], ['dog']], [['it purrs.'], []])


@pytest.mark.parametrize('name', ['c.txt', 'c.json', 't.txt'])
@pytest.mark.parametrize(
    'content',
    ['caf\u00e9\nboat\n'.encode('latin-1'), 'cat\ndog\n'.encode('utf-16'), b'\xff\xd8\xff\xe0 an image'],
    ids=['latin-1', 'utf-16', 'jpeg'],
)
def test_a_file_that_is_not_utf8(tmp_path, name, content):
    with pytest.raises(ValueError, match=rf'{name} is not UTF-8 text \(.* at byte \d+\); save it as UTF-8'):
        (read_templates if name == 't.txt' else read_classes)(written(tmp_path / name, content))


@pytest.mark.parametrize(
    'name', ['nowhere.txt', 'nowhere.json', 'nowhere.csv', 'deep/nowhere', 'NOWHERE.TXT', 'cats, dogs.txt']
)
def test_a_file_that_is_not_there(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match='is not there'):
        read_classes(name)
    with pytest.raises(FileNotFoundError, match='is not there'):
        read_classes(tmp_path / name)
    with pytest.raises(FileNotFoundError, match='is a folder'):
        read_classes(tmp_path)


@pytest.mark.parametrize('name', sorted(TEMPLATES))
def test_every_set_of_templates_is_valid(name):
    found = read_templates(name)
    assert check_templates(found) == found == list(TEMPLATES[name]) and len(set(found)) == len(found)
    assert len(class_prompts(['cat', 'dog'], found)[0]) == 2 * len(found) and all(
        o == o.strip() and o.isascii() for o in found
    )
    found.append('changed')
    assert 'changed' not in read_templates(name)


def test_the_sets_of_open_clip():
    plain = 'a photo of a {}.'
    for name, own, n in (
        ('simple', open_clip.SIMPLE_IMAGENET_TEMPLATES, 8),
        ('imagenet', open_clip.OPENAI_IMAGENET_TEMPLATES, 80),
    ):
        assert (
            set(TEMPLATES[name]) == {f('{}') for f in own} | {plain}
            and len(TEMPLATES[name]) == n
            and TEMPLATES[name][0] == plain
        )
        assert [o for o in TEMPLATES[name] if o != plain] == [f('{}') for f in own if f('{}') != plain]
        assert [o.replace('{}', 'x y') for o in TEMPLATES[name][1:]] == [
            f('x y') for f in own if f('x y') != 'a photo of a x y.'
        ]
    assert read_templates() == [plain] == read_templates('photo')


@pytest.mark.parametrize('content', ['a scan of {}.\na {}.\n', '\ufeffa scan of {}.\r\n\r\n  a {}.  \r\n'])
def test_templates_of_a_file(tmp_path, content):
    assert (
        read_templates(written(tmp_path / 't.txt', content))
        == ['a scan of {}.', 'a {}.']
        == read_templates(str(tmp_path / 't.txt'))
    )


def test_templates_as_sentences():
    assert read_templates('a scan of {}.') == ['a scan of {}.'] == read_templates(['a scan of {}.']) and read_templates(
        ('a {}.', 'the {}.')
    ) == ['a {}.', 'the {}.']


@pytest.mark.parametrize('content', ['a scan of {}.\na scan.\n', 'a {} or {}.\n', 'a {0}.\n', 'a {name}.\n'])
def test_a_template_without_its_place(tmp_path, content):
    wrong = content.splitlines()[-1]
    with pytest.raises(ValueError) as e:
        read_templates(written(tmp_path / 't.txt', content))
    assert 't.txt' in str(e.value) and repr(wrong) in str(e.value) and 'exactly one {}' in str(e.value)
    for templates in ([wrong], ['a {}.', wrong]):
        with pytest.raises(ValueError, match='exactly one {}'):
            read_templates(templates)


@pytest.mark.parametrize(
    'templates, says',
    [
        ('satelite', 'none of the sets: photo, simple, imagenet'),
        ('nowhere.txt', 'is not a file'),
        ('', 'none of the sets'),
        ('a scan.', 'holds no {}'),
        ([], 'got none'),
        ([3], 'exactly one {}'),
        ('{} or {}', 'exactly one {}'),
    ],
)
def test_templates_that_cannot_be_meant(templates, says):
    with pytest.raises(ValueError, match=says):
        read_templates(templates)


def test_an_empty_file_of_templates(tmp_path):
    with pytest.raises(ValueError, match='t.txt: .*got none'):
        read_templates(written(tmp_path / 't.txt', '\n\n'))


def test_descriptions_change_the_features_of_their_class(clip, tmp_path):
    words = read_classes(
        written(tmp_path / 'c.json', json.dumps({'zero': ['a closed round stroke.'], 'one | ace': [], 'two': []}))
    )
    model, _, tokenizer = clip
    plain = text_classifier(Clip(*clip), words.class_names, demo.templates)
    found = text_classifier(Clip(*clip), words.class_names, demo.templates, descriptions=words.descriptions)
    assert (
        torch.equal(found[1:], plain[1:])
        and (found[0] - plain[0]).abs().max() > 1e-3
        and torch.allclose(found.norm(dim=1), torch.ones(3), atol=1e-5)
    )
    prompts = [*(t.replace('{}', 'zero') for t in demo.templates), 'a closed round stroke.']
    with torch.no_grad():
        rows = model.encode_text(tokenizer(prompts), normalize=True)
    assert torch.allclose(found[0], torch.nn.functional.normalize(rows.mean(0), dim=0), atol=1e-5)


def test_descriptions_reach_the_labels(digits):
    described = [['a four.', 'the number four.', 'the digit four.'] if o == 'nine' else [] for o in demo.class_names]
    plain, found = (
        ReCLIP('demo', class_names=demo.class_names, descriptions=o, epochs=0).fit(digits[0][:60])
        for o in (None, described)
    )
    assert not torch.equal(plain.text_features_[9], found.text_features_[9]) and torch.equal(
        plain.text_features_[:9], found.text_features_[:9]
    )


@pytest.mark.parametrize(
    'descriptions', [[], [['a']], [['a'], [], []], [['a'], ['']], [['a'], 'b'], [['a'], [1]], 'ab']
)
def test_a_wrong_number_or_kind_of_descriptions_is_refused(clip, descriptions):
    with pytest.raises(ValueError, match='descriptions'):
        text_classifier(Clip(*clip), ['cat', 'dog'], descriptions=descriptions)
    with pytest.raises(ValueError, match='descriptions'):
        ReCLIP('demo', class_names=['cat', 'dog'], descriptions=descriptions, epochs=0).fit(
            [demo.demo_digits()[0][0]] * 30
        )
