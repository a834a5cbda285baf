"""The training runs over real models and labelled audio, by the question that each of them answers.

A run is ``configs/real.yaml``, or a config on top of it, with a few values changed. Those that are compared are trained
on the same number of seconds of audio.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from uniaudio.config.base_files import read_layers
from uniaudio.config.search_paths import find_file

SHORT_STEPS = 640  # about half an hour of one core with the 135 M decoder; 400 steps hardly move the probes
THREE_SEEDS = (0, 1, 2)
STAGE_SHARES = {"speech": 0.31, "sounds": 0.15, "music": 0.54}  # of the draws of the recipe real
LISTENING_SHARE = 0.35  # of the steps of a run that begins by listening
ONE_WORDING = ("real_listen", "real")  # recipes of the two stages, which question (c) cuts to one wording
SMOLLM2 = "${realmodels}/smollm2-135m-instruct"


@dataclass(frozen=True)
class Run:
    """One training run.

    Args:
        config: name of a run config. overrides: changes of it. seeds: one training for each.
        short: whether it is cut to the length of the comparisons. share: of that length. stages: whether it is probed
            after every stage. trusted: whether its encoders bring code of their own, which may run.
        start: the untrained encoder that its own is trained from.
    """

    overrides: tuple[str, ...] = ()
    config: str = "real"
    seeds: tuple[int, ...] = (0,)
    short: bool = True
    share: float = 1.0
    stages: bool = False
    trusted: bool = False
    start: str = "before"


@dataclass(frozen=True)
class Question:
    """A table: what is compared, and the runs by the name that the table gives them.

    Args:
        nightly: whether it is answered without being named. references: arms whose best score of every set the others
            are held against.
    """

    title: str
    arms: Mapping[str, str]
    nightly: bool = True
    references: tuple[str, ...] = ()


FUSION_SHARE = 0.1  # about five minutes: the frames of frozen encoders are computed once
POOL = ("crepe-tiny", "ge2e", "sfx", "distillmos")
SECONDS = {"crepe": "crepe-tiny", "sfx": "sfx"}  # name in the runs -> folder of the second encoder
ALONE = {  # every encoder of the pool by itself, with audio tokens that divide its frames
    "crepe": ("crepe-tiny", "adapter.rate=3.125"),
    "sfx": ("sfx", "adapter.rate=2.5"),
    "ge2e": ("ge2e", "adapter.rate=3.125"),
    "distillmos": ("distillmos", "adapter.rate=3.125"),
}
OPERATORS: dict[str, str] = {
    "concat": "{kind: concat}",
    "sum": "{kind: sum}",
    "mix": "{kind: mix}",
    "gate": "{kind: gate}",
    "gate_stft": "{kind: gate, stft: {}}",
    "moe_concat": "{kind: moe_concat}",
    "moe_proj": "{kind: moe_proj}",
    "explicit": "{kind: explicit, stft: {}}",
    "wq": "{kind: wq}",
    "unimoe": "{kind: unimoe}",
    "layers": "{kind: layers}",
    "hconv": "{kind: hconv}",
    "chconv": "{kind: chconv}",
}
READS_LAYERS = ("layers", "hconv", "chconv")  # operators over all hidden states, which are not kept on disk
PUBLISHED_START_ONLY = ("hconv", "chconv")
TRAINED_TOO = ("concat", "gate")  # operators that are also run with everything trained
FITTED_STARTS = ("wccn", "whitening")
FITTED_LENGTH = ("fusion.start_examples=900", "fusion.lr=1e-4")
WHISPER_FRAMES = json.dumps(read_layers(find_file("config", "real_fusion"), "config")["encoders"]["whisper"])


def second_encoder(folder: str, train: str = "frozen", cache: bool = True) -> str:
    """Return the settings of an encoder that brings code of its own."""
    kept = f", cache: {str(cache).lower()}" if cache else ""
    return (
        f"{{kind: remote, path: '${{realmodels}}/{folder}', train: {train}{kept}, trust_remote_code: true}}"
    )


def fusion_runs() -> dict[str, Run]:
    """Return the runs over two encoders for every operator, each encoder alone, and the mixture of weak encoders."""
    runs = {}

    def add(name: str, *overrides: str) -> None:
        runs[name] = Run(overrides, config="real_fusion", share=FUSION_SHARE, trusted=True)

    add("whisper_alone", f"encoders={{whisper: {WHISPER_FRAMES}}}", "fusion=null")
    for name, (folder, rate) in ALONE.items():
        add(f"{name}_alone", f"encoders={{second: {second_encoder(folder)}}}", "fusion=null", rate)
    for name, folder in SECONDS.items():
        for operator, given in OPERATORS.items():
            fused = [f"fusion={given[:-1]}, rate: 25, lr: 1e-3}}"]
            if operator in READS_LAYERS:
                fused += [
                    "encoders.whisper.cache=false",
                    f"encoders.second={second_encoder(folder, cache=False)}",
                ]
            else:
                fused += [f"encoders.second={second_encoder(folder)}"]
            add(f"{name}_{operator}", *fused)
            if operator not in PUBLISHED_START_ONLY:
                for start in FITTED_STARTS:
                    add(f"{name}_{operator}_{start}", *fused, f"fusion.start={start}", *FITTED_LENGTH)
            if operator in TRAINED_TOO:
                trained = second_encoder(folder, "full", cache=False)
                whisper = ["encoders.whisper.train=full", "encoders.whisper.cache=false"]
                settings = (*whisper, f"encoders.second={trained}", "fusion.start=whitening", *FITTED_LENGTH)
                add(f"{name}_{operator}_whitening_trained", fused[0], *settings)
    pool = ", ".join(f"{folder.split('-')[0]}: {second_encoder(folder)}" for folder in POOL)
    weak = (f"encoders={{whisper: {WHISPER_FRAMES}, {pool}}}", "fusion={kind: mowe, rate: 25, lr: 1e-3}")
    add("mowe", *weak)
    add("mowe_pca", *weak, "fusion.start=pca", "fusion.start_examples=900")
    return runs


DEPTH = "adapter.depth={encoder_layers: [2, 4], decoder_layers: [0, 1]}"
TIME_MARKERS = "adapter.time_markers=1"
# of configs/real_continual.yaml, whose stages are listening, speech, sounds and music; distillation as in real
REPLAY = ("stages.2.recipe=real_sounds_replay", "stages.3.recipe=real_music_replay")
DISTILL = tuple(
    f"stages.{number}.continual={{distill: {{weight: 1.0, distance: cosine}}}}" for number in (1, 2, 3)
)

RUNS: dict[str, Run] = {
    "real": Run(seeds=THREE_SEEDS, short=False),
    "real_qwen": Run(config="real_qwen", short=False),
    "joint": Run(seeds=THREE_SEEDS),
    "whisper_decoder": Run(
        (
            "decoder.kind=whisper",
            "adapter.start=random",  # it has no audio tokens
            "decoder.path=${realmodels}/whisper-base",
            "encoders.whisper.tail_frames=25",  # the silence by which this decoder learned to stop
            "encoders.whisper.keep_tail=true",
        ),
        seeds=THREE_SEEDS,
        start="before_decoder",
    ),
    "random_lm": Run((f"decoder.path=random:{SMOLLM2}",), seeds=THREE_SEEDS),
    "random_lm_trained": Run((f"decoder.path=random:{SMOLLM2}", "decoder.train=full")),
    "gemma": Run(("decoder.path=${realmodels}/gemma-3-270m",)),
    "qwen": Run(("decoder.path=${realmodels}/qwen2.5-coder-0.5b-instruct",)),
    "one_wording": Run(
        tuple(f"stages.{n}.recipe={{one_wording}}/{name}.yaml" for n, name in enumerate(ONE_WORDING))
    ),
    "encoder_lora": Run(("encoders.whisper.train=lora", "encoders.whisper.lr=5e-4")),
    "encoder_frozen": Run(("encoders.whisper.train=frozen",)),
    "stages": Run(config="real_continual", stages=True),
    "stages_replay": Run(REPLAY, config="real_continual", stages=True),
    "stages_distill": Run(DISTILL, config="real_continual", stages=True),
    "stages_replay_distill": Run((*REPLAY, *DISTILL), config="real_continual", stages=True),
    "rate_25": Run(("adapter.rate=25",)),
    "rate_12.5": Run(("adapter.rate=12.5",)),
    "rate_6.25": Run(("adapter.rate=6.25",)),
    "depth": Run((DEPTH,)),
    "time_markers": Run((TIME_MARKERS,)),
    "depth_time_markers": Run((DEPTH, TIME_MARKERS)),
}

RUNS |= fusion_runs()

QUESTIONS: dict[str, Question] = {
    "main": Question(
        "Whisper base before and after training",
        {"SmolLM2-135M": "real", "Qwen2.5-Coder-0.5B": "real_qwen"},
    ),
    "a": Question(
        "Which decoder asks the questions",
        {
            "pretrained LM, frozen": "joint",
            "Whisper's own decoder, frozen": "whisper_decoder",
            "LM of random weights, frozen": "random_lm",
            "LM of random weights, trained": "random_lm_trained",
        },
    ),
    "b": Question(
        "Which pretrained LM",
        {"SmolLM2-135M": "joint", "Gemma 3 270M": "gemma", "Qwen2.5-Coder-0.5B": "qwen"},
    ),
    "c": Question("Wordings of each question", {"five": "joint", "one": "one_wording"}),
    "d": Question(
        "What is trained of the encoder",
        {"in full": "joint", "LoRA": "encoder_lora", "frozen": "encoder_frozen"},
    ),
    "e": Question(
        "Speech, then sounds, then music",
        {
            "joint": "joint",
            "in stages": "stages",
            "with replay": "stages_replay",
            "with distillation": "stages_distill",
            "with both": "stages_replay_distill",
        },
    ),
    "f": Question(
        "Audio tokens a second", {"25": "rate_25", "12.5": "rate_12.5", "6.25": "rate_6.25", "3.1": "joint"}
    ),
    "g": Question(
        "Encoder layers handed to decoder layers, and time markers",
        {
            "neither": "joint",
            "depth": "depth",
            "time markers": "time_markers",
            "both": "depth_time_markers",
        },
    ),
}


for second, folder in SECONDS.items():
    fusions = [name for name in RUNS if name.startswith(f"{second}_")]
    QUESTIONS[f"fusion_{second}"] = Question(
        f"Whisper base and {folder}",
        {"Whisper alone": "whisper_alone", **{name.replace("_", " "): name for name in fusions}},
        nightly=False,
        references=("Whisper alone", f"{second} alone"),
    )
pool = {f"{name} alone": f"{name}_alone" for name in ("whisper", *ALONE)}
QUESTIONS["fusion_pool"] = Question(
    "Whisper base and a routed pool of weak encoders",
    {**pool, "MoWE": "mowe", "MoWE pca": "mowe_pca"},
    nightly=False,
    references=tuple(pool),
)


def shorten(run: Run, steps: int) -> list[str]:
    """Return the overrides that cut a run to the length of the comparisons, over all of its stages together."""
    if not run.short:
        return []
    steps = max(1, round(run.share * steps))
    lengths = stage_steps(steps) if run.stages else split_stages(run, steps)
    changes = ["train.micro_batches=1", "train.save_every=50", "train.log_every=5"]
    for number, count in enumerate(lengths):
        changes += [f"stages.{number}.steps={count}", f"stages.{number}.warmup={max(1, count // 10)}"]
    return changes


def split_stages(run: Run, steps: int) -> list[int]:
    """Return the steps of the stages of a run that is not about stages: of one, or of listening and the rest."""
    if len(read_layers(find_file("config", run.config), "config")["stages"]) == 1:
        return [steps]
    first = max(1, round(LISTENING_SHARE * steps))
    return [first, max(1, steps - first)]


def stage_steps(steps: int) -> list[int]:
    """Return the steps of listening, and of the three stages in proportion to the draws of the joint recipe."""
    listening = max(1, round(LISTENING_SHARE * steps))
    speech, sounds, _ = (max(1, round(share * (steps - listening))) for share in STAGE_SHARES.values())
    return [listening, speech, sounds, max(1, steps - listening - speech - sounds)]
