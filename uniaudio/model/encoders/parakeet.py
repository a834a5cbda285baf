"""NVIDIA's fast conformers: Parakeet, and the encoders of Canary and others, which are Parakeets."""

from __future__ import annotations

from functools import partial

from uniaudio.model.encoders.towers import TowerAudioEncoder, count_convolved, load_tower


class ParakeetAudioEncoder(TowerAudioEncoder):
    """Parakeet's encoder (fast conformer, Rekesh et al. 2023), at 12.5 frames per second.

    Clips are padded to the longest; the stock module masks its convolutions and its attention, and the features are
    normalised over every clip's own frames.
    """

    shortest = 320  # the variance of a band needs two frames
    calls_by_clip = False
    reads_mask = True

    def count_stride(self) -> int:
        return int(self.extractor.hop_length * self.model.config.subsampling_factor)

    def count_frames(self, samples: int) -> int:
        """Return the frames that the strided convolutions leave of ``floor(samples / 160)`` of the spectrogram."""
        config = self.model.config
        kernel, stride = config.subsampling_conv_kernel_size, config.subsampling_conv_stride
        frames, left = max(samples, self.least) // self.extractor.hop_length, config.subsampling_factor
        while left > 1:
            frames, left = count_convolved(frames, kernel, stride, (kernel - 1) // 2 * 2), left // stride
        return int(frames)


load_parakeet = partial(
    load_tower,
    ParakeetAudioEncoder,
    "parakeet:ParakeetEncoder",
    "parakeet:ParakeetFeatureExtractor",
    prefixes=("model.encoder.", "encoder.", "model.audio_tower.", "audio_tower.", "sound_encoder.encoder."),
    sections=("encoder_config", "audio_config", "sound_config"),
)
