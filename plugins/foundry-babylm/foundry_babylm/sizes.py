"""How many predictions each file of the official pipeline has, and where it stands.

Source: strict/evaluation_pipeline/collate_preds.py of github.com/babylm-org/babylm-eval at 45fe2c1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


def _sizes(text: str) -> dict[str, int]:
    """Return the numbers of a text such as `hypernym:842 turn_taking:280` by their names."""
    parts = (part.rpartition(":") for part in text.split())
    return {name: int(size) for name, _, size in parts}


_BLIMP = _sizes("""
    adjunct_island:928 anaphor_gender_agreement:971 anaphor_number_agreement:931 animate_subject_passive:895
    animate_subject_trans:923 causative:818 complex_np_island:846
    coordinate_structure_constraint_complex_left_branch:906
    coordinate_structure_constraint_object_extraction:949 determiner_noun_agreement_1:929
    determiner_noun_agreement_2:931 determiner_noun_agreement_irregular_1:681
    determiner_noun_agreement_irregular_2:820 determiner_noun_agreement_with_adj_2:941
    determiner_noun_agreement_with_adj_irregular_1:718 determiner_noun_agreement_with_adj_irregular_2:840
    determiner_noun_agreement_with_adjective_1:933 distractor_agreement_relational_noun:788
    distractor_agreement_relative_clause:871 drop_argument:920 ellipsis_n_bar_1:802 ellipsis_n_bar_2:828
    existential_there_object_raising:812 existential_there_quantifiers_1:930 existential_there_quantifiers_2:911
    existential_there_subject_raising:924 expletive_it_object_raising:759 inchoative:855 intransitive:868
    irregular_past_participle_adjectives:961 irregular_past_participle_verbs:942
    irregular_plural_subject_verb_agreement_1:804 irregular_plural_subject_verb_agreement_2:892
    left_branch_island_echo_question:947 left_branch_island_simple_question:951
    matrix_question_npi_licensor_present:929 npi_present_1:909 npi_present_2:914 only_npi_licensor_present:882
    only_npi_scope:837 passive_1:840 passive_2:903 principle_a_c_command:946 principle_a_case_1:912
    principle_a_case_2:915 principle_a_domain_1:914 principle_a_domain_2:915 principle_a_domain_3:941
    principle_a_reconstruction:967 regular_plural_subject_verb_agreement_1:890
    regular_plural_subject_verb_agreement_2:945 sentential_negation_npi_licensor_present:919
    sentential_negation_npi_scope:871 sentential_subject_island:961 superlative_quantifiers_1:979
    superlative_quantifiers_2:986 tough_vs_raising_1:948 tough_vs_raising_2:920 transitive:868 wh_island:960
    wh_questions_object_gap:859 wh_questions_subject_gap:898 wh_questions_subject_gap_long_distance:857
    wh_vs_that_no_gap:861 wh_vs_that_no_gap_long_distance:875 wh_vs_that_with_gap:919
    wh_vs_that_with_gap_long_distance:910
""")
_SUPPLEMENT = _sizes("""
    hypernym:842 qa_congruence_easy:64 qa_congruence_tricky:165 subject_aux_inversion:3867 turn_taking:280
""")
_EWOK = _sizes("""
    agent-properties:2210 social-relations:1548 physical-relations:818 material-dynamics:770
    physical-interactions:556 spatial-relations:490 social-properties:328 quantitative-properties:314
    social-interactions:294 material-properties:170 physical-dynamics:120
""")
_REGULAR = _sizes("""
    regular_0_ops:606 regular_1_ops:607 regular_2_ops:606 regular_3_ops:606 regular_4_ops:568 regular_5_ops:159
""")
_ENTITY_TRACKING = _REGULAR | _sizes("""
    ambiref_0_ops:607 ambiref_1_ops:607 ambiref_2_ops:604 ambiref_3_ops:604 ambiref_4_ops:615 ambiref_5_ops:187
    move_contents_0_ops:605 move_contents_1_ops:606 move_contents_2_ops:605 move_contents_3_ops:606
    move_contents_4_ops:529 move_contents_5_ops:156
""")
_COMPS = _sizes("base:49340 wugs_dist_before:13896 wugs_dist_in_between:13896 wugs:13896")

_READING = ("reading/predictions.json", {"reading": 1726})
_WUG_ADJ = ("wug_adj/wug_adj_nominalization/predictions.json", {"wug_adj": 200})
_WUG_PAST = ("wug_past/wug_past_tense/predictions.json", {"wug_past": 50})

FULL: dict[str, tuple[str, Mapping[str, int]]] = {
    "blimp": ("blimp/blimp_filtered/predictions.json", _BLIMP),
    "blimp_supplement": ("blimp/supplement_filtered/predictions.json", _SUPPLEMENT),
    "ewok": ("ewok/ewok_filtered/predictions.json", _EWOK),
    "entity_tracking": ("entity_tracking/entity_tracking/predictions.json", _ENTITY_TRACKING),
    "wug_adj": _WUG_ADJ,
    "wug_past": _WUG_PAST,
    "comps": ("comps/comps/predictions.json", _COMPS),
    "reading": _READING,
}
"""The tasks of the last checkpoint, as they follow in the submission: file below main/zero_shot/BACKEND, and parts."""

GLUE = _sizes("boolq:1635 mnli:4908 mrpc:204 multirc:2424 qqp:20215 rte:139 wsc:52")
"""The tasks of fine-tuning, main/finetune/TASK/predictions.json."""

AOA = 8005
"""Surprisals of words at each checkpoint, main/zero_shot/BACKEND/AoA_word/surprisal.json."""


@dataclass(frozen=True)
class Fast:
    """A task that every checkpoint is scored on.

    Attributes:
        place: The file of predictions below CHECKPOINT/zero_shot/BACKEND.
        data: What it was scored on, a file or a folder below evaluation_data/fast_eval.
        score: The name of the score in `fast_scores.SCORES`.
        sizes: The predictions of each part.
        size: In its place, those of every part, which are the files of the folder.
    """

    place: str
    data: str
    score: Literal["good", "ewok", "tracking", "wug", "reading"]
    sizes: Mapping[str, int] | None = None
    size: int | None = None


FAST = {
    "blimp": Fast("blimp/blimp_fast/predictions.json", "blimp_fast", "good", size=200),
    "blimp_supplement": Fast("blimp/supplement_fast/predictions.json", "supplement_fast", "good", size=50),
    "ewok": Fast("ewok/ewok_fast/predictions.json", "ewok_fast", "ewok", size=100),
    "entity_tracking": Fast(
        "entity_tracking/entity_tracking_fast/predictions.json", "entity_tracking_fast", "tracking", _REGULAR
    ),
    "wug_adj": Fast(_WUG_ADJ[0], "wug_adj_nominalization", "wug", _WUG_ADJ[1]),
    "wug_past": Fast(_WUG_PAST[0], "wug_past_tense", "wug", _WUG_PAST[1]),
    "reading": Fast(_READING[0], "reading", "reading", _READING[1]),
}
"""The tasks of every checkpoint, in the order of the submission."""
