"""Training of vstream-tiny: the quick ways compute what the model computes, and interruptions cost nothing."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
import torch
from rich.console import Console

from training.batches import FACTS, NEW, NOTHING, OLD, Batch, BatchMaker
from training.feature_pool import FeaturePool, PooledClip, join
from training.packed_forward import forward
from training.tiny_config import CELLS, FRAME_SIZE, HIDDEN, MAX_PIXELS, MIN_PIXELS, TOKENS, VISION
from training.tiny_model import make_model, write_checkpoint
from training.tower import encode_tubelets, patchify
from training.train import train
from training.train_language import LanguagePlan, train_language
from training.train_vision import IGNORE, MOTIONS, PLACES, TubeletSampler, VisionPlan, label, mirror
from vstream_ros.memory.clip import NANOSECONDS, Tubelet
from vstream_ros.models.base import Segment, TubeletFeatures
from vstream_ros.models.loader import load_model, wrap_model
from vstream_ros.synthetic.shapes_questions import NUMBERS, QA, corpus
from vstream_ros.synthetic.shapes_world import COLOURS, SHAPES, Scene, Visit, all_names
from vstream_ros.synthetic.sightings import Sighting, camera_frame, sightings


@pytest.fixture(scope="module")
def untrained():
    torch.set_num_threads(1)
    return make_model()


@pytest.fixture(scope="module")
def pool(untrained):
    pool = FeaturePool(untrained[0].model.visual, seed=1)
    pool.grow(4, 2, lambda: None)
    return pool


def test_the_tower_has_windows_that_do_not_see_each_other(untrained):
    """The first block's windows are parts of the frame, and not all of one size."""
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import get_vision_window_index

    rows, columns = FRAME_SIZE[0] // 14, FRAME_SIZE[1] // 14
    _, bounds = get_vision_window_index(
        torch.tensor([[1, rows, columns]]), spatial_merge_size=2, window_size=VISION["window_size"], patch_size=14
    )
    sizes = torch.as_tensor(bounds).unique_consecutive().diff().tolist()
    assert sizes == [16, 16, 8, 8]


def test_batched_tower_is_the_models_own(untrained):
    model, processor = untrained
    frames, _ = TubeletSampler(3).draw(5)
    pixels, grid = patchify(frames)
    native = processor.video_processor(
        [torch.tensor(f).permute(0, 3, 1, 2) for f in frames], do_resize=False, do_sample_frames=False,
        cap_pixels_per_frame=False, return_tensors="pt",
    )
    assert torch.equal(native["pixel_values_videos"], pixels)
    assert torch.equal(native["video_grid_thw"], grid)
    with torch.no_grad():
        own = model.model.visual(pixels, grid_thw=grid).pooler_output
        quick = encode_tubelets(model.model.visual, frames)
    assert quick.shape == (5, TOKENS, own.shape[-1])
    torch.testing.assert_close(quick.flatten(0, 1), own, atol=1e-5, rtol=1e-4)


def test_isolated_questions_get_the_logits_that_the_engine_computes(untrained, pool):
    """Packed, with positions made here, against ``build_prompt`` and a prefill of each question apart."""
    model, processor = untrained
    video = wrap_model(model, processor, name="x", min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS)
    rng = np.random.default_rng(2)
    clip = join([pool.clip(3, rng, 0.0), pool.clip(4, rng, 0.0)], [37])
    qas = [QA("now", "What is there now?", "nothing"), QA("count", "Count the objects now.", "two")]
    batch = BatchMaker(processor, model.config.video_token_id).batch([clip], [qas])
    with torch.no_grad():
        hidden, _ = forward(model, batch)
        logits = model.lm_head(hidden)[0]
    frames = np.zeros((2, *FRAME_SIZE, 3), np.uint8)
    tubelets = tuple(
        Tubelet(id=k, camera="", frames=frames, stamps_ns=(), time_ns=s * NANOSECONDS, importance=0.0)
        for k, s in enumerate(clip.seconds)
    )
    for number, qa in enumerate(qas):
        prompt = video.build_prompt([Segment(tubelets, 1.0, 0)], qa.question, true_time=True)
        cache = video.new_cache()
        video.prefill(prompt, len(prompt) - 1, [TubeletFeatures(f) for f in clip.features], cache)
        with torch.no_grad():
            last = model.model.language_model(
                inputs_embeds=model.get_input_embeddings()(torch.tensor(prompt.input_ids[None, -1:])),
                position_ids=torch.tensor(prompt.position_ids[:, None, -1:]),
                past_key_values=cache,
            ).last_hidden_state
        first_answer_token = int(((batch.owner[0] == number) & (batch.targets[0] >= 0)).nonzero()[0])
        torch.testing.assert_close(model.lm_head(last)[0, -1], logits[first_answer_token], atol=1e-5, rtol=1e-4)


