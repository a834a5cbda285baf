"""`check` and `plan` of models that are named as on the Hub: their config.json is all that is fetched."""

import io
import json
from pathlib import Path

import pytest
from conftest import tiny_qwen
from helpers.checkpoints import save_miniature
from helpers.remote_model import save_remote_model
from local_hub.clients import connect_clients, go_offline
from rich.console import Console
from transformers import LlamaConfig, WhisperConfig

from uniaudio.build.run_config import open_run
from uniaudio.checks.first_rows import AverageClip
from uniaudio.commands.check import check_run
from uniaudio.commands.plan import show_plan
from uniaudio.config.encoders import EncoderConfig
from uniaudio.config.run_files import load_run
from uniaudio.config.trust import Trust
from uniaudio.errors import UserError
from uniaudio.estimate.gpus import Machine
from uniaudio.model.base_identity import identify_base
from uniaudio.model.encoders.registry import load_audio_encoder
from uniaudio.model.model_files import choose_model_files, find_model_folder

PAPERS = Path(__file__).parent.parent.parent / "configs" / "papers"
CLIP = AverageClip(seconds=25.0, question=24, answer=8)
WEIGHTS = r"\.safetensors|/[0-9a-f]{64}"
ENCODERS = {
    "openai/whisper-base": "whisper",
    "openai/whisper-tiny": "whisper",
    "openai/whisper-tiny.en": "whisper",
    "openai/whisper-large": "whisper",
    "openai/whisper-small": "whisper",
    "openai/whisper-large-v3": "whisper, 128 mels",
    "facebook/hubert-base-ls960": "hubert",
    "microsoft/wavlm-base": "wavlm",
    "microsoft/wavlm-base-plus": "wavlm",
    "laion/clap-htsat-unfused": "clap",
    "Qwen/Qwen2-Audio-7B": "qwen2_audio",
    "Qwen/Qwen2-Audio-7B-Instruct": "qwen2_audio",
    "nvidia/audio-flamingo-3-hf": "audioflamingo3",
    "runs/dual_implicit_stage1": "ast",  # in place of the run that the config names
}
DECODERS = ("Qwen/Qwen3-0.6B", "HuggingFaceTB/SmolLM2-135M", "meta-llama/Meta-Llama-3-8B-Instruct")
LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 64,
}


@pytest.fixture(scope="session")
def zoo(tmp_path_factory):
    """Miniatures under the names of real models."""
    root = tmp_path_factory.mktemp("zoo")
    for name, kind in ENCODERS.items():
        save_miniature(kind, root / name)
    save_remote_model(root / "mispeech" / "dasheng-base")
    code = root / "mispeech" / "dasheng-base" / "modeling_little.py"
    code.write_text(code.read_text().replace("self.line", "self.qkv"))  # a name that the settings look for
    tiny_qwen().save_pretrained(root / DECODERS[0])
    for name in DECODERS[1:]:
        LlamaConfig(**LLAMA).save_pretrained(root / name)
        (root / name / "model.safetensors").touch()
    return root


@pytest.fixture
def models(hub, zoo, tmp_path, fresh_model_code, monkeypatch):
    """The folder of the models on the Hub."""
    folder = tmp_path / "hub" / "models"
    folder.symlink_to(zoo)
    monkeypatch.setattr("uniaudio.hub_client.time.sleep", lambda seconds: None)
    return folder


