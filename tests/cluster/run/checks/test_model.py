from __future__ import annotations

from tests.cluster.run.checks.cases import Facts, the_problem, with_model


def test_a_chain_without_a_decision_is_refused() -> None:
    key, said = the_problem(with_model("sampler.steps=1"))
    assert key == "sampler.steps" and said.endswith("; choose at least 2 steps")
    assert not with_model("sampler.steps=1", facts=Facts("tsdsr")).problems


def test_guidance_without_a_negative_text_and_a_model_without_its_embedding_are_refused() -> None:
    key, said = the_problem(with_model("sampler.guidance_scale=4", facts=Facts(guidance=False)))
    assert key == "sampler.guidance_scale" and "holds none; set sampler.guidance_scale=1, or convert" in said
    assert not with_model("sampler.guidance_scale=4").problems
    key, said = the_problem(with_model(facts=Facts("seesr", missing_embeddings=("image",))))
    assert key == "data.embeddings" and "no embedding image, which seesr looks at" in said


def test_a_setting_of_another_kind_of_chain_is_told() -> None:
    (warning,) = with_model("sampler.noise_level=0.5").warnings
    assert warning.startswith("sampler.noise_level=0.5: has no effect on diffbir")
    (warning,) = with_model("sampler.eta=0.5", facts=Facts("controlnet_sd3")).warnings
    assert warning.startswith("sampler.eta=0.5: has no effect on controlnet_sd3")
    assert not with_model("sampler.eta=0.5").warnings
