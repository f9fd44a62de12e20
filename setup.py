"Packaging: everything comes from settings.ini, edit there and not here."
from configparser import ConfigParser
from pathlib import Path
import re, shlex, setuptools

config = ConfigParser(delimiters=['='])
config.read('settings.ini', encoding='utf-8')
cfg = config['DEFAULT']

expected = '''version description keywords author author_email lib_name lib_path user repo branch license
    status min_python audience language git_url topics'''.split()
for o in expected: assert o in cfg, f'missing expected setting: {o}'

statuses = ['0 - Pre-Planning', '1 - Planning', '2 - Pre-Alpha', '3 - Alpha',
    '4 - Beta', '5 - Production/Stable', '6 - Mature', '7 - Inactive']
py_versions = '3.10 3.11 3.12 3.13'.split()
tag = 'v' + cfg['version']  # the release workflow publishes from this tag only
def _reqs(k): return shlex.split(cfg.get(k) or '')
def _lines(k): return [o.strip() for o in (cfg.get(k) or '').splitlines() if o.strip()]

def _long_description():
    "README.md as the package index shows it: images and links of this repository get addresses, those of the tag"
    raw = cfg['git_url'].replace('://github.com/', '://raw.githubusercontent.com/')
    text = Path('README.md').read_text(encoding='utf-8')
    text = re.sub(r'(!\[[^]]*\]\()(?!https?:)', rf'\g<1>{raw}/{tag}/', text)
    return re.sub(r'((?<!!)\[[^]]*\]\()(?!https?:|#|mailto:)', rf'\g<1>{cfg["git_url"]}/blob/{tag}/', text)

setuptools.setup(
    name=cfg['lib_name'],
    **{o:cfg[o] for o in 'version description keywords author author_email'.split()},
    classifiers=[
        'Development Status :: ' + statuses[int(cfg['status'])],
        'Environment :: Console',
        'Intended Audience :: ' + cfg['audience'].title(),
        'Intended Audience :: Science/Research',
        'Natural Language :: ' + cfg['language'].title(),
        'Operating System :: OS Independent',
        'Programming Language :: Python :: 3',
        'Programming Language :: Python :: 3 :: Only',
    ] + ['Programming Language :: Python :: '+o for o in py_versions[py_versions.index(cfg['min_python']):]]
      + ['Topic :: '+o for o in _lines('topics')] + ['Typing :: Typed'],
    project_urls={
        'Documentation': cfg['doc_host']+cfg['doc_baseurl'],
        'Source': cfg['git_url'],
        'Issues': cfg['git_url']+'/issues',
        'Changelog': f'{cfg["git_url"]}/blob/{cfg["branch"]}/CHANGELOG.md',
    },
    packages=setuptools.find_packages(include=[cfg['lib_path'], cfg['lib_path']+'.*'], exclude=['*.tests', '*.tests.*']),
    package_data={cfg['lib_path']: _reqs('package_data')},
    include_package_data=False,  # MANIFEST.in is for the source distribution, which has the tests too
    install_requires=_reqs('requirements'),
    extras_require={k.removesuffix('_requirements'): _reqs(k) for k in cfg if k.endswith('_requirements')},
    python_requires='>=' + cfg['min_python'],
    long_description=_long_description(),
    long_description_content_type='text/markdown',
    zip_safe=False,
    entry_points={
        'console_scripts': _lines('console_scripts'),
        'nbdev': [f'{cfg["lib_path"]}={cfg["lib_path"]}._modidx:d'],
    },
)