def at(visit: Visit, x: float, part: float = 1.0, motion: str = "nowhere") -> Sighting:
    return Sighting(visit, part, part, x, 0.1, motion)


def batch_of(untrained, *views: tuple[Sighting, ...]) -> Batch:
    model, processor = untrained
    clip = PooledClip(torch.zeros(len(views), TOKENS, HIDDEN), views, tuple(range(len(views))))
    asked = [QA("count", "How many objects are there now?", "two")]
    return BatchMaker(processor, model.config.video_token_id).batch([clip], [asked])


def number_of(visit: Visit) -> int:
    """The class of an object."""
    return 1 + 4 * list(COLOURS).index(visit.colour) + SHAPES.index(visit.shape)


def test_each_objects_token_is_told_what_it_is(untrained):
    one, two, three = Scene(4, 24.0, gap_s=2.0).visits[:3]
    batch = batch_of(
        untrained,
        (at(one, 0.1),),
        (at(one, 0.3), at(two, 0.9, part=0.4)),
        (at(two, 0.9), at(three, 0.6)),
        (at(two, 0.1), at(three, 0.2)),
    )
    identity, novelty, previous = (batch.token_targets[layer][0].reshape(4, TOKENS) for layer in (2, 3, 5))
    # The second object may have come with the second tubelet or with the third; in the last two stand in one token.
    unknown = IGNORE
    assert novelty[:, :4].tolist() == [
        [NEW, NOTHING, NOTHING, NOTHING],
        [NOTHING, OLD, NOTHING, unknown],
        [NOTHING, NOTHING, NEW, unknown],
        [unknown, NOTHING, NOTHING, NOTHING],
    ]
    assert (novelty[:, 4:] == NOTHING).all()
    first, second, third = map(number_of, (one, two, three))
    assert identity[:, :4].tolist() == [
        [first, NOTHING, NOTHING, NOTHING],
        [NOTHING, first, NOTHING, unknown],
        [NOTHING, NOTHING, third, second],
        [unknown, NOTHING, NOTHING, NOTHING],
    ]
    # Before the first there was nothing; what came before the third nobody can tell.
    assert [(k, int(n)) for k, row in enumerate(previous) for n in row if n != IGNORE] == [(0, NOTHING)]


def test_what_comes_in_is_told_what_came_before(untrained):
    one, two = Scene(4, 24.0, gap_s=2.0).visits[:2]
    batch = batch_of(untrained, (at(one, 0.1),), (at(two, 0.9),), (at(one, 0.1), at(two, 0.9)))
    previous = batch.token_targets[5][0].reshape(3, TOKENS)
    assert [(k, int(n)) for k, row in enumerate(previous) for n in row if n != IGNORE] == [
        (0, NOTHING),
        (1, number_of(one)),
    ]


def test_of_the_tokens_that_an_object_moves_over_the_first_is_told_that_it_is_new(untrained):
    one = Scene(4, 24.0, gap_s=2.0).visits[0]
    # In both tubelets it is in token 1 in one frame, in token 2 in the other.
    right, left = (batch_of(untrained, (at(one, *moving),)) for moving in ((0.52, 1.0, "right"), (0.48, 1.0, "left")))
    assert right.token_targets[3][0, :4].tolist() == [NOTHING, IGNORE, IGNORE, NOTHING]
    assert right.token_targets[2][0, :4].tolist() == [NOTHING, IGNORE, number_of(one), NOTHING]
    assert left.token_targets[3][0, :4].tolist() == [NOTHING, NEW, IGNORE, NOTHING]


