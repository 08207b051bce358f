"""A checkpoint in the hands of transformers: loaded in other dtypes, trained, asked for more than logits.

Models of transformers itself (GPT-2, BERT, Llama) are its own classes there, so for some rules they are ours instead.

Shapes: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    DataCollatorForLanguageModeling,
)

from foundry_core import BaseLanguageModel, ExperimentConfig, create_model
from foundry_core.errors import FoundryError
from tests.each import each

# name: architecture, example, objective
ADAPTED = {
    "lstm": ("lstm", "tiny", "causal_lm"),
    "lstm-tied": ("lstm", "tiny_tied", "causal_lm"),
    "lstm-both": ("lstm", "tiny_bidirectional", "masked_lm"),
    "gru-masked": ("gru", "tiny", "masked_lm"),
    "rnn": ("rnn", "tiny", "causal_lm"),
    "mamba": ("mamba", "tiny", "causal_lm"),
    "rnn-one-hot": ("rnn", "tiny_one_hot", "causal_lm"),
}
WRAPPED = {
    "gpt2": ("gpt2", "tiny", "causal_lm"),
    "bert": ("bert", "tiny", "masked_lm"),
    "llama": ("transformers", "tiny", "causal_lm"),
    "deberta-v2": ("transformers", "tiny_deberta_v2", "masked_lm"),
}
MODELS = {**ADAPTED, **WRAPPED}
COUNTED = {"ngram": ("ngram", "tiny", "causal_lm")}
CAUSAL = [name for name, model in MODELS.items() if model[2] == "causal_lm"]
IDS = torch.randint(0, 26, (4, 10), generator=torch.Generator().manual_seed(0))
MASK = torch.ones_like(IDS)
MASK[1, 7:] = 0
LABELS = IDS.masked_fill((MASK == 0) | (IDS % 5 == 0), -100)
Open = Callable[..., Any]


@pytest.fixture(scope="module")
def opened(
    experiment: Callable[..., ExperimentConfig], letters: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Open]:
    """`opened(name, ours=False, **options)`: a saved model, opened by its auto class or by foundry."""
    home = tmp_path_factory.mktemp("saved")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def make(name: str, *, ours: bool = False, auto: Any = None, **options: Any) -> Any:
        folder, (architecture, example, objective) = home / name, {**MODELS, **COUNTED}[name]
        if not folder.exists():
            config = experiment(architecture, home, example=example, training={"objective": objective})
            create_model(config, letters).save_pretrained(folder)
        if ours:
            return BaseLanguageModel.from_pretrained(folder)
        auto = auto or (AutoModelForCausalLM if objective == "causal_lm" else AutoModelForMaskedLM)
        return auto.from_pretrained(folder, **options)

    yield make
    torch.set_num_threads(threads)


def both(opened: Open, name: str, **options: Any) -> list[Any]:
    """The model as transformers opens it, where that is a class of ours, and as foundry does."""
    return [opened(name, ours=True), *([opened(name, **options)] if name in ADAPTED else [])]


def refusal(model: Any, ids: torch.Tensor | None, **asked: Any) -> str:
    with pytest.raises((FoundryError, TypeError, ValueError)) as caught:
        model(ids, **asked)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Loading and training.


@each("name", ["lstm-tied", "mamba"])
def test_a_device_map_leaves_a_plugin_s_model_whole(opened: Open, name: str) -> None:
    accelerate = pytest.importorskip("accelerate")
    model = opened(name)
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    given = {0: size // 2, 1: 2 * size, "cpu": 2 * size}
    found = accelerate.infer_auto_device_map(model, given, no_split_module_classes=list(model._no_split_modules))
    assert len(set(found.values())) == 1
    assert torch.equal(opened(name, device_map="auto")(IDS).logits, model(IDS).logits)


@each("name", MODELS)
@pytest.mark.long
def test_it_opens_in_another_dtype_and_is_saved_in_it(opened: Open, tmp_path: Path, name: str) -> None:
    exact = opened(name)(IDS, attention_mask=MASK).logits.detach()
    for dtype, error in ((torch.bfloat16, 0.03), (torch.float64, 1e-5)):
        model = opened(name, dtype=dtype)
        assert {parameter.dtype for parameter in model.parameters()} == {dtype}
        logits = model(IDS, attention_mask=MASK).logits
        torch.testing.assert_close(logits.to(exact), exact, rtol=0, atol=error * float(exact.abs().max()))
        if name in CAUSAL:
            model.generate(IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=2, do_sample=False)
        model.save_pretrained(tmp_path / str(dtype))
        again = type(model).from_pretrained(tmp_path / str(dtype))
        assert again.dtype == dtype
        assert torch.equal(again(IDS, attention_mask=MASK).logits, logits)
    assert torch.get_default_dtype() == torch.float32


@each("name", MODELS)
def test_num_items_in_batch_divides_the_sum_of_losses(opened: Open, name: str) -> None:
    if name in WRAPPED and name not in CAUSAL:
        return  # the masked classes of transformers ignore it
    model, ours = opened(name), opened(name, ours=True)
    total = ours(IDS, attention_mask=MASK, labels=LABELS, reduction="sum")
    for number in (7, torch.tensor(7)):
        shared = model(IDS, attention_mask=MASK, labels=LABELS, num_items_in_batch=number).loss
        torch.testing.assert_close(shared, total.loss / 7, rtol=1e-5, atol=0)
    plain = model(IDS, attention_mask=MASK, labels=LABELS).loss
    torch.testing.assert_close(plain, total.loss / total.count, rtol=1e-5, atol=0)
    evaluated = model(IDS, labels=LABELS, num_items_in_batch=7)
    if name in ADAPTED:  # the Trainer collects the rest as predictions
        assert evaluated.keys() - {*model.config.keys_to_ignore_at_inference} == {"loss", "logits"}
    assert model(IDS, num_items_in_batch=7).logits.shape == (4, 10, 32)


@pytest.mark.long
@each("name", [*ADAPTED, "gpt2", "bert"])
def test_the_trainer_of_transformers_trains_it(opened: Open, letters: Any, tmp_path: Path, name: str) -> None:
    """Each batch whole or in four parts gives the same losses; what it saves is what it has trained."""
    pytest.importorskip("accelerate")
    transformers.utils.logging.disable_progress_bar()
    rows = [{"input_ids": row[: 4 + index % 6].tolist()} for index, row in enumerate(IDS.repeat(4, 1))]
    masked = name not in CAUSAL
    losses = {}
    for parts in (1, 4):
        collator = DataCollatorForLanguageModeling(letters, mlm=masked, seed=0 if masked else None)
        arguments = transformers.TrainingArguments(
            str(tmp_path),
            max_steps=3,
            per_device_train_batch_size=8 // parts,
            gradient_accumulation_steps=parts,
            learning_rate=1e-2,
            logging_steps=1,
            seed=1,
            report_to=[],
            use_cpu=True,
            save_strategy="no",
            disable_tqdm=True,
        )
        trainer = transformers.Trainer(
            model=opened(name),
            args=arguments,
            train_dataset=rows,
            eval_dataset=rows,
            data_collator=collator,
            compute_metrics=lambda found: {"width": found.predictions.shape[-1]},
        )
        trainer.train()
        losses[parts] = [row["loss"] for row in trainer.state.log_history if "loss" in row]
        assert trainer.evaluate()["eval_width"] == 32
    assert masked or losses[1] == pytest.approx(losses[4], abs=0.02)
    trainer.save_model(str(tmp_path / "end"))
    model = trainer.model.eval()
    assert torch.equal(type(model).from_pretrained(tmp_path / "end")(IDS).logits, model(IDS).logits)


def test_label_smoothing_of_the_trainer_shifts_the_labels(opened: Open) -> None:
    """transformers' Trainer looks for the class in this table: elsewhere a model would learn to copy."""
    known = set(transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    for name in MODELS:
        assert (type(opened(name)).__name__ in known) == (name in CAUSAL), name


# Segments.


@each("name", MODELS)
def test_segments_count_only_in_a_model_that_has_them(opened: Open, name: str) -> None:
    first, second = torch.zeros_like(IDS), torch.ones_like(IDS)
    for model in both(opened, name):
        plain, *others = (
            model(IDS, attention_mask=MASK, token_type_ids=segments).logits for segments in (None, first, second)
        )
        assert [torch.equal(logits, plain) for logits in others] == [True, name != "bert"]


@each("name", [name for name in ADAPTED if name in CAUSAL])
def test_segments_do_not_disturb_generation(opened: Open, name: str) -> None:
    model, mask = opened(name), MASK.flip(1)
    settings: dict[str, Any] = {"attention_mask": mask, "max_new_tokens": 5, "do_sample": False}
    plain = model.generate(IDS, **settings)
    assert torch.equal(model.generate(IDS, token_type_ids=torch.zeros_like(IDS), **settings), plain)


@each("name", ADAPTED)
def test_a_pipeline_takes_what_any_tokenizer_returns(
    opened: Open, letters: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(letters, "model_input_names", ["input_ids", "token_type_ids", "attention_mask"])
    monkeypatch.setattr(letters, "padding_side", letters.padding_side)  # a pipeline that writes sets it to the left
    assert "token_type_ids" in letters("a")
    if name in CAUSAL:
        pipe: Any = transformers.pipeline("text-generation", model=opened(name), tokenizer=letters)
        assert pipe("the", max_new_tokens=3, do_sample=False)[0]["generated_text"].startswith("the")
    else:
        pipe = transformers.pipeline("fill-mask", model=opened(name), tokenizer=letters)
        assert len(pipe(f"th{letters.mask_token}")) == 5


@each("name", ["gru-masked", "lstm-both", "bert"])
def test_a_pipeline_takes_more_texts_than_layers(opened: Open, letters: Any, name: str) -> None:
    """It takes every output, such as a recurrent state, for a row for each text."""
    pipe: Any = transformers.pipeline("fill-mask", model=opened(name), tokenizer=letters, top_k=1)
    texts = [f"{text}{letters.mask_token}" for text in ("th", "a", "xyz", "ab")]
    together = [each[0]["token"] for each in pipe(texts, batch_size=4)]
    assert together == [pipe(text)[0]["token"] for text in texts]


# What else one may ask for.


@each("name", MODELS)
@pytest.mark.long
def test_what_is_asked_for_is_given_or_refused(opened: Open, name: str) -> None:
    for asked, given in (("output_hidden_states", "hidden_states"), ("output_attentions", "attentions")):
        for model in both(opened, name):
            try:
                found = model(IDS, attention_mask=MASK, **{asked: True})[given]
            except (FoundryError, TypeError):
                assert asked.removeprefix("output_") in refusal(model, IDS, **{asked: True})
            else:
                assert len(found) >= 2
                assert all(each.shape[0] == 4 for each in found)
        assert given not in opened(name)(IDS, **{asked: False})
    if name in ADAPTED:
        assert "does not support output_attentions" in refusal(opened(name, output_attentions=True), IDS)
        model = opened(name)
        for ids, vectors in ((None, None), (IDS, model.get_input_embeddings()(IDS))):
            assert refusal(model, ids, inputs_embeds=vectors).startswith("give either input_ids or inputs_embeds")
        assert isinstance(model(IDS, return_dict=False), tuple)


@each("name", MODELS)
def test_an_unknown_argument_is_refused(opened: Open, name: str) -> None:
    for model in both(opened, name):
        for wrong in ("nonsense", "logits_to_keep", "num_items"):
            assert wrong in refusal(model, IDS, **{wrong: 1})


def test_the_hidden_states_of_mamba_are_those_of_its_layers(opened: Open) -> None:
    model = opened("mamba", output_hidden_states=True)
    found, mask = model(IDS, attention_mask=MASK.flip(1)), MASK.flip(1)
    inner = model.model
    assert len(found.hidden_states) == len(inner.blocks) + 1
    assert torch.equal(found.hidden_states[0], inner.embedding(IDS))
    torch.testing.assert_close(inner.output_layer(found.hidden_states[-1])[mask == 1], found.logits[mask == 1])
    alone = model(IDS[1:2, 3:]).hidden_states[1]
    torch.testing.assert_close(found.hidden_states[1][1:2, 3:], alone, rtol=0, atol=1e-5)
    settings = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None, "return_dict_in_generate": True}
    written = opened("mamba").generate(IDS, attention_mask=mask, output_hidden_states=True, **settings)
    assert [states[-1].shape[1] for states in written.hidden_states] == [10, 1, 1]


# Vectors, and other heads.

BOTH_SIDES = torch.ones_like(IDS)
BOTH_SIDES[0, :3] = BOTH_SIDES[1, 7:] = 0
CLASSIFIERS = {"texts": AutoModelForSequenceClassification, "tokens": AutoModelForTokenClassification}


@each("name", ADAPTED)
def test_without_a_head_it_returns_what_the_head_reads(opened: Open, name: str) -> None:
    """From ids and from their vectors, which get gradients; a generated text continues either."""
    whole, body, real = opened(name), opened(name, auto=AutoModel), BOTH_SIDES == 1
    vectors = whole.get_input_embeddings()(IDS).detach().requires_grad_()
    expected = whole(IDS, attention_mask=BOTH_SIDES).logits[real]
    for given in ({"input_ids": IDS}, {"inputs_embeds": vectors}):
        found = body(**given, attention_mask=BOTH_SIDES, output_hidden_states=True)
        assert found.last_hidden_state.shape[-1] == body.config.hidden_size
        assert torch.equal(body.model.output_layer(found.last_hidden_state)[real], expected)
        assert torch.equal(whole(**given, attention_mask=BOTH_SIDES).logits[real], expected)
        assert len(found.hidden_states) >= 2
    found.last_hidden_state[real].square().sum().backward()
    assert bool(vectors.grad[real].any(-1).all())
    if name in CAUSAL:
        settings: dict[str, Any] = {"attention_mask": MASK.flip(1), "max_new_tokens": 4, "do_sample": False}
        ids, written = (whole.generate(**each, **settings) for each in ({"inputs": IDS}, {"inputs_embeds": vectors}))
        assert torch.equal(ids[:, 10:], written)
        with pytest.raises(FoundryError, match="^beam search continues input_ids, not inputs_embeds$"):
            whole.generate(inputs_embeds=vectors, num_beams=2)


@each("name", ADAPTED)
@pytest.mark.long
def test_a_classifier_learns_with_its_body_and_opens_again(opened: Open, tmp_path: Path, name: str) -> None:
    """Whether the first real token is a vowel, of a text or of each of its tokens; padding on either side is unseen."""
    rows = torch.randint(0, 26, (64, 6), generator=torch.Generator().manual_seed(1))
    for what, auto in CLASSIFIERS.items():
        model = opened(name, auto=auto, num_labels=3)
        before = {key: each.clone() for key, each in model.named_parameters()}
        labels = rows[:, 0] % 3 if what == "texts" else rows % 3
        optimizer, losses = torch.optim.AdamW(model.train().parameters(), lr=1e-2), []
        for _ in range(30):
            losses.append(model(rows, attention_mask=torch.ones_like(rows), labels=labels).loss)
            losses[-1].backward()
            optimizer.step()
            optimizer.zero_grad()
        assert losses[-1] < losses[0] / 2
        kept = {key for key, each in model.named_parameters() if torch.equal(each, before[key])}
        assert all("output_layer" in key or "projection" in key for key in kept), kept
        model.eval().save_pretrained(tmp_path / what)
        again = auto.from_pretrained(tmp_path / what)
        assert type(again).__name__.endswith("Classification")
        logits = again(rows[:1]).logits
        assert torch.equal(logits, model(rows[:1]).logits)
        for columns in ((2, 0), (0, 2)):
            mask = torch.nn.functional.pad(torch.ones_like(rows[:1]), columns)
            padded = again(torch.nn.functional.pad(rows[:1], columns), attention_mask=mask).logits
            torch.testing.assert_close(padded if what == "texts" else padded[mask == 1][None], logits)


def test_a_table_of_counts_has_no_vectors_to_read(opened: Open) -> None:
    counted = opened("ngram")
    assert counted.config.auto_map.keys() == {"AutoConfig", "AutoModelForCausalLM"}
    assert refusal(opened("ngram", auto=AutoModel), IDS) == "ngram does not have hidden states"
    assert "inputs_embeds" in refusal(counted, None, inputs_embeds=torch.zeros(1, 2, 0))
    for auto in CLASSIFIERS.values():
        with pytest.raises(FoundryError, match="^ngram does not have hidden states$"):
            opened("ngram", auto=auto)
