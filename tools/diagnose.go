package tools

import (
	"context"
	"fmt"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kjson "sigs.k8s.io/json"

	"countersign/action"
	"countersign/audit"
)

// Bounds of a diagnosis. The log and some events have their place in it, so that
// however many pods there are, what explains them is not cut.
const (
	maxDiagnosis       = 8 << 10
	maxDiagnosedPods   = 500 // that are read
	maxShownPods       = 6
	maxDetailedPods    = 2 // whose containers are shown
	maxShownFindings   = 12
	maxFinding         = 240 // characters of each but the first
	maxShownEvents     = 10
	maxEventObjects    = 3   // of each kind, whose events are read
	maxDiagnosedEvents = 200 // that are read of each object
	reservedForEvents  = 1 << 10
	maxDiagnosedLines  = 20
	maxDiagnosedLog    = 2 << 10
)

const (
	// manyRestarts are a finding, however well the container runs now.
	manyRestarts = 5
	// recently is how long fewer of them are one.
	recently = 10 * time.Minute
)

var (
	replicaSets = action.Resource{Group: "apps", Version: "v1", Resource: "replicasets", Kind: "ReplicaSet", Namespaced: true}
	jobsV1      = action.Resource{Group: "batch", Version: "v1", Resource: "jobs", Kind: "Job", Namespaced: true}
	// diagnosed are the kinds that can be diagnosed.
	diagnosed = map[string]action.Resource{
		"pod": pods, "deployment": deployments, "statefulset": statefulSets, "daemonset": daemonSets, "job": jobsV1, "replicaset": replicaSets,
	}
)

type diagnoseWorkloadInput struct {
	Kind      string `json:"kind" jsonschema:"pod, deployment, statefulset, daemonset, job or replicaset"`
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
}

func diagnoseWorkload() *Tool {
	kinds := []string{"pod", "deployment", "statefulset", "daemonset", "job", "replicaset"}
	var scopes []action.Scope
	for _, kind := range kinds {
		scopes = append(scopes, action.Scope{Verbs: []string{action.Get}, Resource: diagnosed[kind].GroupResource()})
	}
	return define(Tool{
		Name:        "diagnose_workload",
		Title:       "Diagnose a workload",
		Description: "Says what looks wrong with a workload: its state, pods, events and last log lines in one call.",
		Scopes:      scopes,
		Reads: append(slices.Clone(scopes),
			action.Scope{Verbs: []string{action.Get}, Resource: "nodes"},
			action.Scope{Verbs: []string{action.Get}, Resource: "pods", Subresource: "log"},
			action.Scope{Verbs: []string{action.List}, Resource: "pods"},
			action.Scope{Verbs: []string{action.List}, Resource: "events"},
			action.Scope{Verbs: []string{action.List}, Resource: "replicasets.apps"}),
	}, nil, func(ctx context.Context, r Reader, cluster string, in diagnoseWorkloadInput) (Call, error) {
		kind := workloadKind(in.Kind)
		resource, known := diagnosed[kind]
		switch {
		case kind == "cronjob": // its pods are its Jobs'
			return Call{}, BadArgument("a CronJob has no pods of its own: diagnose one of its Jobs, which list_resources shows for kind job")
		case !known:
			return Call{}, BadArgument("argument kind is not one of %v", kinds)
		}
		d := &diagnosis{ctx: ctx, r: r, cluster: cluster, namespace: in.Namespace, resource: resource, name: in.Name}
		text, err := d.run()
		return Call{Answer: text}, err
	}, nil)
}

// diagnosis is what is found out about one workload, from it down to its pods.
// What cannot be read is left out, and the rest is told.
type diagnosis struct {
	ctx                context.Context
	r                  Reader
	cluster, namespace string
	resource           action.Resource
	name               string

	workload workload
	sets     []appsv1.ReplicaSet // that have pods, or should
	pods     []podState
	// ended are pods that are over and that their controller has replaced, or will.
	ended []podState
	// listed says that the pods could be read; more that there are others.
	listed, more bool
	// selected is how many pods the selector takes, whoever owns them.
	selected int
	events   []event
	told     []finding // by events
}

