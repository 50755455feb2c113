"""The manifests that run a recipe on Kubernetes: a JobSet, or a TrainJob of the Kubeflow Trainer. Pure: plain dicts.

A pod holds one replica. All of them see one volume at /run, with the run folder and the cache of tokenized data, and
the recipe at /recipe; they are started as process RANK of WORLD_SIZE, for the engine `env`. With the first pod that
ends all end, and the JobSet starts them again, to go on from the newest checkpoint.

Sources: JobSet API v1alpha2 (messages of failures need JobSet 0.10), Kubeflow Trainer API v1alpha1.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from samestep.errors import DataError, RecipeError, Stopped, VerifyError

Manifest = dict[str, Any]

NODE = "node"  # of the job and its container: what the Kubeflow Trainer looks for
PORT = 29500
USER = 1000  # of the image, see Dockerfile
VOLUME, RECIPE, FILE = "/run", "/recipe", "recipe.yaml"
CACHE = f"{VOLUME}/cache"
PATIENCE = 1800  # seconds in which all pods have to be there: nodes are added and images pulled one after the other
JOBSET = "jobset.sigs.k8s.io"
INDEX = "batch.kubernetes.io/job-completion-index"

# Exit codes -> what the JobSet does. A pod that is evicted or preempted counts as one that was stopped.
REQUEUE = [Stopped.exit_code]
FINAL = sorted({RecipeError.exit_code, DataError.exit_code, VerifyError.exit_code})  # another try would end the same


@dataclass(frozen=True)
class Options:
    """What a recipe does not say. memory, grace: bytes and seconds. claim: a volume claim that is there already; with
    neither it nor a bucket one of `size` is made. selector: labels of the nodes.
    """

    name: str
    image: str
    replicas: int
    cpus: str
    memory: int
    grace: int
    gpus: int = 0
    restarts: int = 3
    namespace: str | None = None
    claim: str | None = None
    size: str = "100Gi"
    storage_class: str | None = None
    bucket: str | None = None
    secret: str | None = None
    account: str | None = None
    selector: dict[str, str] = field(default_factory=dict)


def jobset(recipe: str, options: Options) -> list[Manifest]:
    """recipe: its text. In the order in which they are to be made."""
    body = _manifest("jobset.x-k8s.io/v1alpha2", "JobSet", options, spec=jobset_spec(options))
    return [*_around(recipe, options), body]


def trainjob(recipe: str, options: Options) -> list[Manifest]:
    """A runtime of its own, which is the JobSet, and the job that runs it."""
    group = "trainer.kubeflow.org"
    template = {"spec": jobset_spec(options)}
    runtime = {"mlPolicy": {"numNodes": options.replicas}, "template": template}
    reference = {"apiGroup": group, "kind": "TrainingRuntime", "name": options.name}
    job = {"runtimeRef": reference, "trainer": {"numNodes": options.replicas, "image": options.image}}
    return [
        *_around(recipe, options),
        _manifest(f"{group}/v1alpha1", "TrainingRuntime", options, spec=runtime),
        _manifest(f"{group}/v1alpha1", "TrainJob", options, spec=job),
    ]


KINDS = {"jobset": jobset, "trainjob": trainjob}


def jobset_spec(options: Options) -> Manifest:
    job = {"metadata": {"labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}}, "spec": _job(options)}
    return {
        "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True, "subdomain": options.name},
        "failurePolicy": {
            "maxRestarts": options.restarts,
            "restartStrategy": "BlockingRecreate",  # never two lives in one run folder
            "rules": [
                _rule("stopped", "RestartJobSetAndIgnoreMaxRestarts", "01"),
                _rule("hopeless", "FailJobSet", "2"),
            ],
        },
        "replicatedJobs": [{"name": NODE, "replicas": 1, "template": job}],
    }


def _rule(name: str, action: str, indices: str) -> Manifest:
    """What the JobSet does where one of these rules of the pods has ended the job. Other ends count as restarts."""
    pattern = f"matching FailJob rule at index [{indices}]$"
    reason = {"onJobFailureReasons": ["PodFailurePolicy"], "onJobFailureMessagePatterns": [pattern]}
    return {"name": name, "action": action} | reason


def _job(options: Options) -> Manifest:
    rules = [
        {"action": "FailJob", "onExitCodes": _codes(REQUEUE)},
        {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        {"action": "FailJob", "onExitCodes": _codes(FINAL)},
    ]
    return {
        "parallelism": options.replicas,
        "completions": options.replicas,
        "completionMode": "Indexed",
        "backoffLimit": 0,  # one replica cannot start again alone; the JobSet starts all
        "podFailurePolicy": {"rules": rules},
        "template": {"metadata": _pod_metadata(options), "spec": _pod(options)},
    }


def _codes(values: Sequence[int]) -> Manifest:
    return {"containerName": NODE, "operator": "In", "values": list(values)}


def _pod_metadata(options: Options) -> Manifest:
    annotations = {"gke-gcsfuse/volumes": "true"} if options.bucket else {}
    return {"labels": _labels(options)} | ({"annotations": annotations} if annotations else {})


def _pod(options: Options) -> Manifest:
    more = {"serviceAccountName": options.account, "nodeSelector": options.selector}
    identity = {"runAsNonRoot": True, "runAsUser": USER, "runAsGroup": USER, "fsGroup": USER}
    policy = {"fsGroupChangePolicy": "OnRootMismatch", "seccompProfile": {"type": "RuntimeDefault"}}
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": options.grace,
        "automountServiceAccountToken": False,
        **{key: value for key, value in more.items() if value},
        "securityContext": identity | policy,
        "containers": [_container(options)],
        "volumes": [
            {"name": "run", **_volume(options)},
            {"name": "recipe", "configMap": {"name": f"{options.name}-recipe"}},
            {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": mebibytes(options.memory // 2)}},
            {"name": "temporary", "emptyDir": {}},
        ],
    }


def _container(options: Options) -> Manifest:
    memory = mebibytes(options.memory)
    limits = {"memory": memory} | ({"nvidia.com/gpu": str(options.gpus)} if options.gpus else {})
    secret = {"envFrom": [{"secretRef": {"name": options.secret}}]} if options.secret else {}
    run = f"{VOLUME}/{options.name}"
    return {
        "name": NODE,
        "image": options.image,
        "command": ["samestep", "train", f"{RECIPE}/{FILE}", "--run", run, "--engine", "env"],
        "env": _environment(options),
        **secret,
        "ports": [{"name": "rendezvous", "containerPort": PORT, "protocol": "TCP"}],
        "resources": {"requests": {"cpu": options.cpus} | limits, "limits": limits},  # a limit of cpu only slows
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "run", "mountPath": VOLUME},
            {"name": "recipe", "mountPath": RECIPE, "readOnly": True},
            {"name": "memory", "mountPath": "/dev/shm"},
            {"name": "temporary", "mountPath": "/tmp"},
        ],
    }


def _environment(options: Options) -> list[Manifest]:
    fields = {
        "RANK": f"metadata.labels['{INDEX}']",
        "JOBSET_RESTART_ATTEMPT": f"metadata.labels['{JOBSET}/restart-attempt']",
    }
    values = {
        "WORLD_SIZE": str(options.replicas),
        "MASTER_ADDR": f"{options.name}-{NODE}-0-0.{options.name}",  # pod 0, by its name in the headless service
        "MASTER_PORT": str(PORT),
        "SAMESTEP_PATIENCE": str(PATIENCE),
        "HOME": "/tmp",  # nothing else of the image can be written
        "HF_HOME": f"{CACHE}/huggingface",
    }
    known = [{"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in fields.items()]
    return known + [{"name": name, "value": value} for name, value in values.items()]


def _volume(options: Options) -> Manifest:
    if options.bucket is None:
        return {"persistentVolumeClaim": {"claimName": options.claim or f"{options.name}-run"}}
    attributes = {
        "bucketName": options.bucket,
        # Files are its user's; what another pod has written is seen at once; a checkpoint's folder can be renamed.
        "mountOptions": f"implicit-dirs,uid={USER},gid={USER},metadata-cache:ttl-secs:0,rename-dir-limit=10000",
    }
    return {"csi": {"driver": "gcsfuse.csi.storage.gke.io", "volumeAttributes": attributes}}


def _around(recipe: str, options: Options) -> list[Manifest]:
    """What the pods need before they start."""
    found = [_manifest("v1", "ConfigMap", options, f"{options.name}-recipe", data={FILE: recipe})]
    found += [] if options.claim or options.bucket else [_claim(options)]
    return [*found, _service(options), _wall(options)]


def _claim(options: Options) -> Manifest:
    mode = "ReadWriteMany" if options.replicas > 1 else "ReadWriteOnce"
    spec: Manifest = {"accessModes": [mode], "resources": {"requests": {"storage": options.size}}}
    spec |= {"storageClassName": options.storage_class} if options.storage_class else {}
    return _manifest("v1", "PersistentVolumeClaim", options, f"{options.name}-run", spec=spec)


def _service(options: Options) -> Manifest:
    """Headless: it gives each pod its name. Pods look for each other before they are ready."""
    port = {"name": "rendezvous", "port": PORT}
    spec = {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": _mine(options), "ports": [port]}
    return _manifest("v1", "Service", options, spec=spec)


def _wall(options: Options) -> Manifest:
    """What replicas tell each other is not encrypted: only they may connect to each other."""
    mine = {"podSelector": {"matchLabels": _mine(options)}}
    spec = mine | {"policyTypes": ["Ingress"], "ingress": [{"from": [mine]}]}
    return _manifest("networking.k8s.io/v1", "NetworkPolicy", options, spec=spec)


def _mine(options: Options) -> dict[str, str]:
    return {f"{JOBSET}/jobset-name": options.name}


def _labels(options: Options) -> dict[str, str]:
    return {"app.kubernetes.io/name": "samestep", "app.kubernetes.io/instance": options.name}


def _manifest(version: str, kind: str, options: Options, name: str | None = None, **body: Any) -> Manifest:
    place = {"namespace": options.namespace} if options.namespace else {}
    metadata = {"name": name or options.name, **place, "labels": _labels(options)}
    return {"apiVersion": version, "kind": kind, "metadata": metadata} | body


def mebibytes(size: int) -> str:
    """Rounded up: 1 -> `1Mi`."""
    return f"{-(-size // 2**20)}Mi"
