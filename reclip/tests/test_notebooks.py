"Run every notebook as a test, the way `nbdev_test` does: cells flagged in `tst_flags` are skipped unless asked for."

import os
from pathlib import Path
import pytest

if not (Path(__file__).parents[2] / 'settings.ini').is_file():
    pytest.skip('the notebooks are in a checkout, not in an installed package', allow_module_level=True)
from nbdev.config import get_config
from nbdev.test import test_nb as run_nb

run_nb.__test__ = False  # pytest must not collect nbdev's own function
cfg = get_config()
nbs = sorted(
    p for p in cfg.nbs_path.rglob('*.ipynb') if not any(o[0] in '._' for o in p.relative_to(cfg.nbs_path).parts)
)
force = os.environ.get('NB_FLAGS', '').split()  # e.g. NB_FLAGS="slow cuda" pytest


@pytest.mark.parametrize('nb', nbs, ids=lambda p: str(p.relative_to(cfg.config_path)))
def test_notebook(nb, capfd, monkeypatch):
    monkeypatch.setenv('MPLBACKEND', 'agg')
    monkeypatch.setenv('TQDM_DISABLE', '1')
    ok, _ = run_nb(nb, skip_flags=cfg.tst_flags.split(), force_flags=force, basepath=cfg.config_path)
    if not ok:
        pytest.fail(f'{nb.name}\n{capfd.readouterr().err}', pytrace=False)