// rank orders findings: what explains comes before what follows from it.
type rank int

const (
	givenUp rank = iota // nothing more will happen
	cause               // a container, a claim or the API server says why
	hint                // an event, a node or the scheduler says why
	symptom
	state // of the workload, and can be as it is meant
	past  // what nobody needs any more
)

// finding is something that looks wrong. What differs between pods in the same
// trouble stands apart from the text, so that it is told once.
type finding struct {
	rank rank
	text string
	// last is how the container's last run ended, ago when, and limit how much
	// memory it may have, where it took too much.
	last, ago, limit string
	restarts         int32
	message          string // what something in the cluster says about it
	pods             int    // that it is true of
}

func (f finding) String() string {
	text := f.text
	if f.last != "" {
		text += ", " + f.last + f.ago + f.limit
	}
	if f.restarts == 1 {
		text += ", 1 restart"
	} else if f.restarts > 1 {
		text += fmt.Sprintf(", %d restarts", f.restarts)
	}
	if f.message != "" {
		text += ": " + f.message
	}
	return text
}

// line is the finding among others.
func (f finding) line() string {
	if f.pods > 1 {
		return fmt.Sprintf("%d pods: %s", f.pods, f)
	}
	return f.String()
}

func (d *diagnosis) read(resource action.Resource, name string, into any) error {
	body, err := readOne(d.ctx, d.r, d.cluster, resource, d.namespace, name)
	if err != nil {
		return err
	}
	if err := kjson.UnmarshalCaseSensitivePreserveInts(body, into); err != nil {
		return fmt.Errorf("reading the %s: %w", resource.Kind, err)
	}
	return nil
}

func (d *diagnosis) list(resource action.Resource, selector *metav1.LabelSelector, into any) error {
	response, err := d.r.Read(d.ctx, action.Action{
		Cluster: d.cluster, Verb: action.List, Resource: resource, Namespace: d.namespace,
		Options: action.Options{LabelSelector: metav1.FormatLabelSelector(selector), Limit: maxDiagnosedPods},
	})
	if err != nil {
		return err
	}
	if err := kjson.UnmarshalCaseSensitivePreserveInts(response.Body, into); err != nil {
		return fmt.Errorf("reading the list of %s: %w", resource.Resource, err)
	}
	return nil
}

func (d *diagnosis) run() (string, error) {
	if err := d.readWorkload(); err != nil {
		return "", err
	}
	d.readPods()
	d.readEvents()
	return d.text(), nil
}

// workload is what the kinds of workload have in common.
type workload struct {
	meta     metav1.ObjectMeta
	selector *metav1.LabelSelector
	state    string // its numbers and conditions, in words
	wants    int32  // pods
	ready    int32  // of them, as its controller says
	done     bool   // a Job that has done what it was to do
	findings []finding
	// refused says that its pods cannot be created; unavailable what it says of
	// itself where nothing explains it.
	refused     bool
	unavailable string
}

func (w *workload) finds(rank rank, format string, args ...any) {
	w.findings = append(w.findings, finding{rank: rank, text: fmt.Sprintf(format, args...)})
}

func (d *diagnosis) readWorkload() error {
	w := &d.workload
	switch d.resource {
	case pods:
		var pod corev1.Pod
		if err := d.read(d.resource, d.name, &pod); err != nil {
			return err
		}
		w.meta, w.wants = pod.ObjectMeta, 1
		d.listed = true
		d.pods = []podState{stateOf(pod, d.r.Now())}
	case deployments:
		var o appsv1.Deployment
		if err := d.read(d.resource, d.name, &o); err != nil {
			return err
		}
		w.deployment(o)
	case statefulSets:
		var o appsv1.StatefulSet
		if err := d.read(d.resource, d.name, &o); err != nil {
			return err
		}
		w.statefulSet(o)
	case daemonSets:
		var o appsv1.DaemonSet
		if err := d.read(d.resource, d.name, &o); err != nil {
			return err
		}
		w.daemonSet(o)
	case replicaSets:
		var o appsv1.ReplicaSet
		if err := d.read(d.resource, d.name, &o); err != nil {
			return err
		}
		w.replicaSet(o)
	case jobsV1:
		var o batchv1.Job
		if err := d.read(d.resource, d.name, &o); err != nil {
			return err
		}
		w.job(o)
	}
	return nil
}

