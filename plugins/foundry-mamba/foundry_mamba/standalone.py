"""Mamba language models for transformers 4.46 to 5.x. Needs torch 2.4 and transformers, nothing else.

`foundry export --standalone` copies this file beside a model; `trust_remote_code=True` opens it. Computes what the
model computed in training: rows may be padded on either side, padding is not read, and the recurrent state is carried
from one generated token to the next. The scan is a plain loop over the tokens.

Shapes: B batch, T tokens, W width, D channels (expand x W), N state values per channel, K convolution kernel, V
vocabulary.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

State = tuple[tuple[torch.Tensor, torch.Tensor], ...]
"""For each block the last K - 1 inputs of its convolution, (B, K - 1, D), and its recurrence, (B, D, N)."""

_PASSED_ON = ("use_cache", "output_hidden_states")
"""Arguments of `generate` that reach `forward`."""


class FoundryMambaConfig(PretrainedConfig):  # type: ignore[misc]
    """Configuration: `settings` is the section `model:` that the model was trained with."""

    model_type = "foundry_mamba_standalone"
    keys_to_ignore_at_inference = ["state"]  # noqa: RUF012 - of the Trainer of transformers

    def __init__(self, settings: dict[str, Any] | None = None, vocab_size: int = 0, **kwargs: Any):
        super().__init__(**kwargs)
        self.settings = settings or {}
        self.vocab_size = vocab_size
        mamba = self.settings.get("mamba", {})
        self.hidden_size = mamba.get("hidden_size", 0)
        self.num_hidden_layers = mamba.get("num_layers", 0)


@dataclass
class FoundryMambaStates(ModelOutput):  # type: ignore[misc]
    """Hold what the model without a head returns. It has no `logits`: tools take them wherever they exist.

    Attributes:
        last_hidden_state: What the layer onto the vocabulary reads, (B, T, W).
        hidden_states: What the first block reads, and what each block returns, each (B, T, width). The last of them is
            `last_hidden_state`, normalised.
        state: With `use_cache=True` the recurrent state after the last real token of each row.
    """

    last_hidden_state: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    state: State | None = None


@dataclass
class FoundryMambaOutput(ModelOutput):  # type: ignore[misc]
    """Hold what a model with a head returns: logits (B, T, V), of a new head (B, labels) or (B, T, labels)."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    state: State | None = None


