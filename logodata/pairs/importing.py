"""Import pairs: read them, make token ids, and write a data set like a build's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from logodata import __version__
from logodata.common.chat_template import TEMPLATE_SETTING
from logodata.common.console import note, progress
from logodata.common.errors import SettingError, UserError, settings_within
from logodata.common.files import bind_settings, check_apart, locked, read_if_whole
from logodata.contract import (
    IMPORT_SCHEMA_VERSION,
    ContextChunk,
    ImportManifest,
    PairFormat,
    PairOrigin,
    PreferenceSample,
    PromptForm,
    QuestionOutcome,
    RejectedQuestion,
    Response,
    SourceFile,
    Stats,
    file_of,
)
from logodata.dataset.card import FORMAT_NAMES, PROMPT_NAMES
from logodata.dataset.files import read_stats, write_import
from logodata.dataset.samples import read_manifest
from logodata.models.facts import model_fingerprint, model_window, tokenizer_fingerprint
from logodata.models.loading import check_model, load_tokenizer, model_folder, read_template
from logodata.pairs.encoding import Encoded, PairEncoder
from logodata.pairs.formats import pair_rows, recognise
from logodata.pairs.messages import PairFault
from logodata.pairs.reading import Pair, as_message, has_own_system, read_pair, repeats_prompt, without_prompt
from logodata.pairs.rows import PairRows, open_pairs
from logodata.pairs.settings import ImportRecipe
from logodata.sources.fields import text_digest

STRATEGY = "imported"
"""The strategy of a response of which nothing says how it was made."""


class OtherImport(UserError):
    """A folder holds an import of other pairs, or under other settings."""


def import_pairs(recipe: ImportRecipe, output: Path, section: str = "") -> Stats:
    """Write the pairs of a file or data set into the folder ``output``. Leave a finished import as it is.

    Messages name settings in ``section``, such as ``data.pairs.`` (see :class:`SettingError`).

    Raises:
        UserError: There are no pairs, their form is not known, ``output`` holds something else or another import
            (:class:`OtherImport`), or no pair could be used.
    """
    with settings_within(section):
        check_model(recipe.model)
        opened = open_pairs(recipe)
        check_apart(output, ("the pairs", opened.path), ("the model", model_folder(recipe.model)))
        template = None if recipe.chat_template is None else text_digest(read_template(recipe.chat_template))[:16]
        settings = {
            "import": recipe.model_dump(mode="json", exclude={"chat_template"}),
            "pairs_fingerprint": opened.fingerprint,
            "model_fingerprint": model_fingerprint(recipe.model),
            "chat_template": template,
        }
        with locked(output):
            bound = output / "work" / "settings.json"
            finished = read_if_whole(output / "manifest.json") is not None
            if finished and not isinstance(read_manifest(output), ImportManifest):
                raise UserError("holds a data set of a build", where=str(output), mend="choose another -o")
            before = read_if_whole(bound) if finished else None
            if isinstance(before, dict) and before.get("pairs_fingerprint") != opened.fingerprint:
                mend = "put the file back as it was, or choose another -o"
                raise OtherImport(
                    f"the pairs have changed since they were imported into {output}", where=recipe.path, mend=mend
                )
            importer = None if finished else _Import(recipe, opened, section)  # it may refuse them
            bound.parent.mkdir(exist_ok=True)
            try:
                bind_settings(output, "work/settings.json", settings, started=finished)
            except UserError as error:
                raise OtherImport(error.what, where=error.where, mend=error.mend) from error
            if importer is not None:
                return importer.write(output)
            note(f"{output} is finished already")
            return read_stats(output)


@dataclass(frozen=True, slots=True)
class _Kind:
    """What all pairs have in common: their form, what prompts of one text are, and whether responses repeat them."""

    form: PairFormat
    prompt: PromptForm | None
    repeats: bool
    num_rows: int

    def __str__(self) -> str:
        parts = [FORMAT_NAMES[self.form]]
        parts += [PROMPT_NAMES[self.prompt]] if self.prompt else []
        parts += ["the prompt that responses repeat is taken from them"] if self.repeats else []
        return "; ".join(parts)


class _Import:
    """One import, which begins with recognising the pairs.

    Raises:
        UserError: Their form is not known, or the tokenizer cannot encode them.
    """

    def __init__(self, recipe: ImportRecipe, opened: PairRows, section: str) -> None:
        self._recipe, self._opened, self._rows, self._section = recipe, opened, pair_rows(opened), section
        self._tokenizer = load_tokenizer(
            recipe.model, recipe.chat_template, needs_template=False, template_args=recipe.chat_template_args
        )
        self._encoder = PairEncoder(self._tokenizer)
        self._window = recipe.window or model_window(recipe.model)
        self._kind = self._recognise()

    def write(self, output: Path) -> Stats:
        """Write the pairs."""
        recipe, kind = self._recipe, self._kind
        manifest = ImportManifest(
            schema_version=IMPORT_SCHEMA_VERSION,
            logo_align=__version__,
            model=recipe.model,
            model_fingerprint=model_fingerprint(recipe.model),
            tokenizer_fingerprint=tokenizer_fingerprint(self._tokenizer),
            source=SourceFile(path=self._opened.shown, sha256=self._opened.fingerprint),
            pairs=PairOrigin(
                format=kind.form,
                prompt=kind.prompt,
                columns=self._opened.columns,
                group=recipe.group,
                window=self._window,
                chunk_tokens=recipe.chunk_tokens,
            ),
            chat_template=self._tokenizer.chat_template if recipe.chat_template or recipe.chat_template_args else None,
            samples=0,
        )
        stats = write_import(output, self._outcomes(kind), manifest)
        left = stats.questions - stats.kept
        reasons = ", ".join(f"{reason.replace('_', ' ')} {n}" for reason, n in stats.rejected_by_reason.items())
        out = f", {left} left out: {reasons} (rejected.jsonl)" if left else ""
        note(f"{recipe.path}: read as {kind}: {stats.kept} pairs{out}")
        return stats

    def _recognise(self) -> _Kind:
        recipe = self._recipe
        given = None if recipe.format == "auto" else recipe.format
        found = recognise(self._rows(), recipe.path, self._opened.columns, given)
        form, num_rows = found.form, found.num_rows
        if form == "ratings" and (count := sum(map(has_own_system, self._rows()))):
            note(
                f"{recipe.path}: completions of {count} rows were written under system prompts of their own "
                "(custom_system_prompt), which are not read: one prompt has one"
            )
        of_text = form in ("standard", "standard-implicit", "text")
        if not self._encoder.has_template and (not of_text or recipe.prompt == "message"):
            raise SettingError("the tokenizer has no chat template", where=recipe.model, setting=TEMPLATE_SETTING)
        if not of_text:
            if recipe.prompt not in ("auto", "message"):
                what, mend = (
                    f"prompt={recipe.prompt} is for prompts of one text",
                    "the chat template is applied to messages",
                )
                raise SettingError(what, where=recipe.path, setting="prompt=auto", mend=mend)
            return _Kind(form, None, False, num_rows)
        repeats = form == "standard" and 2 * sum(map(repeats_prompt, self._rows())) > num_rows
        return _Kind(form, self._prompt_form(form), repeats, num_rows)

    def _prompt_form(self, form: PairFormat) -> PromptForm:
        """Return what prompts of one text are, with a note on what may be meant otherwise."""
        recipe = self._recipe
        places: dict[bool, list[str]] = {True: [], False: []}
        with_control, with_other = [], []
        for row in self._rows():
            try:
                prompt = str(read_pair(row, form).prompt)
            except PairFault:
                continue
            places[self._encoder.is_rendered(prompt)].append(row.where)
            with_control += [row.where] if self._encoder.holds_control(prompt) else []
            with_other += [row.where] if self._encoder.has_other_frame(prompt) else []
        if recipe.prompt != "auto":
            return recipe.prompt
        if places[True] and places[False]:
            raise SettingError(
                f"{len(places[True])} prompts end with the chat template's frame, such as that of {places[True][0]}, "
                f"and {len(places[False])} do not, such as that of {places[False][0]}",
                where=recipe.path,
                setting="prompt=rendered, plain or message",
            )
        if with_other:
            note(
                f"warning: {recipe.path}: {len(with_other)} prompts end like the chat template of another model, such "
                f"as that of {with_other[0]}: its marks are plain text to {recipe.model}"
            )
        if with_control and not places[True]:
            note(
                f"warning: {recipe.path}: {len(with_control)} prompts hold control tokens, such as that of "
                f"{with_control[0]}: they are taken as text; {self._section}prompt=rendered takes them as control "
                "tokens"
            )
        if not places[True] and self._encoder.has_template:
            note(
                f"warning: {recipe.path}: prompts are plain text, and {recipe.model} has a chat template that is not "
                f"applied; {self._section}prompt=message applies it, as an instruct model expects"
            )
        return "rendered" if places[True] else "plain"

    def _outcomes(self, kind: _Kind) -> Iterator[QuestionOutcome]:
        places: dict[str, str] = {}
        with progress("import", kind.num_rows) as tracker:
            for number, found in enumerate(self._grouped(kind) if self._recipe.group else self._read(kind), 1):
                tracker.advance(1)
                if isinstance(found, Pair):
                    pair_id = found.id or f"pair-{number:06d}"
                    if pair_id in places:
                        what = f"pair id {pair_id!r} stands at {places[pair_id]} too"
                        setting, mend = "group=true if these are rows of one prompt", "else give each pair its own id"
                        raise SettingError(what, where=found.where, setting=setting, mend=mend)
                    places[pair_id] = found.where
                    made = self._sample(found, pair_id, kind)
                else:
                    made = found
                if isinstance(made, RejectedQuestion):
                    yield QuestionOutcome(id=made.id, decisions=[], rejected=made, where=found.where)
                else:
                    yield QuestionOutcome(id=made.id, decisions=[], sample=made, where=found.where)

    def _read(self, kind: _Kind) -> Iterator[Pair | RejectedQuestion]:
        for row in self._rows():
            try:
                pair = read_pair(row, kind.form)
                if kind.repeats:
                    pair = without_prompt(pair)
                yield as_message(pair) if kind.prompt == "message" else pair
            except PairFault as fault:
                yield _rejected(row.where, row.where, fault)

    def _grouped(self, kind: _Kind) -> Iterator[Pair | RejectedQuestion]:
        """Yield the pairs with those of the same prompt and preferred response in one, at the place of the first."""
        groups: dict[str, Pair] = {}
        others: list[RejectedQuestion] = []
        for found in self._read(kind):
            if isinstance(found, RejectedQuestion):
                others.append(found)
                continue
            key = text_digest(repr((found.prompt, found.chosen, found.tools)))
            known = groups.get(key)
            groups[key] = found if known is None else _joined(known, found)
        yield from groups.values()
        yield from others

    def _sample(self, pair: Pair, pair_id: str, kind: _Kind) -> PreferenceSample | RejectedQuestion:
        try:
            encoded = self._encode(pair, kind)
            ids = encoded.response_ids
            if ids[0] in ids[1:]:
                raise PairFault("equal_responses", "a dis-preferred response has the token ids of the preferred one")
            longest = max(map(len, ids))
            if (total := len(encoded.prompt_ids) + longest) > self._window:
                detail = f"{len(encoded.prompt_ids)} prompt tokens and {longest} of a response exceed {self._window}"
                raise PairFault("exceeds_window", f"{detail} by {total - self._window}")
            doc_id = pair.doc_id or (None if pair.document is None else text_digest(pair.document)[:12])
            chunks = self._chunks(encoded, pair.document, doc_id)
        except PairFault as fault:
            return _rejected(pair_id, pair.where, fault)
        strategies = pair.strategies or (STRATEGY,) * len(pair.rejected)
        ended = pair.ended or (True,) * (1 + len(pair.rejected))
        made = [
            Response(strategy=strategy, text=text, token_ids=response, ended=does_end, origin="import")
            for strategy, text, response, does_end in zip(
                (STRATEGY, *strategies), encoded.texts, ids, ended, strict=True
            )
        ]
        return PreferenceSample(
            schema_version=IMPORT_SCHEMA_VERSION,
            id=pair_id,
            doc_id=doc_id,
            question_id=None,
            kind="other",
            question=pair.question,
            answers=[],
            prompt_ids=encoded.prompt_ids,
            chunks=chunks,
            chosen=made[0],
            rejected=made[1:],
            answer_in_critical=None,
        )

    def _encode(self, pair: Pair, kind: _Kind) -> Encoded:
        if isinstance(pair.prompt, str):
            texts = [str(answer) for answer in (pair.chosen, *pair.rejected)]
            quoted = [text for text in (pair.document, pair.question) if text]
            rendered = kind.prompt == "rendered"
            return self._encoder.of_text(pair.prompt, texts, pair.ended, rendered=rendered, quoted=quoted)
        answers = [answer for answer in (pair.chosen, *pair.rejected) if isinstance(answer, dict)]
        return self._encoder.of_messages(pair.prompt, answers, pair.tools)

    def _chunks(self, encoded: Encoded, document: str | None, doc_id: str | None) -> list[ContextChunk]:
        if self._recipe.chunk_tokens is None:
            return []
        return [
            ContextChunk(
                doc_id=doc_id,
                index=index,
                start=start,
                end=end,
                token_start=first,
                token_end=last,
                score=None,
                critical=False,
                text=encoded.text[start:end],
            )
            for index, (first, last, start, end) in enumerate(
                self._encoder.spans(encoded, self._recipe.chunk_tokens, document)
            )
        ]


def _joined(one: Pair, other: Pair) -> Pair:
    """Return two pairs of the same prompt and preferred response as one. A response that both have stands once."""
    rejected, strategies, ended = list(one.rejected), list(one.strategies or ()), list(one.ended or ())
    for number, answer in enumerate(other.rejected):
        if answer not in rejected:
            rejected.append(answer)
            strategies += other.strategies[number : number + 1] if other.strategies else ()
            ended += other.ended[number + 1 : number + 2] if other.ended else ()
    return replace(
        one,
        rejected=tuple(rejected),
        strategies=tuple(strategies) if one.strategies else None,
        ended=tuple(ended) if one.ended else None,
    )


def _rejected(pair_id: str, where: str, fault: PairFault) -> RejectedQuestion:
    return RejectedQuestion(
        id=pair_id,
        doc_id=None,
        where=where,
        source=file_of(where),
        question=None,
        kind="other",
        reason=fault.reason,
        detail=fault.detail,
        stage="import",
    )