func (w *workload) deployment(o appsv1.Deployment) {
	w.meta, w.selector, w.wants = o.ObjectMeta, o.Spec.Selector, wanted(o.Spec.Replicas)
	s := o.Status
	w.ready = s.ReadyReplicas
	w.state = fmt.Sprintf("wants %d, updated %d, ready %d, available %d", w.wants, s.UpdatedReplicas, s.ReadyReplicas, s.AvailableReplicas)
	if o.Spec.Paused {
		w.finds(state, "the Deployment is paused: changes of its template are not rolled out until resume_rollout")
	}
	for _, c := range o.Status.Conditions {
		w.condition(string(c.Type), string(c.Status), c.Reason)
		switch {
		case c.Type == appsv1.DeploymentProgressing && c.Reason == "ProgressDeadlineExceeded":
			w.finds(symptom, "the rollout is over its deadline (ProgressDeadlineExceeded): %s", oneLine(c.Message))
		case c.Type == appsv1.DeploymentReplicaFailure && c.Status == corev1.ConditionTrue:
			w.refuses(c.Reason, c.Message)
		case c.Type == appsv1.DeploymentAvailable && c.Status == corev1.ConditionFalse:
			w.unavailable = fmt.Sprintf("not available (%s): %s", c.Reason, oneLine(c.Message))
		}
	}
	if w.generation(s.ObservedGeneration) {
		w.rollout(s.UpdatedReplicas, w.wants)
		if old := s.Replicas - s.UpdatedReplicas; old > 0 && s.UpdatedReplicas >= w.wants {
			w.finds(state, "rollout under way: %d pods of an earlier revision are still there", old)
		}
		w.available(s.ReadyReplicas, s.AvailableReplicas, o.Spec.MinReadySeconds)
	}
	w.none()
}

func (w *workload) statefulSet(o appsv1.StatefulSet) {
	w.meta, w.selector, w.wants = o.ObjectMeta, o.Spec.Selector, wanted(o.Spec.Replicas)
	s := o.Status
	w.ready = s.ReadyReplicas
	w.state = fmt.Sprintf("wants %d, has %d, ready %d, updated %d", w.wants, s.Replicas, s.ReadyReplicas, s.UpdatedReplicas)
	if w.generation(s.ObservedGeneration) {
		strategy := o.Spec.UpdateStrategy
		if strategy.Type != appsv1.OnDeleteStatefulSetStrategyType && s.UpdateRevision != s.CurrentRevision {
			target := w.wants
			if r := strategy.RollingUpdate; r != nil && r.Partition != nil {
				target -= *r.Partition // those below it stay as they are
			}
			w.rollout(s.UpdatedReplicas, target)
		}
		w.available(s.ReadyReplicas, s.AvailableReplicas, o.Spec.MinReadySeconds)
	}
	w.none()
}

func (w *workload) daemonSet(o appsv1.DaemonSet) {
	s := o.Status
	w.meta, w.selector, w.wants, w.ready = o.ObjectMeta, o.Spec.Selector, s.DesiredNumberScheduled, s.NumberReady
	w.state = fmt.Sprintf("wants %d (one a node), scheduled %d, ready %d, updated %d", w.wants, s.CurrentNumberScheduled, s.NumberReady, s.UpdatedNumberScheduled)
	if s.NumberMisscheduled > 0 {
		w.finds(state, "%d pods run on nodes where they should not", s.NumberMisscheduled)
	}
	if w.generation(s.ObservedGeneration) {
		if o.Spec.UpdateStrategy.Type != appsv1.OnDeleteDaemonSetStrategyType {
			w.rollout(s.UpdatedNumberScheduled, w.wants)
		}
		w.available(s.NumberReady, s.NumberAvailable, o.Spec.MinReadySeconds)
	}
	if w.wants == 0 && s.ObservedGeneration > 0 {
		w.finds(state, "no node fits the DaemonSet: see its nodeSelector, affinity and tolerations")
	}
}

