"""How much work a task is, roughly: only to begin with the longest, and to say how long the rest may take."""

DOCUMENTS = {
    "arc_challenge": (1172, 4, 40),
    "arc_easy": (2376, 4, 40),
    "hellaswag": (10042, 4, 110),
    "mmlu": (246, 1, 100),
    "truthfulqa_mc2": (817, 7, 200),
    "winogrande": (1267, 2, 30),
    "gsm8k": (1319, 1, 160),
    "openbookqa": (500, 4, 20),
    "bigbench_causal_judgment_multiple_choice": (190, 2, 260),
    "bigbench_sports_understanding_multiple_choice": (986, 2, 30),
    "bigbench_formal_fallacies_syllogisms_negation_multiple_choice": (14200, 2, 130),
    "leaderboard_bbh": (240, 6, 150),
    "leaderboard_gpqa": (397, 4, 200),
    "leaderboard_math_hard": (189, 1, 200),
    "leaderboard_ifeval": (541, 1, 60),
    "leaderboard_musr": (252, 3, 1200),
    "leaderboard_mmlu_pro": (12032, 10, 200),
}
"""Task -> (documents of each subtask, forwards of each, tokens of a document)."""
UNKNOWN = (1000, 4, 100)
ANSWER_TOKENS = {"gsm8k": 256, "leaderboard_math_hard": 1024, "leaderboard_ifeval": 1280}
"""Longest answers of generative tasks."""
GENERATED = 8
"""A token that is generated takes about as long as so many that are read."""


def expected_cost(task: str, subtasks: int, shots: int, limit: int | None, max_new_tokens: int | None) -> int:
    """Thousands of tokens of a call, >= 1."""
    documents, forwards, tokens = DOCUMENTS.get(task, UNKNOWN)
    documents = documents if limit is None else min(limit, documents)
    answers = GENERATED * (max_new_tokens or ANSWER_TOKENS[task]) if task in ANSWER_TOKENS else 0
    return max(1, subtasks * documents * (forwards * tokens * (shots + 1) + answers) // 1000)
