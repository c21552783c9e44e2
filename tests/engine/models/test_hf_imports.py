"""Lazy imports: what the quiet import leaves out is imported on first use."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import os
import sys
from engine.models.hf_imports import import_quietly, imported_files

import_quietly()
package = sys.modules["transformers.models"]
from transformers import CLIPTextModel, CLIPTokenizer

assert sys.modules["transformers.models"] is package, "no name has been asked for"
assert not hasattr(package, "__version__")
files = [str(file) for file in imported_files()]
assert any(file.endswith(".pyc") for file in files), "bytecode where it exists"
assert any(file.endswith("hf_imports.py") or "hf_imports." in file for file in files)
assert any(file.endswith("modeling_bert.py") for file in files), "sources that transformers reads for their names"
assert all(map(os.path.exists, (file for file in files if os.path.isabs(file))))
import transformers.models
import transformers.models.clip.modeling_clip

assert transformers.models.clip.modeling_clip.CLIPTextModel is CLIPTextModel
assert sys.modules["transformers.models"] is package, "still not imported"
from transformers.models import BertConfig

assert BertConfig().model_type == "bert"
from transformers import AutoConfig, BertModel

assert type(AutoConfig.for_model("clip")).__name__ == "CLIPConfig"
assert BertModel.__module__ == "transformers.models.bert.modeling_bert"
assert transformers.models.clip.modeling_clip.CLIPTextModel is CLIPTextModel
try:
    transformers.models.NoSuchModel
except AttributeError:
    print("done")
"""


def test_the_models_package_is_imported_on_first_use() -> None:
    process = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert process.stdout == "done\n", process.stderr[-2000:]
