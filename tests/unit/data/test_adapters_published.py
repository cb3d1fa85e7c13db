"""The layouts of published data sets, on rows by hand; the files themselves are in test_real_data.py."""

from typing import Any

import pytest

from mrpo_ds.data.adapters import alpaca_eval, kto, mt_bench, sharegpt, triples
from mrpo_ds.data.adapters._raw import RawExample, RowError
from mrpo_ds.types import Message

USER = Message("user", "Hi?")
KIND = Message("system", "Be kind.")


def refuse(adapt: Any, row: dict[str, Any], reason: str, detail: str) -> None:
    with pytest.raises(RowError) as caught:
        adapt(row)
    assert (caught.value.reason, caught.value.detail) == (reason, detail)


class TestAlpacaEval:
    def row(self, *completions: tuple[Any, Any]) -> dict[str, Any]:
        return {
            "instruction": "Hi?",
            "generator_1": "judge's own",
            "output_1": "best of all",
            "completions": [
                {"generator_2": "model", "output_2": text, "preference": preference} for text, preference in completions
            ],
        }

    def test_by_preference_without_the_first_output(self) -> None:
        row = self.row(("a", 1.0), ("b", 1.9), ("c", 1.5))
        assert alpaca_eval.adapt(row) == RawExample((USER,), ("b", "c", "a"), (1.9, 1.5, 1.0))

    def test_left_out(self) -> None:
        row = self.row(("a", None), ("b", 2), ("", 1.5), ("c", float("nan")), ("d", 0), ("e", "1.5"), ("f", 2.5))
        reasons = ["missing score"] * 6
        reasons[1] = "empty response"
        assert alpaca_eval.adapt(row) == RawExample((USER,), ("b",), (2.0,), tuple(reasons))

    @pytest.mark.parametrize(
        ("change", "reason", "detail"),
        [
            ({"completions": []}, "missing response", "no response at all"),
            ({"completions": "b"}, "wrong type", "'completions' is str, not a list"),
            ({"completions": ["b"]}, "wrong type", "'completions' number 1 is str, not an object"),
            (
                {"completions": [{"preference": 2}]},
                "missing response",
                "'output_2' is missing or null; the columns are: preference",
            ),
            (
                {"completions": [{"output_2": "a"}, {"output_2": " "}]},
                "missing score",
                "no response can be used: missing score, empty response",
            ),
            ({"instruction": 7}, "wrong type", "'instruction' is int, not text"),
            ({"instruction": " "}, "empty prompt", "turn 1 of the prompt (user) has no visible character"),
        ],
    )
    def test_unusable(self, change: dict[str, Any], reason: str, detail: str) -> None:
        refuse(alpaca_eval.adapt, self.row(("a", 1.5)) | change, reason, detail)


class TestMtBench:
    def row(self, **completions: Any) -> dict[str, Any]:
        answers = [{"model": name, "turns": [name, "second"], "judgments": each} for name, each in completions.items()]
        return {"question_id": 81, "turns": ["Hi?", "Shorter!"], "completions": answers}

    def judged(self, *scores: Any, turn: int = 1) -> list[dict[str, Any]]:
        return [{"turn": turn, "score": score} for score in scores]

    def test_the_first_turn_by_its_mean_score(self) -> None:
        row = self.row(
            a=self.judged(3) + self.judged(10, turn=2), b=self.judged(9, 8), c=self.judged(-1, 5), d=self.judged(8.5)
        )
        assert mt_bench.adapt(row) == RawExample((USER,), ("b", "d", "c", "a"), (8.5, 8.5, 5.0, 3.0))

    @pytest.mark.parametrize("judgments", [None, [], [{"turn": 2, "score": 9}], [{"turn": 1, "score": -1}], [{}]])
    def test_without_a_judgment_of_the_first_turn(self, judgments: Any) -> None:
        row = self.row(a=judgments, b=self.judged(7))
        assert mt_bench.adapt(row) == RawExample((USER,), ("b",), (7.0,), ("missing score",))

    @pytest.mark.parametrize(
        ("change", "reason", "detail"),
        [
            ({"turns": []}, "missing prompt", "'turns' does not begin with a text"),
            ({"turns": None}, "missing prompt", "'turns' is missing or null; the columns are: question_id, turns, ..."),
            ({"completions": [{"turns": [None]}]}, "missing response", "'turns' does not begin with a text"),
            ({"completions": [{"turns": "a"}]}, "wrong type", "'turns' is str, not a list"),
            (
                {"completions": [{"turns": ["a"], "judgments": [9]}]},
                "wrong type",
                "'judgments' number 1 is int, not an object",
            ),
        ],
    )
    def test_unusable(self, change: dict[str, Any], reason: str, detail: str) -> None:
        row = self.row(a=self.judged(7)) | change
        refuse(mt_bench.adapt, row, reason, detail.replace("...", "completions"))


