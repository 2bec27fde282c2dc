"""The table of forms."""

from __future__ import annotations

from tclx.data.forms.entailment import EntailmentForm
from tclx.data.forms.form import Form
from tclx.data.forms.nlvr import NlvrForm
from tclx.data.forms.vqa import VqaForm

FORMS: dict[str, Form] = {
    "entailment": EntailmentForm(),
    "vqa": VqaForm(),
    "nlvr": NlvrForm(),
}
"""By `form` of a source; rows of captions, which pre-training and retrieval read, are `tclx.data.annotations`'s."""


def forms_with(keys: set[str]) -> list[str]:
    """Which forms a row with such keys may have, the most telling first; for messages."""
    told: dict[str, tuple[str, ...]] = {name: form.keys for name, form in FORMS.items()} | {"pretrain": ("image", "caption")}
    return sorted((name for name, needed in told.items() if keys >= set(needed)), key=lambda name: -len(told[name]))
