import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel, BertTokenizerFast, T5Config, T5Model

from uniaudio.errors import UserError
from uniaudio.evaluate.probing.retrieval_probes import TextModel

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "barks", "at", "night"]


@pytest.fixture
def bert(tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    model = BertModel(BertConfig(vocab_size=len(WORDS), **sizes)).eval()
    model.save_pretrained(tmp_path)
    BertTokenizerFast(vocab={word: i for i, word in enumerate(WORDS)}).save_pretrained(tmp_path)
    return model, str(tmp_path)


def test_vectors_are_means_over_the_tokens_of_a_text_alone(bert):
    model, path = bert
    texts = ["a dog", "a dog barks at night", "night"]
    reader = TextModel(path)
    assert reader.ids(texts).rows()[0].tolist() == [2, 5, 6, 3]
    vectors = reader.vectors(texts)
    for vector, ids in zip(vectors, reader.ids(texts).rows(), strict=True):
        with torch.no_grad():
            states = model(input_ids=ids[None]).last_hidden_state[0]
        torch.testing.assert_close(vector, states.mean(0), atol=1e-5, rtol=1e-5)


def test_texts_are_encoded_once(bert, monkeypatch):
    reader = TextModel(bert[1])
    first = reader.vectors(["a dog", "night"])
    monkeypatch.setattr(reader, "encode", None)
    assert reader.vectors(("a dog", "night")) is first


def test_what_a_model_cannot_do_is_reported_when_it_is_loaded(bert, tmp_path):
    model, path = bert
    config = T5Config(vocab_size=len(WORDS), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    T5Model(config).save_pretrained(path)
    with pytest.raises(
        UserError, match=r"text_model: .* cannot encode texts \(.*\); name an encoder of text"
    ):
        TextModel(path)
    TextModel(path, has_weights=False)  # X-ARES takes the tokenizer alone
    model.save_pretrained(path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    save_file(
        {name: tensor for name, tensor in tensors.items() if "pooler" not in name}, file, {"format": "pt"}
    )
    TextModel(path)
    del tensors["encoder.layer.1.output.dense.weight"]
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(
        UserError, match=r"lacks weights of BertModel, such as encoder\.layer\.1\.output\.dense\.weight"
    ):
        TextModel(path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="holds no tokenizer that can be read"):
        TextModel(path)


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(UserError, match="there is no folder"):
        TextModel(str(tmp_path / "nothing"))
    with pytest.raises(UserError, match="no tokenizer"):
        TextModel(str(tmp_path))
