"""From corpora to tokenizer and token files: what is reused, what is made anew, what is refused."""

import gzip
import json
import shutil
from pathlib import Path

import pytest

from foundry_core.errors import DataError, TokenizerError, UsageError
from foundry_core.evaluation import evaluate_corpus
from foundry_core.model import create_model
from foundry_core.prepare import RunPlan, experiment_corpora, experiment_data, experiment_tokenizer, tokenizer_folder


def prepared(config):
    corpora = experiment_corpora(config)
    tokenizer = experiment_tokenizer(config, corpora.train)
    return tokenizer, experiment_data(config, tokenizer, corpora)


def test_a_test_file_that_is_trained_on_is_refused_under_any_name(experiment, corpus, tmp_path):
    texts = tmp_path / "texts"
    texts.mkdir()
    shutil.copy(corpus.train, texts / "a.txt")
    (texts / "b.txt.gz").write_bytes(gzip.compress(corpus.test.read_bytes()))
    config = experiment("lstm", tmp_path, data={"training_corpus": str(texts), "test_corpus": str(corpus.test)})
    with pytest.raises(DataError, match=r"test\.txt has the content of .*b\.txt\.gz, which is in data.training_corpus"):
        experiment_corpora(config)
    (texts / "b.txt.gz").unlink()
    assert experiment_corpora(config).test is not None


def test_empty_files_are_the_same_file_and_no_overlap(experiment, corpus, tmp_path):
    for name, source in (("train", corpus.train), ("test", corpus.test)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "empty.txt").touch()
        shutil.copy(source, tmp_path / name / "text.txt")
    data = {"training_corpus": str(tmp_path / "train"), "test_corpus": str(tmp_path / "test")}
    assert experiment_corpora(experiment("lstm", tmp_path, data=data)).test is not None


def test_a_tokenizer_that_was_interrupted_while_it_was_written_is_trained_again(experiment, tmp_path):
    config = experiment("lstm", tmp_path)
    tokenizer, _ = prepared(config)
    folder = tokenizer_folder(config)
    sidecar = folder / "foundry.json"
    complete = json.loads(sidecar.read_bytes())
    sidecar.write_text(json.dumps(complete | {"tokenizer": None}))
    (folder / "tokenizer.json").unlink()
    assert prepared(config)[0].get_vocab() == tokenizer.get_vocab()
    assert json.loads(sidecar.read_bytes()) == complete


def test_a_tokenizer_that_was_changed_since_is_refused(experiment, tmp_path):
    config = experiment("lstm", tmp_path)
    prepared(config)
    path = tokenizer_folder(config) / "tokenizer.json"
    path.write_text(path.read_text().replace('"the"', '"thee"'))
    with pytest.raises(TokenizerError, match="was changed after it was trained: .* --force"):
        prepared(config)
    assert experiment_tokenizer(config, experiment_corpora(config).train, force=True).get_vocab()["the"]


def test_a_damaged_sidecar_is_refused(experiment, tmp_path):
    config = experiment("lstm", tmp_path)
    prepared(config)
    for content in ("{", "[]", "{}", '{"tokenizer": 7}'):
        (tokenizer_folder(config) / "foundry.json").write_text(content)
        with pytest.raises(TokenizerError, match=r"foundry\.json is damaged: delete "):
            prepared(config)


def test_a_warm_up_longer_than_the_run_is_refused(experiment, tmp_path):
    config = experiment("lstm", tmp_path, training={"train_steps": None, "train_tokens": 500, "warmup_steps": 900})
    _, data = prepared(config)
    with pytest.raises(UsageError, match=r"warmup_steps \(900\) exceeds the \d+ steps that the budget comes to"):
        RunPlan.of(config, data)


def test_checkpoints_beyond_the_end_are_named(experiment, tmp_path):
    schedule = {"steps": [3, 4000], "milestones": {"words": ["5M"]}, "every_steps": 50}
    config = experiment("lstm", tmp_path, training={"checkpoints": schedule})
    plan = RunPlan.of(config, prepared(config)[1])
    assert plan.checkpoint_steps == (0, 3, 10)
    assert plan.unreached_checkpoints == ("step 4,000", "5,000,000 words")


def test_a_text_without_anything_to_predict_has_no_score(experiment, tmp_path):
    config = experiment("bert", tmp_path)
    tokenizer, _ = prepared(config)
    text = tmp_path / "unknown.txt"
    text.write_text("zygote zygote zygote\n")
    with pytest.raises(DataError, match="nothing to predict: every token of it is special"):
        evaluate_corpus(create_model(config, tokenizer), tokenizer, Path(text))