class TestSharegpt:
    ROW = {
        "conversations": [{"from": "human", "value": "Hi?"}],
        "chosen": {"from": "gpt", "value": "yes"},
        "rejected": {"from": "gpt", "value": "no"},
    }

    def test_one_turn(self) -> None:
        assert sharegpt.adapt(self.ROW) == RawExample((USER,), ("yes", "no"))

    def test_several_turns(self) -> None:
        says = [("system", "Be kind."), ("human", "Hi?"), ("gpt", "Ho."), ("human", "So?")]
        row = self.ROW | {"conversations": [{"from": who, "value": what} for who, what in says]}
        assert sharegpt.adapt(row).prompt == (KIND, USER, Message("assistant", "Ho."), Message("user", "So?"))
        assert sharegpt.adapt(row | {"system": "Be cruel."}).prompt[0] == KIND

    @pytest.mark.parametrize(("system", "prompt"), [("Be kind.", (KIND, USER)), ("", (USER,)), (None, (USER,))])
    def test_system(self, system: str | None, prompt: tuple[Message, ...]) -> None:
        assert sharegpt.adapt(self.ROW | {"system": system}).prompt == prompt

    @pytest.mark.parametrize(
        ("change", "reason", "detail"),
        [
            ({"conversations": []}, "missing prompt", "the conversation has no turn"),
            ({"conversations": "Hi?"}, "wrong type", "'conversations' is str, not a list"),
            (
                {"conversations": [{"role": "user", "content": "Hi?"}]},
                "wrong type",
                "'conversations' turn 1 needs a 'from' and a 'value' that are text",
            ),
            (
                {"conversations": [{"from": "human", "value": "Hi?"}, {"from": "observation", "value": "42"}]},
                "unknown role",
                "'observation'; allowed: system, user, assistant",
            ),
            (
                {"conversations": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Ho."}]},
                "prompt does not end with a user turn",
                "it ends with assistant",
            ),
            (
                {"chosen": None},
                "missing response",
                "'chosen' is missing or null; the columns are: conversations, chosen, rejected",
            ),
            ({"chosen": "yes"}, "wrong type", "'chosen' turn 1 is str, not a message"),
            (
                {"rejected": {"from": "human", "value": "no"}},
                "missing response",
                "'rejected' is a turn of user, not of gpt",
            ),
            ({"rejected": {"from": "gpt", "value": ""}}, "empty response", "response 2 has no visible character"),
        ],
    )
    def test_unusable(self, change: dict[str, Any], reason: str, detail: str) -> None:
        refuse(sharegpt.adapt, self.ROW | change, reason, detail)


class TestKto:
    ROW = {
        "messages": [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "yes"}],
        "label": True,
    }

    def test_labels(self) -> None:
        assert kto.adapt(self.ROW) == RawExample((USER,), ("yes",), (1.0,))
        assert kto.adapt(self.ROW | {"label": False}) == RawExample((USER,), ("yes",), (0.0,))

    def test_system(self) -> None:
        assert kto.adapt(self.ROW | {"system": "Be kind."}).prompt == (KIND, USER)
        own = [{"role": "system", "content": "Be kind."}, *self.ROW["messages"]]
        assert kto.adapt({"messages": own, "label": True, "system": "Be cruel."}).prompt == (KIND, USER)

    @pytest.mark.parametrize(
        ("change", "reason", "detail"),
        [
            ({"label": None}, "missing label", "'label' is missing or null; the columns are: messages, label"),
            ({"label": 1}, "wrong type", "'label' is int, not true or false"),
            ({"messages": None}, "missing prompt", "'messages' is missing or null; the columns are: messages, label"),
            ({"messages": []}, "missing response", "'messages' does not end with an assistant turn"),
            (
                {"messages": [{"role": "user", "content": "Hi?"}]},
                "missing response",
                "'messages' does not end with an assistant turn",
            ),
            (
                {"messages": [{"role": "assistant", "content": "yes"}]},
                "missing prompt",
                "the conversation has no turn",
            ),
        ],
    )
    def test_unusable(self, change: dict[str, Any], reason: str, detail: str) -> None:
        refuse(kto.adapt, self.ROW | change, reason, detail)


class TestTriples:
    ROW = {"prompt": "Hi?", "reference": "gold", "chosen": "yes", "rejected": "no"}

    def test_gold_chosen_rejected(self) -> None:
        assert triples.adapt(self.ROW) == RawExample((USER,), ("gold", "yes", "no"))
        assert triples.adapt(self.ROW | {"reference": "yes"}).responses == ("yes", "yes", "no")
        assert triples.adapt(self.ROW | {"system": "Be kind."}).prompt == (KIND, USER)

    def test_unusable(self) -> None:
        columns = "prompt, reference, chosen, rejected"
        detail = f"'reference' is missing or null; the columns are: {columns}"
        refuse(triples.adapt, self.ROW | {"reference": None}, "missing response", detail)
        refuse(triples.adapt, self.ROW | {"chosen": []}, "wrong type", "'chosen' is list, not text")
