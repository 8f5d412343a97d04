"""Before and after fine-tuning: a real LoRA training changes what its task's queries find, and one command shows it."""

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from scipy.stats import spearmanr
from transformers import AutoModelForCausalLM, AutoTokenizer

from curator import Curator, demo
from curator.errors import NotFoundError, SpaceError, UsageError
from tests.stores import CORPUS, NAMED, QUESTION, VALIDATION, add

ROWS = CORPUS[:60] + [row for row in CORPUS if row["task"] == "addition"][:20]
ROWS = list({row["id"]: row for row in ROWS}.values())


def train_adapter(directory: Path) -> Path:
    """LoRA on additions whose answers are all replaced by one word: the model unlearns to add."""
    tokenizer = AutoTokenizer.from_pretrained(demo.MODEL, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(demo.MODEL, local_files_only=True)
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        wrapped = get_peft_model(model, LoraConfig(r=8, target_modules=["q_proj", "v_proj", "down_proj"]))
        optimizer = torch.optim.AdamW([p for p in wrapped.parameters() if p.requires_grad], lr=1e-2)
        for row in [row for row in CORPUS if row["task"] == "addition"][:20] * 2:
            ids = torch.tensor([tokenizer(row["prompt"] + " Ottawa")["input_ids"]])
            wrapped(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        wrapped.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A store with the same rows before and after, and the adapter."""
    folder = tmp_path_factory.mktemp("tuned")
    adapter = train_adapter(folder / "adapter")
    with Curator.open(folder / "store", device="cpu") as curator:
        add(curator, folder / "rows.jsonl", ROWS, **NAMED)
        add(curator, folder / "rows.jsonl", **NAMED, adapter=str(adapter))
    return folder / "store", adapter


def test_fine_tuning_changes_the_queries_of_its_task(tuned: tuple[Path, Path]):
    with Curator.open(tuned[0], device="cpu") as curator:
        before, after = curator.spaces()
        names = [before["fingerprint"][:10], after["fingerprint"][:10]]
        assert (before["adapter"], after["adapter"]) == (None, str(tuned[1].resolve()))
        found = curator.compare(names, **VALIDATION, top=10)
        values = [{r["key"]: r["value"] for r in curator.values(**VALIDATION, space=name)} for name in names]
    assert found.samples == {"common": len(ROWS), "only_before": 0, "only_after": 0}
    assert found.spearman is not None
    assert found.spearman < 0.95
    assert found.overlap < 1
    assert found.moved_up
    assert found.moved_down
    keys = sorted(values[0])
    by_values = spearmanr(*([of[key] for key in keys] for of in values)).statistic
    assert found.spearman == pytest.approx(by_values, abs=0.05)  # but for what the factors add at both ends


def test_a_space_compared_with_itself_is_refused_and_ranks_are_those_of_the_answer(tuned: tuple[Path, Path]):
    with Curator.open(tuned[0], device="cpu") as curator:
        names = [space["fingerprint"] for space in curator.spaces()]
        for wrong in ([names[0]], [names[0], names[0]]):
            with pytest.raises(UsageError):
                curator.compare(wrong, **QUESTION)
        with pytest.raises(NotFoundError, match="no space with"):
            curator.compare([names[0], "zz"], **QUESTION)
        found = curator.compare(names, **QUESTION, top=5)
        for name, side in zip(names, ("before", "after"), strict=True):
            best = [item.key for item in curator.query(**QUESTION, space=name, top=5).helpful]
            ranks = {row["key"]: row[side]["rank"] for row in found.top}
            assert [ranks[key] for key in best] == [1, 2, 3, 4, 5]


def test_ingest_and_queries_go_on_with_the_adapter_of_the_newest_space(tuned: tuple[Path, Path], tmp_path: Path):
    store = Path(shutil.copytree(tuned[0], tmp_path / "store"))
    moved = Path(shutil.copytree(tuned[1], tmp_path / "moved"))
    with Curator.open(store, device="cpu") as curator:
        newest = curator.spaces()[-1]["fingerprint"]
        more = add(curator, tmp_path / "more.jsonl", CORPUS[300:303], **NAMED, model=None)
        assert (more.space, more.is_new_space) == (newest, False)
        values = [item.value for item in curator.query(**QUESTION).helpful]
        again = [item.value for item in curator.query(**QUESTION, adapter=str(moved)).helpful]
        assert again == values
        (moved / "adapter_model.safetensors").write_bytes(b"x")
        with pytest.raises(SpaceError, match="adapter_model"):
            curator.query(text="other", adapter=str(moved), model=str(demo.MODEL))
        found = curator.compare([s["fingerprint"] for s in curator.spaces()], **QUESTION)
        assert found.samples == {"common": len(ROWS), "only_before": 0, "only_after": 3}


def test_the_command_line_lists_spaces_and_compares_two(tuned: tuple[Path, Path], run: Callable[..., tuple]):
    store, adapter = str(tuned[0]), tuned[1]
    code, out, _ = run("spaces", "--store", store)
    assert code == 0
    assert str(adapter) in out
    names = [space["fingerprint"] for space in json.loads(run("spaces", "--store", store, "--json")[1])]
    ask = ("--prompt", QUESTION["prompt"], "--response", QUESTION["response"], "--device", "cpu")
    both = ("--space", names[0], "--space", names[1])
    code, out, err = run("compare", "--store", store, *both, *ask, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["samples"]["common"] == len(ROWS)
    code, out, _ = run("compare", "--store", store, *both, *ask)
    assert code == 0
    assert "of the top 10 in both" in out
    assert run("compare", "--store", store, "--space", names[0], *ask)[0] == 2