class FoundryMambaBlock(nn.Module):
    """Norm, convolution, recurrence and gate (Gu and Dao 2023). Returns what is added to the residual stream."""

    def __init__(self, mamba: dict[str, Any]):
        super().__init__()
        width, self.state_size = mamba["hidden_size"], mamba["state_size"]
        channels, rank = mamba["expand"] * width, mamba["time_step_rank"] or math.ceil(width / 16)
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self.in_proj = nn.Linear(width, 2 * channels, bias=False)
        self.conv = nn.Conv1d(channels, channels, mamba["conv_kernel"], groups=channels)
        self.x_proj = nn.Linear(channels, rank + 2 * self.state_size, bias=False)
        self.step_proj = nn.Linear(rank, channels)
        self.log_decay = nn.Parameter(torch.zeros(channels * self.state_size))
        self.skip = nn.Parameter(torch.ones(channels))
        self.out_proj = nn.Linear(channels, width, bias=False)

    def forward(
        self,
        stream_BTW: torch.Tensor,
        real_BT: torch.Tensor | None,
        state: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        """Return the output and the next state. real_BT: 1 for real tokens, which come first; None if all are."""
        inner_BTD, gate_BTD = self.in_proj(self.norm(stream_BTW)).chunk(2, dim=-1)
        batch, _, channels = inner_BTD.shape
        before = self.conv.kernel_size[0] - 1
        if state is None:
            state = inner_BTD.new_zeros(batch, before, channels), inner_BTD.new_zeros(batch, channels, self.state_size)
        window_BkD, h_BDN = state
        seen = torch.cat([window_BkD.to(inner_BTD.dtype), inner_BTD], dim=1)
        x_BTD = F.silu(self.conv(seen.transpose(1, 2)).transpose(1, 2))
        sizes = [self.step_proj.in_features, self.state_size, self.state_size]
        step_BTR, B_BTN, C_BTN = self.x_proj(x_BTD).split(sizes, dim=-1)
        step_BTD = F.softplus(self.step_proj(step_BTR))
        window_BkD = seen[:, -before:]
        if real_BT is not None:
            step_BTD = step_BTD * real_BT.unsqueeze(-1)  # a step of 0 neither forgets nor adds anything
            last_Bk = real_BT.sum(dim=1, keepdim=True) + torch.arange(before, device=seen.device)
            window_BkD = seen.gather(1, last_Bk.unsqueeze(-1).expand(-1, -1, channels))
        A_DN = -torch.exp(self.log_decay.view(channels, self.state_size))
        y_BTD, h_BDN = self._scan(step_BTD, A_DN, x_BTD, B_BTN, C_BTN, h_BDN)
        return self.out_proj((y_BTD + x_BTD * self.skip) * F.silu(gate_BTD)), (window_BkD, h_BDN)

    @staticmethod
    def _scan(
        step_BTD: torch.Tensor,
        A_DN: torch.Tensor,
        x_BTD: torch.Tensor,
        B_BTN: torch.Tensor,
        C_BTN: torch.Tensor,
        h_BDN: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute h[t] = exp(step[t] A) h[t-1] + step[t] B[t] x[t] and y[t] = C[t] h[t], in fp32 at least."""
        exact = torch.promote_types(x_BTD.dtype, torch.float32)
        with torch.autocast(x_BTD.device.type, enabled=False):
            step_BTD, A_DN, B_BTN, C_BTN, h_BDN = (each.to(exact) for each in (step_BTD, A_DN, B_BTN, C_BTN, h_BDN))
            input_BTD, found = step_BTD * x_BTD.to(exact), []
            for t in range(x_BTD.shape[1]):
                decay_BDN = torch.exp(step_BTD[:, t].unsqueeze(-1) * A_DN)
                h_BDN = decay_BDN * h_BDN + input_BTD[:, t].unsqueeze(-1) * B_BTN[:, t].unsqueeze(1)
                found.append((h_BDN @ C_BTN[:, t].unsqueeze(-1)).squeeze(-1))
        return torch.stack(found, dim=1).to(x_BTD.dtype), h_BDN


class FoundryMambaPreTrainedModel(PreTrainedModel):  # type: ignore[misc]
    """What all models here share. `self.model` is the model without a head."""

    config_class = FoundryMambaConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    _no_split_modules = ["FoundryMambaBlock"]  # noqa: RUF012 - with `device_map`, each on one device
    _keys_to_ignore_on_load_unexpected = [r"output_layer\."]  # noqa: RUF012 - of the language model

    def _init_weights(self, module: nn.Module) -> None:
        """Initialise a layer that the file of the weights does not have, such as a new head."""
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def get_input_embeddings(self) -> nn.Module:
        return self.base_model.embedding  # type: ignore[no-any-return]

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.base_model.embedding = value

    def _answer(self, output: Any, return_dict: bool | None) -> Any:
        asked = getattr(self.config, "return_dict", True) if return_dict is None else return_dict
        return output if asked else output.to_tuple()


class FoundryMambaModel(FoundryMambaPreTrainedModel):
    """Embeddings, blocks and norm. head: also has the layer onto the vocabulary, for the classes below."""

    def __init__(self, config: FoundryMambaConfig, head: bool = False):
        super().__init__(config)
        mamba = config.settings["mamba"]
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.dropout = nn.Dropout(mamba["dropout"])
        self.blocks = nn.ModuleList(FoundryMambaBlock(mamba) for _ in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=1e-5)
        if head:
            self.output_layer = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        state: State | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Return the hidden states: the residual stream before each block, and after the last one normalised.

        Pipelines take every output for a row for each text, or for hidden states: the state has to be asked for.

        Args:
            input_ids: (B, T); or instead `inputs_embeds`, (B, T, W).
            attention_mask: 1 for real tokens, (B, T), or wider: it may also cover the tokens before `state`.
            state: What the model returned after the tokens that come before.
            use_cache: Return the state after these tokens, too.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        stream_BTW = self.embedding(input_ids) if inputs_embeds is None else inputs_embeds
        real_BT, back_BT = None, None
        if attention_mask is not None and not bool(attention_mask[:, -stream_BTW.shape[1] :].all()):
            # The recurrence runs over the real tokens of each row: a stable sort moves them to its front.
            real_BT = attention_mask[:, -stream_BTW.shape[1] :].bool().long()
            real_BT, order_BT = real_BT.sort(dim=1, descending=True, stable=True)
            stream_BTW, back_BT = _moved(stream_BTW, order_BT), order_BT.argsort(dim=1)
        stream_BTW = self.dropout(stream_BTW)
        layers, after = [stream_BTW], []
        for number, block in enumerate(self.blocks):
            added_BTW, end = block(stream_BTW, real_BT, None if state is None else state[number])
            stream_BTW = stream_BTW + self.dropout(added_BTW)
            layers.append(stream_BTW)
            after.append(end)
        layers[-1] = self.norm(stream_BTW)
        if back_BT is not None:
            layers = [_moved(each, back_BT) for each in layers]
        asked = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        hidden_states = tuple(layers) if asked else None
        carried = tuple(after) if use_cache else None
        output = FoundryMambaStates(last_hidden_state=layers[-1], hidden_states=hidden_states, state=carried)
        return self._answer(output, return_dict)


def _moved(x_BTW: torch.Tensor, order_BT: torch.Tensor) -> torch.Tensor:
    return x_BTW.gather(1, order_BT.unsqueeze(-1).expand_as(x_BTW))


class FoundryMambaForCausalLM(FoundryMambaPreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """Predicts the next token, and generates. The layer onto the vocabulary is in `self.model`, as in the file."""

    _is_stateful = True
    _tied_weights_keys = {"model.output_layer.weight": "model.embedding.weight"}  # noqa: RUF012

    def __init__(self, config: FoundryMambaConfig):
        super().__init__(config)
        self.model = FoundryMambaModel(config, head=True)
        self.post_init()

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def get_output_embeddings(self) -> nn.Module:
        return self.model.output_layer

    def set_output_embeddings(self, value: Any) -> None:
        self.model.output_layer = value

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        state: State | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Any,
    ) -> Any:
        """Return the logits and the loss of `labels`, -100 where nothing is predicted.

        Args:
            labels: The input ids: they are shifted here.
            num_items_in_batch: From transformers' Trainer: the number by which the sum of the losses is divided.
        """
        carries = use_cache is not False
        states = self.model(input_ids, attention_mask, inputs_embeds, state, output_hidden_states, True, carries)
        logits_BTV = self.model.output_layer(states.last_hidden_state)
        loss = None
        if labels is not None:
            predictions, targets = logits_BTV[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten()
            how = "mean" if num_items_in_batch is None else "sum"
            loss = F.cross_entropy(predictions, targets.to(predictions.device), reduction=how)
            loss = loss if num_items_in_batch is None else loss / num_items_in_batch
        output = FoundryMambaOutput(
            loss=loss, logits=logits_BTV, hidden_states=states.hidden_states, state=states.state
        )
        return self._answer(output, return_dict)

    def prepare_inputs_for_generation(
        self, input_ids: Any, state: Any = None, attention_mask: Any = None, inputs_embeds: Any = None, **kwargs: Any
    ) -> dict[str, Any]:
        passed: dict[str, Any] = {name: kwargs[name] for name in _PASSED_ON if name in kwargs}
        if state is not None:
            return {"input_ids": input_ids[:, -1:], "state": state, **passed}
        given = {"input_ids": input_ids} if inputs_embeds is None else {"inputs_embeds": inputs_embeds}
        return {**given, "attention_mask": attention_mask, **passed}

    def _update_model_kwargs_for_generation(self, outputs: Any, model_kwargs: dict[str, Any], **kwargs: Any) -> Any:
        updated = super()._update_model_kwargs_for_generation(outputs, model_kwargs, **kwargs)
        return {**updated, "state": outputs["state"]} if "state" in outputs else updated

    def generate(self, inputs: torch.Tensor | None = None, generation_config: Any = None, **kwargs: Any) -> Any:
        beams = kwargs.get("num_beams") or (generation_config or self.generation_config).num_beams or 1
        if beams > 1 and kwargs.get("inputs_embeds") is not None:
            raise ValueError("beam search continues input_ids, not inputs_embeds")
        # Beams change places, and transformers does not move a recurrent state along: it is computed again.
        if beams > 1 and generation_config is not None:
            generation_config = copy.deepcopy(generation_config)
            generation_config.use_cache = False
        elif beams > 1:
            kwargs["use_cache"] = False
        return super().generate(inputs, generation_config, **kwargs)


class _Classifier(FoundryMambaPreTrainedModel):
    """A model with a new linear layer on its last hidden states."""

    def __init__(self, config: FoundryMambaConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = FoundryMambaModel(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        token_type_ids: torch.Tensor | None = None,
    ) -> Any:
        """Return the logits and the loss of `labels`; without a mask all tokens are real.

        `output_attentions` and `token_type_ids` are what PEFT and tokenizers pass to any classifier.
        """
        states = self.model(input_ids, attention_mask, inputs_embeds, None, output_hidden_states, True)
        logits = self.score(self._read(states.last_hidden_state, attention_mask))
        loss = None if labels is None else self._loss(logits, labels)
        output = FoundryMambaOutput(loss=loss, logits=logits, hidden_states=states.hidden_states)
        return self._answer(output, return_dict)


class FoundryMambaForSequenceClassification(_Classifier):
    """Classifies texts, labels (B,), by their last real tokens, which have read all of a text."""

    def _read(self, hidden_BTW: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        real_BT = torch.ones_like(hidden_BTW[..., 0]) if attention_mask is None else attention_mask
        places_BT = torch.arange(1, real_BT.shape[1] + 1, device=real_BT.device) * (real_BT != 0)
        rows = torch.arange(len(real_BT), device=real_BT.device)
        return hidden_BTW[rows, places_BT.argmax(dim=1)]

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        kind, whole = self.config.problem_type, not labels.dtype.is_floating_point
        if kind == "regression" or (kind is None and self.num_labels == 1):
            return F.mse_loss(logits.squeeze(), labels.squeeze().to(logits.dtype))
        if kind == "single_label_classification" or (kind is None and whole):
            return F.cross_entropy(logits.view(-1, self.num_labels), labels.view(-1))
        return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))


class FoundryMambaForTokenClassification(_Classifier):
    """Classifies tokens, labels (B, T), -100 where there is none, by the last hidden states there."""

    def _read(self, hidden_BTW: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        return hidden_BTW

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten())
