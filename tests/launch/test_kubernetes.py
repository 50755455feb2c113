"""What is printed for Kubernetes is what its schemas and those of JobSet and the Kubeflow Trainer know, all of it."""

import copy
import re
from dataclasses import replace

import kubernetes_validate
import pytest
from kubeflow_trainer_api import models

from samestep.launch.kubernetes import KINDS, NODE, Options, jobset, trainjob

OPTIONS = Options("tiny", "registry.example/samestep:0.1.0", replicas=3, cpus="2", memory=8 << 30, grace=90)
VARIANTS = {
    "claimed": OPTIONS,
    "alone": replace(OPTIONS, replicas=1, storage_class="fast", namespace="team"),
    "given": replace(OPTIONS, claim="shared", gpus=1, secret="keys", account="trainer", selector={"pool": "1e3"}),
    "bucket": replace(OPTIONS, bucket="my-bucket"),
}
MODELS = {
    "JobSet": models.JobsetV1alpha2JobSet,
    "TrainJob": models.TrainerV1alpha1TrainJob,
    "TrainingRuntime": models.TrainerV1alpha1TrainingRuntime,
}
CORE = {"ConfigMap", "PersistentVolumeClaim", "Service", "NetworkPolicy"}


def of_kind(manifests, kind):
    return next(each for each in manifests if each["kind"] == kind)


def job_of(manifests):
    """The replicated job as a Job of its own."""
    holder = of_kind(manifests, "JobSet" if any(each["kind"] == "JobSet" for each in manifests) else "TrainingRuntime")
    spec = holder["spec"]["template"]["spec"] if holder["kind"] == "TrainingRuntime" else holder["spec"]
    (replicated,) = spec["replicatedJobs"]
    template = copy.deepcopy(replicated["template"])
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "job"} | template["metadata"]} | {
        "spec": template["spec"]
    }


def pod_of(manifests):
    template = job_of(manifests)["spec"]["template"]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "pod"} | template["metadata"],
        "spec": template["spec"],
    }


def strictly(manifest):
    return kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_kubernetes_knows_every_key(kind, options):
    manifests = KINDS[kind]("seed: 1\n", options)
    known = [each for each in manifests if each["kind"] in CORE]
    assert len(known) == (3 if options.claim or options.bucket else 4)
    for manifest in [*known, job_of(manifests), pod_of(manifests)]:
        strictly(manifest)


def test_a_key_that_kubernetes_does_not_know_is_found():
    pod = pod_of(jobset("", OPTIONS))
    pod["spec"]["containers"][0]["securityContext"]["runsAsNobody"] = True
    with pytest.raises(kubernetes_validate.ValidationError):
        strictly(pod)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_the_models_of_jobset_and_trainer_drop_nothing(kind, options):
    found = [each for each in KINDS[kind]("seed: 1\n", options) if each["kind"] in MODELS]
    assert [each["kind"] for each in found] == {"jobset": ["JobSet"], "trainjob": ["TrainingRuntime", "TrainJob"]}[kind]
    for manifest in found:
        assert MODELS[manifest["kind"]].from_dict(manifest).to_dict() == manifest


def test_the_models_drop_what_they_do_not_know():
    manifest = of_kind(jobset("", OPTIONS), "JobSet")
    manifest["spec"]["failurePolicy"]["rules"][0]["onExitCode"] = 75
    assert models.JobsetV1alpha2JobSet.from_dict(manifest).to_dict() != manifest


