"""Law 1: the final digest does not depend on the number of replicas."""

import pytest


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "counts"), [("float32", (1, 3, 8)), ("bfloat16", (1, 2, 3, 4, 5, 8))])
def test_tiny_has_one_digest_at_any_number_of_replicas(samestep, tiny, dtype, counts, tmp_path):
    found = {}
    for replicas in counts:
        run = tmp_path / str(replicas)
        result = samestep("train", tiny, "--replicas", replicas, "--run", run, "--json", f"model.dtype={dtype}")
        assert result.code == 0, result.err
        found[replicas] = (result.json["digest"], result.json["final_loss"], result.json["bits_per_byte"])
    assert len(set(found.values())) == 1, found


@pytest.mark.slow
def test_three_replicas_twice_give_one_digest_and_another_seed_another(samestep, tiny):
    digests = [
        samestep("train", tiny, "--replicas", 3, "--json", "steps=4", *more).json["digest"]
        for more in ([], [], ["seed=8"])
    ]
    assert digests[0] == digests[1] != digests[2]


VARIANTS = {
    "sgd": ["optimizer.kind=sgd", "optimizer.learning_rate=0.1"],
    "packed, untied, no clipping": ["data.packing=true", "model.tied=false", "optimizer.clip=null"],
    "activation checkpointing": ["compute.checkpointing=full"],
    "an odd number of lanes": ["lanes=7", "batch.accumulate=1"],
}


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_of_tiny_are_verified_the_same(samestep, tiny, variant):
    result = samestep("verify", tiny, "--replicas", "1,3", "--steps", 2, "--json", *VARIANTS[variant])
    assert result.code == 0, result.out + result.err
    assert result.json["same"]


@pytest.mark.slow
def test_activation_checkpointing_does_not_change_the_bits(samestep, tiny):
    settings = [[], ["compute.checkpointing=full"]]
    verdicts = [samestep("verify", tiny, "--replicas", "1,2", "--steps", 2, "--json", *s).json for s in settings]
    assert verdicts[0]["digest"] == verdicts[1]["digest"] is not None
