"""One model's way of turning a conversation into token ids.

Prompt and response are tokenized apart and their ids concatenated, so the boundary between what is given and what is
scored is exact: no merge reaches across it, and nothing is found by slicing a string that was tokenized again. Every
model gets the same messages and the same bytes of the response; only the template around them and the ids are its own.

Some SentencePiece tokenizers put a space before every text (Llama 2, Mistral 7B, TinyLlama). That dummy prefix belongs
before a response only if the model's template writes a space there ("[/INST] answer"). Otherwise the response is
tokenized after a newline, whose ids are then left off; a text whose ids do not begin with the newline's keeps the
space, the one difference between decoded and given text that round_trips accepts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mrpo_ds.data.templates import DATE_STRING, PLAIN_JINJA, fix_date, plain_prompt
from mrpo_ds.errors import ConfigError, DataError
from mrpo_ds.types import Example, Message

_PROBE = "probe-7f3a"  # an answer that no template writes by itself


@dataclass(frozen=True)
class Encoded:
    """One sequence: a prompt and one response."""

    ids: list[int]
    """[S] token ids, the prompt's and then the response's."""
    prompt_length: int
    """Tokens of the prompt; all after them are scored."""


class Renderer:
    """A tokenizer with its chat template, closing token and BOS rule.

    Args:
        tokenizer: a transformers tokenizer.
        model_name: how messages name the model: "policy", or a reference's name.
        chat_template: "auto" (the tokenizer's own, the plain one if it has none) or "plain".
        score_eos: close complete responses with an end-of-turn token.

    Raises:
        ConfigError: score_eos without any end token, or a template that leaves out the answer or doubles the BOS.
    """

    def __init__(self, tokenizer: Any, model_name: str, chat_template: str, score_eos: bool) -> None:
        self.tokenizer = tokenizer
        self.model_name = model_name
        self.template = _own_template(tokenizer, model_name) if chat_template == "auto" else None
        """Jinja text of the model's chat template, or None for the plain one."""
        unknown = tokenizer.unk_token_id
        self._special_ids = _special_ids(tokenizer) - {unknown}
        self._can_split = self._takes_split_argument()
        self._own_bos = self._find_own_bos()
        before, after = self._around_answer()
        anchor = self._find_anchor()
        self._anchor = [] if before.endswith(" ") else anchor
        self._ask_suffix = self._find_ask_suffix(before, bool(anchor))
        self.end_of_turn = self._find_end_of_turn(after) if score_eos else None
        """Id of the token that closes a complete response, or None if none is scored."""
        self._last_prompt: tuple[tuple[Message, ...], list[int]] = ((), [])
        self._check_single_bos()

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Ids of the prompt up to where the answer begins, with at most one BOS.

        Raises:
            DataError: the template refuses the conversation; names the model and the role.
        """
        if self.template is None:
            ids = self._ids(self._plain_text(messages), split_special=True)
        else:
            ids = self._ids(self._render(messages, ask=True) + self._ask_suffix, split_special=False)
        if self._own_bos is not None and ids[:1] != [self._own_bos]:
            return [self._own_bos, *ids]
        return ids

    def response_ids(self, text: str, complete: bool) -> list[int]:
        """Ids of a response; the end-of-turn token follows if it is complete and scored.

        Text that looks like a special token stays text, unless the tokenizer has no other way (see special_in_text).
        """
        ids = self._answer_ids(text)
        if complete and self.end_of_turn is not None:
            ids.append(self.end_of_turn)
        return ids

    def encode(self, example: Example, response: int) -> Encoded:
        """The prompt and one response of an example. Raises DataError as prompt_ids does."""
        if self._last_prompt[0] != example.prompt:  # the responses of a prompt mostly come one after the other
            self._last_prompt = (example.prompt, self.prompt_ids(example.prompt))
        prompt = self._last_prompt[1]
        answer = self.response_ids(example.responses[response], example.is_complete(response))
        return Encoded([*prompt, *answer], len(prompt))

    def response_text(self, ids: Sequence[int]) -> str:
        """The text of a response's ids, or of the first of them, with nothing cleaned up and nothing left out."""
        anchored = [*self._anchor, *ids]
        text = self.tokenizer.decode(anchored, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return str(text).removeprefix("\n" if self._anchor else "")

    def round_trips(self, text: str) -> bool:
        """Whether the ids of a response say exactly its text (or " " and it, see above): else it is not what is scored.

        It fails for tokenizers that normalize (lower case, NFKC) or have no token for some character.
        """
        return self.response_text(self._answer_ids(text)) in (text, f" {text}")

    def special_in_text(self, example: Example) -> bool:
        """Whether text of the example turns into special tokens, as if the template had written them.

        A chat template mixes the messages with its own special tokens, so any that a message spells out becomes one.
        In the plain template and in responses that happens only with tokenizers that cannot split special tokens, or
        whose model knows them as words (Unigram).
        """
        templated = self.template is not None
        prompt = [self._ids(message.content, split_special=not templated) for message in example.prompt]
        answers = [self._answer_ids(text) for text in example.responses]
        return any(self._special_ids.intersection(ids) for ids in (*prompt, *answers))

    def template_to_save(self) -> str:
        """The chat template that a model trained with this renderer must be used with, its BOS included."""
        if self.template is not None:
            return str(self.tokenizer.get_chat_template())
        return ("{{ bos_token }}" if self._own_bos is not None else "") + PLAIN_JINJA

    def leaves_out(self, messages: Sequence[Message]) -> bool:
        """Whether the template drops or rewrites part of a message, as some do the system's (its outer space aside)."""
        if self.template is None:
            return False
        text = self._render(messages, ask=True)
        return any(message.content.strip() not in text for message in messages)

    def _ids(self, text: str, split_special: bool) -> list[int]:
        # Without it, "</s>" in a text would end the sequence there. Tokenizers of other backends may refuse it.
        split = {"split_special_tokens": True} if split_special and self._can_split else {}
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False, **split).input_ids)

    def _answer_ids(self, text: str) -> list[int]:
        if self._anchor:
            ids = self._ids(f"\n{text}", split_special=True)
            if ids[: len(self._anchor)] == self._anchor:
                return ids[len(self._anchor) :]
        return self._ids(text, split_special=True)

    def _plain_text(self, messages: Sequence[Message]) -> str:
        try:
            return plain_prompt(messages)
        except KeyError as error:
            raise DataError(f"{self.model_name}: the plain template has no role {error}") from error

    def _render(self, messages: Sequence[Message], ask: bool) -> str:
        from jinja2 import TemplateError

        try:
            return self._apply_template(messages, ask)
        except (TemplateError, TypeError, ValueError) as error:
            raise DataError(
                f"{self.model_name}: the chat template refuses {self._refused(messages)}: {error}. Change the rows, or "
                f"set chat_template: plain for this model"
            ) from error

    def _apply_template(self, messages: Sequence[Message], ask: bool) -> str:
        turns = [{"role": message.role, "content": message.content} for message in messages]
        text = self.tokenizer.apply_chat_template(
            turns,
            chat_template=self.template,
            tokenize=False,
            add_generation_prompt=ask,
            date_string=DATE_STRING,
        )
        return str(text)

    def _refused(self, messages: Sequence[Message]) -> str:
        """The role without which the template accepts the conversation, or else the order of the roles."""
        from jinja2 import TemplateError

        for role in dict.fromkeys(message.role for message in messages):
            rest = [message for message in messages if message.role != role]
            try:
                if rest and self._apply_template(rest, ask=True):
                    return f"the role '{role}'"
            except (TemplateError, TypeError, ValueError):
                continue
        return f"the roles {', '.join(message.role for message in messages)}"

    def _takes_split_argument(self) -> bool:
        try:
            self.tokenizer("a", add_special_tokens=False, split_special_tokens=True)
        except (TypeError, ValueError):
            return False
        return True

    def _find_own_bos(self) -> int | None:
        """The BOS that the tokenizer puts before a text by itself, or None."""
        bos = self.tokenizer.bos_token_id
        ids = self.tokenizer("a").input_ids
        return bos if bos is not None and ids[:1] == [bos] else None

    def _around_answer(self) -> tuple[str, str]:
        """What the chat template writes before and after the answer of a one-turn conversation; "" if plain."""
        if self.template is None:
            return "", ""
        text = self._render([Message("user", "question"), Message("assistant", _PROBE)], ask=False)
        before, probe, after = text.rpartition(_PROBE)
        if not probe:
            raise ConfigError(f"{self.model_name}: the chat template leaves out the assistant's answer")
        return before, after

    def _find_ask_suffix(self, before: str, writes_space: bool) -> str:
        """What the template writes between its generation prompt and an answer: "" for well-made templates.

        Some ignore add_generation_prompt, others ask with "Assistant:" and write "Assistant: " before an answer. A
        tokenizer that puts a space before every text needs no space here. A generation prompt that says more than the
        template writes before an answer (an empty thought) is kept as it is.
        """
        if self.template is None:
            return ""
        ask = self._render([Message("user", "question")], ask=True)
        if ask.startswith(before):
            return ""
        if not before.startswith(ask):
            raise ConfigError(
                f"{self.model_name}: the chat template asks for an answer with {ask[-40:]!r} but writes "
                f"{before[-40:]!r} before one; mend the template, or set chat_template: plain for this model"
            )
        suffix = before[len(ask) :]
        return "" if writes_space and not suffix.strip(" ") else suffix

    def _find_anchor(self) -> list[int]:
        """Ids of a newline if the tokenizer puts a space before a text but not after a newline, else []."""
        newline, alone, after = (self._ids(text, split_special=True) for text in ("\n", "a", "\na"))
        has_dummy_prefix = after[: len(newline)] == newline and after[len(newline) :] != alone
        return newline if has_dummy_prefix else []

    def _find_end_of_turn(self, after_answer: str) -> int:
        """The first special token that the template writes after an answer, else the tokenizer's EOS."""
        for token in self._ids(after_answer, split_special=False):
            if token in self._special_ids:
                return token
        end = self.tokenizer.eos_token_id
        if end is None:
            raise ConfigError(
                f"{self.model_name}: the tokenizer has no end-of-sequence token to close a response with. Add one to "
                f"its tokenizer_config.json, or set data.score_eos: false"
            )
        return int(end)

    def _check_single_bos(self) -> None:
        bos = self.tokenizer.bos_token_id
        if bos is not None and self.prompt_ids([Message("user", "question")])[:2] == [bos, bos]:
            raise ConfigError(f"{self.model_name}: the chat template writes the BOS token twice")


def _own_template(tokenizer: Any, model_name: str) -> str | None:
    if not tokenizer.chat_template:
        return None
    try:
        return fix_date(tokenizer.get_chat_template())
    except ValueError as error:  # several named templates, none of them the default
        raise ConfigError(f"{model_name}: no default chat template ({error}); set chat_template: plain") from error


def _special_ids(tokenizer: Any) -> set[int]:
    marked = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return marked | set(tokenizer.all_special_ids)