@pytest.mark.parametrize("manifests", [jobset("", OPTIONS), trainjob("", OPTIONS)], ids=KINDS)
def test_a_pod_is_told_which_replica_it_is_and_where_the_first_one_is(manifests):
    spec = job_of(manifests)["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    known = {each["name"]: each.get("value") or each["valueFrom"]["fieldRef"]["fieldPath"] for each in container["env"]}
    assert (spec["completionMode"], spec["parallelism"], spec["completions"]) == ("Indexed", 3, 3)
    assert known["RANK"] == "metadata.labels['batch.kubernetes.io/job-completion-index']"
    assert known["WORLD_SIZE"] == "3"
    service = of_kind(manifests, "Service")
    host, _, subdomain = known["MASTER_ADDR"].partition(".")
    assert (host, subdomain) == (f"tiny-{NODE}-0-0", service["metadata"]["name"])
    assert service["spec"]["clusterIP"] == "None" and service["spec"]["publishNotReadyAddresses"]
    assert known["MASTER_PORT"] == str(service["spec"]["ports"][0]["port"])


def test_the_command_names_what_is_mounted():
    manifests = jobset("seed: 1\n", OPTIONS)
    spec = pod_of(manifests)["spec"]
    (container,) = spec["containers"]
    command = ["samestep", "train", "/recipe/recipe.yaml", "--run", "/run/tiny", "--engine", "env"]
    assert container["command"] == command
    mounts = {each["mountPath"]: each["name"] for each in container["volumeMounts"]}
    volumes = {each["name"]: each for each in spec["volumes"]}
    assert volumes.keys() == set(mounts.values())
    config = of_kind(manifests, "ConfigMap")
    assert volumes[mounts["/recipe"]]["configMap"]["name"] == config["metadata"]["name"]
    assert config["data"] == {"recipe.yaml": "seed: 1\n"}
    claim = of_kind(manifests, "PersistentVolumeClaim")
    assert volumes[mounts["/run"]]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert volumes[mounts["/dev/shm"]]["emptyDir"] == {"medium": "Memory", "sizeLimit": "4096Mi"}


def test_a_pod_has_no_rights():
    spec = pod_of(jobset("", OPTIONS))["spec"]
    assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["runAsUser"] > 0
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    (container,) = spec["containers"]
    expected = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    assert container["securityContext"] == expected


def test_only_pods_of_the_job_reach_each_other():
    spec = of_kind(jobset("", OPTIONS), "NetworkPolicy")["spec"]
    mine = {"matchLabels": {"jobset.sigs.k8s.io/jobset-name": "tiny"}}
    assert (spec["podSelector"], spec["ingress"]) == (mine, [{"from": [{"podSelector": mine}]}])


def outcome(manifests, message):
    """What the JobSet does with a job that ended so: the first rule that fits (JobSet, `failure policy`)."""
    policy = of_kind(manifests, "JobSet")["spec"]["failurePolicy"]
    for rule in policy["rules"]:
        if any(re.search(pattern, message) for pattern in rule["onJobFailureMessagePatterns"]):
            return rule["action"]
    return "RestartJobSet"


def message(manifests, code, disrupted=False):
    """What the job's condition says: the text of the Job controller, for the first rule that fits."""
    for index, rule in enumerate(job_of(manifests)["spec"]["podFailurePolicy"]["rules"]):
        codes = rule.get("onExitCodes", {"values": []})["values"]
        if code in codes:
            return (
                f"Container node for pod team/tiny failed with exit code {code} matching FailJob rule at index {index}"
            )
        if disrupted and "onPodConditions" in rule:
            return f"Pod team/tiny has condition DisruptionTarget matching FailJob rule at index {index}"
    return "Job has reached the specified backoff limit"


@pytest.mark.parametrize(
    ("code", "disrupted", "action"),
    [
        (75, False, "RestartJobSetAndIgnoreMaxRestarts"),
        (75, True, "RestartJobSetAndIgnoreMaxRestarts"),
        (137, True, "RestartJobSetAndIgnoreMaxRestarts"),
        (137, False, "RestartJobSet"),
        (4, False, "RestartJobSet"),
        (1, False, "RestartJobSet"),
        (2, False, "FailJobSet"),
        (3, False, "FailJobSet"),
        (5, False, "FailJobSet"),
    ],
)
def test_a_requeue_is_no_failure_and_a_wrong_recipe_is_not_tried_again(code, disrupted, action):
    manifests = jobset("", OPTIONS)
    assert outcome(manifests, message(manifests, code, disrupted)) == action


def test_restarts_and_grace_are_those_asked_for():
    manifests = jobset("", replace(OPTIONS, restarts=7, grace=123))
    assert of_kind(manifests, "JobSet")["spec"]["failurePolicy"]["maxRestarts"] == 7
    assert pod_of(manifests)["spec"]["terminationGracePeriodSeconds"] == 123
    assert job_of(manifests)["spec"]["backoffLimit"] == 0


def test_several_pods_need_a_volume_that_several_can_write():
    modes = {n: of_kind(jobset("", replace(OPTIONS, replicas=n)), "PersistentVolumeClaim")["spec"] for n in (1, 2)}
    assert modes[1]["accessModes"] == ["ReadWriteOnce"] and modes[2]["accessModes"] == ["ReadWriteMany"]


def test_a_bucket_is_mounted_and_a_claim_that_is_there_is_not_made():
    spec = pod_of(jobset("", VARIANTS["bucket"]))
    volume = next(each for each in spec["spec"]["volumes"] if each["name"] == "run")
    assert volume["csi"]["volumeAttributes"]["bucketName"] == "my-bucket"
    assert spec["metadata"]["annotations"] == {"gke-gcsfuse/volumes": "true"}
    given = pod_of(jobset("", VARIANTS["given"]))["spec"]
    volume = next(each for each in given["volumes"] if each["name"] == "run")
    assert volume["persistentVolumeClaim"]["claimName"] == "shared"


def test_what_is_asked_for_is_requested():
    (container,) = pod_of(jobset("", VARIANTS["given"]))["spec"]["containers"]
    limits = {"memory": "8192Mi", "nvidia.com/gpu": "1"}
    assert container["resources"] == {"requests": {"cpu": "2"} | limits, "limits": limits}
    assert container["envFrom"] == [{"secretRef": {"name": "keys"}}]


def test_a_trainjob_runs_the_runtime_beside_it():
    manifests = trainjob("", OPTIONS)
    job, runtime = of_kind(manifests, "TrainJob"), of_kind(manifests, "TrainingRuntime")
    assert job["spec"]["runtimeRef"]["name"] == runtime["metadata"]["name"]
    assert job["spec"]["trainer"]["numNodes"] == runtime["spec"]["mlPolicy"]["numNodes"] == 3
    label = "trainer.kubeflow.org/trainjob-ancestor-step"
    assert job_of(manifests)["metadata"]["labels"][label] == "trainer"
