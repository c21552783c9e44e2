"""What is left out when the libraries are imported is there when it is asked for."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import os
import sys
from engine.models.hf_imports import imported, quiet

quiet()
package = sys.modules["transformers.models"]
from transformers import CLIPTextModel, CLIPTokenizer

assert sys.modules["transformers.models"] is package, "nothing has asked for more"
assert not hasattr(package, "__version__")
files = [str(file) for file in imported()]
assert any(file.endswith(".pyc") for file in files), "bytecode, where there is any"
assert any(file.endswith("libraries.py") or "libraries." in file for file in files)
assert any(file.endswith("modeling_bert.py") for file in files), "read for its names"
assert all(map(os.path.exists, (file for file in files if os.path.isabs(file))))
import transformers.models
import transformers.models.clip.modeling_clip

assert transformers.models.clip.modeling_clip.CLIPTextModel is CLIPTextModel
assert sys.modules["transformers.models"] is package, "still unread"
from transformers.models import BertConfig

assert BertConfig().model_type == "bert"
from transformers import AutoConfig, BertModel

assert type(AutoConfig.for_model("clip")).__name__ == "CLIPConfig"
assert BertModel.__module__ == "transformers.models.bert.modeling_bert"
assert transformers.models.clip.modeling_clip.CLIPTextModel is CLIPTextModel
try:
    transformers.models.NoSuchModel
except AttributeError:
    print("as it should be")
"""


def test_the_models_package_is_read_when_a_name_of_it_is_asked_for() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert done.stdout == "as it should be\n", done.stderr[-2000:]