@pytest.mark.parametrize("name", sorted(path.stem for path in PAPERS.glob("*.yaml")))
def test_every_published_setting_is_planned_from_kilobytes(name, hub, models, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    screen = io.StringIO()
    config = open_run(f"papers/{name}", [], Trust(remote_code=True))
    plans = show_plan(config, Machine(gpus=8), CLIP, Console(file=screen, width=200))
    assert [plan.name for plan in plans] == [stage.name for stage in config.stages]
    assert all(plan.trained > 0 for plan in plans)
    assert not hub.list_requests(WEIGHTS)
    assert hub.count_bytes() < 200_000


def test_a_model_with_code_is_planned_with_trust_alone(hub, models):
    with pytest.raises(UserError, match="give --trust-remote-code"):
        show_plan(open_run("papers/dual_concat"), Machine(), CLIP, Console(quiet=True))
    assert not hub.list_requests(r"\.py")


@pytest.fixture
def named_run(tone_run, hub, models):
    """A run over local tones with the models of the Hub."""
    names = ["encoders.whisper.path=openai/whisper-base", "decoder.path=Qwen/Qwen3-0.6B"]
    return lambda *more: load_run(tone_run, [*names, *more])


def check(config):
    screen = io.StringIO()
    check_run(config, Console(file=screen, width=200))
    return screen.getvalue()


def test_check_counts_the_parameters_of_models_on_the_hub(hub, named_run):
    said = check(named_run())
    assert "32 wide, 50 frames per second" in said
    assert "stage one, trained encoder parameters: whisper" in said
    assert "decoder Qwen/Qwen3-0.6B: a qwen3 model" in said
    assert "GFLOP per step" in said
    fetched = hub.list_requests("GET .*resolve")
    assert sorted(line.rpartition("/")[2] for line in fetched) == ["config.json", "config.json"]
    assert hub.count_bytes() < 20_000


def test_mistakes_show_before_weights_are_read(hub, named_run):
    with pytest.raises(UserError, match="matches no"):
        check(named_run("stages.0.lr={'^encoder.nothing': 1e-4}"))
    with pytest.raises(UserError, match=r"encoders\.whisper\.chunk_seconds: a whisper encoder has no such"):
        load_audio_encoder(EncoderConfig(path="openai/whisper-base", chunk_seconds=3.0), "encoders.whisper")
    assert not hub.list_requests(WEIGHTS)


@pytest.mark.parametrize(
    ("part", "override"),
    [("encoders.whisper", "encoders.whisper.path={}"), ("decoder.path", "decoder.path={}")],
)
def test_refusals_of_the_hub_are_one_sentence_with_the_fix(
    part, override, hub, models, named_run, zoo, monkeypatch, tmp_path
):
    def message(name, *more):
        with pytest.raises(UserError) as caught:
            check(named_run(override.format(name), *more))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    name = "openai/whisper-tiny" if part == "encoders.whisper" else "HuggingFaceTB/SmolLM2-135M"
    start = f"{part}: {name} is not a folder here and cannot be downloaded: "
    hub.gated[f"models/{name}"] = {"me"}
    assert (
        message(name)
        == f"{start}it is gated; accept its conditions at {hub.endpoint}/{name}, and log in with "
        "`hf auth login` or set HF_TOKEN"
    )
    connect_clients(monkeypatch, hub, tmp_path / "hf", token="hf_me")
    check(named_run(override.format(name)))
    setting = part.removesuffix(".path")
    assert "the Hub has no revision 'v9' of it" in message(name, f"{setting}.revision=v9")
    assert "there is no such model on the Hub, or it is private" in message("openai/whisper-huge")
    go_offline(monkeypatch)
    check(named_run(override.format(name)))  # from the cache
    assert "run `hf download openai/whisper-huge` on a machine with a network" in message(
        "openai/whisper-huge"
    )


def test_what_passes_is_tried_again(hub, named_run, capsys):
    hub.faults.add("config.json", 429, headers={"Retry-After": "1"})
    hub.faults.add("config.json", 503)
    hub.faults.add("api/models/", 503)
    assert "ok" in check(named_run())
    assert "the Hub does not answer properly (HTTP 503); tried again in 1 s" in capsys.readouterr().err
    hub.faults.add("config.json", 500, times=None)
    with pytest.raises(UserError, match="the Hub answers 500, several times; try again later"):
        check(named_run("encoders.whisper.path=openai/whisper-tiny"))


def test_without_a_way_to_the_hub_the_data_are_checked(hub, named_run, monkeypatch):
    for server in hub.servers.values():
        server.server_close()
    said = check(named_run("encoders.whisper.path=openai/whisper-tiny.en"))
    assert "not checked before the run starts: encoders.whisper: openai/whisper-tiny.en" in said
    assert "ok" in said


def test_pickles_and_adapters_on_the_hub_are_refused(hub, models, zoo, tmp_path, named_run):
    models.unlink()
    folder = models / "someone" / "old"
    folder.mkdir(parents=True)
    WhisperConfig().save_pretrained(folder)
    (folder / "pytorch_model.bin").touch()
    with pytest.raises(UserError, match=r"pytorch_model\.bin, a pickle, .*`revision: refs/pr/NUMBER`"):
        check(named_run("encoders.whisper.path=someone/old"))
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"decoder\.path: someone/old contains an adapter"):
        check(named_run("encoders.whisper.path=whisper", "decoder.path=someone/old"))
    (models / "someone" / "bare").mkdir()
    (models / "someone" / "bare" / "model.safetensors").touch()
    with pytest.raises(
        UserError, match=r"someone/bare is not a folder here .* downloaded: it holds no config\.json"
    ):
        check(named_run("encoders.whisper.path=someone/bare", "decoder.path=qwen"))


def test_one_set_of_weights_is_fetched(hub, models, zoo, tmp_path):
    names = [
        "config.json",
        "model.safetensors",
        "model.fp32-00001-of-00002.safetensors",
        "onnx/model.safetensors",
    ]
    assert choose_model_files(names) == ["config.json", "model.safetensors"]
    sharded = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    index = "model.safetensors.index.json"
    assert choose_model_files([*sharded, index, "consolidated.safetensors"]) == [index, *sharded]
    others = [f"model.safetensors-0000{number}-of-00002.safetensors" for number in (1, 2)]
    assert choose_model_files([index, *others]) == [index, *others]
    folder = find_model_folder("random:openai/whisper-base", None)
    assert [file.name for file in folder.iterdir()] == ["config.json"]
    loaded = load_audio_encoder(EncoderConfig(path="openai/whisper-base"), "encoders.whisper")
    assert loaded.dim == 32
    commit = hub.repositories.read_commit(zoo / "openai" / "whisper-base").sha
    assert identify_base("openai/whisper-base", None) == {"path": "openai/whisper-base", "revision": commit}
    assert json.loads((find_model_folder("openai/whisper-base", None) / "config.json").read_text())
