"""Run llama.cpp's converter without the code that a model's folder may bring along.

The converter asks transformers to trust it for some architectures (``trust_remote_code``), and so
would run whatever a ``tokenizer_config.json`` names. Arguments: the script, then its own. It runs
in the driver's interpreter, which has torch and transformers.
"""

import runpy
import sys
from typing import Any

from transformers import AutoConfig, AutoTokenizer


def _without_code(load: Any) -> Any:
    def loaded(*arguments: Any, **options: Any) -> Any:
        return load(*arguments, **(options | {"trust_remote_code": False}))

    return staticmethod(loaded)


for kind in (AutoConfig, AutoTokenizer):
    kind.from_pretrained = _without_code(kind.from_pretrained)
sys.argv = sys.argv[1:]
sys.path[0] = sys.argv[0].rpartition("/")[0]  # its modules lie beside it
runpy.run_path(sys.argv[0], run_name="__main__")
