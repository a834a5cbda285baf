"""``uniaudio embed``: files that cannot be used are named and left out."""

import numpy as np
import pytest
import soundfile
from conftest import tiny_whisper
from helpers.files import clip_bytes

from uniaudio.commands.embed import embed_files
from uniaudio.errors import UserError
from uniaudio.model.encoders.whisper import WhisperAudioEncoder


def test_a_damaged_file_does_not_end_the_others(tmp_path, capsys):
    tiny_whisper().save_pretrained(tmp_path / "whisper")
    model, out = str(tmp_path / "whisper"), tmp_path / "e.npz"
    files = [tmp_path / name for name in ("a.wav", "broken.wav", "gone.wav", "loud.wav")]
    files[0].write_bytes(clip_bytes(1))
    files[1].write_bytes(b"no audio")
    soundfile.write(files[3], np.full(1600, 1.5, np.float32), 16000, subtype="FLOAT")
    embed_files(model, files, out, frames=True)
    arrays = np.load(out)
    assert arrays["files"].tolist() == [str(files[0]), str(files[3])]
    assert len(arrays["embeddings"]) == 2
    np.testing.assert_allclose(arrays["frames_1"].mean(0), arrays["embeddings"][1], atol=1e-4)
    said = "".join(capsys.readouterr().out.split())  # a long path is broken anywhere
    assert "broken.wavisskipped:brokenaudio" in said
    assert "gone.wavisskipped:missingfile" in said
    assert "loud.wav:clippedsamples:morethan1%ofthesamples" in said
    assert "2clip(s),64dimensions,2file(s)skipped" in said
    embed_files(model, files[:1], tmp_path / "vectors.of.mine", frames=False)
    assert len(np.load(tmp_path / "vectors.of.mine")["embeddings"]) == 1
    with pytest.raises(UserError, match=r"none of 2 file\(s\) can be used; the first: broken audio"):
        embed_files("nothing", files[1:3], out, frames=False)


def test_embeddings_that_are_not_finite_are_left_out(tmp_path, monkeypatch, capsys):
    class Embedder:
        frame_rate, dim = 50.0, 2

        def embed(self, clips, pool="mean"):
            means = np.array([[np.nan, 1] if clip[0] == 2 else [clip[0], 1] for clip in clips], np.float32)
            return means if pool == "mean" else [mean[None] for mean in means]

    monkeypatch.setattr("uniaudio.commands.embed.load_embedder", lambda spec, trust: Embedder())
    files = [tmp_path / f"{value}.wav" for value in (1, 2, 3)]
    for value, file in enumerate(files, start=1):
        file.write_bytes(clip_bytes(value))
    for frames in (False, True):
        embed_files("model", files, tmp_path / "e.npz", frames)
        arrays = np.load(tmp_path / "e.npz")
        assert arrays["files"].tolist() == [str(files[0]), str(files[2])]
        assert arrays["embeddings"].tolist() == [[1, 1], [3, 1]]
        assert [arrays[name].tolist() for name in ("frames_0", "frames_1") if frames] == [[[1, 1]], [[3, 1]]][
            : 2 * frames
        ]
        said = "".join(capsys.readouterr().out.split())
        assert "2.wavisskipped:itsembeddingisnotfinite" in said
        assert "2clip(s),2dimensions,1file(s)skipped" in said
    with pytest.raises(UserError, match=r"model: the embeddings of all 1 clip\(s\) are not finite"):
        embed_files("model", files[1:2], tmp_path / "none.npz", frames=False)
    assert not (tmp_path / "none.npz").exists()


def test_frames_and_embeddings_come_from_one_pass(tmp_path, monkeypatch):
    """The embeddings are those without frames to the last bit."""
    tiny_whisper().save_pretrained(tmp_path / "whisper")
    files = [tmp_path / "a.wav", tmp_path / "b.wav"]
    for number, file in enumerate(files, start=1):
        file.write_bytes(clip_bytes(number, count=8000 * number))
    batch_sizes, forward = [], WhisperAudioEncoder.forward

    def listen(self, audio, **given):
        batch_sizes.append(len(audio))
        return forward(self, audio, **given)

    monkeypatch.setattr(WhisperAudioEncoder, "forward", listen)
    embed_files(str(tmp_path / "whisper"), files, tmp_path / "both.npz", frames=True)
    assert batch_sizes == [2]
    embed_files(str(tmp_path / "whisper"), files, tmp_path / "plain.npz", frames=False)
    both, plain = np.load(tmp_path / "both.npz"), np.load(tmp_path / "plain.npz")
    np.testing.assert_array_equal(both["embeddings"], plain["embeddings"])
    assert sorted({*both} - {*plain}) == ["frames_0", "frames_1"]
