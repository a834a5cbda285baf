"""The processors of exported whole models: texts with a place for every clip and waveforms in, a model's inputs out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import BatchFeature, ProcessorMixin, __version__

from uniaudio.export.hub_inputs import convert_samples, drop_only_channel, is_clip_of_numbers, to_tensor

GROUPS = ("common_kwargs", "text_kwargs", "audio_kwargs")  # of settings in a call; later ones win
WINDOW_SAMPLES, COLUMN_SAMPLES = 480_000, 160  # samples of 30 s, and of one column of a spectrogram


class ClipsProcessor(ProcessorMixin):
    """Widens the places of clips in texts to their tokens; what becomes of the waveforms is up to a subclass.

    Attributes:
        audio_token: the text of the token in a clip's places, once for a clip in the texts that come in.
    """

    attributes: ClassVar[list[str]] = ["feature_extractor", "tokenizer"]
    if __version__.startswith("4."):  # later releases find them by themselves
        feature_extractor_class = "AutoFeatureExtractor"
        tokenizer_class = "AutoTokenizer"
    audio_token: str

    def count_tokens(self, samples: int) -> int:
        """Return the audio tokens of a clip of so many samples at 16 kHz."""
        raise NotImplementedError

    def make_audio_inputs(self, clips: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return what the model reads of float waveforms ``[S]``."""
        raise NotImplementedError

    def __call__(
        self,
        text: str | Sequence[str],
        audio: Any = None,
        sampling_rate: int | None = None,
        return_tensors: str = "pt",
        padding: bool | str = True,
        **settings: Any,
    ) -> BatchFeature:
        """Return ``input_ids``, ``attention_mask`` and, with clips, what the model reads of them.

        Args:
            audio: waveforms ``[S]`` of all texts, in order, float in [-1, 1] or int16; also one alone, and one list for
                each text.
            settings: of the tokenizer, also in groups such as ``text_kwargs``; ``apply_chat_template`` of transformers
                adds ``images`` and ``videos``, as None.

        Raises:
            ValueError: for other rates than 16 kHz, waveforms of two dimensions or of another kind, images, settings
                of audio that mean nothing here, and where texts have other places than there are clips.
        """
        if any(name in settings for name in GROUPS):
            given = {"sampling_rate": sampling_rate, "return_tensors": return_tensors, "padding": padding}
            return ClipsProcessor.__call__(self, text, audio, **given | merge_groups(settings))
        for name in ("images", "videos"):
            if settings.pop(name, None) is not None:
                raise ValueError(f"{name}: the model takes audio, not images or video")
        texts = [text] if isinstance(text, str) else list(text)
        clips = list_clips(audio)
        if clips and sampling_rate not in (None, self.feature_extractor.sampling_rate):
            raise ValueError(
                f"sampling_rate: {sampling_rate}, but the model needs {self.feature_extractor.sampling_rate}"
            )
        tensors = [to_tensor(clip, "cpu", "audio") for clip in clips]
        waveforms = [drop_only_channel(convert_samples(tensor, "audio")) for tensor in tensors]
        if wrong := [clip.shape for clip in waveforms if clip.dim() != 1 or not len(clip)]:
            raise ValueError(
                "audio: give a waveform [samples] with one channel that is not empty, or a list of "
                f"them; found {tuple(wrong[0])}"
            )
        mark = self.audio_token
        if (places := sum(one.count(mark) for one in texts)) != len(clips):
            raise ValueError(
                f"the texts have {places} placeholders {mark}, but there are {len(clips)} clips; "
                "give them as audio=[...], one per placeholder"
            )
        counts = iter([self.count_tokens(len(clip)) for clip in waveforms])
        parts = [one.split(mark) for one in texts]
        widened = [
            pieces[0] + "".join(mark * next(counts) + piece for piece in pieces[1:]) for pieces in parts
        ]
        settings |= {"add_special_tokens": False, "padding": padding, "return_tensors": return_tensors}
        data = dict(self.tokenizer(widened, **settings))
        data.pop("token_type_ids", None)
        if waveforms:
            floats = [clip if clip.is_floating_point() else clip.float() / 32768.0 for clip in waveforms]
            data |= self.make_audio_inputs(floats)
        return BatchFeature(data, tensor_type=return_tensors)


