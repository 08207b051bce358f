"""The trainer of sentencepiece tokenizers: a unigram model by the `sentencepiece` library, the same on every run."""

from __future__ import annotations

import io
import re
import tempfile
from collections.abc import Iterator

import sentencepiece
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from foundry_core.errors import TokenizerError
from foundry_core.run_folder import SENTENCEPIECE_MODEL
from foundry_core.storage.files import scratch_reported
from foundry_core.tokenization.text_counts import SPACE, count, seeds
from foundry_core.tokenization.training_request import TRAINING_PIECE, Request, handed, with_special_tokens

_SEEDS = 200_000  # strings that may become pieces
_LONGEST = 16  # characters of a piece

# sentencepiece marks a tab and U+2585 itself: no piece holds either, and a line with U+2585 would be dropped whole.
_SENTENCE_PART = re.compile(" [^ \n\t\u2585]*|[^ \n\t\u2585]+")
# Nor does a piece hold two scripts: letters have one, these marks and digits have another.
_MARKS = r"[!-@\[-`{-~\u3001-\u3003\u3008-\u3011\uff01-\uff20]"
_SCRIPT_CHANGE = re.compile(rf"(?<=[^\W\d_])(?={_MARKS})|(?<={_MARKS})(?=[^\W\d_])")


def build_sentencepiece(request: Request) -> Tokenizer:
    """Unigram pieces by the `sentencepiece` library, bytes for rare characters: every text comes back exactly.

    The one exception is a literal U+2581, which stands for a space in the pieces and comes back as one. A document
    starts with an unwritten space, so that its first word gets the pieces that it has elsewhere.
    """
    unknown = request.roles.get("unk_token", "<unk>")
    model = _sentencepiece_model(request, unknown)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    pieces = [(processor.id_to_piece(i), processor.get_score(i)) for i in range(len(processor))]
    backend = Tokenizer(models.Unigram(pieces, processor.unk_id(), byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    # The model would find "<0x41>" in the text like any other piece: the first character of such text is set apart.
    literal = rf"<(?=0x[0-9A-F]{{2}}>)|{re.escape(unknown[0])}(?={re.escape(unknown[1:])})"
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(literal), "isolated"),
            pre_tokenizers.Split("\n", "isolated"),
            pre_tokenizers.Split(SPACE, "merged_with_next"),
        ]
    )
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    request.files[SENTENCEPIECE_MODEL] = model
    return with_special_tokens(request, backend, unknown)


def _sentencepiece_model(request: Request, unknown: str) -> bytes:
    """Trains a unigram model and returns its file; its ids are those of the tokenizer, less the appended ones."""

    def texts() -> Iterator[str]:
        for document in request.documents():
            lead = " "
            for piece in request.pieces(document):
                yield lead + piece
                lead = ""

    counts = count(texts(), _SENTENCE_PART.findall, _SCRIPT_CHANGE.split)
    counts = handed(counts)

    appended = request.size() - request.room(unknown)
    model = io.BytesIO()
    try:
        with (
            scratch_reported(),
            tempfile.NamedTemporaryFile("w", encoding="utf-8", newline="", suffix=".tsv") as scratch,
        ):
            scratch.writelines(seeds(counts, _LONGEST, _SEEDS))
            scratch.flush()
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=(f"{part}\t{times}" for part, times in counts.items()),
                input_format="tsv",
                seed_sentencepieces_file=scratch.name,
                seed_sentencepiece_size=_SEEDS,
                model_writer=model,
                model_type="unigram",
                vocab_size=max(request.room(unknown), 1),
                character_coverage=0.9995,
                byte_fallback=True,
                normalization_rule_name="identity",
                remove_extra_whitespaces=False,
                add_dummy_prefix=False,
                user_defined_symbols=["\n"],
                unk_id=0,
                unk_piece=unknown,
                bos_id=-1,
                eos_id=-1,
                pad_id=-1,
                max_sentencepiece_length=_LONGEST,
                max_sentence_length=8 * TRAINING_PIECE,
                num_threads=1,  # the sums of several threads round differently with their number
                minloglevel=2,
            )
    except RuntimeError as error:
        if found := re.search(r"smaller than required_chars\. \d+ vs (\d+)", str(error)):
            raise request.too_small(int(found[1]) + appended) from None
        if found := re.search(r"Please set it to a value <= (\d+)", str(error)):
            raise TokenizerError(
                f"vocab_size {request.vocab_size} is too large for a sentencepiece tokenizer of this corpus: "
                f"the largest that works is {int(found[1]) + appended}"
            ) from None
        raise TokenizerError(f"sentencepiece cannot train on this corpus: {error}") from error
    return _without_path(model.getvalue(), scratch.name.encode())


def _without_path(model: bytes, path: bytes) -> bytes:
    """A sentencepiece model less the name of the file of seeds, which differs on every run.

    The model is a protocol buffer of tags, lengths and contents; the trainer's settings are its field 2, the name is
    field 54 of those.
    """
    at = 0
    while True:
        tag, start, size = model[at], at + 1, 0
        for shift in range(0, 35, 7):
            size |= (model[start] & 127) << shift
            start += 1
            if model[start - 1] < 128:
                break
        if tag == 2 << 3 | 2:
            break
        at = start + size
    settings = model[start : start + size].replace(b"\xb2\x03" + _varint(len(path)) + path, b"")
    return model[: at + 1] + _varint(len(settings)) + settings + model[start + size :]


def _varint(number: int) -> bytes:
    low = number & 127
    return bytes([low]) if number < 128 else bytes([low | 128]) + _varint(number >> 7)
