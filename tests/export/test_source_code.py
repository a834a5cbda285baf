"""The package's source cut down and laid flat."""

import ast

import pytest
from transformers.dynamic_module_utils import get_relative_imports

from uniaudio.export.hf import MODEL, collect_code
from uniaudio.export.source_code import ModuleSource, cut_module, flatten_modules, remove_shapes
from uniaudio.model.encoders.exported import PARTS

ALL_PARTS = {f"{module}:{name}" for name, module in PARTS.items()}
# what the exported code takes from transformers, as seen in 4.57.6; a new name is to be tried there first
IN_TRANSFORMERS_4 = {
    "transformers": {
        *("ASTFeatureExtractor", "ASTModel", "ClapFeatureExtractor", "EncodecModel", "MimiModel"),
        *("PreTrainedModel", "PretrainedConfig", "SeamlessM4TFeatureExtractor", "Wav2Vec2BertModel"),
        *("WhisperFeatureExtractor", "__version__"),
    },
    "transformers.audio_utils": {"mel_filter_bank"},
    "transformers.models.audio_spectrogram_transformer": {"modeling_audio_spectrogram_transformer"},
    "transformers.models.clap.modeling_clap": {"ClapAudioModel"},
    "transformers.models.qwen2_5_omni.modeling_qwen2_5_omni": {"Qwen2_5OmniAudioEncoder"},
    "transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe": {"Qwen3OmniMoeAudioEncoder"},
    "transformers.models.wav2vec2_bert.modeling_wav2vec2_bert": {"Wav2Vec2BertRotaryPositionalEmbedding"},
    "transformers.modeling_layers": {"GradientCheckpointingLayer"},
    "transformers.modeling_outputs": {"SequenceClassifierOutput"},
    "transformers.utils": {"ModelOutput"},
}


def source_of(text: str, *kept: str, name: str = "uniaudio.made_up") -> ModuleSource:
    """A module from text, as ``read`` would give it."""
    tree = ast.parse(text)
    source = ModuleSource(name, text, tree, kept=set(kept))
    for statement in tree.body:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            source.imports |= {alias.asname or alias.name: (statement, alias) for alias in statement.names}
    return source


def test_only_kept_definitions_stay_and_are_unchanged():
    text = '''"""What it holds."""

from __future__ import annotations

import math
import re

from uniaudio.model.mel import HOP, LogMel

# why it is five
FIVE = 5  # of them
SIX = 6


@decorated
def kept(x):
    """Say é."""
    return math.sin(x) + FIVE * HOP


def dropped():
    return re, LogMel, SIX
'''
    assert (
        cut_module(source_of(text, "kept", "FIVE", "math", "HOP"))
        == '''"""What it holds."""

from __future__ import annotations

import math
from .uniaudio_model_mel import HOP

# why it is five
FIVE = 5  # of them


@decorated
def kept(x):
    """Say é."""
    return math.sin(x) + FIVE * HOP
'''
    )


def test_shapes_are_taken_out_of_annotations_and_nothing_else():
    text = '''"""É."""
from jaxtyping import Float, Int
def f(x: Float[Tensor, "T E"], é: tuple[Int[Tensor, " T"], Float[torch.Tensor, "..."]]) -> dict[str, "T E"]:
    return x["T E"]
'''
    assert remove_shapes(source_of(text)).split("\n")[2:4] == [
        'def f(x: Tensor, é: tuple[Tensor, torch.Tensor]) -> dict[str, "T E"]:',
        '    return x["T E"]',
    ]


def test_everything_that_is_used_is_there():
    """Every name that a file loads is defined in it, imported or built in; every import finds its name."""
    files = flatten_modules({"uniaudio.model.fusion.mowe": {"MoweEncoder"}})
    assert "uniaudio_model_fusion_mowe.py" in files
    assert "uniaudio_model_encoders_whisper.py" not in files
    defined = {}
    for name, text in files.items():
        tree = ast.parse(text)
        defined[name.removesuffix(".py")] = {
            n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)
        } | {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    for name, text in files.items():
        tree = ast.parse(text)
        known = defined[name.removesuffix(".py")] | set(dir(__builtins__)) | set(__builtins__)
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                known |= {alias.asname or alias.name for alias in node.names}
                if isinstance(node, ast.ImportFrom) and node.level:
                    assert {alias.name for alias in node.names} <= defined[node.module]
            elif isinstance(node, ast.FunctionDef | ast.Lambda):
                arguments = node.args
                named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
                known |= {a.arg for a in (*named, arguments.vararg, arguments.kwarg) if a is not None}
        loaded = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
        assert not loaded - known, name


def test_a_module_that_acts_when_it_is_imported_is_not_cut(tmp_path, monkeypatch):
    (tmp_path / "acting.py").write_text('"""It prints."""\nprint("imported")\n')
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="acting:2 does something"):
        ModuleSource.read("acting")


@pytest.mark.parametrize(
    "parts",
    [
        {"uniaudio.model.encoders.whisper:WhisperAudioEncoder"},
        {"uniaudio.model.fusion.wq:WqFusion"},
        ALL_PARTS,
    ],
    ids=["whisper", "wq", "all"],
)
def test_the_modelling_file_names_every_other_file(tmp_path, parts):
    """transformers 4 copies what that file imports and not what its imports import."""
    files = collect_code(parts)
    (tmp_path / "model.py").write_text(files[f"{MODEL}.py"])
    named = get_relative_imports(tmp_path / "model.py")
    assert {f"{name}.py" for name in named} == set(files) - {f"{MODEL}.py"}
    assert not [name for name in named if "." in name]  # it copies files of one folder only


def test_nothing_is_imported_that_transformers_4_lacks():
    imports = [
        node
        for text in collect_code(ALL_PARTS).values()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "transformers"
    ]
    for node in imports:
        assert {alias.name for alias in node.names} <= IN_TRANSFORMERS_4.get(node.module, set()), node.module