def test_a_tubelet_is_told_what_is_there_and_what_has_been(untrained):
    one, two = Scene(4, 24.0, gap_s=2.0).visits[:2]
    views = ((), (at(one, 0.5), at(two, 0.2)), (at(one, 0.5), at(two, 0.53)), (at(one, 0.5), at(two, 0.1, part=0.4)))
    batch = batch_of(untrained, *views)
    first, second = number_of(one), number_of(two)
    assert batch.tubelet_targets[5][0].tolist() == [
        [NOTHING, NOTHING, NOTHING],
        [second, first, NOTHING],  # from left to right
        [IGNORE] * 3,  # one above the other
        [IGNORE] * 3,  # the second may be there or not
    ]
    seen = batch.seen_targets[0]
    assert seen.nonzero().tolist() == [[k, n - 1] for k in (1, 2, 3) for n in sorted((first, second))]
    doubtful = batch_of(untrained, (at(one, 0.5), at(two, 0.1, part=0.4))).seen_targets[0, 0]
    assert (doubtful[first - 1], doubtful[second - 1], doubtful.abs().sum()) == (1, IGNORE, 1 - IGNORE)


def test_names_in_text_are_told_which_object_they_mean(untrained):
    model, processor = untrained
    clip = PooledClip(torch.zeros(1, TOKENS, HIDDEN), ((),), (0,))
    qas = [
        QA("ever", "Was there ever a red circle?", "no"),
        QA("describe", "What happened?", "a blue square came from above, then a red circle stood there"),
        QA("colour", "What colour is the circle?", "red"),
    ]
    batch = BatchMaker(processor, model.config.video_token_id).batch([clip], [qas])
    told = (batch.text_targets[0] != IGNORE).nonzero()[:, 0].tolist()
    names = [processor.tokenizer.decode(batch.question_ids[0, k - 1 : k + 1]).strip() for k in told]
    assert names == ["red circle", "blue square", "red circle"]
    assert batch.text_targets[0, told].tolist() == [1 + all_names().index(name) for name in names]


def test_names_in_text_are_told_what_could_be_asked_about_them(untrained):
    """Whatever was asked, and nothing where the answer would be a matter of taste."""
    model, processor = untrained
    one, two, three, absent = Scene(4, 24.0, gap_s=2.0).visits[:4]
    views = ((at(one, 0.1),), (at(two, 0.5),), (at(two, 0.5), at(three, 0.9, motion="left")))
    clip = PooledClip(torch.zeros(3, TOKENS, HIDDEN), views, (0, 1, 2))
    qas = [QA("ever", f"Was there ever a {visit.name}?", "yes") for visit in (one, two, three, absent)]
    batch = BatchMaker(processor, model.config.video_token_id).batch([clip], [qas])
    named = (batch.text_targets[0] != IGNORE).nonzero()[:, 0]
    assert batch.fact_targets.shape == (*batch.text_targets.shape, len(FACTS))
    told = [
        {kind: FACTS[kind][n] for kind, n in zip(FACTS, row.tolist(), strict=True) if n != IGNORE}
        for row in batch.fact_targets[0, named]
    ]
    second, third = f"a {two.name}", f"a {three.name}"
    here = {"ever": "yes", "describe": "nowhere"}
    assert told == [
        {"ever": "yes", "before": "nothing", "after": second, "describe": "nowhere"},
        here | {"before": f"a {one.name}", "after": third, "where": "middle", "direction": "nowhere"},
        here | {"before": second, "after": "nothing", "where": "right", "direction": "left", "describe": "left"},
        {"ever": "no"},
    ]
    others = torch.ones(batch.fact_targets.shape[1], dtype=torch.bool)
    others[named] = False
    assert (batch.fact_targets[0, others] == IGNORE).all()


def test_any_text_tokenises_and_words_are_short(untrained):
    tokenizer = untrained[1].tokenizer
    for text in [*corpus()[::37], "Zwölf Boxkämpfer 42 \u200b日本 🙂"]:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer("What came after the purple triangle?")["input_ids"]) == 7
    words = (*COLOURS, *SHAPES, *NUMBERS, "middle", "nowhere", "yes")
    assert all(len(tokenizer(word)["input_ids"]) == 1 for word in words)


