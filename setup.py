"Packaging: everything comes from settings.ini, edit there and not here."
from configparser import ConfigParser
from pathlib import Path
import shlex, setuptools

config = ConfigParser(delimiters=['='])
config.read('settings.ini', encoding='utf-8')
cfg = config['DEFAULT']

expected = '''version description keywords author author_email lib_name lib_path user branch license
    status min_python audience language git_url'''.split()
for o in expected: assert o in cfg, f'missing expected setting: {o}'

statuses = ['0 - Pre-Planning', '1 - Planning', '2 - Pre-Alpha', '3 - Alpha',
    '4 - Beta', '5 - Production/Stable', '6 - Mature', '7 - Inactive']
py_versions = '3.10 3.11 3.12 3.13'.split()
def _reqs(k): return shlex.split(cfg.get(k) or '')

setuptools.setup(
    name=cfg['lib_name'],
    **{o:cfg[o] for o in 'version description keywords author author_email'.split()},
    classifiers=[
        'Development Status :: ' + statuses[int(cfg['status'])],
        'Intended Audience :: ' + cfg['audience'].title(),
        'Natural Language :: ' + cfg['language'].title(),
        'Programming Language :: Python :: 3',
    ] + ['Programming Language :: Python :: '+o for o in py_versions[py_versions.index(cfg['min_python']):]],
    project_urls={'Source': cfg['git_url'], 'Documentation': cfg['doc_host']+cfg['doc_baseurl']},
    packages=setuptools.find_packages(include=[cfg['lib_path'], cfg['lib_path']+'.*']),
    package_data={cfg['lib_path']: _reqs('package_data')},
    install_requires=_reqs('requirements'),
    extras_require={'dev': _reqs('dev_requirements'), 'fonts': _reqs('font_requirements'), 'hf': _reqs('hf_requirements'), 'devices': _reqs('devices_requirements'), 'faiss': _reqs('faiss_requirements'), 'datasets': _reqs('datasets_requirements'), 'notebook': _reqs('notebook_requirements')},
    python_requires='>=' + cfg['min_python'],
    long_description=Path('README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    zip_safe=False,
    entry_points={
        'console_scripts': [o.strip() for o in (cfg.get('console_scripts') or '').splitlines() if o.strip()],
        'nbdev': [f'{cfg["lib_path"]}={cfg["lib_path"]}._modidx:d'],
    },
)