func (w *workload) replicaSet(o appsv1.ReplicaSet) {
	w.meta, w.selector, w.wants = o.ObjectMeta, o.Spec.Selector, wanted(o.Spec.Replicas)
	w.ready = o.Status.ReadyReplicas
	w.state = fmt.Sprintf("wants %d, has %d, ready %d", w.wants, o.Status.Replicas, o.Status.ReadyReplicas)
	for _, c := range o.Status.Conditions {
		w.condition(string(c.Type), string(c.Status), c.Reason)
		if c.Type == appsv1.ReplicaSetReplicaFailure && c.Status == corev1.ConditionTrue {
			w.refuses(c.Reason, c.Message)
		}
	}
	w.available(o.Status.ReadyReplicas, o.Status.AvailableReplicas, o.Spec.MinReadySeconds)
	w.none()
}

func (w *workload) job(o batchv1.Job) {
	w.meta, w.selector = o.ObjectMeta, o.Spec.Selector
	s := o.Status
	w.state = fmt.Sprintf("active %d, succeeded %d, failed %d", s.Active, s.Succeeded, s.Failed)
	over := false
	for _, c := range s.Conditions {
		w.condition(string(c.Type), string(c.Status), c.Reason)
		if c.Status != corev1.ConditionTrue {
			continue
		}
		switch c.Type {
		case batchv1.JobFailed:
			w.finds(givenUp, "the Job has failed (%s): %s", c.Reason, oneLine(c.Message))
			over = true
		case batchv1.JobComplete:
			w.done, over = true, true
		case batchv1.JobSuspended:
			w.finds(state, "the Job is suspended")
		}
	}
	if s.Failed > 0 && !over {
		w.finds(symptom, "%d pods of the Job have failed; it tries again, %d times at most", s.Failed, backoffLimit(o))
	}
}

// backoffLimit is how often a Job tries again: six times where nothing is said.
func backoffLimit(o batchv1.Job) int32 {
	if o.Spec.BackoffLimit == nil {
		return 6
	}
	return *o.Spec.BackoffLimit
}

func (w *workload) condition(kind, status, reason string) {
	w.state += fmt.Sprintf("; %s=%s", kind, status)
	if reason != "" {
		w.state += " (" + reason + ")"
	}
}

// refuses says that the API server takes no pods of the workload.
func (w *workload) refuses(reason, message string) {
	w.refused = true
	w.finds(cause, "pods cannot be created (%s): %s", reason, oneLine(message))
}

// generation reports whether the status is about what the workload is now.
func (w *workload) generation(observed int64) bool {
	if observed < w.meta.Generation {
		w.finds(symptom, "its controller has not taken up the latest change yet (generation %d of %d)", observed, w.meta.Generation)
		return false
	}
	return true
}

func (w *workload) rollout(updated, target int32) {
	if updated < target {
		w.finds(state, "rollout under way: %d of %d updated", updated, target)
	}
}

// available looks at pods that are ready: only after a while do they count.
func (w *workload) available(ready, available, minReadySeconds int32) {
	if available < ready && minReadySeconds > 0 {
		w.finds(state, "%d of %d available: %d ready, but not yet for minReadySeconds %ds", available, w.wants, ready-available, minReadySeconds)
	} else if available < ready {
		w.finds(state, "%d of %d available, though %d are ready", available, w.wants, ready)
	}
}

func (w *workload) none() {
	if w.wants == 0 {
		w.finds(state, "no replicas are wanted: it is scaled to zero")
	}
}

// wanted is a number that stands for 1 where it is left out.
func wanted(n *int32) int32 {
	if n == nil {
		return 1
	}
	return *n
}

// oneLine is a message that something in the cluster has written, on one line.
func oneLine(message string) string {
	return clip(audit.MaskText(plainText([]byte(message))), maxMessage)
}
