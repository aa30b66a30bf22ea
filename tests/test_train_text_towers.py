"""Contrastive models whose tokenizer or text tower is of transformers: trained, exported, loaded; no code is run."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from test_train_contrastive import SMALL, WORDS, job, shard
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, RobertaConfig, RobertaModel

from vlmdata.errors import InputError
from vlmdata.train import checkpoint
from vlmdata.train.contrastive import build, load
from vlmdata.train.loop import train

WORD_IDS = {word: place for place, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", "a", *WORDS])}
VISION = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8}
SIGLIP = {
    "context_length": 8,
    "vocab_size": len(WORD_IDS),
    "tokenizer_kwargs": {"clean": "canonicalize"},
    "width": 32,
    "heads": 2,
    "layers": 1,
    "no_causal_mask": True,
    "proj_bias": True,
    "pool_type": "last",
}


def tokenizer_in(folder: Path) -> str:
    made = Tokenizer(models.WordLevel(WORD_IDS, "<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing("<s> $A </s>", None, [("<s>", 1), ("</s>", 2)])
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=made, **special).save_pretrained(folder)
    return str(folder)


def roberta(positions: int = 12) -> RobertaConfig:
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    return RobertaConfig(**small, vocab_size=len(WORD_IDS), max_position_embeddings=positions, pad_token_id=0)


def siglip_of(folder: Path) -> dict[str, Any]:
    text = SIGLIP | {"hf_tokenizer_name": tokenizer_in(folder)}
    return {"embed_dim": 32, "init_logit_bias": -3, "custom_text": True, "vision_cfg": VISION, "text_cfg": text}


def roberta_of(folder: Path, positions: int = 12) -> dict[str, Any]:
    name = tokenizer_in(folder)
    roberta(positions).save_pretrained(folder)
    text = {"hf_model_name": name, "hf_tokenizer_name": name, "hf_pooler_type": "mean_pooler", "context_length": 8}
    return {"embed_dim": 32, "vision_cfg": VISION, "text_cfg": text}


@pytest.mark.parametrize(("of", "loss"), [(siglip_of, "siglip"), (roberta_of, "clip")])
def test_a_model_with_a_tokenizer_of_transformers_is_learnt_and_its_export_gives_the_same_vectors(
    tmp_path: Path, of: Any, loss: str
) -> None:
    shards = [shard(tmp_path / "a.tar")]
    options = {"model": of(tmp_path / "text"), "loss": loss, "steps": 60, "lr": 5e-3}
    final = train(job(**options), {"train": shards, "test": shards}, str(tmp_path / "out"))
    assert final["retrieval/image_to_text/R@1"] > 0.8
    captions = [f"A {word.upper()}!" if loss == "siglip" else f"a {word}" for word in WORDS]
    trained = checkpoint.load(tmp_path / "out")
    tokens = trained.tokenizer(captions)
    assert len({tuple(row) for row in tokens.tolist()}) == 16  # SigLIP's are canonicalized: lower case, no signs
    assert 3 not in tokens
    exported = f"local-dir:{tmp_path / 'out' / 'model'}"
    (tmp_path / "text").rename(tmp_path / "elsewhere")  # the export stands alone
    clip, read = open_clip.create_model(exported).eval(), open_clip.get_tokenizer(exported)
    assert torch.equal(read(captions), tokens)
    with torch.no_grad():
        torch.testing.assert_close(clip.encode_text(tokens), trained.clip.encode_text(tokens))
    (tmp_path / "out" / "model").rename(tmp_path / "moved")
    vectors = load(tmp_path / "moved", 8).encode_texts(captions)
    with torch.no_grad():
        expected = trained.clip.encode_text(tokens, normalize=True).numpy()
    np.testing.assert_allclose(vectors, expected, atol=1e-6)
    again = build(job(model=f"local-dir:{tmp_path / 'moved'}", loss=loss))
    assert torch.equal(again.tokenizer(captions), tokens)
    assert torch.equal(again.clip.logit_scale, trained.clip.logit_scale)


def test_a_text_tower_begins_with_the_weights_of_its_folder_unless_it_has_none_or_is_told_not_to(
    tmp_path: Path,
) -> None:
    model = roberta_of(tmp_path / "text")
    torch.manual_seed(1)
    RobertaModel(roberta()).save_pretrained(tmp_path / "text")
    known = RobertaModel.from_pretrained(tmp_path / "text").state_dict()

    def embeddings(chosen: dict[str, Any]) -> torch.Tensor:
        return build(job(model=chosen)).clip.text.transformer.state_dict()["embeddings.word_embeddings.weight"]

    assert torch.equal(embeddings(model), known["embeddings.word_embeddings.weight"])
    told = model | {"text_cfg": model["text_cfg"] | {"hf_model_pretrained": False}}
    assert not torch.equal(embeddings(told), known["embeddings.word_embeddings.weight"])


def test_folders_that_a_configuration_file_names_are_looked_for_beside_it(tmp_path: Path) -> None:
    model = siglip_of(tmp_path / "text")
    model["text_cfg"]["hf_tokenizer_name"] = "text"
    (tmp_path / "mine.json").write_text(json.dumps(model))
    assert build(job(model=str(tmp_path / "mine.json"))).tokenizer(["a cat"]).tolist() == [[1, 4, 5, 2, 0, 0, 0, 0]]


def test_what_does_not_fit_together_is_refused(tmp_path: Path) -> None:
    few = siglip_of(tmp_path / "text")
    few["text_cfg"]["vocab_size"] = 3
    with pytest.raises(InputError, match="vocab_size or context_length is too small"):
        build(job(model=few))
    with pytest.raises(InputError, match="vocab_size or context_length is too small"):
        build(job(model=roberta_of(tmp_path / "short", positions=6)))
    (tmp_path / "empty").mkdir()
    nothing = {**SMALL, "text_cfg": {**SMALL["text_cfg"], "hf_tokenizer_name": str(tmp_path / "empty")}}
    with pytest.raises(InputError, match="empty holds no tokenizer"):
        build(job(model=nothing))
    tower = roberta_of(tmp_path / "tower")
    tower["text_cfg"]["hf_model_name"] = str(tmp_path / "empty")
    with pytest.raises(InputError, match="empty holds no configuration"):
        build(job(model=tower))
    for pretrained in (None, "somewhere"):
        with pytest.raises(InputError, match="--local-dir FOLDER`, then give local-dir:FOLDER"):
            build(job(model="hf-hub:someone/model", pretrained=pretrained))


def test_code_beside_a_tokenizer_or_a_text_tower_is_never_run(tmp_path: Path) -> None:
    def altered(file: str, **values: Any) -> None:
        path = tmp_path / "text" / file
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    model = roberta_of(tmp_path / "text")
    (tmp_path / "text" / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass A: pass\n")
    altered("tokenizer_config.json", tokenizer_class="A", auto_map={"AutoTokenizer": ["evil.A", None]})
    assert build(job(model=model)).tokenizer(["a cat"]).shape == (1, 8)  # transformers' own class reads tokenizer.json
    altered("config.json", auto_map={"AutoModel": "evil.A"})
    build(job(model=model)).export(tmp_path / "out")
    assert "auto_map" not in json.loads((tmp_path / "out" / "config.json").read_text())
    altered("config.json", model_type="evil", auto_map={"AutoConfig": "evil.A", "AutoModel": "evil.A"})
    with pytest.raises(InputError, match="contains custom code"):
        build(job(model=model))
    assert not (tmp_path / "ran").exists()


def test_a_locked_text_tower_of_transformers_is_locked_without_a_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = build(job(model=roberta_of(tmp_path / "text"), lock=["text"], unlocked_groups=1)).clip
    trained = {name for name, p in clip.text.transformer.named_parameters() if p.requires_grad}
    assert trained
    assert all(name.startswith("encoder.layer.1.") for name in trained)
    assert capsys.readouterr().out == ""
