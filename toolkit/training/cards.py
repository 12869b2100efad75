"""Model cards: what a saved model is, how it is used, and how good it was found to be."""

import os
import re
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from trl.trainer.utils import get_config_model_id

from .run_record import write_text

if TYPE_CHECKING:
    from transformers import Trainer as _Trainer
else:
    _Trainer = object  # it stands before any trainer, and has no base of its own

CARD_NAME = "README.md"
PACKAGES = ("prefscale", "trl", "transformers", "torch")
_TEMPLATES = Path(__file__).with_name("templates")
_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
# Builders of `datasets`, which it calls files after that it reads
_BUILDERS = ("json", "csv", "parquet", "arrow", "text", "generator")


class Source(NamedTuple):
    """Where a model or its data come from, as a card may say it: of a path its last part alone."""

    name: str
    is_hub: bool

    def __str__(self) -> str:
        return f"[{self.name}](https://huggingface.co/{self.name})" if self.is_hub else f"`{self.name}`"


class Card(NamedTuple):
    """What a card says that others do not."""

    template: str  # name of the file
    library_name: str
    pipeline_tag: str
    tags: list[str]
    values: dict[str, Any]  # of the template
    results: list[EvalResult] = []  # noqa: RUF012  # never added to
    base: Source | None = None
    data: Source | None = None


def source_of(name: str | None) -> Source | None:
    """
    A model as a card may name it.

    Args:
        name (`str`, *optional*):
            Hub name or folder.

    Returns:
        [`Source`], or `None` where there is no name.
    """
    if not name:
        return None
    is_hub = _HUB_NAME.fullmatch(name) is not None and not os.path.exists(name)
    return Source(name if is_hub else Path(name).resolve().name, is_hub)


def data_source_of(name: str | None) -> Source | None:
    """
    Data as a card may name them.

    Args:
        name (`str`, *optional*):
            Hub name, folder, file, pattern of files, or any other word for them.

    Returns:
        [`Source`], or `None` where there is no name.
    """
    if not name or name in _BUILDERS:
        return None
    is_hub = "/" in name and _HUB_NAME.fullmatch(name) is not None and not os.path.exists(name)
    return Source(name if is_hub else Path(name).name, is_hub)


def write_card(card: Card, folder: str | Path, name: str) -> None:
    """
    Write a model card, in one piece and in the place of what is there.

    Args:
        card ([`Card`]):
            What it says.
        folder (`str` or `Path`):
            Folder of the model.
        name (`str`):
            By what the model is loaded: its hub name, or that of its folder.
    """
    data = ModelCardData(
        model_name=name.rpartition("/")[2],
        base_model=card.base.name if card.base is not None and card.base.is_hub else None,
        datasets=[card.data.name] if card.data is not None and card.data.is_hub else None,
        library_name=card.library_name,
        pipeline_tag=card.pipeline_tag,
        tags=card.tags,
        eval_results=card.results or None,
    )
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    text = environment.get_template(card.template).render(
        name=name,
        base=card.base,
        data=card.data,
        results=card.results,
        versions={package: version(package) for package in PACKAGES},
        **card.values,
    )
    write_text(Path(folder, CARD_NAME), f"---\n{data.to_yaml().strip()}\n---\n\n{text.strip()}\n")


class ModelCards(_Trainer):
    """
    Stands before a trainer of TRL: every save has a card beside the weights, and so has what is pushed to the hub.

    It takes the place of TRL's, whose code loads no model without a hub name, and of PEFT's, which tells the base's
    path. A subclass says by `_card` what is in it.
    """

    _tag_names: Any
    _told_dataset: str | None = None
    _told_tags: tuple[str, ...] = ()

    def create_model_card(  # type: ignore[override]  # TRL's own is another than Transformers'
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """
        Write the card in the output folder anew, with the evaluations that there have been since it was written.

        Args:
            model_name (`str`, *optional*):
                Not used: the model's name is that of the hub or of the folder, by which it is loaded.
            dataset_name (`str`, *optional*):
                Name or path of the training data, for this card and later ones.
            tags (`str` or `list[str]`, *optional*):
                Further tags, for this card and later ones.
        """
        self._told_dataset = dataset_name or self._told_dataset
        self._told_tags = tuple([tags] if isinstance(tags, str) else tags or self._told_tags)
        if self.is_world_process_zero():
            self._write_card(self.args.output_dir)  # type: ignore[arg-type]

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            self._write_card(output_dir or self.args.output_dir)  # type: ignore[arg-type]

    def _write_card(self, folder: str) -> None:
        card, rows = self._card(), self.train_dataset
        tags = ["generated_from_trainer", "prefscale", *self._tag_names, *card.tags, *self._told_tags]
        own = {
            "tags": list(dict.fromkeys(tags)),
            "base": source_of(get_config_model_id(self.model.config)),  # type: ignore[union-attr,arg-type]
            "data": data_source_of(self._told_dataset or rows.info.dataset_name),  # type: ignore[union-attr]
        }
        os.makedirs(folder, exist_ok=True)
        write_card(card._replace(**own), folder, self.hub_model_id or Path(folder).resolve().name)  # type: ignore[arg-type]

    def _card(self) -> Card:
        raise NotImplementedError