def test_labels_and_their_mirror():
    scene = Scene(4, 24.0, gap_s=2.0)
    time_s = next(t / 4 for t in range(90) if any(s.here and s.place for s in sightings(scene, t / 4, t / 4 + 0.5)))
    seen = sightings(scene, time_s, time_s + 0.5)
    labels = label(seen)
    assert (labels[:, 0] > 0).sum() == sum(s.seen and not 0.15 <= s.after < 0.6 for s in seen)
    frames = np.stack([camera_frame(scene, t, FRAME_SIZE, None) for t in (time_s, time_s + 0.5)])
    flipped, mirrored = mirror(frames, labels)
    assert np.array_equal(flipped[:, :, ::-1], frames)
    assert np.array_equal(mirror(flipped, mirrored)[1], labels)
    grid, turned = labels.reshape(*CELLS, -1), mirrored.reshape(*CELLS, -1)[:, ::-1]
    for k in np.argwhere(grid[..., 3] >= 0):
        swapped = {"left": "right", "right": "left"}
        motion = MOTIONS[grid[tuple(k)][3]]
        assert MOTIONS[turned[tuple(k)][3]] == swapped.get(motion, motion)
        if grid[tuple(k)][4] >= 0:
            place = PLACES[grid[tuple(k)][4]]
            assert PLACES[turned[tuple(k)][4]] == swapped.get(place, place)


def test_clips_have_the_length_asked_for(pool):
    rng = np.random.default_rng(5)
    for tubelets in (2, 7, 19, 28):
        for long_share in (0.0, 1.0):
            clip = pool.clip(tubelets, rng, long_share)
            assert len(clip.views) == len(clip.seconds) == len(clip.features) == tubelets
            assert all(b > a for a, b in zip(clip.seconds, clip.seconds[1:], strict=False))


def test_training_from_nothing_to_a_checkpoint(tmp_path):
    """A few steps of everything; a second run finds it done, a longer one goes on from there."""
    console = Console(file=io.StringIO())
    vision = dataclasses.replace(VisionPlan(), steps=2, batch=8, fresh=4)
    language = dataclasses.replace(LanguagePlan(), steps=2, token_budget=600)
    threads = torch.get_num_threads()
    train(tmp_path, vision, language, (2, 1), console, held_out=2, batches=1)
    weights = (tmp_path / "model.safetensors").read_bytes()
    assert len(weights) < 8_000_000
    train(tmp_path, vision, language, (2, 1), console, held_out=2, batches=1)
    assert (tmp_path / "model.safetensors").read_bytes() == weights
    train(tmp_path, vision, dataclasses.replace(language, steps=3), (2, 1), console, held_out=2, batches=1)
    assert (tmp_path / "model.safetensors").read_bytes() != weights
    assert torch.get_num_threads() == threads
    model = load_model(
        str(tmp_path), device="cpu", torch_dtype="float32", local_files_only=True, min_pixels=3136, max_pixels=200_000
    )
    assert model.frame_spec.fit(480, 640) == FRAME_SIZE
    assert next(model.model.parameters()).dtype == torch.float32


def test_threads_decide_nothing_but_the_time(pool, tmp_path):
    plan = dataclasses.replace(LanguagePlan(), steps=2, token_budget=600)
    before = make_model()[0].model.language_model.state_dict()
    trained = []
    for threads in (1, 2):
        model, processor = make_model()
        train_language(model, processor, pool, tmp_path / str(threads), plan, lambda *_: None, threads=threads)
        trained.append(model.model.language_model.state_dict())
    assert all(torch.equal(trained[0][name], trained[1][name]) for name in before)
    assert not any(torch.equal(trained[0][name], weights) for name, weights in before.items() if "proj" in name)


def test_a_damaged_checkpoint_is_refused(untrained, tmp_path):
    from vstream_ros.errors import ModelFailedError

    write_checkpoint(*untrained, tmp_path)

    def load() -> None:
        load_model(
            str(tmp_path), device="cpu", torch_dtype="float32", local_files_only=True, min_pixels=3136, max_pixels=9800
        )

    load()
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelFailedError, match="could not be loaded"):
        load()
    weights.unlink()
    with pytest.raises(ModelFailedError, match="could not be loaded"):
        load()
    weights.write_bytes(whole)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelFailedError, match="could not be loaded"):
        load()