def merge_groups(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a call with those of its groups among them, as processors of transformers take them.

    Raises:
        ValueError: when ``audio_kwargs`` has more than a sampling rate, for waveforms are padded as the model needs it.
    """
    if wrong := [name for name in settings.get("audio_kwargs") or {} if name != "sampling_rate"]:
        raise ValueError(f"audio_kwargs: there is no setting {wrong[0]}; only sampling_rate is possible")
    merged = {name: value for name, value in settings.items() if name not in GROUPS}
    for group in GROUPS:
        merged |= settings.get(group) or {}
    return merged


def list_clips(audio: Any) -> list[Any]:
    """Return the waveforms of all texts: one waveform alone, a list of them, or one list for each text."""
    if audio is None:
        return []
    if not isinstance(audio, list | tuple) or is_clip_of_numbers(audio):
        return [audio]
    return [
        clip for part in audio for clip in (list_clips(part) if isinstance(part, list | tuple) else [part])
    ]


class WindowsProcessor(ClipsProcessor):
    """Cuts clips into windows of 30 s, of which each becomes a log-mel spectrogram alone.

    Args:
        audio_token: see ``ClipsProcessor``. stack: encoder frames of 20 ms that make one token.
    """

    def __init__(
        self,
        feature_extractor: Any = None,
        tokenizer: Any = None,
        chat_template: str | None = None,
        audio_token: str = "",
        stack: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(feature_extractor, tokenizer, chat_template=chat_template)
        self.audio_token, self.stack = audio_token, stack

    def cut(self, samples: int) -> list[int]:
        """Return the samples of each window of a clip."""
        return [min(WINDOW_SAMPLES, samples - first) for first in range(0, samples, WINDOW_SAMPLES)]

    def count_window_tokens(self, samples: int) -> int:
        """Return the audio tokens of a window of so many samples."""
        return -(-samples // (2 * COLUMN_SAMPLES * self.stack))

    def count_tokens(self, samples: int) -> int:
        """Return the audio tokens of a clip, counted anew in every window."""
        return sum(self.count_window_tokens(part) for part in self.cut(samples))

    def make_spectrograms(self, clips: Sequence[Tensor]) -> Tensor:
        """Return the log-mel spectrograms ``[W, M, 3000]`` of all windows, silence behind what is shorter."""
        windows = [part.numpy() for clip in clips for part in clip.split(WINDOW_SAMPLES)]
        rate = self.feature_extractor.sampling_rate
        features = self.feature_extractor(
            windows, sampling_rate=rate, padding="max_length", return_tensors="pt"
        )
        return features["input_features"]


class VoxtralProcessor(WindowsProcessor):
    """For Voxtral: every window has the tokens of 30 s.

    The class of this name in transformers reads tokenizers of Mistral alone.
    """

    def count_window_tokens(self, samples: int) -> int:
        """Return the tokens of 30 s."""
        return WINDOW_SAMPLES // (2 * COLUMN_SAMPLES * self.stack)

    def make_audio_inputs(self, clips: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return ``input_features [W, M, 3000]``."""
        return {"input_features": self.make_spectrograms(clips)}

    @property
    def model_input_names(self) -> list[str]:
        """The names of what a call returns."""
        return ["input_ids", "attention_mask", "input_features"]


class UltravoxProcessor(WindowsProcessor):
    """For Ultravox: spectrograms as long as the longest window, zeros behind what is shorter, and their lengths.

    Attributes:
        audio_processor, audio_token_replacement, audio_replacement_token_id: names that vLLM reads and sets.
    """

    def __init__(
        self,
        feature_extractor: Any = None,
        tokenizer: Any = None,
        chat_template: str | None = None,
        audio_token: str = "",
        stack: int = 8,
        **kwargs: Any,
    ) -> None:
        super().__init__(feature_extractor, tokenizer, chat_template, audio_token, stack)
        self.audio_processor = feature_extractor
        self.audio_token_replacement = self.audio_token
        self.audio_replacement_token_id = tokenizer.convert_tokens_to_ids(self.audio_token)

    def __call__(
        self,
        text: str | Sequence[str],
        audio: Any = None,
        sampling_rate: int | None = None,
        return_tensors: str = "pt",
        padding: bool | str = True,
        audios: Any = None,
        include_audio_num_chunks: bool = True,
        **settings: Any,
    ) -> BatchFeature:
        """Return the inputs of texts and clips, see ``ClipsProcessor``.

        ``audio_values [W, M, F]``, ``audio_lens [W]`` in columns, ``audio_token_len [W]``, ``audio_token_start_idx
        [W]``: the first place of a window in its row, ``audio_batch_size [B]``: windows of every text, and
        ``audio_num_chunks [C]``: windows of every clip.

        Args:
            audios: another name of ``audio``. include_audio_num_chunks: whether the last of these is wanted.
        """
        audio = audios if audio is None else audio
        data = super().__call__(text, audio, sampling_rate, return_tensors, padding, **settings)
        if "audio_values" not in data:
            return data
        places = torch.as_tensor(data["input_ids"]) == self.audio_replacement_token_id
        starts, sizes, row, place = [], [0] * len(places), 0, 0
        columns = [row.nonzero().flatten().tolist() for row in places]
        for tokens in data["audio_token_len"].tolist():
            while place == len(columns[row]):
                row, place = row + 1, 0
            starts.append(columns[row][place])
            sizes[row] += 1
            place += tokens
        data["audio_token_start_idx"] = torch.tensor(starts)
        data["audio_batch_size"] = torch.tensor(sizes)
        if not include_audio_num_chunks:
            data.pop("audio_num_chunks")
        return data

    def make_audio_inputs(self, clips: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return spectrograms and lengths of all windows."""
        windows = [part for clip in clips for part in self.cut(len(clip))]
        lengths = torch.tensor([2 * -(-samples // (2 * COLUMN_SAMPLES)) for samples in windows])
        values = self.make_spectrograms(clips)[:, :, : int(lengths.max())]
        is_real = torch.arange(values.shape[-1]) < lengths[:, None]
        return {
            "audio_values": values * is_real[:, None],
            "audio_lens": lengths,
            "audio_token_len": torch.tensor([self.count_window_tokens(samples) for samples in windows]),
            "audio_num_chunks": torch.tensor([len(self.cut(len(clip))) for clip in clips]),
        }

    @property
    def model_input_names(self) -> list[str]:
        """The names of what a call returns."""
        return ["input_ids", "attention_mask", "audio_values", "audio_lens", "audio_token_len"]
