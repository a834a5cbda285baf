import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

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


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(UserError, match="there is no folder"):
        TextModel(str(tmp_path / "nothing"))
    with pytest.raises(UserError, match="no tokenizer"):
        TextModel(str(tmp_path))
